//! The vocabulary: small types that the rest of hasup is written in.
//!
//! Nothing here waits, reads a clock or touches the world. Each type makes one mix-up impossible: a Raft term is no
//! generation, a PostgreSQL timeline is no generation either, and an instant on the boot-time clock is no wall-clock time.

mod ids;
mod size;
mod time;
mod wal;

pub use ids::{
    BootId, ClusterGeneration, DaemonIncarnation, DataIncarnation, Generation, NodeId, NodeName, NodeNameError,
};
pub use size::Size;
pub use time::BootTime;
pub use wal::{Lsn, LsnError, Timeline, WalPosition};
