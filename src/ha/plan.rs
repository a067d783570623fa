//! What a node is to do, why, and when to look again.

use std::fmt;
use std::time::Duration;

use super::pulse::Stance;
use super::record::{ResignReason, SwitchoverGoal};
use super::state::NodeState;
use super::view::{Followed, Job, SyncNames};
use crate::types::{BootTime, ClusterGeneration, Generation, NodeId, Timeline, WalPosition};

/// One thing to do. Each can be repeated; each names the generation that it was decided under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Make durable that `generation` is acknowledged by this node (L2).
    PersistAcknowledged {
        /// The generation.
        generation: Generation,
    },
    /// Make durable how long a lease this node acknowledges at the most (L2).
    PersistLeaseSpan {
        /// How long.
        span: Duration,
    },
    /// Make the bar on `generation` durable (L9).
    PersistBar {
        /// The generation.
        generation: Generation,
    },
    /// Remove the WAL receiver's credentials, empty `primary_conninfo`, and see the receiver gone (L9).
    CutReceiver {
        /// The generation that is barred or resigned.
        generation: Generation,
    },
    /// Make the end of one's own generation durable; the fence is complete and `standby.signal` present (L7).
    PersistResignation {
        /// The generation.
        generation: Generation,
        /// Why it ended.
        reason: ResignReason,
    },
    /// Kill every process of PostgreSQL at once (L4).
    Fence {
        /// The generation that ends.
        generation: Generation,
    },
    /// Take the deadline off the guard: the role is over and resigned.
    Disarm {
        /// The generation that has ended.
        generation: Generation,
    },
    /// Put `standby.signal` in place.
    PutStandbySignal,
    /// Start PostgreSQL as a standby.
    StartPostgres,
    /// Let the WAL receiver follow a node.
    Follow(Followed),
    /// Let the WAL receiver of a barred node fetch from a barred standby what only that holds (L12). It streams under a name that no
    /// commit waits for, and [`CutReceiver`](Self::CutReceiver) ends it.
    Fetch {
        /// The standby that holds more.
        from: NodeId,
        /// The generation that both have barred.
        under: Generation,
    },
    /// Compare the active node's history with ours.
    CheckLineage {
        /// The active node.
        node: NodeId,
        /// The generation of its promotion.
        promoted: Generation,
    },
    /// Put the divergent tail aside and rewind, or copy anew (L19).
    Rejoin {
        /// The active node.
        from: NodeId,
        /// The generation decided under.
        generation: Generation,
    },
    /// Copy the database into an empty directory.
    CopyDatabase {
        /// The active node.
        from: NodeId,
        /// The generation decided under.
        generation: Generation,
    },
    /// Make durable that the rebuilt data answers for what it holds.
    PersistIntact,
    /// Arm the guard's deadline; from here on PostgreSQL may be a primary.
    ArmGuard {
        /// The generation.
        generation: Generation,
        /// The lease's end.
        deadline: BootTime,
    },
    /// Set `synchronous_standby_names` and see it in effect.
    SetNames {
        /// The generation.
        generation: Generation,
        /// What they are to say.
        names: SyncNames,
    },
    /// Promote PostgreSQL onto the reserved timeline (L13).
    Promote {
        /// The generation.
        generation: Generation,
        /// The timeline.
        timeline: Timeline,
    },
    /// Checkpoint ahead of a switchover, so that the stop is short.
    PrepareSwitchover {
        /// The generation that is to end.
        generation: Generation,
    },
    /// Stop PostgreSQL cleanly within a limit, else kill it.
    StopCleanly {
        /// The generation that ends.
        generation: Generation,
    },
    /// Write through the commit set, to see that clients can.
    ProbeWrite {
        /// The generation.
        generation: Generation,
    },
}

