//! Aim: what the log has acknowledged is there after SIGKILL and after a power cut.
//!
//! Method: a child process appends, votes, truncates and purges, and writes a line to a pipe after each acknowledgement. It is
//! killed, or the file system under it is shut down without its journal, at a moment that the number of lines decides. Then the
//! log is opened again and compared with the lines.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use hasup::kv::{self, KvCommand, Proposal};
use hasup::raft::LogHandle;
use hasup::raft::log_store::LogStore;
use hasup::raft::types::{Entry, LogId, Vote};
use hasup::types::NodeId;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::vote::leader_id_std::CommittedLeaderId;
use openraft::{EntryPayload, Vote as RaftVote};

const FOLDER: &str = "HASUP_TEST_LOG_FOLDER";

fn log_id(index: u64) -> LogId {
    LogId::new(CommittedLeaderId { term: 1 }, index)
}

/// Every entry follows from its index: some are empty, some need many chunks.
fn entry(index: u64) -> Entry {
    let len = [0, 100, 5_000, 40_000, 4_085][(index % 5) as usize];
    let value = vec![index as u8; len];
    let put = KvCommand::Put { key: format!("k{index}").into(), value: value.into(), flags: index, expected: None };
    let proposal = Proposal::new(u128::from(index), index, kv::Command::Kv(put));
    Entry { log_id: log_id(index), payload: EntryPayload::Normal(proposal) }
}

/// Not a test of its own: the child process of the two below.
#[test]
#[ignore = "run by the tests beside it, as a process that they kill"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut log = LogStore::open(Path::new(&folder), NodeId(1)).unwrap();
        let mut out = std::io::stdout();
        let mut tell = |line: String| {
            out.write_all(line.as_bytes()).unwrap();
            out.flush().unwrap();
        };
        let mut next = log.get_log_state().await.unwrap().last_log_id.map_or(1, |last| last.index + 1);
        loop {
            let batch: Vec<Entry> = (next..next + 1 + next % 3).map(entry).collect();
            let last = batch.last().unwrap().log_id.index;
            log.blocking_append(batch).await.unwrap();
            tell(format!("\nlog {last}\n"));
            next = last + 1;
            if next % 7 == 0 {
                log.save_vote(&RaftVote::new(next, 1)).await.unwrap();
                tell(format!("\nvote {next}\n"));
                log.save_committed(Some(log_id(last))).await.unwrap();
                tell(format!("\ncommitted {last}\n"));
            }
            if next % 23 == 0 {
                tell(format!("\nlog {}\n", last - 2));
                log.truncate_after(Some(log_id(last - 2))).await.unwrap();
                next = last - 1;
            }
            if next % 40 == 0 {
                log.purge(log_id(last - 20)).await.unwrap();
            }
        }
    });
}

/// What the child was told.
#[derive(Debug, Default)]
struct Acknowledged {
    log: u64,
    vote: u64,
    committed: u64,
}

impl Acknowledged {
    /// Takes the lines of `child` until it has told `lines` of them, or, where `None`, until it ends.
    fn read(&mut self, from: &mut impl BufRead, lines: Option<u32>) {
        let mut line = String::new();
        let mut seen = 0;
        while lines.is_none_or(|lines| seen < lines) {
            line.clear();
            if from.read_line(&mut line).unwrap() == 0 || !line.ends_with('\n') {
                return;
            }
            let mut words = line.split_whitespace();
            let Some(kind) = words.next() else { continue };
            let Some(number) = words.next().and_then(|word| word.parse().ok()) else { continue };
            match kind {
                "log" => self.log = number,
                "vote" => self.vote = number,
                "committed" => self.committed = number,
                _ => continue,
            }
            seen += 1;
        }
    }
}

