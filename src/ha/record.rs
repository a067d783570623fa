//! The records that hasup keeps in its replicated store: one type each, changed only through Raft.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::quorum::majority_of;
use crate::types::{ClusterGeneration, DataIncarnation, Generation, NodeId, NodeName, Timeline, WalPosition};

/// A standby that commits may wait for: the node in one life of its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DataMember {
    /// The node.
    pub node: NodeId,
    /// The life of its data that is meant; a rewound or copied one is another member (L19).
    pub incarnation: DataIncarnation,
}

impl fmt::Display for DataMember {
    /// Prints the name under which the standby's WAL receiver connects: `n<node>_i<incarnation>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}_i{}", self.node, self.incarnation)
    }
}

/// The standbys that commits wait for: the primary and `k` of `members` must hold a commit before it is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommitSet {
    /// S of the protocol, without the active node itself.
    pub members: BTreeSet<DataMember>,
    /// How many of them must hold a commit; 0 means the primary alone. With members all the same, an option has said so (`one_node`):
    /// a majority of them may go on without what the primary alone has acknowledged (L11).
    pub k: u32,
}

impl CommitSet {
    /// Returns the set that waits for nobody.
    pub fn none() -> Self {
        Self { members: BTreeSet::new(), k: 0 }
    }

    /// Returns how many members have to hold the log up to a change for that to be over: what was acknowledged before is in it.
    pub fn needed(&self) -> usize {
        if self.may_lose() { majority_of(self.members.len()) } else { self.k as usize }
    }

    /// Whether it was declared that a failover may lose what the primary alone has acknowledged.
    pub fn may_lose(&self) -> bool {
        self.k == 0 && !self.members.is_empty()
    }
}

/// An earlier record whose commits a promotion must still account for (L11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PriorAssignment {
    /// Its generation.
    pub generation: Generation,
    /// The node it named.
    pub node: NodeId,
    /// The life of that node's data.
    pub incarnation: DataIncarnation,
    /// Its commit sets as they last were.
    pub commit_sets: Vec<CommitSet>,
    /// Whether it was opened (L16).
    pub opened: bool,
}

/// The record: who is active, under which generation, and whom commits and votes depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Counts assignments; never used twice.
    pub generation: Generation,
    /// The active node.
    pub node: NodeId,
    /// The life of that node's data when it was chosen.
    pub incarnation: DataIncarnation,
    /// The generation under which its primary was, or is to be, promoted: an earlier one than `generation` in a renewal, which
    /// only a primary that still runs may use (L14).
    pub promoted: Generation,
    /// The timeline reserved for that promotion (L13).
    pub timeline: Timeline,
    /// Where the chosen node's log ended when it was chosen: who is on that timeline and not past it can follow.
    pub start: WalPosition,
    /// Why this node, in one typed sentence.
    pub why: AssignmentReason,
    /// One set of voters, or the old and the new one during a change (L22).
    pub voter_sets: Vec<BTreeSet<NodeId>>,
    /// One commit set, or several during a change (L18); the newest last.
    pub commit_sets: Vec<CommitSet>,
    /// Whether k of the commit set held all WAL up to the promotion, so that the records before no longer count (L16).
    pub opened: bool,
    /// The records since the last opened one, inclusive; empty once this one is opened.
    pub since_opened: Vec<PriorAssignment>,
}

impl Assignment {
    /// Returns this record as one of the past.
    pub fn to_prior(&self) -> PriorAssignment {
        PriorAssignment {
            generation: self.generation,
            node: self.node,
            incarnation: self.incarnation,
            commit_sets: self.commit_sets.clone(),
            opened: self.opened,
        }
    }
}

/// Why a record was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum AssignmentReason {
    /// The cluster's first.
    Bootstrap,
    /// A majority no longer heard the node that was active before.
    Silent {
        /// The node that fell silent.
        node: NodeId,
    },
    /// The node that was active before gave the role up.
    Resigned {
        /// The node that resigned.
        node: NodeId,
        /// What it gave as its reason.
        because: ResignReason,
    },
    /// Peers had barred the generation, yet its node is alive and fit (L14).
    Renewed,
    /// Only the sets of voters changed; the same node goes on (L22).
    VotersChanged,
}

impl AssignmentReason {
    /// Returns whether it was to be expected; else an operator should know.
    pub fn is_in_order(&self) -> bool {
        match self {
            Self::Bootstrap | Self::VotersChanged => true,
            Self::Silent { .. } | Self::Renewed => false,
            Self::Resigned { because, .. } => because.is_in_order(),
        }
    }
}

