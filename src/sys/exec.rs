//! Runs helper programs (base backup, rewind, initdb): own process group, a deadline, output streamed, nothing left behind.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::Command;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

/// A helper program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It could not be started.
    #[error("run {program}")]
    Start {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended with a failure.
    #[error("{program} failed ({status}); its last words: {last_lines}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it wrote.
        last_lines: String,
    },
    /// It took too long and was killed with all it had started.
    #[error("{program} did not finish within {limit:?} and was killed; its last words: {last_lines}")]
    Timeout {
        /// The program.
        program: String,
        /// How long it had.
        limit: Duration,
        /// The end of what it wrote.
        last_lines: String,
    },
    /// It told no progress for too long and was killed with all it had started.
    #[error("{program} got nowhere for {limit:?} and was killed; its last words: {last_lines}")]
    Stuck {
        /// The program.
        program: String,
        /// How long nothing came.
        limit: Duration,
        /// The end of what it wrote.
        last_lines: String,
    },
    /// An earlier run of the same work, of a daemon that is gone, does not end.
    #[error("an earlier {what} still runs and does not end; stop it by hand (its process id is in {path})")]
    Busy {
        /// The work.
        what: String,
        /// The lock file.
        path: PathBuf,
    },
}

/// A program to run.
#[derive(Debug, Clone)]
pub struct Tool {
    /// Where it is.
    pub program: PathBuf,
    /// Its arguments. Never a secret: everybody on the machine can read them.
    pub args: Vec<OsString>,
    /// User and group to run as, for a caller that is root.
    pub run_as: Option<(u32, u32)>,
    /// How long it may take.
    pub limit: Duration,
    /// How long it may go on without a line on its standard error, for a program that tells its progress there.
    pub silence_limit: Option<Duration>,
}

/// What a program wrote to its standard output.
pub type Output = String;

/// How many of the last lines an error shows.
const LAST_LINES: usize = 8;
const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// Kills a process group when dropped, so that a cancelled future leaves nothing running.
struct GroupKill(Option<Pid>);

impl Drop for GroupKill {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _gone = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Tool {
    /// Returns a tool with its arguments.
    pub fn new<A: Into<OsString>>(
        program: impl Into<PathBuf>,
        args: impl IntoIterator<Item = A>,
        limit: Duration,
    ) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            run_as: None,
            limit,
            silence_limit: None,
        }
    }

    fn name(&self) -> String {
        self.program
            .file_name()
            .map_or_else(|| self.program.display().to_string(), |name| name.to_string_lossy().into_owned())
    }

    /// Runs it and returns its standard output. Dropping the future kills the program and all it started.
    pub async fn run(&self) -> Result<Output, ExecError> {
        self.run_with(None, |_| {}).await
    }

    /// Runs it on this thread, for a process without a runtime that starts nothing else meanwhile. It must be one that ends at once, as
    /// the limit is not watched.
    ///
    /// # Errors
    /// It could not be started, or ended with a failure.
    pub fn run_now(&self) -> Result<(), ExecError> {
        let mut command = std::process::Command::new(&self.program);
        let output = command.args(&self.args).stdin(Stdio::null()).output();
        let output = output.map_err(|source| ExecError::Start { program: self.name(), source })?;
        if output.status.success() {
            return Ok(());
        }
        let last_lines = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ExecError::Failed { program: self.name(), status: output.status, last_lines })
    }

    /// Runs it, gives each line of its standard error to `on_line`, and returns its standard output.
    ///
    /// `lock` becomes its standard input: the lock is held for as long as the program or any child of it lives, even when the
    /// daemon has been killed meanwhile.
    pub async fn run_with(&self, lock: Option<&Exclusive>, mut on_line: impl FnMut(&str)) -> Result<Output, ExecError> {
        let start_error = |source| ExecError::Start { program: self.name(), source };
        let stdin = match lock {
            None => Stdio::null(),
            Some(lock) => Stdio::from(lock.file.try_clone().map_err(start_error)?),
        };
        let mut command = Command::new(&self.program);
        command.args(&self.args).env("LC_ALL", "C").stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        for variable in
            ["PGPASSWORD", "PGPASSFILE", "PGSERVICE", "PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGDATA", "PGOPTIONS"]
        {
            command.env_remove(variable);
        }
        command.process_group(0).kill_on_drop(true);
        if let Some((uid, gid)) = self.run_as {
            command.uid(uid).gid(gid);
        }
        // The caller's folder may be unreadable for that user.
        command.current_dir("/");
        let mut child = command.spawn().map_err(start_error)?;
        let mut group = GroupKill(child.id().and_then(|pid| Pid::from_raw(i32::try_from(pid).ok()?)));
        if let (Some(lock), Some(pid)) = (lock, child.id()) {
            lock.note(pid);
        }
        let deadline = Instant::now() + self.limit;
        let mut last = VecDeque::new();
        let heard_at = Mutex::new(Instant::now());
        let out = child.stdout.take();
        let err = child.stderr.take();
        let work = async {
            let (output, ()) = tokio::join!(
                read_all(out),
                read_lines(err, |line| {
                    if last.len() == LAST_LINES {
                        last.pop_front();
                    }
                    last.push_back(line.to_owned());
                    *heard_at.lock() = Instant::now();
                    on_line(line);
                })
            );
            (output, child.wait().await)
        };
        let result = tokio::select! {
            done = timeout_at(deadline, work) => Ok(done),
            limit = until_silent(self.silence_limit, &heard_at) => Err(limit),
        };
        let last_lines = Vec::from(last).join(" | ");
        let (output, status) = match result {
            Err(limit) => return Err(ExecError::Stuck { program: self.name(), limit, last_lines }),
            Ok(Err(_)) => return Err(ExecError::Timeout { program: self.name(), limit: self.limit, last_lines }),
            Ok(Ok((output, status))) => (output, status.map_err(start_error)?),
        };
        // It has ended by itself: its process id may soon be somebody else's.
        group.0 = None;
        if status.success() { Ok(output) } else { Err(ExecError::Failed { program: self.name(), status, last_lines }) }
    }
}

