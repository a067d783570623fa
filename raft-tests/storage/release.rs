//! Aim: a store that an earlier release wrote opens with all that it held.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hasup::raft::{Consensus, RaftTiming};
use hasup::types::NodeId;

use crate::full::Nobody;

const PATIENCE: Duration = Duration::from_secs(30);

/// One node, made by `hasup start` of 0.1.0: `kv put fixture/a one`, `fixture/b two`, `fixture/b three`, `fixture/gone` put and
/// deleted, `options set check_ttl_multiplier=2`, `nodes set db1 priority=7`; stopped in order. The folder `raft` of its data directory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_of_release_0_1_0_opens_with_all_that_it_held() {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("storage/fixtures/0.1.0-raft.tar.gz");
    let folder = tempfile::tempdir().unwrap();
    let unpacked = Command::new("tar").arg("-xzf").arg(&archive).arg("-C").arg(folder.path()).status().unwrap();
    assert!(unpacked.success());
    let path = folder.path().join("raft");
    let consensus = Consensus::open(&path, NodeId(1), RaftTiming::default(), Arc::new(Nobody)).await.unwrap();
    let mut known = consensus.leadership();
    tokio::time::timeout(PATIENCE, known.wait_for(|known| known.is_leader)).await.unwrap().unwrap();
    let index = consensus.read_index(PATIENCE).await.unwrap();
    let applied = consensus.wait_applied(index, PATIENCE).await.unwrap();
    let state = &applied.state;

    let value =
        |key: &str| state.table.get(key.as_bytes()).map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
    assert_eq!(value("fixture/a").as_deref(), Some("one"));
    assert_eq!(value("fixture/b").as_deref(), Some("three"));
    assert_eq!(value("fixture/gone"), None);
    assert_eq!(state.options.value.check_ttl_multiplier.to_string(), "2");
    let member = &state.members[&NodeId(1)];
    assert_eq!((member.name.as_str(), member.priority), ("db1", 7));
    let record = &state.assignment.as_ref().unwrap().value;
    assert!(record.opened && record.node == NodeId(1), "{record:?}");
    assert!(!state.events.is_empty() && state.trust.is_some());
    consensus.shutdown().await;
}
