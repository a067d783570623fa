//! L12's fetch on real servers: a barred standby reads what only another barred standby holds.

use std::time::Duration;

use hasup::postgres::{Follow, Reader};
use hasup::types::{Generation, Timeline};

use crate::fixture::{Cluster, LIMIT, Node, eventually, goes_on, member, one_of};

/// Fetches all that `source` holds under its bar, and cuts the receiver again.
async fn fetch(node: &Node, source: &Node) {
    let until = source.stated().await;
    node.postgres
        .follow(&Follow { generation: Generation(1), source: source.source(), reader: Reader::Fetch })
        .unwrap();
    eventually("all of it is fetched", async || {
        let seen = node.live().await;
        if seen.lsn >= until.lsn { Ok(()) } else { Err(format!("{seen:?}\n{}", node.log())) }
    })
    .await;
    // as a member's name, the sender on the standby would be one of those that commits may wait for
    assert!(source.live().await.senders.iter().all(|sender| sender.application_name == "hasup_fetch"));
}

/// Aim: a standby that lags and was started anew gets every row that the other alone had acknowledged, acknowledges none of them or
/// others to the old primary meanwhile, states the same position, and the other follows it once it is promoted.
#[tokio::test(flavor = "multi_thread")]
async fn what_one_barred_standby_holds_is_fetched_by_the_other_and_acknowledges_nothing() {
    if !goes_on("fetch::what_one_barred_standby_holds_is_fetched_by_the_other_and_acknowledges_nothing") {
        return;
    }
    let cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    first.sql("create table t (id bigint primary key, filler text)").await;
    second.postgres.bar(LIMIT).await.unwrap();
    let before = second.stated().await;
    // more than a segment of log, and the end in the middle of one
    first.sql("insert into t select n, repeat(md5(n::text), 20) from generate_series(1, 40000) n").await;
    third.postgres.bar(LIMIT).await.unwrap();
    let until = third.stated().await;
    assert!(until.lsn.0 > before.lsn.0 + (16 << 20), "{until} {before}");
    // a receiver of a server started anew begins at the start of its segment
    second.stop().await;
    second.start(None).await;
    let again = second.stated().await;
    assert!(again <= before && again.lsn.0 + 8192 > before.lsn.0, "{again} {before}");

    fetch(&second, &third).await;
    assert!(first.live().await.senders.is_empty());
    let waits = first.postgres.probe_quorum_write(Duration::from_millis(700)).await;
    assert!(waits.is_err(), "the old primary is acknowledged nothing: {waits:?}");
    second.postgres.bar(LIMIT).await.unwrap();
    assert_eq!(second.stated().await, until);
    assert_eq!(third.stated().await, until, "the source holds still");

    second.take_over(Timeline(3), &one_of(&[1, 3])).await;
    assert_eq!(second.sql("select count(*) from t").await, "40000");
    third.postgres.follow(&third.follow(&second, 2)).unwrap();
    third.streams(2).await;
}

/// Aim: a primary that died amid a change of names, with the standbys' role shut out, keeps nobody from the log that it left on one
/// standby: that one cannot let the role in again. Method: what the primary writes before it cuts its standbys off reaches one of them.
#[tokio::test(flavor = "multi_thread")]
async fn log_is_fetched_from_a_standby_in_whose_data_the_standbys_are_shut_out() {
    if !goes_on("fetch::log_is_fetched_from_a_standby_in_whose_data_the_standbys_are_shut_out") {
        return;
    }
    let cluster = Cluster::new();
    let [first, second, third] = cluster.three().await;
    second.postgres.bar(LIMIT).await.unwrap();
    first.sql("create table t as select generate_series(1, 100)").await;
    first.sql("alter role hasup_replication nologin").await;
    third.has_all_of(&first).await;
    first.guard.fence(Duration::from_millis(100)).await.unwrap();
    third.postgres.bar(LIMIT).await.unwrap();
    assert_eq!(third.sql("select rolcanlogin from pg_roles where rolname = 'hasup_replication'").await, "f");

    fetch(&second, &third).await;
    second.postgres.bar(LIMIT).await.unwrap();
    assert_eq!(second.stated().await, third.stated().await);
    second.take_over(Timeline(3), &one_of(&[3])).await;
    assert_eq!(second.sql("select count(*) from t").await, "100");
    third.postgres.follow(&third.follow(&second, 2)).unwrap();
    third.streams(2).await;
}

/// Aim: PostgreSQL itself gives nothing to a standby whose log is not the beginning of the source's.
#[tokio::test(flavor = "multi_thread")]
async fn a_standby_with_another_history_gets_nothing() {
    if !goes_on("fetch::a_standby_with_another_history_gets_nothing") {
        return;
    }
    let cluster = Cluster::new();
    let [first, second, ahead] = cluster.three().await;
    ahead.postgres.bar(LIMIT).await.unwrap();
    first.sql("create table t (id bigint primary key)").await;
    // it goes on alone, on a timeline of its own, from before what the other holds
    ahead.take_over(Timeline(3), &one_of(&[1])).await;
    let _ = ahead.postgres.probe_write(LIMIT).await;
    ahead.stop().await;
    ahead.start(None).await;
    second.postgres.bar(LIMIT).await.unwrap();
    let before = second.stated().await;
    assert!(ahead.stated().await > before);
    let follow = Follow { generation: Generation(1), source: ahead.source(), reader: Reader::Standby(member(2)) };
    second.postgres.follow(&follow).unwrap();
    eventually("it was refused", async || {
        let log = second.log();
        if log.contains("is not in this server's history") || log.contains("forked off") { Ok(()) } else { Err(log) }
    })
    .await;
    second.postgres.bar(LIMIT).await.unwrap();
    assert_eq!(second.stated().await, before);
}
