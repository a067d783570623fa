//! The running node: everything that waits.
//!
//! ```text
//! pulses ─┐                        ┌─> stance to the pulses, at once
//! guard  ─┼─> control_loop: view ──┼─> steps: act ──> PostgreSQL, guard, durable facts
//! store  ─┤        decide          └─> status: publish ──> API, command line, metrics
//! PostgreSQL (database) ─┘
//!
//! on the Raft leader besides:  view ──> assign ──> store          (leader)
//! from outside:  admin <── Handle      service <── peers
//! ```
//!
//! Each event only wakes the loop; the loop looks at everything afresh. Long work on PostgreSQL is one job beside it
//! ([`database`](self)), so that pulses, bars and fences never wait for a copy or a checkpoint.
//!
//! The node calls its peers through [`PeerClient`] and answers them by implementing [`PeerService`];
//! the peer module knows nothing of it.

mod act;
mod admin;
mod checks;
mod control_loop;
mod database;
mod disk;
mod dsn;
pub mod durable_file;
pub mod error;
mod events;
mod guard_link;
pub mod handle;
mod leader;
mod moved;
mod names;
pub mod options;
mod paused;
pub mod progress;
mod propose;
mod publish;
mod resolver;
mod service;
mod slots;
mod standing;
pub mod status;
pub mod takeover;
pub mod tasks;
mod views;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use self::database::Database;
use self::durable_file::DurableFile;
use self::guard_link::{GuardLink, GuardPlace};
use self::handle::Handle;
pub(crate) use self::service::FIRST_PRIORITY;
use self::service::{PeerTransport, Service};
use self::status::Status;
use self::tasks::Tasks;
use crate::guard::{DeadlineSender, PostgresProcess};
use crate::ha::assign::Assigned;
use crate::ha::durable::DataState;
use crate::ha::plan::Plan;
use crate::ha::record::MemberKind;
use crate::ha::timing::Timing;
use crate::ha::trouble::Trouble;
use crate::kv::State;
use crate::peer::{Addresses, DaemonStart, PeerClient, PeerService};
use crate::postgres::Postgres;
use crate::pulse::{PulseConfig, Pulses};
use crate::raft::{Consensus, LogMark, RaftTransport};
use crate::sys::priority;
use crate::tls::{ClusterSecret, TlsContext};
use crate::types::{BootTime, Generation, NodeId, NodeName};

/// How long an event for the history may wait for a leader before it is dropped: it is told to the log in any case.
const EVENT_LIMIT: Duration = Duration::from_secs(30);

/// How often it is noted how far Raft's log has come.
const MARK_EVERY: Duration = Duration::from_secs(5);

/// What a node is made of, opened and bound by the composition root.
pub struct NodeParts {
    /// This node's number.
    pub me: NodeId,
    /// Its name.
    pub name: NodeName,
    /// What it takes part in.
    pub kind: MemberKind,
    /// The cluster's id.
    pub cluster_id: String,
    /// The cluster's secret.
    pub cluster_secret: ClusterSecret,
    /// The folder of the node's own state.
    pub data_dir: PathBuf,
    /// The most that a copy of the database to this node takes in a second, in KiB.
    pub copy_rate_kib: Option<u32>,
    /// The binary to start a guard with; none where a supervisor does that.
    pub guard_program: Option<PathBuf>,
    /// The members by name as this node was told of them when it joined.
    pub first_peers: BTreeMap<String, NodeId>,
    /// Where it is to be found.
    pub addresses: Addresses,
    /// The peers.
    pub peers: PeerClient,
    /// Raft.
    pub consensus: Consensus,
    /// This node's PostgreSQL.
    pub postgres: Arc<Postgres>,
    /// Certificates.
    pub tls: Arc<TlsContext>,
    /// Pulses, but for what is done with a lease.
    pub pulse: PulseConfig,
    /// The certificate of the cluster's authority, for clients.
    pub ca_file: PathBuf,
    /// The file with the application's password.
    pub password_file: PathBuf,
    /// Runs the node's tasks.
    pub tasks: Tasks,
}

/// The pulses' place among real-time threads: behind the guard.
const PULSE_PRIORITY: u8 = 10;

