//! What a node says about itself and the cluster: published by the control loop, read by API, command line and metrics.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::progress::ProgressStatus;
use super::takeover::Takeover;
use crate::ha::record::{Durability, MemberKind};
use crate::ha::state::NodeState;
use crate::postgres::Connections;
use crate::types::{BootTime, ClusterGeneration, Generation, Lsn, NodeId, Timeline};

/// A node's loop looks several times a second; what is older than this is told as old.
const STALE_AFTER: Duration = Duration::from_secs(3);

/// Returns whole milliseconds, as a status tells times.
pub(super) fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A node's word about itself and the cluster at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The cluster as this node knows it.
    pub cluster: ClusterStatus,
    /// The name of the node that says all this.
    pub me: String,
    /// When it was published, on this machine's boot-time clock: by its age the control loop is known to be alive.
    pub published_at: BootTime,
    /// How old it was when it was told, in milliseconds; absent where it is of the present. What hangs says nothing new.
    #[serde(default)]
    pub stale_ms: Option<u64>,
    /// That it is no member of the cluster any more, or only the copy of one, and what to do; absent on a member. What it shows of
    /// others is of the past.
    #[serde(default)]
    pub not_a_member: Option<String>,
    /// Whether the members know it elsewhere than where it is: it may have moved just now, or be the copy of a machine that goes on.
    #[serde(default)]
    pub is_elsewhere: bool,
    /// Its own state.
    pub state: NodeState,
    /// The name of the active node, by the newest record applied.
    pub active: Option<String>,
    /// Whether this node takes clients' writes: the role endpoints answer 200 by it, until [`Self::active_until`].
    pub active_ready: bool,
    /// The instant of this machine's boot-time clock at which [`Self::active_ready`] ends unless it is published anew: never
    /// later than the beginning of the fence.
    pub active_until: Option<BootTime>,
    /// What is left of the lease when this was published, in milliseconds; only on its holder.
    pub lease_remaining_ms: Option<u64>,
    /// The name of the Raft leader.
    pub raft_leader: Option<String>,
    /// Why nothing more happens now, one sentence each.
    pub waiting_on: Vec<String>,
    /// How far long work is; absent where none goes on that can be measured.
    #[serde(default)]
    pub progress: Option<ProgressStatus>,
    /// Every member, in the order of their numbers.
    pub nodes: Vec<NodeStatus>,
    /// This node's PostgreSQL.
    pub postgres: PostgresStatus,
    /// Versions of programs on this node.
    pub versions: Versions,
    /// Days until this node's certificate ends; negative once it has.
    pub certificate_days_left: Option<i64>,
    /// How many times this node saw the active role change since it started.
    pub role_changes: u64,
    /// How this node last took the active role over; absent where it has not since it started.
    #[serde(default)]
    pub takeover: Option<Takeover>,
    /// PEM of the cluster's certificates of authority, newest first; served at `/v1/ca`.
    #[serde(skip)]
    pub ca_pem: String,
}

/// The cluster as a whole.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// Drawn once at its start.
    pub id: String,
    /// What people call it.
    pub name: String,
    /// Which life of the cluster this is.
    pub cluster_generation: ClusterGeneration,
    /// The generation of the newest assignment.
    pub generation: Generation,
    /// Whether this node hears a majority of the voters.
    pub majority: bool,
    /// What a commit waits for.
    pub durability: Durability,
    /// How long a lease is, in milliseconds.
    pub lease_ms: u64,
    /// What a failure right now would cost, in one plain sentence.
    pub failure_cost: String,
    /// What an operator should look at, one sentence each.
    pub warnings: Vec<String>,
}

/// What a member is to Raft.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RaftRole {
    /// Leads.
    Leader,
    /// Votes and follows.
    Follower,
    /// Follows without a vote.
    Learner,
    /// Not known now.
    Unknown,
}

impl RaftRole {
    /// Returns the role's name as `nodes list` prints it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Leader => "leader",
            Self::Follower => "follower",
            Self::Learner => "learner",
            Self::Unknown => "unknown",
        }
    }
}

