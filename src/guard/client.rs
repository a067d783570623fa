//! The daemon's side of the guard.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::protocol::{
    Call, GuardStatus, LINE_BYTES_MAX, Lease, Message, Request, StartSpec, StopMode, encode_extension,
};
use super::{deadline_socket_path, socket_path};
use crate::types::{BootTime, Generation};

/// The guard did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// Nobody answers at the socket.
    #[error("no guard answers at {path}: PostgreSQL, if it ran, is being stopped; a new guard must be started")]
    Absent {
        /// The socket.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The connection ended, or nothing reads it.
    #[error("the guard's connection is gone: what was asked may or may not have been done; connect again and look")]
    Gone,
    /// No answer came in time.
    #[error("the guard did not answer within {limit:?}: what was asked may or may not have been done")]
    Timeout {
        /// How long was waited.
        limit: Duration,
    },
    /// The guard said no.
    #[error("the guard refused: {0}")]
    Refused(String),
    /// A new guard could not be started.
    #[error("start a guard: PostgreSQL cannot run without one")]
    Spawn(#[source] io::Error),
}

/// The longest a guard may take to answer: it never waits for anything, so this is a lost guard.
const ANSWER_LIMIT: Duration = Duration::from_secs(1);

struct Order {
    request: Request,
    answer: oneshot::Sender<Option<String>>,
}

/// Speaks to the guard. Cheap to clone. Dropping a call's future may leave it done or not done.
#[derive(Clone, Debug)]
pub struct GuardClient {
    orders: mpsc::Sender<Order>,
    status: watch::Receiver<GuardStatus>,
}

impl std::fmt::Debug for Order {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.request.fmt(f)
    }
}

/// The connection behind a [`GuardClient`]; somebody must drive [`run`](Self::run).
#[derive(Debug)]
pub struct GuardConnection {
    stream: BufReader<UnixStream>,
    orders: mpsc::Receiver<Order>,
    status: watch::Sender<GuardStatus>,
}

impl GuardClient {
    /// Connects to the guard of a node's data directory and waits for its first status.
    pub async fn connect(data_dir: &Path) -> Result<(Self, GuardConnection), GuardError> {
        let path = socket_path(data_dir);
        let stream = UnixStream::connect(&path).await.map_err(|source| GuardError::Absent { path, source })?;
        let mut stream = BufReader::new(stream);
        let first = timeout(ANSWER_LIMIT, read_message(&mut stream)).await;
        let Some(Message::Status(first)) = first.map_err(|_| GuardError::Timeout { limit: ANSWER_LIMIT })? else {
            return Err(GuardError::Gone);
        };
        let (status_sender, status) = watch::channel(first);
        let (orders, order_receiver) = mpsc::channel(16);
        Ok((Self { orders, status }, GuardConnection { stream, orders: order_receiver, status: status_sender }))
    }

    /// Returns the status as last told. The deadline in it may be old: [`status`](Self::status) asks.
    pub fn last_status(&self) -> GuardStatus {
        self.status.borrow().clone()
    }

    /// Returns a watch on the status: PostgreSQL's end and a fence's begin and end show here at once. It closes with the
    /// connection, which means that the guard is lost.
    pub fn watch(&self) -> watch::Receiver<GuardStatus> {
        self.status.clone()
    }

    /// Asks for the present status, deadline included.
    pub async fn status(&self) -> Result<GuardStatus, GuardError> {
        self.call(Request::Status).await?;
        Ok(self.last_status())
    }

    /// Starts PostgreSQL as a standby. Returns when it has been spawned, long before it answers.
    pub async fn start_postgres(&self, spec: StartSpec) -> Result<(), GuardError> {
        self.call(Request::Start(spec)).await
    }

    /// Arms a generation's lease; must be done before its promotion (L15).
    pub async fn arm(&self, lease: Lease) -> Result<(), GuardError> {
        self.call(Request::Arm(lease)).await
    }

    /// Has PostgreSQL promoted under the armed generation. Returns when it was told to, long before it is the primary.
    pub async fn promote(&self, generation: Generation) -> Result<(), GuardError> {
        self.call(Request::Promote(generation)).await
    }

    /// Forgets the lease of a generation that has resigned; refused while any process of PostgreSQL is left.
    pub async fn disarm(&self, generation: Generation) -> Result<(), GuardError> {
        self.call(Request::Disarm(generation)).await
    }

    /// Stops PostgreSQL and waits until no process of it is left. The guard goes on with it when this is dropped.
    pub async fn stop(&self, mode: StopMode) -> Result<GuardStatus, GuardError> {
        let limit = match mode {
            StopMode::Fast { limit } => limit,
            StopMode::Immediate { kill_after } => kill_after,
        };
        self.call(Request::Stop(mode)).await?;
        self.wait_until(limit + STOP_GRACE, |status| !status.processes_left).await
    }

    /// Begins the fence now and waits until it is complete. A fence that has begun is finished whatever becomes of this.
    pub async fn fence(&self, kill_after: Duration) -> Result<GuardStatus, GuardError> {
        self.call(Request::Fence { kill_after }).await?;
        self.wait_until(kill_after + STOP_GRACE, |status| !status.is_fencing()).await
    }

