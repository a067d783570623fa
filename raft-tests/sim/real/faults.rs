//! What happens to the group in a run, drawn from its seed.

use std::collections::BTreeSet;
use std::time::Duration;

use hasup::types::NodeId;
use tokio::time::{Instant, sleep};

use super::group::{Group, NODES, SYNC_MICROS};
use crate::rng::Rng;

/// How long a change of members may take.
const CHANGE: Duration = Duration::from_secs(3);

fn millis(rng: &mut Rng, low: u64, high: u64) -> Duration {
    Duration::from_millis(rng.between(low, high))
}

fn all() -> Vec<NodeId> {
    (1..=NODES).map(NodeId).collect()
}

/// The voters that a leader knows, or the first three.
fn voters(group: &Group) -> Vec<NodeId> {
    let known = group.leader().map(|(_, consensus)| consensus.leadership().borrow().voters.clone());
    let sets = known.unwrap_or_default();
    match sets.is_empty() {
        true => [1, 2, 3].map(NodeId).into(),
        false => sets.into_iter().flatten().collect::<BTreeSet<_>>().into_iter().collect(),
    }
}

/// Breaks and mends until `end`.
pub async fn run(group: &Group, rng: &mut Rng, end: Instant) {
    while Instant::now() < end && !group.oracle.is_broken() {
        sleep(millis(rng, 0, 1500)).await;
        match rng.between(0, 15) {
            0 | 1 => crash_one(group, rng).await,
            2 => power_cut(group, rng).await,
            3 => crash_leader(group, rng).await,
            4 | 5 => bridge_and_restart_between(group, rng).await,
            6 => isolate(group, rng).await,
            7 => one_way(group, rng).await,
            8 => split(group, rng).await,
            9 => slow(group, rng).await,
            10 => stall_disk(group, rng).await,
            11 => hand_over(group, rng).await,
            12 | 13 => change_members(group, rng).await,
            _ => probe_disturbance(group, rng).await,
        }
        if rng.chance(600) {
            group.net.heal();
        }
    }
}

/// Restarts `node` after `off`.
async fn restart(group: &Group, node: NodeId, off: Duration) {
    group.crash(node);
    sleep(off).await;
    if group.net.node(node).is_none() {
        group.start(node).await;
    }
}

async fn crash_one(group: &Group, rng: &mut Rng) {
    let node = rng.pick(&voters(group));
    let off = millis(rng, 2, 2500);
    restart(group, node, off).await;
}

async fn crash_leader(group: &Group, rng: &mut Rng) {
    let Some((leader, _)) = group.leader() else { return };
    let off = millis(rng, 2, 1500);
    restart(group, leader, off).await;
}

async fn power_cut(group: &Group, rng: &mut Rng) {
    let nodes = all();
    for node in &nodes {
        group.crash(*node);
        sleep(Duration::from_micros(rng.between(0, 3000))).await;
    }
    for node in nodes {
        sleep(millis(rng, 1, 400)).await;
        group.start(node).await;
    }
}

/// The leader's power fails, the two others hear nothing but the leader's machine, and that loses its power again whenever it
/// has just voted for one of them.
async fn bridge_and_restart_between(group: &Group, rng: &mut Rng) {
    calm(group).await;
    let Some((middle, _)) = group.leader() else { return };
    let ends: Vec<NodeId> = voters(group).into_iter().filter(|node| *node != middle).collect();
    let [left, right] = ends[..] else { return };
    group.oracle.note(|| format!("only node {middle} is between {left} and {right}"));
    group.net.cut(left, right);
    group.net.cut(right, left);
    let off = millis(rng, 500, 1300);
    restart(group, middle, off).await;
    for end in ends {
        group.net.slow(end, middle, rng.between(0, 150_000));
    }
    for _ in 0..rng.between(1, 4) {
        let (before, end) = (group.votes(middle), Instant::now() + Duration::from_millis(1500));
        while Instant::now() < end && group.votes(middle) == before {
            sleep(Duration::from_millis(1)).await;
        }
        sleep(millis(rng, 0, 2)).await;
        let off = millis(rng, 1, 40);
        restart(group, middle, off).await;
    }
    sleep(millis(rng, 200, 1500)).await;
    group.net.heal();
}

async fn isolate(group: &Group, rng: &mut Rng) {
    let node = rng.pick(&voters(group));
    cut_off(group, node);
    sleep(millis(rng, 100, 3000)).await;
}

fn cut_off(group: &Group, node: NodeId) {
    group.oracle.note(|| format!("node {node} is cut off"));
    for other in all() {
        group.net.cut(node, other);
        group.net.cut(other, node);
    }
}

