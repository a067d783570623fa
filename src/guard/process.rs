//! The guard's loop: one thread, non-blocking sockets, a boot-time timer and the postmaster's pidfd under one `poll`.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, flock};
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, set_child_subreaper, setsid, wait};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::pid_file;
use super::procs::{processes_of, send};
use super::protocol::{
    Call, GuardStatus, LINE_BYTES_MAX, Message, PostgresExit, PostgresProcess, Request, StartSpec, StopMode,
    decode_extension,
};
use super::state::{Due, GuardState};
use super::{deadline_socket_path, socket_path};
use crate::sys::clock::boot_now;
use crate::sys::fs::write_volatile;
use crate::sys::journal::{self, Priority};
use crate::sys::priority;
use crate::types::{BootTime, Generation};

/// What a guard is started with.
#[derive(Debug, Clone)]
pub struct GuardOptions {
    /// The node's data directory, where its sockets live.
    pub data_dir: PathBuf,
    /// PostgreSQL's data directory: a PostgreSQL that already runs in it has no guard and is stopped (L21).
    pub pgdata: PathBuf,
}

/// The guard could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum GuardRunError {
    /// Another guard is at work.
    #[error("another guard already owns {data_dir}: PostgreSQL stays with it; nothing to do")]
    AlreadyOwned {
        /// The node's data directory.
        data_dir: PathBuf,
    },
    /// Something of the operating system failed.
    #[error("guard: {action}; PostgreSQL is not guarded and cannot run until this works")]
    Os {
        /// What was tried.
        action: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

fn os<E: Into<io::Error>>(action: impl Into<String>) -> impl FnOnce(E) -> GuardRunError {
    let action = action.into();
    move |source| GuardRunError::Os { action, source: source.into() }
}

/// How long strays and orphans have between SIGQUIT and SIGKILL. Nobody waits for their answers.
const STRAY_KILL_AFTER: Duration = Duration::from_millis(100);
/// The guard's place among real-time threads: before the pulses, far behind the kernel's own.
const REAL_TIME_PRIORITY: u8 = 20;
/// Ended orphans are reaped at least this often.
const IDLE_WAKE: Duration = Duration::from_secs(1);
/// A daemon that does not read its status is cut off beyond this many bytes.
const OUTBOX_BYTES_MAX: usize = 1 << 20;

/// Runs the guard on the calling thread, which must be the process's main one. Returns only when it cannot go on, and
/// then PostgreSQL ends with it.
pub fn run(options: &GuardOptions) -> Result<(), GuardRunError> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let data_dir = &options.data_dir;
    let lock_path = data_dir.join("guard.lock");
    let lock = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock_path)
        .map_err(os(format!("open {}", lock_path.display())))?;
    flock(&lock, FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| GuardRunError::AlreadyOwned { data_dir: data_dir.clone() })?;

    let _already_leader = setsid();
    set_child_subreaper(Some(rustix::process::getpid())).map_err(os("become the reaper of orphans"))?;
    let _best_effort = write_volatile(Path::new("/proc/self/oom_score_adj"), b"-900");
    take_precedence();

    let mut guard = Guard::open(options)?;
    loop {
        guard.turn()?;
    }
}

/// Asks for what keeps a loaded machine and a stuck disk from holding the fence up; says once what was not granted.
fn take_precedence() {
    let mut missing = Vec::new();
    // Not inherited by PostgreSQL, which begins as an ordinary process.
    if let Err(error) = priority::real_time(rustix::process::getpid(), REAL_TIME_PRIORITY).run_now() {
        missing.push(format!("real-time priority ({error})"));
    }
    if let Err(error) = priority::lock_all_present() {
        missing.push(format!("locked memory ({error})"));
    }
    if !missing.is_empty() {
        log(Priority::Info, &format!("it works without {}", missing.join(" and ")));
    }
}

struct Postgres {
    process: PostgresProcess,
    pidfd: OwnedFd,
}

