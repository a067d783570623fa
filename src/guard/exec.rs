//! The step between guard and PostgreSQL: `hasup exec-postgres` ties its own life to the guard's, then becomes PostgreSQL.
//!
//! The kernel forgets a parent-death signal when the user changes, so it is set here, after the guard's spawn has dropped
//! privileges, and it is sent when the *thread* that forked ends, which is the guard's only one.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal, setsid};

use super::pid_file;
use crate::sys::fs::write_volatile;

/// PostgreSQL could not be started.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The arguments are not those that the guard gives.
    #[error(
        "exec-postgres is started by `hasup guard` alone, as: exec-postgres <guard's pid> <mark> <program> <arguments…>"
    )]
    Usage,
    /// The guard ended before PostgreSQL began.
    #[error("the guard that ordered PostgreSQL is gone, so nothing is started; the daemon starts a new guard")]
    GuardGone,
    /// The kernel refused the tie to the guard.
    #[error("PostgreSQL cannot be tied to its guard's life, so it is not started")]
    Tie(#[source] io::Error),
    /// The program could not be run.
    #[error("run {program}")]
    Run {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Becomes PostgreSQL: `args` are the guard's process id, the file for its own, the program and its arguments. Returns only on failure.
pub fn run(args: &[OsString]) -> ExecError {
    let guard = args.first().and_then(|arg| arg.to_str()?.parse::<i32>().ok());
    let (Some(guard), Some(mark), Some(program)) = (guard, args.get(1), args.get(2)) else {
        return ExecError::Usage;
    };
    // A session of its own: a Ctrl-C in the guard's terminal is none of PostgreSQL's business. Fails only where it has one.
    let _already_leader = setsid();
    if let Err(error) = set_parent_process_death_signal(Some(Signal::QUIT)) {
        return ExecError::Tie(error.into());
    }
    // The guard may have died before the tie was made.
    if getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(guard) {
        return ExecError::GuardGone;
    }
    // This process id is PostgreSQL's, and its file in the data directory will name it.
    pid_file::mark(Path::new(mark));
    // The guard is the last that the kernel should choose, PostgreSQL's postmaster comes before it, backends before both.
    let _best_effort = write_volatile(Path::new("/proc/self/oom_score_adj"), b"-500");
    let source = Command::new(program)
        .args(&args[3..])
        .env("LC_ALL", "C")
        .env("PG_OOM_ADJUST_FILE", "/proc/self/oom_score_adj")
        .env("PG_OOM_ADJUST_VALUE", "0")
        .exec();
    ExecError::Run { program: program.to_string_lossy().into_owned(), source }
}
