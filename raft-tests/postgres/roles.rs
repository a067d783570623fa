//! What the protocol asks of PostgreSQL, on real servers: bar, stated position, reserved timelines, names, rejoin.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hasup::ha::record::CommitSet;
use hasup::postgres::log::LogReader;
use hasup::postgres::rewind::{self, Rewind};
use hasup::postgres::{Divergence, SyncNames, WriteProbe, diverged};
use hasup::types::{Lsn, Timeline};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::fixture::{Cluster, HARNESS, LIMIT, eventually, goes_on, member, one_of};

/// Aim: after both peers' bars nothing more is acknowledged, what was is held by the best of them, it promotes to the reserved
/// timeline past two unused numbers, the third follows, and the old primary, stopped and started, is a standby.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_acknowledged_after_the_bar_and_nothing_acknowledged_is_lost() {
    if !goes_on("roles::nothing_is_acknowledged_after_the_bar_and_nothing_acknowledged_is_lost") {
        return;
    }
    let cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    let first = Arc::new(first);
    first.sql("create table t (id bigint primary key)").await;

    let acknowledged = Arc::new(AtomicU64::new(0));
    let mut writer = JoinSet::new();
    let (node, counter) = (Arc::clone(&first), Arc::clone(&acknowledged));
    writer.spawn(async move {
        let mut session = node.postgres.new_session(LIMIT).await.unwrap();
        for id in 1_u64.. {
            let sql = format!("insert into t values ({id})");
            if session.query("insert", &sql, Duration::from_secs(3)).await.is_err() {
                return;
            }
            counter.store(id, Ordering::SeqCst);
        }
    });
    eventually("the writer writes", async || {
        if acknowledged.load(Ordering::SeqCst) > 200 { Ok(()) } else { Err("too few".to_owned()) }
    })
    .await;

    let began = Instant::now();
    let (a, b) = tokio::join!(second.postgres.bar(LIMIT), third.postgres.bar(LIMIT));
    a.unwrap();
    b.unwrap();
    println!("bar of both peers took {:?}", began.elapsed());
    let at_bar = acknowledged.load(Ordering::SeqCst);
    let states = [second.stated().await, third.stated().await];
    // The writer gives up after 3 s without an answer: nothing came in all that time.
    while writer.join_next().await.is_some() {}
    // One answer may have been on its way to the counter.
    assert!(acknowledged.load(Ordering::SeqCst) <= at_bar + 1);
    let acknowledged = acknowledged.load(Ordering::SeqCst);

    let (best, other) = if states[0] >= states[1] { (&second, &third) } else { (&third, &second) };
    best.postgres.set_sync_names(&one_of(&[other.id, 1]), false, LIMIT).await.unwrap();
    best.arm(2, Duration::from_secs(600)).await;
    let began = Instant::now();
    best.promote(2, Timeline(5)).await;
    println!("promotion took {:?}", began.elapsed());
    assert!(best.postgres.has_standby_signal());
    other.postgres.follow(&other.follow(best, 2)).unwrap();
    assert!(matches!(best.postgres.probe_quorum_write(LIMIT).await.unwrap(), WriteProbe::Written(_)));
    println!("quorum write {:?} after the promotion began", began.elapsed());
    assert_eq!(best.live().await.timeline, Timeline(5));
    other.streams(2).await;
    let held: u64 = best.sql("select count(*) from t").await.parse().unwrap();
    assert!(held >= acknowledged, "{held} of {acknowledged}");

    // The other's end is on the new timeline now; before it had any of it, it was not.
    other.postgres.bar(LIMIT).await.unwrap();
    assert_eq!(other.stated().await.timeline, Timeline(5));
    assert!(states.iter().all(|position| position.timeline == Timeline(2)));

    // A restart keeps the bar and states every whole record again; half a record, which no commit can be, may be gone.
    let before = other.live().await.replay_lsn.unwrap();
    other.stop().await;
    other.start(None).await;
    let after = other.stated().await;
    assert!(after.lsn >= before && after.timeline == Timeline(5), "{after} after a restart, {before} before");

    // The old primary starts as a standby, whose position shows the divergence or none.
    first.stop().await;
    first.start(None).await;
    assert!(first.live().await.in_recovery);
}

