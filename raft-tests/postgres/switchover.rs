//! What is done ahead of an orderly stop, on real servers.

use hasup::types::Lsn;

use crate::fixture::{Cluster, LIMIT, Node, eventually, goes_on};

/// How large the servers' WAL segments are: PostgreSQL's default.
const SEGMENT: u64 = 16 << 20;
/// What filling leaves of a segment, and a little for what a server writes by itself.
const REST_MAX: u64 = (1 << 20) + (256 << 10);

/// Returns the end of the primary's log.
async fn end_of(primary: &Node) -> Lsn {
    primary.sql("select pg_current_wal_insert_lsn()").await.parse().unwrap()
}

/// Aim: an orderly stop, which writes and streams all that is left of the present WAL segment while nobody is served, finds little
/// left of it; and a standby that makes a checkpoint then need not make the next segment's file while it is waited for. Method: a
/// segment that has just begun, so that nearly all of it is left.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_stop_streams_no_rest_of_a_segment() {
    if !goes_on("switchover::a_prepared_stop_streams_no_rest_of_a_segment") {
        return;
    }
    let cluster = Cluster::new();
    let first = cluster.primary(1).await;
    let second = cluster.standby(2, &first).await;
    first.sql("create table t (id bigint primary key)").await;
    first.sql("select pg_switch_wal()").await;
    first.sql("insert into t values (1)").await;
    let begun = end_of(&first).await;
    assert!(begun.0 % SEGMENT < SEGMENT / 4, "{begun}");
    let next = first.sql(&format!("select pg_walfile_name('{begun}'::pg_lsn + {SEGMENT})")).await;
    let next = second.postgres.layout().wal_dir().join(next);
    assert!(!next.exists(), "{} is there without a checkpoint", next.display());

    first.postgres.prepare_stop(LIMIT).await.unwrap();
    let prepared = end_of(&first).await;
    assert_eq!(prepared.0 / SEGMENT, begun.0 / SEGMENT, "{prepared}");
    assert!(prepared.0 % SEGMENT >= SEGMENT - REST_MAX, "{prepared}");
    // a stop has little left to write, and the standby's own checkpoint begins there too
    let newest = "select redo_lsn from pg_control_checkpoint()";
    let written: Lsn = first.sql(newest).await.parse().unwrap();
    assert!(
        written.0 >= prepared.0 - (256 << 10),
        "the newest checkpoint begins at {written}, the log ends at {prepared}"
    );
    second.postgres.checkpoint(LIMIT).await.unwrap();
    assert_eq!(second.sql(newest).await, written.to_string());
    assert!(next.exists(), "{} is not ready", next.display());

    first.stop().await;
    let end = first.postgres.final_position().await.unwrap().position.lsn;
    assert_eq!(end.0 / SEGMENT, prepared.0 / SEGMENT + 1, "the stop begins a segment: {end}");
    assert!(end.0 - prepared.0 <= REST_MAX, "{} bytes between {prepared} and {end}", end.0 - prepared.0);
}

/// Aim: a standby that is behind in replaying is waited for, so that its checkpoint comes after all that was prepared. Method: replay
/// is paused until the primary asks how far it is.
#[tokio::test(flavor = "multi_thread")]
async fn a_prepared_stop_waits_for_a_standby_that_is_behind_in_replaying() {
    if !goes_on("switchover::a_prepared_stop_waits_for_a_standby_that_is_behind_in_replaying") {
        return;
    }
    let cluster = Cluster::new();
    let first = cluster.primary(1).await;
    let second = cluster.standby(2, &first).await;
    second.sql("select pg_wal_replay_pause()").await;
    first.sql("create table t (id bigint primary key)").await;
    let waits = async {
        eventually("the primary waits", async || {
            let asks =
                "select exists (select from pg_stat_activity where query like 'select coalesce(min(replay_lsn)%')";
            if first.sql(asks).await == "t" { Ok(()) } else { Err("not yet".to_owned()) }
        })
        .await;
    };
    let mut prepared = std::pin::pin!(first.postgres.prepare_stop(LIMIT));
    tokio::select! {
        biased;
        done = &mut prepared => panic!("it waited for nobody: {done:?}"),
        () = waits => {}
    }
    let end = end_of(&first).await;
    second.sql("select pg_wal_replay_resume()").await;
    prepared.await.unwrap();
    let replayed = second.live().await.replay_lsn;
    assert!(replayed >= Some(end), "{replayed:?} is replayed of what goes up to {end}");
}
