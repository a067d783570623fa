//! The Raft log, vote and committed index, in sled. What is durable when, and why: `log_writer`.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::ops::{Bound, RangeBounds};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use futures_util::future::BoxFuture;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::oneshot;

use super::consensus::{LogHandle, LogMark};
#[cfg(feature = "mutations")]
pub use super::log_writer::WITHOUT_PACE;
use super::log_writer::{
    COMMITTED_KEY, Change, Found, PURGED_KEY, Pace, SEGMENT_BYTES, Trees, VOTE_KEY, for_each_entry, guarded,
    remove_backwards, remove_upto, run, sync,
};
use super::types::{Entry, LogId, TypeConfig, Vote};
use crate::codec::{decode, encode};
use crate::sys::fs::fsync_dir;
use crate::types::NodeId;

/// Entries that are durable stay in memory up to this many bytes, for followers and for applying.
const TAIL_BYTES: usize = 4 << 20;
/// One answer to a follower holds about this many bytes: half of what a frame of the peer port may have.
const READ_BYTES: usize = 512 << 10;
const NODE_KEY: &[u8] = b"node";

/// The log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The file system failed.
    #[error("open the Raft log {path}")]
    Io {
        /// The log's folder.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
    /// What is on disk is not what was written.
    #[error(
        "the Raft log {path} is damaged: {what}. This node must not take part with it, as it may have forgotten its vote. The \
         others go on if they are a majority: run `hasup nodes remove` for this node there, move the folder aside and join again"
    )]
    Damaged {
        /// The log's folder.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The log is another node's.
    #[error(
        "the Raft log {path} belongs to node {found}, and this is node {me}: the data folder was copied or mixed up"
    )]
    OtherNode {
        /// The log's folder.
        path: PathBuf,
        /// Whose it is.
        found: NodeId,
        /// Who asked.
        me: NodeId,
    },
}

/// The log. Clones share it; one writer thread changes it on disk.
#[derive(Clone)]
pub struct LogStore {
    shared: Arc<Shared>,
    queue: Sender<Change>,
}

/// What the handles, the readers and the writer thread share.
pub(super) struct Shared {
    memory: Mutex<Memory>,
    /// `None` once closed.
    trees: Mutex<Option<Trees>>,
}

/// The log as the present process sees it, which may be ahead of the disk.
#[derive(Default)]
struct Memory {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    last: Option<LogId>,
    /// Encoded length of each entry.
    sizes: BTreeMap<u64, usize>,
    bytes: usize,
    /// The newest entries, without a gap up to the last one; all that are not durable are here.
    tail: BTreeMap<u64, Entry>,
    tail_bytes: usize,
    durable: u64,
    failed: Option<String>,
}

impl Memory {
    fn append(&mut self, entry: Entry, size: usize) {
        let index = entry.log_id.index;
        self.last = Some(entry.log_id);
        self.bytes += size - self.sizes.insert(index, size).unwrap_or(0);
        self.tail_bytes += size;
        self.tail.insert(index, entry);
    }

    fn truncate(&mut self, from: u64) {
        for (index, size) in self.sizes.split_off(&from) {
            self.bytes -= size;
            if self.tail.remove(&index).is_some() {
                self.tail_bytes -= size;
            }
        }
        self.durable = self.durable.min(from.saturating_sub(1));
    }

    fn purge(&mut self, upto: u64) {
        let kept = self.sizes.split_off(&(upto + 1));
        for (index, size) in std::mem::replace(&mut self.sizes, kept) {
            self.bytes -= size;
            if self.tail.remove(&index).is_some() {
                self.tail_bytes -= size;
            }
        }
    }

    /// Forgets the oldest durable entries where there are too many.
    fn shrink(&mut self) {
        while self.tail_bytes > TAIL_BYTES
            && let Some((index, _)) = self.tail.first_key_value()
            && *index <= self.durable
            && let Some((index, _)) = self.tail.pop_first()
        {
            self.tail_bytes -= self.sizes.get(&index).copied().unwrap_or(0);
        }
    }
}

impl Shared {
    /// Notes that all up to `index` is on disk.
    pub(super) fn durable(&self, index: u64) {
        let mut memory = self.memory.lock();
        memory.durable = memory.durable.max(index);
        memory.shrink();
    }

