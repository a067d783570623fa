//! Finds PostgreSQL's programs: several versions may be installed, none need be on the path.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The programs of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// The folder they are in.
    pub bin_dir: PathBuf,
    /// The major version, like 15.
    pub major: u32,
}

/// No usable programs were found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramsError {
    /// None at all, or none of the version that the data needs.
    #[error(
        "no programs of PostgreSQL {wanted} were found (looked in {looked}): PostgreSQL cannot start on this node; install the \
         package `{package}` or set `postgres.bin_dir`"
    )]
    Missing {
        /// The version, as people say it.
        wanted: String,
        /// The folders looked into.
        looked: String,
        /// What to install on Debian and Ubuntu.
        package: String,
    },
    /// The version is too old.
    #[error("PostgreSQL {major} in {bin_dir} is too old: 14 or newer is needed; install `postgresql`")]
    TooOld {
        /// The version found.
        major: u32,
        /// Where.
        bin_dir: PathBuf,
    },
}

/// The oldest version that hasup drives.
const MAJOR_MIN: u32 = 14;
const NEEDED: [&str; 6] = ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_controldata", "pg_resetwal"];

impl Programs {
    /// Finds the programs in `setting` if given, else by Debian's folders, `pg_config` and the path; of version `wanted`
    /// (that of an existing data directory), else the newest.
    pub fn find(setting: Option<&Path>, wanted: Option<u32>) -> Result<Self, ProgramsError> {
        let candidates = setting.map_or_else(default_folders, |folder| vec![folder.to_owned()]);
        let found = candidates.iter().filter_map(|folder| probe(folder));
        let best =
            found.filter(|found| wanted.is_none_or(|major| found.major == major)).max_by_key(|found| found.major);
        match best {
            None => Err(ProgramsError::Missing {
                wanted: wanted.map_or_else(|| format!("{MAJOR_MIN} or newer"), |major| major.to_string()),
                looked: candidates.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", "),
                package: wanted.map_or_else(|| "postgresql".to_owned(), |major| format!("postgresql-{major}")),
            }),
            Some(found) if found.major < MAJOR_MIN => {
                Err(ProgramsError::TooOld { major: found.major, bin_dir: found.bin_dir })
            }
            Some(found) => Ok(found),
        }
    }

    /// Returns the path of one program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.bin_dir.join(name)
    }
}

/// Returns the major version that a data directory was made with, where it is one.
pub fn data_major(pgdata: &Path) -> Option<u32> {
    fs::read_to_string(pgdata.join("PG_VERSION")).ok()?.trim().parse().ok()
}

fn default_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for root in ["/usr/lib/postgresql", "/usr/local/lib/postgresql"] {
        let entries = fs::read_dir(root).into_iter().flatten().flatten();
        folders.extend(entries.map(|entry| entry.path().join("bin")));
    }
    // Fedora and Red Hat's own packages, then PGDG's.
    let entries = fs::read_dir("/usr").into_iter().flatten().flatten();
    folders.extend(entries.map(|entry| entry.path()).filter_map(|path| {
        path.file_name()?.to_str()?.strip_prefix("pgsql-")?.parse::<u32>().ok()?;
        Some(path.join("bin"))
    }));
    if let Ok(output) = Command::new("pg_config").arg("--bindir").output()
        && output.status.success()
    {
        folders.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    folders.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    folders.sort();
    folders.dedup();
    folders
}

fn probe(folder: &Path) -> Option<Programs> {
    if !NEEDED.iter().all(|name| folder.join(name).is_file()) {
        return None;
    }
    let output = Command::new(folder.join("postgres")).arg("--version").output().ok()?;
    let major = parse_major(&String::from_utf8_lossy(&output.stdout))?;
    Some(Programs { bin_dir: folder.to_owned(), major })
}

/// Reads `postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)`, also `17beta1` and `18devel`.
fn parse_major(version: &str) -> Option<u32> {
    let number = version.split_once("(PostgreSQL)")?.1.trim_start();
    let digits = number.find(|c: char| !c.is_ascii_digit()).unwrap_or(number.len());
    number[..digits].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_packages_print_them() {
        for (text, major) in [
            ("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n", Some(15)),
            ("postgres (PostgreSQL) 17beta1", Some(17)),
            ("postgres (PostgreSQL) 16", Some(16)),
            ("postgres", None),
        ] {
            assert_eq!(parse_major(text), major, "{text}");
        }
    }

    #[test]
    fn missing_programs_are_named_with_the_package_to_install() {
        let error = Programs::find(Some(Path::new("/nonexistent")), Some(16)).unwrap_err().to_string();
        assert!(error.contains("postgresql-16") && error.contains("/nonexistent"), "{error}");
    }
}
