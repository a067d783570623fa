//! Finds and signals every process of one PostgreSQL, by `/proc`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
use rustix::process::{Pid, Signal, kill_process};

/// One process as `/proc` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcEntry {
    /// Its process id.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Whether it has ended and only waits to be reaped.
    pub is_zombie: bool,
}

/// Returns all processes that this user may see. One that ends meanwhile is left out.
pub fn processes() -> Vec<ProcEntry> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries
        .filter_map(|entry| {
            let pid = entry.ok()?.file_name().to_str()?.parse().ok()?;
            parse_stat(pid, &fs::read(format!("/proc/{pid}/stat")).ok()?)
        })
        .collect()
}

/// Reads `pid (command) state parent …`; the command may hold blanks and parentheses, so the last `)` ends it.
fn parse_stat(pid: u32, stat: &[u8]) -> Option<ProcEntry> {
    let text = String::from_utf8_lossy(stat);
    let mut fields = text[text.rfind(')')? + 1..].split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(ProcEntry { pid, parent, is_zombie: matches!(state, "Z" | "X") })
}

/// Returns the living descendants of `root` and the processes whose working directory is `pgdata`, without `root` itself.
///
/// PostgreSQL's processes all work in their data directory: so strays of an earlier guard are found as well.
pub fn processes_of(root: u32, pgdata: Option<&Path>) -> BTreeSet<u32> {
    let entries = processes();
    let parents: BTreeMap<u32, u32> = entries.iter().map(|entry| (entry.pid, entry.parent)).collect();
    let pgdata = pgdata.and_then(FolderId::of);
    entries
        .iter()
        .filter(|entry| entry.pid != root && !entry.is_zombie)
        .filter(|entry| {
            descends_from(entry.pid, root, &parents) || pgdata.is_some_and(|pgdata| works_there(entry.pid, pgdata))
        })
        .map(|entry| entry.pid)
        .collect()
}

fn descends_from(pid: u32, root: u32, parents: &BTreeMap<u32, u32>) -> bool {
    let mut at = pid;
    // Process ids may be used again while we read, so a cycle is possible in theory: bounded by the number of processes.
    for _ in 0..=parents.len() {
        match parents.get(&at) {
            Some(&parent) if parent == root => return true,
            Some(&parent) if parent > 1 => at = parent,
            _ => return false,
        }
    }
    false
}

/// A folder, whatever it is called: bind mounts and the name spaces of containers give it other paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FolderId {
    device: (u32, u32),
    inode: u64,
}

impl FolderId {
    /// Asks the kernel for what it knows, no server of a network file system, which may be gone.
    fn of(path: &Path) -> Option<Self> {
        let found = statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
        Some(Self { device: (found.stx_dev_major, found.stx_dev_minor), inode: found.stx_ino })
    }
}

/// Tells whether the process `pid` is a PostgreSQL's that works in the data directory `pgdata`.
pub fn works_in(pid: u32, pgdata: &Path) -> bool {
    FolderId::of(pgdata).is_some_and(|pgdata| works_there(pid, pgdata))
}

/// An operator's shell may stand in the data directory: only a program named `postgres` counts.
fn works_there(pid: u32, pgdata: FolderId) -> bool {
    let is_postgres = fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == "postgres");
    is_postgres && FolderId::of(Path::new(&format!("/proc/{pid}/cwd"))) == Some(pgdata)
}

/// Returns the living children of `parent` with their command lines (NUL replaced by blanks).
pub fn children_of(parent: u32) -> Vec<(u32, String)> {
    processes()
        .into_iter()
        .filter(|entry| entry.parent == parent && !entry.is_zombie)
        .filter_map(|entry| {
            let line = fs::read(format!("/proc/{}/cmdline", entry.pid)).ok()?;
            let text = String::from_utf8_lossy(&line).replace('\0', " ");
            Some((entry.pid, text.trim_end().to_owned()))
        })
        .collect()
}

/// Sends a signal; that the process is gone already is no error.
pub fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _gone = kill_process(pid, signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_odd_command_names_are_read() {
        let entry = |parent, is_zombie| Some(ProcEntry { pid: 5, parent, is_zombie });
        assert_eq!(parse_stat(5, b"5 (postgres: a (b) c) S 12 5 5"), entry(12, false));
        assert_eq!(parse_stat(5, b"5 (x) Z 1 5 5"), entry(1, true));
        assert_eq!(parse_stat(5, b"5 (x"), None);
        assert_eq!(parse_stat(5, b"\xff"), None);
    }

    #[test]
    fn a_server_in_another_mount_name_space_is_seen_in_its_data_directory() {
        let folder = tempfile::tempdir().unwrap();
        let [data, mounted, empty] = ["data", "mounted", "empty"].map(|name| folder.path().join(name));
        for path in [&data, &mounted, &empty] {
            fs::create_dir(path).unwrap();
        }
        fs::copy("/bin/sleep", folder.path().join("postgres")).unwrap();
        let script = "mount --bind \"$1\" \"$2\" && cd \"$2\" && echo moved && exec \"$3\" 60";
        let mut child = std::process::Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .args([&data, &mounted, &folder.path().join("postgres")])
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line).unwrap();
        if line.is_empty() {
            println!("SKIPPED: no right to make a mount name space");
            child.wait().unwrap();
            return;
        }
        // the shell becomes the program a moment later
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !works_in(child.id(), &data) {
            assert!(std::time::Instant::now() < deadline, "{:?}", fs::read_link(format!("/proc/{}/cwd", child.id())));
            std::thread::yield_now();
        }
        assert!(processes_of(u32::MAX, Some(&data)).contains(&child.id()));
        assert!(!works_in(child.id(), &mounted) && !works_in(child.id(), &empty), "here that is an empty folder");
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn own_children_are_found() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let me = std::process::id();
        assert!(processes_of(me, None).contains(&child.id()));
        assert!(children_of(me).iter().any(|(pid, line)| *pid == child.id() && !line.is_empty()));
        send(child.id(), Signal::KILL);
        child.wait().unwrap();
        assert!(!processes_of(me, None).contains(&child.id()));
    }
}
