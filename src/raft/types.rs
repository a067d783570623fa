//! The types that openraft is parametrised with.

use openraft::type_config::alias;

use crate::kv::{Proposal, Reply};

openraft::declare_raft_types!(
    /// hasup's Raft: one leader a term, members known by number alone, [`Proposal`]s in the log.
    pub TypeConfig:
        D = Proposal,
        R = Reply,
        NodeId = u64,
        Node = openraft::impls::EmptyNode,
        LeaderId = openraft::impls::leader_id_std::LeaderId<Self::Term, Self::NodeId>,
        AsyncRuntime = super::runtime::Runtime,
);

/// A log entry.
pub type Entry = alias::EntryOf<TypeConfig>;
/// The term and index of an entry.
pub type LogId = alias::LogIdOf<TypeConfig>;
/// A vote.
pub type Vote = alias::VoteOf<TypeConfig>;
/// The members as of some entry.
pub type StoredMembership = alias::StoredMembershipOf<TypeConfig>;
/// What a snapshot is about.
pub type SnapshotMeta = alias::SnapshotMetaOf<TypeConfig>;
/// A snapshot with its data.
pub type Snapshot = alias::SnapshotOf<TypeConfig, super::state_machine::SnapshotFile>;
/// openraft's handle.
pub type Raft = openraft::Raft<TypeConfig, super::state_machine::StateMachine>;
