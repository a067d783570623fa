//! What members ask each other. New variants go to the end: the encoding counts them.

use serde::{Deserialize, Serialize};

use crate::ha::record::Member;
use crate::types::{BootId, DaemonIncarnation, Generation, NodeId, NodeName, Timeline};

/// The first thing a server says on a member's connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Welcome {
    /// The member may ask.
    Member {
        /// Who answers here.
        node: NodeId,
        /// Its version of hasup.
        version: String,
    },
    /// The certificate is of this cluster, but its node is no present member: it was removed, or replaced.
    NotAMember,
}

/// A request and how long its sender waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// Milliseconds after which nobody waits for the answer any more, so that work on it may stop.
    pub within_ms: u64,
    /// The request.
    pub request: PeerRequest,
}

/// What one member asks another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// Answer at once: the way there and back is what counts.
    Ping,
    /// A message of Raft, in the encoding of the raft module.
    Raft(Vec<u8>),
    /// Propose this to the replicated store, as its leader; in the encoding of the store.
    Propose(Vec<u8>),
    /// Say up to which log index the store must have been applied for a linearizable read; the leader answers.
    ReadIndex,
    /// Send PostgreSQL's history file of this timeline.
    TimelineHistory {
        /// Which timeline.
        timeline: Timeline,
    },
    /// Make a checkpoint under this generation: the source of a rewind, or a standby ahead of a switchover.
    Checkpoint {
        /// The generation that the asker believes in.
        generation: Generation,
    },
    /// Issue a new certificate for the asking node.
    Renew {
        /// Its signing request, PEM.
        csr: String,
    },
    /// A request of the API, handed on to the node that can answer it; in the encoding of the API.
    Admin(Vec<u8>),
    /// The asking node is to be found here from now on: change its record. Asked again, it is no change.
    Moved(Addresses),
    /// Say which start of which daemon answers: two places may be one machine's, or that of a machine and of its copy.
    DaemonStart,
}

/// Names one start of a daemon among all of all machines, also where one is a copy of another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonStart {
    /// The machine's boot.
    pub boot: BootId,
    /// The daemon's start.
    pub incarnation: DaemonIncarnation,
}

/// Where a member is to be found, as it says itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// `host:port` of its peer and pulse port.
    pub peer: Vec<String>,
    /// `host:port` of its API.
    pub api: String,
    /// Host of its PostgreSQL.
    pub postgres_host: String,
    /// Port of its PostgreSQL.
    pub postgres_port: u16,
}

impl Addresses {
    /// Returns where `member` is to be found by its record.
    pub fn of(member: &Member) -> Self {
        Self {
            peer: member.peer_addresses.clone(),
            api: member.api_address.clone(),
            postgres_host: member.postgres_host.clone(),
            postgres_port: member.postgres_port,
        }
    }

    /// Returns `member` as it is once it is found here.
    pub fn moves(self, member: &Member) -> Member {
        let Self { peer: peer_addresses, api: api_address, postgres_host, postgres_port } = self;
        Member { peer_addresses, api_address, postgres_host, postgres_port, ..member.clone() }
    }

    /// Returns every host under which the node's certificate must hold.
    pub fn certificate_hosts(&self) -> Vec<String> {
        let mut hosts = self.peer.clone();
        hosts.extend([self.api.clone(), self.postgres_host.clone()]);
        hosts
    }
}

/// What a member answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum PeerResponse {
    /// To `Ping`.
    Pong {
        /// The node that answers.
        node: NodeId,
        /// Its name.
        name: NodeName,
        /// Its version of hasup.
        version: String,
    },
    /// To `Raft`.
    Raft(Vec<u8>),
    /// To `Propose`.
    Propose(Vec<u8>),
    /// To `ReadIndex`.
    ReadIndex {
        /// The log index to wait for.
        index: u64,
    },
    /// To `TimelineHistory`.
    TimelineHistory {
        /// The file's content; absent where the node has none of that timeline.
        file: Option<Vec<u8>>,
    },
    /// To `Checkpoint`, once it is complete.
    Checkpointed,
    /// To `Renew`.
    Renewed {
        /// The new certificate, PEM.
        certificate: String,
        /// The authorities to accept, PEM, newest first.
        ca_certificates: Vec<String>,
    },
    /// To `Admin`.
    Admin(Vec<u8>),
    /// To any: the request was not carried out.
    Refused(PeerRefusal),
    /// To `Moved`, once it is written.
    Moved,
    /// To `DaemonStart`.
    DaemonStart(DaemonStart),
}

impl PeerResponse {
    /// Returns why this is not what was asked for.
    pub fn why_not(&self) -> String {
        match self {
            Self::Refused(refusal) => refusal.to_string(),
            Self::Pong { .. }
            | Self::Raft(_)
            | Self::Propose(_)
            | Self::ReadIndex { .. }
            | Self::TimelineHistory { .. }
            | Self::Checkpointed
            | Self::Renewed { .. }
            | Self::Admin(_)
            | Self::Moved
            | Self::DaemonStart(_) => "it answered something else than was asked".to_owned(),
        }
    }
}

/// Why a member did not do what it was asked. In each case nothing was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum PeerRefusal {
    /// Only the Raft leader can, and this node is not.
    #[error("the node asked is not the Raft leader{}", leader.map(|id| format!("; node {id} is")).unwrap_or_default())]
    NotLeader {
        /// Who is, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// The request was decided under an older generation than the one in force.
    #[error("the request is of an older generation; {current} is in force. Decide again")]
    StaleGeneration {
        /// The one in force.
        current: Generation,
    },
    /// This version of hasup does not know the request.
    #[error("the node asked runs a version of hasup that does not know this request. Upgrade it")]
    Unsupported,
    /// The answer is longer than a frame.
    #[error("the answer of {bytes} bytes does not fit a frame. Ask for less")]
    AnswerTooLong {
        /// Its length.
        bytes: u64,
    },
    /// The node cannot do it now.
    #[error("the node asked cannot do it: {because}")]
    Unable {
        /// Why, as a clause.
        because: String,
    },
    /// Another machine runs as the asking node, where the members know that: one of the two is a copy.
    #[error("{told}")]
    Copied {
        /// What is the matter, for people.
        told: String,
    },
}
