//! `hasup chaos replay`: plays the schedule of a report again and compares the verdicts.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use super::checkers::Found;
use super::kinds::Kind;
use super::random;
use super::report::{Record, Report};
use super::run::{Plan, execute, names, say};
use super::schedule::Schedule;

/// Play the schedule of a report again, and compare the verdicts
#[derive(Debug, Clone, clap::Args)]
pub struct ReplayArgs {
    /// The folder of a report, or its report.json
    #[arg(value_name = "REPORT")]
    pub old: PathBuf,
    /// Folder for journals, logs and the report of the new run, made when absent; without it they are removed after a run that is ok
    #[arg(long, value_name = "DIR")]
    pub report: Option<PathBuf>,
    /// Print nothing but JSON on standard output; progress goes to standard error
    #[arg(long)]
    pub json: bool,
}

/// What a report must say to be played again.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Old {
    verdict: String,
    #[serde(default)]
    why: Vec<String>,
    verdicts: Vec<OldVerdict>,
    schedule: String,
    hosts: u8,
    seed: Option<u64>,
    duration_ms: Option<u64>,
    #[serde(default)]
    allow_skip: Vec<String>,
    longest_gap_ms: Option<f64>,
}

/// What a checker found then.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct OldVerdict {
    checker: String,
    ok: bool,
    violations: usize,
}

/// What a replay found: its last line.
#[derive(Debug, Clone, Serialize)]
struct Replayed {
    /// Whether the verdicts are the same.
    ok: bool,
    /// The verdict of the report.
    was: String,
    /// The verdict of the new run.
    is: String,
    /// What differs, in plain words.
    differences: Vec<String>,
    /// The longest write gap of the report.
    longest_gap_was_ms: Option<f64>,
    /// The longest write gap of the new run: no difference, as no two runs are alike to the millisecond.
    longest_gap_is_ms: Option<f64>,
    /// What the new run found.
    run: Report,
}

/// Plays the schedule again and returns the exit status: 0 where the verdicts are the same, else 1.
///
/// # Errors
/// When the report cannot be read or not be played here.
pub async fn run(args: ReplayArgs) -> anyhow::Result<u8> {
    let old = read(&args.old)?;
    let (schedule, remark) = old.schedule()?;
    let allow_skip = old.allow_skip.iter().map(|word| word.parse::<Kind>()).collect::<Result<_, _>>();
    let plan = Plan {
        schedule,
        seed: old.seed,
        duration: old.duration_ms.map(Duration::from_millis),
        hosts: old.hosts,
        allow_skip: allow_skip.map_err(|problem| anyhow::anyhow!("allow_skip: {problem}"))?,
        hidden: told_in(&report_file(&args.old)),
        report: args.report,
        json: args.json,
    };
    if let Some(remark) = remark {
        say(args.json, &remark);
    }
    let record = execute(plan).await?;
    let replayed = old.compare(&record);
    let (was, is) = (&replayed.was, &replayed.is);
    say(args.json, &format!("the verdict was {was} and is {is}"));
    replayed.differences.iter().for_each(|difference| say(args.json, &format!("  {difference}")));
    println!("{}", serde_json::to_string(&replayed)?);
    Ok(u8::from(!replayed.ok))
}

fn report_file(path: &Path) -> PathBuf {
    let file = if path.is_dir() { path.join("report.json") } else { path.to_owned() };
    fs::canonicalize(&file).unwrap_or(file)
}

/// Returns the files of a report that tell its schedule.
fn told_in(report: &Path) -> Vec<PathBuf> {
    let beside = ["schedule.chaos", "report.html"].map(|name| report.with_file_name(name));
    std::iter::once(report.to_owned()).chain(beside).collect()
}

fn read(path: &Path) -> anyhow::Result<Old> {
    let file = report_file(path);
    let text = fs::read_to_string(&file).with_context(|| format!("read {}", file.display()))?;
    Old::parse(&text)
        .with_context(|| format!("{} is no report, so nothing was started; name the folder of one", file.display()))
}

impl Old {
    fn parse(text: &str) -> anyhow::Result<Self> {
        let old: Self = serde_json::from_str(text)?;
        if !(1..=9).contains(&old.hosts) {
            bail!("it speaks of {} hosts; there can be 1 to 9", old.hosts);
        }
        Ok(old)
    }