struct Connection {
    stream: UnixStream,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    is_open: bool,
}

struct Guard {
    listener: UnixListener,
    deadlines: UnixDatagram,
    timer: OwnedFd,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    state: GuardState,
    /// Where the process id of its PostgreSQL is noted.
    mark: PathBuf,
    pgdata: PathBuf,
    postgres: Option<Postgres>,
    processes_left: bool,
    last_exit: Option<PostgresExit>,
    announced: Option<GuardStatus>,
    revision: u64,
}

fn fresh_socket_path(path: PathBuf) -> Result<PathBuf, GuardRunError> {
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(os(format!("remove {}", path.display()))(error)),
        _ => Ok(path),
    }
}

impl Guard {
    fn open(options: &GuardOptions) -> Result<Self, GuardRunError> {
        let path = fresh_socket_path(deadline_socket_path(&options.data_dir))?;
        let deadlines = UnixDatagram::bind(&path).map_err(os(format!("listen on {}", path.display())))?;
        private(&path)?;
        // The stream last: who reaches it may rely on the other one.
        let path = fresh_socket_path(socket_path(&options.data_dir))?;
        let listener = UnixListener::bind(&path).map_err(os(format!("listen on {}", path.display())))?;
        private(&path)?;
        listener.set_nonblocking(true).map_err(os("make the socket non-blocking"))?;
        deadlines.set_nonblocking(true).map_err(os("make the socket non-blocking"))?;
        let timer = timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)
            .map_err(os("create a timer on the boot-time clock"))?;
        let mut guard = Self {
            listener,
            deadlines,
            timer,
            connections: BTreeMap::new(),
            next_connection: 0,
            state: GuardState::default(),
            mark: pid_file::mark_path(&options.data_dir),
            pgdata: options.pgdata.clone(),
            postgres: None,
            processes_left: false,
            last_exit: None,
            announced: None,
            revision: 0,
        };
        guard.stop_strays();
        Ok(guard)
    }

    /// A PostgreSQL that this guard did not start has no deadline: it is stopped. Tells whether there was one.
    fn stop_strays(&mut self) -> bool {
        self.processes_left = self.postgres.is_some() || !self.scan().is_empty();
        if self.processes_left && self.postgres.is_none() && !self.state.is_stopping() {
            log(Priority::Warning, "PostgreSQL processes without a guard are stopped");
            self.state.begin_stop(StopMode::Immediate { kill_after: STRAY_KILL_AFTER }, boot_now());
        }
        self.processes_left
    }

    fn scan(&self) -> std::collections::BTreeSet<u32> {
        processes_of(std::process::id(), Some(&self.pgdata))
    }

    /// Waits for the next event and handles all there are. The clock is looked at first after each wait, but for
    /// extensions that were already there: they were sent in time, and that we were not scheduled is not the sender's fault.
    fn turn(&mut self) -> Result<(), GuardRunError> {
        self.wait()?;
        self.read_deadlines();
        self.reap();
        self.fence_and_stop();
        self.accept();
        self.serve();
        self.fence_and_stop();
        self.announce();
        Ok(())
    }

    fn wait(&self) -> Result<(), GuardRunError> {
        let now = boot_now();
        let wake = self.state.next_wake(now).unwrap_or(now + IDLE_WAKE).min(now + IDLE_WAKE);
        self.set_timer(wake)?;
        let mut fds = vec![
            PollFd::new(&self.timer, PollFlags::IN),
            PollFd::new(&self.listener, PollFlags::IN),
            PollFd::new(&self.deadlines, PollFlags::IN),
        ];
        if let Some(postgres) = &self.postgres {
            fds.push(PollFd::new(&postgres.pidfd, PollFlags::IN));
        }
        for connection in self.connections.values() {
            let flags = if connection.outbox.is_empty() { PollFlags::IN } else { PollFlags::IN | PollFlags::OUT };
            fds.push(PollFd::from_borrowed_fd(connection.stream.as_fd(), flags));
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(os("wait for events")(error)),
        }
    }

    fn set_timer(&self, at: BootTime) -> Result<(), GuardRunError> {
        let clamp = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        // Zero would disarm the timer.
        let value = Timespec { tv_sec: clamp(at.0 / 1_000_000_000), tv_nsec: clamp(at.0 % 1_000_000_000).max(1) };
        let never = Timespec { tv_sec: 0, tv_nsec: 0 };
        let spec = Itimerspec { it_interval: never, it_value: value };
        timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec).map_err(os("set the timer"))?;
        Ok(())
    }

    fn read_deadlines(&mut self) {
        let mut bytes = [0; 32];
        while let Ok(length) = self.deadlines.recv(&mut bytes) {
            if let Some((generation, deadline)) = decode_extension(&bytes[..length]) {
                self.state.extend(generation, deadline);
            }
        }
    }

    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let pid = u32::try_from(pid.as_raw_nonzero().get()).unwrap_or(0);
            if self.postgres.as_ref().is_some_and(|postgres| postgres.process.pid == pid) {
                self.postgres = None;
                let exit = PostgresExit {
                    pid,
                    code: status.exit_status(),
                    signal: status.terminating_signal(),
                    at: boot_now(),
                };
                let is_meant = self.state.is_stopping();
                let priority = if is_meant { Priority::Info } else { Priority::Warning };
                log(priority, &format!("PostgreSQL has ended: {exit}"));
                self.last_exit = Some(exit);
                if !is_meant {
                    // What it left behind goes too; mostly nothing is left and the next look says so.
                    self.state.begin_stop(StopMode::Immediate { kill_after: STRAY_KILL_AFTER }, boot_now());
                }
            }
        }
    }

    fn fence_and_stop(&mut self) {
        let was_fencing = self.state.fence();
        loop {
            let alive = self.postgres.is_some() || (self.state.is_stopping() && !self.scan().is_empty());
            self.processes_left = alive;
            match self.state.tick(boot_now(), alive) {
                None => break,
                Some(Due::StopFast) => self.signal_postmaster(Signal::INT),
                Some(Due::Quit) => self.signal_postmaster(Signal::QUIT),
                Some(Due::KillAll) => {
                    // The postmaster first, so that it makes no new ones; the rest is looked for again at the next turn.
                    if let Some(postgres) = &self.postgres {
                        send(postgres.process.pid, Signal::KILL);
                    }
                    for pid in self.scan() {
                        send(pid, Signal::KILL);
                    }
                    break;
                }
            }
        }
        if was_fencing != self.state.fence() {
            let told = self.state.fence().map(|fence| fence.to_string()).unwrap_or_default();
            log(Priority::Warning, &told);
        }
    }

    fn signal_postmaster(&self, signal: Signal) {
        if let Some(postgres) = &self.postgres {
            send(postgres.process.pid, signal);
        } else {
            for pid in self.scan() {
                send(pid, signal);
            }
        }
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            let mut connection = Connection { stream, inbox: Vec::new(), outbox: Vec::new(), is_open: true };
            connection.queue(&Message::Status(self.status()));
            self.connections.insert(self.next_connection, connection);
            self.next_connection += 1;
        }
    }

    fn serve(&mut self) {
        let ids: Vec<u64> = self.connections.keys().copied().collect();
        for id in ids {
            let calls = self.connections.get_mut(&id).map(Connection::read_calls).unwrap_or_default();
            for call in calls {
                let refused = self.handle(call.request).err();
                let status = self.status();
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.queue(&Message::Status(status));
                    connection.queue(&Message::Answer { id: call.id, refused });
                }
            }
        }
        for connection in self.connections.values_mut() {
            connection.flush();
        }
        self.connections.retain(|_, connection| connection.is_open);
    }

    fn handle(&mut self, request: Request) -> Result<(), String> {
        let now = boot_now();
        match request {
            Request::Status => Ok(()),
            Request::Start(spec) => self.start(&spec),
            Request::Arm(lease) => self.state.arm(lease, now),
            Request::Promote(generation) => self.promote(generation),
            Request::Disarm(generation) => {
                let alive = self.stop_strays();
                self.state.disarm(generation, alive)
            }
            Request::Stop(mode) => {
                self.state.begin_stop(mode, now);
                Ok(())
            }
            Request::Fence { kill_after } => {
                self.state.begin_fence(now, kill_after);
                Ok(())
            }
        }
    }

    /// What `pg_ctl promote` does. The file is what counts: any of its children may have the postmaster look for it.
    fn promote(&mut self, generation: Generation) -> Result<(), String> {
        self.state.may_promote(generation, boot_now())?;
        let Some(postgres) = &self.postgres else {
            return Err("PostgreSQL does not run and cannot be promoted".to_owned());
        };
        let trigger = self.pgdata.join("promote");
        write_volatile(&trigger, b"").map_err(|error| format!("write {}: {error}", trigger.display()))?;
        // a disk may have held that up
        if let Err(refused) = self.state.may_promote(generation, boot_now()) {
            if fs::remove_file(&trigger).is_err() {
                // it would promote at any later signal, past the lease (L15)
                self.state.begin_fence(boot_now(), Duration::ZERO);
            }
            return Err(refused);
        }
        send(postgres.process.pid, Signal::USR1);
        Ok(())
    }

    fn start(&mut self, spec: &StartSpec) -> Result<(), String> {
        if self.postgres.is_some() {
            return Err("PostgreSQL is running already".to_owned());
        }
        self.pgdata.clone_from(&spec.pgdata);
        if self.stop_strays() || self.state.is_stopping() {
            return Err(
                "processes of an earlier PostgreSQL are still being stopped; try again when none is left".to_owned()
            );
        }
        if !spec.pgdata.join("standby.signal").is_file() {
            return Err(format!(
                "{} has no standby.signal: PostgreSQL is started as a standby only",
                spec.pgdata.display()
            ));
        }
        // Left over from a crash. Nobody works in this directory, but after a reboot its process id may well be that of a thread of
        // hasup, and PostgreSQL would take that for another server and never start.
        let own_socket_dir = spec.socket_locks.first().and_then(|lock| lock.parent());
        pid_file::remove_stale(&spec.pgdata, &self.mark, own_socket_dir)?;
        for lock in &spec.socket_locks {
            remove_stale_lock(lock, &spec.pgdata)?;
        }
        let pid = spawn(spec, &self.mark).map_err(|error| format!("start {}: {error}", spec.program.display()))?;
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or("the kernel gave no process id")?;
        let pidfd = match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => pidfd,
            Err(error) => {
                send(pid, Signal::KILL);
                return Err(format!("watch PostgreSQL: {error}"));
            }
        };
        log(Priority::Info, &format!("PostgreSQL started with process id {pid}"));
        self.postgres = Some(Postgres { process: PostgresProcess { pid, since: boot_now() }, pidfd });
        self.processes_left = true;
        Ok(())
    }

    fn status(&self) -> GuardStatus {
        GuardStatus {
            revision: self.revision,
            guard_pid: std::process::id(),
            postgres: self.postgres.as_ref().map(|postgres| postgres.process),
            processes_left: self.processes_left,
            last_exit: self.last_exit,
            lease: self.state.lease(),
            fenced: self.state.fenced(),
            fence: self.state.fence(),
        }
    }

    /// Tells everybody when something changed. That the deadline moved on is no news: it does ten times a second.
    fn announce(&mut self) {
        let mut present = self.status();
        if let Some(lease) = &mut present.lease {
            lease.deadline = BootTime::default();
        }
        if self.announced.as_ref() == Some(&present) {
            return;
        }
        self.revision += 1;
        present.revision = self.revision;
        self.announced = Some(present);
        let status = Message::Status(self.status());
        for connection in self.connections.values_mut() {
            connection.queue(&status);
            connection.flush();
        }
    }
}

