//! Plays a schedule against a cluster on hosts of its own, heals everything, and judges.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

use super::kinds::Kind;
use super::machine::{Machine, Need};
use super::range::Range;
use super::report::Record;
use super::schedule::{Schedule, span};
use super::{html, random, whole_millis};
use crate::sys::fs::write_volatile;

/// Play a schedule of faults against a cluster on hosts of its own, and judge it
#[derive(Debug, Clone, clap::Args)]
#[command(group(clap::ArgGroup::new("what").required(true).args(["schedule", "seed"])))]
pub struct RunArgs {
    /// The schedule, one statement a line: `at 5s crash active`, `at 12s boot`, `end 40s`
    #[arg(long, value_name = "FILE")]
    pub schedule: Option<PathBuf>,
    /// Faults by chance instead: a number gives the same schedule each time
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// How long faults by chance go on, from 10s to 24h
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = duration, conflicts_with = "schedule")]
    pub duration: Duration,
    /// How many hosts, named n1, n2, …
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=9))]
    pub hosts: u8,
    /// Folder for journals, logs and the report, made when absent; without it they are removed after a run that is ok
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Print nothing but JSON on standard output; progress goes to standard error
    #[arg(long)]
    pub json: bool,
    /// A kind of fault that this machine may go without; otherwise, a run that must skip one is inconclusive
    #[arg(long, value_name = "KIND")]
    pub allow_skip: Vec<Kind>,
    /// Options of the cluster, as check_ttl_multiplier=0.5
    #[arg(long, value_name = "K=V")]
    pub options: Vec<String>,
}

/// A run that is to be.
pub(super) struct Plan {
    pub(super) schedule: Schedule,
    /// The seed that the schedule came from.
    pub(super) seed: Option<u64>,
    /// How long its faults by chance go on.
    pub(super) duration: Option<Duration>,
    pub(super) hosts: u8,
    pub(super) allow_skip: Vec<Kind>,
    /// Files that tell what is to come, which the hosts find empty.
    pub(super) hidden: Vec<PathBuf>,
    /// The folder that is kept.
    pub(super) report: Option<PathBuf>,
    /// Whether standard output is for JSON alone.
    pub(super) json: bool,
}

/// Runs the schedule and returns the exit status: 0 where every promise was kept, else 1.
///
/// # Errors
/// When nothing could be judged for want of the machine: no root, no tools, a wrong schedule.
pub async fn run(args: RunArgs) -> anyhow::Result<u8> {
    let names = names(args.hosts);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut schedule = match (&args.schedule, args.seed) {
        (Some(path), _) => {
            let text = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
            Schedule::parse(&text, &names)?
        }
        (None, Some(_)) if names.len() < 2 => bail!("faults by chance need two hosts or more; nothing was started"),
        (None, seed) => random::schedule(seed.unwrap_or_default(), args.duration, &names),
    };
    schedule.options.extend(args.options);
    let by_chance = args.seed.filter(|_| args.schedule.is_none());
    let record = execute(Plan {
        schedule,
        seed: by_chance,
        duration: by_chance.map(|_| args.duration),
        hosts: args.hosts,
        allow_skip: args.allow_skip,
        hidden: args.schedule.into_iter().collect(),
        report: args.report,
        json: args.json,
    })
    .await?;
    println!("{}", serde_json::to_string(&record.report)?);
    Ok(u8::from(!record.report.ok))
}

/// Returns the names of so many hosts.
pub(super) fn names(hosts: u8) -> Vec<String> {
    (1..=hosts).map(|number| format!("n{number}")).collect()
}

/// Prints a line of progress: on standard error where standard output is for JSON alone.
pub(super) fn say(json: bool, line: &str) {
    // A reader that has gone is no reason to leave hosts behind.
    let _ = if json { writeln!(std::io::stderr(), "{line}") } else { writeln!(std::io::stdout(), "{line}") };
}

