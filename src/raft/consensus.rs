//! The handle through which the node uses Raft.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use openraft::async_runtime::watch::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::storage::RaftLogStorage;
use openraft::{Config, RaftMetrics, ReadPolicy, ServerState, SnapshotPolicy};
use serde::{Deserialize, Serialize};
use tokio::sync::{Mutex, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::confirmed::{Confirmed, PutBack};
use super::log_store::{LogError, LogStore};
use super::network::{Network, RPC_BYTES_MAX, RaftTransport};
use super::serve::Server;
use super::state_machine::{Applied, StateMachine};
use super::types::{Raft, TypeConfig};
use crate::codec::encode;
use crate::ha::rules::Rules;
use crate::kv::snapshot::SnapshotError;
use crate::kv::{Proposal, Reply};
use crate::types::NodeId;

/// The log is compacted when its entries have this many bytes, however few they are.
const SNAPSHOT_BYTES: usize = 32 << 20;
/// With this many bytes in the log no more is proposed: compaction must have failed.
const LOG_BYTES_MAX: usize = 256 << 20;
/// A proposal leaves room in a frame for what surrounds it.
const PROPOSAL_BYTES_MAX: usize = RPC_BYTES_MAX - (64 << 10);

/// Raft's timers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftTiming {
    /// Between two heartbeats of a leader.
    pub heartbeat: Duration,
    /// The shortest silence after which a follower asks for votes.
    pub election_min: Duration,
    /// The longest, and how long a leader's lease is.
    pub election_max: Duration,
}

impl RaftTiming {
    /// Returns the timers stretched by the cluster's `raft_multiplier`.
    pub fn scaled(multiplier: u32) -> Self {
        let multiplier = multiplier.max(1);
        Self {
            // openraft ticks five times in this, and each tick wakes a thread, also in a cluster where nothing happens. With one tick
            // (13/64 of it) it must stay below `election_min`, or openraft refuses the settings.
            heartbeat: Duration::from_millis(200) * multiplier,
            election_min: Duration::from_millis(300) * multiplier,
            election_max: Duration::from_millis(600) * multiplier,
        }
    }
}

impl Default for RaftTiming {
    fn default() -> Self {
        Self::scaled(1)
    }
}

/// When the log is compacted by the number of its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Compaction {
    /// After this many entries since the last snapshot.
    pub after: u64,
    /// Entries kept before the snapshot, for followers that are a little behind.
    pub tail: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self { after: 5000, tail: 1000 }
    }
}

/// What Raft's handle asks of a log beside what openraft does.
pub trait LogHandle: Send + Sync + 'static {
    /// Returns how many bytes the entries have.
    fn bytes(&self) -> usize;
    /// Returns why it can no longer be written, if so.
    fn failed(&self) -> Option<String>;
    /// Returns how far it has come on disk.
    fn mark(&self) -> LogMark;
    /// Lets the disk go.
    fn close(&self) -> BoxFuture<'_, ()>;
}

/// How far a log has come, by what is on disk: neither number ever goes back in the life of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LogMark {
    /// The newest term that the node voted in.
    pub term: u64,
    /// The index up to which it knew entries to be committed.
    pub committed: u64,
}

impl LogMark {
    /// Returns whether a log at `self` can be one that had been at `earlier`.
    pub fn covers(self, earlier: Self) -> bool {
        self.term >= earlier.term && self.committed >= earlier.committed
    }
}

/// What Raft is started on.
pub struct Foundation<L> {
    /// This node.
    pub me: NodeId,
    /// The log, opened.
    pub log: L,
    /// The state, as of the newest snapshot.
    pub machine: StateMachine,
    /// Where a snapshot grows that another member sends.
    pub incoming: PathBuf,
    /// The timers.
    pub timing: RaftTiming,
    /// When the log is compacted.
    pub compaction: Compaction,
    /// The rules in force.
    pub rules: Rules,
    /// The way to the other members.
    pub transport: Arc<dyn RaftTransport>,
}