impl Connection {
    fn queue(&mut self, message: &Message) {
        if let Ok(mut line) = serde_json::to_vec(message) {
            line.push(b'\n');
            self.outbox.extend_from_slice(&line);
        }
        if self.outbox.len() > OUTBOX_BYTES_MAX {
            self.is_open = false;
        }
    }

    fn flush(&mut self) {
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(0) => self.is_open = false,
                Ok(written) => {
                    self.outbox.drain(..written);
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => self.is_open = false,
            }
            return;
        }
    }

    /// Reads what has come and returns the whole calls in it. Bytes that are no call close the connection.
    fn read_calls(&mut self) -> Vec<Call> {
        let mut bytes = [0; 4096];
        while self.is_open && self.inbox.len() <= LINE_BYTES_MAX {
            match self.stream.read(&mut bytes) {
                Ok(0) => self.is_open = false,
                Ok(length) => self.inbox.extend_from_slice(&bytes[..length]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => self.is_open = false,
            }
        }
        let mut calls = Vec::new();
        while let Some(end) = self.inbox.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.inbox.drain(..=end).collect();
            match serde_json::from_slice(&line) {
                Ok(call) => calls.push(call),
                Err(_) => self.is_open = false,
            }
        }
        if self.inbox.len() > LINE_BYTES_MAX {
            self.is_open = false;
        }
        calls
    }
}