/// A member as this node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: String,
    /// Where peers reach it, as `host:port`.
    pub address: String,
    /// Where its API is, as `host:port`.
    pub api_address: String,
    /// Where clients reach its PostgreSQL, as `host:port`.
    pub postgres_address: String,
    /// What it takes part in.
    pub kind: MemberKind,
    /// Its state; `unknown`, in JSON too, while it is not heard.
    #[serde(with = "state_word")]
    pub state: Option<NodeState>,
    /// Whether it is heard; where not, its state is unknown, and the rest is the last that was heard.
    pub is_reachable: bool,
    /// How old its last word is, in milliseconds; absent if none was heard.
    pub heard_ms_ago: Option<u64>,
    /// What it is to Raft.
    pub raft: RaftRole,
    /// Whether the cluster is as redundant without it: no majority counts it, and no commit may wait for it.
    #[serde(default)]
    pub is_spare: bool,
    /// Breaks ties among equally safe promotion candidates; higher wins.
    pub priority: u32,
    /// Never made active by itself.
    pub nofailover: bool,
    /// The timeline of its last record.
    pub timeline: Option<Timeline>,
    /// The end of its write-ahead log on disk.
    pub lsn: Option<Lsn>,
    /// How far it is behind the active node, in bytes; absent where unknown.
    pub lag_bytes: Option<u64>,
    /// How much log the slot for it keeps on the node that says this, in bytes; absent where there is none.
    #[serde(default)]
    pub kept_log_bytes: Option<u64>,
    /// Version of hasup on it.
    pub version: String,
    /// Its checks by name.
    pub checks: BTreeMap<String, CheckStatus>,
    /// What is wrong with its machine, by its last word.
    #[serde(default)]
    pub troubles: Vec<TroubleStatus>,
}

impl NodeStatus {
    /// Returns, after `was made active and`, what is known of it now: its state, or that it is not heard.
    pub fn why_not_active(&self) -> String {
        match self.state {
            Some(state) => format!("is {}", state.as_str()),
            None if self.heard_ms_ago.is_some() => "is silent".to_owned(),
            None => "was not heard yet".to_owned(),
        }
    }

    /// Returns its state in one word.
    pub fn state_word(&self) -> &'static str {
        self.state.map_or(UNKNOWN, NodeState::as_str)
    }
}

/// The state of a node that is not heard.
const UNKNOWN: &str = "unknown";

mod state_word {
    use serde::de::{IntoDeserializer, value::Error as WordError};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{NodeState, UNKNOWN};

    pub(super) fn serialize<S: Serializer>(state: &Option<NodeState>, to: S) -> Result<S::Ok, S::Error> {
        match state {
            Some(state) => state.serialize(to),
            None => to.serialize_str(UNKNOWN),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<NodeState>, D::Error> {
        let word = String::deserialize(from)?;
        if word == UNKNOWN {
            return Ok(None);
        }
        let state: Result<_, WordError> = NodeState::deserialize(word.as_str().into_deserializer());
        state.map(Some).map_err(serde::de::Error::custom)
    }
}

/// Something that is wrong with a node's machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TroubleStatus {
    /// One sentence.
    pub text: String,
    /// Whether what the node is needed for has stopped already.
    pub is_critical: bool,
}

/// A check of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CheckStatus {
    /// Whether it passes, or an earlier pass holds.
    pub is_passing: bool,
    /// What it saw.
    pub detail: String,
    /// How often it runs, in milliseconds.
    pub interval_ms: u64,
    /// How long an earlier pass holds in what is shown, in milliseconds, where the option `check_fail_fast` is off.
    pub ttl_ms: u64,
    /// Whether its failure moves the active role.
    pub moves_role: bool,
}

