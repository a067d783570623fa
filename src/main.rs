//! The entry, in five phases: settings, logs, runtime, run, drain. The only place that ends the process.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use hasup::cli::{self, Cli, CliError, Daemon};
use hasup::{app, telemetry};
use tokio::runtime::{Builder, Runtime};

/// How long work on other threads may go on once the daemon has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);
/// Threads of the daemon beside those of pulses and Raft: PostgreSQL and clients mostly wait, and idle threads cost memory.
const WORKERS: usize = 2;

fn main() -> ExitCode {
    let cli = match cli::parse(std::env::args_os()) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    run(&cli).unwrap_or_else(|error| cli::report(&error, cli.reach.json))
}

fn run(cli: &Cli) -> Result<ExitCode, CliError> {
    match cli::prepare_daemon(cli)? {
        None => one_thread()?.block_on(cli::run_command(cli)),
        Some(Daemon::ExecPostgres { words }) => {
            app::exec_postgres(&words)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Daemon::Guard { config }) => {
            cli::drop_privileges(&config)?;
            telemetry::init(&config.log).context("set up logs")?;
            app::guard(&config)?;
            Ok(ExitCode::SUCCESS)
        }
        Some(service @ Daemon::Service { .. }) => {
            one_thread()?.block_on(cli::run_daemon(service))?;
            Ok(ExitCode::SUCCESS)
        }
        Some(Daemon::Node { config, begin, announce, notes }) => {
            cli::drop_privileges(&config)?;
            telemetry::init(&config.log).context("set up logs")?;
            let runtime = Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .enable_all()
                .build()
                .context("start the runtime")?;
            let ended = runtime.block_on(cli::run_daemon(Daemon::Node { config, begin, announce, notes }));
            runtime.shutdown_timeout(DRAIN_LIMIT);
            ended.map(|()| ExitCode::SUCCESS)
        }
    }
}

fn one_thread() -> Result<Runtime, CliError> {
    Ok(Builder::new_current_thread().enable_all().build().context("start the runtime")?)
}
