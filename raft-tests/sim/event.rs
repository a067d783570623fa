//! What can happen next, and to whom.

use std::cmp::Ordering;

use hasup::ha::pulse::Datagram;
use hasup::ha::view::NodeView;

use crate::faults::Fault;
use crate::rng::Time;

/// One thing that happens. Those that belong to one life of something carry its epoch, and are void in the next life.
#[derive(Clone)]
pub enum Event {
    /// A datagram arrives.
    Datagram { to: usize, from: usize, datagram: Box<Datagram> },
    /// A node's pulse thread is due.
    Pulse { node: usize, epoch: u64 },
    /// The control loop looks.
    Look { node: usize, epoch: u64, token: u64 },
    /// The control loop decides on what it saw.
    Decide { node: usize, epoch: u64, view: Box<NodeView> },
    /// The step being carried out goes on.
    Step { node: usize, epoch: u64, token: u64 },
    /// Long work goes on.
    Job { node: usize, epoch: u64, job: u64 },
    /// The guard's fence is due.
    GuardTimer { node: usize, epoch: u64 },
    /// A new guard is there.
    GuardBack { node: usize },
    /// A daemon starts.
    DaemonStart { node: usize },
    /// PostgreSQL is gone.
    PostgresDead { node: usize, epoch: u64 },
    /// PostgreSQL answers.
    PostgresUp { node: usize, epoch: u64 },
    /// PostgreSQL has replayed all log it had.
    Replayed { node: usize, epoch: u64 },
    /// A promotion ends.
    Promoted { node: usize, epoch: u64 },
    /// A client writes.
    Write { node: usize, epoch: u64 },
    /// The primary's log reaches the disk.
    Flush { node: usize, epoch: u64 },
    /// The checkpointer reads the names.
    NamesRead { node: usize, epoch: u64 },
    /// A WAL sender reads the names.
    NamesReadBy { stream: usize },
    /// A standby tries to connect.
    Connect { node: usize, epoch: u64 },
    /// A WAL receiver is gone.
    ReceiverGone { node: usize, epoch: u64 },
    /// Log reaches a standby's disk.
    Wal { stream: usize, upto: u64, tries: u32 },
    /// A standby's word about it reaches the primary.
    Flushed { stream: usize, lsn: u64, tries: u32 },
    /// A WAL sender notices that its receiver is gone.
    SenderGone { stream: usize, tries: u32 },
    /// A WAL receiver notices that its sender is gone.
    ReceiverNotices { stream: usize, tries: u32 },
    /// Raft looks after its leader and its laggards.
    Raft,
    /// A proposal is decided.
    Commit { proposal: Box<crate::raft::Proposal> },
    /// A node applies what was committed.
    Apply { node: usize, upto: usize },
    /// The leader asks for a read index.
    LeaderLook,
    /// The leader assigns on what it read.
    LeaderAssign { node: usize, term: u64, read: usize },
    /// A fault begins.
    Fault { fault: Fault },
    /// A fault ends.
    Heal { heal: Heal },
    /// An attacker sends an old datagram again.
    Replay,
}

/// How a fault ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heal {
    /// Power and daemons come back.
    Power { node: usize },
    /// A guest runs again.
    Thaw { node: usize },
    /// An operator takes the mark off a node that it is never made active.
    Mark { node: usize },
    /// A direction of a link works again.
    Link { from: usize, to: usize },
    /// Everything is as it should be.
    All,
}

impl Event {
    /// Returns the node that has to run for this to happen, so that a frozen one keeps it waiting.
    pub fn node(&self, streams: &[crate::postgres::Stream]) -> Option<usize> {
        match self {
            Self::Datagram { to, .. } => Some(*to),
            Self::Pulse { node, .. }
            | Self::Look { node, .. }
            | Self::Decide { node, .. }
            | Self::Step { node, .. }
            | Self::Job { node, .. }
            | Self::GuardTimer { node, .. }
            | Self::GuardBack { node }
            | Self::DaemonStart { node }
            | Self::PostgresDead { node, .. }
            | Self::PostgresUp { node, .. }
            | Self::Replayed { node, .. }
            | Self::Promoted { node, .. }
            | Self::Write { node, .. }
            | Self::Flush { node, .. }
            | Self::NamesRead { node, .. }
            | Self::Connect { node, .. }
            | Self::ReceiverGone { node, .. }
            | Self::Apply { node, .. }
            | Self::LeaderAssign { node, .. } => Some(*node),
            Self::Wal { stream, .. } | Self::ReceiverNotices { stream, .. } => Some(streams[*stream].standby),
            Self::Flushed { stream, .. } | Self::SenderGone { stream, .. } | Self::NamesReadBy { stream } => {
                Some(streams[*stream].primary)
            }
            Self::Raft
            | Self::Commit { .. }
            | Self::LeaderLook
            | Self::Fault { .. }
            | Self::Heal { .. }
            | Self::Replay => None,
        }
    }

    /// Returns a number for its kind, for the run's fingerprint.
    pub fn kind(&self) -> u64 {
        match self {
            Self::Datagram { .. } => 1,
            Self::Pulse { .. } => 2,
            Self::Look { .. } => 3,
            Self::Decide { .. } => 4,
            Self::Step { .. } => 5,
            Self::Job { .. } => 6,
            Self::GuardTimer { .. } => 7,
            Self::GuardBack { .. } => 8,
            Self::DaemonStart { .. } => 9,
            Self::PostgresDead { .. } => 10,
            Self::PostgresUp { .. } => 11,
            Self::Replayed { .. } => 12,
            Self::Promoted { .. } => 13,
            Self::Write { .. } => 14,
            Self::Flush { .. } => 15,
            Self::NamesRead { .. } => 16,
            Self::Connect { .. } => 17,
            Self::ReceiverGone { .. } => 18,
            Self::Wal { .. } => 19,
            Self::Flushed { .. } => 20,
            Self::SenderGone { .. } => 21,
            Self::ReceiverNotices { .. } => 22,
            Self::Raft => 23,
            Self::Commit { .. } => 24,
            Self::Apply { .. } => 25,
            Self::LeaderLook => 26,
            Self::LeaderAssign { .. } => 27,
            Self::Fault { .. } => 28,
            Self::Heal { .. } => 29,
            Self::Replay => 30,
            Self::NamesReadBy { .. } => 31,
        }
    }
}

/// An event at its time; equal times keep the order in which they were planned.
pub struct Scheduled {
    /// When.
    pub at: Time,
    /// Which in order of planning.
    pub number: u64,
    /// What.
    pub event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Scheduled {}

impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Scheduled {
    /// The earliest is the greatest, as a heap gives out the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}
