//! The processes of one node, found from outside: by the folders they work in, and by their ancestors.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::{Instant, sleep};

use super::schedule::Part;

/// A process as `/proc` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: i32,
    /// Its parent's number.
    pub parent: i32,
    /// Its arguments; empty for a zombie.
    pub arguments: Vec<String>,
    /// Its working folder, where it may be read.
    pub folder: Option<PathBuf>,
    /// The network namespace it lives in, as `net:[…]`.
    pub network: Option<PathBuf>,
}

/// Returns every process that can be seen now, by its number. One that ends meanwhile is left out.
#[must_use]
pub fn scan() -> BTreeMap<i32, Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            // The name in parentheses may hold anything, so what follows is counted from its end.
            let parent = stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()?;
            let arguments = fs::read(entry.path().join("cmdline")).ok()?;
            let arguments = arguments.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
            let arguments = arguments.filter(|word| !word.is_empty()).collect();
            let folder = fs::read_link(entry.path().join("cwd")).ok();
            let network = fs::read_link(entry.path().join("ns/net")).ok();
            Some((pid, Process { pid, parent, arguments, folder, network }))
        })
        .collect()
}

/// Returns the processes that name `folder` (or a path in it) in an argument or work in it, and all that they started. This
/// process is never among them.
#[must_use]
pub fn of_folder(all: &BTreeMap<i32, Process>, folder: &Path) -> BTreeSet<i32> {
    let me = i32::try_from(std::process::id()).unwrap_or_default();
    let names = |word: &str| {
        // Settings come as `--data-dir=/x` and `config_file=/x/y` too.
        let path = word.rsplit_once('=').map_or(word, |(_, path)| path);
        Path::new(path).starts_with(folder)
    };
    let mut found: BTreeSet<i32> = all
        .values()
        .filter(|process| {
            process.arguments.iter().any(|word| names(word))
                || process.folder.as_ref().is_some_and(|inside| inside.starts_with(folder))
        })
        .map(|process| process.pid)
        .filter(|pid| *pid != me)
        .collect();
    loop {
        let children: Vec<i32> = all
            .values()
            .filter(|process| found.contains(&process.parent) && !found.contains(&process.pid) && process.pid != me)
            .map(|process| process.pid)
            .collect();
        if children.is_empty() {
            return found;
        }
        found.extend(children);
    }
}

/// Returns those of `among` that are the given part of a node.
#[must_use]
pub fn parts(all: &BTreeMap<i32, Process>, among: &BTreeSet<i32>, part: Part) -> Vec<i32> {
    let is_server = |pid: i32| {
        let program =
            all.get(&pid).and_then(|process| process.arguments.first()).map(|word| word.as_str()).unwrap_or_default();
        // A postmaster is called by its path; what it forks names itself `postgres: …`.
        Path::new(program).file_name().is_some_and(|name| name == "postgres")
    };
    let verb =
        |pid: i32| all.get(&pid).and_then(|process| process.arguments.get(1)).map(String::as_str).unwrap_or_default();
    among
        .iter()
        .copied()
        .filter(|pid| match part {
            Part::Daemon => matches!(verb(*pid), "run" | "start" | "join"),
            Part::Guard => verb(*pid) == "guard",
            Part::Postgres => is_server(*pid) && !all.get(pid).is_some_and(|process| is_server(process.parent)),
        })
        .collect()
}

/// Sends `signal` to each of `pids`; one that is gone already is no error.
pub fn send(pids: impl IntoIterator<Item = i32>, signal: Signal) {
    for pid in pids {
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Kills what `find` returns until it returns nothing.
///
/// # Errors
/// The numbers that were still there after `limit`.
pub async fn kill_all(find: impl Fn() -> BTreeSet<i32>, limit: Duration) -> Result<(), BTreeSet<i32>> {
    let deadline = Instant::now() + limit;
    loop {
        let left = find();
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(left);
        }
        send(left, Signal::SIGKILL);
        sleep(Duration::from_millis(5)).await;
    }
}

/// Waits until `find` returns nothing, and returns whether that came within `limit`.
pub async fn gone(find: impl Fn() -> BTreeSet<i32>, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    while !find().is_empty() {
        if Instant::now() > deadline {
            return false;
        }
        sleep(Duration::from_millis(20)).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: i32, parent: i32, arguments: &[&str], folder: &str) -> (i32, Process) {
        let arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        (pid, Process { pid, parent, arguments, folder: Some(folder.into()), network: None })
    }

    #[test]
    fn a_node_s_processes_are_those_in_its_folder_and_their_children() {
        let all: BTreeMap<i32, Process> = [
            process(10, 1, &["hasup", "run", "--data-dir", "/d/n1"], "/"),
            process(11, 1, &["hasup", "guard", "--data-dir=/d/n1"], "/"),
            process(12, 11, &["/usr/lib/postgresql/15/bin/postgres", "-D", "/d/n1/pgdata"], "/d/n1/pgdata"),
            process(13, 12, &["postgres: walwriter"], "/d/n1/pgdata"),
            process(14, 10, &["sleep", "9"], "/"),
            process(20, 1, &["hasup", "run", "--data-dir", "/d/n10"], "/"),
            process(21, 1, &["hasup", "chaos", "writer", "--journal", "/d/journal"], "/"),
        ]
        .into();
        let found = of_folder(&all, Path::new("/d/n1"));
        assert_eq!(found, BTreeSet::from([10, 11, 12, 13, 14]));
        assert_eq!(parts(&all, &found, Part::Daemon), [10]);
        assert_eq!(parts(&all, &found, Part::Guard), [11]);
        assert_eq!(parts(&all, &found, Part::Postgres), [12]);
    }

    #[test]
    fn this_process_is_seen_and_never_its_own_victim() {
        let all = scan();
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(all.contains_key(&me));
        assert!(!of_folder(&all, Path::new("/")).contains(&me));
    }
}
