//! How a server comes back whose history parted from the primary's under the same timeline number.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use hasup::postgres::rewind::{self, Rewind, RewindStep};
use hasup::postgres::{ControlData, Divergence, PgError, Source, SyncNames, diverged};
use hasup::types::{Timeline, WalPosition};

use crate::fixture::{Cluster, LIMIT, Node, goes_on};

async fn promoted_alone(node: &Node, generation: u64, timeline: u32) {
    node.arm(generation, Duration::from_secs(600)).await;
    node.postgres.write_sync_names(&SyncNames::Empty).unwrap();
    node.postgres.set_sync_names(&SyncNames::Empty, false, LIMIT).await.unwrap();
    node.promote(generation, Timeline(timeline)).await;
}

/// Aim: two servers that both reached timeline 4, from different positions, are told apart; `pg_rewind`, which would call them equal,
/// is not asked, and a copy makes one the other's standby with its tail put aside. The protocol gives each number once; a person
/// with `pg_ctl promote` does not. Method: two standbys are barred with rows between, and both promoted.
#[tokio::test(flavor = "multi_thread")]
async fn a_timeline_number_reached_twice_is_never_taken_for_one_history() {
    if !goes_on("rejoin::a_timeline_number_reached_twice_is_never_taken_for_one_history") {
        return;
    }
    let cluster = Cluster::new();
    let first = cluster.primary(1).await;
    let second = cluster.standby(2, &first).await;
    let third = cluster.standby(3, &first).await;
    first.sql("create table t (id bigint primary key)").await;
    second.has_all_of(&first).await;
    second.postgres.bar(LIMIT).await.unwrap();
    let common = second.stated().await;
    first.sql("insert into t select generate_series(1, 5000)").await;
    third.has_all_of(&first).await;
    third.postgres.bar(LIMIT).await.unwrap();
    third.stated().await;
    first.guard.fence(Duration::from_millis(100)).await.unwrap();
    for node in [&second, &third] {
        node.take_over(Timeline(4), &SyncNames::Empty).await;
    }
    second.sql("insert into t select generate_series(20001, 20100)").await;
    third.sql("insert into t select generate_series(5001, 10000)").await;
    second.postgres.checkpoint(LIMIT).await.unwrap();

    third.stop().await;
    third.start(None).await;
    let own: WalPosition = third.stated().await;
    assert_eq!(own.timeline, Timeline(4));
    let mine = third.postgres.history(Timeline(4)).unwrap().unwrap();
    let theirs = second.postgres.history(Timeline(4)).unwrap().unwrap();
    let Divergence::At(fork) = diverged(own, &mine, &theirs) else { panic!("{mine:?} against {theirs:?}") };
    assert!(fork <= common.lsn, "{fork} {common}");
    third.stop().await;
    let plan = Rewind {
        source: second.source(),
        ssl: third.postgres.settings().ssl.clone(),
        source_timeline: Timeline(4),
        fork,
        own,
        label: "twice".to_owned(),
        limit: LIMIT,
    };
    let refused = plan.run(third.postgres.programs(), third.postgres.layout()).await.unwrap_err();
    assert!(matches!(refused, PgError::SameTimeline { timeline: Timeline(4), .. }), "{refused}");
    assert_eq!(rewind::pending(third.postgres.layout()), None);
    third.copy_from(&second).await;
    let salvage = rewind::list_salvage(third.postgres.layout()).unwrap();
    let tail = salvage.values().next().unwrap();
    assert!(tail.from <= fork && tail.to >= own.lsn && tail.timeline == own.timeline, "{salvage:?}");

    third.start(Some(&third.follow(&second, 2))).await;
    third.streams(2).await;
    third.has_all_of(&second).await;
    assert_eq!(third.sql("select count(*) || ' ' || min(id) from t").await, "100 20001");
}

