//! This node's PostgreSQL as the control loop knows it: what was observed, what was done, and the long work under way.
//!
//! Observation runs beside the loop, as PostgreSQL may hang. Each observation knows when it began: what it says about the
//! log's end or the receiver counts only if it began after the last step that changed them ended.

mod followed;
mod upkeep;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use super::events::compared;
use super::progress::Meter;
use crate::guard::PostgresProcess;
use crate::ha::record::DataMember;
use crate::ha::view::{CleanStop, Followed, GuardView, Job, Lineage, NamesInEffect, PostgresView, SyncNames};
use crate::postgres::observe::LiveFacts;
use crate::postgres::{
    Connections, Divergence, PgError, Postgres, PostgresFacts, SyncNames as PostgresNames, TimelineHistory, WriteProbe,
};
use crate::sys::clock::boot_now;
use crate::types::{BootTime, DataIncarnation, Generation, Lsn, NodeId, NodeName, Timeline, WalPosition};

/// How long PostgreSQL may take to say how it is.
const OBSERVE_LIMIT: Duration = Duration::from_secs(1);
/// Between two observations while something is changing: a promotion takes a few of these.
const OBSERVE_HOT: Duration = Duration::from_millis(4);
/// Between two observations otherwise; whatever matters wakes the observer earlier.
const OBSERVE_IDLE: Duration = Duration::from_millis(250);
/// How long PostgreSQL may take to add up its files.
const SIZE_LIMIT: Duration = Duration::from_secs(5);
/// How often a primary is written to, and how long one such write may take.
const PROBE_EVERY: Duration = Duration::from_secs(5);
const PROBE_LIMIT: Duration = Duration::from_secs(10);
/// PostgreSQL has this long to read settings again before they are found wrong.
const LEAD_BACK_EVERY: Duration = Duration::from_secs(1);
/// A PostgreSQL that ends sooner than this after its start is started again only after a pause.
const START_PAUSE: Duration = Duration::from_secs(1);

/// One look at PostgreSQL.
#[derive(Debug, Clone)]
pub(super) struct Observation {
    /// When it began: steps that ended before are in it.
    pub(super) began: BootTime,
    /// The postmaster that answered.
    pub(super) process: Option<PostgresProcess>,
    /// What was seen.
    pub(super) facts: PostgresFacts,
}

/// Where this node's log parted from the primary's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Parted {
    /// The last position in common.
    pub(super) fork: Lsn,
    /// Where this node's log ended.
    pub(super) own: WalPosition,
}

/// From which primary this node's data was rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Rebuilt {
    /// The generation under which that was promoted.
    pub(super) promoted: Generation,
    /// What it wrote; none where another was assigned while the copy was made, whose log that may hold too.
    pub(super) timeline: Option<Timeline>,
}

impl Rebuilt {
    /// The data was rebuilt from the primary promoted under `promoted`, which wrote `timeline`; now that this is done, the one of
    /// `promoted_now` is active.
    pub(super) fn new(promoted: Generation, timeline: Timeline, promoted_now: Option<Generation>) -> Self {
        Self { promoted, timeline: (promoted_now == Some(promoted)).then_some(timeline) }
    }
}

/// What the node remembers about its PostgreSQL between observations.
#[derive(Debug, Default)]
struct Memory {
    follows: Option<Followed>,
    in_recovery: Option<(PostgresProcess, bool)>,
    promoted_at: Option<(Timeline, Lsn)>,
    names: Option<NamesInEffect>,
    has_written: bool,
    checkpointed_for: Option<Generation>,
    rewinds_refused: u32,
    is_shut_out: bool,
    cleanly_stopped: Option<(CleanStop, WalPosition)>,
    lineage: Option<(Generation, Lineage, Option<Parted>)>,
    rebuilt: Option<Rebuilt>,
    job: Option<Job>,
    /// Work that failed, and when it may be tried again: other work may have taken its place meanwhile.
    retries: Vec<(Job, BootTime)>,
    changed_at: BootTime,
    started_at: Option<BootTime>,
    /// How long PostgreSQL's own log was when it was last started.
    log_at_start: u64,
    /// Log is being fetched from another standby.
    fetch: Option<followed::Fetching>,
    fetch_ended_at: Option<BootTime>,
    /// The receiver is being cut off: what it may follow is no longer what PostgreSQL shows.
    is_being_cut: bool,
    /// When `primary_conninfo` was last set back.
    led_back_at: BootTime,
    log_read_at: BootTime,
    /// Where PostgreSQL's own log ended when it was last told whom to follow: what stands before is about others.
    log_from: u64,
    /// When it last answered, and when it last took a durable write, since it is a primary.
    answered_at: Option<BootTime>,
    written_at: Option<BootTime>,
}

