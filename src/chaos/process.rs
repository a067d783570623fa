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

/// Returns the fields of `/proc/PID/stat` that follow the process's name, the state first.
fn stat(pid: i32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

/// Returns the processor time that a process has used, in the kernel's ticks; none where it is gone.
#[must_use]
pub fn ticks(pid: i32) -> Option<u64> {
    let fields = stat(pid)?;
    // User and system time are the 14th and 15th field of all, the state is the third.
    Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
}

/// Returns whether a process was stopped by a signal.
#[must_use]
pub fn is_stopped(pid: i32) -> bool {
    stat(pid).is_some_and(|fields| fields.first().is_some_and(|state| state == "T"))
}

/// Returns when a process was started, in ticks since the machine's start; none where it is gone or a zombie. Number and start
/// together name a process for ever.
#[must_use]
pub fn started(pid: i32) -> Option<u64> {
    let fields = stat(pid)?;
    if fields.first()? == "Z" { None } else { fields.get(19)?.parse().ok() }
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

/// Shared memory of servers that were killed: nobody else frees it once their data directory is gone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SharedMemory {
    files: BTreeSet<PathBuf>,
    /// Number of the segment, and of the process that made it.
    segments: BTreeSet<(u64, i32)>,
}

impl SharedMemory {
    /// Takes note of what the server `pid` uses now; call it before the kill.
    pub fn note(&mut self, pid: i32) {
        let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
        self.note_maps(pid, &maps);
    }

    fn note_maps(&mut self, pid: i32, maps: &str) {
        for line in maps.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, _, _, _, inode, path, ..] = words[..] else { continue };
            if path.starts_with("/dev/shm/PostgreSQL.") {
                self.files.insert(path.into());
            } else if path.starts_with("/SYSV") {
                // The kernel shows a segment's number as its inode.
                self.segments.extend(inode.parse().ok().map(|number: u64| (number, pid)));
            }
        }
    }

    /// Removes what is left of it. Call it when every process that may use it has ended; errors are of no consequence.
    pub fn remove(&self) {
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        let table = fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
        for line in table.lines() {
            let fields: Vec<i64> = line.split_whitespace().map_while(|word| word.parse().ok()).collect();
            // key shmid perms size cpid lpid nattch
            let [_, number, _, _, maker, _, attached, ..] = fields[..] else { continue };
            let is_ours =
                self.segments.iter().any(|(ours, pid)| Ok(*ours) == u64::try_from(number) && i64::from(*pid) == maker);
            if is_ours && attached == 0 {
                let _ = std::process::Command::new("ipcrm").args(["-m", &number.to_string()]).status();
            }
        }
    }
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

    #[test]
    fn this_process_has_a_start_uses_the_processor_and_is_not_stopped() {
        let me = i32::try_from(std::process::id()).unwrap();
        assert!(started(me).is_some_and(|at| at > 0));
        assert!(ticks(me).is_some() && !is_stopped(me));
        assert_eq!((started(-1), ticks(-1)), (None, None));
    }

    #[test]
    fn shared_memory_of_a_server_is_read_from_its_maps() {
        let maps = "7f00-7f01 rw-s 00000000 00:01 32771                      /SYSV0052e2c1 (deleted)\n\
                    7f02-7f03 rw-s 00000000 00:17 99                         /dev/shm/PostgreSQL.148500026\n\
                    7f04-7f05 r-xp 00000000 08:01 12                         /usr/lib/x.so\n7f06-7f07 rw-p 0 00:00 0\n";
        let mut memory = SharedMemory::default();
        memory.note_maps(7, maps);
        assert_eq!(memory.segments, BTreeSet::from([(32771, 7)]));
        assert_eq!(memory.files, BTreeSet::from([PathBuf::from("/dev/shm/PostgreSQL.148500026")]));
    }
}
