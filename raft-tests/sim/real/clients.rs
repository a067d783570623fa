//! Clients that write and read, and tell the oracle what they were told.

use std::time::Duration;

use hasup::kv::{Command, KvCommand, Proposal, Reply};
use hasup::raft::{Consensus, ProposeError};
use hasup::types::NodeId;
use tokio::time::Instant;

use super::group::Group;
use super::oracle::{Done, What};
use crate::rng::Rng;

/// How many keys there are.
const KEYS: u64 = 3;
/// How long a client waits for one answer.
const PATIENCE: Duration = Duration::from_millis(700);

/// Asks without end.
pub async fn run(group: Group, mut rng: Rng) {
    let mut hint = None;
    let mut modified = [0u64; KEYS as usize + 1];
    loop {
        tokio::time::sleep(Duration::from_micros(rng.micros(5_000, 150_000) / 1_000)).await;
        let key = rng.between(1, KEYS) as u8;
        let expected = rng.chance(400).then_some(modified[usize::from(key)]);
        match rng.between(0, 9) {
            0..=4 => write(&group, &mut rng, &mut hint, put(key, expected)).await,
            5 => write(&group, &mut rng, &mut hint, KvCommand::Delete { key: vec![key].into(), expected }).await,
            _ => read(&group, &mut rng, hint, key, &mut modified[usize::from(key)]).await,
        }
    }
}

fn put(key: u8, expected: Option<u64>) -> KvCommand {
    KvCommand::Put { key: vec![key].into(), value: vec![].into(), flags: 0, expected }
}

fn choose(group: &Group, rng: &mut Rng, hint: Option<NodeId>) -> Option<Consensus> {
    let running = group.net.running();
    match hint {
        Some(hint) if rng.chance(850) => group.net.node(hint),
        _ if running.is_empty() => None,
        _ => group.net.node(rng.pick(&running)),
    }
}

/// Writes, repeating the same request until its fate is known or the client gives up.
async fn write(group: &Group, rng: &mut Rng, hint: &mut Option<NodeId>, mut command: KvCommand) {
    let id = u128::from(rng.bits());
    if let KvCommand::Put { value, .. } = &mut command {
        *value = id.to_le_bytes().to_vec().into();
    }
    let proposal = Proposal::new(id, 1, Command::Kv(command));
    let asked = Instant::now();
    for _ in 0..rng.between(1, 12) {
        if let Some(node) = choose(group, rng, *hint) {
            match node.propose(proposal.clone(), PATIENCE).await {
                Ok(reply) => return told(group, asked, id, Some(reply)),
                Err(ProposeError::NotLeader { leader }) => *hint = leader,
                Err(_) => *hint = None,
            }
        }
        tokio::time::sleep(Duration::from_millis(rng.between(1, 100))).await;
    }
    told(group, asked, id, None);
}

fn told(group: &Group, asked: Instant, id: u128, reply: Option<Reply>) {
    group.oracle.note(|| format!("request {id:x} gets {reply:?}"));
    let answered = reply.is_some().then(Instant::now);
    group.oracle.done(Done { asked, answered, what: What::Write(id, reply) });
}

/// Reads on the leader, or on another node after the leader's index.
async fn read(group: &Group, rng: &mut Rng, hint: Option<NodeId>, key: u8, modified: &mut u64) {
    let asked = Instant::now();
    let Some(leader) = choose(group, rng, hint) else { return };
    let Ok(index) = leader.read_index(PATIENCE).await else { return };
    let node = match rng.chance(400) {
        true => choose(group, rng, None),
        false => Some(leader),
    };
    let Some(node) = node else { return };
    let Ok(applied) = node.wait_applied(index, PATIENCE).await else { return };
    let entry = applied.state.table.get(&[key]);
    *modified = entry.map_or(0, |entry| entry.modify_index);
    let value = entry.map(|entry| entry.value.to_vec());
    group.oracle.note(|| format!("key {key} reads {value:?} after entry {}", applied.index));
    group.oracle.done(Done {
        asked,
        answered: Some(Instant::now()),
        what: What::Read { index: applied.index, key, value },
    });
}

/// Writes once through whoever leads, until it is answered or `deadline` passes; returns the index.
pub async fn write_until_done(group: &Group, rng: &mut Rng, deadline: Duration) -> Option<u64> {
    let id = u128::from(rng.bits());
    let mut command = put(1, None);
    if let KvCommand::Put { value, .. } = &mut command {
        *value = id.to_le_bytes().to_vec().into();
    }
    let proposal = Proposal::new(id, 1, Command::Kv(command));
    let (asked, end) = (Instant::now(), Instant::now() + deadline);
    while Instant::now() < end {
        if let Some((_, leader)) = group.leader()
            && let Ok(reply) = leader.propose(proposal.clone(), PATIENCE).await
        {
            let index = if let Reply::Applied { index } = reply { Some(index) } else { None };
            told(group, asked, id, Some(reply));
            return index;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    None
}
