//! Settings of which a standby must have as much as its primary, on real servers.

use hasup::postgres::SyncNames;
use hasup::types::Timeline;

use crate::fixture::{Cluster, LIMIT, eventually, goes_on};

/// Aim: fewer connections than initdb's count from the first start on; what a primary has had is never fallen short of, wherever it is
/// set; and a standby that paused for a primary with more goes on after another start. Method: 30, then 60 on the primary alone, then
/// 10 by `ALTER SYSTEM`, which is read last.
#[tokio::test(flavor = "multi_thread")]
async fn a_setting_below_what_the_data_demand_keeps_no_server_down() {
    if !goes_on("required_settings::a_setting_below_what_the_data_demand_keeps_no_server_down") {
        return;
    }
    let cluster = Cluster::new();
    let mut first = cluster.node(1).await;
    first.set("max_connections", "30");
    first.set("max_locks_per_transaction", "32");
    let mut first = cluster.make_primary(first).await;
    assert_eq!(first.sql("show max_connections").await, "30");
    let mut second = cluster.node(2).await;
    second.set("max_connections", "30");
    second.set("max_locks_per_transaction", "20");
    second.copy_from(&first).await;
    second.start(Some(&second.follow(&first, 1))).await;
    second.streams(1).await;
    assert_eq!(second.sql("show max_locks_per_transaction").await, "32");
    assert!(second.postgres.paused_for_want_of(LIMIT).await.unwrap().is_empty());

    first.stop().await;
    first.set("max_connections", "60");
    first.start(None).await;
    first.stated().await;
    second.postgres.bar(LIMIT).await.unwrap();
    first.take_over(Timeline(3), &SyncNames::Empty).await;
    second.postgres.follow(&second.follow(&first, 2)).unwrap();
    eventually("its replay pauses", async || match second.postgres.paused_for_want_of(LIMIT).await {
        Ok(names) if names == ["max_connections"] => Ok(()),
        other => Err(format!("{other:?}\n{}", second.log())),
    })
    .await;
    second.sql("alter system set max_connections = 10").await;
    second.stop().await;
    second.start(Some(&second.follow(&first, 2))).await;
    second.streams(2).await;
    first.sql("create table t (id int)").await;
    second.has_all_of(&first).await;
    assert_eq!(second.sql("show max_connections").await, "60");
    assert!(second.postgres.paused_for_want_of(LIMIT).await.unwrap().is_empty());
    // nor does the former primary come down
    first.stop().await;
    first.set("max_connections", "20");
    first.start(None).await;
    assert_eq!(first.sql("show max_connections").await, "60");
}
