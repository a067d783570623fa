//! Aim: what the log has acknowledged is there after SIGKILL and after a power cut.
//!
//! Method: a child process appends, votes, truncates and purges, and writes a line to a pipe after each acknowledgement. It is
//! killed, or the file system under it is shut down without its journal, at a moment that the number of lines decides. Then the
//! log is opened again and compared with the lines. That the cuts are bad enough is tested too: a log whose writes reach the
//! disk in no order must be found damaged by them.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use hasup::kv::{self, KvCommand, Proposal};
use hasup::raft::LogHandle;
use hasup::raft::log_store::{LogStore, WITHOUT_PACE};
use hasup::raft::types::{Entry, LogId, Vote};
use hasup::types::NodeId;
use openraft::storage::{RaftLogReader, RaftLogStorage, RaftLogStorageExt};
use openraft::vote::leader_id_std::CommittedLeaderId;
use openraft::{EntryPayload, Vote as RaftVote};
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

const FOLDER: &str = "HASUP_TEST_LOG_FOLDER";
const WRITES: &str = "HASUP_TEST_LOG_WRITES";
/// Cuts of power in the one test, and at most in the other; the environment may ask for more.
const CUTS: &str = "HASUP_TEST_POWER_CUTS";
const FEW_CUTS: u32 = 24;
const MANY_CUTS: u32 = 100;
/// Then another one takes its place.
const CUTS_OF_A_LOG: u32 = 4;

/// A child that stands still ends after this time.
const CHILD_ENDS: Duration = Duration::from_secs(60);

/// What the child process does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Writes {
    /// One to three entries at a time, and all else that a log is asked for.
    Few,
    /// So many entries at once that sled fills several segments, and takes old ones for new ones, between two syncs.
    Many,
    /// As [`Writes::Many`], with nothing that keeps sled's writes in order between two syncs.
    Unordered,
}

impl Writes {
    const ALL: [(Self, &str); 3] = [(Self::Few, "few"), (Self::Many, "many"), (Self::Unordered, "unordered")];

    fn name(self) -> &'static str {
        Self::ALL.iter().find(|(writes, _)| *writes == self).unwrap().1
    }

    fn asked_for() -> Self {
        let asked = std::env::var(WRITES).unwrap();
        Self::ALL.iter().find(|(_, name)| *name == asked).unwrap().0
    }
}

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

/// Not a test of its own: the child process of those below.
#[test]
#[ignore = "run by the tests beside it, as a process that they kill"]
fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    std::thread::spawn(|| {
        std::thread::sleep(CHILD_ENDS);
        std::process::exit(1);
    });
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let mut log = LogStore::open(folder, NodeId(1)).unwrap();
        let next = log.get_log_state().await.unwrap().last_log_id.map_or(1, |last| last.index + 1);
        match Writes::asked_for() {
            Writes::Few => write_few(&mut log, next).await,
            Writes::Many => write_many(&mut log, next).await,
            Writes::Unordered => {
                WITHOUT_PACE.store(true, Ordering::Relaxed);
                let file = fs::File::open(folder.join("db")).unwrap();
                let flags = ioctl_getflags(&file).unwrap();
                ioctl_setflags(&file, flags.difference(IFlags::SYNC)).unwrap();
                write_many(&mut log, next).await;
            }
        }
    });
}

fn tell(kind: &str, number: u64) {
    let mut out = std::io::stdout();
    out.write_all(format!("\n{kind} {number}\n").as_bytes()).unwrap();
    out.flush().unwrap();
}

async fn write_few(log: &mut LogStore, mut next: u64) {
    loop {
        let batch: Vec<Entry> = (next..next + 1 + next % 3).map(entry).collect();
        let last = batch.last().unwrap().log_id.index;
        log.blocking_append(batch).await.unwrap();
        tell("log", last);
        next = last + 1;
        if next.is_multiple_of(7) {
            log.save_vote(&RaftVote::new(next, 1)).await.unwrap();
            tell("vote", next);
            log.save_committed(Some(log_id(last))).await.unwrap();
            tell("committed", last);
        }
        if next.is_multiple_of(23) {
            tell("log", last - 2);
            log.truncate_after(Some(log_id(last - 2))).await.unwrap();
            next = last - 1;
        }
        if next.is_multiple_of(40) {
            log.purge(log_id(last - 20)).await.unwrap();
        }
    }
}

async fn write_many(log: &mut LogStore, mut next: u64) {
    loop {
        let last = next + 149;
        log.blocking_append((next..=last).map(entry).collect::<Vec<_>>()).await.unwrap();
        tell("log", last);
        next = last + 1;
        log.save_vote(&RaftVote::new(next, 1)).await.unwrap();
        tell("vote", next);
        log.purge(log_id(last.saturating_sub(40).max(1))).await.unwrap();
    }
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

fn start(folder: &Path, writes: Writes) -> (Child, impl BufRead + use<>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["crash::child", "--exact", "--ignored", "--nocapture"])
        .env(FOLDER, folder)
        .env(WRITES, writes.name())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap());
    (child, lines)
}