/// Raft cannot start.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The snapshot.
    #[error("open the snapshot of the store")]
    Snapshot(#[from] SnapshotError),
    /// A thread that reads the disk ended.
    #[error("open the store")]
    Io(#[from] std::io::Error),
    /// The timers contradict each other.
    #[error("Raft's timers contradict each other")]
    Timing(#[from] openraft::ConfigError),
    /// The log and the snapshot do not fit together, or could not be read.
    #[error("start Raft: {0}. The node stays out of the cluster; if it says so again, remove it there and join again")]
    Raft(String),
}

/// A proposal was not carried out, or may not have been.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This node does not lead; nothing was written. Ask the leader, or again where none is known.
    #[error("this node does not lead Raft{}", leader.map(|id| format!("; node {id} does")).unwrap_or_default())]
    NotLeader {
        /// Who does, as far as this node knows. `None` also where this node leads without a majority.
        leader: Option<NodeId>,
    },
    /// Certainly not done, and trying again will not help by itself.
    #[error("not done: {0}")]
    NotDone(String),
    /// It may be done, now or later. Ask again with the same request id.
    #[error("unknown whether done: {0}")]
    Unknown(String),
}

/// A read cannot be answered with certainty.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// This node does not lead.
    #[error("this node does not lead Raft{}", leader.map(|id| format!("; node {id} does")).unwrap_or_default())]
    NotLeader {
        /// Who does, as far as this node knows.
        leader: Option<NodeId>,
    },
    /// No majority confirmed in time that this node leads, or the state did not get there.
    #[error("no majority confirmed the read in time: this node may be cut off")]
    Unconfirmed,
    /// Raft has stopped here.
    #[error("Raft has stopped on this node: {0}")]
    Stopped(String),
}

/// What this node knows about the Raft group. Ages are instants of this machine's boot-time clock.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Leadership {
    /// Who leads, as far as this node knows.
    pub leader: Option<NodeId>,
    /// Whether this node leads. Without a majority it may believe so for long.
    pub is_leader: bool,
    /// The term.
    pub term: u64,
    /// One set of voters, or the old and the new one during a change.
    pub voters: Vec<BTreeSet<NodeId>>,
    /// Members that only listen.
    pub learners: BTreeSet<NodeId>,
    /// Whether the sets above are committed and no change is under way.
    pub is_settled: bool,
    /// Index of the last entry in this node's log.
    pub last_log: u64,
    /// Bytes of the entries in this node's log.
    pub log_bytes: u64,
    /// Index up to which this node's snapshot holds the state.
    pub snapshot: u64,
    /// Index of the last entry known to be committed.
    pub committed: u64,
    /// Index up to which this node has applied.
    pub applied: u64,
    /// On the leader: the index up to which each member's log is known to be equal.
    pub matched: BTreeMap<NodeId, u64>,
    /// Why Raft has stopped for good on this node, if so: it must fence and be restarted.
    pub failed: Option<String>,
}

/// Raft on this node. Cheap to clone.
#[derive(Clone)]
pub struct Consensus {
    pub(super) inner: Arc<Inner>,
    /// Ends Raft's thread with the last clone; none where Raft runs on its caller's runtime.
    thread: Option<Arc<DropGuard>>,
}

pub(super) struct Inner {
    pub(super) me: NodeId,
    pub(super) raft: Raft,
    pub(super) timing: RaftTiming,
    /// Held during a change of members: they come one after the other.
    pub(super) changing: Mutex<()>,
    server: Server,
    log: Arc<dyn LogHandle>,
    applied: watch::Receiver<Arc<Applied>>,
    leadership: watch::Sender<Leadership>,
    confirmed: Confirmed,
}

