//! Whether this machine's libraries sort text as those that the database's indexes were built with (glibc, ICU).
//!
//! The server that runs tells it, a standby too: what it recorded when a database or collation was made, against what the library
//! says here. So a copy on a machine with another glibc is found as soon as it answers, before it is ever made active.
//! `C.UTF-8`, which hasup gives to the databases it makes, is the same everywhere and has no version.

use std::time::Duration;

use super::PgError;
use super::client::Rows;
use super::control::Postgres;

/// Databases whose default collation differs; the catalogue has it from version 15 on.
const DATABASES: &str = "\
select datname, datlocprovider, datcollversion, pg_database_collation_actual_version(oid) from pg_database
where datallowconn and datcollversion <> pg_database_collation_actual_version(oid) order by datname";
/// The libraries that differ, by the collations that every database is made with.
const LIBRARIES: &str = "\
select collprovider, collversion, pg_collation_actual_version(oid), count(*) from pg_collation
where collversion <> pg_collation_actual_version(oid) group by 1, 2, 3 order by 1, 2, 3";
/// The first version whose databases have a collation version.
const MAJOR_WITH_DATABASES: u32 = 15;

impl Postgres {
    /// Returns what an operator must know about collations that differ on this machine, one sentence each with its cure.
    ///
    /// # Errors
    /// PostgreSQL does not answer.
    pub async fn collation_warnings(&self, limit: Duration) -> Result<Vec<String>, PgError> {
        let what = "compare the versions of its collations";
        let mut warnings = Vec::new();
        if self.programs().major >= MAJOR_WITH_DATABASES {
            warnings.extend(databases(&self.run_sql(what, DATABASES, limit).await?));
        }
        warnings.extend(libraries(&self.run_sql(what, LIBRARIES, limit).await?));
        Ok(warnings)
    }
}

fn columns(row: &[Option<String>]) -> Option<[&str; 4]> {
    let [a, b, c, d] = row else { return None };
    Some([a.as_deref()?, b.as_deref()?, c.as_deref()?, d.as_deref()?])
}

fn library(provider: &str) -> &'static str {
    match provider {
        "c" => "glibc",
        "i" => "ICU",
        "b" => "PostgreSQL",
        _ => "the database's default",
    }
}

fn databases(rows: &Rows) -> Vec<String> {
    let warning = |[name, provider, recorded, actual]: [&str; 4]| {
        let name = format!("\"{}\"", name.replace('"', "\"\""));
        format!(
            "database {name} was built with collations of {} {recorded}, and this machine has {actual}: indexes on text may miss rows \
             here. Run the same version on all nodes, or, on the active one, `REINDEX DATABASE {name}` and then `ALTER DATABASE {name} \
             REFRESH COLLATION VERSION`",
            library(provider)
        )
    };
    rows.iter().filter_map(|row| columns(row)).map(warning).collect()
}

fn libraries(rows: &Rows) -> Vec<String> {
    let warning = |[provider, recorded, actual, count]: [&str; 4]| {
        format!(
            "{count} collations of {} {recorded} are {actual} on this machine: indexes that name one of them may miss rows here. Run the \
             same version on all nodes, or, on the active one, `REINDEX` those and then `ALTER COLLATION … REFRESH VERSION`",
            library(provider)
        )
    };
    rows.iter().filter_map(|row| columns(row)).map(warning).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[[&str; 4]]) -> Rows {
        rows.iter().map(|row| row.iter().map(|text| Some((*text).to_owned())).collect()).collect()
    }

    #[test]
    fn a_difference_names_both_versions_and_the_cure() {
        let told = databases(&rows(&[["Shop", "c", "2.31", "2.36"]])).concat();
        for word in ["\"Shop\"", "glibc 2.31", "2.36", "REINDEX DATABASE \"Shop\"", "REFRESH COLLATION VERSION"] {
            assert!(told.contains(word), "{word}: {told}");
        }
        let told = libraries(&rows(&[["i", "153.112", "153.120", "800"]])).concat();
        assert!(told.contains("800 collations of ICU 153.112 are 153.120"), "{told}");
        assert_eq!(databases(&vec![vec![None, None, None, None], vec![]]), Vec::<String>::new());
    }
}
