//! The verdicts: what a cluster promised, held against what its clients saw.
//!
//! All pure. A checker convicts on proof alone: a request's answer was decided somewhere between its sending and its
//! arrival, so two answers are in order only where their spans are disjoint. A checker without input never acquits.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Serialize;

use super::journal::{Journal, Outcome, Row, Span};
use crate::types::Timeline;

/// Every checker, and what it checks.
pub const CHECKERS: &[(&str, &str)] = &[
    ("one_writer", "no two nodes acknowledged writes in the same span of time"),
    ("one_active_endpoint", "at no instant two nodes' role endpoints answered 200"),
    ("kept_rows", "every acknowledged row is on every node, and the nodes agree about every other one"),
    ("same_rows", "the nodes agree about every row; instead of `kept_rows` where a schedule says `lossy`"),
    ("kept_aside", "what was let go is in the log that nodes put aside; where a schedule says `aside`"),
    ("expected_writes", "what a schedule's `silent` and `writes` say of the acknowledgements"),
    ("rewound", "a database that had parted was rewound and none copied; where a schedule says `rewound`"),
    ("recovered", "everything healed, the cluster was whole and took writes again within its limits"),
    ("no_panic", "no daemon said that it panicked"),
];

/// How many findings a verdict spells out; all are counted.
const SPELLED_OUT: usize = 10;

/// The role cannot leave a node and return to it faster than two promotions, whose floor was measured at 0.1 s each. Within
/// half of that, two answers of one node belong to one holding of the role.
const QUICKEST_RETURN: Duration = Duration::from_millis(100);

/// What a checker found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// The promise that was checked.
    pub checker: &'static str,
    /// Whether it was kept, and the checker had enough to see it.
    pub ok: bool,
    /// How much the checker looked at.
    pub examined: usize,
    /// How many violations it found.
    pub violations: usize,
    /// The first of them, or why the checker could not judge, in plain words.
    pub findings: Vec<String>,
}

impl Verdict {
    /// Says that `checker` looked at `examined` things, whether those were `enough`, and what was wrong with them.
    #[must_use]
    pub fn new(checker: &'static str, examined: usize, enough: bool, all: Vec<String>) -> Self {
        let violations = all.len();
        let mut findings: Vec<String> = all.into_iter().take(SPELLED_OUT).collect();
        if !enough {
            findings.push("nothing to judge: there was too little to look at, so this run proves nothing".to_owned());
        }
        Self { checker, ok: enough && violations == 0, examined, violations, findings }
    }

    /// Returns what the checker came to.
    #[must_use]
    pub fn found(&self) -> Found {
        Found::of(self.ok, self.violations)
    }
}

/// What a checker came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The promise was kept.
    Kept,
    /// It was broken.
    Violated,
    /// There was too little to tell.
    Nothing,
}

impl Found {
    /// Reads it from a verdict's `ok` and number of violations, as reports have them.
    #[must_use]
    pub fn of(ok: bool, violations: usize) -> Self {
        match (ok, violations) {
            (true, _) => Self::Kept,
            (false, 0) => Self::Nothing,
            (false, _) => Self::Violated,
        }
    }

    /// Returns it in words.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Violated => "violated",
            Self::Nothing => "nothing to look at",
        }
    }
}

/// The keys that a node's table holds.
pub type Table = BTreeSet<String>;

/// Checks that every acknowledged row is on every node, that the nodes agree about each row that was ever sent, and that no
/// row whose failure was certain is there. `tables` must have been read after the journal.
#[must_use]
pub fn kept_rows(journal: &Journal, tables: &BTreeMap<String, Table>) -> Verdict {
    let acknowledged: BTreeSet<&str> = journal.acknowledged().map(|row| row.key.as_str()).collect();
    let failed: BTreeSet<&str> = with_outcome(journal, Outcome::Failed).map(|row| row.key.as_str()).collect();
    let mut findings = Vec::new();
    for key in journal.keys() {
        let (have, lack): (Vec<_>, Vec<_>) = tables.iter().partition(|(_, table)| table.contains(key));
        if acknowledged.contains(key) && !lack.is_empty() {
            findings.push(format!("row {key} was acknowledged and is missing on {}", names(&lack)));
        } else if failed.contains(key) && !have.is_empty() {
            findings.push(format!("row {key} failed for certain and is there on {}", names(&have)));
        } else if !have.is_empty() && !lack.is_empty() {
            findings.push(format!("row {key} is on {} and not on {}", names(&have), names(&lack)));
        }
    }
    Verdict::new("kept_rows", acknowledged.len(), !acknowledged.is_empty() && !tables.is_empty(), findings)
}

