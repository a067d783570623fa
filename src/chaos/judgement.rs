//! From the facts of a run to its verdict. Pure.
//!
//! - `violated`: a checker found a promise broken.
//! - `inconclusive`: none was, but the run proves less than its schedule says, and why is told.
//! - `ok`: every checker had something to look at and found nothing, every fault bit, and the clients worked.

use std::time::Duration;

use serde::Serialize;

use super::checkers::{Found, Verdict};
use super::journal::Journal;
use super::kinds::Kind;
use super::whole_millis;
use crate::types::BootTime;

/// Writes that tell how fast a client is while nothing disturbs it.
const UNDISTURBED_MIN: usize = 20;
/// Less calm time than this says nothing about a client's speed.
const CALM_MIN: Duration = Duration::from_millis(500);

/// The verdict on a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Word {
    /// Everything that was promised was kept, and looked at.
    Ok,
    /// A promise was broken.
    Violated,
    /// The run proves less than its schedule says.
    Inconclusive,
}

impl Word {
    /// Returns the word.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Violated => "violated",
            Self::Inconclusive => "inconclusive",
        }
    }
}

/// A step that the machine could not do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The statement.
    pub step: String,
    /// Its kind.
    pub kind: Kind,
    /// What the machine lacks.
    pub why: String,
    /// Whether the operator gave leave.
    pub allowed: bool,
}

/// What a client did while nothing disturbed it, before the first fault and in calm times afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Work {
    /// Acknowledged writes a second before the first fault.
    pub undisturbed_per_s: f64,
    /// Acknowledged writes a second in calm times.
    pub calm_per_s: f64,
    /// The length of all calm times.
    pub calm_ms: u64,
}

/// Two instants of the boot-time clock, the earlier one first.
pub type Interval = (BootTime, BootTime);

impl Work {
    /// Measures it in the journal of one client: before the first fault, and in `calm` times; none where that is too little.
    #[must_use]
    pub fn measure(journal: &Journal, first_fault: BootTime, calm: &[Interval]) -> Option<Self> {
        let answers: Vec<BootTime> = journal.acknowledged().map(|row| row.span.answered).collect();
        let before = answers.partition_point(|at| *at < first_fault);
        let undisturbed = first_fault.since(*answers.first()?);
        let calm_time: Duration = calm.iter().map(|(from, until)| until.since(*from)).sum();
        if before < UNDISTURBED_MIN || undisturbed.is_zero() || calm_time < CALM_MIN {
            return None;
        }
        let is_calm = |at: &&BootTime| calm.iter().any(|(from, until)| (*from..=*until).contains(*at));
        let done = answers.iter().filter(is_calm).count();
        let rate = |count: usize, time: Duration| (count as f64 / time.as_secs_f64() * 10.0).round() / 10.0;
        Some(Self {
            undisturbed_per_s: rate(before, undisturbed),
            calm_per_s: rate(done, calm_time),
            calm_ms: whole_millis(calm_time),
        })
    }
}

/// Returns the times between `begin` and `end` in which no fault is in force and the last change of one lies `settle` back. A
/// fault without an end is over at once.
#[must_use]
pub fn calm_times(
    begin: BootTime,
    end: BootTime,
    faults: &[(BootTime, Option<BootTime>)],
    settle: Duration,
) -> Vec<Interval> {
    let mut busy: Vec<Interval> = faults.iter().map(|(at, until)| (*at, until.unwrap_or(*at) + settle)).collect();
    busy.sort();
    let mut calm = Vec::new();
    let mut from = begin;
    for (at, until) in busy {
        if at > from && from < end {
            calm.push((from, at.min(end)));
        }
        from = from.max(until);
    }
    if from < end {
        calm.push((from, end));
    }
    calm
}

/// What a run came to.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// What the checkers found.
    pub verdicts: &'a [Verdict],
    /// Each fault that was played, as it is told, and why it did not bite.
    pub faults: &'a [(String, Option<String>)],
    /// Whether the schedule has steps.
    pub has_steps: bool,
    /// Steps that the machine could not do.
    pub skipped: &'a [Skipped],
    /// What the client did undisturbed; none where that could not be measured.
    pub work: Option<Work>,
    /// What kept the run from its end.
    pub error: Option<&'a str>,
}

/// How many of what were there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Checkers that had something to look at and found nothing.
    pub kept: usize,
    /// Checkers that found a promise broken.
    pub broken: usize,
    /// Checkers that had nothing to look at.
    pub without_input: usize,
    /// Faults that bit.
    pub bit: usize,
    /// Faults that did not.
    pub did_not_bite: usize,
    /// Steps that the machine could not do, with leave or without.
    pub skipped: usize,
    /// Clients that did less than half of their undisturbed work, or of whom that could not be told.
    pub slow_clients: usize,
}

