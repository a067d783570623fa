//! Aim: what an earlier release wrote opens with all that it held.

use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use hasup::app::identity::Identity;
use hasup::config::{self, Facts, Layer, Sources};
use hasup::ha::durable::DataState;
use hasup::ha::record::ResignReason;
use hasup::node::durable_file::DurableFile;
use hasup::raft::{Consensus, RaftTiming};
use hasup::tls::{NodeTrust, TlsContext};
use hasup::types::{Generation, NodeId};

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

/// Aim: a node's data directory that 0.1.0 wrote opens with all that it said, but for what only concerns its PostgreSQL. The archive is what
/// `process/release.rs` makes: the third node of three, n93, whose role had moved three times; its database is left out. The cluster
/// is gone, so its keys and secrets open nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_of_release_0_1_0_is_read_with_all_that_it_held() {
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("storage/fixtures/0.1.0-node.tar.gz");
    let folder = tempfile::tempdir().unwrap();
    let unpacked =
        Command::new("tar").args(["--no-same-owner", "-xzf"]).arg(&archive).arg("-C").arg(folder.path()).status();
    assert!(unpacked.unwrap().success());
    let data_dir = folder.path().join("d");

    let told = std::fs::read_to_string(data_dir.join("node.toml")).unwrap();
    let files = vec![Layer { name: "node.toml".to_owned(), text: told }];
    let config = config::load(&Sources { files, ..Sources::default() }, &Facts::default()).unwrap().config;
    assert_eq!((config.node_name.as_str(), config.peer.port, config.api.port), ("n93", 21_931, 21_932));

    let identity = Identity::load(&data_dir).unwrap().unwrap();
    assert_eq!((identity.node_id, identity.name.as_str(), identity.cluster_generation), (NodeId(3), "n93", 1));
    let peers: Vec<&str> = identity.peers.iter().map(|peer| peer.name.as_str()).collect();
    assert_eq!(peers, ["n91", "n92", "n93"]);

    let trust = NodeTrust::load(&data_dir).unwrap();
    TlsContext::new(&trust).unwrap();
    assert!(trust.is_of_newest_authority().unwrap());
    let facts = trust.facts().unwrap();
    assert_eq!((facts.identity.node, facts.identity.name.as_str()), (NodeId(3), "n93"));
    assert_eq!(facts.identity.cluster_id, identity.cluster_id);
    let password = std::fs::read_to_string(data_dir.join("postgres/app.password")).unwrap();
    let derived = trust.cluster_secret.derive("application password app");
    assert_eq!(password, derived[..16].iter().map(|byte| format!("{byte:02x}")).collect::<String>());

    let promises = DurableFile::open(&data_dir.join("promises")).unwrap();
    let promised = promises.get();
    assert_eq!(promised.data, DataState::Intact);
    assert_eq!((promised.resigned, promised.resign_reason), (Generation(5), Some(ResignReason::Switchover)));

    let consensus = Consensus::open(&data_dir.join("raft"), NodeId(3), RaftTiming::default(), Arc::new(Nobody)).await;
    let consensus = consensus.unwrap();
    assert!(consensus.mark().covers(promises.mark()) && promises.mark().committed > 0, "{:?}", promises.mark());
    let mut log = consensus.leadership();
    let has_both = log.wait_for(|log| log.snapshot > 0 && log.last_log > log.snapshot);
    tokio::time::timeout(PATIENCE, has_both).await.unwrap().unwrap();
    let applied = consensus.wait_applied(promises.mark().committed, PATIENCE).await.unwrap();
    let state = &applied.state;
    let entry = |key: &str| state.table.get(key.as_bytes());
    let value = |key: &str| entry(key).map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
    assert_eq!(value("fixture/a").as_deref(), Some("one"));
    assert_eq!(entry("fixture/a").unwrap().flags, 42);
    assert_eq!(value("fixture/b").as_deref(), Some("three"));
    assert_eq!(value("fixture/after").as_deref(), Some("the snapshot"));
    assert_eq!(value("fixture/gone"), None);
    assert_eq!(state.identity.as_ref().unwrap().id, identity.cluster_id);
    assert_eq!(state.options.value.check_ttl_multiplier.to_string(), "2");
    let members: Vec<_> = state.members.values().map(|member| (member.name.as_str(), member.priority)).collect();
    assert_eq!(members, [("n91", 100), ("n92", 99), ("n93", 7)]);
    assert_eq!(state.members[&NodeId(3)].pulse_key, trust.keys.pulse_public());
    assert_eq!(state.trust.as_ref().unwrap().ca_certificates, trust.ca_certificates);
    let record = &state.assignment.as_ref().unwrap().value;
    assert!(record.opened && record.node == NodeId(1) && record.generation > promised.resigned, "{record:?}");
    assert_eq!(state.tokens.len(), 2);
    for kind in ["assigned", "resigned", "member_joined"] {
        assert!(state.events.iter().any(|stored| stored.event.kind == kind), "{kind}: {:?}", state.events);
    }
    consensus.shutdown().await;
}
