//! Applies committed entries to the store's state, and keeps its snapshots as files.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use openraft::EntryPayload;
use openraft::storage::{ApplyResponder, EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::types::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::codec::{decode, encode};
use crate::kv::snapshot::{self, SnapshotError};
use crate::kv::{Reply, State};
use crate::sys::fs::write_durably_with;

const NAME: &str = "snapshot-";
/// Readers of the state wait for a batch at most this long in entries.
const PUBLISH_EVERY: usize = 256;

/// The state after the log index up to which this node has applied.
#[derive(Debug, Clone, Default)]
pub struct Applied {
    /// The store's state.
    pub state: Arc<State>,
    /// The log index, 0 before the first entry.
    pub index: u64,
}

/// A snapshot's file, opened, so that it can be read on when a newer one has replaced it.
#[derive(Debug, Clone)]
pub struct SnapshotFile {
    file: Arc<File>,
    len: u64,
}

impl SnapshotFile {
    /// Opens the file at `path`.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let len = file.metadata()?.len();
        Ok(Self { file: Arc::new(file), len })
    }

    /// Returns its length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns whether it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns up to `len` bytes from `offset` on. Blocks on the disk.
    pub fn read_at(&self, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let left = usize::try_from(self.len.saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; len.min(left)];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn reader(&self) -> impl io::Read {
        BufReader::new(At { file: self.file.clone(), offset: 0 })
    }
}

/// Reads a file by offset: clones of the handle share one position.
struct At {
    file: Arc<File>,
    offset: u64,
}

impl io::Read for At {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(bytes, self.offset)?;
        self.offset += read as u64;
        Ok(read)
    }
}

/// The newest snapshot on disk.
#[derive(Debug, Clone)]
struct Stored {
    meta: SnapshotMeta,
    path: PathBuf,
}

/// openraft's state machine: the state in memory, snapshots in a folder.
///
/// Nothing of the state itself is on disk: a start reads the snapshot and applies the log up to the committed index. That index is
/// synced before its entries are applied, and by the writer of the log, after them: no start knows less than what the one before it
/// has published.
#[derive(Debug)]
pub struct StateMachine {
    folder: PathBuf,
    state: Arc<State>,
    applied: Option<LogId>,
    membership: StoredMembership,
    stored: Arc<Mutex<Option<Stored>>>,
    publish: watch::Sender<Arc<Applied>>,
}

impl StateMachine {
    /// Opens the newest snapshot in `folder`, or begins with the empty state. Blocks on the disk.
    pub fn open(folder: &Path) -> Result<Self, SnapshotError> {
        fs::create_dir_all(folder)?;
        let mut names: Vec<PathBuf> = Vec::new();
        for found in fs::read_dir(folder)? {
            let found = found?;
            if found.file_name().to_string_lossy().starts_with(NAME) {
                names.push(found.path());
            } else if found.file_type()?.is_file() {
                // Written beside, and never finished.
                fs::remove_file(found.path())?;
            }
        }
        names.sort();
        let (publish, _) = watch::channel(Arc::new(Applied::default()));
        let mut machine = Self {
            folder: folder.to_owned(),
            state: Arc::new(State::new()),
            applied: None,
            membership: StoredMembership::default(),
            stored: Arc::default(),
            publish,
        };
        if let Some(newest) = names.pop() {
            let (meta, state) = load(&SnapshotFile::open(&newest)?)?;
            machine.take(&meta, state);
            *machine.stored.lock() = Some(Stored { meta, path: newest });
        }
        for older in names {
            fs::remove_file(older)?;
        }
        machine.publish();
        Ok(machine)
    }

    /// Returns the state as it is published after each batch of entries.
    pub fn watch(&self) -> watch::Receiver<Arc<Applied>> {
        self.publish.subscribe()
    }

    fn take(&mut self, meta: &SnapshotMeta, state: State) {
        self.state = Arc::new(state);
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
    }

    fn publish(&self) {
        let index = self.applied.map_or(0, |applied| applied.index);
        self.publish.send_replace(Arc::new(Applied { state: self.state.clone(), index }));
    }

    /// Publishes the state and only then answers, so that whoever gets an answer sees its effect.
    fn answer(&self, replies: &mut Vec<(ApplyResponder<TypeConfig>, Reply)>) {
        self.publish();
        for (responder, reply) in replies.drain(..) {
            responder.send(reply);
        }
    }
}

