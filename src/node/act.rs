//! Carries out a plan: one match over [`Step`], each arm a call that may be repeated.
//!
//! Steps that PostgreSQL or the network may hold up for long run as the one job beside the loop; all others end within
//! milliseconds or at their limit, and the first that fails ends the round.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};

use futures_util::future::join_all;

use super::Shared;
use super::database::{JobPlace, Rebuilt, to_postgres};
use super::events::why_rebuilt;
use super::names::name_of;
use crate::guard::{GuardError, Lease, StopMode};
use crate::ha::durable::DataState;
use crate::ha::plan::Step;
use crate::ha::record::{DataMember, Member};
use crate::ha::timing::Timing;
use crate::ha::view::{Followed, Job, NamesInEffect, SyncNames};
use crate::peer::{PeerRequest, PeerResponse};
use crate::postgres::basebackup::{self, BaseBackup};
use crate::postgres::rewind::{self, Rewind, RewindStep};
use crate::postgres::settings::FETCH_ROLE;
use crate::postgres::{Follow, PgError, Reader, Source, SslMode, SslPaths, TimelineHistory, WriteProbe};
use crate::sys::clock::{boot_now, wall_now};
use crate::sys::exec::ExecError;
use crate::tls::config::MemberProtocol;
use crate::types::{Generation, Lsn, NodeId, Timeline};

/// How long PostgreSQL has to leave by itself when it must go at once: enough for its processes to see SIGQUIT.
const KILL_AFTER: Duration = Duration::from_millis(50);
/// How long a short question to PostgreSQL may take.
const SHORT: Duration = Duration::from_secs(2);
/// How long a node that is about to copy waits to hear of a standby to copy from.
const HEARING_LIMIT: Duration = Duration::from_secs(2);
/// How long a first write may wait for the standbys before other work has its turn.
const FIRST_WRITE_LIMIT: Duration = Duration::from_secs(1);
/// How long work may take that waits for a checkpoint of a busy database.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(300);
/// How long standbys may take to get ready for a switchover; it goes on without them.
const STANDBY_CHECKPOINT_LIMIT: Duration = Duration::from_secs(3);
/// How long a copy of the database may take before it is begun anew.
const COPY_LIMIT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long nothing of a copy may come from a standby before the active node is copied instead: nobody replaces a standby that hangs.
const COPY_SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// How long a rewind may take before a copy is made instead.
const REWIND_LIMIT: Duration = Duration::from_secs(3600);
/// How often a rewind that cannot begin is tried before the database is copied.
const REWIND_TRIES: u32 = 10;