impl Consensus {
    /// Opens the log and the snapshots of node `me` under `folder` and starts Raft on a thread of its own (why: [`super`]). A new folder makes a node that waits to be added;
    /// only [`initialize_single`](Self::initialize_single) begins a group.
    pub async fn open(
        folder: &Path,
        me: NodeId,
        timing: RaftTiming,
        transport: Arc<dyn RaftTransport>,
    ) -> Result<Self, OpenError> {
        let (log_folder, snapshots) = (folder.join("log"), folder.join("snapshots"));
        let opened = tokio::task::spawn_blocking(move || {
            let machine = StateMachine::open(&snapshots)?;
            Ok::<_, OpenError>((LogStore::open(&log_folder, me)?, machine))
        });
        let (log, machine) = opened.await.map_err(std::io::Error::other)??;
        let incoming = folder.join("incoming");
        let (compaction, rules) = (Compaction::default(), Rules::default());
        let foundation = Foundation { me, log, machine, incoming, timing, compaction, rules, transport };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let last_one_gone = CancellationToken::new();
        let kept = last_one_gone.clone().drop_guard();
        let (sender, started) = oneshot::channel();
        // nobody waits for its end: `shutdown` closes the log before, and with the last clone nobody has anything to ask
        std::thread::Builder::new().name("raft".to_owned()).spawn(move || {
            runtime.block_on(async {
                let started = Self::start(foundation).await;
                let watched = started.as_ref().ok().cloned();
                // a caller that no longer listens has dropped the guard too
                let _ = sender.send(started);
                let Some(watched) = watched else { return };
                tokio::select! {
                    // openraft's other tasks may still have something to end
                    () = watched.drive() => last_one_gone.cancelled().await,
                    () = last_one_gone.cancelled() => {}
                }
            });
        })?;
        let mut consensus = started.await.map_err(std::io::Error::other)??;
        consensus.thread = Some(Arc::new(kept));
        Ok(consensus)
    }

    /// Starts Raft on what is open already, on the present runtime.
    pub async fn start<L>(on: Foundation<L>) -> Result<Self, OpenError>
    where
        L: RaftLogStorage<TypeConfig> + LogHandle + Clone,
    {
        let Foundation { me, log, machine, incoming, timing, compaction, rules, transport } = on;
        let applied = machine.watch();
        let confirmed = Confirmed::new();
        let network = Network { me, heartbeat: timing.heartbeat, transport, confirmed: confirmed.clone() };
        let started = match config(timing, compaction).validate() {
            Ok(config) => Raft::new(me.0, Arc::new(config), network, log.clone(), machine)
                .await
                .map_err(|error| OpenError::Raft(error.to_string())),
            Err(error) => Err(error.into()),
        };
        let raft = match started {
            Ok(raft) => raft,
            Err(error) => {
                log.close().await;
                return Err(error);
            }
        };
        let log: Arc<dyn LogHandle> = Arc::new(log);
        let server = Server::new(raft.clone(), incoming, rules);
        let first = leadership(&raft.metrics().borrow_watched().clone(), log.as_ref());
        let (leadership, _) = watch::channel(first);
        Ok(Self {
            inner: Arc::new(Inner {
                me,
                raft,
                timing,
                changing: Mutex::new(()),
                server,
                log,
                applied,
                leadership,
                confirmed,
            }),
            thread: None,
        })
    }