/// Checks that the nodes agree about each row that was ever sent, whatever became of it: for runs whose durability lets rows
/// that were acknowledged go.
#[must_use]
pub fn same_rows(journal: &Journal, tables: &BTreeMap<String, Table>) -> Verdict {
    let mut findings = Vec::new();
    for key in journal.keys() {
        let (have, lack): (Vec<_>, Vec<_>) = tables.iter().partition(|(_, table)| table.contains(key));
        if !have.is_empty() && !lack.is_empty() {
            findings.push(format!("row {key} is on {} and not on {}", names(&have), names(&lack)));
        }
    }
    Verdict::new("same_rows", journal.rows.len(), !journal.rows.is_empty() && !tables.is_empty(), findings)
}

/// A stretch of time, and whether something must be acknowledged in it; else nothing may be.
pub type Expected = (Span, bool);

/// Checks that something, or nothing, was acknowledged in each of the stretches.
#[must_use]
pub fn expected_writes(journal: &Journal, stretches: &[Expected]) -> Verdict {
    let mut findings = Vec::new();
    for (stretch, writes) in stretches {
        let within = |row: &&Row| row.span.answered >= stretch.sent && row.span.answered <= stretch.answered;
        let rows: Vec<&Row> = journal.acknowledged().filter(within).collect();
        let place = format!("between {} and {}", stretch.sent, stretch.answered);
        match (writes, rows.first()) {
            (true, None) => findings.push(format!("nothing was acknowledged {place}, and something should have been")),
            (false, Some(first)) => findings.push(format!(
                "{} rows were acknowledged {place}, and none should have been; the first was {} at {} by {}",
                rows.len(),
                first.key,
                first.span.answered,
                first.node
            )),
            _ => {}
        }
    }
    Verdict::new("expected_writes", stretches.len(), true, findings)
}

/// Checks that the cluster of `nodes` came back once everything was healed; `missing` says what did not.
#[must_use]
pub fn recovered(nodes: usize, missing: Option<&String>) -> Verdict {
    Verdict::new("recovered", nodes, nodes > 0, missing.into_iter().cloned().collect())
}

/// Checks that at least one database was rewound, and none copied, by what `steps` of rebuilds say.
#[must_use]
pub fn rewound(steps: &[String]) -> Verdict {
    let copies = steps.iter().filter(|step| !step.contains("rewound")).cloned().collect();
    Verdict::new("rewound", steps.len(), !steps.is_empty(), copies)
}

/// Checks that at least `at_least` acknowledged rows are on no node any more, and that each of those is among `aside`, the words of the
/// log that nodes put aside: what a durability lets go is not lost to a person.
#[must_use]
pub fn kept_aside(
    journal: &Journal,
    tables: &BTreeMap<String, Table>,
    aside: &BTreeSet<String>,
    at_least: usize,
) -> Verdict {
    let lost = lost_rows(journal, tables);
    let mut findings: Vec<String> = lost
        .difference(aside)
        .map(|key| format!("row {key} was acknowledged, is missing, and is in no log that was put aside"))
        .collect();
    if lost.len() < at_least {
        findings.insert(0, format!("{} acknowledged rows are missing, and {at_least} should have been", lost.len()));
    }
    Verdict::new("kept_aside", lost.len(), !tables.is_empty(), findings)
}

