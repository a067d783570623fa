//! The parts of hasup that must be processes of their own, without the rest: `guard`, `exec-postgres`, and a rewind that kills
//! itself at a given step.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use hasup::guard::{GuardOptions, exec};
use hasup::postgres::rewind::{Rewind, RewindStep};
use hasup::postgres::{Layout, Programs, Source, SslMode, SslPaths};
use hasup::types::{Timeline, WalPosition};

fn fail(error: &dyn std::error::Error) -> ExitCode {
    let source = error.source().map(ToString::to_string).unwrap_or_default();
    eprintln!("{error}: {source}");
    ExitCode::FAILURE
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    match args.first().and_then(|arg| arg.to_str()) {
        Some("exec-postgres") => fail(&exec::run(&args[1..])),
        Some("guard") => {
            let (data_dir, pgdata) = (PathBuf::from(&args[2]), PathBuf::from(&args[4]));
            hasup::guard::run(&GuardOptions { data_dir, pgdata })
                .map_or_else(|error| fail(&error), |()| ExitCode::SUCCESS)
        }
        Some("rewind") => rewind(&args[1..]),
        _ => ExitCode::from(2),
    }
}

/// `rewind DATA_DIR PORT TIMELINE LSN FORK STEP`
fn rewind(args: &[OsString]) -> ExitCode {
    let text: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let layout = Layout::new(&text[0]);
    let (Ok(programs), Ok(port), Ok(timeline), Ok(lsn), Ok(fork)) =
        (Programs::find(None, None), text[1].parse(), text[2].parse(), text[3].parse(), text[4].parse())
    else {
        return ExitCode::from(2);
    };
    let file = |name: &str| layout.data_dir.join(name);
    let rewind = Rewind {
        source: Source { host: "127.0.0.1".to_owned(), addresses: Vec::new(), port, ssl_mode: SslMode::VerifyCa },
        ssl: SslPaths { certificate: file("node.crt"), key: file("node.key"), ca: file("ca.crt") },
        source_timeline: Timeline(4),
        fork,
        own: WalPosition { timeline: Timeline(timeline), lsn },
        label: "first".to_owned(),
        limit: Duration::from_secs(60),
    };
    let die_at = text[5].clone();
    let reached = |step: RewindStep| {
        if format!("{step:?}") == die_at {
            // In the middle of the step rather than before it: wherever this hits, the next run must cope.
            std::thread::spawn(|| {
                std::thread::park_timeout(Duration::from_millis(15));
                let _dies = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
            });
        }
        Ok(())
    };
    let Ok(runtime) = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() else {
        return ExitCode::FAILURE;
    };
    let result = runtime.block_on(rewind.run_observed(&programs, &layout, reached));
    if !die_at.is_empty() {
        // It was faster than its death.
        std::thread::park_timeout(Duration::from_secs(1));
    }
    result.map_or_else(|error| fail(&error), |_| ExitCode::SUCCESS)
}