    /// Waits until the status meets `condition`.
    pub async fn wait_until(
        &self,
        limit: Duration,
        condition: impl FnMut(&GuardStatus) -> bool,
    ) -> Result<GuardStatus, GuardError> {
        let mut status = self.status.clone();
        match timeout(limit, status.wait_for(condition)).await {
            Err(_) => Err(GuardError::Timeout { limit }),
            Ok(Err(_)) => Err(GuardError::Gone),
            Ok(Ok(status)) => Ok(status.clone()),
        }
    }

    async fn call(&self, request: Request) -> Result<(), GuardError> {
        let (answer, answered) = oneshot::channel();
        self.orders.send(Order { request, answer }).await.map_err(|_| GuardError::Gone)?;
        match timeout(ANSWER_LIMIT, answered).await {
            Err(_) => Err(GuardError::Timeout { limit: ANSWER_LIMIT }),
            Ok(Err(_)) => Err(GuardError::Gone),
            Ok(Ok(None)) => Ok(()),
            Ok(Ok(Some(why))) => Err(GuardError::Refused(why)),
        }
    }
}

/// After SIGKILL the kernel needs a moment for large processes; a process stuck in the disk may need for ever.
const STOP_GRACE: Duration = Duration::from_secs(5);

async fn read_message(stream: &mut BufReader<UnixStream>) -> Option<Message> {
    let mut line = Vec::new();
    let limit = u64::try_from(LINE_BYTES_MAX).unwrap_or(u64::MAX);
    stream.take(limit).read_until(b'\n', &mut line).await.ok()?;
    serde_json::from_slice(&line).ok()
}

impl GuardConnection {
    /// Carries orders and status until the guard or every client is gone.
    pub async fn run(self) {
        let Self { stream, mut orders, status } = self;
        // Splitting the buffered stream keeps what it holds already.
        let (reader, mut writer) = tokio::io::split(stream);
        // A line cut short by `select!` would be lost with its future: `Lines` keeps what it has read.
        let mut lines = BufReader::new(reader).lines();
        let mut waiting: BTreeMap<u64, oneshot::Sender<Option<String>>> = BTreeMap::new();
        let mut next_id = 0;
        loop {
            tokio::select! {
                line = lines.next_line() => {
                    let Ok(Some(line)) = line else { return };
                    match serde_json::from_str(&line) {
                        Ok(Message::Status(new)) => { status.send_replace(new); }
                        Ok(Message::Answer { id, refused }) => {
                            if let Some(answer) = waiting.remove(&id) {
                                let _nobody_waits = answer.send(refused);
                            }
                        }
                        Err(_) => return,
                    }
                }
                order = orders.recv() => {
                    let Some(order) = order else { return };
                    next_id += 1;
                    waiting.retain(|_, answer| !answer.is_closed());
                    waiting.insert(next_id, order.answer);
                    let Ok(mut bytes) = serde_json::to_vec(&Call { id: next_id, request: order.request }) else { return };
                    bytes.push(b'\n');
                    if writer.write_all(&bytes).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Extends the guard's deadline from the pulse thread: never blocks, never allocates, may be called from any thread.
#[derive(Debug)]
pub struct DeadlineSender {
    socket: UnixDatagram,
    path: PathBuf,
}

impl DeadlineSender {
    /// Makes a sender for the guard of a node's data directory. The guard need not be there yet, and may be replaced.
    pub fn open(data_dir: &Path) -> Result<Self, GuardError> {
        let path = deadline_socket_path(data_dir);
        let opened = UnixDatagram::unbound().and_then(|socket| socket.set_nonblocking(true).map(|()| socket));
        match opened {
            Ok(socket) => Ok(Self { socket, path }),
            Err(source) => Err(GuardError::Absent { path, source }),
        }
    }

    /// Extends the deadline of `generation`. The guard ignores it for another generation, backwards, or in a fence.
    ///
    /// An error means that this extension did not arrive; the next one may. No guard listens: [`GuardError::Absent`].
    pub fn extend(&self, generation: Generation, deadline: BootTime) -> Result<(), GuardError> {
        match self.socket.send_to(&encode_extension(generation, deadline), &self.path) {
            Ok(_) => Ok(()),
            Err(source) => Err(GuardError::Absent { path: self.path.clone(), source }),
        }
    }
}

/// Starts a guard that outlives the caller: a session of its own, its output appended to `<data_dir>/guard.log`.
///
/// `program` is the `hasup` binary; it is run as `program guard --data-dir DIR --pgdata DIR`. Returns once it is spawned:
/// connect with a deadline. Where another guard is at work the new one ends by itself.
pub fn spawn_detached(program: &Path, data_dir: &Path, pgdata: &Path) -> Result<(), GuardError> {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(data_dir.join("guard.log"))
        .map_err(GuardError::Spawn)?;
    let mut child = Command::new(program)
        .arg("guard")
        .arg("--data-dir")
        .arg(data_dir)
        .arg("--pgdata")
        .arg(pgdata)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(GuardError::Spawn)?)
        .stderr(log)
        .spawn()
        .map_err(GuardError::Spawn)?;
    // It leaves our session by itself; should it end before us, somebody must reap it.
    std::thread::Builder::new()
        .name("guard-reaper".to_owned())
        .spawn(move || child.wait())
        .map_err(GuardError::Spawn)?;
    Ok(())
}
