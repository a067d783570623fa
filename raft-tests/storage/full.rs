//! Aim: a full disk stops Raft on a node, says so, loses nothing acknowledged, and a new start with room goes on.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use hasup::app::mend::until_failed_disk_takes_writes;
use hasup::kv::{Command as Change, KvCommand, Proposal, Reply};
use hasup::raft::{Consensus, RaftRpc, RaftTiming, RaftTransport, TransportError};
use hasup::types::NodeId;

const PATIENCE: Duration = Duration::from_secs(30);

/// A disk of few megabytes.
struct Small(PathBuf);

impl Small {
    fn mount(path: PathBuf) -> Result<Self, String> {
        std::fs::create_dir(&path).unwrap();
        let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=16m", "none"]).arg(&path).output();
        match mount {
            Ok(output) if output.status.success() => Ok(Self(path)),
            Ok(output) => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Writes until nothing more fits.
    fn fill(&self) {
        let mut file = File::create(self.0.join("fill")).unwrap();
        for size in [1 << 16, 1 << 12, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // What cannot be unmounted now goes with the namespace that holds it.
        let _ = Command::new("umount").args(["--lazy"]).arg(&self.0).output();
    }
}

pub(crate) struct Nobody;

impl RaftTransport for Nobody {
    fn call(&self, target: NodeId, _: RaftRpc, _: Duration) -> BoxFuture<'_, Result<Vec<u8>, TransportError>> {
        Box::pin(async move { Err(TransportError::Unreachable { target, why: "there is nobody".to_owned() }) })
    }
}

async fn open(folder: &Path) -> Consensus {
    Consensus::open(folder, NodeId(1), RaftTiming::default(), Arc::new(Nobody)).await.unwrap()
}

async fn until_leader(consensus: &Consensus) {
    let mut known = consensus.leadership();
    tokio::time::timeout(PATIENCE, known.wait_for(|known| known.is_leader)).await.unwrap().unwrap();
}

fn put(number: u128) -> Proposal {
    let value = vec![number as u8; 20_000];
    let put =
        KvCommand::Put { key: number.to_string().into_bytes().into(), value: value.into(), flags: 0, expected: None };
    Proposal::new(number, 1, Change::Kv(put))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn raft_that_a_full_disk_stopped_goes_on_after_a_start_with_room() {
    let folder = tempfile::tempdir().unwrap();
    let disk = match Small::mount(folder.path().join("disk")) {
        Ok(disk) => disk,
        Err(missing) => {
            let name = "raft_that_a_full_disk_stopped_goes_on_after_a_start_with_room";
            return raft_tests::program::skip(name, &format!("needs root and tmpfs: {missing}"));
        }
    };
    let path = disk.0.join("raft");
    let consensus = open(&path).await;
    consensus.initialize_single().await.unwrap();
    until_leader(&consensus).await;
    let mut acknowledged = Vec::new();
    for number in 1..=20 {
        assert!(matches!(consensus.propose(put(number), PATIENCE).await, Ok(Reply::Applied { .. })));
        acknowledged.push(number);
    }
    disk.fill();
    for number in 21..=400 {
        if consensus.propose(put(number), Duration::from_secs(5)).await.is_err() {
            break;
        }
        acknowledged.push(number);
    }
    let mut known = consensus.leadership();
    let failed = tokio::time::timeout(PATIENCE, known.wait_for(|known| known.failed.is_some())).await;
    println!("after {} writes: {:?}", acknowledged.len(), failed.unwrap().unwrap().failed);

    // While the disk is full nothing is done; with room it is seen.
    let seen = until_failed_disk_takes_writes(consensus.leadership(), &path);
    let mut seen = std::pin::pin!(seen);
    assert!(tokio::time::timeout(Duration::from_secs(4), seen.as_mut()).await.is_err(), "the disk is full");
    std::fs::remove_file(disk.0.join("fill")).unwrap();
    tokio::time::timeout(PATIENCE, seen).await.unwrap();
    tokio::time::timeout(PATIENCE, consensus.shutdown()).await.unwrap();
    drop(consensus);

    let consensus = open(&path).await;
    until_leader(&consensus).await;
    let index = consensus.read_index(PATIENCE).await.unwrap();
    let applied = consensus.wait_applied(index, PATIENCE).await.unwrap();
    for number in acknowledged {
        assert!(applied.state.table.get(number.to_string().as_bytes()).is_some(), "write {number} is gone");
    }
    assert!(matches!(consensus.propose(put(1000), PATIENCE).await, Ok(Reply::Applied { .. })));
    consensus.shutdown().await;
}