/// Makes the hosts, plays the schedule on them, judges, and leaves the folder with the report where it is to be kept or the verdict is
/// not `ok`.
///
/// # Errors
/// When nothing could be judged for want of the machine, or the report not be written.
pub(super) async fn execute(plan: Plan) -> anyhow::Result<Record> {
    let machine = Machine::look();
    if let Some(why) = machine.lacks(Need::OF_HOSTS) {
        bail!("this machine cannot play a schedule, so nothing was started: {why}");
    }
    let Plan { schedule, json, .. } = plan;
    let (dir, keep) = folder(plan.report.as_deref())?;
    let started = Instant::now();
    let tell = move |line: &str| say(json, &format!("{:7.1} s  {line}", started.elapsed().as_secs_f64()));
    let mut interrupted = signal(SignalKind::interrupt()).context("await SIGINT")?;
    let mut terminated = signal(SignalKind::terminate()).context("await SIGTERM")?;
    // Who is under test must not know what comes: the hosts find these files empty, and the schedule is written down when they are gone.
    let hidden: Vec<PathBuf> = plan.hidden.iter().filter_map(|path| fs::canonicalize(path).ok()).collect();
    let names = names(plan.hosts);
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut range = Range::set_up(&names, dir.clone(), schedule.addresses, machine, &hidden, &tell)?;
    let result = tokio::select! {
        result = range.play(&schedule, &plan.allow_skip, &tell) => result,
        _ = interrupted.recv() => Err(anyhow::anyhow!("interrupted")),
        _ = terminated.recv() => Err(anyhow::anyhow!("interrupted")),
    };
    let (report, timeline) = range.judge(result, &schedule, &tell).await;
    drop(range);
    tell("the hosts are gone");
    let record = Record {
        report,
        seed: plan.seed,
        duration_ms: plan.duration.map(whole_millis),
        hosts: plan.hosts,
        allow_skip: plan.allow_skip,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        schedule: schedule.to_string(),
        timeline,
    };
    if keep || !record.report.ok {
        let put = |name: &str, text: String| {
            write_volatile(&dir.join(name), text.as_bytes()).with_context(|| format!("write {name}"))
        };
        put("schedule.chaos", record.schedule.clone())?;
        put("report.json", format!("{}\n", serde_json::to_string(&record)?))?;
        put("report.html", html::page(&record))?;
        tell(&format!("report.html, report.json, journals and logs are in {}", dir.display()));
    } else {
        fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
    }
    Ok(record)
}

/// Reads how long faults by chance go on.
fn duration(text: &str) -> Result<Duration, String> {
    let duration = span(text)?;
    if duration < Duration::from_secs(10) {
        return Err(format!("`{text}` is too short for a fault and for what follows; use 10s to 24h"));
    }
    Ok(duration)
}

fn folder(report: Option<&Path>) -> anyhow::Result<(PathBuf, bool)> {
    let (dir, made) = match report {
        Some(dir) => (dir.to_owned(), fs::create_dir_all(dir)),
        None => {
            // Short, as PostgreSQL's Unix sockets lie below it. It must be new: everybody may put a link of that name into /tmp.
            let dir = PathBuf::from(format!("/tmp/hasup-chaos.{}", std::process::id()));
            let made = fs::create_dir(&dir);
            (dir, made)
        }
    };
    made.with_context(|| format!("make {}", dir.display()))?;
    if fs::read_dir(&dir).is_ok_and(|mut entries| entries.next().is_some()) {
        bail!("{} is not empty; nothing was started. Name an empty or absent folder", dir.display());
    }
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o755)).context("open the folder")?;
    Ok((fs::canonicalize(&dir).with_context(|| format!("find {}", dir.display()))?, report.is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_works_in_an_empty_folder_and_in_one_of_its_own_where_none_is_named() {
        let outer = tempfile::tempdir().unwrap();
        let named = outer.path().join("a/b");
        assert_eq!(folder(Some(&named)).unwrap(), (fs::canonicalize(&named).unwrap(), true));
        fs::write(named.join("thesis.txt"), "").unwrap();
        assert!(folder(Some(&named)).unwrap_err().to_string().contains("is not empty; nothing was started"));

        let own = PathBuf::from(format!("/tmp/hasup-chaos.{}", std::process::id()));
        let target = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(target.path(), &own).unwrap();
        assert!(folder(None).is_err(), "somebody else's link");
        fs::remove_file(&own).unwrap();
        assert_eq!(folder(None).unwrap(), (own.clone(), false));
        fs::remove_dir(&own).unwrap();
    }
}
