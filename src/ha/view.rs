//! What a node knows when it decides: facts with their ages, and `now`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::durable::Durable;
use super::pulse::PulseView;
use super::record::{Assignment, CommitSet, DataMember, Durability, Goals, MemberKind, ResignReason};
use super::rules::Rules;
use super::timing::Timing;
use super::trouble::Trouble;
use crate::types::{BootTime, ClusterGeneration, Generation, Lsn, NodeId, Timeline, WalPosition};

/// The newest record that this node has applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AppliedRecord {
    /// The record.
    pub assignment: Assignment,
    /// The log index of its last change.
    pub index: u64,
    /// When this node applied the record's present generation.
    pub applied_at: BootTime,
}

/// Everything that [`decide`](super::decide::decide) looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeView {
    /// The present instant.
    pub now: BootTime,
    /// This node.
    pub me: NodeId,
    /// What this node takes part in.
    pub kind: MemberKind,
    /// The cluster's spans.
    pub timing: Timing,
    /// The rules in force.
    pub rules: Rules,
    /// The newest record, once there is one.
    pub record: Option<AppliedRecord>,
    /// What operators asked for.
    pub goals: Goals,
    /// This node's own durable facts.
    pub durable: Durable,
    /// The highest generation under which this node may already have had a primary: what it had acknowledged when the daemon
    /// started, or what it armed the guard for since.
    pub acted_under: Generation,
    /// The generation of its own that this node has begun to give up, and why: what was begun is finished (L5).
    pub resigning: Option<(Generation, ResignReason)>,
    /// How this node's data stands to the primary promoted under that generation, as far as it was compared.
    pub lineage: Option<(Generation, Lineage)>,
    /// The timeline of the primary that this node's data was last rebuilt from.
    pub rebuilt_from: Option<Timeline>,
    /// The pulses.
    pub pulse: PulseView,
    /// The guard.
    pub guard: GuardView,
    /// PostgreSQL.
    pub postgres: PostgresView,
    /// Long work that is going on: nothing else touches PostgreSQL meanwhile. Or what such work failed with.
    pub job: Option<Job>,
    /// The node is to stop in order, handing the role over.
    pub is_stopping: bool,
    /// A life of the cluster after the one that this node belongs to, if it has heard of one (L26).
    pub newer_cluster: Option<ClusterGeneration>,
    /// Whether the members know where this node is.
    pub place: Place,
    /// Why this node is not fit to become active, if so (operator's order, disk, checks).
    pub unfit: Option<String>,
    /// The members that an operator marked never to be made active.
    pub kept_back: BTreeSet<NodeId>,
    /// What is wrong with this node's machine.
    pub troubles: BTreeSet<Trouble>,
}

impl NodeView {
    /// Returns the long work that goes on now: what has failed holds up nothing but its own next try.
    pub fn busy(&self) -> Option<&Job> {
        self.job.as_ref().filter(|job| !matches!(job, Job::Failed { .. }))
    }
}

/// Whether the members know where a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Place {
    /// It is where its record says.
    #[default]
    Known,
    /// It is elsewhere, and has yet to hear that the members know: it may be the copy of a machine that goes on where the record says.
    Moved,
    /// The machine that it is a copy of goes on where the record says.
    Taken,
}

/// What the guard says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GuardView {
    /// Whether it answers.
    pub is_present: bool,
    /// The generation that its deadline is armed for: PostgreSQL may be a primary under it.
    pub armed: Option<Generation>,
    /// Its deadline.
    pub deadline: BootTime,
    /// Whether its fence has begun; it is never called back.
    pub has_fence_begun: bool,
    /// Whether any process of this PostgreSQL cluster is left (L6).
    pub has_processes: bool,
    /// Whether the postmaster ended by itself while armed.
    pub has_postmaster_died: bool,
}

/// What PostgreSQL says, or its files where it is stopped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PostgresView {
    /// Whether `pg_is_in_recovery()`, as last answered in this life of the postmaster; absent before the first answer.
    pub in_recovery: Option<bool>,
    /// The label of the credentials by which its WAL receiver may connect (L9); absent where none can.
    pub follows: Option<Followed>,
    /// Whether the node that it follows is elsewhere, by its record, than where the receiver was told to find it.
    pub has_source_moved: bool,
    /// Whether a WAL receiver process exists.
    pub has_receiver: bool,
    /// Whether the receiver streams.
    pub is_streaming: bool,
    /// The end of valid log by L10; absent means "not yet".
    pub position: Option<WalPosition>,
    /// While log is fetched from another standby (L12): when that began, or when more of it last came.
    pub fetch_moved_at: Option<BootTime>,
    /// When this node last ended to fetch log from another standby.
    pub fetch_ended_at: Option<BootTime>,
    /// Whether `standby.signal` is in place.
    pub has_standby_signal: bool,
    /// The timeline it writes, as a primary.
    pub timeline: Option<Timeline>,
    /// Where the promotion ended the former timeline; known on a primary.
    pub promoted_at: Option<Lsn>,
    /// The names that commits wait for, seen in effect, and the log's end when they were (L18).
    pub names: Option<NamesInEffect>,
    /// Standbys connected to this primary, and what they have flushed.
    pub standbys: BTreeMap<DataMember, Lsn>,
    /// The end of this primary's log.
    pub current: Option<Lsn>,
    /// Whether a write through the commit set has succeeded since the promotion.
    pub has_written: bool,
    /// For how long it has neither answered nor taken a durable write through a new connection; zero while it does.
    pub stalled_for: Duration,
    /// The generation whose switchover has been prepared by a checkpoint.
    pub checkpointed_for: Option<Generation>,
    /// The clean stop that was finished, with the final position in `position`.
    pub cleanly_stopped: Option<CleanStop>,
}

