//! Three nodes in one process over a network whose links are cut: elect, write, cut, heal, restart, hand over.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use futures_util::future::BoxFuture;
use hasup::kv::{Command, KvCommand, Proposal, Reply};
use hasup::raft::{Consensus, Leadership, ProposeError, RaftRpc, RaftTiming, RaftTransport, ReadError, TransportError};
use hasup::types::NodeId;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(20);
const SHORT: Duration = Duration::from_millis(700);

/// All links, each in one direction.
#[derive(Default)]
struct Wires {
    nodes: Mutex<BTreeMap<NodeId, Consensus>>,
    cut: Mutex<BTreeSet<(NodeId, NodeId)>>,
}

impl Wires {
    fn passes(&self, from: NodeId, to: NodeId) -> bool {
        !self.cut.lock().unwrap().contains(&(from, to))
    }

    /// Cuts `node` off from everybody, both ways.
    fn isolate(&self, node: u64) {
        for other in 1..=9 {
            self.cut.lock().unwrap().extend([(NodeId(node), NodeId(other)), (NodeId(other), NodeId(node))]);
        }
    }

    fn heal(&self) {
        self.cut.lock().unwrap().clear();
    }
}

/// One node's end of the wires. A cut link swallows everything, as a pulled cable does.
struct Plug {
    me: NodeId,
    wires: Weak<Wires>,
}

impl RaftTransport for Plug {
    fn call(&self, target: NodeId, rpc: RaftRpc, deadline: Duration) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move {
            let gone = || TransportError::Unreachable { target, why: "not running".to_owned() };
            let wires = self.wires.upgrade().ok_or_else(gone)?;
            let silence = || async {
                tokio::time::sleep(deadline).await;
                Err(TransportError::NoAnswer { target, why: "the link is cut".to_owned() })
            };
            if !wires.passes(self.me, target) {
                return silence().await;
            }
            let node = wires.nodes.lock().unwrap().get(&target).cloned().ok_or_else(gone)?;
            let answer = node.serve(self.me, &rpc.bytes).await;
            if !wires.passes(target, self.me) {
                return silence().await;
            }
            Ok(answer)
        })
    }
}

struct Group {
    folder: TempDir,
    wires: Arc<Wires>,
    requests: u128,
}

