//! Playing one seed, or many on all cores, and telling what came of it.

use std::fmt;
use std::ops::Range;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use hasup::ha::rules::Rules;

use crate::cores::{Enough, on_all_cores};
use crate::faults::{Schedule, draw};
use crate::invariants::{Violation, i10_it_heals};
use crate::rng::Time;
use crate::world::World;

/// What came of one run.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// The first broken rule.
    pub violation: Option<Violation>,
    /// What two runs share only if they were the same.
    pub fingerprint: u64,
    /// The run as text, if asked for.
    pub trace: Vec<String>,
    /// Commits acknowledged.
    pub acknowledgements: u64,
    /// Promotions.
    pub promotions: usize,
    /// Events played.
    pub events: u64,
    /// How long after the last repair writes were back.
    pub back_after: Option<Time>,
}

impl Outcome {
    /// Returns the run in one line.
    pub fn summary(&self) -> String {
        format!(
            "seed {}: {} events, {} commits acknowledged, {} promotions, fingerprint {:016x}",
            self.seed, self.events, self.acknowledgements, self.promotions, self.fingerprint
        )
    }
}

/// Plays `seed`.
pub fn play(seed: u64, rules: Rules, is_traced: bool) -> Outcome {
    play_schedule(seed, &draw(seed), rules, is_traced)
}

/// Plays `schedule`, with chance drawn from `seed`.
pub fn play_schedule(seed: u64, schedule: &Schedule, rules: Rules, is_traced: bool) -> Outcome {
    let mut world = World::new(schedule, rules, seed, is_traced);
    world.play(schedule.end);
    if world.violation.is_none() {
        world.now = schedule.end;
        i10_it_heals::check(&mut world);
    }
    let back_after = world.healed_at.zip(world.recovered_at).map(|(healed, back)| back.saturating_sub(healed));
    Outcome {
        seed,
        violation: world.violation,
        fingerprint: world.fingerprint,
        trace: world.trace.unwrap_or_default(),
        acknowledgements: world.acknowledgements,
        promotions: world.instances.len() - 1,
        events: world.events,
        back_after,
    }
}

/// What came of many runs.
pub struct Report {
    /// How many.
    pub seeds: u64,
    /// The failing ones, by seed.
    pub failures: Vec<Outcome>,
    /// Real time.
    pub took: Duration,
    /// Commits acknowledged in all.
    pub acknowledgements: u64,
    /// Promotions in all.
    pub promotions: u64,
    /// Events in all.
    pub events: u64,
    /// The longest wait for writes after the last repair.
    pub slowest: Option<(Time, u64)>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} schedules in {:.1} s: {} events, {} promotions, {} commits acknowledged, {} broken",
            self.seeds,
            self.took.as_secs_f64(),
            self.events,
            self.promotions,
            self.acknowledgements,
            self.failures.len()
        )?;
        if let Some((span, seed)) = self.slowest {
            writeln!(f, "writes were back after the last repair within {:.3} s (seed {seed})", span as f64 / 1e9)?;
        }
        for failure in self.failures.iter().take(40) {
            if let Some(violation) = &failure.violation {
                let at = violation.at as f64 / 1e9;
                writeln!(f, "  seed {:>6} at {at:>7.3} s  {}: {}", failure.seed, violation.rule, violation.what)?;
            }
        }
        Ok(())
    }
}

impl Report {
    /// Panics with the way to replay the first failure, and its end.
    pub fn assert_green(&self) {
        let Some(first) = self.failures.first() else { return };
        let replay = play(first.seed, Rules::default(), true);
        let from = replay.trace.len().saturating_sub(60);
        println!("the end of seed {}:\n{}", first.seed, replay.trace[from..].join("\n"));
        panic!(
            "{} of {} schedules broke a rule; replay: HASUP_SIM_SEED={} cargo test -p raft-tests --release --test sim \
             every_invariant -- --nocapture",
            self.failures.len(),
            self.seeds,
            first.seed
        );
    }
}

/// Plays every seed of `seeds` on all cores.
pub fn play_all(seeds: Range<u64>, rules: Rules) -> Report {
    let began = Instant::now();
    let count = seeds.end - seeds.start;
    let report = Mutex::new(Report {
        seeds: count,
        failures: Vec::new(),
        took: Duration::ZERO,
        acknowledgements: 0,
        promotions: 0,
        events: 0,
        slowest: None,
    });
    on_all_cores(seeds, |seed| {
        let outcome = play(seed, rules, false);
        let mut report = report.lock().expect("no thread panics while it holds the report");
        report.acknowledgements += outcome.acknowledgements;
        report.promotions += outcome.promotions as u64;
        report.events += outcome.events;
        report.slowest = report.slowest.max(outcome.back_after.map(|span| (span, seed)));
        if outcome.violation.is_some() {
            report.failures.push(outcome);
        }
        Enough::NotYet
    });
    let mut report = report.into_inner().expect("no thread panics while it holds the report");
    report.failures.sort_by_key(|failure| failure.seed);
    report.took = began.elapsed();
    report
}
