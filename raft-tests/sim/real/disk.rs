//! A node's disk: what was written is lost with the power, but for a beginning of it, unless it was synced.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hasup::codec::encode;
use hasup::ha::rules::{Mutation, Rules};
use hasup::raft::LogHandle;
use hasup::raft::types::{Entry, LogId, TypeConfig, Vote};
use hasup::types::NodeId;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use tokio::sync::{Notify, oneshot};

use super::oracle::Oracle;
use crate::rng::Rng;

/// What a disk holds.
#[derive(Clone, Default)]
struct Image {
    vote: Option<Vote>,
    committed: Option<LogId>,
    purged: Option<LogId>,
    entries: BTreeMap<u64, Entry>,
}

enum Change {
    Append(Vec<Entry>),
    Vote(Vote),
    Committed(LogId),
    Truncate(u64),
    Purge(LogId),
}

impl Image {
    fn apply(&mut self, change: &Change) {
        match change {
            Change::Append(entries) => {
                self.entries.extend(entries.iter().map(|entry| (entry.log_id.index, entry.clone())))
            }
            Change::Vote(vote) => self.vote = Some(*vote),
            Change::Committed(committed) => self.committed = Some(*committed),
            Change::Truncate(from) => drop(self.entries.split_off(from)),
            Change::Purge(upto) => {
                self.purged = Some(*upto);
                self.entries = self.entries.split_off(&(upto.index + 1));
            }
        }
    }

    fn last(&self) -> Option<LogId> {
        self.entries.last_key_value().map(|(_, entry)| entry.log_id).max(self.purged)
    }
}

/// Who waits for a change to be durable.
enum Waiting {
    Append(IOFlushed<TypeConfig>),
    Other(oneshot::Sender<()>),
    Nobody,
}

#[derive(Default)]
struct Platter {
    durable: Image,
    /// Written and not synced, in order.
    unsynced: VecDeque<(Change, Waiting)>,
    /// Which life of the node may use it.
    life: u64,
    /// Votes given to other nodes, in all lives.
    votes: u64,
    /// How long a sync takes, in microseconds: least and most.
    sync_micros: (u64, u64),
}

/// The disk itself, which outlives the node's lives.
#[derive(Clone, Default)]
pub struct Disk {
    platter: Arc<Mutex<Platter>>,
}

impl Disk {
    /// Sets how long syncs take, in microseconds.
    pub fn set_speed(&self, least: u64, most: u64) {
        self.platter.lock().unwrap().sync_micros = (least, most);
    }

    /// Returns how many votes were written for other nodes.
    pub fn votes(&self) -> u64 {
        self.platter.lock().unwrap().votes
    }

    /// Ends the present life: of what was not synced, a beginning of chance length stays.
    pub fn lose_power(&self, rng: &mut Rng) {
        let mut platter = self.platter.lock().unwrap();
        platter.life += 1;
        let unsynced = std::mem::take(&mut platter.unsynced);
        let kept = if rng.chance(600) { 0 } else { rng.between(0, unsynced.len() as u64) };
        for (change, _) in unsynced.iter().take(kept as usize) {
            platter.durable.apply(change);
        }
    }

    /// Opens it for a new life of node `me`.
    pub fn open(&self, me: NodeId, rules: Rules, oracle: Oracle) -> ModelLog {
        let (memory, life) = {
            let platter = self.platter.lock().unwrap();
            (platter.durable.clone(), platter.life)
        };
        let checked = memory.purged.map_or(0, |purged| purged.index);
        let memory = Arc::new(Mutex::new((memory, checked)));
        ModelLog { disk: self.clone(), memory, life, me, rules, oracle, written: Arc::default() }
    }
}

/// The log of one life of a node.
#[derive(Clone)]
pub struct ModelLog {
    disk: Disk,
    /// What this life sees, ahead of what is durable, and the index up to which the oracle knows it.
    memory: Arc<Mutex<(Image, u64)>>,
    life: u64,
    me: NodeId,
    rules: Rules,
    oracle: Oracle,
    written: Arc<Notify>,
}