impl Group {
    /// Returns a settled group of three voters.
    async fn of_three() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut group = Self { folder, wires: Arc::default(), requests: 0 };
        for node in 1..=3 {
            group.start(node).await;
        }
        let first = group.node(1);
        first.initialize_single().await.unwrap();
        group.wait(1, "leads", |known| known.is_leader).await;
        for id in [2, 3] {
            first.add_learner(NodeId(id), PATIENCE).await.unwrap();
            group.wait(1, "caught up", |known| known.matched.get(&NodeId(id)) >= Some(&known.committed)).await;
        }
        let all: BTreeSet<NodeId> = [1, 2, 3].map(NodeId).into();
        first.change_voters(&all, PATIENCE).await.unwrap();
        group.wait(1, "settled", |known| known.is_settled && known.voters == [all.clone()]).await;
        group
    }

    async fn start(&mut self, node: u64) {
        let id = NodeId(node);
        let plug = Arc::new(Plug { me: id, wires: Arc::downgrade(&self.wires) });
        let folder = self.path(node);
        let consensus = Consensus::open(&folder, id, RaftTiming::default(), plug).await.unwrap();
        self.wires.nodes.lock().unwrap().insert(id, consensus);
    }

    async fn stop(&mut self, node: u64) {
        let consensus = self.wires.nodes.lock().unwrap().remove(&NodeId(node)).unwrap();
        consensus.shutdown().await;
    }

    fn path(&self, node: u64) -> std::path::PathBuf {
        Path::new(self.folder.path()).join(format!("n{node}"))
    }

    fn node(&self, node: u64) -> Consensus {
        self.wires.nodes.lock().unwrap()[&NodeId(node)].clone()
    }

    async fn wait(&self, node: u64, what: &str, condition: impl Fn(&Leadership) -> bool) -> Leadership {
        let mut known = self.node(node).leadership();
        let waited = tokio::time::timeout(PATIENCE, known.wait_for(|known| condition(known))).await;
        let waited = waited.map(|known| known.unwrap().clone()).ok();
        waited.unwrap_or_else(|| panic!("node {node}: not `{what}`: {:?}", known.borrow()))
    }

    /// Waits until one of `nodes` leads a majority of them, and returns it.
    async fn leader_of(&self, nodes: &[u64]) -> u64 {
        let waits = nodes.iter().map(|node| {
            let elected = self.wait(*node, "knows a leader among them", |known| {
                known.leader.is_some_and(|leader| nodes.contains(&leader.0))
            });
            Box::pin(elected)
        });
        let (known, ..) = futures_util::future::select_all(waits).await;
        known.leader.unwrap().0
    }

    fn put(&mut self, key: &str, value: &str) -> Proposal {
        self.requests += 1;
        let put = KvCommand::Put { key: key.into(), value: value.into(), flags: 0, expected: None };
        Proposal::new(self.requests, 1, Command::Kv(put))
    }

    /// Writes by whichever of `nodes` leads, as a client does: the same request until its fate is known.
    async fn write(&mut self, nodes: &[u64], key: &str, value: &str) -> u64 {
        let proposal = self.put(key, value);
        let attempts = async {
            loop {
                let leader = self.leader_of(nodes).await;
                match self.node(leader).propose(proposal.clone(), SHORT).await {
                    Ok(Reply::Applied { index }) => return index,
                    Ok(other) => panic!("{other:?}"),
                    Err(_) => tokio::task::yield_now().await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, attempts).await.unwrap()
    }

    /// Waits until `node` has applied `index`, and returns the value of `key` there.
    async fn read(&self, node: u64, index: u64, key: &str) -> Option<String> {
        let applied = self.node(node).wait_applied(index, PATIENCE).await.unwrap();
        applied.state.table.get(key.as_bytes()).map(|entry| String::from_utf8(entry.value.to_vec()).unwrap())
    }

    async fn stop_all(mut self) {
        let running: Vec<u64> = self.wires.nodes.lock().unwrap().keys().map(|id| id.0).collect();
        for node in running {
            self.stop(node).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_reaches_all_three_and_a_repeat_changes_nothing() {
    let mut group = Group::of_three().await;
    let index = group.write(&[1, 2, 3], "k", "v").await;
    for node in 1..=3 {
        assert_eq!(group.read(node, index, "k").await.as_deref(), Some("v"));
    }
    let leader = group.leader_of(&[1, 2, 3]).await;
    let repeat = Proposal { request_id: 1, ..group.put("k", "other") };
    let reply = group.node(leader).propose(repeat, PATIENCE).await;
    assert_eq!(reply, Ok(Reply::Applied { index }));
    let follower = [1, 2, 3].into_iter().find(|node| *node != leader).unwrap();
    let refused = group.put("k", "other");
    assert_eq!(
        group.node(follower).propose(refused, PATIENCE).await,
        Err(ProposeError::NotLeader { leader: Some(NodeId(leader)) })
    );
    assert_eq!(group.read(follower, index, "k").await.as_deref(), Some("v"));
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_commits_nothing_and_the_majority_goes_on() {
    let mut group = Group::of_three().await;
    let old = group.leader_of(&[1, 2, 3]).await;
    group.write(&[1, 2, 3], "k", "before").await;
    group.wires.isolate(old);
    let lost = group.put("lost", "x");
    let unknown = group.node(old).propose(lost, SHORT).await;
    assert!(matches!(unknown, Err(ProposeError::Unknown(_))), "{unknown:?}");
    let read = group.node(old).read_index(SHORT).await;
    assert!(matches!(read, Err(ReadError::Unconfirmed | ReadError::NotLeader { .. })), "{read:?}");
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|node| *node != old).collect();
    let index = group.write(&rest, "k", "after").await;
    assert_ne!(group.node(old).state().borrow().index, index);
    group.wires.heal();
    assert_eq!(group.read(old, index, "k").await.as_deref(), Some("after"));
    let leader = group.leader_of(&rest).await;
    let confirmed = group.node(leader).read_index(PATIENCE).await.unwrap();
    assert!(confirmed >= index);
    assert_eq!(group.read(old, confirmed, "lost").await, None);
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_three_start_again_with_everything() {
    let mut group = Group::of_three().await;
    let mut index = 0;
    for number in 0..20 {
        index = group.write(&[1, 2, 3], &format!("k{number}"), &"x".repeat(3000)).await;
    }
    let term = group.node(1).leadership().borrow().term;
    let mut applied = BTreeMap::new();
    for node in [1, 2, 3] {
        let state = group.node(node).state();
        group.stop(node).await;
        applied.insert(node, state.borrow().index);
    }
    for node in [3, 1, 2] {
        group.start(node).await;
        // Before anybody can be elected, for the first of them: what was applied never goes back.
        assert!(group.node(node).state().borrow().index >= applied[&node], "node {node}: {applied:?}");
    }
    for node in 1..=3 {
        assert!(group.read(node, index, "k19").await.is_some());
    }
    let leader = group.leader_of(&[1, 2, 3]).await;
    group.wait(leader, "a later term", |known| known.term > term).await;
    group.write(&[1, 2, 3], "after", "restart").await;
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_is_handed_over_and_members_come_and_go() {
    let mut group = Group::of_three().await;
    let leader = group.leader_of(&[1, 2, 3]).await;
    let to = [1, 2, 3].into_iter().find(|node| *node != leader).unwrap();
    group.node(leader).transfer_leader(NodeId(to), PATIENCE).await.unwrap();
    group.wait(to, "leads", |known| known.is_leader).await;
    group.write(&[1, 2, 3], "k", "v").await;
    group.start(4).await;
    let now = group.leader_of(&[1, 2, 3]).await;
    let consensus = group.node(now);
    let early = consensus.change_voters(&[NodeId(now), NodeId(4)].into(), PATIENCE).await;
    assert!(matches!(early, Err(ProposeError::NotDone(_))), "{early:?}");
    consensus.add_learner(NodeId(4), PATIENCE).await.unwrap();
    group.wait(now, "caught up", |known| known.matched.get(&NodeId(4)) >= Some(&known.committed)).await;
    let gone = [1, 2, 3].into_iter().find(|node| *node != now).unwrap();
    let voters: BTreeSet<NodeId> = [1, 2, 3, 4].into_iter().filter(|node| *node != gone).map(NodeId).collect();
    consensus.change_voters(&voters, PATIENCE).await.unwrap();
    let known = group.wait(now, "settled", |known| known.is_settled && known.voters == [voters.clone()]).await;
    assert_eq!(known.learners, [NodeId(gone)].into());
    consensus.remove(NodeId(gone), PATIENCE).await.unwrap();
    group.wait(now, "removed", |known| known.is_settled && known.learners.is_empty()).await;
    consensus.remove(NodeId(gone), PATIENCE).await.unwrap();
    group.stop_all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_far_behind_gets_the_snapshot_and_hostile_calls_are_refused() {
    let mut group = Group::of_three().await;
    let leader = group.leader_of(&[1, 2, 3]).await;
    let behind = [1, 2, 3].into_iter().find(|node| *node != leader).unwrap();
    group.stop(behind).await;
    // More bytes than the log may hold before it is compacted, in fewer entries than count by themselves.
    let value = "v".repeat(500_000);
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|node| *node != behind).collect();
    let mut index = 0;
    for number in 0..80 {
        index = group.write(&rest, &format!("k{}", number % 7), &value).await;
    }
    group.wait(leader, "compacted", |known| known.snapshot > 0 && known.log_bytes < 32 << 20).await;
    group.start(behind).await;
    assert_eq!(group.read(behind, index, "k6").await.map(|value| value.len()), Some(500_000));
    let snapshots = std::fs::read_dir(group.path(behind).join("snapshots")).unwrap().count();
    assert_eq!(snapshots, 1, "the entries were gone, so it came as a snapshot");
    let victim = group.node(behind);
    for bytes in [&b""[..], &[1], &[0xFF; 100], &[1, 0, 253, 255, 255, 255, 255, 255, 255, 255, 255]] {
        assert!(!victim.serve(NodeId(leader), bytes).await.is_empty());
    }
    group.write(&[1, 2, 3], "still", "alive").await;
    group.stop_all().await;
}
