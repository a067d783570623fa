//! What can be asked of the store, and what it answers.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Bytes;
use crate::ha::record::{Assignment, ClusterIdentity, Event, Goals, JoinToken, Member, MemberKind, Options, Trust};
use crate::types::{Generation, NodeId, NodeName};

/// The longest key.
pub const KEY_BYTES_MAX: usize = 4 << 10;
/// The longest value of a key, as in Consul.
pub const VALUE_BYTES_MAX: usize = 512 << 10;

/// One entry of the log: a command with what makes it repeatable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proposal {
    /// Drawn at random by whoever asks; a repeat with the same id gets the first reply and changes nothing.
    pub request_id: u128,
    /// The proposer's wall clock in milliseconds since 1970: the only time that the store knows.
    pub at_ms: u64,
    /// What to change.
    pub command: Command,
    /// Events that become part of the history if, and only if, the command is applied.
    pub events: Vec<Event>,
}

impl Proposal {
    /// Returns a proposal of `command` without events.
    pub fn new(request_id: u128, at_ms: u64, command: Command) -> Self {
        Self { request_id, at_ms, command, events: Vec::new() }
    }

    /// Adds an event that is recorded together with the change.
    #[must_use]
    pub fn with_event(mut self, event: Event) -> Self {
        self.events.push(event);
        self
    }
}

impl fmt::Display for Proposal {
    /// Names the request and the command, and prints no value: some are secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:032x}", self.command.name(), self.request_id)
    }
}

/// A change of the store. New variants are added at the end only: older members read the log too.
///
/// `expected` is a compare-and-set: the log index of the record's last change, 0 for a record that must not exist yet, and
/// where it is optional, `None` for "whatever it is".
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A change of the key-value table.
    Kv(KvCommand),
    /// Names the cluster, or opens a new life of it.
    SetIdentity {
        /// Compare-and-set.
        expected: u64,
        /// The new identity.
        identity: ClusterIdentity,
    },
    /// Changes the record.
    SetAssignment {
        /// Compare-and-set: a choice made on an older record fails.
        expected: u64,
        /// The new record.
        assignment: Assignment,
    },
    /// Adds a member under a number never used before, which the reply holds.
    AddMember {
        /// The node, without its number.
        member: NewMember,
        /// The join token that must be valid now; `None` for the cluster's first node.
        token: Option<String>,
    },
    /// Changes a present member, whatever it has become: as logs of before [`Self::ChangeMember`] have it.
    PutMember {
        /// The member as it shall be.
        member: Member,
    },
    /// Removes a member for ever.
    RemoveMember {
        /// Its number.
        id: NodeId,
    },
    /// Changes what operators asked for.
    SetGoals {
        /// Compare-and-set.
        expected: Option<u64>,
        /// The new goals.
        goals: Goals,
    },
    /// Changes the cluster's options.
    SetOptions {
        /// Compare-and-set.
        expected: Option<u64>,
        /// The new options.
        options: Options,
    },
    /// Adds a join token, or replaces the one of the same id. Tokens that have expired go.
    PutToken {
        /// The token.
        token: JoinToken,
    },
    /// Removes a join token; one that is not there is no error.
    RevokeToken {
        /// Its public part.
        id: String,
    },
    /// Changes the certificate authority.
    SetTrust {
        /// Compare-and-set.
        expected: u64,
        /// The new certificates and the sealed key.
        trust: Trust,
    },
    /// Adds the proposal's events to the history and changes nothing else.
    AppendEvents,
    /// Changes a present member.
    ChangeMember {
        /// Compare-and-set: the log index of the last change of any member.
        expected: u64,
        /// The member as it shall be.
        member: Member,
    },
}

impl Command {
    /// Returns the command's name, for logs and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kv(KvCommand::Put { .. }) => "kv_put",
            Self::Kv(KvCommand::Delete { .. }) => "kv_delete",
            Self::Kv(KvCommand::DeletePrefix { .. }) => "kv_delete_prefix",
            Self::SetIdentity { .. } => "set_identity",
            Self::SetAssignment { .. } => "set_assignment",
            Self::AddMember { .. } => "add_member",
            Self::PutMember { .. } => "put_member",
            Self::RemoveMember { .. } => "remove_member",
            Self::SetGoals { .. } => "set_goals",
            Self::SetOptions { .. } => "set_options",
            Self::PutToken { .. } => "put_token",
            Self::RevokeToken { .. } => "revoke_token",
            Self::SetTrust { .. } => "set_trust",
            Self::AppendEvents => "append_events",
            Self::ChangeMember { .. } => "change_member",
        }
    }
}

