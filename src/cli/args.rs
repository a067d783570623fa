//! The tree of commands and flags.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

/// Keep a three-node PostgreSQL cluster alive
#[derive(Debug, Parser)]
#[command(name = "hasup", version, propagate_version = true, arg_required_else_help = true, max_term_width = 110)]
pub struct Cli {
    /// How to reach a node and how to answer.
    #[command(flatten)]
    pub reach: Reach,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How to reach a node and how to answer.
#[derive(Debug, Clone, Default, Args)]
pub struct Reach {
    /// Answer in JSON
    #[arg(long, global = true)]
    pub json: bool,
    /// Ask these nodes, as host or host:port of their API, in order; example: db1,db2:7401
    #[arg(long, global = true, env = "HASUP_TARGET", value_delimiter = ',', value_name = "ADDR")]
    pub target: Vec<String>,
    /// Read the API token for other nodes from this file; default: api.token in the data directory
    #[arg(long, global = true, env = "HASUP_API_TOKEN_FILE", value_name = "FILE")]
    pub api_token_file: Option<PathBuf>,
    /// Check other nodes by this certificate of the cluster's authority; default: tls/ca.crt in the data directory
    #[arg(long, global = true, env = "HASUP_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Read the node's settings from this file; default: /etc/hasup/hasup.toml
    #[arg(long, global = true, env = "HASUP_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the node keeps its state; default: /var/lib/hasup
    #[arg(long, global = true, value_name = "DIR")]
    pub data_dir: Option<String>,
    /// Where the admin socket is; default: /run/hasup
    #[arg(long, global = true, value_name = "DIR")]
    pub run_dir: Option<String>,
    /// Name of this node; default: first label of the host name
    #[arg(long, global = true, value_name = "NAME")]
    pub node_name: Option<String>,
}

/// Settings of this node that the command line may give; `start` and `join` remember them.
#[derive(Debug, Clone, Default, Args)]
pub struct NodeFlags {
    /// Address that peers and clients use; default: the address of the default route
    #[arg(long, value_name = "ADDR")]
    pub host_ip: Option<String>,
    /// Port for peers and pulses; default: 7400
    #[arg(long, value_name = "PORT")]
    pub peer_port: Option<String>,
    /// Port of the API; default: 7401
    #[arg(long, value_name = "PORT")]
    pub api_port: Option<String>,
    /// Port of PostgreSQL; default: 5432
    #[arg(long, value_name = "PORT")]
    pub postgres_port: Option<String>,
    /// PostgreSQL's data directory; default: pgdata in the data directory
    #[arg(long, alias = "pgdata", value_name = "DIR")]
    pub postgres_data_dir: Option<String>,
    /// Folder of PostgreSQL's programs; default: found by version
    #[arg(long, value_name = "DIR")]
    pub postgres_bin_dir: Option<String>,
    /// Most that a copy of the database to this node takes in a second; example: 50MB
    #[arg(long, value_name = "RATE")]
    pub postgres_copy_rate: Option<String>,
    /// User that hasup and PostgreSQL run as; default: postgres
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Only vote, hold no PostgreSQL
    #[arg(long)]
    pub witness: bool,
    /// Level or filter of the log; default: info
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Form of the log, text or json; default: text
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
}

/// How `start` and `join` begin.
#[derive(Debug, Clone, Default, Args)]
pub struct BeginFlags {
    /// Options of the cluster; example: check_ttl_multiplier=0.5,check_fail_fast=false
    #[arg(long, value_name = "K=V")]
    pub options: Vec<String>,
    /// Run here until stopped, without systemd
    #[arg(long)]
    pub foreground: bool,
    /// Do not wait until the node is up
    #[arg(long)]
    pub no_wait: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start a new cluster with this node as its first
    Start {
        /// Take over the database in this data directory of PostgreSQL instead of making one; example:
        /// /var/lib/postgresql/15/main
        #[arg(long, value_name = "DIR", conflicts_with = "postgres_data_dir")]
        adopt: Option<String>,
        /// Stop the server that runs in the adopted directory: its clients lose their connections for some seconds
        #[arg(long, requires = "adopt")]
        stop_running: bool,
        /// The node.
        #[command(flatten)]
        node: NodeFlags,
        /// The way it begins.
        #[command(flatten)]
        begin: BeginFlags,
    },
    /// Join this node to the cluster of any of its members
    Join {
        /// Members to ask, as host or host:port of their peer port; example: 10.0.0.1,db2:7400
        #[arg(required = true, value_delimiter = ',', value_name = "ADDR")]
        members: Vec<String>,
        /// Join token; better by --token-file, HASUP_TOKEN or the prompt, as arguments are seen by every user
        #[arg(long, env = "HASUP_TOKEN", hide_env_values = true, conflicts_with = "token_file")]
        token: Option<String>,
        /// File that holds the join token
        #[arg(long, value_name = "FILE")]
        token_file: Option<PathBuf>,
        /// The node.
        #[command(flatten)]
        node: NodeFlags,
        /// The way it begins.
        #[command(flatten)]
        begin: BeginFlags,
    },
    /// Run the daemon of this node
    Run {
        /// The node.
        #[command(flatten)]
        node: NodeFlags,
        /// Accepted for symmetry: `run` always stays in the foreground
        #[arg(long)]
        foreground: bool,
    },
    /// Run the guard of this node: it owns PostgreSQL and the fence
    Guard {
        /// The node.
        #[command(flatten)]
        node: NodeFlags,
    },
    /// Show the cluster, and what a failure right now would cost
    Status,
    /// List, change or remove nodes
    Nodes {
        /// What to do.
        #[command(subcommand)]
        command: NodesCommand,
    },
    /// Make another node active, in order
    Switchover {
        /// The node; default: the fittest
        #[arg(long, value_name = "NODE")]
        to: Option<String>,
    },
    /// Make a node active although the active one did not hand over
    Promote {
        /// The node
        node: String,
        /// Even where acknowledged commits may be lost
        #[arg(long)]
        force: bool,
    },
    /// Take this node out of the cluster
    Leave,
    /// Stop this node and delete its state and its database; refused while it runs as a member of a cluster
    Destroy {
        /// Really delete
        #[arg(long)]
        yes: bool,
    },
    /// List or change the cluster's options
    Options {
        /// What to do.
        #[command(subcommand)]
        command: OptionsCommand,
    },
    /// Make, list or end join tokens
    Token {
        /// What to do.
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Show what the cluster did and why
    History {
        /// At most so many events, the newest
        #[arg(long, default_value_t = 50)]
        limit: u32,
    },
    /// Judge the cluster for monitoring: exit 0 ok, 1 warning, 2 critical, 3 unknown
    Check,
    /// Check this node's settings
    Config {
        /// What to do.
        #[command(subcommand)]
        command: ConfigCommand,
    },
    /// Print how clients connect to PostgreSQL
    Dsn,
    /// Start three nodes on this machine and show them
    Demo(crate::demo::DemoArgs),
    /// Break a cluster and judge it
    Chaos(crate::chaos::ChaosArgs),
    /// Export or import the cluster's authority
    Ca {
        /// What to do.
        #[command(subcommand)]
        command: CaCommand,
    },
    /// Read and write the replicated key store
    Kv {
        /// What to do.
        #[command(subcommand)]
        command: KvCommand,
    },
    /// Print a completion script
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Turn this process into PostgreSQL, bound to the guard's life
    #[command(hide = true)]
    ExecPostgres(Passed),
}

/// Words that another part reads.
#[derive(Debug, Clone, Default, Args)]
#[command(disable_help_flag = true)]
pub struct Passed {
    /// Words that another part reads
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub words: Vec<OsString>,
}

/// `hasup nodes`.
#[derive(Debug, Subcommand)]
pub enum NodesCommand {
    /// List the nodes
    List,
    /// Remove a node that is not active
    Remove {
        /// The node
        node: String,
    },
    /// Change how a node is treated
    Set {
        /// The node
        node: String,
        /// priority=N or nofailover=true|false
        #[arg(required = true, value_name = "K=V")]
        changes: Vec<String>,
    },
}

/// `hasup options`.
#[derive(Debug, Subcommand)]
pub enum OptionsCommand {
    /// List the options
    List,
    /// Change options: all of these or none
    Set {
        /// Like check_ttl_multiplier=0.5
        #[arg(required = true, value_name = "K=V")]
        changes: Vec<String>,
    },
}

/// `hasup token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a join token and print it
    Create {
        /// How long it admits; example: 30m
        #[arg(long, default_value = "24h", value_parser = parse_span)]
        ttl: Duration,
    },
    /// List the join tokens, without their secrets
    List,
    /// End a join token
    Revoke {
        /// Its public part, as `token list` prints it
        id: String,
    },
}

/// `hasup config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting in effect and where it comes from, or all that is wrong
    Check {
        /// The node.
        #[command(flatten)]
        node: NodeFlags,
    },
}