/// A node's PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PostgresStatus {
    /// Whether a server runs.
    pub is_running: bool,
    /// Whether it takes new connections.
    pub is_accepting: bool,
    /// Whether it replays as a standby; absent while it does not answer.
    pub is_in_recovery: Option<bool>,
    /// Whether its WAL receiver streams.
    pub is_streaming: bool,
    /// Number of its version, as 150004.
    pub server_version: Option<u32>,
    /// Which database cluster it is.
    pub system_identifier: Option<u64>,
    /// The timeline it is on.
    pub timeline: Option<Timeline>,
    /// The end of its log on disk.
    pub lsn: Option<Lsn>,
    /// The end of what it replayed; on standbys.
    pub replayed_lsn: Option<Lsn>,
    /// Standbys that stream from it, by name.
    pub standbys: Vec<String>,
    /// What `synchronous_standby_names` was last seen to be.
    pub synchronous_standby_names: Option<String>,
    /// Commits that their clients were told of although their wait for a standby was cancelled, since the daemon started.
    pub cancelled_waits: u64,
    /// Its connections; absent while it does not answer.
    #[serde(default)]
    pub connections: Option<Connections>,
    /// What it says of itself that an operator should look at, like collations that differ from those its indexes were built
    /// with; absent before it has been asked.
    #[serde(default)]
    pub warnings: Option<Vec<String>>,
}

/// Versions of programs on a node.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Versions {
    /// hasup's.
    pub hasup: String,
    /// PostgreSQL's, as it prints it.
    pub postgres: Option<String>,
}

impl Status {
    /// Returns what a node says before it has looked at anything.
    pub fn starting(me: impl Into<String>) -> Self {
        Self {
            cluster: ClusterStatus::default(),
            me: me.into(),
            published_at: BootTime::default(),
            stale_ms: None,
            not_a_member: None,
            is_elsewhere: false,
            state: NodeState::Empty,
            active: None,
            active_ready: false,
            active_until: None,
            lease_remaining_ms: None,
            raft_leader: None,
            waiting_on: vec!["the node is starting".to_owned()],
            progress: None,
            nodes: Vec::new(),
            postgres: PostgresStatus::default(),
            versions: Versions { hasup: env!("CARGO_PKG_VERSION").to_owned(), postgres: None },
            certificate_days_left: None,
            role_changes: 0,
            takeover: None,
            ca_pem: String::new(),
        }
    }

    /// Returns whether this node may be called active at `now`: it was published as ready and that has not run out.
    pub fn is_active_at(&self, now: BootTime) -> bool {
        self.active_ready && self.active_until.is_some_and(|until| now < until)
    }

    /// Returns what is to be told of it at `now`: itself, or where the node's loop has not looked for long, a copy that says so.
    pub fn told_at(&self, now: BootTime) -> Cow<'_, Self> {
        let age = now.since(self.published_at);
        if self.published_at == BootTime::default() || age < STALE_AFTER {
            return Cow::Borrowed(self);
        }
        let mut told = self.clone();
        told.stale_ms = Some(millis(age));
        let warning = format!(
            "{}'s loop has not looked for {} s: all this is as old. Its supervisor restarts a daemon that hangs; see its log",
            self.me,
            age.as_secs()
        );
        told.cluster.warnings.insert(0, warning);
        Cow::Owned(told)
    }

    /// Returns the member named `name`.
    pub fn node(&self, name: &str) -> Option<&NodeStatus> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_ends_by_itself_when_nothing_new_is_published() {
        let mut status = Status::starting("n1");
        status.active_ready = true;
        assert!(!status.is_active_at(BootTime(0)), "without an end there is no readiness");
        status.active_until = Some(BootTime::from_millis(10));
        assert!(status.is_active_at(BootTime::from_millis(9)));
        assert!(!status.is_active_at(BootTime::from_millis(10)));
    }

    #[test]
    fn what_a_hung_loop_left_behind_is_told_as_old() {
        let mut status = Status::starting("n1");
        assert_eq!(status.told_at(BootTime::from_millis(60_000)).stale_ms, None, "it has not looked yet, and says so");
        status.published_at = BootTime::from_millis(1000);
        assert_eq!(status.told_at(BootTime::from_millis(3999)).stale_ms, None);
        let told = status.told_at(BootTime::from_millis(13_500));
        assert_eq!(told.stale_ms, Some(12_500));
        assert!(told.cluster.warnings[0].contains("has not looked for 12 s"), "{:?}", told.cluster.warnings);
    }

    #[test]
    fn json_holds_what_was_promised_to_programs() {
        let json = serde_json::to_value(Status::starting("n1")).unwrap();
        for key in ["cluster", "active", "raft_leader", "nodes"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in ["id", "name", "generation", "majority", "durability", "warnings"] {
            assert!(json["cluster"].get(key).is_some(), "cluster.{key}");
        }
    }
}
