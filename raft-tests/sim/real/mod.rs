//! The real Raft: openraft under hasup's own handle, state machine and wire format, in virtual time, over modelled disks and
//! wires.
//!
//! `HASUP_SIM_RAFT_SEEDS=n` sets how many schedules are played, `HASUP_SIM_RAFT_SEED=n` plays one and prints what happens.
//! A seed decides faults, delays, losses, clients and election timeouts. It does not decide in which order tokio wakes those
//! who wait for the same thing, so a seed plays nearly the same again, and a schedule that fails prints itself at once.
//!
//! What is checked: R1 one leader a term; R2 what is committed stays; R3 answers are linearizable, and a repeated request is
//! carried out once; R4 equal logs make equal states; R5 the group heals when its faults have; R6 a healthy leader is not
//! disturbed by who comes back.

mod clients;
mod disk;
mod faults;
mod group;
mod net;
mod oracle;

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hasup::ha::rules::{Mutation, Rules};
use hasup::types::NodeId;

use self::group::{Group, NODES};
use self::oracle::{Broken, Oracle, Verdict};
use crate::cores::{Enough, lowest, on_all_cores};
use crate::rng::Rng;

/// How many schedules are played unless told otherwise.
const SEEDS: u64 = 300;
/// Faults end after so long.
const FAULTS: Duration = Duration::from_secs(25);
/// Writes are back so long after the last fault, and all nodes have everything.
const HEALED_WITHIN: Duration = Duration::from_secs(10);
/// So much of the first schedule that fails is printed.
const TRACE_LINES: usize = 300;
/// Clients that ask at the same time.
const CLIENTS: u64 = 3;

/// Plays the schedule of `seed`.
pub fn play(seed: u64, rules: Rules) -> Verdict {
    hasup::raft::runtime::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let verdict = runtime.block_on(async {
        let oracle = Oracle::new();
        let group = Group::new(seed, rules, oracle.clone());
        let whole = tokio::time::timeout(Duration::from_secs(300), run(&group, seed)).await;
        if whole.is_err() {
            oracle.broken("R5", "the schedule does not end".to_owned());
        }
        oracle.judge()
    });
    runtime.shutdown_background();
    verdict
}

async fn run(group: &Group, seed: u64) {
    let mut rng = Rng::new(seed);
    form(group).await;
    for _ in 0..CLIENTS {
        group.tasks.spawn("client", clients::run(group.clone(), Rng::new(rng.bits())));
    }
    faults::run(group, &mut rng, tokio::time::Instant::now() + FAULTS).await;
    if !group.oracle.is_broken() {
        heal(group, &mut rng).await;
    }
}

/// Makes a group of the first three.
async fn form(group: &Group) {
    for node in 1..=NODES {
        group.start(NodeId(node)).await;
    }
    let first = group.net.node(NodeId(1)).expect("it has just started");
    first.initialize_single().await.expect("it is empty");
    let formed = make_three_vote(group, Duration::from_secs(5)).await;
    if !formed {
        group.oracle.broken("R5", "three nodes do not become a group".to_owned());
    }
}

/// Lets nodes 1, 2 and 3 vote, whoever does now.
async fn make_three_vote(group: &Group, deadline: Duration) -> bool {
    let wanted: BTreeSet<NodeId> = [1, 2, 3].map(NodeId).into();
    let end = tokio::time::Instant::now() + deadline;
    let step = Duration::from_secs(1);
    while tokio::time::Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let Some((_, leader)) = group.leader() else { continue };
        let known = leader.leadership().borrow().clone();
        if known.is_settled && known.voters == [wanted.clone()] {
            return true;
        }
        let members = known.voters.iter().flatten().chain(&known.learners).copied().collect::<BTreeSet<_>>();
        for node in wanted.difference(&members) {
            // Asked again in the next round.
            let _ = leader.add_learner(*node, step).await;
        }
        let _ = leader.change_voters(&wanted, step).await;
    }
    false
}

