//! What PostgreSQL says about itself: one cheap round trip, and the probes that write.

use std::time::Duration;

use serde::Deserialize;

use super::client::Session;
use super::control::Postgres;
use super::controldata::ControlData;
use super::position::position_of;
use super::settings::{SUPERUSER, generation_of};
use super::{PgError, SyncNames};
use crate::types::{Generation, Lsn, Timeline};

/// A standby's connection to its primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReceiverFacts {
    /// As PostgreSQL says: `streaming`, `waiting`, `starting`, …
    pub status: String,
    /// The generation whose credentials it uses.
    pub generation: Option<Generation>,
    /// How far the primary's log went when it last spoke.
    pub latest_end: Option<Lsn>,
}

/// A primary's connection to one standby.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct SenderFacts {
    /// The name it streams under, as `DataMember` prints it.
    pub application_name: String,
    /// As PostgreSQL says: `streaming`, `catchup`, …
    pub state: Option<String>,
    /// How far the standby has the log on disk.
    pub flush_lsn: Option<Lsn>,
    /// How far it has applied it.
    pub replay_lsn: Option<Lsn>,
    /// As PostgreSQL says: `quorum`, `async`, …
    pub sync_state: Option<String>,
}

/// What a running PostgreSQL answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveFacts {
    /// Whether it is a standby.
    pub in_recovery: bool,
    /// The timeline of the end of its log.
    pub timeline: Timeline,
    /// The end of its log as far as it says: a primary's flushed end; a standby's received or replayed one, whichever is
    /// higher. Only [`Postgres::stated_position`] may be stated under a bar.
    pub lsn: Lsn,
    /// How far its WAL receiver got in this life; absent where it has not started.
    pub receive_lsn: Option<Lsn>,
    /// How far it has replayed.
    pub replay_lsn: Option<Lsn>,
    /// Whether a standby has read all log it has on disk.
    pub ran_out_of_local_wal: bool,
    /// Its WAL receiver.
    pub receiver: Option<ReceiverFacts>,
    /// Its WAL senders.
    pub senders: Vec<SenderFacts>,
    /// `synchronous_standby_names` as that connection sees it.
    pub sync_names_shown: String,
    /// Whether `primary_conninfo` is empty in that connection.
    pub follows_nobody: bool,
    /// The generation whose credentials `primary_conninfo` names; absent where it is not hasup's.
    pub follows_generation: Option<Generation>,
    /// Which PostgreSQL cluster it is.
    pub system_identifier: u64,
}

/// How PostgreSQL is reachable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PostgresFacts {
    /// It answers.
    Live(Box<LiveFacts>),
    /// It lives and does not let anybody in yet: recovering or stopping.
    NotReady,
    /// It lives and has no connection left, not even a reserved one.
    Exhausted,
    /// Its process lives and gives no answer in time.
    Silent {
        /// What was seen.
        why: String,
    },
    /// It answers, and does not let hasup in: nothing goes on before a person has mended that.
    ShutOut {
        /// What it said, and the cure.
        why: String,
    },
    /// No postmaster.
    Stopped,
}

/// The result of a write through a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WriteProbe {
    /// It was made, in that time.
    Written(Duration),
    /// It lives and has no connection left: an answer, never death.
    Exhausted,
    /// It is a standby, or starting.
    NotWritable,
}

#[derive(Deserialize)]
struct RawReceiver {
    status: Option<String>,
    conninfo: Option<String>,
    latest_end: Option<Lsn>,
}

#[derive(Deserialize)]
struct Raw {
    in_recovery: bool,
    wal_file: Option<String>,
    flush: Option<Lsn>,
    receive: Option<Lsn>,
    replay: Option<Lsn>,
    startup_wait: Option<String>,
    receiver: Option<RawReceiver>,
    senders: Vec<SenderFacts>,
    sync_names: String,
    conninfo: String,
    system_identifier: String,
    segment_bytes: u64,
}

/// `case` is evaluated lazily, and recovery only ever ends: what may not be asked of the other role is not asked.
const OBSERVE: &str = "\
select json_build_object(
 'in_recovery', r,
 'wal_file', case when not r then pg_walfile_name(pg_current_wal_lsn()) end,
 'flush', case when not r then pg_current_wal_flush_lsn() end,
 'receive', pg_last_wal_receive_lsn(),
 'replay', pg_last_wal_replay_lsn(),
 'startup_wait', case when r then (select wait_event from pg_stat_activity where backend_type = 'startup') end,
 'receiver', case when r then (select json_build_object('status', status, 'conninfo', conninfo, 'latest_end', latest_end_lsn)
   from pg_stat_wal_receiver) end,
 'senders', (select coalesce(json_agg(json_build_object('application_name', application_name, 'state', state,
   'flush_lsn', flush_lsn, 'replay_lsn', replay_lsn, 'sync_state', sync_state)), '[]') from pg_stat_replication),
 'sync_names', current_setting('synchronous_standby_names'),
 'conninfo', current_setting('primary_conninfo'),
 'system_identifier', (select system_identifier::text from pg_control_system()),
 'segment_bytes', pg_size_bytes(current_setting('wal_segment_size')))
from (select pg_is_in_recovery() as r) as role";

/// Returns whether the startup process waits for log that is not on disk: between attempts, or for the stream.
fn waits_for_wal(event: Option<&str>) -> bool {
    matches!(event, Some("RecoveryRetrieveRetryInterval" | "RecoveryWalStream"))
}

pub(super) struct Observed {
    pub facts: LiveFacts,
    pub segment_bytes: u64,
}