/// Why an active node gave its role up (L7).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ResignReason {
    /// Its lease ended without a majority's acknowledgement.
    LeaseOver,
    /// Its PostgreSQL died or could not write.
    PostgresFailed,
    /// A switchover to another node was ordered.
    Switchover,
    /// The machine or hasup is being stopped in order.
    Stopping,
    /// It was chosen but could not promote in time.
    PromotionFailed,
    /// Its daemon started and found no primary under guard.
    Restarted,
    /// It was told of a newer generation.
    Superseded,
}

impl ResignReason {
    /// Returns whether the trouble may be the same on the next node: a node that lives and cannot serve.
    pub fn is_trouble(&self) -> bool {
        match self {
            Self::PostgresFailed | Self::PromotionFailed => true,
            Self::LeaseOver | Self::Switchover | Self::Stopping | Self::Restarted | Self::Superseded => false,
        }
    }

    /// Returns whether somebody wanted it so; else an operator should know.
    pub fn is_in_order(&self) -> bool {
        match self {
            Self::Switchover | Self::Stopping => true,
            Self::LeaseOver | Self::PostgresFailed | Self::PromotionFailed | Self::Restarted | Self::Superseded => {
                false
            }
        }
    }
}

impl fmt::Display for ResignReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::LeaseOver => "no majority acknowledged its lease",
            Self::PostgresFailed => "its PostgreSQL died or could not write",
            Self::Switchover => "a switchover was ordered",
            Self::Stopping => "it is being stopped in order",
            Self::PromotionFailed => "it could not promote PostgreSQL in time",
            Self::Restarted => "its daemon started and found no primary under guard",
            Self::Superseded => "a newer generation is active",
        })
    }
}

/// What a member takes part in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemberKind {
    /// Votes (unless a spare) and holds PostgreSQL.
    Data,
    /// Votes and holds no PostgreSQL.
    Witness,
}

/// A node of the cluster as all others know it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number, never used again.
    pub id: NodeId,
    /// Its name, unique in the cluster.
    pub name: NodeName,
    /// What it takes part in.
    pub kind: MemberKind,
    /// `host:port` of its peer and pulse port, tried in order. Hosts are IPv4, IPv6 in brackets, or names.
    pub peer_addresses: Vec<String>,
    /// `host:port` of its API, as clients see it.
    pub api_address: String,
    /// Host under which clients and standbys reach its PostgreSQL.
    pub postgres_host: String,
    /// Port of its PostgreSQL.
    pub postgres_port: u16,
    /// X25519 public key from which the pulse keys of each pair are derived.
    pub pulse_key: [u8; 32],
    /// Breaks ties among equally safe promotion candidates; higher wins.
    pub priority: u32,
    /// Never made active by itself.
    pub nofailover: bool,
    /// Version of hasup it last joined or started with.
    pub version: String,
}

/// How much an acknowledged commit is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Durability {
    /// A commit is acknowledged when a majority of the data nodes hold it. Nothing acknowledged is lost with one node.
    #[default]
    TwoNodes,
    /// As `TwoNodes` while standbys stream; without them commits go on after a declared, recorded change.
    BestEffort,
    /// Commits wait for nobody.
    OneNode,
}

/// A factor in thousandths, so that it compares and encodes exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Multiplier {
    /// 1000 is once.
    pub thousandths: u32,
}

impl Multiplier {
    /// Once.
    pub const ONE: Self = Self { thousandths: 1000 };

    /// Returns `span` times this factor.
    pub fn of(self, span: Duration) -> Duration {
        span * self.thousandths / 1000
    }
}

impl fmt::Display for Multiplier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:03}", self.thousandths / 1000, self.thousandths % 1000);
        f.write_str(text.trim_end_matches('0').trim_end_matches('.'))
    }
}

/// Options of the whole cluster, equal on all nodes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options {
    /// Stretches every check's time to live, the lease included: 0.5 to 30.
    pub check_ttl_multiplier: Multiplier,
    /// Whether the first error of a check fails it, instead of its time to live.
    pub check_fail_fast: bool,
    /// Scales Raft's election and heartbeat timers: 1 to 10. Also accepted as `consul_raft_multiplier`.
    pub raft_multiplier: u32,
    /// What a commit waits for.
    pub durability: Durability,
    /// How many automatic role changes an hour are allowed before a person is asked; failovers of a dead node are excepted.
    pub role_changes_per_hour: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            check_ttl_multiplier: Multiplier::ONE,
            check_fail_fast: true,
            raft_multiplier: 1,
            durability: Durability::TwoNodes,
            role_changes_per_hour: 6,
        }
    }
}

/// What operators asked the cluster to do and it has not finished.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Goals {
    /// A planned change of the active node.
    pub switchover: Option<SwitchoverGoal>,
    /// Nodes that are to be taken out of voters and commit sets, and then removed.
    pub removing: BTreeSet<NodeId>,
}