/// Returns the keys of the acknowledged rows that are missing on at least one node.
#[must_use]
pub fn lost_rows(journal: &Journal, tables: &BTreeMap<String, Table>) -> BTreeSet<String> {
    let lost = journal.acknowledged().filter(|row| tables.values().any(|table| !table.contains(&row.key)));
    lost.map(|row| row.key.clone()).collect()
}

/// Checks that no two nodes acknowledged writes in the same span of time.
///
/// Each acknowledged row names the timeline that it was written on, and a timeline has one maker. Two things convict: one
/// timeline written by two nodes, and a row on an older timeline sent after a row on a newer one had been answered.
#[must_use]
pub fn one_writer(journal: &Journal) -> Verdict {
    let mut findings = Vec::new();
    let mut examined = 0;
    let mut makers: BTreeMap<Timeline, &str> = BTreeMap::new();
    // The first answer on each timeline: whatever is sent after it must not be acknowledged on an older one.
    let mut first_answer: BTreeMap<Timeline, &Row> = BTreeMap::new();
    for row in journal.acknowledged() {
        let Some(timeline) = row.timeline else {
            findings.push(format!("row {} was acknowledged without naming its timeline", row.key));
            continue;
        };
        examined += 1;
        let maker = *makers.entry(timeline).or_insert(row.node.as_str());
        if maker != row.node {
            findings.push(format!("timeline {timeline} was written by {maker} and by {} (row {})", row.node, row.key));
        }
        first_answer.entry(timeline).or_insert(row);
    }
    for row in journal.acknowledged() {
        let Some(timeline) = row.timeline else { continue };
        let newer = first_answer.range(timeline.next()..).find(|(_, first)| first.span.is_before(&row.span));
        if let Some((newer, first)) = newer {
            findings.push(format!(
                "{} acknowledged row {} on timeline {timeline}, sent {} ms after {} had acknowledged row {} on timeline {newer}",
                row.node,
                row.key,
                row.span.sent.since(first.span.answered).as_millis(),
                first.node,
                first.key,
            ));
        }
    }
    Verdict::new("one_writer", examined, examined > 0, findings)
}

/// Checks that at no instant two nodes' role endpoints answered 200.
///
/// Convicts where one node's 200 lies wholly between two consecutive 200s of another that are closer together than the role
/// can leave and return.
#[must_use]
pub fn one_active_endpoint(journal: &Journal) -> Verdict {
    let mut by_node: BTreeMap<&str, Vec<(Span, bool)>> = BTreeMap::new();
    for poll in &journal.polls {
        by_node.entry(&poll.node).or_default().push((poll.span, poll.status == Some(200)));
    }
    for polls in by_node.values_mut() {
        polls.sort_by_key(|(span, _)| span.sent);
    }
    let mut findings = Vec::new();
    let mut seen_active = false;
    for (holder, polls) in &by_node {
        seen_active |= polls.iter().any(|(_, active)| *active);
        for pair in polls.windows(2) {
            let ((before, first), (after, second)) = (pair[0], pair[1]);
            if !(first && second) || after.answered.since(before.sent) > QUICKEST_RETURN {
                continue;
            }
            for (other, others) in by_node.iter().filter(|(name, _)| *name != holder) {
                let from = others.partition_point(|(span, _)| span.sent <= before.answered);
                let between = others[from..].iter().take_while(|(span, _)| span.sent < after.sent);
                if between.into_iter().any(|(span, active)| *active && span.is_before(&after)) {
                    findings.push(format!("{other} answered 200 while {holder} did, at {}", before.answered));
                }
            }
        }
    }
    Verdict::new("one_active_endpoint", journal.polls.len(), seen_active, findings)
}

fn with_outcome(journal: &Journal, outcome: Outcome) -> impl Iterator<Item = &Row> {
    journal.rows.iter().filter(move |row| row.outcome == outcome)
}