async fn read_all(stream: Option<impl AsyncRead + Unpin>) -> Output {
    let mut output = String::new();
    read_lines(stream, |line| {
        if output.len() < OUTPUT_BYTES_MAX {
            output.push_str(line);
            output.push('\n');
        }
    })
    .await;
    output
}

/// Returns `limit` once nothing was heard for so long; never without a limit.
async fn until_silent(limit: Option<Duration>, heard_at: &Mutex<Instant>) -> Duration {
    let Some(limit) = limit else { return std::future::pending().await };
    loop {
        let due = *heard_at.lock() + limit;
        if Instant::now() >= due {
            return limit;
        }
        sleep_until(due).await;
    }
}

async fn read_lines(stream: Option<impl AsyncRead + Unpin>, mut on_line: impl FnMut(&str)) {
    let Some(stream) = stream else { return };
    let mut reader = BufReader::new(stream);
    let mut line = Vec::new();
    loop {
        line.clear();
        match reader.read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => on_line(String::from_utf8_lossy(&line).trim_end()),
        }
    }
}

/// Keeps two runs of the same work apart, across deaths of the daemon: the running program itself holds the lock.
#[derive(Debug)]
pub struct Exclusive {
    file: File,
}

impl Exclusive {
    /// Takes the lock. A program left by an earlier daemon is killed first (by the process group noted in the file), for what
    /// it does belongs to nobody any more.
    pub async fn acquire(path: &Path, what: &str, limit: Duration) -> Result<Self, ExecError> {
        let start_error = |source| ExecError::Start { program: format!("{what} (open {})", path.display()), source };
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .mode(0o600)
            .open(path)
            .map_err(start_error)?;
        let deadline = Instant::now() + limit;
        loop {
            if flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok() {
                return Ok(Self { file });
            }
            if Instant::now() >= deadline {
                return Err(ExecError::Busy { what: what.to_owned(), path: path.to_owned() });
            }
            let mut noted = String::new();
            let _unreadable = file.read_to_string(&mut noted);
            // Whoever holds the lock is the program noted, so its number cannot have passed to another.
            if let Some(group) = noted.trim().parse().ok().and_then(Pid::from_raw) {
                let _gone = kill_process_group(group, Signal::KILL);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn note(&self, pid: u32) {
        let _best_effort = self.file.set_len(0).and_then(|()| {
            use std::os::unix::fs::FileExt;
            self.file.write_all_at(format!("{pid}\n").as_bytes(), 0)?;
            (&self.file).flush()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, limit_ms: u64) -> Tool {
        Tool::new("/bin/sh", ["-c", script], Duration::from_millis(limit_ms))
    }

    #[tokio::test]
    async fn failure_shows_status_and_last_words() {
        let error = sh("echo out; echo one >&2; echo two >&2; exit 3", 5000).run().await.unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.contains("one | two"), "{error}");
        assert_eq!(sh("echo out", 5000).run().await.unwrap(), "out\n");
    }

    #[tokio::test]
    async fn a_program_past_its_limit_is_killed_with_its_children() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pid");
        let script = format!("sleep 60 & echo $! > {}; wait", path.display());
        let error = sh(&script, 300).run().await.unwrap_err();
        assert!(matches!(error, ExecError::Timeout { .. }), "{error}");
        let pid: u32 = std::fs::read_to_string(path).unwrap().trim().parse().unwrap();
        let deadline = Instant::now() + Duration::from_secs(5);
        while std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < deadline, "child {pid} lives on");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_program_that_tells_no_progress_is_killed_and_one_that_does_is_not() {
        let mut stuck = sh("echo 1 of 9 >&2; sleep 60", 60_000);
        stuck.silence_limit = Some(Duration::from_millis(200));
        let error = stuck.run().await.unwrap_err();
        assert!(matches!(error, ExecError::Stuck { .. }) && error.to_string().contains("1 of 9"), "{error}");
        let mut slow = sh("for i in 1 2 3 4 5 6; do echo $i >&2; sleep 0.2; done; echo done", 60_000);
        slow.silence_limit = Some(Duration::from_millis(1000));
        assert_eq!(slow.run().await.unwrap(), "done\n");
    }

    #[tokio::test]
    async fn work_left_by_a_dead_daemon_is_ended_before_it_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = Exclusive::acquire(&path, "rewind", Duration::from_secs(5)).await.unwrap();
        let mut command = std::process::Command::new("sleep");
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut orphan = command.arg("60").stdin(Stdio::from(first.file.try_clone().unwrap())).spawn().unwrap();
        // Our own copy of the lock went into the command.
        drop(command);
        first.note(orphan.id());
        drop(first);
        let second = Exclusive::acquire(&path, "rewind", Duration::from_secs(5)).await;
        assert!(second.is_ok(), "{second:?}");
        assert!(!orphan.wait().unwrap().success());
    }
}