fn start(folder: &Path) -> (Child, impl BufRead + use<>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["crash::child", "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

fn verify(folder: &Path, acknowledged: &Acknowledged) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut log = LogStore::open(folder, NodeId(1)).unwrap();
        let state = log.get_log_state().await.unwrap();
        let last = state.last_log_id.map_or(0, |last| last.index);
        assert!(last >= acknowledged.log, "entries up to {last} are there, {acknowledged:?}");
        let first = state.last_purged_log_id.map_or(1, |purged| purged.index + 1);
        let found = log.try_get_log_entries(first..=last).await.unwrap();
        assert_eq!(found, (first..=last).map(entry).collect::<Vec<_>>());
        let vote: u64 = log.read_vote().await.unwrap().map_or(0, |vote: Vote| vote.leader_id.term);
        assert!(vote >= acknowledged.vote, "vote {vote}, {acknowledged:?}");
        let committed = log.read_committed().await.unwrap().map_or(0, |committed| committed.index);
        assert!(committed >= acknowledged.committed, "committed {committed}, {acknowledged:?}");
        log.close().await;
    });
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut acknowledged = Acknowledged::default();
    for round in 0..12 {
        let (mut child, mut lines) = start(&path);
        acknowledged.read(&mut lines, Some(5 + 17 * round % 60));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.read(&mut lines, None);
        verify(&path, &acknowledged);
    }
    assert!(acknowledged.log > 100 && acknowledged.vote > 0, "{acknowledged:?}");
}

/// A file system of its own in a file, which is unmounted at the end.
struct Disk {
    image: PathBuf,
    mount: PathBuf,
}

impl Disk {
    /// Returns what is missing where it cannot be made.
    fn new(folder: &Path) -> Result<Self, String> {
        let image = folder.join("image-0");
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        run("mkfs.ext4", &["-q", "-F", &image.to_string_lossy()])?;
        Self::mount(image, folder.join("mount-0"))
    }

    /// Returns the disk as it is found when power is back: its bytes on a new device.
    ///
    /// Not the same device again: a mount namespace that another process made meanwhile keeps the file system that was shut
    /// down alive, and the kernel would hand that one out.
    fn after_power_cut(self, folder: &Path, round: u32) -> Self {
        let image = folder.join(format!("image-{}", round + 1));
        run("cp", &["--sparse=always", &self.image.to_string_lossy(), &image.to_string_lossy()]).unwrap();
        fs::remove_file(&self.image).unwrap();
        Self::mount(image, folder.join(format!("mount-{}", round + 1))).unwrap()
    }

    fn mount(image: PathBuf, mount: PathBuf) -> Result<Self, String> {
        fs::create_dir(&mount).unwrap();
        run("mount", &["-o", "loop", &image.to_string_lossy(), &mount.to_string_lossy()])?;
        Ok(Self { image, mount })
    }

    /// Shuts the file system down without writing its journal (EXT4_IOC_SHUTDOWN, flag 2), as a power cut does.
    fn cut_power(&self) -> Result<(), String> {
        let script = "import fcntl, os, struct, sys\n\
                      fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))";
        run("python3", &["-c", script, &self.mount.to_string_lossy()])
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The folder around it is temporary; what cannot be unmounted now goes with the namespace that holds it.
        let _ = run("umount", &[&self.mount.to_string_lossy()]);
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|error| format!("{program}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Says so where the test harness does not swallow it.
fn skipped(missing: &str) {
    // past the capture of the test runner, so that a skip is seen
    #[allow(clippy::explicit_write, reason = "a macro would be captured")]
    writeln!(std::io::stderr(), "SKIPPED nothing_acknowledged_is_lost_when_power_fails: {missing}").unwrap();
}

#[test]
fn nothing_acknowledged_is_lost_when_power_fails() {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = match Disk::new(folder.path()) {
        Ok(disk) => disk,
        Err(missing) => {
            skipped(&format!("needs root, loop devices and ext4: {missing}"));
            return;
        }
    };
    let mut acknowledged = Acknowledged::default();
    for round in 0..8 {
        let path = disk.mount.join("node/log");
        let (mut child, mut lines) = start(&path);
        acknowledged.read(&mut lines, Some(3 + 23 * round % 70));
        let cut = disk.cut_power();
        child.kill().unwrap();
        child.wait().unwrap();
        if let Err(missing) = cut {
            skipped(&format!("no shutdown of file systems: {missing}"));
            return;
        }
        acknowledged.read(&mut lines, None);
        disk = disk.after_power_cut(folder.path(), round);
        verify(&disk.mount.join("node/log"), &acknowledged);
    }
    assert!(acknowledged.log > 50 && acknowledged.vote > 0, "{acknowledged:?}");
}
