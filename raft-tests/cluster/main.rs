//! Real clusters of three hosts with real PostgreSQL under real faults, judged from outside.
//!
//! A host is a network namespace with a cable to a switch; `hasup chaos run` plays the schedules of this folder on them. Each
//! test is one schedule. `HASUP_TEST_ADDRESSES=ipv6` plays all of them over IPv6.
//!
//! What a cluster was promised to survive, and where that is proven:
//!
//! | fault | schedule | every run |
//! |---|---|---|
//! | power loss of the active node; of the leader, then of both standbys | `active_loses_power`, `standbys_lose_power` | yes |
//! | power loss of all; each two of them back first | `all_lose_power` | yes |
//! | the same pairs, each in the other order | `all_lose_power_other_way_round` | no |
//! | the active node cut off whole; in one direction, then the other; from one standby, and the standbys from each other | `active_is_cut`, `one_way`, `bridge` | yes |
//! | ten thousand rows in `one_node` behind a cut: a rewind, no copy, and all of them kept aside | `parted_history` | yes |
//! | the active node frozen beyond its lease, to its end, and within it | `active_is_frozen` | yes |
//! | daemons and guards killed | `daemons_and_guards_are_killed` | yes |
//! | the newest commits only where nobody may take over | `kept_back_holds_more` | yes |
//! | join under load, removal, and join again | `node_joins` | yes |
//! | IPv6 alone; host names | `ipv6`, `host_names` | yes |
//! | four switchovers in a row | `switchovers` | no |
//! | a tenth of all packets lost, both ways | `packets_are_lost` | no |
//!
//! Those that are not in every run need `HASUP_TEST_FULL=1`, as `scripts/test --full` sets it: the others take about ten minutes of a
//! machine with two cores. On real servers without hosts, in every run: `postgres/roles.rs` kills a rewind of ten thousand rows in
//! each of its steps, `postgres/rejoin.rs` reaches one timeline number twice, `process/switchover.rs` moves the role by command, and
//! `process/troubles.rs` kills guard and daemon at once.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

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
    let started = Instant::now();
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
        "{told}\n{name}: longest gap {} ms of which the client's own {} ms, {:.1} s in all",
        verdict["longest_gap_ms"],
        verdict["client_ms"],
        started.elapsed().as_secs_f64()
    );
    // that the clients were slow is the machine's doing, and no verdict on hasup: the rest was judged and is to hold
    let reasons = verdict["why"].as_array().map_or(0, Vec::len);
    let is_busy = verdict["verdict"] == "inconclusive" && verdict["counts"]["slow_clients"] == reasons;
    if is_busy {
        skip(name, &format!("the machine is too busy: {}", verdict["why"]));
    } else if verdict["ok"] != true || !output.status.success() {
        let kept = report.keep();
        panic!("{name}: {}\n{last}\njournals and logs are in {}", output.status, kept.display());
    }
    let faults = verdict["faults"].as_array().cloned().unwrap_or_default();
    let parsed = Schedule::parse(&text, &["n1", "n2", "n3"]).unwrap();
    for step in &parsed.steps {
        let played = faults.iter().filter(|fault| fault["step"] == step.to_string());
        assert!(played.clone().count() > 0, "{name}: `{step}` was done to nobody");
        for fault in played {
            assert!(fault["bit"] == true && fault["proof"].is_object(), "{name}: {fault}");
        }
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
    always standbys_lose_power,
    always all_lose_power,
    full   all_lose_power_other_way_round,
    always active_is_cut,
    always one_way,
    always bridge,
    always parted_history,
    always active_is_frozen,
    always daemons_and_guards_are_killed,
    always kept_back_holds_more,
    always node_joins,
    always ipv6,
    always host_names,
    full   switchovers,
    full   packets_are_lost,
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
