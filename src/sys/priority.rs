//! What a thread is given whose lateness ends a lease: a place before all ordinary threads, and memory that is never paged out.
//!
//! Both need rights that the units give (`LimitRTPRIO`, `LimitMEMLOCK`). Without them everything works, only later under load.

use std::ffi::OsString;
use std::io;
use std::time::Duration;

use rustix::mm::{MlockAllFlags, mlockall};
use rustix::process::{Pid, Resource, getrlimit};

use super::exec::Tool;

/// util-linux's program for scheduling policies: the call itself is not to be had without unsafe code.
const CHRT: &str = "chrt";
/// It answers at once.
const CHRT_LIMIT: Duration = Duration::from_secs(10);

/// Returns the program that puts `thread` into the round-robin class at `priority`, from 1 to 99. What the thread starts later begins
/// in the ordinary class.
pub fn real_time(thread: Pid, priority: u8) -> Tool {
    let words = ["--rr", "--reset-on-fork", "--pid"].map(str::to_owned);
    let numbers = [priority.to_string(), thread.as_raw_nonzero().to_string()];
    Tool::new(CHRT, words.into_iter().chain(numbers).map(OsString::from), CHRT_LIMIT)
}

/// Keeps all that the process has in memory, so that not even a stuck disk holds it up; read in now where it never was.
///
/// # Errors
/// The process may not lock so much.
pub fn lock_all_present() -> io::Result<()> {
    Ok(mlockall(MlockAllFlags::CURRENT)?)
}

/// Keeps what the process uses in memory from its first use on, now and later.
///
/// # Errors
/// The process may not lock as much as it likes: with a limit, an allocation would fail some day.
pub fn lock_all_used() -> io::Result<()> {
    if getrlimit(Resource::Memlock).current.is_some() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the limit of locked memory is not infinite"));
    }
    Ok(mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT)?)
}