/// This node's PostgreSQL. Shared by the loop, its jobs and the peer service.
pub(super) struct Database {
    pub(super) postgres: Arc<Postgres>,
    observed: watch::Sender<Arc<Observation>>,
    memory: Mutex<Memory>,
    /// Since when it is looked at.
    began_at: BootTime,
    look: Notify,
    is_hot: AtomicBool,
    cancelled_waits: AtomicU64,
    /// What the server says of collations that differ here; none before it has been asked.
    collation_warnings: Mutex<Option<Vec<String>>>,
    /// How far the copy is that is made of another node's database; none while none is made.
    copy: Mutex<Option<Meter>>,
    /// How far it has replayed the log that it has; none while it lets people in.
    replay: Mutex<Option<Meter>>,
    /// Its connections when they were last counted; none while it does not answer.
    connections: Mutex<Option<Connections>>,
    kept_log: Mutex<Option<BTreeMap<NodeId, u64>>>,
    news: Arc<Notify>,
}

impl Memory {
    /// Whether this standby shows another source than the one it was told to follow; not again before that can have been undone.
    fn must_be_led_back(&mut self, observation: &Observation) -> bool {
        let PostgresFacts::Live(live) = &observation.facts else { return false };
        let followed = self.follows.filter(|_| {
            live.in_recovery && !self.is_being_cut && self.job.is_none() && observation.began >= self.changed_at
        });
        let is_astray = followed.is_some_and(|followed| live.follows_generation != Some(followed.generation))
            && observation.began.since(self.led_back_at.max(self.changed_at)) >= LEAD_BACK_EVERY;
        if is_astray {
            self.led_back_at = observation.began;
        }
        is_astray
    }
}

impl Database {
    /// Returns the database; `news` is notified whenever the loop should look.
    pub(super) fn new(postgres: Arc<Postgres>, news: Arc<Notify>) -> Self {
        let nothing = Observation { began: BootTime(0), process: None, facts: PostgresFacts::Stopped };
        let (observed, _) = watch::channel(Arc::new(nothing));
        let database = Self {
            postgres,
            observed,
            memory: Mutex::default(),
            began_at: boot_now(),
            look: Notify::new(),
            is_hot: AtomicBool::new(true),
            cancelled_waits: AtomicU64::new(0),
            collation_warnings: Mutex::default(),
            copy: Mutex::default(),
            replay: Mutex::default(),
            connections: Mutex::default(),
            kept_log: Mutex::default(),
            news,
        };
        let (follows, rebuilt) = (database.read_followed(), database.read_rebuilt());
        {
            let mut memory = database.memory.lock();
            memory.follows = follows;
            // what an earlier start of the daemon followed then may have been another; who lacks log says so again and again
            memory.log_from = database.log_bytes();
            memory.lineage = rebuilt.map(|rebuilt| (rebuilt.promoted, Lineage::Follows, None));
            memory.rebuilt = rebuilt;
        }
        database
    }