impl Goals {
    /// Returns these goals with `node` to be removed.
    #[must_use]
    pub fn removing(&self, node: NodeId) -> Self {
        let mut goals = self.clone();
        goals.removing.insert(node);
        goals
    }

    /// Returns these goals with nothing to be done about `node`, which is gone.
    #[must_use]
    pub fn without(&self, node: NodeId) -> Self {
        let mut goals = self.clone();
        goals.removing.remove(&node);
        goals
    }
}

/// A planned change of the active node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SwitchoverGoal {
    /// The generation that is to end; the goal is void under any other.
    pub from: Generation,
    /// The node to become active; any fit one where absent.
    pub to: Option<NodeId>,
}

/// A join token as the cluster remembers it: never the secret itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// Public part, by which `token list` and `token revoke` name it.
    pub id: String,
    /// BLAKE3 of the secret part.
    pub secret_hash: [u8; 32],
    /// Wall-clock second after which it no longer admits anybody.
    pub expires_at: u64,
}

/// The cluster's certificate authority.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// PEM of the certificates that peers accept, newest first.
    pub ca_certificates: Vec<String>,
    /// The newest one's private key (PKCS#8), sealed under the cluster's secret, which travels only by join.
    pub sealed_ca_key: Vec<u8>,
}

/// The cluster as such.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterIdentity {
    /// Drawn once by `hasup start`.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Which life of the cluster this is.
    pub generation: ClusterGeneration,
    /// PostgreSQL's system identifier, once there is a database.
    pub system_identifier: Option<u64>,
}

/// Something that the cluster did, or declined to do, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Wall-clock milliseconds since 1970 at the node that recorded it; for people only.
    pub at_ms: u64,
    /// The node that recorded it.
    pub by: NodeId,
    /// The generation that it belongs to.
    pub generation: Generation,
    /// Stable name of what happened: an [`EventKind`], or one of another release.
    pub kind: String,
    /// Why.
    pub why: WhyRecord,
}

impl Event {
    /// Returns whether it tells of `kind`.
    pub fn is(&self, kind: EventKind) -> bool {
        self.kind == kind.as_str()
    }
}

/// What happened, as this release names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// A node was made active.
    Assigned,
    /// Another node was made active because one that lives gave the role up in trouble.
    Reassigned,
    /// The active role was handed over by order.
    SwitchedOver,
    /// The active node goes on under a new generation.
    Renewed,
    /// The record changed within its generation.
    RecordChanged,
    /// A node gave the active role up.
    Resigned,
    /// The role was given up so often that a person has to decide.
    PersonAsked,
    /// An operator ordered a switchover.
    SwitchoverOrdered,
    /// A standby's log was fetched from another one (L12).
    Fetched,
    /// A node's database was rewound or copied.
    Rebuilt,
    /// A node joined.
    MemberJoined,
    /// A node is elsewhere.
    MemberMoved,
    /// A node was removed.
    MemberRemoved,
    /// Two machines run as one node.
    NodeCopied,
    /// The disk of a node was put back to an earlier state.
    NodePutBack,
    /// An operator changed options of the cluster.
    OptionsChanged,
    /// An operator changed how a node is treated.
    MemberChanged,
}

impl EventKind {
    /// Returns the name that the history has.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Reassigned => "reassigned",
            Self::SwitchedOver => "switched_over",
            Self::Renewed => "renewed",
            Self::RecordChanged => "record_changed",
            Self::Resigned => "resigned",
            Self::PersonAsked => "person_asked",
            Self::SwitchoverOrdered => "switchover_ordered",
            Self::Fetched => "fetched",
            Self::Rebuilt => "rebuilt",
            Self::MemberJoined => "member_joined",
            Self::MemberMoved => "member_moved",
            Self::MemberRemoved => "member_removed",
            Self::NodeCopied => "node_copied",
            Self::NodePutBack => "node_put_back",
            Self::OptionsChanged => "options_changed",
            Self::MemberChanged => "member_changed",
        }
    }
}

/// Facts, the rule they meet, and the step that follows.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct WhyRecord {
    /// What was known, one plain sentence each.
    pub facts: Vec<String>,
    /// The rule, as `L11`, or by whose word: `an operator's order`.
    pub rule: String,
    /// What was done.
    pub step: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiplier_prints_short_and_scales_exactly() {
        let half = Multiplier { thousandths: 500 };
        assert_eq!(half.to_string(), "0.5");
        assert_eq!(Multiplier::ONE.to_string(), "1");
        assert_eq!(half.of(Duration::from_secs(2)), Duration::from_secs(1));
    }
}
