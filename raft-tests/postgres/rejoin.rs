//! How a server comes back whose history parted from the primary's under the same timeline number.

use std::time::Duration;

use hasup::postgres::rewind::{self, Rewind};
use hasup::postgres::{Divergence, PgError, SyncNames, diverged};
use hasup::types::{Lsn, Timeline, WalPosition};

use crate::fixture::{Cluster, LIMIT, Node, eventually, goes_on};

async fn promoted_alone(node: &Node) {
    node.arm(2, Duration::from_secs(600)).await;
    node.postgres.write_sync_names(&SyncNames::Empty).unwrap();
    node.postgres.set_sync_names(&SyncNames::Empty, false, LIMIT).await.unwrap();
    node.promote(2, Timeline(4)).await;
}

async fn has_all_of(standby: &Node, primary: &Node) {
    let target: Lsn = primary.sql("select pg_current_wal_flush_lsn()").await.parse().unwrap();
    eventually("all is replayed", async || match standby.postgres.has_replayed(target, LIMIT).await {
        Ok(true) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
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
    has_all_of(&second, &first).await;
    second.postgres.bar(LIMIT).await.unwrap();
    let common = second.stated().await;
    first.sql("insert into t select generate_series(1, 5000)").await;
    has_all_of(&third, &first).await;
    third.postgres.bar(LIMIT).await.unwrap();
    third.stated().await;
    first.guard.fence(Duration::from_millis(100)).await.unwrap();
    for node in [&second, &third] {
        promoted_alone(node).await;
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
    has_all_of(&third, &second).await;
    assert_eq!(third.sql("select count(*) || ' ' || min(id) from t").await, "100 20001");
}
