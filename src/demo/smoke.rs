//! Faults under a steady writer, each measured and judged: the smoke test and the bench.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use serde::Serialize;
use tokio::time::{Instant, sleep};

use super::Progress;
use super::scene::{Scene, Tail};
use crate::chaos::checkers::{kept_rows, lost_rows, one_writer};
use crate::chaos::forming::WHOLE_LIMIT;
use crate::chaos::journal::{Gap, Journal, Outcome};
use crate::chaos::node::{wait_settled, wait_whole};
use crate::chaos::schedule::Part;
use crate::chaos::{millis, process, rows, view};
use crate::sys::clock::{boot_now, wall_now};
use crate::types::{BootTime, Timeline};

/// Acknowledged rows before each fault.
const ROWS_BEFORE: usize = 200;
/// How long writes may stay away before the run is given up: far beyond every promise, so that a broken one is measured.
const BACK_LIMIT: Duration = Duration::from_secs(90);
/// The journal is looked at this often while something is awaited.
const LOOK: Duration = Duration::from_millis(20);

/// What is done to the active node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// SIGKILL to the postmaster
    #[value(name = "postgres_killed")]
    PostgresKilled,
    /// SIGKILL to the daemon alone
    #[value(name = "daemon_killed")]
    DaemonKilled,
    /// SIGKILL to everything of the node at once; it starts again when writes are back
    #[value(name = "node_killed")]
    NodeKilled,
    /// A planned change by command
    #[value(name = "switchover")]
    Switchover,
}

impl FaultKind {
    const ALL: [Self; 4] = [Self::PostgresKilled, Self::DaemonKilled, Self::NodeKilled, Self::Switchover];

    fn name(self) -> &'static str {
        match self {
            Self::PostgresKilled => "postgres_killed",
            Self::DaemonKilled => "daemon_killed",
            Self::NodeKilled => "node_killed",
            Self::Switchover => "switchover",
        }
    }

    /// Whether the role is expected to end: all but the daemon's death, which no client may notice.
    fn ends_the_role(self) -> bool {
        self != Self::DaemonKilled
    }
}

/// Measure the write gap of one fault many times
#[derive(Debug, Clone, clap::Args)]
pub struct BenchArgs {
    /// The fault; all four in turn when absent
    #[arg(long, value_enum)]
    pub fault: Option<FaultKind>,
    /// How often each fault is played
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub runs: u32,
    /// Print nothing but JSON on standard output
    #[arg(long)]
    pub json: bool,
    /// Folder to work in, as for `hasup demo`
    #[arg(long)]
    pub dir: Option<PathBuf>,
    /// Keep the folder with logs and journals at the end
    #[arg(long)]
    pub keep: bool,
    /// Options of the cluster, as check_ttl_multiplier=0.5
    #[arg(long, value_name = "K=V")]
    pub options: Vec<String>,
}

/// The last line of `--smoke`.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) ok: bool,
    lease_ms: u64,
    steps: Vec<StepReport>,
}

/// One fault.
#[derive(Debug, Clone, Serialize)]
struct StepReport {
    fault: FaultKind,
    write_gap_ms: f64,
    client_ms: f64,
    parts_ms: BTreeMap<String, u64>,
    lost: usize,
    rejoin_s: f64,
    /// What broke a promise; told as progress, and in the report as `ok`.
    #[serde(skip)]
    findings: Vec<String>,
}

impl Report {
    /// Returns the report of a cluster that did not form.
    pub(super) fn of_nothing() -> Self {
        Self { ok: false, lease_ms: 0, steps: Vec::new() }
    }
}

/// Plays the four faults once each. A run that breaks off is told as progress, and its report holds the steps done.
pub(super) async fn run(scene: &mut Scene, progress: Progress) -> Report {
    let mut report = Report { lease_ms: lease_ms(scene).await, ..Report::of_nothing() };
    match play_all(scene, &mut report.steps, progress).await {
        Ok(ok) => report.ok = ok,
        Err(error) => progress.line(&format!("the smoke test broke off: {error:#}")),
    }
    report
}

