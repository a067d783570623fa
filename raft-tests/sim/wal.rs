//! Write-ahead log as a chain of lives: who wrote which stretch of it.
//!
//! A promotion begins an *instance*: a timeline as one node made it. A log is the list of the instances that it runs through,
//! each with the position where it leaves it. A commit is named by (instance, LSN), so that two logs that use the same timeline
//! number but were written by two nodes are told apart, as PostgreSQL itself could not.

use hasup::types::{Lsn, Timeline, WalPosition};

/// One promotion and what was written under it.
#[derive(Debug, Clone)]
pub struct Instance {
    /// Its number; a correct cluster never uses one twice (I7).
    pub timeline: u32,
    /// The generation that it was promoted under.
    pub generation: u64,
    /// Who promoted.
    pub node: usize,
    /// The log that it started from.
    pub start: Wal,
    /// The highest LSN of it that a client saw acknowledged.
    pub acknowledged: u64,
}

/// A log on some disk.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wal {
    /// (instance, where the log leaves it), oldest first.
    pub stretches: Vec<(usize, u64)>,
}

impl Wal {
    /// Returns where it ends.
    pub fn end(&self) -> u64 {
        self.stretches.last().map_or(0, |(_, end)| *end)
    }

    /// Returns the instance that wrote its last record.
    pub fn last(&self) -> Option<usize> {
        self.stretches.last().map(|(instance, _)| *instance)
    }

    /// Returns whether it holds what `instance` wrote up to `lsn`.
    pub fn holds(&self, instance: usize, lsn: u64) -> bool {
        self.stretches.iter().any(|(of, end)| *of == instance && *end >= lsn)
    }

    /// Returns its beginning up to `upto`.
    pub fn prefix(&self, upto: u64) -> Self {
        let mut stretches = Vec::with_capacity(self.stretches.len());
        let mut from = 0;
        for (instance, end) in &self.stretches {
            if from >= upto && !stretches.is_empty() {
                break;
            }
            stretches.push((*instance, (*end).min(upto)));
            from = *end;
        }
        Self { stretches }
    }

    /// Returns whether `other` begins with all of this one.
    pub fn is_prefix_of(&self, other: &Self) -> bool {
        self.end() <= other.end() && other.prefix(self.end()) == *self
    }

    /// Returns where it ends, as PostgreSQL says it.
    pub fn position(&self, instances: &[Instance]) -> WalPosition {
        let timeline = self.last().map_or(0, |instance| instances[instance].timeline);
        WalPosition { timeline: Timeline(timeline), lsn: Lsn(self.end()) }
    }
}
