//! Log that is kept for members that are away, on real servers: kept on a standby too, bounded, and dropped with the member.

use std::collections::BTreeMap;

use hasup::postgres::SyncNames;
use hasup::postgres::slots::Keep;
use hasup::types::{Lsn, NodeId, Timeline};

use crate::fixture::{Cluster, LIMIT, Node, eventually, goes_on};

/// Keeps log on `node` for the members named: those with a position are heard.
async fn keep(node: &Node, members: &[(u64, Option<Lsn>)]) {
    let members: BTreeMap<NodeId, Keep> = members
        .iter()
        .map(|(id, reached)| (NodeId(*id), Keep { reached: *reached, is_heard: reached.is_some() }))
        .collect();
    // a standby that has just begun has no point to reserve from yet
    eventually("slots are kept", async || {
        node.postgres
            .keep_slots(&members, |node| format!("n{node}"), LIMIT)
            .await
            .map(drop)
            .map_err(|error| format!("{error:?}"))
    })
    .await;
}

async fn slots(node: &Node) -> String {
    node.sql("select coalesce(string_agg(slot_name, ',' order by slot_name), '') from pg_replication_slots").await
}

/// Writes `files` files of log, so that those before are removed wherever nothing keeps them.
async fn fill(primary: &Node, standby: &Node, files: u32) {
    for _ in 0..files {
        primary.sql("insert into t values (1)").await;
        primary.sql("select pg_switch_wal()").await;
    }
    primary.sql("checkpoint").await;
    standby.has_all_of(primary).await;
    standby.sql("checkpoint").await;
}

/// Aim: a node that was away for longer than any log is kept by itself follows a standby that was promoted meanwhile, without a
/// copy; without a slot it could not.
#[tokio::test(flavor = "multi_thread")]
async fn a_promoted_standby_has_kept_the_log_for_the_third_node() {
    if !goes_on("slots::a_promoted_standby_has_kept_the_log_for_the_third_node") {
        return;
    }
    let cluster = Cluster::new();
    let first = cluster.primary(1).await;
    let second = cluster.standby(2, &first).await;
    let third = cluster.standby(3, &first).await;
    first.sql("create table t (id bigint)").await;
    let at = third.live().await.lsn;
    keep(&first, &[(2, Some(at)), (3, Some(at))]).await;
    keep(&second, &[(1, Some(at)), (3, Some(at))]).await;
    keep(&second, &[(1, Some(at)), (3, Some(at))]).await;
    assert_eq!(slots(&second).await, "hasup_n1,hasup_n3");

    third.stop().await;
    fill(&first, &second, 12).await;
    let end = first.live().await.lsn;
    keep(&first, &[(2, Some(end)), (3, None)]).await;
    keep(&second, &[(1, Some(end)), (3, None)]).await;
    let behind = "select (select restart_lsn from pg_replication_slots where slot_name = 'hasup_n3') < \
                  (select restart_lsn from pg_replication_slots where slot_name = 'hasup_n1')";
    assert_eq!(second.sql(behind).await, "t", "one follows, the other waits");

    // no slot stands in the way of the bar, the promotion, or the stream
    second.postgres.bar(LIMIT).await.unwrap();
    first.stop().await;
    second.take_over(Timeline(3), &SyncNames::Empty).await;
    third.start(Some(&third.follow(&second, 2))).await;
    third.streams(2).await;

    // a member that is gone has no slot, and then its log goes
    third.stop().await;
    keep(&second, &[(1, None)]).await;
    assert_eq!(slots(&second).await, "hasup_n1");
    keep(&second, &[]).await;
    assert_eq!(slots(&second).await, "");
    for _ in 0..2 {
        for _ in 0..12 {
            second.sql("insert into t values (1)").await;
            second.sql("select pg_switch_wal()").await;
        }
        second.sql("checkpoint").await;
    }
    third.start(Some(&third.follow(&second, 2))).await;
    eventually("the log is gone", async || {
        if third.log().contains("has already been removed") { Ok(()) } else { Err(third.log()) }
    })
    .await;
}

/// Aim: a member that does not come back costs no more disk than was set; its slot goes, and comes again with it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_member_keeps_no_more_log_than_was_set() {
    if !goes_on("slots::a_dead_member_keeps_no_more_log_than_was_set") {
        return;
    }
    let cluster = Cluster::new();
    let first = cluster.primary(1).await;
    first.sql("create table t (id bigint)").await;
    let at = first.live().await.lsn;
    keep(&first, &[(2, Some(at))]).await;
    assert_eq!(slots(&first).await, "hasup_n2");
    let limit_mib = u64::from(first.postgres.settings().slot_keep_mib);
    let kept =
        "select coalesce(max(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn)), 0)::bigint from pg_replication_slots";
    for round in 0..4 {
        for _ in 0..10 {
            first.sql("insert into t values (1)").await;
            first.sql("select pg_switch_wal()").await;
        }
        first.sql("checkpoint").await;
        let bytes: u64 = first.sql(kept).await.parse().unwrap();
        assert!(bytes >> 20 <= limit_mib + 32, "{bytes} bytes are kept in round {round}");
    }
    keep(&first, &[(2, None)]).await;
    assert_eq!(slots(&first).await, "", "what PostgreSQL gave up is dropped");
    keep(&first, &[(2, None)]).await;
    assert_eq!(slots(&first).await, "", "and not made anew for one who is not heard");
    keep(&first, &[(2, Some(at))]).await;
    assert_eq!(slots(&first).await, "hasup_n2");
}