impl Step {
    /// Returns the long work that this step begins, if it does.
    pub fn work(&self) -> Option<Job> {
        match self {
            Self::StartPostgres => Some(Job::Starting),
            Self::StopCleanly { .. } => Some(Job::StoppingCleanly),
            Self::Rejoin { .. } | Self::CopyDatabase { .. } => Some(Job::Rebuilding),
            Self::CheckLineage { .. } => Some(Job::CheckingLineage),
            Self::Promote { .. } => Some(Job::Promoting),
            Self::SetNames { .. } => Some(Job::SettingNames),
            Self::ProbeWrite { .. } => Some(Job::ProbingWrite),
            Self::PrepareSwitchover { .. } => Some(Job::Checkpointing),
            Self::PersistAcknowledged { .. }
            | Self::PersistLeaseSpan { .. }
            | Self::PersistBar { .. }
            | Self::PersistResignation { .. }
            | Self::PersistIntact
            | Self::CutReceiver { .. }
            | Self::Fence { .. }
            | Self::Disarm { .. }
            | Self::PutStandbySignal
            | Self::Follow(_)
            | Self::Fetch { .. }
            | Self::ArmGuard { .. } => None,
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PersistAcknowledged { generation } => write!(f, "note that generation {generation} is acknowledged"),
            Self::PersistLeaseSpan { span } => write!(f, "note that leases of {span:?} are acknowledged"),
            Self::PersistBar { generation } => write!(f, "bar generation {generation}"),
            Self::CutReceiver { generation } => write!(f, "cut what streams under generation {generation}"),
            Self::PersistResignation { generation, .. } => write!(f, "note that generation {generation} is resigned"),
            Self::Fence { generation } => write!(f, "fence PostgreSQL of generation {generation}"),
            Self::Disarm { generation } => write!(f, "take the deadline of generation {generation} off the guard"),
            Self::PutStandbySignal => f.write_str("put standby.signal in place"),
            Self::StartPostgres => f.write_str("start PostgreSQL"),
            Self::Follow(followed) => write!(f, "follow node {}", followed.node),
            Self::Fetch { from, .. } => write!(f, "fetch log from node {from}"),
            Self::CheckLineage { node, .. } => write!(f, "compare histories with node {node}"),
            Self::Rejoin { from, .. } => write!(f, "rebuild the database after node {from}"),
            Self::CopyDatabase { from, .. } => write!(f, "copy the database of node {from}"),
            Self::PersistIntact => f.write_str("note that the rebuilt data is whole"),
            Self::ArmGuard { generation, .. } => write!(f, "arm the guard for generation {generation}"),
            Self::SetNames { generation, .. } => write!(f, "set what commits of generation {generation} wait for"),
            Self::Promote { timeline, .. } => write!(f, "promote PostgreSQL to timeline {timeline}"),
            Self::PrepareSwitchover { .. } => f.write_str("prepare PostgreSQL's stop"),
            Self::StopCleanly { .. } => f.write_str("stop PostgreSQL in order"),
            Self::ProbeWrite { .. } => f.write_str("write through the standbys"),
        }
    }
}

/// Why a node waits instead of going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WaitingOn {
    /// It belongs to no cluster yet, or the cluster has made no assignment.
    FirstRecord,
    /// The cluster goes on without this node, in a life of its own: a person has to join it anew (L26).
    LeftBehind {
        /// Which life.
        newer: ClusterGeneration,
    },
    /// Another machine runs as this same node, where the members know it: a person has to say which of the two is to stay.
    Copied,
    /// The members have to know where this node is now.
    Place,
    /// The store is behind a record that this node has acted on before.
    NewerRecord {
        /// The newest generation that it acknowledged.
        generation: Generation,
    },
    /// The active node is not heard; this node's promise to it runs on.
    PromiseEnd {
        /// Whom the promise was given to.
        node: NodeId,
        /// When it ends.
        until: BootTime,
    },
    /// This node suspects the active one; too few others do.
    MajoritySuspects {
        /// The suspected node.
        node: NodeId,
    },
    /// The generation is barred here; the leader has to assign the next one.
    NextAssignment {
        /// The barred generation.
        barred: Generation,
    },
    /// PostgreSQL has not replayed all log it has.
    LogEnd,
    /// What a standby holds that cannot become active has to be fetched from it (L12).
    Fetch {
        /// That standby.
        from: NodeId,
    },
    /// A majority has to acknowledge the new generation.
    Lease {
        /// The generation.
        generation: Generation,
    },
    /// PostgreSQL is not answering yet.
    PostgresAnswers,
    /// PostgreSQL is becoming the primary.
    Promotion {
        /// The reserved timeline.
        timeline: Timeline,
    },
    /// Too few standbys hold the log up to the promotion.
    StandbysHoldPromotion,
    /// The record has to be opened.
    Opened,
    /// Every process of PostgreSQL has to be gone.
    PostgresGone,
    /// Long work goes on.
    Job(String),
    /// The active node has to answer this one's pulses.
    Answer {
        /// The node.
        node: NodeId,
    },
    /// The node to copy from has to be heard as the primary.
    Source {
        /// The node.
        node: NodeId,
    },
    /// The active node has to have committed without this node before its data may be rebuilt (L19).
    SafeToRebuild,
    /// The rebuilt data has to stream past where its copy ended.
    CaughtUp,
    /// The switchover is under way.
    Switchover(SwitchoverGoal),
    /// The guard does not answer.
    Guard,
}

