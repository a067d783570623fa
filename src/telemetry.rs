//! Logs: to standard error, so that the journal or whoever supervises the process keeps them.

use std::fmt;
use std::io::{self, IsTerminal};

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FmtSpan, Format, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::config::{LogConfig, LogFormat};
use crate::sys::journal::{self, Priority};

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
/// Lines that the journal reads carry no time and no colour but their priority: the journal stamps them itself.
///
/// # Errors
/// The filter cannot be read, or logs were set up before.
pub fn init(log: &LogConfig) -> Result<(), TelemetryError> {
    let filter = EnvFilter::try_new(with_quiet_libraries(&log.level))
        .map_err(|source| TelemetryError::Filter { level: log.level.clone(), source })?
        // The store's own chatter says nothing to an operator.
        .add_directive("sled=warn".parse().expect("a constant directive is well formed"));
    let in_journal = journal::reads_stderr();
    let colour = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(colour && !in_journal);
    let done = match (log.format, in_journal) {
        (LogFormat::Json, true) => {
            let line = JournalLine(Format::default().json());
            tracing::subscriber::set_global_default(lines.json().event_format(line).finish())
        }
        (LogFormat::Json, false) => tracing::subscriber::set_global_default(lines.json().finish()),
        (LogFormat::Text, true) => {
            let line = JournalLine(Format::default().without_time().with_level(false).with_ansi(false));
            tracing::subscriber::set_global_default(lines.event_format(line).finish())
        }
        (LogFormat::Text, false) => tracing::subscriber::set_global_default(lines.finish()),
    };
    done.map_err(TelemetryError::Twice)
}

/// A line as the journal takes it: systemd reads the priority in front and keeps it apart, for `journalctl -p warning`.
struct JournalLine<F>(F);

impl<F, S, N> FormatEvent<S, N> for JournalLine<F>
where
    F: FormatEvent<S, N>,
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut out: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut text = String::new();
        self.0.format_event(context, Writer::new(&mut text), event)?;
        out.write_str(&journal::stamped(priority(*event.metadata().level()), &text))
    }
}

fn priority(level: Level) -> Priority {
    match level {
        Level::ERROR => Priority::Error,
        Level::WARN => Priority::Warning,
        Level::INFO => Priority::Info,
        Level::DEBUG | Level::TRACE => Priority::Debug,
    }
}

/// Raft tells each of its steps as news, and warns of each heartbeat that a dead peer does not answer; what of it matters to an
/// operator hasup says itself, and that Raft has stopped once, not for each call of a peer. A filter that names targets is
/// taken as it is.
fn with_quiet_libraries(level: &str) -> String {
    if level.contains('=') {
        level.to_owned()
    } else {
        format!("{level},openraft=error,openraft::raft::raft_inner=off,sled=warn")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_line_for_the_journal_begins_with_its_priority() {
        let lines = Lines::default();
        let kept = lines.clone();
        let plain = Format::default().without_time().with_level(false).with_target(false).with_ansi(false);
        let told = tracing_subscriber::fmt()
            .with_max_level(Level::TRACE)
            .with_writer(move || kept.clone())
            .event_format(JournalLine(plain))
            .finish();
        tracing::subscriber::with_default(told, || {
            tracing::error!("a person must look");
            tracing::warn!("first\nsecond");
            tracing::info!(by = "x", "changed");
            tracing::debug!("the rest");
            tracing::trace!("of it");
        });
        let told = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let expected =
            ["<3>a person must look", "<4>first", "<4>second", "<6>changed by=\"x\"", "<7>the rest", "<7>of it"];
        assert_eq!(told.lines().collect::<Vec<_>>(), expected);
    }
}