/// The verdict on a run, with why and with counts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Judgement {
    /// The verdict.
    pub verdict: Word,
    /// Why it is not `ok`, in plain words; empty where it is.
    pub why: Vec<String>,
    /// How many of what were there.
    pub counts: Counts,
}

/// Draws the verdict.
#[must_use]
pub fn judge(facts: &Facts<'_>) -> Judgement {
    let verdicts = facts.verdicts;
    let that = move |found| verdicts.iter().filter(move |verdict| verdict.found() == found);
    let violated: Vec<String> = that(Found::Violated)
        .map(|verdict| format!("{}: {} violations", verdict.checker, verdict.violations))
        .collect();
    let mut doubts: Vec<String> = Vec::new();
    if let Some(error) = facts.error {
        doubts.push(format!("the run did not come to its end: {error}"));
    }
    doubts.extend(that(Found::Nothing).map(|verdict| format!("{} had nothing to look at", verdict.checker)));
    let told = |(step, why): &(String, Option<String>)| why.as_ref().map(|why| format!("`{step}` did not bite: {why}"));
    doubts.extend(facts.faults.iter().filter_map(told));
    doubts.extend(facts.skipped.iter().filter(|skipped| !skipped.allowed).map(|skipped| {
        let Skipped { step, kind, why, .. } = skipped;
        format!("`{step}` was skipped: {why}; `--allow-skip {kind}` gives leave")
    }));
    if facts.has_steps && facts.faults.is_empty() && facts.error.is_none() {
        doubts.push("nothing was broken: no step of the schedule was played".to_owned());
    }
    let without_clients = doubts.len();
    match facts.work {
        Some(work) if work.calm_per_s * 2.0 < work.undisturbed_per_s => doubts.push(format!(
            "the client did {} writes a second in times without fault, less than half of the {} before the first one",
            work.calm_per_s, work.undisturbed_per_s
        )),
        None if facts.error.is_none() && violated.is_empty() => doubts.push(
            "how much the client does undisturbed could not be told: there was too little time without fault"
                .to_owned(),
        ),
        _ => {}
    }
    let slow_clients = doubts.len() - without_clients;
    let verdict = match (violated.is_empty(), doubts.is_empty()) {
        (false, _) => Word::Violated,
        (true, false) => Word::Inconclusive,
        (true, true) => Word::Ok,
    };
    let counts = Counts {
        kept: that(Found::Kept).count(),
        broken: violated.len(),
        without_input: that(Found::Nothing).count(),
        bit: facts.faults.iter().filter(|(_, why)| why.is_none()).count(),
        did_not_bite: facts.faults.iter().filter(|(_, why)| why.is_some()).count(),
        skipped: facts.skipped.len(),
        slow_clients,
    };
    Judgement { verdict, why: violated.into_iter().chain(doubts).collect(), counts }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(ok: bool, violations: usize) -> Verdict {
        Verdict { checker: "one_writer", ok, examined: 5, violations, findings: Vec::new() }
    }

    const WORK: Work = Work { undisturbed_per_s: 100.0, calm_per_s: 60.0, calm_ms: 2000 };

    /// What a good run came to.
    struct Run {
        verdicts: Vec<Verdict>,
        faults: Vec<(String, Option<String>)>,
        has_steps: bool,
        skipped: Vec<Skipped>,
        work: Option<Work>,
        error: Option<&'static str>,
    }

    /// Judges a good run after `change`, and returns the verdict with its reasons.
    fn judged(change: impl FnOnce(&mut Run)) -> (Word, String) {
        let mut run = Run {
            verdicts: vec![verdict(true, 0)],
            faults: vec![("at 1000ms crash active: n1".to_owned(), None)],
            has_steps: true,
            skipped: Vec::new(),
            work: Some(WORK),
            error: None,
        };
        change(&mut run);
        let judgement = judge(&Facts {
            verdicts: &run.verdicts,
            faults: &run.faults,
            has_steps: run.has_steps,
            skipped: &run.skipped,
            work: run.work,
            error: run.error,
        });
        (judgement.verdict, judgement.why.join("; "))
    }

    #[test]
    fn a_run_whose_faults_bit_and_whose_checkers_saw_nothing_wrong_is_ok() {
        assert_eq!(judged(|_| {}), (Word::Ok, String::new()));
    }

    #[test]
    fn a_broken_promise_is_a_violation_whatever_else_is_in_doubt() {
        let (word, why) = judged(|run| {
            run.verdicts = vec![verdict(false, 2), verdict(false, 0)];
            run.error = Some("interrupted");
        });
        assert_eq!(word, Word::Violated);
        assert!(why.starts_with("one_writer: 2 violations; the run did not come to its end: interrupted"), "{why}");
    }

    #[test]
    fn a_fault_that_did_not_bite_proves_nothing() {
        let fault = ("at 1s cut n1: n1".to_owned(), Some("the cable was out already".to_owned()));
        let (word, why) = judged(|run| run.faults.push(fault));
        assert_eq!(
            (word, why.as_str()),
            (Word::Inconclusive, "`at 1s cut n1: n1` did not bite: the cable was out already")
        );
    }

    #[test]
    fn a_checker_without_input_proves_nothing() {
        let (word, why) = judged(|run| run.verdicts.push(verdict(false, 0)));
        assert_eq!((word, why.as_str()), (Word::Inconclusive, "one_writer had nothing to look at"));
    }

    #[test]
    fn a_client_that_did_less_than_half_of_its_work_proves_nothing() {
        let lazy = Work { calm_per_s: 49.9, ..WORK };
        let (word, why) = judged(|run| run.work = Some(lazy));
        assert_eq!(word, Word::Inconclusive);
        assert!(why.contains("49.9 writes a second") && why.contains("100 before"), "{why}");
        let half = Work { calm_per_s: 50.0, ..WORK };
        assert_eq!(judged(|run| run.work = Some(half)).0, Word::Ok);
        assert_eq!(judged(|run| run.work = None).0, Word::Inconclusive, "nor one that nobody measured");
    }

    #[test]
    fn a_skipped_kind_proves_nothing_without_leave() {
        let skipped = |allowed| {
            let (step, why) = ("at 1s loss 5% n1".to_owned(), "no nft".to_owned());
            Skipped { step, kind: Kind::Loss, why, allowed }
        };
        let (word, why) = judged(|run| run.skipped.push(skipped(false)));
        assert_eq!(word, Word::Inconclusive);
        assert!(why.contains("no nft") && why.contains("--allow-skip loss"), "{why}");
        assert_eq!(judged(|run| run.skipped.push(skipped(true))).0, Word::Ok);
    }

    #[test]
    fn a_run_that_broke_off_or_broke_nothing_proves_nothing() {
        assert_eq!(judged(|run| run.error = Some("interrupted")).0, Word::Inconclusive);
        assert_eq!(judged(|run| run.faults.clear()).0, Word::Inconclusive);
        let without_steps = judged(|run| {
            run.faults.clear();
            run.has_steps = false;
        });
        assert_eq!(without_steps.0, Word::Ok, "a schedule without a step looks for failovers that should not be");
    }

    #[test]
    fn everything_is_counted() {
        let verdicts = [verdict(true, 0), verdict(false, 3), verdict(false, 0)];
        let faults = [("a".to_owned(), None), ("b".to_owned(), Some("no".to_owned()))];
        let facts = Facts {
            verdicts: &verdicts,
            faults: &faults,
            has_steps: true,
            skipped: &[],
            work: Some(Work { calm_per_s: 1.0, ..WORK }),
            error: None,
        };
        let counts =
            Counts { kept: 1, broken: 1, without_input: 1, bit: 1, did_not_bite: 1, skipped: 0, slow_clients: 1 };
        assert_eq!(judge(&facts).counts, counts);
    }

    const SECOND: u64 = 1_000_000_000;

    fn at(seconds: u64) -> BootTime {
        BootTime(seconds * SECOND)
    }

    #[test]
    fn calm_is_where_no_fault_is_in_force_nor_was_lately() {
        let settle = Duration::from_secs(2);
        let faults = [(at(10), Some(at(20))), (at(12), None), (at(30), None)];
        let calm = calm_times(at(5), at(40), &faults, settle);
        assert_eq!(calm, [(at(5), at(10)), (at(22), at(30)), (at(32), at(40))]);
        assert_eq!(calm_times(at(5), at(9), &[(at(4), Some(at(50)))], settle), []);
        assert_eq!(calm_times(at(5), at(9), &[], settle), [(at(5), at(9))]);
    }

    #[test]
    fn work_is_what_was_acknowledged_a_second() {
        let mut text = String::new();
        for second in 0..20_u64 {
            // Ten a second at first, then four.
            let every = if second < 10 { SECOND / 10 } else { SECOND / 4 };
            for number in 0..SECOND / every {
                let now = second * SECOND + number * every;
                text.push_str(&format!("row {now} {now} k{now} n1 1 ok\n"));
            }
        }
        let journal = Journal::parse(&text).unwrap();
        let work = Work::measure(&journal, at(10), &[(at(12), at(18))]).unwrap();
        assert_eq!((work.undisturbed_per_s, work.calm_ms), (10.0, 6000));
        assert!((4.0..4.3).contains(&work.calm_per_s), "{work:?}");
        assert_eq!(Work::measure(&journal, at(1), &[(at(12), at(18))]), None, "too little before");
        assert_eq!(Work::measure(&journal, at(10), &[]), None, "no calm at all");
        assert_eq!(Work::measure(&Journal::default(), at(10), &[(at(12), at(18))]), None);
    }
}