pub(super) async fn observe_with(
    session: &mut Session,
    postgres: &Postgres,
    limit: Duration,
) -> Result<Observed, PgError> {
    let what = "tell its state";
    let text = session.prepared_value(what, "hasup_observe", OBSERVE, limit).await?;
    let raw: Raw = serde_json::from_str(&text).map_err(|error| PgError::Answer { what, detail: error.to_string() })?;
    let system_identifier = raw
        .system_identifier
        .parse()
        .map_err(|_| PgError::Answer { what, detail: format!("system identifier {}", raw.system_identifier) })?;
    let (timeline, lsn) = match &raw.wal_file {
        Some(name) => {
            let number = name.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok());
            let number = number.ok_or_else(|| PgError::Answer { what, detail: format!("WAL file {name}") })?;
            (Timeline(number), raw.flush.unwrap_or_default())
        }
        None => {
            let lsn = raw.receive.max(raw.replay).unwrap_or_default();
            (position_of(&postgres.layout().wal_dir(), lsn, raw.segment_bytes)?.timeline, lsn)
        }
    };
    let receiver = raw.receiver.map(|receiver| ReceiverFacts {
        status: receiver.status.unwrap_or_default(),
        generation: receiver.conninfo.as_deref().and_then(generation_of),
        latest_end: receiver.latest_end,
    });
    let facts = LiveFacts {
        in_recovery: raw.in_recovery,
        timeline,
        lsn,
        receive_lsn: raw.receive.filter(|_| raw.in_recovery),
        replay_lsn: raw.replay.filter(|_| raw.in_recovery),
        ran_out_of_local_wal: waits_for_wal(raw.startup_wait.as_deref()),
        receiver,
        senders: raw.senders,
        sync_names_shown: raw.sync_names,
        follows_nobody: raw.conninfo.is_empty(),
        follows_generation: generation_of(&raw.conninfo),
        system_identifier,
    };
    Ok(Observed { facts, segment_bytes: raw.segment_bytes })
}

impl Postgres {
    /// Observes PostgreSQL over the kept connection, which is made anew when it breaks. Never fails: what went wrong is a
    /// fact too.
    pub async fn observe(&self, limit: Duration) -> PostgresFacts {
        match self.observed(limit).await {
            Ok(observed) => {
                self.note_serves();
                PostgresFacts::Live(Box::new(observed.facts))
            }
            Err(error) if error.is_exhausted() => PostgresFacts::Exhausted,
            Err(error) if error.is_not_ready() => PostgresFacts::NotReady,
            Err(_) if self.postmaster().is_none() => PostgresFacts::Stopped,
            Err(error) if error.is_shut_out() => PostgresFacts::ShutOut { why: shut_out(&chain(&error)) },
            Err(error) => PostgresFacts::Silent { why: chain(&error) },
        }
    }

    /// Writes durably on this node alone, through a new connection: what a client needs, without the standbys.
    pub async fn probe_write(&self, limit: Duration) -> Result<WriteProbe, PgError> {
        self.probe("local", limit).await
    }

    /// Writes through a new connection and waits for the standbys as every client does.
    pub async fn probe_quorum_write(&self, limit: Duration) -> Result<WriteProbe, PgError> {
        self.probe("on", limit).await
    }

    async fn probe(&self, synchronous_commit: &str, limit: Duration) -> Result<WriteProbe, PgError> {
        let began = tokio::time::Instant::now();
        let sql = format!(
            "set synchronous_commit = {synchronous_commit};
             insert into hasup.heartbeat as h (kind, beat) values ('{synchronous_commit}', 1)
             on conflict (kind) do update set beat = h.beat + 1, at = clock_timestamp()"
        );
        let result = async {
            let mut session = self.new_session(limit).await?;
            session.query("write", &sql, limit).await
        };
        match result.await {
            Ok(_) => Ok(WriteProbe::Written(began.elapsed())),
            Err(error) if error.is_exhausted() => Ok(WriteProbe::Exhausted),
            Err(error) if error.is_not_ready() || is_read_only(&error) => Ok(WriteProbe::NotWritable),
            Err(error) => Err(error),
        }
    }

    /// Reads the control file of a stopped PostgreSQL.
    pub async fn control_data(&self) -> Result<ControlData, PgError> {
        ControlData::read(self.programs(), self.layout()).await
    }

    /// Tells whether `standby.signal` is in place.
    pub fn has_standby_signal(&self) -> bool {
        self.layout().standby_signal().is_file()
    }
}

fn shut_out(said: &str) -> String {
    format!(
        "PostgreSQL does not let hasup in as superuser `{SUPERUSER}` in the database `postgres` ({said}), so nothing goes on here. In a \
         database just adopted: `hasup destroy`, start it by its own means without standby.signal, make that role and database, and \
         adopt it again"
    )
}

fn is_read_only(error: &PgError) -> bool {
    use tokio_postgres::error::SqlState;
    matches!(error, PgError::Query { source, .. } if source.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION))
}

impl LiveFacts {
    /// Tells whether the names shown are those meant.
    pub fn shows(&self, names: &SyncNames) -> bool {
        self.sync_names_shown == names.render()
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        text.push_str(": ");
        text.push_str(&next.to_string());
        source = next.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_is_read_from_the_key_that_a_connection_uses() {
        let conninfo =
            "user=hasup_replication sslkey=/var/lib/hasup/g5x/postgres/g17/client.key sslcert=/x/g17/client.crt";
        assert_eq!(generation_of(conninfo), Some(Generation(17)));
        assert_eq!(generation_of("host=a sslkey=/x/node.key"), None);
        assert_eq!(generation_of("host=a sslkey=/x/g17/fetch.key sslcert=/x/node.crt"), Some(Generation(17)));
    }
}