async fn one_way(group: &Group, rng: &mut Rng) {
    for _ in 0..rng.between(1, 5) {
        let (from, to) = (rng.pick(&all()), rng.pick(&all()));
        group.net.cut(from, to);
    }
    sleep(millis(rng, 100, 3000)).await;
}

async fn split(group: &Group, rng: &mut Rng) {
    let sides: Vec<(NodeId, bool)> = all().into_iter().map(|node| (node, rng.chance(500))).collect();
    for (from, left) in &sides {
        for (to, right) in &sides {
            if left != right {
                group.net.cut(*from, *to);
            }
        }
    }
    sleep(millis(rng, 100, 3000)).await;
}

async fn slow(group: &Group, rng: &mut Rng) {
    for _ in 0..rng.between(1, 8) {
        let (from, to, micros) = (rng.pick(&all()), rng.pick(&all()), rng.between(1_000, 900_000));
        group.net.slow(from, to, micros);
    }
    group.net.lose(rng.between(0, 150));
    sleep(millis(rng, 100, 3000)).await;
}

async fn stall_disk(group: &Group, rng: &mut Rng) {
    let (node, most) = (rng.pick(&all()), rng.between(20_000, 1_500_000));
    group.set_disk_speed(node, (most / 2, most));
    sleep(millis(rng, 100, 2500)).await;
    group.set_disk_speed(node, SYNC_MICROS);
}

async fn hand_over(group: &Group, rng: &mut Rng) {
    let Some((_, leader)) = group.leader() else { return };
    let to = rng.pick(&voters(group));
    let said = leader.transfer_leader(to, CHANGE).await;
    group.oracle.note(|| format!("leadership to node {to}: {said:?}"));
}

async fn change_members(group: &Group, rng: &mut Rng) {
    let Some((me, leader)) = group.leader() else { return };
    let node = rng.pick(&all());
    let known = leader.leadership().borrow().clone();
    let mut voters: BTreeSet<NodeId> = known.voters.iter().flatten().copied().collect();
    let said = if voters.contains(&node) && node != me && voters.len() > 2 && rng.chance(500) {
        leader.remove(node, CHANGE).await
    } else if known.learners.contains(&node) {
        // One in, and maybe another one out, in one change.
        voters.insert(node);
        if voters.len() > 3 || rng.chance(300) {
            let out = rng.pick(&voters.iter().copied().collect::<Vec<_>>());
            voters.remove(&out);
        }
        leader.change_voters(&voters, CHANGE).await
    } else {
        leader.add_learner(node, CHANGE).await
    };
    group.oracle.note(|| format!("members {voters:?}, about node {node}: {said:?}"));
}

/// A follower that was cut off from a healthy group and comes back must not cost it its leader.
async fn probe_disturbance(group: &Group, rng: &mut Rng) {
    calm(group).await;
    let is_quiet = |group: &Group| {
        let Some((me, leader)) = group.leader() else { return false };
        let known = leader.leadership().borrow().clone();
        let voters = known.voters.first().cloned().unwrap_or_default();
        let committed = group.oracle.last_committed();
        known.is_settled
            && voters.contains(&me)
            && voters.len() >= 3
            && known.last_log == known.committed
            && voters.iter().all(|node| known.matched.get(node).copied().unwrap_or(0) + 3 >= committed || *node == me)
            && all().iter().all(|node| {
                let there = group.net.node(*node).map(|node| node.leadership().borrow().clone());
                !voters.contains(node)
                    || there.is_some_and(|there| there.term == known.term && there.leader == Some(me))
            })
    };
    if !group.within(Duration::from_secs(6), is_quiet).await {
        return;
    }
    sleep(Duration::from_millis(1500)).await;
    if !is_quiet(group) {
        return;
    }
    let Some((leader, consensus)) = group.leader() else { return };
    let term = consensus.leadership().borrow().term;
    let others: Vec<NodeId> = voters(group).into_iter().filter(|node| *node != leader).collect();
    let node = rng.pick(&others);
    cut_off(group, node);
    sleep(millis(rng, 300, 3500)).await;
    group.net.heal();
    group.oracle.note(|| format!("node {node} is back"));
    sleep(Duration::from_secs(2)).await;
    let after = group.leader().map(|(leader, consensus)| (leader, consensus.leadership().borrow().term));
    if after != Some((leader, term)) {
        group.oracle.broken(
            "R6",
            format!("node {node} was cut off and came back: node {leader} led in term {term}, and now {after:?}"),
        );
    }
}

/// Mends everything and turns everything on.
pub async fn calm(group: &Group) {
    group.net.heal();
    for node in all() {
        group.set_disk_speed(node, SYNC_MICROS);
        if group.net.node(node).is_none() {
            group.start(node).await;
        }
    }
}
