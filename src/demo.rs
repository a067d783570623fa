//! Three nodes on 127.0.0.1, 127.0.0.2 and 127.0.0.3: separate processes that share no directory, with production defaults.
//!
//! The demonstration is their operator and their supervisor, nothing more: it types the commands that the README tells, and
//! starts a daemon that ended again, as systemd would. No node can tell that it is part of one.

mod scene;
mod smoke;
mod table;

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::chaos::on_own_runtime;
use scene::Scene;
pub use smoke::{BenchArgs, FaultKind};

/// Run three nodes on this machine's loopback addresses
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Play four faults under a steady writer, judge them, and end with one line of JSON
    #[arg(long)]
    pub smoke: bool,
    /// Print nothing but JSON on standard output; progress goes to standard error
    #[arg(long)]
    pub json: bool,
    /// Folder to work in, made when absent; short, for PostgreSQL's sockets lie in it [default: a new one under /tmp]
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Keep the folder with logs and journals at the end
    #[arg(long)]
    pub keep: bool,
    /// Options of the cluster, as check_ttl_multiplier=0.5
    #[arg(long, value_name = "K=V")]
    pub options: Vec<String>,
}

/// Where progress is told.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Progress {
    to_stderr: bool,
}

impl Progress {
    /// Tells one line. A reader that has gone is no reason to leave processes behind, so errors are ignored.
    pub(crate) fn line(self, text: &str) {
        if self.to_stderr {
            let _ = writeln!(std::io::stderr(), "{text}");
        } else {
            let _ = writeln!(std::io::stdout(), "{text}");
        }
    }
}

/// Runs the demonstration and returns the process's exit status: 0, or 1 where `--smoke` found a promise broken.
///
/// It brings its own runtime on its own thread, so it may be called from anywhere.
///
/// # Errors
/// When the cluster does not form, or something of the machine is missing. Nothing is left behind either way.
pub fn main(args: DemoArgs) -> anyhow::Result<u8> {
    on_own_runtime(async move {
        let progress = Progress { to_stderr: args.json };
        let mut stop = Stop::new()?;
        let mut scene = Scene::set_up(args.dir.as_deref(), args.keep, progress)?;
        let mut last_line = None;
        let result = tokio::select! {
            result = play(&args, &mut scene, &mut last_line, progress) => result,
            () = stop.asked() => Ok(0),
        };
        let status = tear_down(scene, result, progress).await;
        if let Some(line) = last_line {
            println!("{line}");
        }
        status
    })
}

/// Measures the write gap of one fault many times, and returns the process's exit status.
///
/// # Errors
/// As [`main`].
pub fn bench(args: BenchArgs) -> anyhow::Result<u8> {
    on_own_runtime(async move {
        let progress = Progress { to_stderr: args.json };
        let mut stop = Stop::new()?;
        let mut scene = Scene::set_up(args.dir.as_deref(), args.keep, progress)?;
        let result = tokio::select! {
            result = smoke::bench(&args, &mut scene, progress) => result,
            () = stop.asked() => Ok(1),
        };
        tear_down(scene, result, progress).await
    })
}

async fn tear_down(scene: Scene, result: anyhow::Result<u8>, progress: Progress) -> anyhow::Result<u8> {
    progress.line("stopping the three nodes");
    // A failure's logs are worth more than a tidy /tmp.
    let left = scene.tear_down(result.is_err() || matches!(result, Ok(status) if status != 0), progress).await;
    let status = result?;
    left.context("the demonstration ended and could not tidy up")?;
    Ok(status)
}

async fn play(
    args: &DemoArgs,
    scene: &mut Scene,
    last_line: &mut Option<String>,
    progress: Progress,
) -> anyhow::Result<u8> {
    let formed = scene.form(&args.options, progress).await;
    if !args.smoke {
        formed?;
        return table::show(scene, progress).await;
    }
    // Whatever happens, the last line is the report.
    let report = match formed {
        Ok(()) => smoke::run(scene, progress).await,
        Err(error) => {
            progress.line(&format!("the cluster did not form: {error:#}"));
            smoke::Report::of_nothing()
        }
    };
    *last_line = Some(serde_json::to_string(&report)?);
    Ok(u8::from(!report.ok))
}

/// SIGINT, SIGTERM and SIGHUP: each ends the demonstration in order.
struct Stop([tokio::signal::unix::Signal; 3]);

impl Stop {
    fn new() -> anyhow::Result<Self> {
        let await_one = |kind| signal(kind).context("await signals");
        Ok(Self([
            await_one(SignalKind::interrupt())?,
            await_one(SignalKind::terminate())?,
            await_one(SignalKind::hangup())?,
        ]))
    }

    async fn asked(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
