//! Breaks a cluster and judges it, from outside.
//!
//! Everything here treats hasup as a black box: it starts processes of the binary, asks its endpoints and its PostgreSQL, and
//! believes only the journals of its own clients. Nothing of a node's inside is used, so that a defect of a node cannot
//! acquit itself.
//!
//! - Clients, each a process of its own with a journal: [`writer`] (unique rows), [`poller`] (role endpoints).
//! - The cluster under test: [`node`] (commands, supervisor), [`forming`], [`hosts`] (namespaces and their faults), [`view`],
//!   [`rows`], [`aside`], [`process`], [`machine`] (what this one lacks).
//! - The commands: [`run`] plays a schedule on a [`range`] of hosts, nodes and clients, [`replay`] that of a report; [`list`] tells what a
//!   schedule can say.
//! - Pure: [`journal`] (what clients saw, write gaps), [`checkers`], [`kinds`] (the table of faults), [`proof`] (did it bite),
//!   [`judgement`] (the verdict), [`timeline`], [`report`], [`html`] (its page), [`schedule`] (what is done when), [`random`] (one by
//!   chance), [`dsn`].

pub mod aside;
pub mod checkers;
pub mod client;
pub mod dsn;
pub mod forming;
pub mod hosts;
mod html;
pub mod http;
pub mod journal;
pub mod judgement;
pub mod kinds;
pub mod list;
pub mod machine;
pub mod node;
pub mod poller;
pub mod process;
pub mod proof;
pub mod random;
mod range;
pub mod recorder;
pub mod replay;
pub mod report;
pub mod rows;
pub mod run;
pub mod schedule;
pub mod timeline;
pub mod view;
pub mod writer;

use std::time::Duration;

/// Returns milliseconds with one decimal, as figures are printed.
#[must_use]
pub fn millis(span: Duration) -> f64 {
    (span.as_secs_f64() * 10_000.0).round() / 10.0
}

/// Returns whole milliseconds, as a report's times are told.
#[must_use]
pub fn whole_millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Breaks a cluster and judges it
#[derive(Debug, Clone, clap::Args)]
pub struct ChaosArgs {
    #[command(subcommand)]
    command: ChaosCommand,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum ChaosCommand {
    #[command(hide = true)]
    Writer(writer::WriterArgs),
    #[command(hide = true)]
    Poller(poller::PollerArgs),
    Run(run::RunArgs),
    Replay(replay::ReplayArgs),
    List(list::ListArgs),
    Bench(crate::demo::BenchArgs),
}

/// Runs a chaos command and returns the process's exit status.
///
/// It brings its own runtime on its own thread, so it may be called from anywhere, also within a runtime.
///
/// # Errors
/// When the command could not do what it is for; a verdict against the cluster is an exit status, not an error.
pub fn main(args: ChaosArgs) -> anyhow::Result<u8> {
    match args.command {
        ChaosCommand::Writer(args) => on_own_runtime(writer::run(args)),
        ChaosCommand::Poller(args) => on_own_runtime(poller::run(args)),
        ChaosCommand::Run(args) => on_own_runtime(run::run(args)),
        ChaosCommand::Replay(args) => on_own_runtime(replay::run(args)),
        ChaosCommand::List(args) => Ok(list::run(&args)),
        ChaosCommand::Bench(args) => crate::demo::bench(args),
    }
}

/// Runs `work` to its end on a thread with a runtime of its own.
///
/// That thread lives as long as the work, which matters to children that are to die with the thread that started them.
pub(crate) fn on_own_runtime<T: Send>(work: impl Future<Output = anyhow::Result<T>> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(work)
        });
        thread.join().map_err(|_| anyhow::anyhow!("a panic, told above, ended the work"))?
    })
}
