//! Figures, printed and not judged: what the order of sled's writes costs a commit.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use hasup::kv::{Command, KvCommand, Proposal};
use hasup::raft::LogHandle;
use hasup::raft::log_store::LogStore;
use hasup::raft::types::{Entry, LogId};
use hasup::sys::clock::boot_now;
use hasup::types::NodeId;
use openraft::EntryPayload;
use openraft::storage::RaftLogStorageExt;
use openraft::vote::leader_id_std::CommittedLeaderId;
use rustix::fs::{IFlags, ioctl_getflags, ioctl_setflags};

const PAIRS: usize = 8;
const APPENDS: u64 = 250;

fn entry(index: u64) -> Entry {
    let put = KvCommand::Put { key: "key".into(), value: vec![b'v'; 500].into(), flags: 0, expected: None };
    let proposal = Proposal::new(u128::from(index), 1, Command::Kv(put));
    Entry { log_id: LogId::new(CommittedLeaderId { term: 1 }, index), payload: EntryPayload::Normal(proposal) }
}

/// Appends one by one; returns how long one took in the median.
async fn median_append(folder: &Path, ordered: bool) -> Duration {
    let mut log = LogStore::open(folder, NodeId(1)).unwrap();
    if !ordered {
        let file = File::open(folder.join("db")).unwrap();
        let flags = ioctl_getflags(&file).unwrap();
        ioctl_setflags(&file, flags.difference(IFlags::SYNC)).unwrap();
    }
    let mut took = Vec::new();
    for index in 0..APPENDS {
        let began = boot_now();
        log.blocking_append([entry(index)]).await.unwrap();
        took.push(boot_now().since(began));
    }
    log.close().await;
    took.sort_unstable();
    took[took.len() / 2]
}

#[tokio::test]
async fn an_append_takes_about_as_long_with_ordered_writes_as_without() {
    let folder = tempfile::tempdir().unwrap();
    let mut ratios = Vec::new();
    for pair in 0..PAIRS {
        let with = median_append(&folder.path().join(format!("with-{pair}")), true).await;
        let without = median_append(&folder.path().join(format!("without-{pair}")), false).await;
        println!("an append of 500 bytes: {with:?} with ordered writes, {without:?} without");
        ratios.push(with.as_secs_f64() / without.as_secs_f64());
    }
    ratios.sort_by(f64::total_cmp);
    println!("ratio: {:.2} in the median, {:.2} to {:.2}", ratios[PAIRS / 2], ratios[0], ratios[PAIRS - 1]);
}
