//! How a server comes back whose history parted from the primary's under the same timeline number.

use std::time::Duration;

use hasup::postgres::rewind::{self, Rewind};
use hasup::postgres::{Divergence, PgError, SyncNames, diverged};
use hasup::types::{Timeline, WalPosition};

use crate::fixture::{Cluster, LIMIT, goes_on};

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
