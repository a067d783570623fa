//! The steps that move PostgreSQL: prepare a start, follow, bar, state the position, promote, name the standbys.
//!
//! A change of `synchronous_standby_names` and the WAL senders (L18): each sender releases waiting commits by its own copy of the
//! setting, over all standbys that are flagged by anybody's. Where every commit released by a mixture of old and new copies is
//! held as both sets demand, the senders stay ([`SyncNames::may_mix_with`](crate::ha::view::SyncNames::may_mix_with) tells);
//! else all are cut first, by taking their role's right to log in, and nobody may stream until the new names are seen. Who fetches
//! log (L12) has a role of its own, which stays: its name is in nobody's setting, so its sender releases nothing.

use std::collections::BTreeSet;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use super::adopt;
use super::client::{Rows, Session};
use super::history::{self, TimelineHistory};
use super::layout::{Layout, remove_dir, remove_file};
use super::observe::{Observed, observe_with};
use super::position::position_of;
use super::required_settings::Provided;
use super::settings::{
    self, Dynamic, Follow, REPLICATION_ROLE, SslPaths, StaticSettings, SyncNames, generation_of, parse_dynamic,
    render_adopted_hba, render_config, render_dynamic, render_hba, render_ident,
};
use super::{PgError, Programs, TriggerError, file_error};
use crate::guard::StartSpec;
use crate::guard::procs::{children_of, send, works_in};
use crate::types::{Generation, Lsn, NodeName, Timeline, WalPosition};

/// What a [`Postgres`] is made from.
#[derive(Debug, Clone)]
pub struct PostgresSetup {
    /// Where its files are.
    pub layout: Layout,
    /// Its programs.
    pub programs: Programs,
    /// Its settings.
    pub settings: StaticSettings,
}

/// This node's PostgreSQL. Starting and killing it is the guard's; all else is here. Share it behind an `Arc`.
#[derive(Debug)]
pub struct Postgres {
    setup: PostgresSetup,
    kept: tokio::sync::Mutex<Option<Session>>,
    /// Held while the dynamic file changes, so that two steps never lose each other's value.
    dynamic: Mutex<()>,
    /// What the newest start was found to lack.
    pub(super) provided: Mutex<Option<Provided>>,
}

/// What an orderly stop left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FinalPosition {
    /// Where the shutdown checkpoint begins: a standby that states at least this holds every commit.
    pub position: WalPosition,
}

/// Between two looks at something that changes within milliseconds.
const POLL: Duration = Duration::from_millis(3);
/// The server's limit for a statement on the kept connection; callers wait less.
const KEPT_STATEMENT_LIMIT: Duration = Duration::from_secs(10);
/// How long letting standbys in again may take, after a change that failed.
const READMIT_LIMIT: Duration = Duration::from_secs(2);
/// How long filling a WAL segment ahead of a stop may take: at 16 MB it takes some 0.1 s, at the 1 GB that PostgreSQL allows it is
/// left off midway.
const FILL_LIMIT: Duration = Duration::from_secs(3);
/// How long standbys may take to replay the checkpoint ahead of a stop.
const REPLAY_LIMIT: Duration = Duration::from_secs(1);
/// After this, a WAL receiver that has not gone by itself is told to (L9).
const RECEIVER_TERM_AFTER: Duration = Duration::from_millis(50);

impl Postgres {
    /// Makes the adapter; touches nothing.
    pub fn new(setup: PostgresSetup) -> Self {
        Self { setup, kept: tokio::sync::Mutex::new(None), dynamic: Mutex::new(()), provided: Mutex::new(None) }
    }

    /// Returns where its files are.
    pub fn layout(&self) -> &Layout {
        &self.setup.layout
    }

    /// Returns its programs.
    pub fn programs(&self) -> &Programs {
        &self.setup.programs
    }

    /// Returns its settings.
    pub fn settings(&self) -> &StaticSettings {
        &self.setup.settings
    }

    /// Makes a new connection to the database `postgres`.
    pub async fn new_session(&self, limit: Duration) -> Result<Session, PgError> {
        Session::open(&self.setup.layout, self.setup.settings.port, "postgres", limit).await
    }