/// Aim: a primary that dies before PostgreSQL has ended the first checkpoint after its promotion is rewound, not copied. Its control
/// file names the timeline before, whose last file of the log was renamed by the promotion. Method: two failovers within moments,
/// the first without a divergence, the second with a tail of several files. The rewind is broken off before, also midway.
#[tokio::test(flavor = "multi_thread")]
async fn a_primary_that_died_before_its_first_checkpoint_is_rewound() {
    if !goes_on("rejoin::a_primary_that_died_before_its_first_checkpoint_is_rewound") {
        return;
    }
    let cluster = Cluster::new();
    let first = cluster.primary(1).await;
    let second = cluster.standby(2, &first).await;
    first.sql("create table t (id bigint primary key, filler text)").await;
    second.has_all_of(&first).await;
    first.stop().await;
    second.postgres.bar(LIMIT).await.unwrap();
    second.stated().await;
    promoted_alone(&second, 2, 4).await;
    first.start(Some(&first.follow(&second, 2))).await;
    first.streams(2).await;
    second.sql("insert into t select n, 'common' from generate_series(1, 1000) n").await;
    first.has_all_of(&second).await;
    first.postgres.bar(LIMIT).await.unwrap();
    first.stated().await;
    second.sql("insert into t select n, repeat('x', 500) from generate_series(10001, 80000) n").await;
    second.sql("update t set filler = 'dropped' where id <= 500").await;
    second.guard.fence(Duration::from_millis(100)).await.unwrap();
    promoted_alone(&first, 3, 6).await;
    first.sql("insert into t select n, 'kept' from generate_series(1001, 1100) n").await;
    first.postgres.checkpoint(LIMIT).await.unwrap();

    second.start(None).await;
    let own = second.stated().await;
    assert_eq!(own.timeline, Timeline(4));
    let mine = second.postgres.history(Timeline(4)).unwrap().unwrap();
    let theirs = first.postgres.history(Timeline(6)).unwrap().unwrap();
    let Divergence::At(fork) = diverged(own, &mine, &theirs) else { panic!("{own} {mine:?} against {theirs:?}") };
    assert!(own.lsn.0 > fork.0 + (32 << 20), "{own} {fork}");
    second.stop().await;
    let layout = second.postgres.layout();
    let data = ControlData::read(second.postgres.programs(), layout).await.unwrap();
    assert_eq!(data.timeline, Timeline(2), "no checkpoint since its promotion: {data:?}");
    let plan = Rewind {
        source: first.source(),
        ssl: second.postgres.settings().ssl.clone(),
        source_timeline: Timeline(6),
        fork,
        own,
        label: "soon".to_owned(),
        limit: LIMIT,
    };
    // one that was begun from another primary is not gone on with from this one
    let other = Rewind { source_timeline: Timeline(5), ..plan.clone() };
    let stop_at = |wanted: RewindStep| {
        move |step: RewindStep| match step == wanted {
            true => Err(PgError::Refused(format!("stopped at {step:?}"))),
            false => Ok(()),
        }
    };
    let stopped = other.run_observed(second.postgres.programs(), layout, stop_at(RewindStep::Rewinding)).await;
    assert!(stopped.is_err_and(|error| error.to_string().contains("stopped at")));
    let mixed = plan.run(second.postgres.programs(), layout).await.unwrap_err();
    assert!(mixed.to_string().contains("another primary"), "{mixed}");
    rewind::forget(layout).unwrap();

    // one whose source is gone has touched nothing, and is free to begin with another
    let log = |node: &Node| -> BTreeMap<String, PathBuf> {
        let files = std::fs::read_dir(node.postgres.layout().wal_dir()).unwrap().flatten();
        files
            .map(|file| (file.file_name().into_string().unwrap(), file.path()))
            .filter(|(_, path)| path.is_file())
            .collect()
    };
    let before = log(&second);
    let nobody = Rewind { source: Source { port: 1, ..first.source() }, ..other };
    nobody.run(second.postgres.programs(), layout).await.unwrap_err();
    assert_eq!(rewind::pending(layout).unwrap().step, RewindStep::Quarantine);
    assert_eq!(log(&second), before);

    // what a `pg_rewind` leaves that was killed when it had copied the log
    let stopped = plan.run_observed(second.postgres.programs(), layout, stop_at(RewindStep::Rewinding)).await;
    assert!(stopped.is_err_and(|error| error.to_string().contains("stopped at")));
    for (name, path) in before.iter().filter(|(name, _)| name.len() == 24 && name.starts_with("00000004")) {
        std::fs::rename(path, layout.wal_dir().join(format!("00000002{}", &name[8..]))).unwrap();
    }
    for (name, path) in log(&first) {
        std::fs::copy(path, layout.wal_dir().join(name)).unwrap();
    }
    let stopped = plan.run_observed(second.postgres.programs(), layout, stop_at(RewindStep::Fixing)).await;
    assert!(stopped.is_err_and(|error| error.to_string().contains("stopped at")));
    // one that was killed when all was written is not done again, unless the machine went down and what was written with it
    let mut journal = rewind::pending(layout).unwrap();
    let boot = std::mem::take(&mut journal.boot);
    journal.step = RewindStep::Rewinding;
    let note = |journal: &rewind::RewindJournal| {
        std::fs::write(layout.config_dir().join("rewind.json"), serde_json::to_vec(journal).unwrap())
    };
    note(&journal).unwrap();
    let lost = plan.run(second.postgres.programs(), layout).await.unwrap_err();
    assert!(lost.to_string().contains("the machine went down"), "{lost}");
    journal.boot = boot;
    note(&journal).unwrap();
    let salvage = plan.run(second.postgres.programs(), layout).await.unwrap();
    assert_eq!((salvage.from, salvage.to, salvage.timeline), (fork, own.lsn, Timeline(4)));

    second.start(Some(&second.follow(&first, 3))).await;
    second.streams(3).await;
    second.has_all_of(&first).await;
    let rows = "select count(*) || ' ' || count(*) filter (where filler = 'common') || ' ' || max(id) from t";
    assert_eq!(second.sql(rows).await, "1100 1000 1100");
    assert_eq!(second.sql(rows).await, first.sql(rows).await);
}