/// Aim: a commit whose wait its client cancelled is found in the log of a real server, whatever its client says.
#[tokio::test(flavor = "multi_thread")]
async fn cancelled_waits_are_read_from_the_log() {
    if !goes_on("roles::cancelled_waits_are_read_from_the_log") {
        return;
    }
    let cluster = Cluster::new();
    let first = cluster.primary(1).await;
    first.sql("create table t (id bigint primary key)").await;
    first.postgres.set_sync_names(&SyncNames::Nobody, true, LIMIT).await.unwrap();
    let log = std::cell::RefCell::new(LogReader::at_end(first.postgres.layout().log_file()));
    let mut writer = first.postgres.new_session(LIMIT).await.unwrap();
    let cancel = async {
        eventually("the commit waits", async || {
            let sql = "select count(pg_cancel_backend(pid)) from pg_stat_activity where wait_event = 'SyncRep'";
            if first.sql(sql).await == "1" { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    };
    let (written, ()) = tokio::join!(writer.query("insert", "insert into t values (1)", LIMIT), cancel);
    written.unwrap();
    eventually("the log tells", async || {
        if log.borrow_mut().cancelled_waits().unwrap() == 1 { Ok(()) } else { Err("not yet".to_owned()) }
    })
    .await;
    first
        .postgres
        .run_sql(
            "speak of it",
            "set log_min_duration_statement = 0; set log_min_error_statement = 'log'; \
         select 'WARNING:  canceling wait for synchronous replication'",
            LIMIT,
        )
        .await
        .unwrap();
    assert_eq!(log.borrow_mut().cancelled_waits().unwrap(), 0, "what clients write counts for nothing");
}

/// Aim: names are in force when the step returns, also with k = 2, where all senders are cut first; and commits wait for a
/// standby nobody bears.
#[tokio::test(flavor = "multi_thread")]
async fn standby_names_are_in_force_when_the_step_returns() {
    if !goes_on("roles::standby_names_are_in_force_when_the_step_returns") {
        return;
    }
    let cluster = Cluster::new();
    let first = cluster.primary(1).await;
    let second = cluster.standby(2, &first).await;
    first.postgres.set_sync_names(&SyncNames::Nobody, false, LIMIT).await.unwrap();
    assert!(first.postgres.probe_quorum_write(Duration::from_millis(700)).await.is_err(), "nobody can acknowledge");
    assert!(matches!(first.postgres.probe_write(LIMIT).await.unwrap(), WriteProbe::Written(_)));

    let both = SyncNames::of(&CommitSet { members: [member(2), member(3)].into(), k: 2 });
    first.postgres.set_sync_names(&both, false, LIMIT).await.unwrap();
    assert!(first.live().await.shows(&both));
    assert!(first.postgres.probe_quorum_write(Duration::from_millis(700)).await.is_err(), "one is missing");
    first.postgres.set_sync_names(&one_of(&[2]), false, LIMIT).await.unwrap();
    second.streams(1).await;
    assert!(matches!(first.postgres.probe_quorum_write(LIMIT).await.unwrap(), WriteProbe::Written(_)));

    // What an operator's ALTER SYSTEM says is taken out where names are set.
    first.sql("alter system set synchronous_standby_names = ''").await;
    first.postgres.set_sync_names(&one_of(&[2, 3]), true, LIMIT).await.unwrap();
    assert!(first.live().await.shows(&one_of(&[2, 3])));
    first.stop().await;
    let end = first.postgres.final_position().await.unwrap().position;
    assert_eq!(end.timeline, Timeline(2));
    first.start(None).await;
    assert!(first.live().await.shows(&one_of(&[2, 3])));
    second.postgres.bar(LIMIT).await.unwrap();
    assert!(second.stated().await >= end, "an orderly stop ships everything");
}

/// Aim: an old primary with 10,000 rows that nobody else has comes back as a streaming standby, killed once in each step of the
/// rewind, without a copy; its tail is listed.
#[tokio::test(flavor = "multi_thread")]
async fn diverged_primary_rejoins_by_rewind_though_killed_at_each_step() {
    if !goes_on("roles::diverged_primary_rejoins_by_rewind_though_killed_at_each_step") {
        return;
    }
    let cluster = Cluster::new();
    let first = cluster.primary(1).await;
    let second = cluster.standby(2, &first).await;
    first.sql("create table t (id bigint primary key)").await;
    second.has_all_of(&first).await;
    second.postgres.bar(LIMIT).await.unwrap();
    let fork = second.stated().await;
    first.sql("insert into t select generate_series(1, 10000)").await;
    second.take_over(Timeline(4), &SyncNames::Empty).await;
    second.sql("insert into t select generate_series(50001, 50100)").await;
    second.postgres.checkpoint(LIMIT).await.unwrap();

    // Crash, start barred, read to the end, stop in order.
    first.guard.fence(Duration::from_millis(100)).await.unwrap();
    first.start(None).await;
    let own = first.stated().await;
    let theirs = second.postgres.history(Timeline(4)).unwrap().unwrap();
    let mine = first.postgres.history(own.timeline).unwrap().unwrap();
    let Divergence::At(parted) = diverged(own, &mine, &theirs) else { panic!("{own} against {theirs:?}") };
    assert!(parted <= fork.lsn, "{parted} {fork}");
    first.stop().await;

    for step in ["Quarantine", "Rewinding", "Fixing"] {
        let status = Command::new(HARNESS)
            .arg("rewind")
            .arg(first.data_dir())
            .args([second.port().to_string(), own.timeline.to_string(), own.lsn.to_string(), parted.to_string()])
            .arg(step)
            .status()
            .unwrap();
        println!("killed at {step}: {status}; journal {:?}", rewind::pending(first.postgres.layout()));
    }
    let plan = Rewind {
        source: second.source(),
        ssl: first.postgres.settings().ssl.clone(),
        source_timeline: Timeline(4),
        fork: parted,
        own,
        label: "second".to_owned(),
        limit: LIMIT,
    };
    // The last step may have been faster than its death: then nothing is left to do.
    let layout = first.postgres.layout();
    let is_done = rewind::pending(layout).is_none() && !rewind::list_salvage(layout).unwrap().is_empty();
    if !is_done {
        plan.run(first.postgres.programs(), layout).await.unwrap();
    }
    let salvage = rewind::list_salvage(first.postgres.layout()).unwrap();
    let tail = salvage.values().next().unwrap();
    assert_eq!((tail.from, tail.to), (parted, own.lsn), "{salvage:?}");
    assert!(tail.files.iter().any(|name| name.starts_with("00000002")), "{tail:?}");

    first.start(Some(&first.follow(&second, 2))).await;
    first.streams(2).await;
    first.has_all_of(&second).await;
    assert_eq!(first.sql("select count(*) || ' ' || min(id) from t").await, "100 50001");
    assert_eq!(first.live().await.timeline, Timeline(4));
}

/// Aim: what an old primary alone holds survives a copy in place of a rewind. Method: rows that nobody else has, no orderly stop,
/// and a copy at once.
#[tokio::test(flavor = "multi_thread")]
async fn tail_of_an_old_primary_is_kept_though_its_data_are_copied_anew() {
    if !goes_on("roles::tail_of_an_old_primary_is_kept_though_its_data_are_copied_anew") {
        return;
    }
    let cluster = Cluster::new();
    let first = cluster.primary(1).await;
    let second = cluster.standby(2, &first).await;
    let salvaged = rewind::list_salvage(second.postgres.layout()).unwrap();
    assert!(salvaged.is_empty(), "a first copy replaces nothing: {salvaged:?}");
    second.postgres.bar(LIMIT).await.unwrap();
    let fork = second.stated().await;
    first.sql("create table t as select generate_series(1, 200000)").await;
    let end: Lsn = first.sql("select pg_current_wal_flush_lsn()").await.parse().unwrap();
    second.take_over(Timeline(4), &SyncNames::Empty).await;
    first.guard.fence(Duration::from_millis(100)).await.unwrap();
    // an operator's own, which no copy may touch
    for name in ["pgdata.old", "pgdata.new"] {
        std::fs::create_dir(first.data_dir().join(name)).unwrap();
    }
    first.copy_from(&second).await;
    let salvaged = rewind::list_salvage(first.postgres.layout()).unwrap();
    let tail = salvaged.values().next().unwrap();
    assert!(tail.from <= fork.lsn && tail.to >= end && tail.timeline == Timeline(2), "{tail:?} {fork} {end}");
    let folder = first.postgres.layout().salvage_dir().join(salvaged.keys().next().unwrap());
    let read = Command::new(first.postgres.programs().path("pg_waldump"))
        .args(["-p", &folder.display().to_string(), "-s", &fork.lsn.to_string(), "-e", &end.to_string(), "-t", "2"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&read.stdout);
    assert!(text.contains("COMMIT"), "{} {text}", String::from_utf8_lossy(&read.stderr));
    for name in ["pgdata.old", "pgdata.new"] {
        assert!(first.data_dir().join(name).is_dir(), "{name}");
    }
    first.start(Some(&first.follow(&second, 2))).await;
    first.streams(2).await;
    // a copy of what is merely behind leaves nothing behind
    first.stop().await;
    first.copy_from(&second).await;
    assert_eq!(rewind::list_salvage(first.postgres.layout()).unwrap(), salvaged);
}
