//! The composition root.

use std::collections::BTreeMap;
use std::ffi::OsString;

use serde::{Deserialize, Serialize};

use crate::config::{Config, Secret};

/// How a node begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begin {
    /// As a member that it already is.
    Run,
    /// As the first node of a new cluster.
    Start {
        /// Options of the cluster, names and values as written and already checked.
        options: BTreeMap<String, String>,
    },
    /// As a further node.
    Join {
        /// Members to ask, as `host:port` of their peer port, in the order to try.
        targets: Vec<String>,
        /// What admits it.
        #[serde(serialize_with = "Secret::serialize_exposed")]
        token: Secret,
        /// Options that must agree with the cluster's.
        options: BTreeMap<String, String>,
    },
}

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
