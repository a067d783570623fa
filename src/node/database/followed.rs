//! Whom this node's WAL receiver may follow, on disk; and of a fetch of another standby's log (L12), whether it brings anything.

use serde::{Deserialize, Serialize};

use super::{Database, Observation};
use crate::ha::view::Followed;
use crate::postgres::{PgError, PostgresFacts};
use crate::sys::clock::boot_now;
use crate::types::{BootTime, Generation, Lsn, NodeId};

#[derive(Serialize, Deserialize)]
struct FollowedFile {
    node: NodeId,
    generation: Generation,
}

/// How far a fetch has come. Forgotten with the daemon, which then cuts the receiver.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fetching {
    /// When it began, or last brought something.
    pub(super) moved_at: BootTime,
    /// Where the log ended then, once that is known.
    end: Option<Lsn>,
}

impl Fetching {
    /// Takes an observation in; returns whether it shows more log than the one before.
    pub(super) fn has_moved(&mut self, observation: &Observation) -> bool {
        let PostgresFacts::Live(live) = &observation.facts else { return false };
        if self.end >= Some(live.lsn) {
            return false;
        }
        // where the log stood at first is no progress
        let has_moved = self.end.replace(live.lsn).is_some();
        if has_moved {
            self.moved_at = observation.began;
        }
        has_moved
    }
}

impl Database {
    fn followed_path(&self) -> std::path::PathBuf {
        self.postgres.layout().config_dir().join("follows.json")
    }

    /// Whom an earlier start of the daemon let the receiver follow. Where that cannot be read but a key is there, somebody.
    pub(super) fn read_followed(&self) -> Option<Followed> {
        let written = std::fs::read(self.followed_path()).ok();
        let read = written.and_then(|bytes| serde_json::from_slice::<FollowedFile>(&bytes).ok());
        read.map(|file| Followed { node: file.node, generation: file.generation })
    }

    /// Notes whom the receiver may follow, on disk first.
    pub(in crate::node) fn note_follows(&self, followed: Option<Followed>) -> Result<(), PgError> {
        if let Some(followed) = followed {
            let file = FollowedFile { node: followed.node, generation: followed.generation };
            let bytes = serde_json::to_vec(&file).unwrap_or_default();
            self.postgres.layout().write(&self.followed_path(), &bytes)?;
        } else {
            crate::postgres::layout::remove_file(&self.followed_path())?;
        }
        let mut memory = self.memory.lock();
        memory.follows = followed;
        memory.is_being_cut = false;
        if memory.fetch.take().is_some() {
            memory.fetch_ended_at = Some(boot_now());
        }
        // what was seen before says nothing about whom it follows now, and PostgreSQL is told only after this
        memory.changed_at = boot_now();
        Ok(())
    }

    /// Notes that the receiver is about to be cut off.
    pub(in crate::node) fn note_cut(&self) {
        self.memory.lock().is_being_cut = true;
    }

    /// Notes that a fetch is about to begin: where it cannot, it is tried again no sooner than one that brought nothing.
    pub(in crate::node) fn note_fetch_tried(&self) {
        self.memory.lock().fetch_ended_at = Some(boot_now());
    }

    /// Notes that log is about to be fetched from a standby, on disk first. Returns whether this is no repetition.
    pub(in crate::node) fn note_fetch(&self, from: Followed) -> Result<bool, PgError> {
        self.note_follows(Some(from))?;
        let mut memory = self.memory.lock();
        memory.fetch = Some(Fetching { moved_at: boot_now(), end: None });
        Ok(memory.fetch_last.replace(from) != Some(from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(began: u64, lsn: Option<u64>) -> Observation {
        let facts = lsn.map_or(PostgresFacts::NotReady, |lsn| {
            let nothing = crate::postgres::observe::LiveFacts {
                in_recovery: true,
                timeline: crate::types::Timeline(1),
                lsn: Lsn(lsn),
                receive_lsn: None,
                replay_lsn: None,
                ran_out_of_local_wal: false,
                receiver: None,
                senders: Vec::new(),
                sync_names_shown: String::new(),
                follows_nobody: false,
                follows_generation: None,
                system_identifier: 1,
            };
            PostgresFacts::Live(Box::new(nothing))
        });
        Observation { began: BootTime(began), process: None, facts }
    }

    #[test]
    fn a_fetch_moves_by_log_that_was_not_there_before_and_by_nothing_else() {
        let mut fetch = Fetching { moved_at: BootTime(1), end: None };
        let moves = [
            (2, Some(100), false),
            (3, None, false),
            (4, Some(100), false),
            (5, Some(101), true),
            (6, Some(90), false),
        ];
        for (began, lsn, has_moved) in moves {
            assert_eq!(fetch.has_moved(&seen(began, lsn)), has_moved, "at {began}");
        }
        assert_eq!(fetch.moved_at, BootTime(5));
    }
}
