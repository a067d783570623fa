//! The composition root.

pub mod begin;

use std::ffi::OsString;

pub use begin::Begin;

use crate::config::Config;

/// Runs the daemon until it is told to stop.
///
/// # Errors
/// The node cannot begin, or ended in a way that its supervisor should know.
pub async fn run(config: Config, begin: Begin) -> anyhow::Result<()> {
    let _ = begin;
    anyhow::bail!("node {} cannot run: this build holds no daemon", config.node_name)
}

/// Runs the guard until it is told to stop. Called on the process's first thread, before any other exists.
///
/// # Errors
/// Another guard runs for the same data directory, or it cannot be prepared.
pub fn guard(config: &Config) -> anyhow::Result<()> {
    anyhow::bail!("node {} cannot run its guard: this build holds none", config.node_name)
}

/// Turns this process into PostgreSQL, bound to the guard's life. Returns only on failure.
///
/// # Errors
/// The program cannot be run.
pub fn exec_postgres(args: &[OsString]) -> anyhow::Result<()> {
    anyhow::bail!("cannot run PostgreSQL with {} arguments: this build holds no guard", args.len())
}
