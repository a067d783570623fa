//! What a joiner says, and what it is told.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::{ProbeKey, TokenProof};
use crate::ha::record::MemberKind;
use crate::tls::{ClusterSecret, NodeKeys, NodeTrust};
use crate::types::{NodeId, NodeName};

/// What a node says of itself to become a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinRequest {
    /// Its right to ask.
    pub token: TokenProof,
    /// The name it wants.
    pub name: NodeName,
    /// What it wants to take part in.
    pub kind: MemberKind,
    /// Its signing request, PEM.
    pub csr: String,
    /// Its X25519 public key for pulses; a repeated request with the same key is the same node asking again.
    pub pulse_key: [u8; 32],
    /// `host:port` of its peer and pulse port; members dial back to each.
    pub peer_addresses: Vec<String>,
    /// `host:port` of its API.
    pub api_address: String,
    /// Host of its PostgreSQL.
    pub postgres_host: String,
    /// Port of its PostgreSQL.
    pub postgres_port: u16,
    /// Further names and addresses for its certificate.
    pub extra_names: Vec<String>,
    /// Its version of hasup.
    pub version: String,
    /// The major version of its PostgreSQL; absent for a witness.
    pub postgres_major: Option<u32>,
    /// Bytes free where its database will lie.
    pub free_disk_bytes: u64,
    /// The key by which it answers when members dial back.
    pub probe_key: ProbeKey,
    /// Options that its operator takes the cluster to have, names and values as written.
    pub options: BTreeMap<String, String>,
}

impl JoinRequest {
    /// Returns every host under which the node's certificate must hold.
    pub fn certificate_hosts(&self) -> Vec<String> {
        let mut hosts = self.peer_addresses.clone();
        hosts.extend([self.api_address.clone(), self.postgres_host.clone()]);
        hosts.extend(self.extra_names.iter().cloned());
        hosts
    }
}

/// What makes a node a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinGrant {
    /// Its number, for ever.
    pub node_id: NodeId,
    /// The cluster's id.
    pub cluster_id: String,
    /// The cluster's name.
    pub cluster_name: String,
    /// Its certificate, PEM.
    pub certificate: String,
    /// The authorities to accept, PEM, newest first.
    pub ca_certificates: Vec<String>,
    /// The cluster's secret.
    pub cluster_secret: ClusterSecret,
    /// The present members, in the encoding of the store.
    pub members: Vec<u8>,
}

impl JoinGrant {
    /// Returns the trust that the node now has, made of its keys and what it was given.
    pub fn trust(&self, keys: NodeKeys) -> NodeTrust {
        NodeTrust {
            keys,
            certificate: self.certificate.clone(),
            ca_certificates: self.ca_certificates.clone(),
            cluster_secret: self.cluster_secret.clone(),
        }
    }
}

/// How an address was dialled back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// Connections of peers.
    Tcp,
    /// Pulses.
    Udp,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        })
    }
}

/// An address of the joiner that did not answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnreachableAddress {
    /// The address, as the joiner gave it.
    pub address: String,
    /// What was tried.
    pub transport: Transport,
    /// How it ended.
    pub because: String,
}

impl fmt::Display for UnreachableAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.transport, self.address, self.because)
    }
}