async fn play_all(scene: &mut Scene, steps: &mut Vec<StepReport>, progress: Progress) -> anyhow::Result<bool> {
    scene.start_writer()?;
    let mut tail = Tail::new(scene.journal_path());
    let mut lost_ever = BTreeSet::new();
    for fault in FaultKind::ALL {
        steps.push(play(scene, &mut tail, &mut lost_ever, fault, progress).await?);
    }
    Ok(all_kept(tail.read()?, steps, progress))
}

/// Returns whether every promise was kept, and tells which were not.
fn all_kept(journal: &Journal, steps: &[StepReport], progress: Progress) -> bool {
    let writer = one_writer(journal);
    for finding in &writer.findings {
        progress.line(&format!("one writer: {finding}"));
    }
    writer.ok && steps.iter().all(|step| step.lost == 0 && step.findings.is_empty())
}

/// Plays faults again and again and prints minimum, median and worst of their gaps.
pub(super) async fn bench(args: &BenchArgs, scene: &mut Scene, progress: Progress) -> anyhow::Result<u8> {
    // a bench kills more often within an hour than is left to happen by itself
    let mut options = vec!["role_changes_per_hour=1000".to_owned()];
    options.extend(args.options.iter().cloned());
    scene.form(&options, progress).await?;
    let lease_ms = lease_ms(scene).await;
    scene.start_writer()?;
    let mut tail = Tail::new(scene.journal_path());
    let mut lost_ever = BTreeSet::new();
    let faults = args.fault.map_or_else(|| FaultKind::ALL.to_vec(), |fault| vec![fault]);
    let mut steps: Vec<StepReport> = Vec::new();
    for run in 1..=args.runs {
        for fault in &faults {
            progress.line(&format!("run {run} of {}", args.runs));
            steps.push(play(scene, &mut tail, &mut lost_ever, *fault, progress).await?);
        }
    }
    let ok = all_kept(tail.read()?, &steps, progress);
    let mut figures = Vec::new();
    for fault in faults {
        let of_fault: Vec<&StepReport> = steps.iter().filter(|step| step.fault == fault).collect();
        let gap = Spread::of(of_fault.iter().map(|step| step.write_gap_ms));
        let client = Spread::of(of_fault.iter().map(|step| step.client_ms));
        progress.line(&format!(
            "{}: write gap min {} median {} worst {} ms (client's own share at the median {} ms), lease {lease_ms} ms, {} runs",
            fault.name(),
            gap.min,
            gap.median,
            gap.worst,
            client.median,
            of_fault.len()
        ));
        let parts = parts_at_median(&of_fault);
        let told: Vec<String> = parts.iter().map(|(part, after)| format!("{part} {after}")).collect();
        progress.line(&format!("{}: parts over after, at the median, in ms: {}", fault.name(), told.join(", ")));
        let lost: usize = of_fault.iter().map(|step| step.lost).sum();
        figures.push(serde_json::json!({
            "fault": fault, "runs": of_fault.len(), "write_gap_ms": gap, "client_ms": client, "parts_ms": parts, "lost": lost,
        }));
    }
    println!("{}", serde_json::json!({ "ok": ok, "lease_ms": lease_ms, "figures": figures }));
    Ok(u8::from(!ok))
}

/// Returns the median of each part over the runs that had it.
fn parts_at_median(steps: &[&StepReport]) -> BTreeMap<String, u64> {
    let names: BTreeSet<&String> = steps.iter().flat_map(|step| step.parts_ms.keys()).collect();
    let median = |name: &String| {
        let mut values: Vec<u64> = steps.iter().filter_map(|step| step.parts_ms.get(name).copied()).collect();
        values.sort_unstable();
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    names.into_iter().map(|name| (name.clone(), median(name))).collect()
}

/// Minimum, median and worst.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    worst: f64,
}

impl Spread {
    /// Returns the spread of `values`; all zero without any.
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_by(f64::total_cmp);
        let at = |index: usize| values.get(index).copied().unwrap_or_default();
        let last = values.len().saturating_sub(1);
        // Of an even number, the greater of the two in the middle: never flattering.
        Self { min: at(0), median: at(values.len() / 2), worst: at(last) }
    }
}

async fn lease_ms(scene: &Scene) -> u64 {
    let view = scene.any_view().await.unwrap_or_default();
    view.cluster.lease_ms.unwrap_or_default()
}

