//! Reads the clients' table from every node, once all hold what the active one had written.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::{Instant, sleep};

use super::checkers::Table;
use super::client::{Access, Session, Target};

const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Returns the keys that each of `targets` holds, where everything that `active` had written when this was called is there.
///
/// Read the journal first: rows acknowledged later may be missing.
///
/// # Errors
/// When a node does not answer, or has not replayed that far within `limit`; it says which.
pub async fn read_all(
    access: &Access,
    targets: &[Target],
    active: &str,
    table: &str,
    limit: Duration,
) -> anyhow::Result<BTreeMap<String, Table>> {
    let deadline = Instant::now() + limit;
    let primary =
        targets.iter().find(|target| target.name == active).context("the active node is none of the targets")?;
    let written = open(access, primary, deadline).await?.value("SELECT pg_current_wal_lsn()", ANSWER_LIMIT).await?;
    let mut tables = BTreeMap::new();
    for target in targets {
        let session = open(access, target, deadline).await?;
        let replayed = format!("SELECT NOT pg_is_in_recovery() OR pg_last_wal_replay_lsn() >= '{written}'");
        while session.value(&replayed, ANSWER_LIMIT).await.with_context(|| target.name.clone())? != "t" {
            if Instant::now() > deadline {
                bail!("{} has not replayed up to {written} within {} s", target.name, limit.as_secs());
            }
            sleep(Duration::from_millis(20)).await;
        }
        let keys = session.column(&format!("SELECT key FROM {table}"), ANSWER_LIMIT).await?;
        tables.insert(target.name.clone(), keys.into_iter().collect());
    }
    Ok(tables)
}

async fn open(access: &Access, target: &Target, deadline: Instant) -> anyhow::Result<Session> {
    loop {
        match access.connect(target).await {
            Ok(session) => return Ok(session),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("connect to {} to read its rows", target.name));
            }
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}
