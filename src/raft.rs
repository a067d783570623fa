//! openraft over sled: the group that agrees on the store.
//!
//! ```text
//! node ──► Consensus ──► openraft ──► LogStore (sled, one writer thread) · StateMachine (kv::State, snapshots as files)
//!                            └──────► network ──► RaftTransport (the peer port, or a test)
//! ```
//!
//! Absent on purpose: forwarding to the leader (the peer module carries proposals), addresses of members (the store holds them;
//! Raft knows numbers alone), and any notion of who is active: Raft leadership is not the active role.
//!
//! Decisions and their price:
//! - A record is durable when one fdatasync of sled's file has returned; sled's own flush is not enough on Linux (why: [`log_writer`]). Appends,
//!   votes and the committed index that arrive together share one.
//! - The committed index is durable before an entry is applied, so that what a node has applied (and promised on) never goes
//!   back when it restarts. It costs one shared fdatasync more for each batch of commits.
//! - A damaged log is never opened in part and never set aside by itself: an empty one under the same number would forget its
//!   vote. The node refuses to start and says how to rejoin.
//! - A log that lacks what its member had confirmed, as on a disk that was put back, is filled up again by who leads, and told
//!   (`confirmed`). The price: until then that member may vote for one that lacks it too, so a second failure in that time can lose
//!   entries. To refuse it would leave one machine less to every later failure until a person comes.
//! - openraft runs on a thread of its own: its ticks, 25 a second, would each wake several threads of the node's runtime, and
//!   what holds that up does not hold up an election.
//! - `histogram/`, a package of its own, stands in for a dependency of openraft's (why: there).

mod confirmed;
pub mod consensus;
pub mod log_store;
mod log_writer;
pub mod members;
pub mod network;
pub mod runtime;
mod serve;
pub mod state_machine;
pub mod types;

pub use confirmed::PutBack;
pub use consensus::{
    Compaction, Consensus, Foundation, Leadership, LogHandle, LogMark, OpenError, ProposeError, RaftTiming, ReadError,
};
pub use network::{Lane, RaftRpc, RaftTransport, TransportError};
pub use state_machine::Applied;
