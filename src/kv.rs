//! The replicated store: commands in, state out. Pure.
//!
//! [`State::apply`] is the whole of it: the same commands in the same order make the same state on every node. Time comes from
//! the commands. All maps are copy-on-write, so that a clone for a reader or a snapshot costs nothing whatever they hold.
//!
//! What is absent on purpose: health reports and pulses (they never go through the log), Raft's own membership (openraft keeps
//! it, [`crate::raft`] stores it beside this state), and any wish to wait: [`watch`] compares two states, the node waits.
//!
//! Decisions and their price:
//! - hasup's own records are typed fields, not keys: no code parses what another part wrote. Two of them are mirrored as keys
//!   (`hasup/next_master`, `hasup/assignment`) for clients; ordinary writes to keys under `hasup/` are refused.
//! - A request id that repeats within the last [`REQUESTS_REMEMBERED`] gets the first reply again. An older repeat is applied
//!   again: a client that retries for so long needs a compare-and-set.
//! - Deletions leave tombstones, the newest [`table::TOMBSTONES_KEPT`]; below the oldest one kept, a list's index is that one's,
//!   which may wake a watcher in vain and never leaves one asleep.

mod bytes;
pub mod command;
pub mod snapshot;
pub mod state;
pub mod table;
pub mod watch;

pub use bytes::Bytes;
pub use command::{Command, KvCommand, NewMember, Proposal, Refusal, Reply};
pub use state::{EVENTS_KEPT, EventId, REQUESTS_REMEMBERED, State, StoredEvent, Versioned};
pub use table::{Entry, Table};
pub use watch::Watch;