    /// Keeps [`leadership`](Self::leadership) up to date and the log short until Raft stops. [`open`](Self::open) sees to that;
    /// who starts it otherwise runs this as a task.
    pub async fn drive(self) {
        let _last_word = LastWord(&self.inner.leadership);
        let mut metrics = self.inner.raft.metrics();
        let mut compacted = 0;
        loop {
            let seen = metrics.borrow_watched().clone();
            let now = leadership(&seen, self.inner.log.as_ref());
            self.inner.leadership.send_if_modified(|before| {
                let differs = *before != now;
                *before = now;
                differs
            });
            self.compact(&seen, &mut compacted).await;
            // a leader's metrics change with each of its ticks, by ages that nobody asks for
            while is_alike(&seen, &metrics.borrow_watched()) {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        }
    }

    /// Asks for a snapshot where few entries hold many bytes: openraft counts entries alone.
    async fn compact(&self, seen: &RaftMetrics<TypeConfig>, compacted: &mut u64) {
        if self.inner.log.bytes() < SNAPSHOT_BYTES {
            return;
        }
        let index = |id: &Option<super::types::LogId>| id.map_or(0, |id| id.index);
        let (snapshot, applied) = (index(&seen.snapshot), index(&seen.last_applied));
        // A failure of either shows as `failed`.
        if snapshot > index(&seen.purged) {
            let _ = self.inner.raft.trigger().purge_log(snapshot).await;
        }
        if applied > snapshot.max(*compacted) {
            *compacted = applied;
            let _ = self.inner.raft.trigger().snapshot().await;
        }
    }

    /// Lets this node ask for votes, or not: it does unless told otherwise.
    pub fn let_campaign(&self, may_campaign: bool) {
        self.inner.raft.runtime_config().elect(may_campaign);
    }

    /// Begins a group of this node alone. Fails where the node is part of a group already.
    pub async fn initialize_single(&self) -> Result<(), ProposeError> {
        let alone = BTreeSet::from([self.inner.me.0]);
        self.inner.raft.initialize(alone).await.map_err(|error| ProposeError::NotDone(error.to_string()))
    }

    /// Returns whether this node has ever been part of a group.
    pub async fn is_initialized(&self) -> Result<bool, ReadError> {
        self.inner.raft.is_initialized().await.map_err(|error| ReadError::Stopped(error.to_string()))
    }

    /// Returns the answer to a call of member `from`, whose identity the transport has checked. Bad bytes are answered too.
    pub async fn serve(&self, from: NodeId, bytes: &[u8]) -> Vec<u8> {
        self.inner.server.serve(from, bytes).await
    }

    /// Writes `proposal` to the log if this node leads, and returns what became of it once it is applied here.
    ///
    /// Dropping the future, or `deadline` passing, leaves open whether it is done.
    pub async fn propose(&self, proposal: Proposal, deadline: Duration) -> Result<Reply, ProposeError> {
        let len = encode(&proposal).len();
        if len > PROPOSAL_BYTES_MAX {
            return Err(ProposeError::NotDone(format!("it has {len} bytes, the limit is {PROPOSAL_BYTES_MAX}")));
        }
        let used = self.inner.log.bytes();
        if used > LOG_BYTES_MAX {
            return Err(ProposeError::NotDone(format!(
                "the Raft log has {used} bytes and could not be compacted. The cluster goes on as it is and accepts no changes: \
                 look for disk errors on this node"
            )));
        }
        match timeout(deadline, self.inner.raft.client_write(proposal)).await {
            Err(_) => Err(ProposeError::Unknown(format!("no majority confirmed it within {deadline:?}"))),
            Ok(Ok(written)) => Ok(written.data),
            Ok(Err(error)) => Err(self.write_error(error)),
        }
    }

    pub(super) fn write_error(&self, error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> ProposeError {
        match error {
            RaftError::APIError(ClientWriteError::ForwardToLeader(to)) => {
                ProposeError::NotLeader { leader: self.other(&to) }
            }
            RaftError::APIError(error @ ClientWriteError::LogEntryDiscarded(_)) => {
                ProposeError::Unknown(error.to_string())
            }
            RaftError::APIError(error) => ProposeError::NotDone(error.to_string()),
            RaftError::Fatal(error) => ProposeError::Unknown(format!("Raft has stopped on this node: {error}")),
        }
    }

    /// Returns whom to ask instead: never this node itself.
    fn other(&self, to: &ForwardToLeader<TypeConfig>) -> Option<NodeId> {
        to.leader_id.map(NodeId).filter(|leader| *leader != self.inner.me)
    }

    /// Confirms with a majority that this node leads, and returns the index that a linearizable read must have applied; here it
    /// is applied. Another node reads after [`wait_applied`](Self::wait_applied) of that index.
    pub async fn read_index(&self, deadline: Duration) -> Result<u64, ReadError> {
        match timeout(deadline, self.inner.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await {
            Err(_) => Err(ReadError::Unconfirmed),
            Ok(Ok(id)) => Ok(id.index()),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(to)))) => {
                Err(ReadError::NotLeader { leader: self.other(&to) })
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) => Err(ReadError::Unconfirmed),
            Ok(Err(RaftError::Fatal(error))) => Err(ReadError::Stopped(error.to_string())),
        }
    }

    /// Waits until this node has applied `index`, and returns the state then.
    pub async fn wait_applied(&self, index: u64, deadline: Duration) -> Result<Arc<Applied>, ReadError> {
        let mut applied = self.state();
        match timeout(deadline, applied.wait_for(|applied| applied.index >= index)).await {
            Err(_) => Err(ReadError::Unconfirmed),
            Ok(Err(_)) => Err(ReadError::Stopped("it was shut down".to_owned())),
            Ok(Ok(applied)) => Ok(applied.clone()),
        }
    }

    /// Returns the state as this node has applied it: possibly old, never going back.
    pub fn state(&self) -> watch::Receiver<Arc<Applied>> {
        self.inner.applied.clone()
    }

