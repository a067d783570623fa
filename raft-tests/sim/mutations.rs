//! Rules left out on purpose, one by one: a simulator that does not notice is not worth its time.

use std::time::Instant;

use hasup::ha::rules::{Mutation, Rules};

use crate::cores::lowest;
use crate::run::{Outcome, play};

/// Each mutation is found within so many schedules.
const WITHIN: u64 = 5_000;

/// Those that a run of the brain against these models can show.
const SHOWN_HERE: [Mutation; 24] = [
    Mutation::SkipLeaseWait,
    Mutation::AcknowledgeAfterBar,
    Mutation::LeaveReceiverOpen,
    Mutation::BarNotDurable,
    Mutation::StateBeforeBar,
    Mutation::UnderstateAfterRestart,
    Mutation::LeaseFromArrival,
    Mutation::CountReplayed,
    Mutation::ResignationNotDurable,
    Mutation::ResignationWithoutBars,
    Mutation::ResignationWithoutPositions,
    Mutation::VotesWithoutData,
    Mutation::RankLsnBeforeTimeline,
    Mutation::TimelinesCollide,
    Mutation::RebuildingAnswers,
    Mutation::FetchFromUnbarred,
    Mutation::StateBeforeFetched,
    Mutation::PromoteWithoutLease,
    Mutation::AskWhileFenced,
    Mutation::DropOldCommitSet,
    Mutation::NamesBeforeRecord,
    Mutation::OpenTooEarly,
    Mutation::SingleVoterSet,
    Mutation::AcceptStale,
];

/// Those of Raft itself, which is abstract here: schedules of the real one show them.
const SHOWN_WITH_RAFT: [Mutation; 2] = [Mutation::GrantPreVotesBlindly, Mutation::VoteWithoutSync];

/// Returns the lowest seed of `0..within` that shows `mutation`, played on all cores.
fn first_seed_that_shows(mutation: Mutation, within: u64) -> Option<Outcome> {
    let shown = |seed| Some(play(seed, Rules::without(mutation), false)).filter(|outcome| outcome.violation.is_some());
    lowest(within, shown).map(|(_, outcome)| outcome)
}

#[test]
fn every_rule_left_out_is_missed() {
    let began = Instant::now();
    let mut missed = Vec::new();
    println!("{:<28} {:>5}  {:<4} what happened", "rule left out", "seed", "rule");
    for mutation in SHOWN_HERE {
        match first_seed_that_shows(mutation, WITHIN).and_then(|outcome| Some((outcome.seed, outcome.violation?))) {
            Some((seed, violation)) => {
                println!("{:<28} {seed:>5}  {:<4} {}", mutation.to_string(), violation.rule, violation.what);
            }
            None => {
                println!("{:<28} {:>5}  {:<4} nobody noticed", mutation.to_string(), "-", "-");
                missed.push(mutation);
            }
        }
    }
    for mutation in SHOWN_WITH_RAFT {
        match crate::real::first_seed_that_shows(mutation, WITHIN) {
            Some((seed, broken)) => {
                println!("{:<28} {seed:>5}  {:<4} {}", mutation.to_string(), broken.rule, broken.what);
            }
            None => {
                println!("{:<28} {:>5}  {:<4} nobody noticed", mutation.to_string(), "-", "-");
                missed.push(mutation);
            }
        }
    }
    println!("in {:.1} s", began.elapsed().as_secs_f64());
    assert!(missed.is_empty(), "not noticed within {WITHIN} schedules: {missed:?}");
}