    /// Looks at PostgreSQL again and again; `process` says which postmaster the guard runs. Ends with the node.
    pub(super) async fn watch_postgres(
        self: Arc<Self>,
        process: impl Fn() -> Option<PostgresProcess> + Send + Sync + 'static,
    ) {
        loop {
            let began = boot_now();
            let running = process();
            let facts = match running {
                // it lets nobody in: each try would only slow it down
                Some(_) if self.memory.lock().job == Some(Job::StoppingCleanly) => PostgresFacts::NotReady,
                Some(_) => self.postgres.observe(OBSERVE_LIMIT).await,
                None => PostgresFacts::Stopped,
            };
            self.take(Observation { began, process: running, facts });
            // work that looks itself is not disturbed meanwhile; its end wakes this
            let is_hot = self.is_hot.load(Ordering::Relaxed) && self.memory.lock().job != Some(Job::Promoting);
            let pause = if is_hot { OBSERVE_HOT } else { OBSERVE_IDLE };
            tokio::select! {
                () = self.look.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn take(&self, observation: Observation) {
        let mut memory = self.memory.lock();
        if matches!(observation.facts, PostgresFacts::Live(_) | PostgresFacts::Exhausted) {
            memory.answered_at = Some(observation.began);
            memory.is_shut_out = false;
        }
        if let (Some(process), PostgresFacts::Live(live)) = (observation.process, &observation.facts) {
            let is_known =
                memory.in_recovery.is_some_and(|(known, _)| known.pid == process.pid && known.since == process.since);
            // recovery ends once in a postmaster's life and never begins again: an older answer must not undo a newer one
            let in_recovery = live.in_recovery && (!is_known || memory.in_recovery.is_some_and(|(_, was)| was));
            memory.in_recovery = Some((process, in_recovery));
            if !in_recovery && memory.promoted_at.is_none_or(|(timeline, _)| timeline != live.timeline) {
                memory.promoted_at = self.promotion_of(live.timeline);
            }
        }
        if memory.job.is_none()
            && observation.began >= memory.changed_at
            && let PostgresFacts::Live(live) = &observation.facts
            && let Some(noted) = memory.names.take_if(|noted| !live.shows(&to_postgres(&noted.names)))
        {
            let (noted, shown) = (to_postgres(&noted.names).render(), &live.sync_names_shown);
            tracing::warn!(%noted, %shown, "synchronous_standby_names were changed past hasup (L18): commits of this moment may \
                have waited for nobody; they are set again. Find out who uses ALTER SYSTEM, and change `durability` instead");
        }
        let mut is_news = memory.fetch.as_mut().is_some_and(|fetch| fetch.has_moved(&observation));
        let must_be_led_back = memory.must_be_led_back(&observation);
        if let PostgresFacts::ShutOut { why } = &observation.facts
            && !std::mem::replace(&mut memory.is_shut_out, true)
        {
            tracing::error!("{why}");
        }
        let changed_at = memory.changed_at;
        // never both locks at once: the channel has one of its own
        drop(memory);
        if must_be_led_back {
            self.lead_back();
        }
        let is_hot = self.is_hot.load(Ordering::Relaxed);
        self.observed.send_modify(|known| {
            is_news |= differs(&known.facts, &observation.facts)
                || (is_hot && has_log_moved(&known.facts, &observation.facts))
                || known.began < changed_at;
            *known = Arc::new(observation);
        });
        if is_news {
            self.news.notify_one();
        }
    }

    /// Makes the observer look more often, or less.
    pub(super) fn set_hot(&self, is_hot: bool) {
        if self.is_hot.swap(is_hot, Ordering::Relaxed) != is_hot && is_hot {
            self.look.notify_one();
        }
    }

    /// Notes that something was done to PostgreSQL: observations that began before say nothing about it.
    pub(super) fn note_change(&self) {
        self.memory.lock().changed_at = boot_now();
        self.look.notify_one();
        self.news.notify_one();
    }

    pub(super) fn last_observation(&self) -> Arc<Observation> {
        Arc::clone(&self.observed.borrow())
    }

    /// Returns what is known, in the words of the brain.
    pub(super) fn view(&self, guard: &GuardView, process: Option<PostgresProcess>) -> PostgresView {
        let observation = self.last_observation();
        let mut memory = self.memory.lock();
        let memory = &mut *memory;
        let in_recovery =
            memory.in_recovery.filter(|(known, _)| Some((known.pid, known.since)) == process.map(|p| (p.pid, p.since)));
        let is_current = observation.began >= memory.changed_at
            && observation.process.map(|p| (p.pid, p.since)) == process.map(|p| (p.pid, p.since));
        let live = match (&observation.facts, is_current) {
            (PostgresFacts::Live(live), true) => Some(live.as_ref()),
            _ => None,
        };
        let follows_nobody = memory.follows.is_none();
        let stopped_at = memory.cleanly_stopped.filter(|_| !guard.has_processes).map(|(_, position)| position);
        let promoted_at = memory.promoted_at.filter(|_| in_recovery.is_some_and(|(_, recovering)| !recovering));
        PostgresView {
            in_recovery: in_recovery.map(|(_, recovering)| recovering),
            follows: memory.follows,
            // the records are not known here
            has_source_moved: false,
            // the bar has seen it gone before nobody was followed; a conninfo that nobody here wrote is none of ours
            has_receiver: match live {
                Some(live) => live.receiver.is_some() || (follows_nobody && !live.follows_nobody),
                None => guard.has_processes && !follows_nobody,
            },
            is_streaming: live.is_some_and(|live| live.receiver.as_ref().is_some_and(|it| it.status == "streaming")),
            position: live.and_then(|live| position(live, follows_nobody)).or(stopped_at),
            fetch_moved_at: memory.fetch.map(|fetch| fetch.moved_at),
            fetch_ended_at: memory.fetch_ended_at,
            has_standby_signal: self.postgres.has_standby_signal(),
            timeline: live.filter(|live| !live.in_recovery).map(|live| live.timeline),
            promoted_at: promoted_at.map(|(_, lsn)| lsn),
            names: memory.names.clone().map(|mut in_effect| {
                in_effect.since = in_effect.since.max(promoted_at.map_or(Lsn(0), |(_, lsn)| lsn));
                in_effect
            }),
            standbys: live.map(standbys).unwrap_or_default(),
            stalled_for: match (promoted_at, in_recovery, guard.armed) {
                (Some(_), ..) => {
                    let newest = memory.answered_at.min(memory.written_at);
                    newest.map_or(Duration::ZERO, |at| boot_now().since(at))
                }
                // promoted, perhaps, before this daemon began to look
                (None, None, Some(_)) => boot_now().since(memory.answered_at.unwrap_or(self.began_at)),
                _ => Duration::ZERO,
            },
            current: live.filter(|live| !live.in_recovery).map(|live| live.lsn),
            has_written: memory.has_written,
            checkpointed_for: memory.checkpointed_for,
            cleanly_stopped: memory.cleanly_stopped.filter(|_| !guard.has_processes).map(|(stop, _)| stop),
        }
    }

    pub(super) fn job(&self, now: BootTime) -> Option<Job> {
        let mut memory = self.memory.lock();
        if let Some(Job::Failed { retry_at, .. }) = &memory.job
            && *retry_at <= now
        {
            memory.job = None;
        }
        memory.job.clone()
    }

    /// The timeline of the primary that the data was last rebuilt from.
    pub(super) fn rebuilt_from(&self) -> Option<Timeline> {
        self.memory.lock().rebuilt.and_then(|rebuilt| rebuilt.timeline)
    }

    pub(super) fn lineage(&self) -> Option<(Generation, Lineage)> {
        self.memory.lock().lineage.map(|(promoted, verdict, _)| (promoted, verdict))
    }

    /// Takes the one place for long work; none while other work holds it.
    pub(super) fn begin_job(self: &Arc<Self>, job: Job) -> Option<JobPlace> {
        let mut memory = self.memory.lock();
        let now = boot_now();
        memory.retries.retain(|(_, retry_at)| *retry_at > now);
        if memory.retries.iter().any(|(work, _)| *work == job) {
            return None;
        }
        // what has failed gives its place up to other work
        if memory.job.as_ref().is_some_and(|job| !matches!(job, Job::Failed { .. })) {
            return None;
        }
        memory.job = Some(job.clone());
        Some(JobPlace { database: Arc::clone(self), job, outcome: Some(None) })
    }

    // ---- what steps leave behind ----

    pub(super) fn note_started(&self) {
        let log_at_start = self.log_bytes();
        let mut memory = self.memory.lock();
        let started_at = Some(boot_now());
        *memory = Memory {
            lineage: memory.lineage,
            rebuilt: memory.rebuilt,
            job: memory.job.take(),
            retries: std::mem::take(&mut memory.retries),
            fetch_ended_at: memory.fetch_ended_at,
            started_at,
            log_at_start,
            changed_at: boot_now(),
            ..Memory::default()
        };
        drop(memory);
        self.look.notify_one();
    }

    /// Whether PostgreSQL was started only just now and has ended already.
    pub(super) fn ended_at_once(&self) -> bool {
        self.memory.lock().started_at.is_some_and(|at| boot_now().since(at) < START_PAUSE)
    }

    /// Forgets which names are in effect: others are about to be.
    pub(super) fn forget_names(&self) {
        self.memory.lock().names = None;
    }

    pub(super) fn note_names(&self, names: NamesInEffect) {
        let mut memory = self.memory.lock();
        memory.names = Some(names);
        // an observation that began before shows the names before
        memory.changed_at = boot_now();
    }

    /// Notes that `process` is a primary now, before the next observation says so.
    pub(super) fn note_promoted(&self, process: Option<PostgresProcess>, timeline: Timeline) {
        let mut memory = self.memory.lock();
        memory.in_recovery = process.map(|process| (process, false));
        memory.promoted_at = self.promotion_of(timeline);
    }

    /// Returns where the timeline before `timeline` was left.
    fn promotion_of(&self, timeline: Timeline) -> Option<(Timeline, Lsn)> {
        let history = self.postgres.history(timeline).ok().flatten()?;
        history.ancestors.last().map(|(_, lsn)| (timeline, *lsn))
    }

    pub(super) fn note_written(&self) {
        let mut memory = self.memory.lock();
        memory.has_written = true;
        memory.written_at = Some(boot_now());
    }

    /// Writes durably through a new connection, again and again, while this is a primary that has taken writes: what clients
    /// need. Standbys are not waited for, so that their absence is no failing of this node. Ends with the node.
    pub(super) async fn probe_writes(self: Arc<Self>) {
        loop {
            tokio::time::sleep(PROBE_EVERY).await;
            if !self.memory.lock().has_written {
                continue;
            }
            // exhausted connections are an answer: it lives, and serves others
            if let Ok(WriteProbe::Written(_) | WriteProbe::Exhausted) = self.postgres.probe_write(PROBE_LIMIT).await {
                let mut memory = self.memory.lock();
                if memory.has_written {
                    memory.written_at = Some(boot_now());
                }
            }
        }
    }

    pub(super) fn note_checkpointed(&self, generation: Generation) {
        self.memory.lock().checkpointed_for = Some(generation);
    }

    /// Notes a stop in order, with how many standbys streamed when it began.
    pub(super) fn note_stopped(&self, generation: Generation, position: WalPosition, standbys: usize) {
        self.memory.lock().cleanly_stopped = Some((CleanStop { generation, at: boot_now(), standbys }, position));
    }

    /// Compares this node's log, which ends at `own`, with the history of the primary that was promoted under `promoted`.
    pub(super) fn compare(
        &self,
        promoted: Generation,
        own: WalPosition,
        primary: &TimelineHistory,
    ) -> Result<(), PgError> {
        let own_history = self.postgres.history(own.timeline)?.unwrap_or_else(|| TimelineHistory {
            timeline: own.timeline,
            ancestors: Vec::new(),
            is_placeholder: false,
        });
        let (verdict, fork) = match crate::postgres::diverged(own, &own_history, primary) {
            Divergence::None => (Lineage::Follows, None),
            Divergence::At(fork) => (Lineage::Diverged, Some(Parted { fork, own })),
            Divergence::Unrelated => (Lineage::Diverged, None),
        };
        tracing::info!("{}", compared(own, primary.timeline, verdict, fork));
        self.memory.lock().lineage = Some((promoted, verdict, fork));
        Ok(())
    }

    /// Returns where this node's log parts from the primary's, if it does and they have anything in common.
    pub(super) fn parted(&self) -> Option<Parted> {
        let remembered = self.memory.lock().lineage.and_then(|(_, _, parted)| parted);
        let written = || serde_json::from_slice(&std::fs::read(self.parted_path()).ok()?).ok();
        remembered.or_else(written)
    }

    /// Notes that a rewind could not begin, and returns how often in a row that was so.
    pub(super) fn note_rewind_refused(&self) -> u32 {
        let mut memory = self.memory.lock();
        memory.rewinds_refused += 1;
        memory.rewinds_refused
    }

    fn parted_path(&self) -> std::path::PathBuf {
        self.postgres.layout().config_dir().join("parted.json")
    }

    /// Keeps on disk where the logs parted: a rebuild that is interrupted goes on from there.
    pub(super) fn keep_parted(&self, parted: Option<Parted>) -> Result<(), PgError> {
        match parted {
            Some(parted) => {
                let bytes = serde_json::to_vec(&parted).unwrap_or_default();
                self.postgres.layout().write(&self.parted_path(), &bytes)
            }
            None => crate::postgres::layout::remove_file(&self.parted_path()),
        }
    }

    /// Notes from which primary the data was rebuilt, on disk first: it can follow that one, and cannot say more before it has.
    pub(super) fn note_rebuilt(&self, rebuilt: Rebuilt) -> Result<(), PgError> {
        let bytes = serde_json::to_vec(&rebuilt).unwrap_or_default();
        self.postgres.layout().write(&self.rebuilt_path(), &bytes)?;
        let mut memory = self.memory.lock();
        memory.rewinds_refused = 0;
        memory.lineage = Some((rebuilt.promoted, Lineage::Follows, None));
        memory.rebuilt = Some(rebuilt);
        Ok(())
    }

    fn rebuilt_path(&self) -> std::path::PathBuf {
        self.postgres.layout().config_dir().join("rebuilt.json")
    }

    /// From which primary an earlier start of the daemon rebuilt the data, if it did.
    fn read_rebuilt(&self) -> Option<Rebuilt> {
        serde_json::from_slice(&std::fs::read(self.rebuilt_path()).ok()?).ok()
    }

    // ---- for the peer service ----

    pub(super) async fn checkpoint(&self) -> Result<(), PgError> {
        self.postgres.checkpoint(Duration::from_secs(300)).await
    }

    pub(super) fn history_file(&self, timeline: Timeline) -> Result<Option<Vec<u8>>, PgError> {
        let path = self.postgres.layout().wal_dir().join(crate::postgres::history::file_name(timeline));
        match std::fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(PgError::File { action: "read", path, source }),
        }
    }

    pub(super) fn major_version(&self) -> Option<u32> {
        Some(self.postgres.programs().major)
    }

    /// Returns how many bytes the databases take; none while PostgreSQL does not say.
    pub(super) async fn database_bytes(&self) -> Option<u64> {
        let sql = "select sum(pg_database_size(oid))::bigint from pg_database";
        let rows = self.postgres.run_sql("tell its size", sql, SIZE_LIMIT).await.ok()?;
        rows.into_iter().flatten().flatten().next()?.parse().ok()
    }

    /// Lets exactly these members' certificates stream and rewind.
    pub(super) fn admit_members(&self, members: &BTreeSet<NodeName>) -> Result<(), PgError> {
        self.postgres.write_access_rules(members)?;
        self.postgres.reload();
        Ok(())
    }
}

/// The one place for long work: given back when dropped, with what came of it.
pub(super) struct JobPlace {
    database: Arc<Database>,
    job: Job,
    outcome: Option<Option<Job>>,
}

impl JobPlace {
    /// Ends the work as failed; it is tried again after `pause` at the earliest.
    pub(super) fn fail(mut self, error: String, pause: Duration) {
        let retry_at = boot_now() + pause;
        let work = Box::new(self.job.clone());
        self.database.memory.lock().retries.push((self.job.clone(), retry_at));
        self.outcome = Some(Some(Job::Failed { work, error, retry_at }));
    }

    /// Says that the work is something else by now.
    pub(super) fn becomes(&self, job: Job) {
        self.database.memory.lock().job = Some(job);
        self.database.news.notify_one();
    }
}

impl Drop for JobPlace {
    fn drop(&mut self) {
        self.database.memory.lock().job = self.outcome.take().flatten();
        self.database.note_change();
    }
}

/// Returns the names as the adapter writes them.
pub(super) fn to_postgres(names: &SyncNames) -> PostgresNames {
    match names {
        SyncNames::Set(set) => PostgresNames::of(set),
        SyncNames::Nobody => PostgresNames::Nobody,
    }
}

/// The end of valid log by L10: while nobody is followed, only once all of it is known to have been read.
fn position(live: &LiveFacts, follows_nobody: bool) -> Option<WalPosition> {
    if live.in_recovery {
        let is_settled = !follows_nobody || (live.receiver.is_none() && live.follows_nobody);
        let is_read = live.receive_lsn.is_some() || live.ran_out_of_local_wal;
        if !is_settled || !is_read {
            return None;
        }
    }
    Some(WalPosition { timeline: live.timeline, lsn: live.lsn })
}

/// The standbys that stream and have caught up, by the name that says which life of which node's data they are.
fn standbys(live: &LiveFacts) -> BTreeMap<DataMember, Lsn> {
    let streaming = live.senders.iter().filter(|sender| sender.state.as_deref() == Some("streaming"));
    streaming.filter_map(|sender| Some((parse_member(&sender.application_name)?, sender.flush_lsn?))).collect()
}

pub(super) fn parse_member(name: &str) -> Option<DataMember> {
    let (node, incarnation) = name.strip_prefix('n')?.split_once("_i")?;
    Some(DataMember { node: NodeId(node.parse().ok()?), incarnation: DataIncarnation(incarnation.parse().ok()?) })
}

/// Whether standbys hold more of the log than before: while a promotion waits for just that, the loop should look.
fn has_log_moved(before: &PostgresFacts, after: &PostgresFacts) -> bool {
    match (before, after) {
        (PostgresFacts::Live(before), PostgresFacts::Live(after)) => standbys(before) != standbys(after),
        _ => false,
    }
}

/// Whether the loop should look: something other than the growing log differs.
fn differs(before: &PostgresFacts, after: &PostgresFacts) -> bool {
    match (before, after) {
        (PostgresFacts::Live(before), PostgresFacts::Live(after)) => {
            let shape = |live: &LiveFacts| {
                let senders: Vec<_> =
                    live.senders.iter().map(|it| (it.application_name.clone(), it.state.clone())).collect();
                let receiver = live.receiver.as_ref().map(|it| (it.status.clone(), it.generation));
                (live.in_recovery, live.timeline, receiver, senders, live.follows_nobody, live.ran_out_of_local_wal)
            };
            shape(before) != shape(after)
        }
        _ => std::mem::discriminant(before) != std::mem::discriminant(after),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::{Layout, PostgresSetup, Programs, SslPaths, StaticSettings};

    /// A database in `folder`, as a start of the daemon finds it; no PostgreSQL runs.
    pub(super) fn database(folder: &std::path::Path) -> Database {
        let file = |name: &str| folder.join(name);
        let settings = StaticSettings {
            port: 1,
            listen_addresses: Vec::new(),
            logical: false,
            ssl: SslPaths { certificate: file("crt"), key: file("key"), ca: file("ca") },
            wal_keep_mib: 1,
            slot_keep_mib: 1,
            local_user: "nobody".to_owned(),
            extra: std::collections::BTreeMap::new(),
        };
        let layout = Layout::new(folder);
        layout.prepare().unwrap();
        let programs = Programs { bin_dir: file("bin"), major: 15 };
        Database::new(Arc::new(Postgres::new(PostgresSetup { layout, programs, settings })), Arc::default())
    }

    #[test]
    fn members_are_read_from_the_names_they_stream_under() {
        let member = DataMember { node: NodeId(12), incarnation: DataIncarnation(3) };
        assert_eq!(parse_member(&member.to_string()), Some(member));
        for other in ["", "psql", "n1", "n1_i", "nx_i1", "hasup_copy"] {
            assert_eq!(parse_member(other), None, "{other}");
        }
    }

    #[test]
    fn rebuilt_data_name_a_timeline_only_where_its_primary_is_still_active() {
        let folder = tempfile::tempdir().unwrap();
        let (of, timeline) = (Generation(4), Timeline(3));
        for (now, expected) in [(Some(of), Some(timeline)), (Some(Generation(6)), None), (None, None)] {
            let rebuilding = database(folder.path());
            rebuilding.note_rebuilt(Rebuilt::new(of, timeline, now)).unwrap();
            for known in [rebuilding, database(folder.path())] {
                assert_eq!(known.rebuilt_from(), expected, "{now:?}");
                assert_eq!(known.lineage(), Some((of, Lineage::Follows)), "it is judged no sooner than it can be");
            }
        }
    }
}
