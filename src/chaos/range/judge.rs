//! Ends the clients and draws the verdicts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::Signal;
use tokio::time::timeout;

use super::{Inflicted, Range};
use crate::chaos::checkers::{
    Table, Verdict, expected_writes, kept_aside, kept_rows, lost_rows, one_active_endpoint, one_writer, recovered,
    rewound, same_rows,
};
use crate::chaos::client::Target;
use crate::chaos::forming::WHOLE_LIMIT;
use crate::chaos::journal::{Journal, Outcome, Span};
use crate::chaos::judgement::{Facts, Judgement, Word, Work, calm_times, judge};
use crate::chaos::proof::Proof;
use crate::chaos::report::{FaultRecord, Report};
use crate::chaos::schedule::Schedule;
use crate::chaos::timeline::{Start, Timelines};
use crate::chaos::view::EventView;
use crate::chaos::{aside, millis, process, rows, whole_millis};
use crate::types::BootTime;

impl Range {
    /// Ends the clients and draws the verdicts; a run that broke off is judged by what there is, and is never `ok`.
    pub(in crate::chaos) async fn judge(
        &mut self,
        result: anyhow::Result<()>,
        schedule: &Schedule,
        tell: &(dyn Fn(&str) + Sync),
    ) -> (Report, Timelines) {
        process::send(self.client_pids(), Signal::SIGTERM);
        for client in self.clients.iter_mut().chain(&mut self.inserters) {
            // One that does not end by itself is killed when it is dropped.
            let _ = timeout(Duration::from_secs(5), client.wait()).await;
        }
        let mut error = result.err().map(|error| format!("{error:#}"));
        let journal = self.journals().unwrap_or_else(|problem| {
            error.get_or_insert(format!("{problem:#}"));
            Journal::default()
        });
        let history = self.history().await;
        let rebuilds = rebuilds(&history);
        let is_whole = error.is_none() && matches!(self.recovered, Some(Ok(_)));
        let mut verdicts = vec![one_writer(&journal), one_active_endpoint(&journal), self.no_panic()];
        if let Some(outcome) = &self.recovered {
            verdicts.push(recovered(self.supervisors.len(), outcome.as_ref().err()));
        }
        if !schedule.stretches.is_empty() && error.is_none() {
            let place = |at| self.began.boot(at);
            let spans = schedule
                .stretches
                .iter()
                .map(|stretch| (Span { sent: place(stretch.from), answered: place(stretch.until) }, stretch.writes));
            verdicts.push(expected_writes(&journal, &spans.collect::<Vec<_>>()));
        }
        if schedule.rewound {
            verdicts.push(rewound(&rebuilds));
        }
        let mut lost = 0;
        if is_whole {
            match self.tables().await {
                Ok(tables) => {
                    let rows = if schedule.lossy { same_rows } else { kept_rows };
                    verdicts.push(rows(&journal, &tables));
                    lost = lost_rows(&journal, &tables).len();
                    if let Some(at_least) = schedule.aside {
                        match self.aside() {
                            Ok(words) => verdicts.push(kept_aside(&journal, &tables, &words, at_least)),
                            Err(problem) => error = Some(format!("{problem:#}")),
                        }
                    }
                }
                Err(problem) => error = Some(format!("{problem:#}")),
            }
        }
        // Gaps and work are those of the client outside; a client pinned to one host stops with its host's role.
        let outside = fs::read_to_string(self.dir.join("w0.journal")).unwrap_or_default();
        let outside = Journal::parse(&outside).unwrap_or_default();
        let faults = self.faults(&journal, &outside);
        let told = |fault: &FaultRecord| (format!("{}: {}", fault.step, fault.on), fault.why_not.clone());
        let told: Vec<_> = faults.iter().map(told).collect();
        let work = self.work(&outside);
        let judgement = judge(&Facts {
            verdicts: &verdicts,
            faults: &told,
            has_steps: !schedule.steps.is_empty(),
            skipped: &self.skipped,
            work,
            error: error.as_deref(),
        });
        tell_all(&verdicts, &judgement, tell);
        let gap = outside.longest_gap(BootTime(0), BootTime(u64::MAX));
        let start = Start { boot: self.began.at, wall: self.began.wall };
        // Without a start, there is nothing that times could count from.
        let timelines = match self.began.at {
            BootTime(0) => Timelines::default(),
            _ => Timelines::draw(start, &journal, &outside, &history),
        };
        let report = Report {
            ok: judgement.verdict == Word::Ok,
            judgement,
            lease_ms: self.lease_ms,
            acknowledged: journal.count(Outcome::Ok, BootTime(0)),
            failed: journal.count(Outcome::Failed, BootTime(0)),
            unknown: journal.count(Outcome::Unknown, BootTime(0)),
            lost,
            rebuilds,
            longest_gap_ms: gap.map(|gap| millis(gap.length())),
            client_ms: gap.map(|gap| millis(gap.client)),
            work,
            faults,
            passed_over: self.passed_over.clone(),
            skipped: self.skipped.clone(),
            verdicts,
            error,
        };
        (report, timelines)
    }

    /// Completes each proof by what the clients saw, and tells whether it bit.
    fn faults(&self, journal: &Journal, outside: &Journal) -> Vec<FaultRecord> {
        let ends = self.inflicted.iter().skip(1).map(|next| next.at).chain([BootTime(u64::MAX)]);
        let record = |(inflicted, next): (&Inflicted, BootTime)| {
            let proof = complete(inflicted, journal, next);
            let why_not = proof.check(&inflicted.step.fault).err();
            let ms = |at: BootTime| whole_millis(at.since(self.began.at));
            let gap = outside.longest_gap(inflicted.at, next);
            FaultRecord {
                at_ms: ms(inflicted.at),
                until_ms: inflicted.until.map(ms),
                kind: inflicted.step.fault.kind(),
                on: inflicted.on.clone(),
                other: inflicted.other.clone(),
                step: inflicted.step.to_string(),
                proof,
                bit: why_not.is_none(),
                why_not,
                at_ns: inflicted.at.0,
                write_gap_ms: gap.map(|gap| millis(gap.length())),
            }
        };
        self.inflicted.iter().zip(ends).map(record).collect()
    }

