//! A large store: what it costs at a start, printed; and that a snapshot of it holds no writer up, judged.

use std::fs::File;
use std::io::BufWriter;
use std::time::Duration;

use futures_util::FutureExt;
use hasup::codec::encode;
use hasup::kv::{Command, KvCommand, Proposal, State, snapshot};
use hasup::raft::state_machine::StateMachine;
use hasup::raft::types::{Entry, LogId, SnapshotMeta, StoredMembership};
use hasup::sys::clock::boot_now;
use openraft::EntryPayload;
use openraft::storage::{RaftSnapshotBuilder, RaftStateMachine};
use openraft::vote::leader_id_std::CommittedLeaderId;

const KEYS: u64 = 1_000_000;

/// The longest pause of a writer, as a part of the time in which a snapshot is made: a copy of the store would be half of it.
const PAUSE_MOST: f64 = 0.1;

#[test]
fn a_million_keys_are_opened_and_a_snapshot_of_them_holds_no_writer_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut state = State::new();
    for number in 1..=KEYS {
        let key = format!("service/{:03}/{number:07}", number % 1000).into_bytes();
        let put = KvCommand::Put { key: key.into(), value: vec![b'v'; 64].into(), flags: 0, expected: None };
        state.apply(number, &Proposal::new(u128::from(number), 1, Command::Kv(put)));
    }
    let last_log_id = Some(LogId::new(CommittedLeaderId { term: 1 }, KEYS));
    let meta = SnapshotMeta { last_log_id, last_membership: StoredMembership::default() };
    let path = folder.path().join(format!("snapshot-{KEYS:020}-{:020}", 1));
    let timed = |what: &str, work: &mut dyn FnMut()| {
        let began = boot_now();
        work();
        let took: Duration = boot_now().since(began);
        println!("{what} a store of {KEYS} keys: {:.2} s", took.as_secs_f64());
    };
    timed("writing", &mut || {
        snapshot::write(&state, &encode(&meta), BufWriter::new(File::create(&path).unwrap())).unwrap();
    });
    drop(std::mem::take(&mut state));
    println!("its snapshot has {} MiB", std::fs::metadata(&path).unwrap().len() >> 20);
    let mut machine = None;
    timed("opening", &mut || machine = Some(StateMachine::open(folder.path()).unwrap()));
    let mut machine = machine.unwrap();
    let opened = machine.watch().borrow().clone();
    assert_eq!(opened.index, KEYS);
    assert_eq!(opened.state.table.get(b"service/007/0000007").map(|entry| entry.value.len()), Some(64));
    drop(opened);

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (writes, longest, took) = runtime.block_on(async {
        let mut builder = machine.get_snapshot_builder().await;
        let began = boot_now();
        let mut building = std::pin::pin!(tokio::spawn(async move { builder.build_snapshot().await.map(drop) }));
        let (mut writes, mut longest) = (0, Duration::ZERO);
        loop {
            let before = boot_now();
            writes += 1;
            let stream = futures_util::stream::iter([Ok((put(KEYS + writes), None))]);
            machine.apply(stream).await.unwrap();
            longest = longest.max(boot_now().since(before));
            if let Some(built) = building.as_mut().now_or_never() {
                built.unwrap().unwrap();
                return (writes, longest, boot_now().since(began));
            }
        }
    });
    let part = longest.as_secs_f64() / took.as_secs_f64();
    println!(
        "a snapshot took {:.2} s, {writes} writes came beside it, the longest {:.1} ms ({:.1} %)",
        took.as_secs_f64(),
        longest.as_secs_f64() * 1e3,
        part * 1e2
    );
    assert!(part < PAUSE_MOST, "a write waited {longest:?} of the {took:?} that the snapshot took");
    assert!(writes > 1000, "only {writes} writes came through");
    let (written, meta) = {
        let kept = runtime.block_on(machine.get_current_snapshot()).unwrap().unwrap();
        (kept.snapshot.len(), kept.meta)
    };
    assert_eq!(meta.last_log_id, last_log_id, "the snapshot is of the state before the writes");
    assert!(written > KEYS);
}

/// Returns the entry that changes one of the keys.
fn put(index: u64) -> Entry {
    let key = format!("service/{:03}/{:07}", index % 1000, index % KEYS).into_bytes();
    let put = KvCommand::Put { key: key.into(), value: vec![b'w'; 64].into(), flags: 0, expected: None };
    let log_id = LogId::new(CommittedLeaderId { term: 1 }, index);
    Entry { log_id, payload: EntryPayload::Normal(Proposal::new(u128::from(index), 1, Command::Kv(put))) }
}