    /// Returns the postmaster's process id, where one runs.
    pub fn postmaster(&self) -> Option<u32> {
        let text = fs::read_to_string(self.setup.layout.pgdata.join("postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        // A file left by a crash may name somebody else by now.
        works_in(pid, &self.setup.layout.pgdata).then_some(pid)
    }

    /// Runs a short query on the kept connection.
    pub(super) async fn ask<T>(
        &self,
        limit: Duration,
        query: impl AsyncFnOnce(&mut Session, Duration) -> Result<T, PgError>,
    ) -> Result<T, PgError> {
        let deadline = Instant::now() + limit;
        let mut kept = within("answer an earlier question", limit, async { Ok(self.kept.lock().await) }).await?;
        // Taken out while in use: a question given up midway takes its connection with it.
        let mut session = match kept.take() {
            Some(session) => session,
            // The server's own limit for a statement outlives this question, so it is a long one.
            None => within("accept a connection", limit, self.new_session(limit.max(KEPT_STATEMENT_LIMIT))).await?,
        };
        let result = query(&mut session, deadline.saturating_duration_since(Instant::now()).max(POLL)).await;
        if result.as_ref().err().is_none_or(|error| session.survives(error)) {
            *kept = Some(session);
        }
        result
    }

    pub(super) async fn observed(&self, limit: Duration) -> Result<Observed, PgError> {
        let first = self.ask(limit, async |session, limit| observe_with(session, self, limit).await).await;
        match first {
            // The kept connection may have died with an earlier PostgreSQL: once more on a new one.
            Err(PgError::Connect { .. } | PgError::Answer { .. } | PgError::Query { .. }) => {
                *self.kept.lock().await = None;
                self.ask(limit, async |session, limit| observe_with(session, self, limit).await).await
            }
            other => other,
        }
    }

    /// Writes the files of a start, as [`prepare_start`](Self::prepare_start) says; waits for the disk.
    pub(super) fn write_start(
        &self,
        follow: Option<&Follow>,
        members: &BTreeSet<NodeName>,
    ) -> Result<StartSpec, PgError> {
        let PostgresSetup { layout, programs, settings } = &self.setup;
        if self.postmaster().is_some() {
            return Err(PgError::Refused(
                "PostgreSQL is running: its files are prepared only while it is stopped".to_owned(),
            ));
        }
        layout.prepare()?;
        if !self.has_standby_signal() {
            layout.put_standby_signal()?;
        }
        for leftover in ["recovery.signal", "promote", "backup_label.old"] {
            remove_file(&layout.pgdata.join(leftover))?;
        }
        self.clear_auto_conf()?;
        history::tidy_placeholders(&layout.wal_dir())?;
        // a power cut may have brought one back
        self.remove_keys(None)?;
        let adopted = adopt::adopted(layout, settings.port);
        layout.write_changed(&layout.config_file(), render_config(layout, settings, adopted.as_ref()).as_bytes())?;
        let socket_locks = settings::socket_dirs(layout, adopted.as_ref())
            .iter()
            .map(|folder| folder.join(format!(".s.PGSQL.{}.lock", settings.port)))
            .collect();
        self.write_access_rules(members)?;
        let primary_conninfo = match follow {
            Some(follow) => self.admit(follow)?,
            None => String::new(),
        };
        self.change_dynamic(|dynamic| {
            dynamic.primary_conninfo = primary_conninfo;
            if dynamic.sync_names.is_empty() {
                // The checkpointer reads at its start whether commits wait at all; were that "no", it might still be so in the first
                // moments of a later promotion.
                dynamic.sync_names = SyncNames::Nobody.render();
            }
        })?;
        Ok(StartSpec {
            program: programs.path("postgres"),
            args: settings::start_args(layout),
            pgdata: layout.pgdata.clone(),
            socket_locks,
            log: layout.log_file(),
            run_as: layout.owner,
        })
    }

    /// Undoes what `ALTER SYSTEM` has set of hasup's settings, in a running PostgreSQL; returns whether it had set any.
    pub fn undo_alter_system(&self) -> Result<bool, PgError> {
        let was_set = self.clear_auto_conf()?;
        self.reload();
        Ok(was_set)
    }

    /// Takes lines out of `postgresql.auto.conf` that contradict hasup's settings: that file is read last and would win. Returns
    /// whether there were any.
    fn clear_auto_conf(&self) -> Result<bool, PgError> {
        let path = self.setup.layout.pgdata.join("postgresql.auto.conf");
        let Ok(text) = fs::read_to_string(&path) else { return Ok(false) };
        let (found, kept) = settings::without_owned(&text);
        if found.is_empty() {
            return Ok(false);
        }
        tracing::warn!(
            settings = found.join(", "),
            "postgresql.auto.conf set what hasup answers for; the lines were taken out"
        );
        self.setup.layout.write(&path, kept.as_bytes())?;
        Ok(true)
    }

    /// Writes who may connect and which certificates are members'. Takes effect with the next [`reload`](Self::reload).
    pub fn write_access_rules(&self, members: &BTreeSet<NodeName>) -> Result<(), PgError> {
        let PostgresSetup { layout, settings, .. } = &self.setup;
        let (mut hba, mut ident) = (render_hba(), render_ident(&settings.local_user, members));
        if layout.is_adopted() {
            let path = layout.pgdata.join("pg_hba.conf");
            let theirs = fs::read(&path).map_err(file_error("read", &path))?;
            hba = render_adopted_hba(&String::from_utf8_lossy(&theirs));
            // a map of users may be absent
            let theirs = fs::read(layout.pgdata.join("pg_ident.conf")).unwrap_or_default();
            ident.push_str(&String::from_utf8_lossy(&theirs));
        }
        layout.write_changed(&layout.hba_file(), hba.as_bytes())?;
        layout.write_changed(&layout.ident_file(), ident.as_bytes())
    }

    fn change_dynamic(&self, change: impl FnOnce(&mut Dynamic)) -> Result<(), PgError> {
        let _held = self.dynamic.lock();
        let path = self.setup.layout.dynamic_file();
        let mut dynamic = fs::read_to_string(&path).map(|text| parse_dynamic(&text)).unwrap_or_default();
        change(&mut dynamic);
        self.setup.layout.write_settings(&path, &render_dynamic(&dynamic))
    }

    /// Makes a running PostgreSQL read its settings again. Needs no connection; does nothing where none runs.
    pub fn reload(&self) {
        if let Some(postmaster) = self.postmaster() {
            send(postmaster, Signal::HUP);
        }
    }

    /// Gives the generation its own copy of the client key, takes every other generation's away, and returns the connection
    /// string that uses it. A start after a power cut makes the copy anew, so nothing here waits for the disk.
    ///
    /// The certificate is the node's own file: it is renewed while the connection string stays, and the key stays the same.
    fn admit(&self, follow: &Follow) -> Result<String, PgError> {
        let PostgresSetup { layout, settings, .. } = &self.setup;
        self.remove_keys(Some(follow.generation))?;
        layout.make_dir(&layout.generation_dir(follow.generation))?;
        let ssl = self.ssl_of(follow);
        let own = &settings.ssl.key;
        let content = zeroize::Zeroizing::new(fs::read(own).map_err(file_error("read", own))?);
        layout.write_volatile(&ssl.key, &content)?;
        Ok(follow.source.conninfo(follow.reader.role(), None, &follow.reader.application(), &ssl))
    }

    fn ssl_of(&self, follow: &Follow) -> SslPaths {
        let PostgresSetup { layout, settings, .. } = &self.setup;
        SslPaths {
            certificate: settings.ssl.certificate.clone(),
            key: layout.generation_dir(follow.generation).join(follow.reader.key_file()),
            ca: settings.ssl.ca.clone(),
        }
    }

    /// Returns whether this standby was told to follow the same generation at another place, or as another life of its data.
    pub fn follows_elsewhere(&self, follow: &Follow) -> bool {
        // the file is always whole, so nobody is waited for
        let told =
            fs::read_to_string(self.setup.layout.dynamic_file()).map(|text| parse_dynamic(&text)).unwrap_or_default();
        let reader = follow.reader;
        let wanted = follow.source.conninfo(reader.role(), None, &reader.application(), &self.ssl_of(follow));
        generation_of(&told.primary_conninfo) == Some(follow.generation) && told.primary_conninfo != wanted
    }

    /// Takes the keys of all generations away but for one. A power cut may undo that: each start does it again.
    fn remove_keys(&self, but: Option<Generation>) -> Result<(), PgError> {
        let folder = self.setup.layout.config_dir();
        for entry in fs::read_dir(&folder).map_err(file_error("list", &folder))?.flatten() {
            let generation =
                entry.file_name().to_str().and_then(|name| name.strip_prefix('g')?.parse().ok().map(Generation));
            if generation.is_some() && generation != but {
                remove_dir(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Follows the active node of a generation. The caller has made sure that the generation is not barred.
    pub fn follow(&self, follow: &Follow) -> Result<(), PgError> {
        let conninfo = self.admit(follow)?;
        self.change_dynamic(|dynamic| dynamic.primary_conninfo = conninfo)?;
        self.reload();
        Ok(())
    }

    /// Ends all help for the generations up to now (L9). The caller has made `barred` durable before, and stops PostgreSQL if
    /// this fails. Repeatable; also right where PostgreSQL does not run.
    pub async fn bar(&self, limit: Duration) -> Result<(), PgError> {
        let began = Instant::now();
        self.remove_keys(None)?;
        self.change_dynamic(|dynamic| dynamic.primary_conninfo.clear())?;
        let Some(postmaster) = self.postmaster() else { return Ok(()) };
        send(postmaster, Signal::HUP);
        let what = "let its WAL receiver go";
        loop {
            let receivers = receivers_of(postmaster);
            if receivers.is_empty() {
                break;
            }
            if began.elapsed() >= RECEIVER_TERM_AFTER {
                // Never SIGKILL: the postmaster would take the whole PostgreSQL down.
                receivers.iter().for_each(|pid| send(*pid, Signal::TERM));
            }
            if began.elapsed() >= limit {
                return Err(PgError::Timeout { what, limit });
            }
            sleep(POLL).await;
        }
        // A receiver that starts from here on finds no key; the view and the setting must agree.
        loop {
            match self.is_barred_in_view(limit.saturating_sub(began.elapsed()).max(POLL)).await {
                Ok(true) if receivers_of(postmaster).is_empty() => return Ok(()),
                // It lets nobody in before it is consistent: then what the processes say decides.
                Err(error) if error.is_not_ready() || error.is_exhausted() => return Ok(()),
                Err(_) if self.postmaster().is_none() => return Ok(()),
                Err(error) => return Err(error),
                Ok(_) if began.elapsed() >= limit => return Err(PgError::Timeout { what, limit }),
                Ok(_) => receivers_of(postmaster).iter().for_each(|pid| send(*pid, Signal::TERM)),
            }
            sleep(POLL).await;
        }
    }

    async fn is_barred_in_view(&self, limit: Duration) -> Result<bool, PgError> {
        let sql = "select current_setting('primary_conninfo') = '' and not exists (select from pg_stat_wal_receiver)";
        let what = "show its WAL receiver";
        match self.ask(limit, async |session, limit| session.value(what, sql, limit).await).await {
            Ok(answer) => Ok(answer == "t"),
            // somebody may have ended the kept connection since it was last used
            Err(_) => Ok(self.new_session(limit).await?.value(what, sql, limit).await? == "t"),
        }
    }

    /// Returns the end of valid log on disk (L10): only meant under a bar, when nothing is received any more.
    ///
    /// [`PgError::NotYet`] while it is not certain; never less than what was ever acknowledged. It may lie within a record:
    /// a restart then states the end of the last whole one, which is less by bytes that no commit ended in.
    pub async fn stated_position(&self, limit: Duration) -> Result<WalPosition, PgError> {
        let Observed { facts, segment_bytes } = match self.observed(limit).await {
            Err(error) if error.is_not_ready() => return Err(PgError::NotYet { why: "it is still reading its log" }),
            other => other?,
        };
        if !facts.in_recovery {
            return Err(PgError::NotYet { why: "it is a primary, whose log may still grow" });
        }
        if facts.receiver.is_some() || !facts.follows_nobody {
            return Err(PgError::NotYet { why: "it still follows a primary" });
        }
        if facts.receive_lsn.is_none() && !facts.ran_out_of_local_wal {
            return Err(PgError::NotYet { why: "it has not read all its log yet" });
        }
        position_of(&self.setup.layout.wal_dir(), facts.lsn, segment_bytes)
    }

    /// Promotes to the reserved timeline (L13) and puts `standby.signal` back. The caller holds an armed lease of its own
    /// generation and has set the standbys' names; `trigger` has its guard tell PostgreSQL, which refuses where it is not armed (L15).
    pub async fn promote(
        &self,
        reserved: Timeline,
        limit: Duration,
        trigger: impl Future<Output = Result<(), TriggerError>>,
    ) -> Result<(), PgError> {
        let layout = &self.setup.layout;
        let deadline = Instant::now() + limit;
        let wal_dir = layout.wal_dir();
        let histories = history::read_all(&wal_dir)?;
        let newest = history::newest(&histories).timeline;
        if newest >= reserved {
            return Err(PgError::Refused(format!(
                "timeline {reserved} is reserved for this promotion, but this node has seen timeline {newest}: it resigns"
            )));
        }
        history::lay_placeholders(&wal_dir, reserved)?;
        trigger.await.map_err(PgError::NotTriggered)?;
        let what = "promote";
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(PgError::Timeout { what, limit });
            }
            let answer =
                self.ask(left, async |session, limit| session.value(what, TIMELINE_IF_PRIMARY, limit).await).await;
            match answer {
                Ok(name) if !name.is_empty() => {
                    layout.put_standby_signal()?;
                    let made = name.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok()).map(Timeline);
                    let made = made.ok_or_else(|| PgError::Answer { what, detail: name.clone() })?;
                    return if made == reserved { Ok(()) } else { Err(PgError::WrongTimeline { reserved, made }) };
                }
                Err(error) if self.postmaster().is_none() => return Err(error),
                _ => sleep(POLL).await,
            }
        }
    }

    /// Names the standbys that commits wait for (L18): written, reloaded, seen by a new connection, and a checkpoint has
    /// returned, so that the checkpointer has read the names too. An error means "unknown": keep both sets.
    ///
    /// On a standby, whose checkpointer waits for nobody, the names are only written and seen.
    ///
    /// `may_mix` says whether WAL senders may stay while some have read the new names and others have not; where they may not, all are
    /// cut first and admitted again once the names are seen.
    pub async fn set_sync_names(&self, names: &SyncNames, may_mix: bool, limit: Duration) -> Result<(), PgError> {
        let set = self.change_sync_names(names, may_mix, limit).await;
        if set.is_err() && !may_mix {
            // nobody stays cut off for a change that did not come about; where this fails too, the next try admits them
            if let Err(error) = self.admit_standbys(READMIT_LIMIT).await {
                tracing::warn!(%error, "standbys may be cut off until the names are set");
            }
        }
        set
    }

    async fn change_sync_names(&self, names: &SyncNames, may_mix: bool, limit: Duration) -> Result<(), PgError> {
        let deadline = Instant::now() + limit;
        let left = || deadline.saturating_duration_since(Instant::now()).max(POLL);
        let rendered = names.render();
        let what = "tell its role";
        let is_standby = self
            .ask(left(), async |session, limit| session.value(what, "select pg_is_in_recovery()", limit).await)
            .await?;
        if is_standby == "t" {
            // it waits for nobody and has no standbys of its own to cut off
            return self.write_and_see(&rendered, limit).await;
        }
        // A session without a wait for standbys: what it changes must not hang on what it is about to change.
        let mut session = self.new_session(left()).await?;
        session.query("not wait for standbys", "set synchronous_commit = local", left()).await?;
        let shown = session.value("show its settings", "show synchronous_standby_names", left()).await?;
        if !may_mix && shown != rendered {
            self.cut_senders(&mut session, left()).await?;
        }
        self.write_and_see(&rendered, left()).await?;
        // a primary reads it again at any reload, and a file that the disk has lost meanwhile would name nobody
        self.setup.layout.make_durable(&self.setup.layout.dynamic_file())?;
        self.admit_standbys(left()).await?;
        session.query("make a checkpoint", "checkpoint", left()).await?;
        Ok(())
    }

    /// Writes the names as PostgreSQL reads them and returns once a new connection shows them.
    async fn write_and_see(&self, rendered: &str, limit: Duration) -> Result<(), PgError> {
        let deadline = Instant::now() + limit;
        self.clear_auto_conf()?;
        self.change_dynamic(|dynamic| rendered.clone_into(&mut dynamic.sync_names))?;
        self.reload();
        let mut seen = None;
        while Instant::now() < deadline {
            match self.shown_sync_names(deadline.saturating_duration_since(Instant::now()).max(POLL)).await {
                Ok(names) if names == rendered => return Ok(()),
                Ok(names) => seen = Some(names),
                Err(PgError::Timeout { .. }) => {}
                Err(error) => return Err(error),
            }
            sleep(POLL).await;
        }
        Err(match seen {
            None => PgError::Timeout { what: "show the standbys that it waits for", limit },
            Some(shown) => PgError::Refused(format!(
                "PostgreSQL still shows synchronous_standby_names `{shown}`, not `{rendered}`: both sets stay in force; \
                 look for `ALTER SYSTEM` or a command line that overrides it"
            )),
        })
    }

    async fn shown_sync_names(&self, limit: Duration) -> Result<String, PgError> {
        let mut fresh = self.new_session(limit).await?;
        fresh.value("show its settings", "show synchronous_standby_names", limit).await
    }

    /// Lets standbys connect, in case a former primary had cut them off when it died: what it wrote about roles is replicated.
    pub async fn admit_standbys(&self, limit: Duration) -> Result<(), PgError> {
        let what = "admit standbys";
        let mut session = self.new_session(limit).await?;
        let may =
            format!("select coalesce((select rolcanlogin from pg_roles where rolname = '{REPLICATION_ROLE}'), true)");
        if session.value(what, &may, limit).await? == "t" {
            return Ok(());
        }
        let sql = format!("set synchronous_commit = local; alter role {REPLICATION_ROLE} login");
        session.query(what, &sql, limit).await.map(drop)
    }

    async fn cut_senders(&self, session: &mut Session, limit: Duration) -> Result<(), PgError> {
        let what = "cut its standbys off";
        let deadline = Instant::now() + limit;
        session.query(what, &format!("alter role {REPLICATION_ROLE} nologin"), limit).await?;
        // copies under way count for nobody's commits and are left alone
        loop {
            let sql = "select count(pg_terminate_backend(pid)) from pg_stat_activity where backend_type = 'walsender' \
                       and application_name ~ '^n[0-9]+_i[0-9]+$'";
            if session.value(what, sql, limit).await? == "0" {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(PgError::Timeout { what, limit });
            }
            sleep(POLL).await;
        }
    }

    /// Writes the names without a running PostgreSQL, for its next start: before a promotion they must be there already.
    pub fn write_sync_names(&self, names: &SyncNames) -> Result<(), PgError> {
        self.change_dynamic(|dynamic| dynamic.sync_names = names.render())
    }

    /// Does ahead of an orderly stop what the stop would else do while nobody is served: writes what is in memory, and fills the
    /// present WAL segment but for its last part.
    ///
    /// With `archive_mode = on` the stop switches to a new segment: the rest of the present one is written, and streamed to every
    /// standby, before PostgreSQL ends. That is 8 MB on average, and half of the time that a stop takes. When this returns, standbys that
    /// stream have replayed what was done, so that a checkpoint of theirs makes the file of the segment after this one ready.
    pub async fn prepare_stop(&self, limit: Duration) -> Result<(), PgError> {
        let deadline = Instant::now() + limit;
        let left = || deadline.saturating_duration_since(Instant::now()).max(POLL);
        let mut session = self.new_session(left()).await?;
        session.query("make a checkpoint", "checkpoint", left()).await?;
        let filled_by = Instant::now() + FILL_LIMIT.min(left());
        while Instant::now() < filled_by && session.value("fill its log", FILL_SEGMENT, left()).await? == "t" {
            // commits of others pass between two parts
            sleep(POLL).await;
        }
        session.query("make a checkpoint", "checkpoint", left()).await?;
        let end = session.value("tell the end of its log", "select pg_current_wal_insert_lsn()", left()).await?;
        let replayed = format!(
            "select coalesce(min(replay_lsn) >= '{end}', true) from pg_stat_replication where state = 'streaming'"
        );
        let replayed_by = Instant::now() + REPLAY_LIMIT.min(left());
        while Instant::now() < replayed_by && session.value("tell what is replayed", &replayed, left()).await? != "t" {
            sleep(POLL).await;
        }
        Ok(())
    }

    /// Makes a checkpoint: on the source of a rewind, and on a standby ahead of a switchover.
    pub async fn checkpoint(&self, limit: Duration) -> Result<(), PgError> {
        self.new_session(limit).await?.query("make a checkpoint", "checkpoint", limit).await.map(drop)
    }

    /// Runs statements on a new connection, as the superuser.
    pub async fn run_sql(&self, what: &'static str, sql: &str, limit: Duration) -> Result<Rows, PgError> {
        self.new_session(limit).await?.query(what, sql, limit).await
    }

    /// Returns the final position after an orderly stop that the guard has carried out. Fails where it was no orderly stop: then
    /// nothing final is known.
    pub async fn final_position(&self) -> Result<FinalPosition, PgError> {
        let data = self.control_data().await?;
        if data.state != super::ControlState::ShutDown {
            return Err(PgError::NotYet {
                why: "it was not stopped in order, so its final position shows at the next start",
            });
        }
        Ok(FinalPosition { position: WalPosition { timeline: data.timeline, lsn: data.checkpoint } })
    }

    /// Returns the history of a timeline as this node has it.
    pub fn history(&self, timeline: Timeline) -> Result<Option<TimelineHistory>, PgError> {
        history::read(&self.setup.layout.wal_dir(), timeline)
    }

    /// Tells whether this node's log is at least at `lsn`, by the last observation.
    pub async fn has_replayed(&self, lsn: Lsn, limit: Duration) -> Result<bool, PgError> {
        Ok(self.observed(limit).await?.facts.replay_lsn.is_some_and(|replayed| replayed >= lsn))
    }
}

/// Writes a part of what the WAL segment still takes, and tells whether more is to be written: not while a standby that streams is
/// behind by two parts (its commits would wait behind the filling), nor when only the last part is left.
const FILL_SEGMENT: &str = "\
select case
  when free <= 1048576 then false
  when behind > 1048576 then true
  else pg_logical_emit_message(false, 'hasup', repeat(' ', least(524288, free - 1048576)::int)) is not null
end
from (select size - pg_wal_lsn_diff(lsn, '0/0') % size as free,
    (select coalesce(max(pg_wal_lsn_diff(lsn, flush_lsn)), 0) from pg_stat_replication where state = 'streaming') as behind
  from (select pg_current_wal_insert_lsn() as lsn, pg_size_bytes(current_setting('wal_segment_size')) as size) as log) as segment";

const TIMELINE_IF_PRIMARY: &str =
    "select case when pg_is_in_recovery() then '' else pg_walfile_name(pg_current_wal_lsn()) end";

/// Returns the WAL receivers among the postmaster's children, and those so young that they do not say yet what they are.
fn receivers_of(postmaster: u32) -> Vec<u32> {
    let children = children_of(postmaster).into_iter();
    children.filter(|(_, line)| is_receiver_or_unnamed(line)).map(|(pid, _)| pid).collect()
}

/// PostgreSQL's processes rename themselves `postgres: …` right after the fork; until then they bear the postmaster's line.
fn is_receiver_or_unnamed(command_line: &str) -> bool {
    match command_line.strip_prefix("postgres: ") {
        // With `cluster_name` set, that comes first.
        Some(title) => title.starts_with("walreceiver") || title.contains(": walreceiver"),
        None => Path::new(command_line.split(' ').next().unwrap_or_default()).file_name() == Some("postgres".as_ref()),
    }
}

async fn within<T>(
    what: &'static str,
    limit: Duration,
    work: impl Future<Output = Result<T, PgError>>,
) -> Result<T, PgError> {
    tokio::time::timeout(limit, work).await.map_err(|_| PgError::Timeout { what, limit })?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receivers_are_told_from_other_processes() {
        for yes in [
            "postgres: walreceiver streaming 0/3000000",
            "postgres: main: walreceiver",
            "/usr/lib/postgresql/15/bin/postgres -D /x",
        ] {
            assert!(is_receiver_or_unnamed(yes), "{yes}");
        }
        for no in ["postgres: startup recovering 000000010000000000000003", "postgres: checkpointer", "/bin/true"] {
            assert!(!is_receiver_or_unnamed(no), "{no}");
        }
    }
}
