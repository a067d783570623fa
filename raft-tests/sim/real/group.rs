//! The nodes of a run: lives that begin, end with the power, and begin again.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hasup::ha::rules::Rules;
use hasup::kv::snapshot;
use hasup::node::tasks::Tasks;
use hasup::raft::state_machine::StateMachine;
use hasup::raft::{Compaction, Consensus, Foundation, RaftTiming};
use hasup::types::NodeId;
use tempfile::TempDir;

use super::disk::Disk;
use super::net::{Net, Plug};
use super::oracle::Oracle;
use crate::rng::Rng;

/// How many machines there are. The first three vote at the beginning.
pub const NODES: u64 = 5;
/// What an undisturbed sync takes, in microseconds.
pub const SYNC_MICROS: (u64, u64) = (200, 4_000);
/// States are compared after each entry whose index is a multiple of this.
const COMPARE_EVERY: u64 = 8;

#[derive(Default)]
struct Machine {
    disk: Disk,
    lives: u64,
    tasks: Option<Tasks>,
    snapshots: Option<PathBuf>,
}

/// All machines. Cheap to clone.
#[derive(Clone)]
pub struct Group {
    machines: Arc<Mutex<BTreeMap<NodeId, Machine>>>,
    folder: Arc<TempDir>,
    /// The wires.
    pub net: Net,
    /// Who watches.
    pub oracle: Oracle,
    /// Tasks of no life.
    pub tasks: Tasks,
    rules: Rules,
    compaction: Compaction,
    rng: Arc<Mutex<Rng>>,
}

impl Group {
    /// Returns machines that are off.
    pub fn new(seed: u64, rules: Rules, oracle: Oracle) -> Self {
        let mut rng = Rng::new(seed ^ 0x6e6f_6465);
        let tasks = Tasks::new();
        // Their syncs cost nothing in memory.
        let memory = std::path::Path::new("/dev/shm");
        let folder = match memory.is_dir() {
            true => tempfile::tempdir_in(memory),
            false => tempfile::tempdir(),
        };
        let machines = (1..=NODES).map(|node| (NodeId(node), Machine::default())).collect();
        // Some runs compact so often that members are served snapshots.
        let compaction = match rng.chance(500) {
            true => Compaction { after: rng.between(15, 60), tail: rng.between(0, 10) },
            false => Compaction::default(),
        };
        Self {
            machines: Arc::new(Mutex::new(machines)),
            folder: Arc::new(folder.unwrap()),
            net: Net::new(Rng::new(seed ^ 0x6e65_7473), tasks.clone()),
            oracle,
            tasks,
            rules,
            compaction,
            rng: Arc::new(Mutex::new(rng)),
        }
    }

    /// Turns `node` on.
    pub async fn start(&self, node: NodeId) {
        let (disk, life, former) = {
            let mut machines = self.machines.lock().unwrap();
            let machine = machines.get_mut(&node).unwrap();
            machine.lives += 1;
            (machine.disk.clone(), machine.lives, machine.snapshots.clone())
        };
        disk.set_speed(SYNC_MICROS.0, SYNC_MICROS.1);
        // A folder of its own: what the former life still writes must not appear in it.
        let folder = self.folder.path().join(format!("{node}-{life}"));
        let snapshots = folder.join("snapshots");
        std::fs::create_dir_all(&snapshots).unwrap();
        for found in former.iter().flat_map(|former| std::fs::read_dir(former).unwrap()) {
            let found = found.unwrap();
            // A former life may remove it meanwhile; there is a newer one then.
            drop(std::fs::copy(found.path(), snapshots.join(found.file_name())));
        }
        let log = disk.open(node, self.rules, self.oracle.clone());
        let tasks = Tasks::new();
        let rng = Rng::new(self.rng.lock().unwrap().bits());
        tasks.spawn("disk", log.clone().sync(rng));
        let on = Foundation {
            me: node,
            log,
            machine: StateMachine::open(&snapshots).unwrap(),
            incoming: folder.join("incoming"),
            timing: RaftTiming::default(),
            compaction: self.compaction,
            rules: self.rules,
            transport: Arc::new(Plug { me: (node, life), net: self.net.clone() }),
        };
        let consensus = match Consensus::start(on).await {
            Ok(consensus) => consensus,
            Err(error) => return self.oracle.broken("R5", format!("node {node} does not start again: {error}")),
        };
        tasks.spawn("raft", consensus.clone().drive());
        tasks.spawn("states", compare_states(consensus.clone(), self.oracle.clone()));
        self.oracle.note(|| format!("node {node} begins life {life}"));
        self.net.plug((node, life), consensus);
        let mut machines = self.machines.lock().unwrap();
        let machine = machines.get_mut(&node).unwrap();
        (machine.tasks, machine.snapshots) = (Some(tasks), Some(snapshots));
    }

    /// Cuts the power of `node`, if it is on.
    pub fn crash(&self, node: NodeId) {
        let Some(consensus) = self.net.unplug(node) else { return };
        self.oracle.note(|| format!("node {node} loses its power"));
        let tasks = {
            let mut machines = self.machines.lock().unwrap();
            let machine = machines.get_mut(&node).unwrap();
            machine.disk.lose_power(&mut self.rng.lock().unwrap());
            machine.tasks.take()
        };
        if let Some(tasks) = tasks {
            tasks.stop_token().cancel();
        }
        // It reaches neither disk nor wires any more; this frees its memory.
        self.tasks.spawn("end", async move { consensus.shutdown().await });
    }

    /// Sets how long syncs of `node` take, in microseconds.
    pub fn set_disk_speed(&self, node: NodeId, (least, most): (u64, u64)) {
        self.machines.lock().unwrap()[&node].disk.set_speed(least, most);
    }

    /// Returns how many votes `node` has written for others.
    pub fn votes(&self, node: NodeId) -> u64 {
        self.machines.lock().unwrap()[&node].disk.votes()
    }

    /// Returns who leads, according to whoever leads in the highest term.
    pub fn leader(&self) -> Option<(NodeId, Consensus)> {
        let nodes = self.net.running().into_iter().filter_map(|node| Some((node, self.net.node(node)?)));
        let leading = nodes.filter(|(_, consensus)| consensus.leadership().borrow().is_leader);
        leading.max_by_key(|(_, consensus)| consensus.leadership().borrow().term)
    }

    /// Waits until `condition` holds; returns whether it did in time.
    pub async fn within(&self, deadline: Duration, condition: impl Fn(&Self) -> bool) -> bool {
        let end = tokio::time::Instant::now() + deadline;
        while !condition(self) {
            if tokio::time::Instant::now() > end || self.oracle.is_broken() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        true
    }
}

/// Shows the oracle the whole state now and then.
async fn compare_states(consensus: Consensus, oracle: Oracle) {
    let mut states = consensus.state();
    loop {
        let applied = states.borrow_and_update().clone();
        if applied.index.is_multiple_of(COMPARE_EVERY) && applied.index > 0 {
            show(&consensus, &applied, &oracle);
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// Shows the oracle the state of a node.
pub fn show(consensus: &Consensus, applied: &hasup::raft::Applied, oracle: &Oracle) {
    let mut bytes = Vec::new();
    snapshot::write(&applied.state, b"", &mut bytes).unwrap();
    oracle.state(consensus.me(), applied.index, &bytes);
}