/// Opens the log and tells what of it is not as it must be.
fn verify(folder: &Path, acknowledged: &Acknowledged) -> Result<(), String> {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let mut log = LogStore::open(folder, NodeId(1)).map_err(|error| format!("{error:?}"))?;
        let state = log.get_log_state().await.unwrap();
        let last = state.last_log_id.map_or(0, |last| last.index);
        let first = state.last_purged_log_id.map_or(1, |purged| purged.index + 1);
        let found = log.try_get_log_entries(first..=last).await.map_err(|error| error.to_string())?;
        let vote: u64 = log.read_vote().await.unwrap().map_or(0, |vote: Vote| vote.leader_id.term);
        let committed = log.read_committed().await.unwrap().map_or(0, |committed| committed.index);
        log.close().await;
        if found != (first..=last).map(entry).collect::<Vec<_>>() {
            return Err(format!("the entries from {first} to {last} are not those that were appended"));
        }
        match (acknowledged.log, acknowledged.vote, acknowledged.committed) {
            (told, ..) if last < told => Err(format!("the entries end at {last}, {acknowledged:?}")),
            (_, told, _) if vote < told => Err(format!("the vote is {vote}, {acknowledged:?}")),
            (.., told) if committed < told => Err(format!("committed is {committed}, {acknowledged:?}")),
            _ => Ok(()),
        }
    })
}

#[test]
fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut acknowledged = Acknowledged::default();
    for round in 0..12 {
        let (mut child, mut lines) = start(&path, Writes::Few);
        acknowledged.read(&mut lines, Some(5 + 17 * round % 60));
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.read(&mut lines, None);
        verify(&path, &acknowledged).unwrap();
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
fn say(what: &str) {
    // past the capture of the test runner, so that a skip is seen
    #[allow(clippy::explicit_write, reason = "a macro would be captured")]
    writeln!(std::io::stderr(), "{what}").unwrap();
}

/// What cuts of power did to logs.
enum Cuts {
    /// They held all that they had acknowledged, each time: so many entries.
    Survived(u64),
    /// After so many cuts one did not.
    Damaged(u32, String),
    /// They could not be tried.
    Skipped(String),
}

/// Cuts the power of logs that are written to, `cuts` times or until one is damaged.
fn cut(cuts: u32, writes: impl Fn(u32) -> Writes) -> Cuts {
    let folder = tempfile::tempdir().unwrap();
    let mut disk = match Disk::new(folder.path()) {
        Ok(disk) => disk,
        Err(missing) => return Cuts::Skipped(format!("needs root, loop devices and ext4: {missing}")),
    };
    let mut acknowledged = Acknowledged::default();
    let mut survived = 0;
    for round in 0..cuts {
        // while its file grows, a log has most to lose
        let name = format!("node/log-{}", round / CUTS_OF_A_LOG);
        if round % CUTS_OF_A_LOG == 0 && round > 0 {
            let old = format!("node/log-{}", round / CUTS_OF_A_LOG - 1);
            fs::remove_dir_all(disk.mount.join(old)).unwrap();
            survived += std::mem::take(&mut acknowledged).log;
        }
        let writes = writes(round);
        let (mut child, mut lines) = start(&disk.mount.join(&name), writes);
        let awaited = match writes {
            // cut while it is being opened
            _ if round % CUTS_OF_A_LOG == CUTS_OF_A_LOG - 1 => 0,
            Writes::Few => 12 + 92 * round % 280,
            Writes::Many | Writes::Unordered => 2 + 7 * round % 12,
        };
        acknowledged.read(&mut lines, Some(awaited));
        assert!(writes == Writes::Unordered || child.try_wait().unwrap().is_none(), "the log stood still");
        let cut = disk.cut_power();
        child.kill().unwrap();
        child.wait().unwrap();
        if let Err(missing) = cut {
            return Cuts::Skipped(format!("no shutdown of file systems: {missing}"));
        }
        acknowledged.read(&mut lines, None);
        disk = disk.after_power_cut(folder.path(), round);
        if let Err(damage) = verify(&disk.mount.join(&name), &acknowledged) {
            return Cuts::Damaged(round + 1, damage);
        }
    }
    Cuts::Survived(survived + acknowledged.log)
}

fn cuts_or(usual: u32) -> u32 {
    std::env::var(CUTS).map_or(usual, |cuts| cuts.parse().unwrap())
}

#[test]
fn nothing_acknowledged_is_lost_when_power_fails() {
    let cuts = cuts_or(FEW_CUTS);
    let writes =
        |round: u32| if (round + round / CUTS_OF_A_LOG).is_multiple_of(2) { Writes::Few } else { Writes::Many };
    match cut(cuts, writes) {
        Cuts::Survived(entries) => {
            assert!(entries > 50, "{entries}");
            println!("{cuts} cuts of power, {entries} entries");
        }
        Cuts::Damaged(round, damage) => panic!("after cut {round}: {damage}"),
        Cuts::Skipped(why) => say(&format!("SKIPPED nothing_acknowledged_is_lost_when_power_fails: {why}")),
    }
}

/// The mutation of the test above: without what keeps sled's writes in order, it overwrites segments whose pages' new places a
/// power cut takes away.
#[test]
fn power_cuts_damage_a_log_whose_writes_reach_the_disk_in_no_order() {
    let cuts = cuts_or(MANY_CUTS).max(MANY_CUTS);
    match cut(cuts, |_| Writes::Unordered) {
        Cuts::Survived(entries) => panic!("{cuts} cuts of power found nothing, {entries} entries"),
        Cuts::Damaged(round, damage) => println!("found after {round} cuts of power: {damage}"),
        Cuts::Skipped(why) => {
            say(&format!("SKIPPED power_cuts_damage_a_log_whose_writes_reach_the_disk_in_no_order: {why}"));
        }
    }
}
