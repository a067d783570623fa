//! Simulation: many nodes of the real brain under a seeded scheduler, against models of everything else.
//!
//! `HASUP_SIM_SEEDS=n` sets how many schedules are played, `HASUP_SIM_SEED=n` plays one and prints what happens in it.

mod act;
mod control;
mod cores;
mod event;
mod faults;
mod invariants;
mod mutations;
mod node;
mod postgres;
mod raft;
mod real;
mod regressions;
mod rng;
mod run;
mod wal;
mod world;

use hasup::ha::rules::Rules;

/// How many schedules are played unless told otherwise.
const SEEDS: u64 = 1_500;

#[test]
fn every_invariant_holds_in_every_schedule() {
    let only = std::env::var("HASUP_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    if let Some(seed) = only {
        let outcome = run::play(seed, Rules::default(), true);
        println!("{}", outcome.trace.join("\n"));
        println!("{}", outcome.summary());
        assert!(outcome.violation.is_none(), "{:?}", outcome.violation);
        return;
    }
    let seeds = std::env::var("HASUP_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let first = std::env::var("HASUP_SIM_FIRST").ok().and_then(|first| first.parse().ok()).unwrap_or(0);
    let report = run::play_all(first..first + seeds, Rules::default());
    println!("{report}");
    report.assert_green();
}

#[test]
fn a_seed_played_twice_is_the_same_run_bit_for_bit() {
    for seed in [3, 17, 40] {
        let (first, second) = (run::play(seed, Rules::default(), true), run::play(seed, Rules::default(), true));
        assert_eq!(first.fingerprint, second.fingerprint);
        assert_eq!(first.trace, second.trace);
        let silent = run::play(seed, Rules::default(), false);
        assert_eq!(first.fingerprint, silent.fingerprint, "tracing changes nothing");
    }
}