fn names(nodes: &[(&String, &Table)]) -> String {
    nodes.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::BootTime;

    fn journal(text: &str) -> Journal {
        Journal::parse(text).unwrap()
    }

    fn tables(nodes: &[(&str, &[&str])]) -> BTreeMap<String, Table> {
        nodes
            .iter()
            .map(|(name, keys)| ((*name).to_owned(), keys.iter().map(|key| (*key).to_owned()).collect()))
            .collect()
    }

    const FAILOVER: &str =
        "row 1 2 a n1 1 ok\nrow 3 4 b n1 - unknown\nrow 5 6 c n1 - failed read-only\nrow 20 21 d n2 2 ok\n";

    #[test]
    fn a_clean_failover_is_acquitted() {
        let all = tables(&[("n1", &["a", "b", "d"]), ("n2", &["a", "b", "d"]), ("n3", &["a", "b", "d"])]);
        let verdict = kept_rows(&journal(FAILOVER), &all);
        assert_eq!((verdict.ok, verdict.examined, verdict.violations), (true, 2, 0), "{:?}", verdict.findings);
        assert!(one_writer(&journal(FAILOVER)).ok);
        assert!(lost_rows(&journal(FAILOVER), &all).is_empty());
    }

    #[test]
    fn an_acknowledged_row_missing_anywhere_convicts() {
        let all = tables(&[("n1", &["a", "d"]), ("n2", &["a", "d"]), ("n3", &["a"])]);
        let verdict = kept_rows(&journal(FAILOVER), &all);
        assert_eq!(verdict.findings, vec!["row d was acknowledged and is missing on n3"]);
        assert_eq!(lost_rows(&journal(FAILOVER), &all), BTreeSet::from(["d".to_owned()]));
    }

    #[test]
    fn nodes_that_differ_about_an_unknown_row_convict() {
        let verdict = kept_rows(&journal(FAILOVER), &tables(&[("n1", &["a", "b", "d"]), ("n2", &["a", "d"])]));
        assert_eq!(verdict.findings, vec!["row b is on n1 and not on n2"]);
    }

    #[test]
    fn a_certain_failure_that_is_there_convicts() {
        let verdict = kept_rows(&journal(FAILOVER), &tables(&[("n1", &["a", "c", "d"]), ("n2", &["a", "c", "d"])]));
        assert_eq!(verdict.findings, vec!["row c failed for certain and is there on n1, n2"]);
    }

    #[test]
    fn nothing_acknowledged_is_no_acquittal() {
        let verdict = kept_rows(&Journal::default(), &tables(&[("n1", &[])]));
        assert!(!verdict.ok && verdict.violations == 0);
        assert!(!one_writer(&Journal::default()).ok);
        assert!(!one_active_endpoint(&Journal::default()).ok);
        assert!(!kept_rows(&journal(FAILOVER), &BTreeMap::new()).ok);
    }

    #[test]
    fn an_old_primary_that_acknowledges_after_the_new_one_convicts() {
        let verdict = one_writer(&journal("row 1 2 a n1 1 ok\nrow 20 21 d n2 2 ok\nrow 22 23 e n1 1 ok\n"));
        assert_eq!(verdict.violations, 1);
        assert!(verdict.findings[0].contains("n1 acknowledged row e on timeline 1"), "{:?}", verdict.findings);
    }

    #[test]
    fn overlapping_spans_prove_no_order() {
        let verdict = one_writer(&journal("row 1 2 a n1 1 ok\nrow 18 30 e n1 1 ok\nrow 20 21 d n2 2 ok\n"));
        assert!(verdict.ok, "{:?}", verdict.findings);
    }

    #[test]
    fn two_makers_of_one_timeline_convict() {
        assert_eq!(one_writer(&journal("row 1 2 a n1 2 ok\nrow 5 6 d n2 2 ok\n")).violations, 1);
    }

    #[test]
    fn the_role_may_return_to_a_node_on_a_newer_timeline() {
        assert!(one_writer(&journal("row 1 2 a n1 1 ok\nrow 5 6 d n2 2 ok\nrow 8 9 e n1 3 ok\n")).ok);
    }

    #[test]
    fn nodes_that_agree_are_the_same_whatever_was_acknowledged() {
        let same = tables(&[("n1", &["a"]), ("n2", &["a"])]);
        assert!(same_rows(&journal(FAILOVER), &same).ok);
        assert_eq!(same_rows(&journal(FAILOVER), &tables(&[("n1", &["a"]), ("n2", &[])])).violations, 1);
    }

    #[test]
    fn rows_let_go_must_be_as_many_as_said_and_all_kept_aside() {
        let gone = tables(&[("n1", &["d"]), ("n2", &["d"])]);
        let aside = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
        let verdict = kept_aside(&journal(FAILOVER), &gone, &aside(&["a", "other"]), 1);
        assert_eq!((verdict.ok, verdict.examined), (true, 1), "{:?}", verdict.findings);
        assert_eq!(kept_aside(&journal(FAILOVER), &gone, &aside(&["b"]), 1).violations, 1);
        assert_eq!(kept_aside(&journal(FAILOVER), &gone, &aside(&["a"]), 2).violations, 1);
        assert!(!kept_aside(&journal(FAILOVER), &BTreeMap::new(), &aside(&["a", "d"]), 0).ok);
    }

    #[test]
    fn a_checker_with_too_little_to_look_at_neither_acquits_nor_convicts() {
        assert_eq!(Verdict::new("one_writer", 3, true, Vec::new()).found(), Found::Kept);
        assert_eq!(Verdict::new("one_writer", 0, false, Vec::new()).found(), Found::Nothing);
        assert_eq!(Verdict::new("one_writer", 1, false, vec!["n1 and n2 wrote".to_owned()]).found(), Found::Violated);
    }

    #[test]
    fn a_cluster_that_does_not_come_back_convicts() {
        assert!(recovered(3, None).ok);
        assert_eq!(recovered(3, Some(&"n2 is joining".to_owned())).findings, ["n2 is joining"]);
        assert!(!recovered(0, None).ok);
    }

    #[test]
    fn silence_and_writes_are_held_against_the_acknowledgements() {
        let within = |sent, answered| Span { sent: BootTime(sent), answered: BootTime(answered) };
        let good = expected_writes(&journal(FAILOVER), &[(within(3, 20), false), (within(20, 30), true)]);
        assert!(good.ok, "{:?}", good.findings);
        let bad = expected_writes(&journal(FAILOVER), &[(within(3, 21), false), (within(22, 30), true)]);
        assert_eq!(bad.violations, 2);
    }

    #[test]
    fn a_copy_or_nothing_at_all_is_no_rewind() {
        assert!(rewound(&["the database of n1 was rewound to the active node's history".into()]).ok);
        assert!(!rewound(&["the database of n1 was copied from the active node".into()]).ok);
        assert!(!rewound(&[]).ok);
    }

    fn polls(lines: &[(&str, u64, u64, u16)]) -> Journal {
        let text: String = lines
            .iter()
            .map(|(node, sent, answered, status)| {
                format!("poll {} {} {node} {status}\n", sent * 1_000_000, answered * 1_000_000)
            })
            .collect();
        journal(&text)
    }

    #[test]
    fn two_endpoints_at_once_convict() {
        let both = polls(&[("n1", 0, 1, 200), ("n2", 3, 5, 200), ("n1", 10, 11, 200)]);
        assert_eq!(one_active_endpoint(&both).violations, 1);
    }

    #[test]
    fn endpoints_whose_spans_overlap_or_lie_far_apart_do_not_convict() {
        let overlap = polls(&[("n1", 0, 4, 200), ("n2", 3, 5, 200), ("n1", 10, 11, 200)]);
        assert!(one_active_endpoint(&overlap).ok);
        let far = polls(&[("n1", 0, 1, 200), ("n2", 150, 151, 200), ("n1", 400, 401, 200)]);
        assert!(one_active_endpoint(&far).ok, "the role may have gone and come back between");
        let moved = polls(&[("n1", 0, 1, 200), ("n2", 3, 5, 503), ("n1", 10, 11, 503), ("n2", 12, 13, 200)]);
        assert!(one_active_endpoint(&moved).ok);
    }
}
