//! The process that owns PostgreSQL and the fence deadline (L4, L6, L20, L21).
//!
//! `hasup guard` is a process of its own, so that neither a hung nor a killed daemon leaves a writer behind, and a
//! restarted daemon finds everything running. It has one thread and one loop, never waits for anybody, and writes no file
//! but its log and the process id of its PostgreSQL. What it decides is pure ([`state`]); what it does is [`process`].
//!
//! - PostgreSQL is its child through `hasup exec-postgres` ([`exec`]), which asks the kernel for SIGQUIT when the guard's
//!   only thread ends: the guard's death is a fence.
//! - It is a child subreaper: what a dying postmaster orphans becomes its child, so that "stopped" means that no process of
//!   the cluster is left. Processes whose working directory is the data directory count too, whoever started them.
//! - The daemon talks to it by [`GuardClient`] over a stream (`guard.sock`) and extends the deadline by [`DeadlineSender`]
//!   over datagrams (`guard-deadline.sock`), which never blocks.
//! - Absent on purpose: it restarts nothing, promotes nothing, and knows neither the cluster nor the network. Services and
//!   the virtual address are not yet in its care.

pub mod client;
pub mod exec;
mod pid_file;
pub mod process;
pub mod procs;
pub mod protocol;
pub mod state;

pub use client::{DeadlineSender, GuardClient, GuardConnection, GuardError, spawn_detached};
pub use process::{GuardOptions, run};
pub use protocol::{FenceStatus, GuardStatus, Lease, PostgresExit, PostgresProcess, StartSpec, StopMode};

use std::path::{Path, PathBuf};

/// Returns the path of the guard's stream socket.
pub fn socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("guard.sock")
}

/// Returns the path of the guard's datagram socket for deadline extensions.
pub fn deadline_socket_path(data_dir: &Path) -> PathBuf {
    data_dir.join("guard-deadline.sock")
}