/// `hasup ca`.
#[derive(Debug, Subcommand)]
pub enum CaCommand {
    /// Print certificate and key of the authority: whoever holds them can make members
    Export,
    /// Replace the authority by one exported before
    Import {
        /// The file
        file: PathBuf,
    },
}

/// `hasup kv`.
#[derive(Debug, Subcommand)]
pub enum KvCommand {
    /// Print the value of a key
    Get {
        /// The key
        key: String,
        /// Take what the node has, without asking a majority: at once and in a minority too, but perhaps old
        #[arg(long)]
        stale: bool,
    },
    /// Write a key
    Put {
        /// The key
        key: String,
        /// The value; - reads standard input
        value: String,
        /// A number that is kept beside the value
        #[arg(long, default_value_t = 0)]
        flags: u64,
        /// Write only while the key's modify index is this; 0 for an absent key
        #[arg(long, value_name = "INDEX")]
        cas: Option<u64>,
    },
    /// Delete a key
    Delete {
        /// The key
        key: String,
        /// Delete all keys that begin with it
        #[arg(long)]
        recurse: bool,
        /// Delete only while the key's modify index is this
        #[arg(long, value_name = "INDEX", conflicts_with = "recurse")]
        cas: Option<u64>,
    },
    /// List the keys that begin with a prefix
    List {
        /// The prefix
        #[arg(default_value = "")]
        prefix: String,
        /// Take what the node has, without asking a majority
        #[arg(long)]
        stale: bool,
    },
    /// Print a key as it is, then each time it changes
    Watch {
        /// The key
        key: String,
        /// Watch all keys that begin with it: prints all of them, then those that change; with --json, each line has all keys and the names of those that changed
        #[arg(long)]
        prefix: bool,
        /// End after so many answers, the first one included; default: never
        #[arg(long)]
        count: Option<u64>,
    },
}

/// Reads a span like `30s`, `10m`, `2h` or `7d`.
fn parse_span(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86400,
        _ => return Err("use a whole number with s, m, h or d, like 30m".to_owned()),
    };
    let count: u64 = digits.parse().map_err(|_| "use a whole number with s, m, h or d, like 30m".to_owned())?;
    match count.checked_mul(unit).filter(|seconds| (1..=366 * 86400).contains(seconds)) {
        Some(seconds) => Ok(Duration::from_secs(seconds)),
        None => Err("use something between 1s and 366d".to_owned()),
    }
}
