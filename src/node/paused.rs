//! Starts a standby's PostgreSQL again where it has paused for want of connections or the like, beside the loop: once a primary with more
//! of them has come, it neither replays nor can be promoted any more.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Shared;
use super::act::chain;
use crate::guard::StopMode;
use crate::ha::record::MemberKind;
use crate::postgres::PostgresFacts;

/// How often a standby is asked.
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// What each standby waits for those before it.
const TURN: Duration = Duration::from_secs(10);
/// How long its orderly stop may take: what is killed replays more at its start.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Looks again and again. Ends with the node.
pub(super) async fn watch(shared: Arc<Shared>) {
    let mut paused_since = None;
    loop {
        tokio::time::sleep(ASK_EVERY).await;
        let is_standby =
            matches!(&shared.postgres.last_observation().facts, PostgresFacts::Live(live) if live.in_recovery);
        if !is_standby {
            continue;
        }
        let lacking = match shared.postgres.postgres.paused_for_want_of(ASK_LIMIT).await {
            Ok(lacking) if lacking.is_empty() => {
                paused_since = None;
                continue;
            }
            Ok(lacking) => lacking.join(", "),
            Err(error) => {
                tracing::debug!(error = %chain(&error), "whether replay is paused is not known");
                continue;
            }
        };
        let members = shared.state().members.clone();
        let before = members.values().filter(|member| member.kind == MemberKind::Data && member.id < shared.me).count();
        let turn = TURN * u32::try_from(before).unwrap_or(u32::MAX);
        if paused_since.get_or_insert_with(Instant::now).elapsed() < turn {
            // what it receives still counts for commits: they would wait if all standbys started at once
            continue;
        }
        tracing::warn!(
            "the active node has more of {lacking} than this standby, whose replay has paused for that: its PostgreSQL is started again \
             with as many. Set the same on every node, the active one last"
        );
        // no role is at stake: PostgreSQL promotes nobody in this state
        let stopped = match shared.guard.client() {
            Ok(guard) => guard.stop(StopMode::Fast { limit: STOP_LIMIT }).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = stopped {
            tracing::warn!(error = %chain(&error), "PostgreSQL is not stopped; it is tried again");
        }
        shared.postgres.note_change();
    }
}