impl ModelLog {
    /// Syncs what is written, until the life ends.
    pub async fn sync(self, mut rng: Rng) {
        loop {
            self.written.notified().await;
            loop {
                let (count, (least, most)) = {
                    let platter = self.disk.platter.lock().unwrap();
                    (platter.unsynced.len(), platter.sync_micros)
                };
                if count == 0 {
                    break;
                }
                tokio::time::sleep(Duration::from_micros(rng.between(least, most))).await;
                let mut platter = self.disk.platter.lock().unwrap();
                if platter.life != self.life {
                    return;
                }
                for (change, waiting) in platter.unsynced.drain(..count).collect::<Vec<_>>() {
                    platter.durable.apply(&change);
                    match waiting {
                        Waiting::Append(told) => told.io_completed(Ok(())),
                        Waiting::Other(told) => drop(told.send(())),
                        Waiting::Nobody => {}
                    }
                }
            }
        }
    }

    fn write(&self, change: Change, waiting: Waiting) -> io::Result<()> {
        let mut platter = self.disk.platter.lock().unwrap();
        if platter.life != self.life {
            return Err(io::Error::other("the power is off"));
        }
        self.memory.lock().unwrap().0.apply(&change);
        // What nobody waits for goes with the next sync.
        let is_awaited = !matches!(waiting, Waiting::Nobody);
        platter.unsynced.push_back((change, waiting));
        if is_awaited {
            self.written.notify_one();
        }
        Ok(())
    }

    async fn write_durably(&self, change: Change) -> io::Result<()> {
        let (told, done) = oneshot::channel();
        self.write(change, Waiting::Other(told))?;
        done.await.map_err(|_| io::Error::other("the power is off"))
    }
}

impl LogHandle for ModelLog {
    fn bytes(&self) -> usize {
        self.memory.lock().unwrap().0.entries.len() * 100
    }

    fn failed(&self) -> Option<String> {
        None
    }

    fn close(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}

impl RaftLogReader<TypeConfig> for ModelLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> Result<Vec<Entry>, io::Error>
    where
        RB: RangeBounds<u64> + Clone + Debug + Send,
    {
        let is_empty = match (range.start_bound(), range.end_bound()) {
            (Bound::Included(first), Bound::Excluded(end)) => first >= end,
            (Bound::Included(first), Bound::Included(last)) => first > last,
            _ => false,
        };
        if is_empty {
            return Ok(Vec::new());
        }
        Ok(self.memory.lock().unwrap().0.entries.range(range).map(|(_, entry)| entry.clone()).collect())
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        Ok(self.memory.lock().unwrap().0.vote)
    }
}

impl RaftLogStorage<TypeConfig> for ModelLog {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<TypeConfig>, io::Error> {
        let memory = self.memory.lock().unwrap();
        Ok(LogState { last_purged_log_id: memory.0.purged, last_log_id: memory.0.last() })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.oracle.voted(self.me, vote);
        let is_for_other = !vote.committed && vote.leader_id.voted_for != self.me.0;
        self.disk.platter.lock().unwrap().votes += u64::from(is_for_other);
        match self.rules.broken(Mutation::VoteWithoutSync) {
            true => self.write(Change::Vote(*vote), Waiting::Nobody),
            false => self.write_durably(Change::Vote(*vote)).await,
        }
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        let Some(committed) = committed else { return Ok(()) };
        {
            let mut memory = self.memory.lock().unwrap();
            let (image, checked) = &mut *memory;
            for (index, entry) in image.entries.range(*checked + 1..=committed.index) {
                self.oracle.committed(self.me, entry, &encode(entry));
                *checked = *index;
            }
        }
        self.write_durably(Change::Committed(committed)).await
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.memory.lock().unwrap().0.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + Send,
        I::IntoIter: Send,
    {
        self.write(Change::Append(entries.into_iter().collect()), Waiting::Append(callback))
    }

    async fn truncate_after(&mut self, last_log_id: Option<LogId>) -> Result<(), io::Error> {
        let from = last_log_id.map_or(0, |last| last.index + 1);
        let checked = self.memory.lock().unwrap().1;
        if checked >= from {
            self.oracle.broken("R2", format!("node {} cuts its log at {from}, and {checked} is committed", self.me));
        }
        self.write_durably(Change::Truncate(from)).await
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), io::Error> {
        self.write(Change::Purge(log_id), Waiting::Nobody)
    }
}