    /// Returns the schedule, and a remark where its seed gives another one by now.
    fn schedule(&self) -> anyhow::Result<(Schedule, Option<String>)> {
        let names = names(self.hosts);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let schedule = Schedule::parse(&self.schedule, &names)?;
        let (Some(seed), Some(duration)) = (self.seed, self.duration_ms) else { return Ok((schedule, None)) };
        let made = random::schedule(seed, Duration::from_millis(duration), &names);
        let remark = (made.steps != schedule.steps).then(|| {
            format!("seed {seed} gives another schedule in this version of hasup; the one of the report is played")
        });
        Ok((schedule, remark))
    }

    fn compare(&self, new: &Record) -> Replayed {
        let report = &new.report;
        let is = report.judgement.verdict.as_str();
        let mut differences = Vec::new();
        if self.verdict != is {
            differences.push(format!("the verdict was {} and is {is}", self.verdict));
            differences.extend(self.why.iter().map(|why| format!("then: {why}")));
            differences.extend(report.judgement.why.iter().map(|why| format!("now: {why}")));
        }
        // How many violations there are is chance; whether there are any is not.
        let then: BTreeMap<&str, Found> =
            self.verdicts.iter().map(|it| (it.checker.as_str(), Found::of(it.ok, it.violations))).collect();
        let now: BTreeMap<&str, Found> = report.verdicts.iter().map(|it| (it.checker, it.found())).collect();
        let names: BTreeSet<&str> = then.keys().chain(now.keys()).copied().collect();
        let told = |all: &BTreeMap<&str, Found>, name: &str| all.get(name).map_or("not asked", |found| found.as_str());
        for name in names {
            let (then, now) = (told(&then, name), told(&now, name));
            if then != now {
                differences.push(format!("{name}: then {then}, now {now}"));
            }
        }
        Replayed {
            ok: differences.is_empty(),
            was: self.verdict.clone(),
            is: is.to_owned(),
            differences,
            longest_gap_was_ms: self.longest_gap_ms,
            longest_gap_is_ms: report.longest_gap_ms,
            run: report.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::html::example;

    fn old(change: impl FnOnce(&mut serde_json::Value)) -> Old {
        let mut json = serde_json::to_value(example()).unwrap();
        change(&mut json);
        Old::parse(&json.to_string()).unwrap()
    }

    #[test]
    fn a_report_is_read_as_it_was_written_and_is_like_itself() {
        let old = old(|_| {});
        assert_eq!((old.verdict.as_str(), old.hosts), ("inconclusive", 3));
        let (schedule, remark) = old.schedule().unwrap();
        assert_eq!((schedule.steps.len(), remark), (1, None));
        let same = old.compare(&example());
        assert!(same.ok && same.differences.is_empty(), "{same:?}");
    }

    #[test]
    fn another_verdict_and_another_finding_are_told() {
        let then = old(|json| {
            json["verdict"] = "ok".into();
            json["why"] = serde_json::json!([]);
            json["verdicts"] = serde_json::json!([
                {"checker": "one_writer", "ok": true, "violations": 0},
                {"checker": "rewound", "ok": false, "violations": 0},
            ]);
        });
        let replayed = then.compare(&example());
        assert!(!replayed.ok);
        let told = replayed.differences.join("\n");
        for words in [
            "the verdict was ok and is inconclusive",
            "one_writer: then kept, now violated",
            "rewound: then nothing to look at, now not asked",
        ] {
            assert!(told.contains(words), "{told}");
        }
        let more = old(|json| json["verdicts"][0]["violations"] = 17.into());
        assert!(more.compare(&example()).ok, "how many violations there are is chance");
    }

    #[test]
    fn a_seed_that_gives_another_schedule_by_now_is_told_and_the_report_s_own_is_played() {
        let names = ["n1", "n2", "n3"];
        let made = random::schedule(5, Duration::from_secs(60), &names);
        let by_chance = |schedule: String| {
            old(|json| {
                json["seed"] = 5.into();
                json["duration_ms"] = 60_000.into();
                json["schedule"] = schedule.into();
            })
        };
        assert_eq!(by_chance(made.to_string()).schedule().unwrap(), (made.clone(), None));
        let (played, remark) = by_chance("at 1s crash n1\nend 9s\n".into()).schedule().unwrap();
        assert!(played.steps.len() == 1 && remark.is_some_and(|it| it.contains("seed 5 gives another schedule")));
    }

    #[test]
    fn what_is_no_report_is_refused() {
        for text in ["", "{}", "{\"verdict\":\"ok\"}"] {
            assert!(Old::parse(text).is_err(), "{text}");
        }
        let mut json = serde_json::to_value(example()).unwrap();
        json["hosts"] = 200.into();
        assert!(Old::parse(&json.to_string()).unwrap_err().to_string().contains("1 to 9"));
    }
}
