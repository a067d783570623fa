//! What daemon and guard say to each other: one JSON object a line over the stream, 24 bytes a datagram.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{BootTime, Generation};

/// The longest line either side accepts, in bytes.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

/// How PostgreSQL is started. It always starts as a standby: the guard refuses without `standby.signal`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StartSpec {
    /// The `postgres` program.
    pub program: PathBuf,
    /// Its arguments, data directory included.
    pub args: Vec<String>,
    /// The data directory: looked at for `standby.signal`, and every process working in it counts as PostgreSQL's.
    pub pgdata: PathBuf,
    /// The lock files of its sockets, that in the node's own folder first: what an earlier life of it left behind there is removed.
    #[serde(default)]
    pub socket_locks: Vec<PathBuf>,
    /// Where its output is appended to.
    pub log: PathBuf,
    /// User and group to run it as; needed where the guard runs as root, which PostgreSQL refuses.
    pub run_as: Option<(u32, u32)>,
}

/// How PostgreSQL is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopMode {
    /// In order (SIGINT): waits for the WAL senders. After `limit` it becomes `Immediate`.
    Fast {
        /// How long the orderly stop may take.
        limit: Duration,
    },
    /// At once (SIGQUIT); whatever is left after `kill_after` gets SIGKILL.
    Immediate {
        /// How long PostgreSQL has for leaving by itself.
        kill_after: Duration,
    },
}

/// The lease as the guard holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    /// The generation that may write.
    pub generation: Generation,
    /// When no process of PostgreSQL may be left.
    pub deadline: BootTime,
    /// How long before the deadline the fence begins.
    pub fence_lead: Duration,
}

/// A request of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Tells the status, which also follows each change unasked.
    Status,
    /// Starts PostgreSQL.
    Start(StartSpec),
    /// Sets the deadline of a generation.
    Arm(Lease),
    /// Promotes PostgreSQL under a generation; refused where that is not armed (L15).
    Promote(Generation),
    /// Forgets the deadline of a generation that has ended; refused while PostgreSQL runs.
    Disarm(Generation),
    /// Stops PostgreSQL.
    Stop(StopMode),
    /// Begins the fence now: SIGQUIT, then SIGKILL `kill_after` later or at the deadline, whichever comes first.
    Fence {
        /// How long PostgreSQL has for leaving by itself.
        kill_after: Duration,
    },
}

/// A request with a number, by which its answer is found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Call {
    /// Chosen by the caller.
    pub id: u64,
    /// What is asked.
    pub request: Request,
}

/// What the guard sends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Message {
    /// The present status: on connecting and after each change.
    Status(GuardStatus),
    /// The answer to a call: nothing, or why it was refused. The status after it has been sent before.
    Answer {
        /// The call's number.
        id: u64,
        /// Why it was refused, as one sentence for people.
        refused: Option<String>,
    },
}

/// A running postmaster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresProcess {
    /// Its process id.
    pub pid: u32,
    /// When the guard started it.
    pub since: BootTime,
}

/// How the last postmaster ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostgresExit {
    /// Its process id.
    pub pid: u32,
    /// Its exit status, where it exited by itself.
    pub code: Option<i32>,
    /// The signal that ended it, where one did.
    pub signal: Option<i32>,
    /// When the guard saw it.
    pub at: BootTime,
}

impl fmt::Display for PostgresExit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.code, self.signal) {
            (Some(code), _) => write!(f, "process {} exited with status {code}", self.pid),
            (None, Some(signal)) => write!(f, "process {} was killed by signal {signal}", self.pid),
            (None, None) => write!(f, "process {} is gone", self.pid),
        }
    }
}

/// A fence under way or done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceStatus {
    /// The generation that was armed, if one was.
    pub generation: Option<Generation>,
    /// When it began.
    pub begun: BootTime,
    /// When no process of PostgreSQL was left; absent while it goes on.
    pub complete: Option<BootTime>,
}

impl fmt::Display for FenceStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.generation {
            Some(generation) => write!(f, "the fence of generation {generation}")?,
            None => f.write_str("the fence of a PostgreSQL without a lease")?,
        }
        match self.complete {
            None => f.write_str(" has begun: PostgreSQL is killed"),
            Some(complete) => {
                let took = complete.since(self.begun).as_millis();
                write!(f, " is complete after {took} ms: no process of PostgreSQL is left")
            }
        }
    }
}

/// All that the guard knows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuardStatus {
    /// Counts changes of this guard's status.
    pub revision: u64,
    /// The guard's process id.
    pub guard_pid: u32,
    /// The postmaster, while it lives.
    pub postgres: Option<PostgresProcess>,
    /// Whether any process of PostgreSQL is left; "stopped" is its negation (L6).
    pub processes_left: bool,
    /// How the last postmaster ended.
    pub last_exit: Option<PostgresExit>,
    /// The armed lease.
    pub lease: Option<Lease>,
    /// The highest generation that was fenced: it is never armed again.
    pub fenced: Option<Generation>,
    /// The newest fence.
    pub fence: Option<FenceStatus>,
}

impl GuardStatus {
    /// Tells whether a fence has begun and is not complete.
    pub fn is_fencing(&self) -> bool {
        self.fence.is_some_and(|fence| fence.complete.is_none())
    }
}

const DATAGRAM_MAGIC: u64 = u64::from_be_bytes(*b"hasupdl1");

/// Returns the datagram that extends the deadline of `generation`.
pub fn encode_extension(generation: Generation, deadline: BootTime) -> [u8; 24] {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&DATAGRAM_MAGIC.to_be_bytes());
    bytes[8..16].copy_from_slice(&generation.0.to_be_bytes());
    bytes[16..].copy_from_slice(&deadline.0.to_be_bytes());
    bytes
}

/// Returns what a datagram asks for, or nothing where it is none of ours.
pub fn decode_extension(bytes: &[u8]) -> Option<(Generation, BootTime)> {
    let word = |at: usize| Some(u64::from_be_bytes(bytes.get(at..at + 8)?.try_into().ok()?));
    if bytes.len() != 24 || word(0)? != DATAGRAM_MAGIC {
        return None;
    }
    Some((Generation(word(8)?), BootTime(word(16)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guard_logs_are_sentences() {
        let ms = BootTime::from_millis;
        let exit = |code, signal| PostgresExit { pid: 7, code, signal, at: ms(1) }.to_string();
        assert_eq!(exit(None, Some(9)), "process 7 was killed by signal 9");
        assert_eq!(exit(Some(1), None), "process 7 exited with status 1");
        let fence = |generation, complete| FenceStatus { generation, begun: ms(10), complete }.to_string();
        assert_eq!(fence(Some(Generation(2)), None), "the fence of generation 2 has begun: PostgreSQL is killed");
        assert_eq!(
            fence(None, Some(ms(26))),
            "the fence of a PostgreSQL without a lease is complete after 16 ms: no process of PostgreSQL is left"
        );
    }

    #[test]
    fn extension_survives_the_way_and_hostile_bytes_are_refused() {
        let bytes = encode_extension(Generation(7), BootTime(99));
        assert_eq!(decode_extension(&bytes), Some((Generation(7), BootTime(99))));
        assert_eq!(decode_extension(&bytes[..23]), None);
        assert_eq!(decode_extension(&[0; 24]), None);
        assert_eq!(decode_extension(&[]), None);
    }
}
