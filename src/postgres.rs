//! PostgreSQL on this node: programs, settings, what it says, and the steps that move it.
//!
//! [`Postgres`] is the adapter; it is told what to do and never decides. Settings are rendered by pure functions in
//! [`settings`]; histories of timelines are compared by pure functions in [`history`]. PostgreSQL itself is started and
//! killed by the guard alone (`guard/`).
//!
//! Decisions and their price:
//! - PostgreSQL always starts as a standby (`standby.signal`) and is then promoted; the file is put back right after, so that
//!   nobody can start an old primary writable. Price: a fresh cluster begins on timeline 2.
//! - hasup's settings live outside the data directory and are given by `-c config_file=`; copies and rewinds, which bring the
//!   other node's files, cannot change them. `postgresql.auto.conf` could: lines that contradict are taken out before a start.
//! - Of connections and the like, a start takes as many as the data demand, whatever is set: each start is one in recovery. Price: such a
//!   number never becomes less once a primary has had it ([`Postgres::prepare_start`]).
//! - No relay for WAL: standbys connect directly, by a client certificate whose copy belongs to one generation. The bar takes
//!   that copy away first (L9).
//! - Timeline numbers are reserved (L13): placeholder history files fill the numbers between. Followers on an older timeline
//!   ask their primary for *every* history file in between and cannot follow when one is missing, so each node keeps the whole
//!   row of numbers below its own; those above it are removed before a start, else PostgreSQL would look for that timeline.

pub mod adopt;
pub mod basebackup;
pub mod client;
pub mod collation;
pub mod conf_file;
pub mod connections;
pub mod control;
pub mod controldata;
pub mod history;
pub mod initdb;
pub mod layout;
pub mod log;
pub mod observe;
pub mod position;
pub mod programs;
pub mod provision;
pub mod recovery;
mod required_settings;
pub mod rewind;
mod salvage;
pub mod settings;
pub mod slots;

pub use client::Session;
pub use connections::Connections;
pub use control::{Postgres, PostgresSetup};
pub use controldata::{ControlData, ControlState};
pub use history::{Divergence, TimelineHistory, diverged};
pub use layout::Layout;
pub use observe::{PostgresFacts, WriteProbe};
pub use programs::Programs;
pub use recovery::ReplaySpan;
pub use settings::{Follow, Reader, Source, SslMode, SslPaths, StaticSettings, SyncNames};

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::exec::ExecError;
use crate::types::{Lsn, Timeline};

/// Why the caller of `promote` did not trigger it: its own error, kept as the source.
pub type TriggerError = Box<dyn std::error::Error + Send + Sync>;

/// PostgreSQL did not do what was asked, or could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum PgError {
    /// Its programs are missing or of another version.
    #[error(transparent)]
    Programs(#[from] programs::ProgramsError),
    /// A file could not be read or written.
    #[error("{action} {path}")]
    File {
        /// What was tried, like `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file holds what it should not.
    #[error("{path} is not readable as {what}: {detail}")]
    Malformed {
        /// The file or program.
        path: PathBuf,
        /// What it should be.
        what: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// No connection could be made, or it was lost.
    #[error("PostgreSQL does not accept the connection needed to {what}")]
    Connect {
        /// What it was for.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: tokio_postgres::Error,
    },
    /// It answered with an error.
    #[error("PostgreSQL refused to {what}")]
    Query {
        /// What was asked.
        what: &'static str,
        /// Its answer.
        #[source]
        source: tokio_postgres::Error,
    },
    /// No answer came in time: it may still be done.
    #[error("PostgreSQL did not {what} within {limit:?}; it may still do so")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// It answered something that makes no sense here.
    #[error("PostgreSQL answered unexpectedly when asked to {what}: {detail}")]
    Answer {
        /// What was asked.
        what: &'static str,
        /// What came.
        detail: String,
    },
    /// A helper program failed.
    #[error(transparent)]
    Tool(#[from] ExecError),
    /// Nobody told it to become primary (L15): it goes on as a standby.
    #[error("PostgreSQL was not told to become primary, and goes on as a standby")]
    NotTriggered(#[source] TriggerError),
    /// The position is not certain yet (L10): ask again.
    #[error("the end of PostgreSQL's log is not certain yet: {why}; nothing is stated, and asked again")]
    NotYet {
        /// What is missing.
        why: &'static str,
    },
    /// Two histories with one name: only a copy makes them one.
    #[error(
        "this node's log and the active node's parted at {fork}, and both call what follows timeline {timeline}: somebody promoted one \
         of them past hasup. pg_rewind cannot tell them apart: hasup copies the database and keeps this node's tail in salvage/. Find out who \
         uses pg_ctl promote"
    )]
    SameTimeline {
        /// The number that both reached.
        timeline: Timeline,
        /// Where they parted.
        fork: Lsn,
    },
    /// Promotion made another timeline than the reserved one (L13): the node must resign.
    #[error("promotion made timeline {made} instead of the reserved {reserved}: this node resigns, another is chosen")]
    WrongTimeline {
        /// The reserved number.
        reserved: Timeline,
        /// The number it got.
        made: Timeline,
    },
    /// Something must not be done in the state that PostgreSQL is in.
    #[error("{0}")]
    Refused(String),
    /// Too little space.
    #[error(
        "{path} has {free} MiB free, {needed} MiB are needed: nothing was touched; make room and it goes on by itself"
    )]
    NoSpace {
        /// The folder.
        path: PathBuf,
        /// What is free, in MiB.
        free: u64,
        /// What is needed, in MiB.
        needed: u64,
    },
}

/// Returns a function that says what was done to which file when it failed.
pub(crate) fn file_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PgError {
    let path = path.to_owned();
    move |source| PgError::File { action, path, source }
}
