//! What is looked at beside the control loop, and hurries nobody: PostgreSQL's log, its collations, its connections, its slots.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Database, SIZE_LIMIT};
use crate::kv::State;
use crate::node::act::chain;
use crate::node::names::name_of;
use crate::node::progress::{Meter, ProgressStatus};
use crate::postgres::basebackup::Progress as CopyProgress;
use crate::postgres::log::LogReader;
use crate::postgres::slots::Keep;
use crate::postgres::{Connections, PostgresFacts, ReplaySpan};
use crate::sys::clock::boot_now;
use crate::sys::rotate::{LOG_BYTES_MAX, rotate};
use crate::types::{Lsn, NodeId};

/// How often collations are compared, and how soon again where PostgreSQL did not answer.
const COLLATIONS_EVERY: Duration = Duration::from_secs(15);
const COLLATIONS_AGAIN: Duration = Duration::from_millis(500);
/// So many failures in a row are told: whoever waits for an answer must get one.
const COLLATION_TRIES: u32 = 10;
/// How often connections are counted: who asks why clients are refused looks no sooner, and a primary without work should cost nothing.
const CONNECTIONS_EVERY: Duration = Duration::from_secs(3);
/// How often it is seen how far a recovery is.
const RECOVERY_EVERY: Duration = Duration::from_secs(1);
/// How often PostgreSQL's log is read on.
const LOG_FOLLOW_EVERY: Duration = Duration::from_secs(1);

impl Database {
    /// Sees to it that this standby follows whom it was told to, where PostgreSQL shows another source.
    pub(super) fn lead_back(&self) {
        let done = self.postgres.undo_alter_system().and_then(|was_set| match was_set {
            true => {
                tracing::warn!("primary_conninfo was changed past hasup: this standby followed nobody of the cluster, and commits may \
                    have waited for it; it is set back. Find out who uses ALTER SYSTEM");
                Ok(())
            }
            // noted, and then a kill or a full disk came before it was written
            false => {
                tracing::warn!("PostgreSQL does not follow the node that this standby was told to follow; it is told again");
                self.note_follows(None)?;
                self.note_change();
                Ok(())
            }
        });
        if let Err(error) = done {
            tracing::warn!(error = %chain(&error), "this standby is not led back to the active node yet");
        }
    }

    /// Reads PostgreSQL's log for commits whose wait for a standby was cancelled: no query tells. Keeps that log short, and the
    /// guard's in `data_dir`. Ends with the node.
    pub(in crate::node) async fn follow_log(self: Arc<Self>, data_dir: PathBuf) {
        let mut log = LogReader::at_end(self.postgres.layout().log_file());
        loop {
            // a disk may hold it up
            let guard_log = data_dir.join("guard.log");
            let look = move || {
                let count = log.cancelled_waits().and_then(|count| Ok(count + log.rotate(LOG_BYTES_MAX)?));
                (count.and_then(|count| rotate(&guard_log, LOG_BYTES_MAX, || ()).map(|_| count)), log)
            };
            let Ok((count, back)) = tokio::task::spawn_blocking(look).await else { return };
            log = back;
            match count {
                Ok(count) => drop(self.cancelled_waits.fetch_add(count, Ordering::Relaxed)),
                Err(error) => tracing::debug!(%error, "PostgreSQL's log is not read, or not rotated"),
            }
            tokio::time::sleep(LOG_FOLLOW_EVERY).await;
        }
    }

    /// Returns how many commits were told, since the daemon started, that their wait for a standby was cancelled.
    pub(in crate::node) fn cancelled_waits(&self) -> u64 {
        self.cancelled_waits.load(Ordering::Relaxed)
    }