    /// Notes that the disk failed.
    pub(super) fn fail(&self, what: &str) {
        self.memory.lock().failed.get_or_insert_with(|| what.to_owned());
    }
}

impl LogStore {
    /// Opens the log of node `me` in the folder `path`, or makes an empty one. Blocks on the disk.
    ///
    /// An entry at the end whose writing a crash interrupted was never acknowledged and goes; any other damage is an error.
    pub fn open(path: &Path, me: NodeId) -> Result<Self, LogError> {
        let failed = |source| LogError::Io { path: path.to_owned(), source };
        let damaged = |error: io::Error| LogError::Damaged { path: path.to_owned(), what: error.to_string() };
        fs::create_dir_all(path).map_err(failed)?;
        let trees = guarded(|| open_trees(path)).map_err(|error| match error.kind() {
            io::ErrorKind::Other | io::ErrorKind::InvalidData => damaged(error),
            _ => failed(error),
        })?;
        match trees.meta.get(NODE_KEY).map_err(io::Error::from).map_err(failed)? {
            Some(bytes) => {
                let found: NodeId = decode(&bytes).map_err(io::Error::other).map_err(damaged)?;
                if found != me {
                    return Err(LogError::OtherNode { path: path.to_owned(), found, me });
                }
            }
            None => {
                let begun = || {
                    trees.meta.insert(NODE_KEY, encode(&me))?;
                    sync(&trees)
                };
                guarded(begun).map_err(failed)?;
            }
        }
        let memory = guarded(|| load(&trees)).map_err(damaged)?;
        let shared = Arc::new(Shared { memory: Mutex::new(memory), trees: Mutex::new(Some(trees.clone())) });
        let (queue, changes) = channel();
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("hasup-log".into())
            .spawn(move || run(trees, &changes, &of_thread))
            .map_err(failed)?;
        Ok(Self { shared, queue })
    }

    fn ask(&self, change: Change) -> io::Result<()> {
        self.queue.send(change).map_err(|_| io::Error::other("the Raft log is closed"))
    }

    async fn put(&self, key: &'static [u8], value: &impl Serialize) -> io::Result<()> {
        let (told, done) = oneshot::channel();
        self.ask(Change::Meta { key, value: encode(value), told })?;
        done.await.map_err(|_| io::Error::other("the Raft log is closed"))?
    }

    /// Returns the entries from `first` to `last` that there are.
    async fn entries(&self, first: u64, last: u64) -> io::Result<Vec<Entry>> {
        let (wanted, older, mut newer) = {
            let memory = self.shared.memory.lock();
            let mut present = memory.sizes.range(first..=last).map(|(index, _)| *index);
            let Some(first) = present.next() else { return Ok(Vec::new()) };
            let last = present.next_back().unwrap_or(first);
            let tail = memory.tail.first_key_value().map_or(u64::MAX, |(index, _)| *index);
            let newer: Vec<Entry> = memory.tail.range(first..=last).map(|(_, entry)| entry.clone()).collect();
            (last - first + 1, (first < tail).then(|| (first, last.min(tail - 1))), newer)
        };
        let mut entries = match older {
            None => Vec::new(),
            Some((first, last)) => {
                let trees = self.shared.trees.lock().clone();
                let trees = trees.ok_or_else(|| io::Error::other("the Raft log is closed"))?;
                let read = move || guarded(|| read_entries(&trees, first, last));
                tokio::task::spawn_blocking(read).await.map_err(io::Error::other)??
            }
        };
        entries.append(&mut newer);
        if entries.len() as u64 == wanted {
            Ok(entries)
        } else {
            Err(io::Error::other(format!("the Raft log has a hole: {} of {wanted} entries found", entries.len())))
        }
    }
}

impl LogHandle for LogStore {
    fn bytes(&self) -> usize {
        self.shared.memory.lock().bytes
    }

    /// Returns why the disk can no longer be written, if so. Nothing heals that but a restart.
    fn failed(&self) -> Option<String> {
        self.shared.memory.lock().failed.clone()
    }

    fn mark(&self) -> LogMark {
        // both are noted in memory only once they are on disk
        let memory = self.shared.memory.lock();
        LogMark {
            term: memory.vote.map_or(0, |vote| vote.leader_id.term),
            committed: memory.committed.map_or(0, |committed| committed.index),
        }
    }