/// A stop of PostgreSQL in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanStop {
    /// The generation whose role it ended.
    pub generation: Generation,
    /// When it was finished.
    pub at: BootTime,
    /// How many standbys streamed when it began.
    pub standbys: usize,
}

/// Whom a standby's WAL receiver is allowed to follow: the node of the generation's record, or, under the bar on that generation,
/// another standby to fetch log from (L12).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Followed {
    /// The node.
    pub node: NodeId,
    /// The generation that the credentials were made for.
    pub generation: Generation,
}

/// The names that commits wait for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamesInEffect {
    /// What they say.
    pub names: SyncNames,
    /// The end of the log when they were in effect.
    pub since: Lsn,
}

/// What `synchronous_standby_names` is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SyncNames {
    /// Commits wait for k of a set's members; for nobody where k is 0.
    Set(CommitSet),
    /// Commits wait for a name that nobody bears: none is acknowledged (L15).
    Nobody,
}

impl SyncNames {
    /// Returns whether WAL senders may stay while the names change from these to `next`, some already with the new copy (L18).
    ///
    /// A sender that counts by its own copy releases commits by its own k over all who count by theirs. With k = 1 on both sides one
    /// holder is always one of either set; with more, old and new holders together may satisfy neither. And as nobody can tell when
    /// the last sender has read the names, the old copies must satisfy the new set, too: none of their members may be left out.
    pub fn may_mix_with(&self, next: &Self) -> bool {
        match (self, next) {
            // a copy that names nobody lets its sender count for nothing
            (Self::Nobody, _) | (_, Self::Nobody) => true,
            (Self::Set(old), Self::Set(new)) => {
                let is_one_of_more = old.k == 1 && new.k == 1 && old.members.is_subset(&new.members);
                old.k == 0 || new.k == 0 || is_one_of_more
            }
        }
    }
}

/// Long work on the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// PostgreSQL is starting and not yet answering; it may be replaying for minutes.
    Starting,
    /// PostgreSQL is being stopped cleanly for a switchover.
    StoppingCleanly,
    /// The data is being copied or rewound; which of them is not known yet.
    Rebuilding,
    /// The data is being rewound.
    Rewinding,
    /// The data is being copied.
    Copying {
        /// From this node.
        from: NodeId,
    },
    /// The history of the active node is being compared with ours.
    CheckingLineage,
    /// PostgreSQL is being promoted.
    Promoting,
    /// Another set of names is being put into effect.
    SettingNames,
    /// A first write goes through the standbys.
    ProbingWrite,
    /// A checkpoint is made ahead of a switchover.
    Checkpointing,
    /// Some work ended with an error, and what that says. The next try of that waits; other work need not.
    Failed {
        /// What failed.
        work: Box<Job>,
        /// The error, for people.
        error: String,
        /// When to try again.
        retry_at: BootTime,
    },
}

/// How this node's data stands to the active node's, as far as it was compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lineage {
    /// It can follow by streaming.
    Follows,
    /// It has log that the active node's history does not: it must be rewound or copied.
    Diverged,
}

/// What the Raft leader knows when it assigns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterView {
    /// The present instant at the leader.
    pub now: BootTime,
    /// The leader.
    pub me: NodeId,
    /// The cluster's spans.
    pub timing: Timing,
    /// The rules in force.
    pub rules: Rules,
    /// The newest record as of a read index.
    pub record: Option<AppliedRecord>,
    /// What operators asked for.
    pub goals: Goals,
    /// The members, with what of them matters here.
    pub members: BTreeMap<NodeId, MemberView>,
    /// How many standbys a commit is to wait for when all are there.
    pub durability: Durability,
    /// Raft's voters as committed; more than one set while Raft itself is between two.
    pub raft_voters: Vec<BTreeSet<NodeId>>,
    /// Members whose Raft log has caught up with the leader's.
    pub raft_caught_up: BTreeSet<NodeId>,
    /// For how long the leader has not heard the active node; zero where it is that itself.
    pub holder_unheard_for: Duration,
    /// Whether this leader has tried in vain to hand the leadership over.
    pub has_failed_to_hand_over: bool,
    /// For how long the leader knows that the active node has resigned; zero while it has not.
    pub resigned_for: Duration,
    /// How often, in the last hour, the role moved because a node that lives gave it up in trouble.
    pub role_changes: u32,
    /// How many such moves are allowed before a person is asked.
    pub role_changes_max: u32,
    /// Nodes that lately failed to promote, and until when they stay out (L17).
    pub failed_promotion: BTreeMap<NodeId, BootTime>,
    /// Since when each standby has not been streaming, as the leader saw it.
    pub not_streaming_since: BTreeMap<NodeId, BootTime>,
}

/// A member as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberView {
    /// What it takes part in.
    pub kind: MemberKind,
    /// Breaks ties; higher wins.
    pub priority: u32,
    /// Never made active by itself.
    pub nofailover: bool,
    /// Is to be removed: nothing new may count on it.
    pub is_leaving: bool,
    /// Its newest report; the leader's own is always present.
    pub report: Option<super::pulse::Report>,
    /// Whether that is fresh and the leader is heard by it: pulses pass both ways now (L27). True of the leader itself.
    pub passes_both_ways: bool,
}
