//! Real clusters of three hosts with real PostgreSQL under real faults, judged from outside.
//!
//! A host is a network namespace with a cable to a switch; `hasup chaos run` plays the schedules of this folder on them. Each
//! test is one schedule. Some run with `HASUP_TEST_FULL=1` alone, so that the rest ends within six minutes.
//! `HASUP_TEST_ADDRESSES=ipv6` plays all of them over IPv6.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use hasup::chaos::schedule::Schedule;
use raft_tests::program::{alone, hasup, lacks_hosts, lacks_postgres, over_ipv6, skip};

/// A run that takes longer has hung: forming, healing and counting rows have limits of their own below this.
const LIMIT_S: &str = "600";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/schedules")
}

fn play(name: &str, only_in_full: bool) {
    if let Some(why) = lacks_postgres().or_else(lacks_hosts) {
        return skip(name, &why);
    }
    if only_in_full && std::env::var_os("HASUP_TEST_FULL").is_none() {
        return skip(name, "it is played with HASUP_TEST_FULL=1");
    }
    let _alone = alone();
    let report = tempfile::Builder::new().prefix("hasup-").tempdir_in("/tmp").unwrap();
    let text = std::fs::read_to_string(folder().join(format!("{name}.chaos"))).unwrap();
    let is_special = text.lines().any(|line| line.starts_with("addresses "));
    let addresses = if over_ipv6() && !is_special { "addresses ipv6\n" } else { "" };
    let mut schedule = tempfile::Builder::new().prefix("hasup-").suffix(".chaos").tempfile_in("/tmp").unwrap();
    write!(schedule, "{text}\n{addresses}").unwrap();
    let output = Command::new("timeout")
        .arg(LIMIT_S)
        .arg(hasup())
        .args(["chaos", "run", "--json", "--schedule"])
        .arg(schedule.path())
        .arg("--report")
        .arg(report.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stderr);
    let last = String::from_utf8_lossy(&output.stdout).lines().last().unwrap_or_default().to_owned();
    let verdict: serde_json::Value = serde_json::from_str(&last).unwrap_or_default();
    println!(
        "{name}: longest gap {} ms of which the client's own {} ms",
        verdict["longest_gap_ms"], verdict["client_ms"]
    );
    if verdict["ok"] != true || !output.status.success() {
        let kept = report.keep();
        panic!("{name}: {}\n{told}\n{last}\njournals and logs are in {}", output.status, kept.display());
    }
}

macro_rules! schedules {
    ($($kind:ident $name:ident,)*) => {
        /// Every schedule that a test plays.
        const PLAYED: &[&str] = &[$(stringify!($name)),*];
        $(#[test]
        fn $name() {
            play(stringify!($name), stringify!($kind) == "full");
        })*
    };
}

schedules! {
    always active_loses_power,
    always leader_loses_power,
    always standbys_lose_power,
    always all_lose_power,
    full   all_lose_power_active_last,
    always active_is_cut,
    full   active_hears_nobody,
    always active_is_not_heard,
    always bridge,
    always active_is_frozen,
    always kept_back_holds_more,
    always daemons_are_killed,
    full   guard_is_killed,
    full   switchovers,
    always node_joins,
    full   parted_history,
    full   packets_are_lost,
    always ipv6,
    always host_names,
}

#[test]
fn every_schedule_is_sound_and_played() {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        let parsed = Schedule::parse(&text, &["n1", "n2", "n3"]);
        assert!(parsed.is_ok(), "{}: {parsed:?}", path.display());
        found.insert(path.file_stem().unwrap().to_str().unwrap().to_owned());
    }
    assert_eq!(found, PLAYED.iter().map(|name| (*name).to_owned()).collect());
}