async fn play(
    scene: &mut Scene,
    tail: &mut Tail,
    lost_ever: &mut BTreeSet<String>,
    fault: FaultKind,
    progress: Progress,
) -> anyhow::Result<StepReport> {
    // A fault is measured from the state in which a cluster spends its days.
    wait_settled(&scene.nodes, WHOLE_LIMIT).await.with_context(|| format!("before {}", fault.name()))?;
    let mark = boot_now();
    wait_journal(scene, tail, "200 acknowledged rows before the fault", |journal| {
        journal.count(Outcome::Ok, mark) >= ROWS_BEFORE
    })
    .await?;
    let before = newest_timeline(&tail.journal);
    let active = scene.any_view().await.and_then(|view| view.active).context("no node says who is active")?;
    progress.line(&format!("{}: {active}", fault.name()));

    scene.note_memory();
    let (at, wall) = (boot_now(), wall_now());
    let fault_started = Instant::now();
    inflict(scene, fault, &active).await.with_context(|| format!("play {}", fault.name()))?;
    wait_journal(scene, tail, "writes to be back", |journal| {
        let back = journal.acknowledged().filter(|row| row.span.sent >= at);
        if fault.ends_the_role() {
            back.into_iter().any(|row| row.timeline > before)
        } else {
            back.count() >= ROWS_BEFORE
        }
    })
    .await?;
    let mut can_return = fault_started;
    if fault == FaultKind::NodeKilled {
        can_return = Instant::now();
        scene.node(&active)?.up();
    }
    wait_whole(&scene.nodes, WHOLE_LIMIT).await.with_context(|| format!("after {}", fault.name()))?;
    let rejoin = can_return.elapsed();
    let until = boot_now();
    judge(scene, tail, lost_ever, fault, Window { at, wall, until, rejoin }, progress).await
}

/// The time of one fault.
struct Window {
    at: BootTime,
    wall: Duration,
    until: BootTime,
    rejoin: Duration,
}

async fn judge(
    scene: &Scene,
    tail: &mut Tail,
    lost_ever: &mut BTreeSet<String>,
    fault: FaultKind,
    window: Window,
    progress: Progress,
) -> anyhow::Result<StepReport> {
    // Read before the tables: what is acknowledged later need not be in them.
    let journal = tail.read()?;
    let view = scene.any_view().await.unwrap_or_default();
    let active = view.active.context("no node says who is active")?;
    let way_in = scene.way_in.as_ref().context("the cluster has not formed")?;
    let tables = rows::read_all(&way_in.access, &way_in.targets, &active, "hasup_chaos", WHOLE_LIMIT).await?;
    let kept = kept_rows(journal, &tables);
    // A row is lost to the fault after which it was first missing.
    let lost_before = lost_ever.len();
    lost_ever.extend(lost_rows(journal, &tables));
    let lost = lost_ever.len() - lost_before;
    let gap = journal
        .longest_gap(window.at, window.until)
        .with_context(|| format!("no row was acknowledged after {}", fault.name()))?;
    let mut findings = kept.findings;
    let failed = unfinished(journal, &window);
    if !fault.ends_the_role() && failed > 0 {
        findings.push(format!("{failed} rows failed although only a daemon was killed"));
    }
    let history = scene.node(&active)?.node.history().await;
    let takeover = scene.node(&active)?.node.view().await.ok().and_then(|view| view.takeover);
    let step = StepReport {
        fault,
        write_gap_ms: millis(gap.length()),
        client_ms: millis(gap.client),
        parts_ms: parts(&history, takeover, &window, &gap),
        lost,
        rejoin_s: (window.rejoin.as_secs_f64() * 100.0).round() / 100.0,
        findings,
    };
    progress.line(&format!(
        "{}: write gap {} ms (client {} ms), lost {lost} of {} rows, {failed} without an acknowledgement, whole again after {} s",
        fault.name(),
        step.write_gap_ms,
        step.client_ms,
        kept.examined,
        step.rejoin_s
    ));
    for finding in &step.findings {
        progress.line(&format!("{}: {finding}", fault.name()));
    }
    Ok(step)
}

