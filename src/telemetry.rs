//! Logs: to standard error, so that the journal or whoever supervises the process keeps them.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::config::{LogConfig, LogFormat};

/// Logs cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error(
        "log.level `{level}` cannot be read. Nothing was started. Use a level like `info` or a filter like `info,hasup=debug`"
    )]
    Filter {
        /// The filter as written.
        level: String,
        /// Why.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logs were set up before.
    #[error("logs were set up twice")]
    Twice(#[source] tracing::subscriber::SetGlobalDefaultError),
}

/// Sends all logs of this process to standard error, in the form that `log` asks for. To be called once.
///
/// Under systemd, lines carry no time and no colour: the journal stamps them itself.
///
/// # Errors
/// The filter cannot be read, or logs were set up before.
pub fn init(log: &LogConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(with_quiet_libraries(&log.level))
        .map_err(|source| TelemetryError::Filter { level: log.level.clone(), source })?
        // The store's own chatter says nothing to an operator.
        .add_directive("sled=warn".parse().expect("a constant directive is well formed"));
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(colour && !in_journal);
    let done = match (log.format, in_journal) {
        (LogFormat::Json, _) => tracing::subscriber::set_global_default(lines.json().finish()),
        (LogFormat::Text, true) => tracing::subscriber::set_global_default(lines.without_time().finish()),
        (LogFormat::Text, false) => tracing::subscriber::set_global_default(lines.finish()),
    };
    done.map_err(TelemetryError::Twice)
}

/// Raft tells each of its steps as news; what of it matters to an operator hasup says itself. A filter that names targets is
/// taken as it is.
fn with_quiet_libraries(level: &str) -> String {
    if level.contains('=') { level.to_owned() } else { format!("{level},openraft=error,sled=warn") }
}
