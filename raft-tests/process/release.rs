//! Data directories of releases: how one becomes a fixture.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use hasup::ha::rules::Rules;
use hasup::raft::log_store::LogStore;
use hasup::raft::state_machine::StateMachine;
use hasup::raft::{Compaction, Consensus, Foundation, RaftRpc, RaftTiming, RaftTransport, TransportError};
use hasup::types::NodeId;
use raft_tests::program::{alone, lacks_postgres};

use crate::node::{Node, is_whole, pause};

const LIMIT: Duration = Duration::from_secs(60);

/// Nobody hears a store that is open without its node.
struct Nobody;

impl RaftTransport for Nobody {
    fn call(&self, target: NodeId, _: RaftRpc, _: Duration) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move { Err(TransportError::Unreachable { target, why: "there is nobody".to_owned() }) })
    }
}

/// Puts the log of the third node, which does not run, into a snapshot: by itself that comes with the five thousandth entry.
fn compact(folder: &Path) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let consensus = Consensus::start(Foundation {
            me: NodeId(3),
            log: LogStore::open(&folder.join("log"), NodeId(3)).unwrap(),
            machine: StateMachine::open(&folder.join("snapshots")).unwrap(),
            incoming: folder.join("incoming"),
            timing: RaftTiming::default(),
            compaction: Compaction { after: 5, tail: 2 },
            rules: Rules::default(),
            transport: Arc::new(Nobody),
        });
        let consensus = consensus.await.unwrap();
        let mut known = consensus.leadership();
        // what it gives is let go at once: the last word of `drive` waits for it
        let has_snapshot = async { known.wait_for(|known| known.snapshot > 0).await.is_ok() };
        let drive = consensus.clone().drive();
        tokio::select! {
            () = drive => panic!("Raft stopped"),
            seen = tokio::time::timeout(LIMIT, has_snapshot) => assert!(seen.unwrap()),
        }
        consensus.shutdown().await;
    });
}

#[track_caller]
fn until_it_has(node: &Node, key: &str, value: &str) {
    let deadline = Instant::now() + LIMIT;
    while node.hasup(&["kv", "get", key, "--stale"]).out.trim() != value {
        assert!(Instant::now() < deadline, "{key} did not become {value}");
        pause();
    }
}

/// Makes the fixture that `storage/release.rs` opens: all of the third node's data directory but its database, of a cluster of three
/// that has moved its role, has a snapshot and a log after it, and is thrown away. Run it at a release, before the version changes:
///
/// ```text
/// cargo test -p raft-tests --test process -- --ignored make_the_fixture_of_this_release
/// ```
#[test]
#[ignore = "makes the fixture of a release: run it when there is one"]
fn make_the_fixture_of_this_release() {
    assert_eq!(lacks_postgres(), None);
    let _alone = alone();
    let [mut one, mut two, mut three] = [Node::new(91), Node::new(92), Node::new(93)];
    three.ports = [21_931, 21_932, 21_933];
    let started = one.start(&[]);
    let token = started["join_token"].as_str().unwrap().to_owned();
    two.join(&one, &token);
    three.join(&one, &token);
    one.json(&["options", "set", "check_ttl_multiplier=2"]);
    one.json(&["nodes", "set", "n93", "priority=7"]);
    three.until("a whole cluster", is_whole);
    one.json(&["switchover", "--to", "n92"]);
    three.until("the role moved", |status| is_whole(status) && status["active"] == "n92");
    one.json(&["switchover", "--to", "n93"]);
    three.until("the role moved again", |status| is_whole(status) && status["active"] == "n93");
    one.json(&["switchover", "--to", "n91"]);
    three.until("the role moved back", |status| is_whole(status) && status["active"] == "n91");
    one.json(&["kv", "put", "fixture/a", "one", "--flags", "42"]);
    one.json(&["kv", "put", "fixture/b", "two"]);
    one.json(&["kv", "put", "fixture/gone", "x"]);
    one.json(&["kv", "delete", "fixture/gone"]);

    until_it_has(&three, "fixture/b", "two");
    assert_eq!(three.stop(), Some(0), "{}", three.log());
    compact(&three.data_dir().join("raft"));
    // the daemon is another user, whom the folder itself belongs to
    let raft = three.data_dir().join("raft");
    let given = Command::new("chown").args(["-R", "--reference"]).args([&raft, &raft]).status();
    assert!(given.is_ok_and(|ended| ended.success()));
    three.run();
    three.until("a whole cluster again", is_whole);
    one.json(&["kv", "put", "fixture/b", "three"]);
    one.json(&["kv", "put", "fixture/after", "the snapshot"]);
    one.json(&["token", "create", "--ttl", "24h"]);
    until_it_has(&three, "fixture/after", "the snapshot");
    assert_eq!(three.stop(), Some(0), "{}", three.log());

    let name = format!("{}-node.tar.gz", env!("CARGO_PKG_VERSION"));
    let archive = Path::new(env!("CARGO_MANIFEST_DIR")).join("storage/fixtures").join(name);
    // sorted, and without what only a running node has: the archive says nothing of the machine that it was made on
    let packed = Command::new("tar")
        .args(["--sort=name", "--numeric-owner", "--owner=0", "--group=0", "--exclude=d/pgdata", "--exclude=d/sock"])
        .args(["--exclude=*.log", "--exclude=*.sock", "-czf"])
        .arg(&archive)
        .arg("-C")
        .arg(three.folder.path())
        .args(["d", "node.toml"])
        .status();
    assert!(packed.is_ok_and(|ended| ended.success()));
    writeln!(std::io::stderr(), "{}: {} bytes", archive.display(), fs::metadata(&archive).unwrap().len()).unwrap();
}