fn parts(
    history: &[view::EventView],
    takeover: Option<view::TakeoverView>,
    window: &Window,
    gap: &Gap,
) -> BTreeMap<String, u64> {
    let whole_millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let since = whole_millis(window.wall);
    let back = whole_millis(gap.to.since(window.at));
    // What the cluster records last may carry a stamp just after the client's first row.
    let mut parts = view::parts(history, takeover, since, since.saturating_add(back).saturating_add(500));
    parts.insert("client_back".to_owned(), back);
    parts
}

fn unfinished(journal: &Journal, window: &Window) -> usize {
    let rows = journal.rows.iter().filter(|row| row.outcome != Outcome::Ok);
    rows.filter(|row| row.span.answered >= window.at && row.span.sent <= window.until).count()
}

fn newest_timeline(journal: &Journal) -> Option<Timeline> {
    journal.acknowledged().filter_map(|row| row.timeline).max()
}

async fn inflict(scene: &Scene, fault: FaultKind, active: &str) -> anyhow::Result<()> {
    let supervisor = scene.node(active)?;
    let node = &supervisor.node;
    match fault {
        FaultKind::PostgresKilled => {
            let pids = Scene::part(node, Part::Postgres);
            if pids.is_empty() {
                bail!("{active} has no postmaster to kill");
            }
            process::send(pids, Signal::SIGKILL);
        }
        FaultKind::DaemonKilled => {
            let pid = supervisor.seen().pid.with_context(|| format!("{active} has no daemon to kill"))?;
            process::send([pid], Signal::SIGKILL);
        }
        FaultKind::NodeKilled => {
            supervisor.down();
            process::kill_all(|| node.processes(), Duration::from_secs(10))
                .await
                .map_err(|pids| anyhow::anyhow!("processes {pids:?} of {active} do not die"))?;
        }
        FaultKind::Switchover => {
            node.ask(&["switchover"], Duration::from_secs(60)).await?;
        }
    }
    Ok(())
}

async fn wait_journal(
    scene: &mut Scene,
    tail: &mut Tail,
    what: &str,
    enough: impl Fn(&Journal) -> bool,
) -> anyhow::Result<()> {
    let deadline = Instant::now() + BACK_LIMIT;
    while !enough(tail.read()?) {
        scene.check_writer()?;
        if Instant::now() > deadline {
            let last = tail.journal.rows.last().map(|row| format!("{} at {}: {}", row.outcome, row.node, row.detail));
            bail!(
                "waited {} s for {what}; the last row was {}",
                BACK_LIMIT.as_secs(),
                last.unwrap_or_else(|| "never sent: no node was writable".to_owned())
            );
        }
        sleep(LOOK).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_has_exactly_the_promised_form() {
        let step = StepReport {
            fault: FaultKind::NodeKilled,
            write_gap_ms: 2161.5,
            client_ms: 12.0,
            parts_ms: BTreeMap::from([("barred".to_owned(), 2101)]),
            lost: 0,
            rejoin_s: 3.25,
            findings: vec!["told elsewhere".into()],
        };
        let report = Report { ok: true, lease_ms: 2000, steps: vec![step] };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            r#"{"ok":true,"lease_ms":2000,"steps":[{"fault":"node_killed","write_gap_ms":2161.5,"client_ms":12.0,"parts_ms":{"barred":2101},"lost":0,"rejoin_s":3.25}]}"#
        );
    }

    #[test]
    fn a_median_of_two_does_not_flatter() {
        assert_eq!(Spread::of([3.0, 1.0].into_iter()), Spread { min: 1.0, median: 3.0, worst: 3.0 });
        assert_eq!(Spread::of([3.0, 1.0, 2.0].into_iter()), Spread { min: 1.0, median: 2.0, worst: 3.0 });
        assert_eq!(Spread::of([].into_iter()), Spread { min: 0.0, median: 0.0, worst: 0.0 });
    }

    #[test]
    fn faults_are_named_alike_everywhere() {
        use clap::ValueEnum;
        for fault in FaultKind::ALL {
            assert_eq!(serde_json::to_value(fault).unwrap(), fault.name());
            assert_eq!(fault.to_possible_value().unwrap().get_name(), fault.name());
        }
    }
}
