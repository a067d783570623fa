//! Figures, printed and not judged: what a large store costs at a start.

use std::fs::File;
use std::io::BufWriter;
use std::time::Duration;

use hasup::codec::encode;
use hasup::kv::{Command, KvCommand, Proposal, State, snapshot};
use hasup::raft::state_machine::StateMachine;
use hasup::raft::types::{LogId, SnapshotMeta, StoredMembership};
use hasup::sys::clock::boot_now;
use openraft::vote::leader_id_std::CommittedLeaderId;

const KEYS: u64 = 1_000_000;

#[test]
fn a_million_keys_are_opened() {
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
    let opened = machine.unwrap().watch().borrow().clone();
    assert_eq!(opened.index, KEYS);
    assert_eq!(opened.state.table.get(b"service/007/0000007").map(|entry| entry.value.len()), Some(64));
}