    /// Asks PostgreSQL whether this machine sorts text as the database was built with, again and again: libraries and databases
    /// change. Ends with the node.
    pub(in crate::node) async fn compare_collations(self: Arc<Self>) {
        let mut failures = 0;
        loop {
            let answers = matches!(self.last_observation().facts, PostgresFacts::Live(_));
            let asked = if answers { Some(self.postgres.collation_warnings(SIZE_LIMIT).await) } else { None };
            let found = match asked {
                Some(Ok(warnings)) => {
                    failures = 0;
                    Some(warnings)
                }
                Some(Err(error)) => {
                    failures += 1;
                    // one that is stopping just now says nothing of its collations
                    (failures >= COLLATION_TRIES).then(|| {
                        let text = "whether this machine sorts text as the indexes expect is not known, so do not rely on it yet";
                        vec![format!("{text}: {error}. See PostgreSQL's log; it is asked again")]
                    })
                }
                None => None,
            };
            let pause = if found.is_some() { COLLATIONS_EVERY } else { COLLATIONS_AGAIN };
            if let Some(warnings) = found {
                let mut known = self.collation_warnings.lock();
                if known.as_ref() != Some(&warnings) {
                    warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                    *known = Some(warnings);
                    self.news.notify_one();
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Sees how far PostgreSQL's recovery is, again and again while it lets nobody in or reads on what is on disk. Ends with the node.
    pub(in crate::node) async fn measure_recovery(self: Arc<Self>) {
        let mut known: Option<ReplaySpan> = None;
        loop {
            let at = match &self.last_observation().facts {
                PostgresFacts::NotReady => {
                    let postmaster = self.postgres.postmaster();
                    if known.map(|span| span.postmaster) != postmaster {
                        known = self.postgres.replay_span().await.ok().flatten();
                    }
                    let postgres = Arc::clone(&self.postgres);
                    let looked = known.map(|span| tokio::task::spawn_blocking(move || postgres.replayed(&span)));
                    match looked {
                        Some(looked) => looked.await.ok().flatten(),
                        None => None,
                    }
                }
                PostgresFacts::Live(live)
                    if live.in_recovery && live.receiver.is_none() && !live.ran_out_of_local_wal =>
                {
                    live.replay_lsn.filter(|_| known.is_some())
                }
                _ => {
                    known = None;
                    None
                }
            };
            let before = *self.replay.lock();
            *self.replay.lock() = measured(before, known, at);
            tokio::time::sleep(RECOVERY_EVERY).await;
        }
    }

    /// Returns how far PostgreSQL has replayed the log that it has; none while it is not about that.
    pub(in crate::node) fn replay(&self) -> Option<ProgressStatus> {
        self.replay.lock().map(|meter| meter.read(boot_now()))
    }

    /// Notes how far the copy of another node's database is; none that it has ended.
    pub(in crate::node) fn note_copied(&self, progress: Option<CopyProgress>) {
        let (now, mut copy) = (boot_now(), self.copy.lock());
        let bytes =
            progress.map(|progress| (progress.done_kib.saturating_mul(1024), progress.total_kib.saturating_mul(1024)));
        *copy = bytes.map(|(done, total)| {
            let mut meter = copy.unwrap_or_else(|| Meter::of_copy(done, total, now));
            meter.note(done, total, now);
            meter
        });
    }

    /// Returns how far long work is; none while none goes on that can be measured.
    pub(in crate::node) fn progress(&self) -> Option<ProgressStatus> {
        let (copy, replay) = (*self.copy.lock(), *self.replay.lock());
        let meter = copy.or(replay);
        meter.map(|meter| meter.read(boot_now()))
    }

    /// Counts PostgreSQL's connections, again and again. Ends with the node.
    pub(in crate::node) async fn count_connections(self: Arc<Self>) {
        loop {
            let known = *self.connections.lock();
            let counted = match self.last_observation().facts {
                PostgresFacts::Stopped | PostgresFacts::NotReady => None,
                _ => match self.postgres.connections(SIZE_LIMIT).await {
                    Ok(counted) => Some(counted),
                    // not even one that is reserved
                    Err(error) if error.is_exhausted() => {
                        known.map(|known| Connections { in_use: known.in_use.max(known.all), ..known })
                    }
                    // one that hangs is told of as that
                    Err(_) => None,
                },
            };
            *self.connections.lock() = counted;
            let are_exhausted = |counted: Option<Connections>| counted.is_some_and(|counted| counted.are_exhausted());
            match (are_exhausted(known), are_exhausted(counted), counted) {
                (false, true, Some(Connections { in_use, for_clients, .. })) => {
                    tracing::warn!(in_use, for_clients, "PostgreSQL has no connection left for clients");
                    self.news.notify_one();
                }
                (true, false, Some(Connections { in_use, for_clients, .. })) => {
                    tracing::info!(in_use, for_clients, "PostgreSQL has connections left for clients again");
                    self.news.notify_one();
                }
                _ => {}
            }
            tokio::time::sleep(CONNECTIONS_EVERY).await;
        }
    }

    /// Returns PostgreSQL's connections when they were last counted; none while it does not answer.
    pub(in crate::node) fn connections(&self) -> Option<Connections> {
        *self.connections.lock()
    }

    /// Keeps log for `members` by slots of this node's server, whichever its role; a server that does not answer is left for the
    /// next time.
    pub(in crate::node) async fn keep_slots(&self, members: &BTreeMap<NodeId, Keep>, state: &State) {
        match self.postgres.keep_slots(members, |node| name_of(node, state), SIZE_LIMIT).await {
            Ok(kept) => *self.kept_log.lock() = Some(kept),
            Err(error) => {
                tracing::debug!(error = %crate::node::act::chain(&error), "the replication slots are not as they should be yet");
            }
        }
    }

    /// Returns how much log each member's slot kept on this node when they were last looked at, in bytes; nothing before that.
    pub(in crate::node) fn kept_log(&self) -> Option<BTreeMap<NodeId, u64>> {
        self.kept_log.lock().clone()
    }

    /// Returns what is wrong with collations on this machine; none before PostgreSQL has been asked.
    pub(in crate::node) fn collation_warnings(&self) -> Option<Vec<String>> {
        self.collation_warnings.lock().clone()
    }
}

/// Returns the meter of a replay of `span` that has come to `at`, which goes on from `before`.
fn measured(before: Option<Meter>, span: Option<ReplaySpan>, at: Option<Lsn>) -> Option<Meter> {
    let (ReplaySpan { from, end, .. }, at) = span.zip(at)?;
    let mut meter = before.unwrap_or_else(|| Meter::of_replay(from, at, end, boot_now()));
    meter.note_replayed(at, boot_now());
    Some(meter)
}