/// A change of the key-value table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum KvCommand {
    /// Sets a key. The same value and flags again leave the key's index as it was, as in Consul.
    Put {
        /// The key: 1 byte to [`KEY_BYTES_MAX`].
        key: Bytes,
        /// The value, up to [`VALUE_BYTES_MAX`].
        value: Bytes,
        /// A number that clients keep beside the value.
        flags: u64,
        /// The key's modify index, 0 if it must not exist.
        expected: Option<u64>,
    },
    /// Removes a key; one that is not there is no error without `expected`.
    Delete {
        /// The key.
        key: Bytes,
        /// The key's modify index, 0 if it must not exist.
        expected: Option<u64>,
    },
    /// Removes every key that begins so, hasup's own excepted.
    DeletePrefix {
        /// How the keys begin; empty for all.
        prefix: Bytes,
    },
}

/// A member before it has its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewMember {
    /// Its name, unique in the cluster.
    pub name: NodeName,
    /// What it takes part in.
    pub kind: MemberKind,
    /// `host:port` of its peer and pulse port, tried in order; none may be another member's.
    pub peer_addresses: Vec<String>,
    /// `host:port` of its API.
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
    /// Version of hasup that it runs.
    pub version: String,
}

impl NewMember {
    /// Returns the member under the number `id`.
    pub fn with_id(self, id: NodeId) -> Member {
        Member {
            id,
            name: self.name,
            kind: self.kind,
            peer_addresses: self.peer_addresses,
            api_address: self.api_address,
            postgres_host: self.postgres_host,
            postgres_port: self.postgres_port,
            pulse_key: self.pulse_key,
            priority: self.priority,
            nofailover: self.nofailover,
            version: self.version,
        }
    }
}

/// What became of a proposal that is in the log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Reply {
    /// An entry that asks for nothing: a new leader's first, a change of voters.
    #[default]
    Nothing,
    /// Done.
    Applied {
        /// The log index that did it.
        index: u64,
    },
    /// A member was added.
    MemberAdded {
        /// The log index that did it.
        index: u64,
        /// Its number.
        id: NodeId,
    },
    /// Nothing changed: the record or key is not the one expected.
    Conflict {
        /// The log index of its last change, 0 if it does not exist.
        current: u64,
    },
    /// Nothing changed, for a reason that a repeat does not mend.
    Refused {
        /// The reason.
        reason: Refusal,
    },
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    /// An ordinary write to a key of hasup's own.
    #[error("key `{key}` belongs to hasup and nothing was changed: use the command that changes the record behind it")]
    ReservedKey {
        /// The key or prefix.
        key: String,
    },
    /// A key is empty or too long.
    #[error("a key has 1 to {KEY_BYTES_MAX} bytes, not {bytes}: nothing was changed")]
    KeyLength {
        /// Its length.
        bytes: u64,
    },
    /// A value is too long.
    #[error(
        "a value has at most {VALUE_BYTES_MAX} bytes, not {bytes}: nothing was changed. Split it over several keys"
    )]
    ValueLength {
        /// Its length.
        bytes: u64,
    },
    /// Another member has the name.
    #[error("the name {name} is taken by node {by}: choose another one, or remove that node first")]
    NameTaken {
        /// The name.
        name: NodeName,
        /// The number of the member that has it.
        by: NodeId,
    },
    /// Another member has the address.
    #[error("the address {address} is taken by node {by}: choose another one, or remove that node first")]
    AddressTaken {
        /// The address.
        address: String,
        /// The number of the member that has it.
        by: NodeId,
    },
    /// There is no such member.
    #[error("there is no member {id}: nothing was changed")]
    UnknownMember {
        /// The number asked for.
        id: NodeId,
    },
    /// The record names the member as active.
    #[error("node {id} is active and was not removed: switch over to another node first")]
    MemberIsActive {
        /// The active node.
        id: NodeId,
    },
    /// The record still counts on the member.
    #[error("node {id} still votes or holds commits by the record and was not removed: take it out of the sets first")]
    MemberInSets {
        /// The member.
        id: NodeId,
    },
    /// The join token is not known.
    #[error("the join token {id} is unknown or was revoked: create one with `hasup token create`")]
    TokenUnknown {
        /// Its public part.
        id: String,
    },
    /// The join token's time is over.
    #[error("the join token {id} has expired: create one with `hasup token create`")]
    TokenExpired {
        /// Its public part.
        id: String,
    },
    /// The record would go back, or use a generation twice.
    #[error("generation {offered} is no successor of generation {current}: the record was not changed")]
    StaleGeneration {
        /// The record's generation.
        current: Generation,
        /// The generation offered.
        offered: Generation,
    },
    /// The identity would go back, or become another cluster's.
    #[error("the cluster's identity can only move to a later life of the same cluster: nothing was changed")]
    OtherCluster,
}