fn load(file: &SnapshotFile) -> Result<(SnapshotMeta, State), SnapshotError> {
    let (label, state) = snapshot::read(file.reader())?;
    Ok((decode(&label)?, state))
}

/// Writes a snapshot file and makes it the stored one, unless a newer one is.
fn store(
    folder: &Path,
    stored: &Mutex<Option<Stored>>,
    meta: &SnapshotMeta,
    fill: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    let (index, term) = meta.last_log_id.map_or((0, 0), |last| (last.index, last.committed_leader_id().term));
    let path = folder.join(format!("{NAME}{index:020}-{term:020}"));
    write_durably_with(&path, 0o600, fill)?;
    let mut stored = stored.lock();
    let old = match stored.as_ref() {
        Some(newer) if newer.meta.last_log_id > meta.last_log_id => Some(path),
        _ => stored
            .replace(Stored { meta: meta.clone(), path: path.clone() })
            .map(|old| old.path)
            .filter(|old| *old != path),
    };
    match old {
        Some(old) => fs::remove_file(old),
        None => Ok(()),
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotFile;
    type SnapshotBuilder = SnapshotBuilder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + Send,
    {
        let mut replies = Vec::new();
        let mut unpublished = 0;
        while let Some(entry) = entries.next().await {
            let (entry, responder) = entry?;
            let reply = match entry.payload {
                EntryPayload::Blank => Reply::Nothing,
                EntryPayload::Normal(proposal) => Arc::make_mut(&mut self.state).apply(entry.log_id.index, &proposal),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Reply::Nothing
                }
            };
            self.applied = Some(entry.log_id);
            replies.extend(responder.map(|responder| (responder, reply)));
            unpublished += 1;
            if unpublished == PUBLISH_EVERY {
                self.answer(&mut replies);
                unpublished = 0;
            }
        }
        self.answer(&mut replies);
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> SnapshotBuilder {
        SnapshotBuilder {
            folder: self.folder.clone(),
            state: self.state.clone(),
            meta: SnapshotMeta { last_log_id: self.applied, last_membership: self.membership.clone() },
            stored: self.stored.clone(),
        }
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotFile) -> Result<(), io::Error> {
        let (folder, stored, wanted) = (self.folder.clone(), self.stored.clone(), meta.clone());
        let state = blocking(move || {
            let (found, state) = load(&snapshot).map_err(io::Error::other)?;
            if found != wanted {
                return Err(io::Error::other("the snapshot received is not the one announced"));
            }
            store(&folder, &stored, &wanted, |file| io::copy(&mut snapshot.reader(), file).map(drop))?;
            Ok(state)
        })
        .await?;
        self.take(meta, state);
        self.publish();
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot>, io::Error> {
        // Opened under the lock: the file cannot be replaced in between.
        let stored = self.stored.lock();
        let Some(stored) = stored.as_ref() else { return Ok(None) };
        Ok(Some(Snapshot { meta: stored.meta.clone(), snapshot: SnapshotFile::open(&stored.path)? }))
    }
}

/// Writes one state, as it was when the builder was made, to a file. Entries are applied meanwhile.
#[derive(Debug)]
pub struct SnapshotBuilder {
    folder: PathBuf,
    state: Arc<State>,
    meta: SnapshotMeta,
    stored: Arc<Mutex<Option<Stored>>>,
}

impl RaftSnapshotBuilder<TypeConfig> for SnapshotBuilder {
    type SnapshotData = SnapshotFile;

    async fn build_snapshot(&mut self) -> Result<Snapshot, io::Error> {
        let (folder, stored) = (self.folder.clone(), self.stored.clone());
        let (state, meta) = (self.state.clone(), self.meta.clone());
        blocking(move || {
            store(&folder, &stored, &meta, |file| {
                let mut out = BufWriter::with_capacity(256 << 10, file);
                snapshot::write(&state, &encode(&meta), &mut out)?;
                out.flush()
            })
        })
        .await?;
        let stored = self.stored.lock();
        match stored.as_ref() {
            Some(stored) => Ok(Snapshot { meta: stored.meta.clone(), snapshot: SnapshotFile::open(&stored.path)? }),
            None => Err(io::Error::other("no snapshot is stored")),
        }
    }
}