/// Why a node may not join. Nothing was changed, on either side.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum JoinRefusal {
    /// The cluster knows no such token.
    #[error(
        "the join token is not one of this cluster's, or was revoked. Create one on a member: `hasup token create`"
    )]
    WrongToken,
    /// The token was right once.
    #[error(
        "the join token expired {expired_s_ago} s ago, by the clock of the member that was asked. Create a new one there: \
         `hasup token create`"
    )]
    ExpiredToken {
        /// How long ago.
        expired_s_ago: u64,
    },
    /// Another member has the name.
    #[error(
        "a member is already called `{name}`. Give another with --node-name, or remove that member first: \
         `hasup nodes remove {name}`"
    )]
    NameTaken {
        /// The name.
        name: NodeName,
    },
    /// Another member has the address.
    #[error(
        "the address {address} already belongs to member `{member}`. Give this node's own with --host-ip, or remove that \
         member first: `hasup nodes remove {member}`"
    )]
    AddressTaken {
        /// The address.
        address: String,
        /// Whose it is.
        member: NodeName,
    },
    /// hasup's versions cannot work together.
    #[error(
        "this node runs hasup {joiner}, the cluster {cluster}, and these do not work together. Install hasup {cluster} here"
    )]
    WrongVersion {
        /// The joiner's.
        joiner: String,
        /// The cluster's.
        cluster: String,
    },
    /// PostgreSQL's major versions differ, so that replication is impossible.
    #[error(
        "{}, the cluster PostgreSQL {cluster}; replication needs the same. Install postgresql-{cluster} here, or join with \
         --witness", joiner.map_or("this node has no PostgreSQL".into(), |major| format!("this node has PostgreSQL {major}"))
    )]
    WrongPostgres {
        /// The joiner's major version.
        joiner: Option<u32>,
        /// The cluster's major version.
        cluster: u32,
    },
    /// The member that was asked cannot reach the joiner.
    #[error(
        "member `{from}` cannot reach this node at {}. Open TCP and UDP of that port in both directions, or give the right \
         address with --host-ip",
        list(addresses)
    )]
    Unreachable {
        /// Who tried.
        from: NodeName,
        /// What did not answer.
        addresses: Vec<UnreachableAddress>,
    },
    /// The database does not fit.
    #[error(
        "{free_bytes} bytes are free for the database here, and {needed_bytes} are needed. Free some, or choose another \
         --data-dir"
    )]
    TooLittleDisk {
        /// What the joiner has.
        free_bytes: u64,
        /// What it needs.
        needed_bytes: u64,
    },
    /// Too many attempts from this address, or too many at once.
    #[error("too many nodes try to join at once, or too often from this address. Try again in {retry_after_s} s")]
    TooManyAttempts {
        /// When to come again, in seconds.
        retry_after_s: u64,
    },
    /// Another member has to be asked; the joiner does so by itself.
    #[error("another member must be asked: {}", addresses.join(", "))]
    AskInstead {
        /// `host:port` of its peer port.
        addresses: Vec<String>,
    },
    /// The cluster cannot take members at the moment.
    #[error("the cluster cannot take a member now: {because}. See `hasup status` on a member, then try again")]
    NotNow {
        /// Why, as a clause.
        because: String,
    },
    /// The request does not make sense to the member.
    #[error("the member does not understand this node's request: {because}. Install the same version of hasup on both")]
    BadRequest {
        /// What is wrong with it, as a clause.
        because: String,
    },
    /// The cluster has other options than the joiner's operator said.
    #[error(
        "options are the whole cluster's, and a join changes none: {}. Leave --options out here; to change one for all nodes, run \
         `hasup options set {}` on a member first",
        differing.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
        differing.iter().map(OptionDiffers::wish).collect::<Vec<_>>().join(" ")
    )]
    OptionsDiffer {
        /// Which.
        differing: Vec<OptionDiffers>,
    },
}

/// An option that is not what a joiner's operator said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OptionDiffers {
    /// Its name.
    pub name: String,
    /// What the joiner's operator said.
    pub asked: String,
    /// What it is.
    pub present: String,
}

impl OptionDiffers {
    fn wish(&self) -> String {
        format!("{}={}", self.name, self.asked)
    }
}

impl fmt::Display for OptionDiffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is {} in the cluster, and {} was asked for", self.name, self.present, self.asked)
    }
}

impl JoinRefusal {
    /// Returns the stable name of the reason, for JSON and logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::WrongToken => "wrong_token",
            Self::ExpiredToken { .. } => "expired_token",
            Self::NameTaken { .. } => "name_taken",
            Self::AddressTaken { .. } => "address_taken",
            Self::WrongVersion { .. } => "wrong_version",
            Self::WrongPostgres { .. } => "wrong_postgres",
            Self::Unreachable { .. } => "unreachable",
            Self::TooLittleDisk { .. } => "too_little_disk",
            Self::TooManyAttempts { .. } => "too_many_attempts",
            Self::AskInstead { .. } => "ask_instead",
            Self::NotNow { .. } => "not_now",
            Self::BadRequest { .. } => "bad_request",
            Self::OptionsDiffer { .. } => "options_differ",
        }
    }
}

fn list(addresses: &[UnreachableAddress]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