fn private(path: &Path) -> Result<(), GuardRunError> {
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(os(format!("make {} private", path.display())))
}

/// Removes a socket's lock file that an earlier PostgreSQL of `pgdata` left behind, for the same reason as `postmaster.pid`. A power
/// cut may have left it empty. Another server's is not touched.
fn remove_stale_lock(lock: &Path, pgdata: &Path) -> Result<(), String> {
    let failed = |error: io::Error| format!("remove {}: {error}", lock.display());
    match fs::read(lock) {
        Ok(text) => {
            let owner = text.split(|byte| *byte == b'\n').nth(1);
            if text.is_empty() || owner == Some(pgdata.as_os_str().as_bytes()) {
                fs::remove_file(lock).map_err(failed)?;
            }
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
    }
}

/// Starts PostgreSQL through `exec-postgres` of this very program, even where the file has been replaced since.
fn spawn(spec: &StartSpec, mark: &Path) -> io::Result<u32> {
    let log: File = OpenOptions::new().create(true).append(true).mode(0o600).open(&spec.log)?;
    if let Some((uid, gid)) = spec.run_as {
        std::os::unix::fs::fchown(&log, Some(uid), Some(gid))?;
    }
    let mut command = Command::new("/proc/self/exe");
    command
        .arg("exec-postgres")
        .arg(std::process::id().to_string())
        .arg(mark)
        .arg(&spec.program)
        .args(&spec.args)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    if let Some((uid, gid)) = spec.run_as {
        command.uid(uid).gid(gid);
    }
    // Reaped by the loop, with everything else.
    Ok(command.spawn()?.id())
}

/// The guard's log is its standard error, written by a thread of its own: a stuck disk or journal may hold that up, never the
/// thread that fences. A line that finds the queue full is dropped.
fn log(priority: Priority, text: &str) {
    static LINES: OnceLock<Option<SyncSender<String>>> = OnceLock::new();
    let lines = LINES.get_or_init(|| {
        let (sender, lines) = sync_channel::<String>(LOG_LINES_MAX);
        let write = move || {
            for line in lines {
                let _nobody_reads = io::stderr().write_all(line.as_bytes());
            }
        };
        std::thread::Builder::new().name("guard-log".to_owned()).spawn(write).ok().map(|_| sender)
    });
    if let Some(lines) = lines {
        let line = format!("guard {}: {text}\n", boot_now());
        let _full = lines.try_send(if journal::reads_stderr() { journal::stamped(priority, &line) } else { line });
    }
}

/// Lines of the log that wait to be written at the most.
const LOG_LINES_MAX: usize = 256;