impl fmt::Display for WaitingOn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FirstRecord => f.write_str("the cluster's first assignment"),
            Self::LeftBehind { newer } => write!(
                f,
                "a person: the cluster was recovered without this node (its generation is {newer} now). What this node holds is no part \
                 of it; save what you need, then `hasup destroy --yes` and `hasup join` here"
            ),
            Self::Copied => f.write_str(
                "a person: another machine runs as this same node, where the members know it. One of the two was copied from the other with \
                 its data directory. On the copy: `hasup destroy --yes`, then `hasup join` under a name of its own",
            ),
            Self::Place => f.write_str("the members to know where this node is now"),
            Self::NewerRecord { generation } => {
                write!(
                    f,
                    "the record of generation {generation}, which this node had acknowledged, to be applied again"
                )
            }
            Self::PromiseEnd { node, .. } => write!(f, "the end of the promise to node {node}, which is not heard"),
            Self::MajoritySuspects { node } => write!(f, "a majority that no longer hears node {node} either"),
            Self::NextAssignment { barred } => {
                write!(f, "the leader's assignment after generation {barred}, which is barred here")
            }
            Self::LogEnd => f.write_str("PostgreSQL to replay all log it has"),
            Self::Fetch { from } => {
                write!(f, "the log that node {from} holds, which cannot become active: it is fetched from there first")
            }
            Self::Lease { generation } => write!(f, "a majority to acknowledge generation {generation}"),
            Self::PostgresAnswers => f.write_str("PostgreSQL to answer"),
            Self::Promotion { timeline } => write!(f, "PostgreSQL to be promoted to timeline {timeline}"),
            Self::StandbysHoldPromotion => f.write_str("enough standbys to hold the log up to the promotion"),
            Self::Opened => f.write_str("Raft's leader to end the change of the active node"),
            Self::PostgresGone => f.write_str("every process of PostgreSQL to be gone"),
            Self::Job(what) => f.write_str(what),
            Self::Answer { node } => write!(f, "node {node}, which is active, to answer this one's pulses"),
            Self::Source { node } => write!(f, "node {node} to be heard as the primary, to copy from it"),
            Self::SafeToRebuild => {
                f.write_str("the active node to commit without this node before its data is rebuilt")
            }
            Self::CaughtUp => f.write_str("the rebuilt data to stream past the end of its copy"),
            Self::Switchover(goal) => match goal.to {
                Some(node) => write!(f, "the switchover to node {node}"),
                None => f.write_str("the switchover"),
            },
            Self::Guard => f.write_str("the guard to answer"),
        }
    }
}

/// What a node is to do now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// What it is.
    pub state: NodeState,
    /// How it stands toward the role; takes effect before the steps.
    pub stance: Stance,
    /// What to do, in order; a step that fails ends the round.
    pub steps: Vec<Step>,
    /// Why nothing more is done.
    pub waiting_on: Vec<WaitingOn>,
    /// When to look again at the latest, if nothing happens.
    pub look_again: BootTime,
    /// Until when this node may serve as the active one: it is primary under its lease, and the record is opened.
    pub serves_until: Option<BootTime>,
    /// The generation that this node gives up, and why; the next view brings it back.
    pub resigning: Option<(Generation, ResignReason)>,
    /// The position that this node states, if it does.
    pub stated: Option<WalPosition>,
}

impl Plan {
    /// Drops the steps where they bar a generation that was acknowledged once more after the look: the stance that allowed it was in
    /// effect until this plan's. `seen` is the end of the promise as the plan knew it, `promised` as it stands once the plan's stance
    /// is in effect. A bar waits for the end of every promise (L8), so the next look decides afresh.
    pub fn heed_promise(&mut self, seen: BootTime, promised: BootTime) {
        if promised > seen && self.steps.iter().any(|step| matches!(step, Step::PersistBar { .. })) {
            self.steps.clear();
            self.look_again = BootTime(0);
        }
    }
}