    /// Measures the client outside before the first fault and in calm times.
    fn work(&self, outside: &Journal) -> Option<Work> {
        let first = self.inflicted.first().map_or(self.began.at, |first| first.at);
        let end = outside.rows.last().map_or(first, |row| row.span.answered);
        // A role that moves takes a lease and a promotion; what then comes back works for a while to catch up.
        let settle = Duration::from_millis(self.lease_ms * 2) + Duration::from_secs(2);
        let whole = self.recovered.as_ref().and_then(|outcome| outcome.as_ref().ok()).copied();
        let in_force: Vec<_> = self.inflicted.iter().map(|it| (it.at, it.until)).collect();
        // From the healing on, only the cluster's own word that it is whole begins a calm time.
        let mut calm = calm_times(first, self.healed.unwrap_or(end), &in_force, settle);
        calm.extend(whole.map(|at| (at, end)).filter(|(at, end)| at < end));
        Work::measure(outside, first, &calm)
    }

    async fn tables(&self) -> anyhow::Result<BTreeMap<String, Table>> {
        let way_in = self.way_in.as_ref().context("the cluster has not formed")?;
        let active = self.view().await.and_then(|view| view.active).context("no node says who is active")?;
        let is_member = |target: &&Target| self.supervisor(&target.name).is_ok();
        let targets: Vec<_> = way_in.targets.iter().filter(is_member).cloned().collect();
        rows::read_all(&way_in.access, &targets, &active, "hasup_chaos", WHOLE_LIMIT).await
    }

    /// Returns the words of all log that nodes have put aside.
    fn aside(&self) -> anyhow::Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for node in &self.nodes {
            all.extend(aside::words(&node.data_dir.join("salvage"))?);
        }
        Ok(all)
    }

    /// Returns the cluster's history since the schedule began, from the first member that tells it.
    async fn history(&self) -> Vec<EventView> {
        let since = whole_millis(self.began.wall);
        for supervisor in &self.supervisors {
            let mut history = supervisor.node.history().await;
            if !history.is_empty() {
                history.retain(|event| event.at_ms >= since);
                return history;
            }
        }
        Vec::new()
    }

    /// Checks that no daemon said that it panicked.
    fn no_panic(&self) -> Verdict {
        let mut findings = Vec::new();
        for node in &self.nodes {
            let text = fs::read(&node.log).unwrap_or_default();
            let panicked = |line: &&str| line.contains("panicked at");
            let text = String::from_utf8_lossy(&text);
            findings.extend(text.lines().filter(panicked).map(|line| format!("{}: {line}", node.name)));
        }
        Verdict::new("no_panic", self.nodes.len(), true, findings)
    }
}

/// Tells what the checkers found, and the verdict on the run.
fn tell_all(verdicts: &[Verdict], judgement: &Judgement, tell: &dyn Fn(&str)) {
    for verdict in verdicts {
        tell(&format!("{}: {} ({} examined)", verdict.checker, verdict.found().as_str(), verdict.examined));
        verdict.findings.iter().for_each(|finding| tell(&format!("  {finding}")));
    }
    let counts = judgement.counts;
    tell(&format!("{} of {} steps were seen to bite", counts.bit, counts.bit + counts.did_not_bite));
    tell(&format!("verdict: {}", judgement.verdict.as_str()));
    judgement.why.iter().for_each(|why| tell(&format!("  {why}")));
}

/// Returns what a history says of rebuilds.
fn rebuilds(history: &[EventView]) -> Vec<String> {
    history.iter().filter(|event| event.kind == "rebuilt").map(|event| event.why.step.clone()).collect()
}

/// Adds to a measurement what the clients saw until the `next` step.
fn complete(inflicted: &Inflicted, journal: &Journal, next: BootTime) -> Proof {
    let mut proof = inflicted.proof.clone();
    match &mut proof {
        Proof::Power { answers, .. } | Proof::Cable { answers, .. } | Proof::Frozen { answers, .. } => {
            let until = inflicted.until.unwrap_or(inflicted.since);
            let within = |span: &Span| span.sent >= inflicted.since && span.answered <= until;
            let answered = journal.polls.iter().filter(|poll| poll.node == inflicted.on && poll.status.is_some());
            *answers = answered.filter(|poll| within(&poll.span)).count();
        }
        Proof::Moved { writer_before, writer_after } => {
            let last = |before: BootTime| {
                let rows: Vec<_> = journal.acknowledged().filter(|row| row.span.answered < before).collect();
                rows.last().map(|row| row.node.clone())
            };
            *writer_before = last(inflicted.at);
            *writer_after = last(next);
        }
        Proof::Sent { rows } => {
            let ours = |key: &str| {
                let client = inflicted.client.as_deref();
                client.is_some_and(|client| key.strip_prefix(client).is_some_and(|rest| rest.starts_with('.')))
            };
            *rows = journal.rows.iter().filter(|row| ours(&row.key)).count() as u64;
        }
        Proof::Boot { .. }
        | Proof::Dropped(_)
        | Proof::Healed { .. }
        | Proof::Thawed { .. }
        | Proof::Killed { .. }
        | Proof::Said { .. }
        | Proof::Gone { .. }
        | Proof::Came { .. } => {}
    }
    proof
}