    /// Returns what this node knows about the group. Wakes when any of it changes; [`open`](Self::open) keeps it up to
    /// date, else [`drive`](Self::drive) must run.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.leadership.subscribe()
    }

    /// Waits until this node finds, as leader, that logs lack what their members had confirmed, and returns each once.
    pub async fn put_back(&self) -> Vec<PutBack> {
        self.inner.confirmed.put_back().await
    }

    /// Returns how far the log has come on disk.
    pub fn mark(&self) -> LogMark {
        self.inner.log.mark()
    }

    /// Returns this node's number.
    pub fn me(&self) -> NodeId {
        self.inner.me
    }

    /// Stops Raft, ends the writer thread and lets the folder go. The group goes on without this node.
    pub async fn shutdown(&self) {
        // Its only error is that the core's task panicked, which `failed` has told already.
        let _ = self.inner.raft.shutdown().await;
        self.inner.log.close().await;
    }
}

/// Whether two looks at openraft's metrics differ in ages alone: all that [`leadership`] and [`Consensus::compact`] read is compared.
fn is_alike(one: &RaftMetrics<TypeConfig>, other: &RaftMetrics<TypeConfig>) -> bool {
    let office =
        |it: &RaftMetrics<TypeConfig>| (it.running_state.is_ok(), it.state, it.current_leader, it.current_term);
    let members = |it: &RaftMetrics<TypeConfig>| [it.membership_config.clone(), it.committed_membership_config.clone()];
    let log = |it: &RaftMetrics<TypeConfig>| {
        (it.last_log_index, [it.local_committed, it.last_applied, it.snapshot, it.purged])
    };
    office(one) == office(other)
        && log(one) == log(other)
        && one.replication == other.replication
        && members(one) == members(other)
}

/// Says that Raft has stopped, when dropped: at the end of the watch over it, however that comes.
struct LastWord<'a>(&'a watch::Sender<Leadership>);

impl Drop for LastWord<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|known| {
            known.failed.get_or_insert_with(|| "Raft's work has ended".to_owned());
            known.is_leader = false;
        });
    }
}

fn config(timing: RaftTiming, compaction: Compaction) -> Config {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let election_timeout_max = millis(timing.election_max);
    Config {
        cluster_name: "hasup".to_owned(),
        heartbeat_interval: millis(timing.heartbeat),
        election_timeout_min: millis(timing.election_min),
        election_timeout_max,
        // Of one piece of a snapshot, the last one's installation included.
        install_snapshot_timeout: 20_000,
        max_payload_entries: 300,
        replication_lag_threshold: compaction.after + compaction.tail,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(compaction.after),
        max_in_snapshot_log_to_keep: compaction.tail,
        purge_batch_size: 256,
        // A node that comes back is tried within half a second, so that a healed cut heals the group at once.
        backoff: "50ms 100ms 200ms ...500ms".to_owned(),
        // The log of a member whose disk was put back is filled up again. Else this leader sends it nothing that it could take.
        allow_log_reversion: Some(true),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        // Ends the deadlock of a bridge partition, where a leader keeps a follower loyal without having a majority.
        quorum_loss_probe_interval: Some(election_timeout_max * 2),
        ..Config::default()
    }
}

/// Returns what openraft's metrics say.
fn leadership(seen: &RaftMetrics<TypeConfig>, log: &dyn LogHandle) -> Leadership {
    let members = seen.membership_config.membership();
    let nodes = |ids: &BTreeSet<u64>| ids.iter().copied().map(NodeId).collect();
    let voters: Vec<BTreeSet<NodeId>> = members.get_joint_config().iter().map(nodes).collect();
    let index = |id: &Option<super::types::LogId>| id.map_or(0, |id| id.index);
    Leadership {
        leader: seen.current_leader.map(NodeId),
        is_leader: seen.state == ServerState::Leader,
        term: seen.current_term,
        is_settled: voters.len() <= 1 && seen.membership_config == seen.committed_membership_config,
        voters,
        learners: members.learner_ids().map(NodeId).collect(),
        last_log: seen.last_log_index.unwrap_or(0),
        log_bytes: log.bytes() as u64,
        snapshot: index(&seen.snapshot),
        committed: index(&seen.local_committed),
        applied: index(&seen.last_applied),
        matched: seen.replication.iter().flatten().map(|(node, id)| (NodeId(*node), index(id))).collect(),
        failed: log.failed().or_else(|| seen.running_state.as_ref().err().map(ToString::to_string)),
    }
}