/// A step was not carried out. The next round decides afresh.
#[derive(Debug, thiserror::Error)]
pub(super) enum StepError {
    /// The guard did not do it.
    #[error(transparent)]
    Guard(#[from] GuardError),
    /// PostgreSQL did not do it.
    #[error(transparent)]
    Postgres(#[from] PgError),
    /// The disk did not take a durable fact.
    #[error("write this node's durable facts")]
    Durable(#[from] std::io::Error),
    /// What the step is about is not known here.
    #[error("{0}")]
    Unknown(String),
}

impl Shared {
    /// Carries out `step`. What it changed has been noted when this returns.
    pub(super) async fn act(self: &Arc<Self>, step: Step) -> Result<(), StepError> {
        self.refuse_stale(&step)?;
        match step {
            Step::PersistAcknowledged { generation } => {
                self.remember(move |facts| facts.acknowledged = facts.acknowledged.max(generation)).await
            }
            Step::PersistLeaseSpan { span } => self.remember(move |facts| facts.lease_span = span).await,
            Step::PersistBar { generation } => {
                self.remember(move |facts| facts.barred = facts.barred.max(generation)).await
            }
            Step::PersistResignation { generation, reason } => {
                let event = self.event_of_resignation(generation, &reason);
                let is_odd = !reason.is_in_order();
                self.remember(move |facts| {
                    facts.resigned = facts.resigned.max(generation);
                    facts.resign_reason = Some(reason);
                })
                .await?;
                self.tell(event, is_odd);
                Ok(())
            }
            Step::PersistIntact => {
                self.remember(|facts| {
                    if matches!(facts.data, DataState::Rebuilding { until: Some(_) }) {
                        facts.data = DataState::Intact;
                    }
                })
                .await
            }
            Step::CutReceiver { .. } => self.cut_receiver().await,
            Step::Fence { .. } => {
                let fenced = self.guard.client()?.fence(KILL_AFTER).await.map(drop);
                self.postgres.note_change();
                Ok(fenced?)
            }
            Step::Disarm { generation } => Ok(self.guard.client()?.disarm(generation).await?),
            Step::PutStandbySignal => Ok(self.postgres.postgres.layout().put_standby_signal()?),
            Step::StartPostgres => self.start_postgres().await,
            Step::Follow(followed) => self.follow(followed),
            Step::Fetch { from, under } => self.fetch(from, under),
            Step::CheckLineage { node, promoted } => {
                self.job(Job::CheckingLineage, move |shared, place| shared.check_lineage(node, promoted, place));
                Ok(())
            }
            Step::Rejoin { from, generation } => {
                self.job(Job::Rebuilding, move |shared, place| shared.rebuild(from, generation, true, place));
                Ok(())
            }
            Step::CopyDatabase { from, generation } => {
                self.job(Job::Rebuilding, move |shared, place| shared.rebuild(from, generation, false, place));
                Ok(())
            }
            Step::ArmGuard { generation, deadline } => {
                let fence_lead = self.timing().fence_lead;
                self.note_acted(generation);
                Ok(self.guard.client()?.arm(Lease { generation, deadline, fence_lead }).await?)
            }
            Step::SetNames { names, .. } => self.set_names(names).await,
            Step::Promote { generation, timeline } => {
                let limit = self.timing().promote_limit;
                self.job(Job::Promoting, move |shared, place| {
                    shared.promote_postgres(generation, timeline, limit, place)
                });
                Ok(())
            }
            Step::ProbeWrite { .. } => {
                self.job(Job::ProbingWrite, |shared, place| shared.probe_write(place));
                Ok(())
            }
            Step::PrepareSwitchover { generation } => {
                self.job(Job::Checkpointing, move |shared, place| shared.prepare_switchover(generation, place));
                Ok(())
            }
            Step::StopCleanly { generation } => {
                let limit = self.timing().clean_stop_limit;
                // counted before: PostgreSQL is asked nothing while it stops
                let standbys = self.postgres.view(&self.guard.view(), self.postgres_process()).standbys.len();
                self.job(Job::StoppingCleanly, move |shared, place| {
                    shared.stop_cleanly(generation, standbys, limit, place)
                });
                Ok(())
            }
        }
    }

    /// The record may have changed since the step was decided; what would act for a generation that is over is not done.
    fn refuse_stale(&self, step: &Step) -> Result<(), StepError> {
        let generation = match step {
            Step::ArmGuard { generation, .. }
            | Step::SetNames { generation, .. }
            | Step::Promote { generation, .. }
            | Step::ProbeWrite { generation }
            | Step::PrepareSwitchover { generation }
            | Step::StopCleanly { generation }
            | Step::Rejoin { generation, .. }
            | Step::CopyDatabase { generation, .. } => *generation,
            Step::Follow(followed) => followed.generation,
            Step::Fetch { under, .. } => return self.refuse_fetch(*under),
            Step::PersistAcknowledged { .. }
            | Step::PersistLeaseSpan { .. }
            | Step::PersistBar { .. }
            | Step::PersistResignation { .. }
            | Step::PersistIntact
            | Step::CutReceiver { .. }
            | Step::Fence { .. }
            | Step::Disarm { .. }
            | Step::PutStandbySignal
            | Step::StartPostgres
            | Step::CheckLineage { .. } => return Ok(()),
        };
        let durable = self.durable.get();
        let newest = self.state().assignment.as_ref().map(|record| record.value.generation).unwrap_or_default();
        let is_over = generation < newest || generation <= durable.barred || generation <= durable.resigned;
        if is_over {
            return Err(StepError::Unknown(format!(
                "generation {generation} is over; generation {newest} is in force"
            )));
        }
        Ok(())
    }

    /// Log is fetched under the bar on the newest generation alone (L12).
    fn refuse_fetch(&self, under: Generation) -> Result<(), StepError> {
        let durable = self.durable.get();
        let newest = self.state().assignment.as_ref().map(|record| record.value.generation).unwrap_or_default();
        if newest != under || durable.barred.max(durable.resigned) < under {
            return Err(StepError::Unknown(format!(
                "nothing is fetched under generation {under}; generation {newest} is in force"
            )));
        }
        Ok(())
    }

    pub(super) fn timing(&self) -> Timing {
        Timing::from_options(&self.state().options)
    }

    /// Changes the durable facts on a thread that may wait for the disk.
    async fn remember(
        self: &Arc<Self>,
        change: impl FnOnce(&mut crate::ha::durable::Durable) + Send + 'static,
    ) -> Result<(), StepError> {
        let shared = Arc::clone(self);
        let written = tokio::task::spawn_blocking(move || shared.durable.change(change)).await;
        written.map_err(|error| StepError::Unknown(format!("write this node's durable facts: {error}")))??;
        Ok(())
    }

    fn job<W>(self: &Arc<Self>, job: Job, work: impl FnOnce(Arc<Self>, JobPlace) -> W)
    where
        W: Future<Output = ()> + Send + 'static,
    {
        if let Some(place) = self.postgres.begin_job(job) {
            self.tasks.spawn("job", work(Arc::clone(self), place));
        }
    }

    async fn cut_receiver(self: &Arc<Self>) -> Result<(), StepError> {
        let limit = self.timing().bar_limit;
        self.postgres.note_cut();
        let cut = self.postgres.postgres.bar(limit).await;
        if let Err(error) = cut {
            tracing::warn!(%error, "the WAL receiver could not be cut off in time; PostgreSQL is stopped instead");
            self.guard.client()?.stop(StopMode::Immediate { kill_after: KILL_AFTER }).await?;
            // stopped, the files alone say whom it may follow
            self.postgres.postgres.bar(limit).await?;
        }
        let fetched = self.postgres.fetched();
        self.postgres.note_follows(None)?;
        self.postgres.note_change();
        if let Some((from, until)) = fetched {
            self.tell(self.event_of_fetch(from, until), true);
        }
        Ok(())
    }

    async fn start_postgres(self: &Arc<Self>) -> Result<(), StepError> {
        if rewind::pending(self.postgres.postgres.layout()).is_some() {
            return Err(StepError::Unknown(
                "a rewind was begun and not ended: PostgreSQL is not started on what it left".to_owned(),
            ));
        }
        if self.postgres.ended_at_once() {
            if let Some(place) = self.postgres.begin_job(Job::Starting) {
                let log = self.postgres.postgres.layout().log_file();
                let said = self.postgres.last_fatal().map(|said| format!(": {said}")).unwrap_or_default();
                place.fail(
                    format!("PostgreSQL ended right after its start{said}; its log is {}", log.display()),
                    Duration::from_secs(1),
                );
            }
            return Ok(());
        }
        let members = self.state().members.values().map(|member| member.name.clone()).collect();
        if self.postgres.postgres.postmaster().is_some() {
            // somebody started it by hand, past the guard
            self.guard.client()?.stop(StopMode::Immediate { kill_after: KILL_AFTER }).await?;
        }
        let spec = self.postgres.postgres.prepare_start(None, &members).await?;
        self.postgres.note_follows(None)?;
        self.postgres.note_started();
        self.guard.client()?.start_postgres(spec).await?;
        self.postgres.note_change();
        Ok(())
    }

    fn to_follow(&self, followed: Followed) -> Result<Follow, StepError> {
        let member = DataMember { node: self.me, incarnation: self.durable.get().incarnation };
        let source = self.source(followed.node)?;
        Ok(Follow { generation: followed.generation, source, reader: Reader::Standby(member) })
    }

    /// Whether PostgreSQL was told to follow that node somewhere else than where it is to be found now.
    pub(super) fn follows_elsewhere(&self, followed: Followed) -> bool {
        self.to_follow(followed).is_ok_and(|follow| self.postgres.postgres.follows_elsewhere(&follow))
    }

    fn follow(&self, followed: Followed) -> Result<(), StepError> {
        let follow = self.to_follow(followed)?;
        // noted first: after a crash in between, the bar still knows that there may be a receiver
        self.postgres.note_follows(Some(followed))?;
        self.postgres.postgres.follow(&follow)?;
        self.postgres.note_change();
        Ok(())
    }

    /// Lets the receiver read a standby's log, under a name that commits never wait for (L12).
    fn fetch(&self, from: NodeId, under: Generation) -> Result<(), StepError> {
        let source = self.source(from)?;
        // what cannot begin, for want of room perhaps, keeps this node from stating what it holds for a while only
        self.postgres.note_fetch_tried();
        self.postgres.note_fetch(Followed { node: from, generation: under })?;
        self.postgres.postgres.follow(&Follow { generation: under, source, reader: Reader::Fetch })?;
        self.postgres.note_change();
        Ok(())
    }

    fn member(&self, node: NodeId) -> Result<Arc<Member>, StepError> {
        let member = self.state().members.get(&node).cloned();
        member.ok_or_else(|| StepError::Unknown(format!("node {node} is no member that this node knows of")))
    }

    fn source(&self, node: NodeId) -> Result<Source, StepError> {
        let member = self.member(node)?;
        let host = member.postgres_host.trim_matches(['[', ']']).to_owned();
        let addresses = self.resolver.known(&host);
        Ok(Source { host, addresses, port: member.postgres_port, ssl_mode: SslMode::VerifyCa })
    }

    /// Sets the names. On a standby that is about to be promoted they are written and seen; on a primary they are in effect.
    async fn set_names(self: &Arc<Self>, names: SyncNames) -> Result<(), StepError> {
        let view = self.postgres.view(&self.guard.view(), self.postgres_process());
        if view.in_recovery == Some(false) {
            self.job(Job::SettingNames, move |shared, place| shared.settle_names(names, place));
            return Ok(());
        }
        self.postgres.postgres.set_sync_names(&to_postgres(&names), true, SHORT).await?;
        self.postgres.note_names(NamesInEffect { names, since: Lsn(0) });
        self.postgres.note_change();
        Ok(())
    }

    // ---- long work ----

    async fn settle_names(self: Arc<Self>, names: SyncNames, place: JobPlace) {
        let settled = async {
            let before = self.postgres.view(&self.guard.view(), self.postgres_process()).names;
            let may_mix = before.is_some_and(|before| before.names.may_mix_with(&names));
            // until all have read the new ones, none are in effect: a record that goes back to those before is not settled by them
            self.postgres.forget_names();
            self.postgres.postgres.set_sync_names(&to_postgres(&names), may_mix, CHECKPOINT_LIMIT).await?;
            let end = self
                .postgres
                .postgres
                .run_sql("tell the end of its log", "select pg_current_wal_insert_lsn()", SHORT)
                .await?;
            let text = end.into_iter().flatten().flatten().next().unwrap_or_default();
            text.parse::<Lsn>()
                .map_err(|error| PgError::Answer { what: "tell the end of its log", detail: error.to_string() })
        };
        match settled.await {
            Ok(since) => self.postgres.note_names(NamesInEffect { names, since }),
            Err(error) => place.fail(format!("the names of the standbys are not in effect: {}", chain(&error)), SHORT),
        }
    }

    async fn promote_postgres(
        self: Arc<Self>,
        generation: Generation,
        timeline: Timeline,
        limit: Duration,
        place: JobPlace,
    ) {
        let process = self.postgres_process();
        // the record may have changed while this waited, and a guard that died since the arming has a successor that knows nothing
        let trigger = async {
            self.refuse_stale(&Step::Promote { generation, timeline })?;
            self.guard.client()?.promote(generation).await?;
            Ok(())
        };
        match self.postgres.postgres.promote(timeline, limit, trigger).await {
            Ok(()) => {
                self.postgres.note_promoted(process, timeline);
                if let Err(error) = self.postgres.postgres.admit_standbys(SHORT).await {
                    tracing::warn!(error = %chain(&error), "whether standbys may connect is not certain");
                }
            }
            Err(error) => place.fail(format!("promote PostgreSQL: {}", chain(&error)), Duration::from_secs(1)),
        }
    }

    async fn probe_write(self: Arc<Self>, place: JobPlace) {
        let probed = async {
            self.provision().await?;
            // short: what it waits for may be the very names that the next work sets
            self.postgres.postgres.probe_quorum_write(FIRST_WRITE_LIMIT).await
        };
        match probed.await {
            Ok(WriteProbe::Written(_)) => self.postgres.note_written(),
            // it lives and serves others, which is what the probe is about
            Ok(WriteProbe::Exhausted) => self.postgres.note_written(),
            Ok(WriteProbe::NotWritable) => {
                place.fail("PostgreSQL takes no writes yet".to_owned(), Duration::from_millis(50))
            }
            Err(error) => {
                place.fail(format!("write through the standbys: {}", chain(&error)), Duration::from_millis(200))
            }
        }
    }

    /// Makes what every cluster needs, where it is not there: at the first promotion of all, after an adoption, and after an upgrade.
    async fn provision(&self) -> Result<(), PgError> {
        let there = format!(
            "select to_regclass('hasup.heartbeat') is not null and exists (select from pg_roles where rolname = '{FETCH_ROLE}'),
                    exists (select from pg_database where datname = 'app')"
        );
        let rows = self.postgres.postgres.run_sql("look for hasup's schema", &there, SHORT).await?;
        let mut is_there = rows.into_iter().flatten().map(|value| value.as_deref() == Some("t"));
        let (has_own, has_app) = (is_there.next() == Some(true), is_there.next() == Some(true));
        if !has_own {
            self.postgres.postgres.provision(CHECKPOINT_LIMIT).await?;
        }
        // in an adopted cluster `app` may be somebody's, and clients have what they need
        if !has_app && !self.postgres.postgres.layout().is_adopted() {
            self.postgres.postgres.provision_application("app", CHECKPOINT_LIMIT).await?;
        }
        Ok(())
    }

    async fn prepare_switchover(self: Arc<Self>, generation: Generation, place: JobPlace) {
        match self.postgres.postgres.prepare_stop(CHECKPOINT_LIMIT).await {
            Ok(()) => {
                let standbys = self.postgres.view(&self.guard.view(), self.postgres_process()).standbys;
                let asked = standbys
                    .into_keys()
                    .map(|member| self.ask_for_checkpoint(member.node, generation, STANDBY_CHECKPOINT_LIMIT));
                for error in join_all(asked).await.into_iter().filter_map(Result::err) {
                    tracing::info!(error = %chain(&error), "a standby is not prepared for the switchover, which takes longer then");
                }
                self.postgres.note_checkpointed(generation);
            }
            Err(error) => place.fail(format!("prepare PostgreSQL's stop for the switchover: {}", chain(&error)), SHORT),
        }
    }

    async fn stop_cleanly(self: Arc<Self>, generation: Generation, standbys: usize, limit: Duration, place: JobPlace) {
        let stopped = async {
            self.guard.client()?.stop(StopMode::Fast { limit }).await?;
            Ok::<_, StepError>(self.postgres.postgres.final_position().await?.position)
        };
        match stopped.await {
            Ok(position) => self.postgres.note_stopped(generation, position, standbys),
            // stopped, but not in order: its log's end shows when it has started as a standby
            Err(error) => {
                tracing::warn!(error = %chain(&error), "PostgreSQL did not stop in order");
                place.fail(format!("stop PostgreSQL in order: {}", chain(&error)), Duration::from_millis(10));
            }
        }
    }

    async fn check_lineage(self: Arc<Self>, node: NodeId, promoted: Generation, place: JobPlace) {
        let view = self.postgres.view(&self.guard.view(), self.postgres_process());
        let record = self.state().assignment.as_ref().map(|record| (*record.value).clone());
        let (Some(own), Some(record)) = (view.position, record.filter(|record| record.promoted == promoted)) else {
            return;
        };
        let request = PeerRequest::TimelineHistory { timeline: record.timeline };
        let compared = match self.peers.call(node, MemberProtocol::Raft, request, SHORT).await {
            Ok(PeerResponse::TimelineHistory { file: Some(bytes) }) => {
                let text = String::from_utf8_lossy(&bytes).into_owned();
                TimelineHistory::parse(record.timeline, &text)
                    .and_then(|history| self.postgres.compare(promoted, own, &history).map_err(|error| chain(&error)))
            }
            Ok(PeerResponse::TimelineHistory { file: None }) => {
                Err("the active node has not been promoted yet".to_owned())
            }
            Ok(other) => Err(format!("the active node said: {}", other.why_not())),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = compared {
            place.fail(format!("compare histories: {error}"), Duration::from_millis(100));
        }
    }

    /// Gives this node the active one's data: by a rewind where the histories have a beginning in common, else by a copy (L19).
    async fn rebuild(self: Arc<Self>, from: NodeId, generation: Generation, may_rewind: bool, place: JobPlace) {
        if let Err(error) = self.rebuild_or_fail(from, generation, may_rewind, &place).await {
            tracing::warn!(error = %chain(&error), "the database is not rebuilt yet");
            place.fail(format!("rebuild the database: {}", chain(&error)), Duration::from_secs(1));
        }
    }

    async fn rebuild_or_fail(
        self: &Arc<Self>,
        from: NodeId,
        generation: Generation,
        may_rewind: bool,
        place: &JobPlace,
    ) -> Result<(), StepError> {
        let source = self.source(from)?;
        let (promoted, source_timeline) = self
            .state()
            .assignment
            .as_ref()
            .map(|record| (record.value.promoted, record.value.timeline))
            .unwrap_or_default();
        let layout = self.postgres.postgres.layout().clone();
        let programs = self.postgres.postgres.programs().clone();
        let ssl = self.postgres.postgres.settings().ssl.clone();
        let parted = self.postgres.parted();
        let why = why_rebuilt(self.durable.get().data, parted);
        if parted.is_some() {
            self.postgres.keep_parted(parted)?;
        }
        if self.durable.get().data != (DataState::Rebuilding { until: None }) {
            self.remember(|facts| {
                facts.incarnation = facts.incarnation.next();
                facts.data = DataState::Rebuilding { until: None };
            })
            .await?;
        }
        // in order and as a standby, which is what a rewind needs; nobody writes here
        self.guard.client()?.stop(StopMode::Fast { limit: Duration::from_secs(60) }).await?;
        self.postgres.note_change();

        let mut is_rewound = false;
        let mut failed = None;
        if may_rewind && parted.is_none() {
            tracing::info!("no rewind: {why}");
        }
        // a copy that was begun goes on: what is there may be the copy already
        let may_rewind = may_rewind && !basebackup::is_pending(&layout);
        if let (true, Some(parted)) = (may_rewind, parted) {
            place.becomes(Job::Rewinding);
            self.ask_for_checkpoint(from, generation, CHECKPOINT_LIMIT).await?;
            let label = format!("{}", wall_now().as_secs());
            let rewind = Rewind {
                source: source.clone(),
                ssl: ssl.clone(),
                source_timeline,
                fork: parted.fork,
                own: parted.own,
                label,
                limit: REWIND_LIMIT,
            };
            match rewind.run(&programs, &layout).await {
                Ok(salvage) => {
                    tracing::info!(from = %salvage.from, to = %salvage.to, "rewound; the dropped tail is kept under salvage/");
                    is_rewound = true;
                }
                // nothing was touched: tried again, as a copy would destroy the tail
                Err(error @ PgError::NoSpace { .. }) => return Err(error.into()),
                Err(error) => {
                    let may_repeat = !matches!(error, PgError::SameTimeline { .. })
                        && rewind::pending(&layout).is_none_or(|journal| journal.step == RewindStep::Quarantine);
                    if may_repeat && self.postgres.note_rewind_refused() < REWIND_TRIES {
                        return Err(error.into());
                    }
                    let error = chain(&error);
                    tracing::warn!(error, "the rewind failed; the database is copied instead");
                    failed = Some(error);
                }
            }
        }
        let copied_from = if is_rewound {
            None
        } else {
            let copied_from = self.copy(from, ssl, place).await?;
            rewind::forget(&layout)?;
            Some(copied_from)
        };
        // the copy is consistent once it has replayed to here: the source's log ended below this when it was made
        let until =
            self.end_of(from).ok_or_else(|| StepError::Unknown("the active node's log end is not known".to_owned()))?;
        let promoted_now = self.state().assignment.as_ref().map(|record| record.value.promoted);
        self.postgres.note_rebuilt(Rebuilt::new(promoted, source_timeline, promoted_now))?;
        self.remember(move |facts| facts.data = DataState::Rebuilding { until: Some(until) }).await?;
        self.postgres.keep_parted(None)?;
        let fact = failed.map_or(why.clone(), |error| format!("{why}, and the rewind failed: {error}"));
        let event = self.event_of_rebuild(generation, copied_from, fact);
        self.tell(event, false);
        Ok(())
    }

    /// Copies the database from a standby that streams from `active`, to spare that, else from `active`.
    ///
    /// A standby's log is its primary's, and what is copied counts as whole only once it has replayed as far as the active
    /// node's own log went after the copy (`until`): so it does not matter which of them it was read from.
    ///
    /// Returns who was copied.
    async fn copy(&self, active: NodeId, ssl: SslPaths, place: &JobPlace) -> Result<NodeId, StepError> {
        if let Some(standby) = self.hear_standby_of(active).await {
            place.becomes(Job::Copying { from: standby });
            match self.copy_from(standby, ssl.clone(), Some(COPY_SILENCE_LIMIT)).await {
                // promoted, frozen or led elsewhere meanwhile, or its log lacks what a copy of a standby needs
                Err(StepError::Postgres(error @ PgError::Tool(ExecError::Failed { .. } | ExecError::Stuck { .. }))) => {
                    tracing::warn!(error = %chain(&error), standby = name_of(standby, &self.state()), "no copy from the standby; the active node is copied");
                }
                done => return done.map(|()| standby),
            }
        }
        // who hangs as the active node is replaced, and the copy breaks off
        place.becomes(Job::Copying { from: active });
        self.copy_from(active, ssl, None).await.map(|()| active)
    }

    /// Waits a moment for a standby that streams from `active`: one that was started just now has not heard them all.
    async fn hear_standby_of(&self, active: NodeId) -> Option<NodeId> {
        let limit = Instant::now() + HEARING_LIMIT;
        let mut rounds = self.rounds.subscribe();
        loop {
            let standbys = self.standbys_of(active);
            let whole = standbys.iter().find(|(_, is_whole)| *is_whole).map(|(node, _)| *node);
            if whole.is_some() || standbys.is_empty() || timeout_at(limit, rounds.changed()).await.is_err() {
                return whole;
            }
        }
    }

    /// Who else streams from `active`, and whether this node has heard that its data is whole.
    fn standbys_of(&self, active: NodeId) -> Vec<(NodeId, bool)> {
        let (pulses, now, timing) = (self.pulses.view(), boot_now(), self.timing());
        let is_whole = |node: NodeId| {
            let peer = pulses.peers.get(&node).filter(|peer| peer.is_fresh(now, &timing));
            peer.is_some_and(|peer| peer.report.data.is_some_and(|data| data.is_intact))
        };
        let active = pulses.peers.get(&active).and_then(|peer| peer.report.active.as_ref());
        let standbys = active.into_iter().flat_map(|active| &active.streaming).map(|member| member.node);
        standbys.filter(|node| *node != self.me).map(|node| (node, is_whole(node))).collect()
    }

    async fn copy_from(&self, node: NodeId, ssl: SslPaths, silence_limit: Option<Duration>) -> Result<(), StepError> {
        let layout = self.postgres.postgres.layout().clone();
        tracing::info!(from = name_of(node, &self.state()), "copying the database");
        let backup = BaseBackup {
            source: self.source(node)?,
            ssl,
            application: "hasup_copy".to_owned(),
            max_rate_kib: self.copy_rate_kib,
            // the member that admitted this node has compared the sizes
            expected_bytes: 0,
            limit: COPY_LIMIT,
            silence_limit,
        };
        let mut told = 0;
        let told = &mut told;
        let copied = backup
            .run(self.postgres.postgres.programs(), &layout, |progress| {
                self.postgres.note_copied(Some(progress));
                let percent = progress.done_kib * 100 / progress.total_kib.max(1);
                if percent >= *told + 10 || (percent == 100 && *told < 100) {
                    *told = percent;
                    tracing::info!(
                        percent,
                        copied_kib = progress.done_kib,
                        total_kib = progress.total_kib,
                        "copying the database"
                    );
                }
            })
            .await;
        self.postgres.note_copied(None);
        Ok(copied?)
    }

    async fn ask_for_checkpoint(&self, node: NodeId, generation: Generation, limit: Duration) -> Result<(), StepError> {
        let request = PeerRequest::Checkpoint { generation };
        match self.peers.call(node, MemberProtocol::Bulk, request, limit).await {
            Ok(PeerResponse::Checkpointed) => Ok(()),
            Ok(other) => Err(StepError::Unknown(format!("node {node} made no checkpoint: {}", other.why_not()))),
            Err(error) => Err(StepError::Unknown(error.to_string())),
        }
    }

    /// Where the log of `node` ended when it last said so.
    fn end_of(&self, node: NodeId) -> Option<Lsn> {
        let view = self.pulses.view();
        Some(view.peers.get(&node)?.report.data?.position?.lsn)
    }
}

/// An error with all its causes, for people.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(next) = source {
        let next_text = next.to_string();
        if !text.ends_with(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        source = next.source();
    }
    text
}
