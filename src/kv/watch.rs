//! Whether something changed, told from two states without reading all keys.

use imbl::Vector;

use super::Bytes;
use super::command::KvCommand;
use super::state::State;

/// How many of the newest changes of keys are remembered one by one.
const CHANGES_KEPT: usize = 4096;

/// What somebody waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Watch {
    /// A key.
    Key(Bytes),
    /// All keys that begin so.
    Prefix(Bytes),
    /// The record of who is active.
    Assignment,
    /// The members.
    Members,
    /// The cluster's options.
    Options,
    /// What operators asked for.
    Goals,
    /// The history.
    Events,
}

impl State {
    /// Returns the log index of the last change of what `watch` names, deletions included. It never falls.
    ///
    /// For a prefix this reads every key under it: use [`changed_since`](Self::changed_since) to wake a waiter.
    pub fn watch_index(&self, watch: &Watch) -> u64 {
        match watch {
            Watch::Key(key) => self.table.key_index(key),
            Watch::Prefix(prefix) => self.table.prefix_index(prefix),
            Watch::Assignment => self.assignment_index(),
            Watch::Members => self.members_index,
            Watch::Options => self.options.index,
            Watch::Goals => self.goals.index,
            Watch::Events => self.events.back().map_or(0, |event| event.id.index),
        }
    }

    /// Returns whether what `watch` names changed after log index `since`. Costs as much as there were changes since, not as
    /// there are keys.
    pub fn changed_since(&self, watch: &Watch, since: u64) -> bool {
        match watch {
            Watch::Key(_) | Watch::Prefix(_) if self.table.index() <= since => false,
            Watch::Prefix(prefix) => match self.changes.touched(prefix, since) {
                Some(touched) => touched,
                None => self.watch_index(watch) > since,
            },
            _ => self.watch_index(watch) > since,
        }
    }
}

/// The newest changes of keys. No part of the agreed state: a node that started from a snapshot has forgotten more.
#[derive(Debug, Clone, Default)]
pub(super) struct Changes {
    newest: Vector<Change>,
    /// Every change after this index is remembered.
    floor: u64,
}

#[derive(Debug, Clone)]
struct Change {
    index: u64,
    key: Bytes,
    whole_prefix: bool,
}

impl PartialEq for Changes {
    /// All are equal: two nodes agree whatever they remember beside the state.
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Changes {
    /// Returns a memory that begins after `index`.
    pub(super) fn since(index: u64) -> Self {
        Self { newest: Vector::new(), floor: index }
    }

    pub(super) fn note(&mut self, index: u64, command: &KvCommand) {
        let (key, whole_prefix) = match command {
            KvCommand::Put { key, .. } | KvCommand::Delete { key, .. } => (key, false),
            KvCommand::DeletePrefix { prefix } => (prefix, true),
        };
        self.push(Change { index, key: key.clone(), whole_prefix });
    }

    pub(super) fn note_key(&mut self, index: u64, key: Bytes) {
        self.push(Change { index, key, whole_prefix: false });
    }

    fn push(&mut self, change: Change) {
        self.newest.push_back(change);
        while self.newest.len() > CHANGES_KEPT {
            if let Some(oldest) = self.newest.pop_front() {
                self.floor = oldest.index;
            }
        }
    }

    /// Returns whether a key under `prefix` changed after `since`, `None` if that is forgotten.
    fn touched(&self, prefix: &[u8], since: u64) -> Option<bool> {
        let under = |change: &Change| {
            change.key.starts_with(prefix) || (change.whole_prefix && prefix.starts_with(&change.key))
        };
        (since >= self.floor).then(|| self.newest.iter().rev().take_while(|change| change.index > since).any(under))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv::Command;
    use crate::kv::state::tests::{Log, add, record};

    fn put(key: &str) -> Command {
        Command::Kv(KvCommand::Put { key: key.into(), value: "v".into(), flags: 0, expected: None })
    }

    fn delete_prefix(prefix: &str) -> Command {
        Command::Kv(KvCommand::DeletePrefix { prefix: prefix.into() })
    }

    #[test]
    fn a_watch_wakes_for_its_own_keys_alone() {
        let mut log = Log::new();
        log.propose(put("a/1"));
        log.propose(put("b/1"));
        let prefix = |text: &str| Watch::Prefix(text.into());
        assert!(log.state.changed_since(&prefix("a/"), 0));
        assert!(!log.state.changed_since(&prefix("a/"), 1));
        assert!(log.state.changed_since(&prefix(""), 1));
        assert!(!log.state.changed_since(&Watch::Key("a/1".into()), 1));
        log.propose(delete_prefix("a/"));
        assert!(log.state.changed_since(&Watch::Key("a/1".into()), 2));
        assert!(log.state.changed_since(&prefix("a/1"), 2));
        assert!(!log.state.changed_since(&prefix("b"), 2));
        log.propose(delete_prefix("a/"));
        assert!(!log.state.changed_since(&prefix("a/"), 3), "nothing was left to delete");
    }

    #[test]
    fn a_watch_of_forgotten_changes_falls_back_to_the_indexes() {
        let mut log = Log::new();
        log.propose(put("a"));
        for number in 0..=CHANGES_KEPT {
            log.propose(put(&format!("b/{number}")));
        }
        assert_eq!(log.state.changes.touched(b"a", 0), None);
        assert!(log.state.changed_since(&Watch::Prefix("a".into()), 0));
        assert!(!log.state.changed_since(&Watch::Prefix("a".into()), 1));
    }

    #[test]
    fn records_and_their_mirrored_keys_wake_together() {
        let mut log = Log::new();
        log.propose(add("n1", "a:1"));
        let since = log.index;
        log.propose(Command::SetAssignment { expected: 0, assignment: record(1, 1) });
        for watch in [Watch::Assignment, Watch::Key("hasup/next_master".into()), Watch::Prefix("hasup/".into())] {
            assert!(log.state.changed_since(&watch, since), "{watch:?}");
        }
        assert!(!log.state.changed_since(&Watch::Members, since));
    }
}
