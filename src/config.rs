//! Text in, checked settings out. Pure: strings and facts come in as values, nothing here reads a file or the environment.
//!
//! Layers, the later ones win: defaults, the node file, what `start` or `join` was told on its command line and remembered in
//! the data directory, `HASUP_*` in the environment, flags of this command. What was remembered yields to the node file where that has
//! been edited since: it keeps what the file said then. [`load`] gathers them, checks everything and
//! returns either a [`Config`], in which no invalid value can exist, or every problem at once.
//!
//! The file is walked by the table of settings instead of a serde struct that denies unknown keys: serde stops at the first
//! problem, and an operator wants all of them.

mod check;
mod defaults;
mod host;
mod owned;
mod raw;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Serialize, Serializer};
use zeroize::Zeroize;

pub use check::{Effective, Facts, Loaded, load};
pub use defaults::{Kind, SETTINGS, Setting, setting};
pub use host::{Address, Host, HostError};
pub use owned::is_owned;
pub use raw::{Layer, Origin, Problem, Problems, Sources, VARIABLES_OF_COMMANDS, peek, render, render_remembered};

use crate::types::NodeName;

/// Everything a node is told by its own files, environment and command line. What all nodes share lives in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The node's name.
    pub node_name: NodeName,
    /// Address that peers and clients use.
    pub host: Host,
    /// Where the node keeps its state.
    pub data_dir: PathBuf,
    /// Where its admin socket is.
    pub run_dir: PathBuf,
    /// The operating system's user that hasup and PostgreSQL run as.
    pub user: String,
    /// Whether the node only votes and holds no PostgreSQL.
    pub is_witness: bool,
    /// Raft, files, joins (TCP) and pulses (UDP).
    pub peer: Endpoint,
    /// The API over HTTP.
    pub api: Endpoint,
    /// PostgreSQL.
    pub postgres: PostgresConfig,
    /// Logs.
    pub log: LogConfig,
    /// Credentials that a load balancer must show on `/api/v3.1/status`; without them that endpoint is open.
    pub balancer: Option<BalancerConfig>,
}

impl Config {
    /// Returns the path of the admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.run_dir.join(format!("{}.sock", self.node_name))
    }
}

/// Where something listens and under which addresses others reach it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Hosts to bind, at least one.
    pub listen: Vec<Host>,
    /// The port to bind.
    pub port: u16,
    /// Where others reach it, in the order to try; at least one.
    pub advertise: Vec<Address>,
}

/// What the node is told about its PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresConfig {
    /// Folder of its programs; found by version where absent.
    pub bin_dir: Option<PathBuf>,
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Hosts that PostgreSQL binds, at least one; `*` is one of them where all are meant.
    pub listen: Vec<Host>,
    /// The port that PostgreSQL binds.
    pub port: u16,
    /// Where clients and standbys reach it.
    pub advertise: Address,
    /// The most that a copy of the database to this node takes in a second, in KiB; no limit where absent.
    pub copy_rate_kib: Option<u32>,
    /// Further settings of this node's server, name and value as in `postgresql.conf`.
    pub settings: BTreeMap<String, String>,
}

/// What is logged and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// A level or a filter like `info,hasup::pulse=debug`.
    pub level: String,
    /// The form of a line.
    pub format: LogFormat,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people and the journal.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Where the credentials of a load balancer come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalancerConfig {
    /// The user's name.
    pub user: String,
    /// The file whose first line is the password.
    pub password_file: PathBuf,
}

/// A text that is never printed: not by `Debug`, not in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// Returns the text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }

    /// Writes the text itself: for a field that must carry the secret to whoever asked for it.
    ///
    /// # Errors
    /// What the serializer reports.
    pub fn serialize_exposed<S: Serializer>(secret: &Self, serializer: S) -> Result<S::Ok, S::Error> {
        secret.0.serialize(serializer)
    }
}

impl<'de> serde::Deserialize<'de> for Secret {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}