    /// Ends the writer thread and lets the folder go, so that it can be opened again. Whatever is asked later fails.
    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(async move {
            self.shared.trees.lock().take();
            let (told, closed) = oneshot::channel();
            if self.queue.send(Change::Close { told }).is_ok() {
                // An error means that the thread has ended already.
                let _ = closed.await;
            }
        })
    }
}

fn open_trees(path: &Path) -> io::Result<Trees> {
    let file = ordered_file(path)?;
    let config = sled::Config::new().path(path).flush_every_ms(None).cache_capacity(8 << 20);
    let config = config.segment_size(segment_bytes(path)?);
    let db = config.open().map_err(io::Error::from)?;
    let log = db.open_tree("log").map_err(io::Error::from)?;
    let meta = db.open_tree("meta").map_err(io::Error::from)?;
    db.flush().map_err(io::Error::from)?;
    file.sync_all()?;
    File::open(path.join("conf"))?.sync_all()?;
    fsync_dir(path)?;
    if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        fsync_dir(parent)?;
    }
    Ok(Trees { db, log, meta, file: Arc::new(file) })
}

/// Opens sled's file, made where it is missing, and has the file system make each write to it durable before it returns.
fn ordered_file(path: &Path) -> io::Result<File> {
    let file = File::options().create(true).truncate(false).read(true).write(true).open(path.join("db"))?;
    let ordered = ioctl_getflags(&file).and_then(|flags| match flags.contains(IFlags::SYNC) {
        true => Ok(()),
        false => ioctl_setflags(&file, flags | IFlags::SYNC),
    });
    if let Err(error) = ordered {
        tracing::warn!(
            path = %path.display(), %error,
            "the file system does not take the attribute S (synchronous writes) for the Raft log: a power cut while much is written \
             may damage this node's log, and the node would have to join again; put the data folder on ext4 or xfs"
        );
    }
    Ok(file)
}

/// Returns the size of segments that the log in `path` was made with: sled opens it with no other.
fn segment_bytes(path: &Path) -> io::Result<usize> {
    let conf = match fs::read(path.join("conf")) {
        Ok(conf) => conf,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(SEGMENT_BYTES),
        Err(error) => return Err(error),
    };
    // What sled cannot read in there either is its own to complain about.
    let conf = String::from_utf8_lossy(&conf);
    let size = conf.lines().find_map(|line| line.strip_prefix("segment_size: ")?.parse().ok());
    Ok(size.unwrap_or(SEGMENT_BYTES))
}

/// Reads what the log holds, all of it once, so that damage shows now and not in an election.
fn load(trees: &Trees) -> io::Result<Memory> {
    let mut memory = Memory {
        vote: read_meta(trees, VOTE_KEY)?,
        committed: read_meta(trees, COMMITTED_KEY)?,
        purged: read_meta(trees, PURGED_KEY)?,
        ..Memory::default()
    };
    if let Some(purged) = memory.purged {
        // A crash may have come between noting and removing.
        remove_upto(trees, purged.index, &mut Pace::default())?;
    }
    let mut last: Option<LogId> = memory.purged;
    let mut short = None;
    for_each_entry(&trees.log, 0, u64::MAX, |index, found| {
        if short.is_some() {
            return Err(io::Error::other(format!("entry {index} follows one that was never finished")));
        }
        let bytes = match found {
            Found::Whole(bytes) => bytes,
            Found::Short => {
                short = Some(index);
                return Ok(());
            }
            Found::Damaged => return Err(io::Error::other(format!("entry {index} is not what was written"))),
        };
        let entry: Entry = decode(&bytes).map_err(io::Error::other)?;
        let follows = last.is_none_or(|last| last.index + 1 == index);
        if entry.log_id.index != index || !follows {
            return Err(io::Error::other(format!("entry {index} is out of place")));
        }
        memory.sizes.insert(index, bytes.len());
        memory.bytes += bytes.len();
        last = Some(entry.log_id);
        Ok(())
    })?;
    if let Some(short) = short {
        remove_backwards(trees, short, &mut Pace::default())?;
        sync(trees)?;
    }
    memory.last = last;
    memory.durable = last.map_or(0, |last| last.index);
    Ok(memory)
}