/// Mends everything; then writes must return, members must change, and all must come to the same state.
async fn heal(group: &Group, rng: &mut Rng) {
    faults::calm(group).await;
    group.oracle.note(|| "all is mended".to_owned());
    let Some(_) = clients::write_until_done(group, rng, HEALED_WITHIN).await else {
        return group.oracle.broken("R5", format!("no write within {HEALED_WITHIN:?} after the last fault"));
    };
    if !make_three_vote(group, HEALED_WITHIN).await {
        return group.oracle.broken("R5", "members cannot be changed any more".to_owned());
    }
    let Some(index) = clients::write_until_done(group, rng, HEALED_WITHIN).await else {
        return group.oracle.broken("R5", "no write after the change of members".to_owned());
    };
    let index = index.max(group.oracle.last_committed());
    for node in [1, 2, 3].map(NodeId) {
        let Some(consensus) = group.net.node(node) else { continue };
        match consensus.wait_applied(index, HEALED_WITHIN).await {
            Ok(applied) => group::show(&consensus, &applied, &group.oracle),
            Err(error) => {
                let seen = |node| group.net.node(node).map(|node| node.leadership().borrow().clone());
                let leader = group.leader().map(|(leader, _)| leader);
                group.oracle.note(|| format!("it sees {:?}, the leader {:?}", seen(node), leader.and_then(seen)));
                let what = format!("node {node} does not get to entry {index}: {error}");
                return group.oracle.broken("R5", what);
            }
        }
    }
}

/// Returns the lowest of the first `within` seeds that shows `mutation`.
pub fn first_seed_that_shows(mutation: Mutation, within: u64) -> Option<(u64, Broken)> {
    lowest(within, |seed| play(seed, Rules::without(mutation)).broken)
}

#[test]
fn real_raft_keeps_its_promises_in_every_schedule() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    if let Some(seed) = number("HASUP_SIM_RAFT_SEED") {
        let verdict = play(seed, Rules::default());
        println!("{}", verdict.trace.join("\n"));
        assert!(verdict.broken.is_none(), "{:?}", verdict.broken);
        return;
    }
    let seeds = number("HASUP_SIM_RAFT_SEEDS").unwrap_or(SEEDS);
    #[allow(clippy::disallowed_methods, reason = "how long the machine took, not a node")]
    let began = Instant::now();
    let sums = Mutex::new((0, 0, 0));
    let failures = Mutex::new(Vec::new());
    let shown = Mutex::new(false);
    on_all_cores(0..seeds, |seed| {
        let verdict = play(seed, Rules::default());
        let mut sums = sums.lock().unwrap();
        sums.0 += verdict.elections;
        sums.1 += verdict.entries;
        sums.2 += verdict.operations;
        if let Some(broken) = verdict.broken {
            if !std::mem::replace(&mut *shown.lock().unwrap(), true) {
                let from = verdict.trace.len().saturating_sub(TRACE_LINES);
                println!("the end of seed {seed}:\n{}", verdict.trace[from..].join("\n"));
            }
            failures.lock().unwrap().push((seed, broken));
        }
        Enough::NotYet
    });
    let (elections, entries, operations) = sums.into_inner().unwrap();
    let mut failures = failures.into_inner().unwrap();
    failures.sort_by_key(|(seed, _)| *seed);
    println!(
        "{seeds} schedules of the real Raft in {:.1} s: {elections} elections, {entries} entries committed, {operations} \
         operations answered, {} broken",
        began.elapsed().as_secs_f64(),
        failures.len()
    );
    for (seed, broken) in &failures {
        println!("  seed {seed:>6} at {:>7.3} s  {}: {}", broken.at, broken.rule, broken.what);
    }
    assert!(
        failures.is_empty(),
        "replay: HASUP_SIM_RAFT_SEED={} cargo test -p raft-tests --test sim real_raft",
        failures[0].0
    );
}
