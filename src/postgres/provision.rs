//! Makes the roles, the schema and the application's database that a cluster of hasup needs. Repeatable.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use zeroize::Zeroizing;

use super::control::Postgres;
use super::settings::{FETCH_ROLE, REPLICATION_ROLE, REWIND_ROLE};
use super::{PgError, file_error};

/// How an application connects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Application {
    /// Its role.
    pub user: String,
    /// Its database, which it owns.
    pub database: String,
    /// The file that holds its password, readable by the owner alone.
    pub password_file: PathBuf,
}

/// What `pg_rewind` calls on its source; PostgreSQL's own documentation lists them.
const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_ls_dir(text, boolean, boolean)",
    "pg_stat_file(text, boolean)",
    "pg_read_binary_file(text)",
    "pg_read_binary_file(text, bigint, bigint, boolean)",
];

fn roles_sql() -> String {
    let mut sql = String::from("set synchronous_commit = local;\nset log_statement = 'none';\n");
    for (role, attributes) in
        [(REPLICATION_ROLE, "login replication"), (FETCH_ROLE, "login replication"), (REWIND_ROLE, "login")]
    {
        sql.push_str(&format!(
            "do $$ begin if not exists (select from pg_roles where rolname = '{role}') then create role {role}; end if; end $$;\n\
             alter role {role} nosuperuser nocreatedb nocreaterole {attributes};\n"
        ));
    }
    for function in REWIND_FUNCTIONS {
        sql.push_str(&format!("grant execute on function pg_catalog.{function} to {REWIND_ROLE};\n"));
    }
    sql.push_str(
        "create schema if not exists hasup;\n\
         revoke all on schema hasup from public;\n\
         create table if not exists hasup.heartbeat (\n\
         kind text primary key, beat bigint not null, at timestamptz not null default clock_timestamp());\n",
    );
    sql
}

impl Postgres {
    /// Makes hasup's roles with the least privileges, and its schema. Needs a primary; repeatable.
    pub async fn provision(&self, limit: Duration) -> Result<(), PgError> {
        self.run_sql("make hasup's roles and schema", &roles_sql(), limit).await.map(drop)
    }

    /// Makes an application's role and database, with a password that is drawn once and kept in a private file.
    ///
    /// PostgreSQL is given the password's verifier only, so that no log can show the password.
    pub async fn provision_application(&self, name: &str, limit: Duration) -> Result<Application, PgError> {
        let is_plain =
            !name.is_empty() && name.len() <= 40 && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        if !is_plain {
            return Err(PgError::Refused(format!("`{name}` is no name for a role and database: use a-z and _ alone")));
        }
        let password_file = self.layout().config_dir().join(format!("{name}.password"));
        let password = match fs::read_to_string(&password_file) {
            Ok(text) => Zeroizing::new(text.trim().to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                // 244 random bits.
                let drawn =
                    Zeroizing::new(format!("{}{}", uuid::Uuid::new_v4().simple(), uuid::Uuid::new_v4().simple()));
                self.layout().write(&password_file, drawn.as_bytes())?;
                drawn
            }
            Err(error) => return Err(file_error("read", &password_file)(error)),
        };
        let verifier = postgres_protocol::password::scram_sha_256(password.as_bytes());
        let what = "make the application's role and database";
        let mut session = self.new_session(limit).await?;
        let sql = format!(
            "set synchronous_commit = local;\nset log_statement = 'none';\n\
             do $$ begin if not exists (select from pg_roles where rolname = '{name}') then create role {name}; end if; end $$;\n\
             alter role {name} login password '{verifier}';"
        );
        session.query(what, &sql, limit).await?;
        let exists = format!("select exists (select from pg_database where datname = '{name}')");
        if session.value(what, &exists, limit).await? != "t" {
            session.query(what, &format!("create database {name} owner {name}"), limit).await?;
        }
        Ok(Application { user: name.to_owned(), database: name.to_owned(), password_file })
    }
}