fn read_meta<T: DeserializeOwned>(trees: &Trees, key: &[u8]) -> io::Result<Option<T>> {
    let bytes = trees.meta.get(key).map_err(io::Error::from)?;
    bytes.map(|bytes| decode(&bytes).map_err(io::Error::other)).transpose()
}

fn read_entries(trees: &Trees, first: u64, last: u64) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for_each_entry(&trees.log, first, last, |index, found| match found {
        Found::Whole(bytes) => {
            entries.push(decode(&bytes).map_err(io::Error::other)?);
            Ok(())
        }
        Found::Short | Found::Damaged => Err(io::Error::other(format!("entry {index} of the Raft log is damaged"))),
    })?;
    Ok(entries)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let first = match range.start_bound() {
            Bound::Included(first) => *first,
            Bound::Excluded(before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let last = match range.end_bound() {
            Bound::Included(last) => Some(*last),
            Bound::Excluded(end) => end.checked_sub(1),
            Bound::Unbounded => Some(u64::MAX),
        };
        match last {
            Some(last) if first <= last => self.entries(first, last).await,
            _ => Ok(Vec::new()),
        }
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.shared.memory.lock().vote)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        if start >= end {
            return Ok(Vec::new());
        }
        let last = {
            let memory = self.shared.memory.lock();
            let mut sum = 0;
            let fits = |(index, size): (&u64, &usize)| {
                sum += *size;
                (*index == start || sum <= READ_BYTES).then_some(*index)
            };
            memory.sizes.range(start..end).map_while(fits).last()
        };
        match last {
            Some(last) => self.entries(start, last).await,
            None => Ok(Vec::new()),
        }
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = self.shared.memory.lock();
        Ok(LogState { last_purged_log_id: memory.purged, last_log_id: memory.last.or(memory.purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.put(VOTE_KEY, vote).await?;
        self.shared.memory.lock().vote = Some(*vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        self.put(COMMITTED_KEY, &committed).await?;
        self.shared.memory.lock().committed = Some(committed);
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.shared.memory.lock().committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        let mut encoded = Vec::new();
        {
            let mut memory = self.shared.memory.lock();
            for entry in entries {
                let bytes = encode(&entry);
                let index = entry.log_id.index;
                memory.append(entry, bytes.len());
                encoded.push((index, bytes));
            }
        }
        self.ask(Change::Append { entries: encoded, told: callback })
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |last| last.index + 1);
        let (told, done) = oneshot::channel();
        {
            let mut memory = self.shared.memory.lock();
            memory.truncate(from);
            memory.last = memory.last.min(last_log_id.or(memory.purged));
        }
        self.ask(Change::Truncate { from, told })?;
        done.await.map_err(|_| io::Error::other("the Raft log is closed"))??;
        // Appends told meanwhile were from before.
        let mut memory = self.shared.memory.lock();
        memory.durable = memory.durable.min(from.saturating_sub(1));
        Ok(())
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        {
            let mut memory = self.shared.memory.lock();
            memory.purge(log_id.index);
            memory.purged = Some(log_id);
            memory.last = memory.last.max(Some(log_id));
        }
        self.ask(Change::Purge { upto: log_id.index, purged: encode(&log_id) })
    }
}

#[cfg(test)]
mod tests {
    use openraft::EntryPayload;
    use openraft::storage::RaftLogStorageExt;
    use openraft::vote::leader_id_std::CommittedLeaderId;

    use super::*;

    fn entry(index: u64, len: usize) -> Entry {
        let put = crate::kv::KvCommand::Put { key: "k".into(), value: vec![7; len].into(), flags: 0, expected: None };
        let proposal = crate::kv::Proposal::new(1, 1, crate::kv::Command::Kv(put));
        let log_id = LogId::new(CommittedLeaderId { term: 1 }, index);
        Entry { log_id, payload: EntryPayload::Normal(proposal) }
    }

    async fn with_entries(path: &Path, count: u64, len: usize) -> LogStore {
        let mut log = LogStore::open(path, NodeId(1)).unwrap();
        for index in 0..count {
            log.blocking_append([entry(index, len)]).await.unwrap();
        }
        log
    }

    #[tokio::test]
    async fn a_log_of_another_node_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        with_entries(folder.path(), 1, 10).await.close().await;
        let opened = LogStore::open(folder.path(), NodeId(2)).map(drop);
        assert!(matches!(opened, Err(LogError::OtherNode { found: NodeId(1), me: NodeId(2), .. })));
    }

    #[tokio::test]
    async fn no_entry_however_long_spills_into_a_file_that_sled_never_syncs() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = with_entries(folder.path(), 60, 900_000).await;
        log.truncate_after(Some(entry(40, 0).log_id)).await.unwrap();
        log.purge(entry(20, 0).log_id).await.unwrap();
        for index in 41..300 {
            log.blocking_append([entry(index, 1 + index as usize * 37 % 5000)]).await.unwrap();
        }
        log.close().await;
        let spilled = std::fs::read_dir(folder.path().join("blobs")).unwrap().count();
        assert_eq!(spilled, 0);
        let mut log = LogStore::open(folder.path(), NodeId(1)).unwrap();
        assert_eq!(log.try_get_log_entries(21..=40).await.unwrap().len(), 20);
    }

    #[tokio::test]
    async fn a_log_made_with_other_segments_is_opened_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let older =
            sled::Config::new().path(folder.path()).segment_size(512 << 10).flush_every_ms(None).open().unwrap();
        drop(older);
        let mut log = with_entries(folder.path(), 5, 10_000).await;
        assert_eq!(segment_bytes(folder.path()).unwrap(), 512 << 10);
        log.close().await;
        log = LogStore::open(folder.path(), NodeId(1)).unwrap();
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(entry(4, 0).log_id));
    }

    #[tokio::test]
    async fn entries_out_of_memory_are_read_from_disk_and_answers_are_short() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = with_entries(folder.path(), 40, 300_000).await;
        assert!(log.shared.memory.lock().tail_bytes <= TAIL_BYTES);
        let all = log.try_get_log_entries(..).await.unwrap();
        assert_eq!(all, (0..40).map(|index| entry(index, 300_000)).collect::<Vec<_>>());
        for start in [0, 39] {
            let some = log.limited_get_log_entries(start, 40).await.unwrap();
            assert_eq!(some, [entry(start, 300_000)]);
        }
        log.close().await;
        assert!(log.save_vote(&Vote::new(1, 1)).await.is_err(), "closed");
    }

    #[tokio::test]
    async fn an_entry_that_a_crash_cut_goes_and_a_changed_one_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let log = with_entries(folder.path(), 3, 10_000).await;
        let trees = log.shared.trees.lock().clone().unwrap();
        let last = trees.log.iter().keys().next_back().unwrap().unwrap();
        trees.log.remove(last).unwrap();
        drop(trees);
        log.close().await;
        let mut log = LogStore::open(folder.path(), NodeId(1)).unwrap();
        assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(entry(1, 0).log_id));
        let trees = log.shared.trees.lock().clone().unwrap();
        let (first, mut value) = trees.log.iter().next().unwrap().unwrap();
        value[100] ^= 1;
        trees.log.insert(first, value).unwrap();
        drop(trees);
        log.close().await;
        let opened = LogStore::open(folder.path(), NodeId(1)).map(drop);
        assert!(matches!(opened, Err(LogError::Damaged { .. })), "{opened:?}");
    }

    #[tokio::test]
    async fn every_open_sees_to_it_that_writes_are_durable_as_they_return() {
        // not in /tmp, which may be a tmpfs, and that knows no such attribute
        let folder = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let probe = File::create(folder.path().join("probe")).unwrap();
        if ioctl_getflags(&probe).and_then(|flags| ioctl_setflags(&probe, flags | IFlags::SYNC)).is_err() {
            println!(
                "SKIPPED every_open_sees_to_it_that_writes_are_durable_as_they_return: the file system of the build knows no attribute S"
            );
            return;
        }
        let ordered = || {
            let file = File::open(folder.path().join("log/db")).unwrap();
            ioctl_getflags(&file).unwrap().contains(IFlags::SYNC)
        };
        let path = folder.path().join("log");
        with_entries(&path, 1, 10).await.close().await;
        assert!(ordered());
        let file = File::open(path.join("db")).unwrap();
        ioctl_setflags(&file, ioctl_getflags(&file).unwrap() - IFlags::SYNC).unwrap();
        assert!(!ordered());
        with_entries(&path, 0, 0).await.close().await;
        assert!(ordered());
    }
}
