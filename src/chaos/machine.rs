//! What hosts and faults need of the machine, and what this one lacks.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::unistd::{Uid, User};

use super::hosts;

/// The user that nodes run as.
pub const USER: &str = "postgres";
/// Where distributions keep PostgreSQL's programs, a folder a release, and how its name begins.
const POSTGRES: &[(&str, &str)] = &[("/usr/lib/postgresql", ""), ("/usr/local/lib/postgresql", ""), ("/usr", "pgsql-")];

/// Something that a machine may lack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Need {
    /// The rights of root.
    Root,
    /// Programs that make namespaces.
    Namespaces,
    /// PostgreSQL, and a user for it.
    Postgres,
    /// Rules by which a switch drops packets.
    Rules,
    /// Rules that drop by chance.
    Shares,
}

impl Need {
    /// What every run needs.
    pub const OF_HOSTS: &'static [Self] = &[Self::Root, Self::Namespaces, Self::Postgres];
}

/// What a machine lacks, each with why and with the cure.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Machine {
    lacks: BTreeMap<Need, String>,
}

impl Machine {
    /// Looks at this machine. As root it tries the rules out, in a network namespace of their own.
    #[must_use]
    pub fn look() -> Self {
        let mut lacks = BTreeMap::new();
        let is_root = Uid::effective().is_root();
        if !is_root {
            lacks.insert(
                Need::Root,
                "hosts are network namespaces, which only root can make: run it as root".to_owned(),
            );
        }
        let missing: Vec<&str> =
            ["ip", "nsenter", "unshare", "mount", "sh", "sleep"].into_iter().filter(|name| !is_there(name)).collect();
        if !missing.is_empty() {
            let names = missing.join(", ");
            lacks.insert(
                Need::Namespaces,
                format!("these programs are missing: {names}: apt-get install iproute2 util-linux"),
            );
        }
        if let Some(why) = lacks_postgres() {
            lacks.insert(Need::Postgres, why);
        }
        if !is_there("nft") {
            let why = "the program nft is missing: apt-get install nftables";
            lacks.insert(Need::Rules, why.to_owned());
            lacks.insert(Need::Shares, why.to_owned());
        } else if is_root && missing.is_empty() {
            // Which of the kernel's modules are there shows only when they are used.
            for (need, why) in hosts::try_rules() {
                lacks.insert(need, why);
            }
        }
        Self { lacks }
    }

    /// Returns why this machine cannot do what needs `needs`; none if it can.
    #[must_use]
    pub fn lacks(&self, needs: &[Need]) -> Option<&str> {
        needs.iter().find_map(|need| self.lacks.get(need)).map(String::as_str)
    }

    /// A machine that lacks `need`.
    #[cfg(test)]
    pub(crate) fn without(need: Need, why: &str) -> Self {
        Self { lacks: BTreeMap::from([(need, why.to_owned())]) }
    }
}

fn is_there(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Where root's programs are, also for a user whose path does not name them.
    let more = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    let mut folders = std::env::split_paths(&path).chain(more);
    folders.any(|folder| folder.join(program).is_file())
}

fn lacks_postgres() -> Option<String> {
    let cure = "apt-get install postgresql";
    if !User::from_name(USER).is_ok_and(|user| user.is_some()) {
        return Some(format!("there is no user `{USER}`: {cure}"));
    }
    (!is_there("postgres") && !POSTGRES.iter().any(|(root, begins)| has_release(Path::new(root), begins)))
        .then(|| format!("PostgreSQL's programs are not found: {cure}"))
}

/// Returns whether a folder in `root`, whose name begins so, holds PostgreSQL's programs.
fn has_release(root: &Path, begins: &str) -> bool {
    let mut folders = std::fs::read_dir(root).into_iter().flatten().flatten();
    folders.any(|folder| {
        folder.file_name().to_string_lossy().starts_with(begins) && folder.path().join("bin/postgres").is_file()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_told_for_those_who_need_it_alone() {
        let machine = Machine::without(Need::Rules, "no nft");
        assert_eq!(machine.lacks(&[Need::Root, Need::Rules]), Some("no nft"));
        assert_eq!(machine.lacks(Need::OF_HOSTS), None);
        assert_eq!(machine.lacks(&[]), None);
    }
}