/// A node cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// Its durable facts.
    #[error("open this node's durable facts; it does not know what it promised, so it takes no part")]
    Durable(#[source] std::io::Error),
    /// Its Raft log is not what it was.
    #[error(
        "this node's Raft log has less than it once had: it ends at term {} and committed entry {}, after term {} and entry {}. \
         Part of it is missing, or it is an older copy; the node does not start with it, as it could vote twice. Put back what \
         was moved; if it is lost, run `hasup nodes remove {name}` on another member, `hasup destroy` here, and join again",
        found.term, found.committed, once.term, once.committed
    )]
    Forgotten {
        /// How far the log has come.
        found: LogMark,
        /// How far it once had.
        once: LogMark,
        /// The node.
        name: NodeName,
    },
    /// The pulse port.
    #[error("open the pulse port; this node would not be heard, so it takes no part. Is another hasup running here?")]
    Pulses(#[source] std::io::Error),
    /// The guard's socket.
    #[error("prepare to extend the guard's deadline")]
    Guard(#[from] crate::guard::GuardError),
}

/// What the node's parts share.
pub(crate) struct Shared {
    me: NodeId,
    name: NodeName,
    kind: MemberKind,
    cluster_id: String,
    cluster_secret: ClusterSecret,
    ca_file: PathBuf,
    password_file: PathBuf,
    data_dir: PathBuf,
    copy_rate_kib: Option<u32>,
    first_peers: BTreeMap<String, NodeId>,
    addresses: Addresses,
    /// This start of the daemon.
    start: DaemonStart,
    /// The machines that were seen to run as one member.
    copies: moved::Copies,
    resolver: resolver::Resolver,
    consensus: Consensus,
    peers: PeerClient,
    pulses: Pulses,
    guard: GuardLink,
    postgres: Arc<Database>,
    durable: DurableFile,
    tls: Arc<TlsContext>,
    tasks: Tasks,
    news: Arc<Notify>,
    /// Notified when pulses bring news: the leader looks at once, also while the control loop is busy with a step.
    heard: Arc<Notify>,
    /// Bumped after each round of the control loop; wakes the leader.
    rounds: watch::Sender<u64>,
    plan: watch::Sender<Arc<Plan>>,
    assigned: watch::Sender<Arc<Assigned>>,
    shutdown: watch::Sender<Option<bool>>,
    /// What is wrong with this node's disks.
    disk: watch::Sender<Option<Trouble>>,
    /// The highest generation under which this node may have had a primary.
    acted_under: Mutex<Generation>,
    /// Whether the daemon is about to end: that Raft stops is in order then.
    is_ending: AtomicBool,
}

/// A running node.
pub struct Node {
    shared: Arc<Shared>,
    handle: Handle,
}

impl Node {
    /// Starts the node: its pulses first, then everything else. It ends when its tasks are drained.
    ///
    /// # Errors
    ///
    /// Its durable facts cannot be read, or the pulse port cannot be bound.
    pub fn start(parts: NodeParts) -> Result<Self, NodeError> {
        let durable = DurableFile::open(&parts.data_dir.join("promises")).map_err(NodeError::Durable)?;
        let (found, once) = (parts.consensus.mark(), durable.mark());
        if !found.covers(once) {
            return Err(NodeError::Forgotten { found, once, name: parts.name });
        }
        let news = Arc::new(Notify::new());
        let place = GuardPlace {
            data_dir: parts.data_dir.clone(),
            pgdata: parts.postgres.layout().pgdata.clone(),
            program: parts.guard_program,
        };
        let (guard, keep_guard) = GuardLink::new(place);
        let deadlines = DeadlineSender::open(&parts.data_dir)?;
        let extended = guard.clone();
        let on_lease = move |generation: Generation, end: BootTime| {
            extended.note_extension(generation, end);
            // a guard that is not there kills by itself; the next extension finds its successor
            let _ = deadlines.extend(generation, end);
        };
        let promised = durable.get().lease_span;
        let heard = Arc::new(Notify::new());
        let (of_loop, of_leader) = (Arc::clone(&news), Arc::clone(&heard));
        let on_news = move || {
            of_loop.notify_one();
            of_leader.notify_one();
        };
        let start = DaemonStart { boot: parts.pulse.boot, incarnation: parts.pulse.incarnation };
        let pulses = Pulses::start(parts.pulse, promised, on_lease, on_news).map_err(NodeError::Pulses)?;
        let (plan, _) = watch::channel(Arc::new(control_loop::first_plan()));
        let acted_under = Mutex::new(durable.get().acknowledged);
        let shared = Arc::new(Shared {
            me: parts.me,
            kind: parts.kind,
            cluster_id: parts.cluster_id,
            cluster_secret: parts.cluster_secret,
            ca_file: parts.ca_file,
            password_file: parts.password_file,
            data_dir: parts.data_dir,
            copy_rate_kib: parts.copy_rate_kib,
            first_peers: parts.first_peers,
            addresses: parts.addresses,
            start,
            copies: moved::Copies::default(),
            resolver: resolver::Resolver::default(),
            postgres: Arc::new(Database::new(parts.postgres, Arc::clone(&news))),
            consensus: parts.consensus,
            peers: parts.peers,
            tls: parts.tls,
            tasks: parts.tasks.clone(),
            rounds: watch::Sender::new(0),
            assigned: watch::Sender::new(Arc::new(Assigned::default())),
            shutdown: watch::Sender::new(None),
            disk: watch::Sender::new(None),
            name: parts.name,
            pulses,
            guard,
            durable,
            news,
            heard,
            plan,
            acted_under,
            is_ending: AtomicBool::new(false),
        });
        let (published, status) = watch::channel(Arc::new(Status::starting(shared.name.to_string())));
        let (handle, orders) = Handle::new(status, 1024);
        let tasks = &parts.tasks;
        tasks.spawn("precedence", take_precedence(shared.pulses.threads()));
        tasks.spawn("guard link", keep_guard);
        let watched = Arc::clone(&shared);
        tasks.spawn("postgres watch", Arc::clone(&shared.postgres).watch_postgres(move || watched.postgres_process()));
        tasks.spawn("write probe", Arc::clone(&shared.postgres).probe_writes());
        if parts.kind == MemberKind::Data {
            tasks.spawn("slots", slots::keep(Arc::clone(&shared)));
            tasks.spawn("collations", Arc::clone(&shared.postgres).compare_collations());
            tasks.spawn("recovery", Arc::clone(&shared.postgres).measure_recovery());
            tasks.spawn("connections", Arc::clone(&shared.postgres).count_connections());
            tasks.spawn("paused replay", paused::watch(Arc::clone(&shared)));
        }
        tasks.spawn("postgres log", Arc::clone(&shared.postgres).follow_log(shared.data_dir.clone()));
        tasks.spawn("control loop", control_loop::run(Arc::clone(&shared), published));
        tasks.spawn("leader", leader::lead(Arc::clone(&shared)));
        tasks.spawn("admin", admin::serve(Arc::clone(&shared), orders));
        tasks.spawn("wake on store", wake_on_store(Arc::clone(&shared)));
        tasks.spawn("wake on guard", wake_on_guard(Arc::clone(&shared)));
        tasks.spawn("disk", disk::watch(Arc::clone(&shared)));
        tasks.spawn("standing", standing::ask(Arc::clone(&shared)));
        tasks.spawn("addresses", moved::tell(Arc::clone(&shared)));
        tasks.spawn("put back", events::tell_of_put_back(Arc::clone(&shared)));
        tasks.spawn("resolver", resolver::keep(Arc::clone(&shared)));
        tasks.spawn("log mark", keep_mark(Arc::clone(&shared)));
        tasks.spawn("certificates", publish::keep_certificate(Arc::clone(&shared)));
        Ok(Self { shared, handle })
    }

    /// Returns a count of the control loop's rounds: one that stands still means that it hangs.
    pub fn rounds(&self) -> watch::Receiver<u64> {
        self.shared.rounds.subscribe()
    }

    /// Returns how others talk to the node.
    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Returns what answers its peers.
    pub fn peer_service(&self) -> Arc<dyn PeerService> {
        Arc::new(Service { shared: Arc::clone(&self.shared) })
    }

    /// Returns Raft's way through `peers`.
    pub fn raft_transport(peers: PeerClient) -> Arc<dyn RaftTransport> {
        Arc::new(PeerTransport { peers })
    }

    /// Resolves when the node was asked to stop; true where it is to hand over first.
    pub async fn stop_asked(&self) -> bool {
        let mut shutdown = self.shared.shutdown.subscribe();
        let asked = shutdown.wait_for(Option::is_some).await.map(|asked| *asked);
        asked.ok().flatten().unwrap_or(false)
    }

    /// Hands the active role over and stops PostgreSQL, within `limit`. The node then no longer counts as able to be active.
    pub async fn hand_over(&self, limit: Duration) {
        self.shared.shutdown.send_replace(Some(true));
        self.shared.news.notify_one();
        control_loop::wait_until_stopped(&self.shared, limit).await;
    }

    /// Ends the guard, if nothing is left that it would have to stop; no other is started.
    pub fn end_guard(&self) {
        self.shared.guard.dismiss();
    }

    /// Notes how far Raft's log has come, ahead of the end. Waits for the disk.
    pub async fn note_log(&self) {
        note_mark(&self.shared).await;
    }

    /// Ends the pulses: the last thing before the process ends, but for Raft's own end.
    pub fn stop_pulses(&self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
        self.shared.news.notify_one();
        self.shared.pulses.stop();
    }

    /// Makes durable that a freshly made database is whole: only `hasup start` does this, once.
    ///
    /// # Errors
    ///
    /// The disk did not take it.
    pub fn adopt_fresh_database(data_dir: &std::path::Path) -> std::io::Result<()> {
        let facts = DurableFile::open(&data_dir.join("promises"))?;
        facts.change(|facts| {
            if facts.data == DataState::Empty {
                facts.incarnation = facts.incarnation.next();
                facts.data = DataState::Intact;
            }
        })
    }
}

impl Shared {
    /// Returns the store's state as this node has applied it.
    fn state(&self) -> Arc<State> {
        Arc::clone(&self.consensus.state().borrow().state)
    }

    /// Returns the postmaster that the guard runs.
    fn postgres_process(&self) -> Option<PostgresProcess> {
        self.guard.status().and_then(|status| status.postgres)
    }

    /// Returns whether this daemon was told to end.
    fn is_stopping(&self) -> bool {
        self.shutdown.borrow().is_some() || self.is_ending.load(Ordering::Relaxed)
    }

    fn note_acted(&self, generation: Generation) {
        let mut acted = self.acted_under.lock();
        *acted = (*acted).max(generation);
    }
}

/// Asks for what keeps a loaded machine from holding the pulses up; says once what was not granted.
async fn take_precedence(threads: Arc<[rustix::process::Pid]>) {
    if let Err(error) = priority::lock_all_used() {
        tracing::info!(because = %error, "the daemon works without locked memory: where memory is short, it may be late");
    }
    for thread in threads.iter() {
        if let Err(error) = priority::real_time(*thread, PULSE_PRIORITY).run().await {
            tracing::info!(because = %error, "the pulses work without real-time priority: on a busy machine, they may be late");
            return;
        }
    }
}

async fn wake_on_store(shared: Arc<Shared>) {
    let mut states = shared.consensus.state();
    while states.changed().await.is_ok() {
        states.mark_unchanged();
        shared.news.notify_one();
    }
}

/// Notes, now and then, how far Raft's log has come: a later start knows by it a log that is not all there.
async fn keep_mark(shared: Arc<Shared>) {
    loop {
        note_mark(&shared).await;
        tokio::time::sleep(MARK_EVERY).await;
    }
}

async fn note_mark(shared: &Arc<Shared>) {
    let noting = Arc::clone(shared);
    let noted = tokio::task::spawn_blocking(move || noting.durable.note_mark(noting.consensus.mark())).await;
    if let Ok(Err(error)) = noted {
        tracing::debug!(%error, "how far Raft's log has come is not noted");
    }
}

async fn wake_on_guard(shared: Arc<Shared>) {
    let mut guard = shared.guard.watch();
    while guard.changed().await.is_ok() {
        guard.mark_unchanged();
        shared.postgres.note_change();
    }
}

/// Returns the spans of a cluster whose options are not known yet.
pub fn default_timing() -> Timing {
    Timing::default()
}

/// Draws an id for a request.
pub(crate) fn request_id() -> u128 {
    propose::request_id()
}
