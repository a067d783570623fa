//! Carrying out a plan's steps, each in phases that a crash may fall between.
//!
//! Steps are carried out one after another; what may take long goes on by itself, in the one place that there is for that. Orders of an older generation than the newest record
//! applied are refused, but for those that end a role.

use hasup::ha::durable::{DataState, Durable};
use hasup::ha::plan::Step;
use hasup::ha::rules::Mutation;
use hasup::ha::view::{CleanStop, Followed, Job, SyncNames};
use hasup::types::{DataIncarnation, Generation};

use crate::event::Event;
use crate::faults::Trigger;
use crate::node::{DiskWrite, Running, Work};
use crate::postgres::Run;
use crate::rng::{MS, Time};
use crate::world::World;

/// How long a first write may wait for the standbys before other work has its turn.
const FIRST_WRITE_LIMIT: Time = 1_000 * MS;

/// How a step goes on.
enum Next {
    /// Looks again after this long.
    After(Time),
    /// It is done: the next one.
    Done,
    /// It failed: the round ends.
    Failed,
}

impl World {
    /// Goes on with the present step.
    pub fn step(&mut self, node: usize, token: u64) {
        let stalled = self.nodes[node].stalled_until;
        let epoch = self.nodes[node].daemon_epoch;
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        if daemon.step_token != token {
            return;
        }
        if self.now < stalled {
            let delay = stalled - self.now;
            self.after(delay, Event::Step { node, epoch, token });
            return;
        }
        let Some(acting) = &mut daemon.acting else { return };
        let Some(step) = acting.steps.front().cloned() else {
            self.rest(node, MS);
            return;
        };
        let phase = acting.phase;
        acting.phase += 1;
        let since = acting.since;
        let next = if self.is_stale(node, &step) {
            self.note(|| format!("node {} refuses {step:?}", node + 1));
            Next::Failed
        } else {
            self.advance(node, &step, phase, self.now - since)
        };
        let now = self.now;
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        let Some(acting) = &mut daemon.acting else { return };
        let delay = match next {
            Next::After(delay) => delay,
            Next::Done => {
                acting.steps.pop_front();
                acting.phase = 0;
                acting.since = now;
                if acting.steps.is_empty() {
                    daemon.has_news = true;
                    self.rest(node, MS);
                    return;
                }
                MS / 10
            }
            Next::Failed => {
                daemon.has_news = false;
                self.rest(node, 10 * MS);
                return;
            }
        };
        self.after(delay, Event::Step { node, epoch, token });
    }

    /// Whether an order is of an older generation than what this node has applied.
    fn is_stale(&self, node: usize, step: &Step) -> bool {
        let generation = match step {
            Step::ArmGuard { generation, .. }
            | Step::SetNames { generation, .. }
            | Step::Promote { generation, .. }
            | Step::PrepareSwitchover { generation }
            | Step::ProbeWrite { generation }
            | Step::Rejoin { generation, .. }
            | Step::CopyDatabase { generation, .. }
            | Step::Fetch { under: generation, .. }
            | Step::Follow(Followed { generation, .. }) => *generation,
            Step::PersistAcknowledged { .. }
            | Step::PersistLeaseSpan { .. }
            | Step::PersistBar { .. }
            | Step::CutReceiver { .. }
            | Step::PersistResignation { .. }
            | Step::Fence { .. }
            | Step::Disarm { .. }
            | Step::PutStandbySignal
            | Step::StartPostgres
            | Step::CheckLineage { .. }
            | Step::PersistIntact
            | Step::StopCleanly { .. } => return false,
        };
        let daemon = self.nodes[node].daemon.as_ref();
        let newest = daemon.and_then(|daemon| daemon.record.as_ref()).map(|record| record.assignment.generation);
        newest.is_some_and(|newest| newest > generation) && !self.broken(Mutation::AcceptStale)
    }

    fn disk_delay(&mut self, node: usize) -> Time {
        if self.now < self.nodes[node].slow_disk_until {
            self.rng.millis(50, 1_500)
        } else {
            self.rng.micros(200, 6_000)
        }
    }

    /// Writes durable facts: the first phase plans, the second finds them on disk.
    fn persist(&mut self, node: usize, phase: u32, is_synced: bool, change: impl FnOnce(&mut Durable)) -> Next {
        if phase == 0 && is_synced {
            let delay = self.disk_delay(node);
            let Some(daemon) = &mut self.nodes[node].daemon else { return Next::Failed };
            let mut durable = daemon.durable.clone();
            change(&mut durable);
            daemon.writing = Some(DiskWrite { durable });
            return Next::After(delay);
        }
        let host = &mut self.nodes[node];
        let Some(daemon) = &mut host.daemon else { return Next::Failed };
        if is_synced {
            let Some(writing) = daemon.writing.take() else { return Next::Failed };
            daemon.durable = writing.durable.clone();
            host.disk = writing.durable;
        } else {
            change(&mut daemon.durable);
        }
        if self.raft.leader == Some(node) {
            self.wake_leader(MS);
        }
        Next::Done
    }

    fn advance(&mut self, node: usize, step: &Step, phase: u32, spent: Time) -> Next {
        match step {
            Step::PersistAcknowledged { generation } => self.persist(node, phase, true, |durable| {
                durable.acknowledged = durable.acknowledged.max(*generation);
            }),
            Step::PersistLeaseSpan { span } => self.persist(node, phase, true, |durable| durable.lease_span = *span),
            Step::PersistBar { generation } => {
                let is_synced = !self.broken(Mutation::BarNotDurable);
                let next =
                    self.persist(node, phase, is_synced, |durable| durable.barred = durable.barred.max(*generation));
                if matches!(next, Next::Done) {
                    self.trigger(Trigger::Barred, node);
                }
                next
            }
            Step::PersistResignation { generation, reason } => {
                let is_synced = !self.broken(Mutation::ResignationNotDurable);
                self.persist(node, phase, is_synced, |durable| {
                    durable.resigned = durable.resigned.max(*generation);
                    durable.resign_reason = Some(reason.clone());
                })
            }
            Step::PersistIntact => self.persist(node, phase, true, |durable| durable.data = DataState::Intact),
            Step::CutReceiver { .. } => self.cut_receiver(node, phase, spent),
            Step::Fence { .. } => {
                if phase == 0 {
                    let delay = self.rng.millis(1, 30);
                    self.postgres_kill(node, delay);
                }
                if self.nodes[node].pg.run == Run::Stopped { Next::Done } else { Next::After(3 * MS) }
            }
            Step::Disarm { generation } => {
                let guard = &mut self.nodes[node].guard;
                if guard.armed == Some(*generation) {
                    guard.armed = None;
                    guard.has_fence_begun = false;
                    guard.has_postmaster_died = false;
                }
                Next::Done
            }
            Step::PutStandbySignal => {
                if phase == 0 {
                    return Next::After(self.disk_delay(node));
                }
                self.nodes[node].pg.has_standby_signal = true;
                Next::Done
            }
            Step::StartPostgres => {
                if !self.nodes[node].guard.is_alive || self.nodes[node].pg.run != Run::Stopped {
                    return Next::Failed;
                }
                self.postgres_start(node);
                self.begin(node, Job::Starting, Work::Start, 5 * MS);
                Next::Done
            }
            Step::Follow(followed) => self.follow(node, phase, *followed),
            Step::Fetch { from, under } => self.fetch(node, phase, Followed { node: *from, generation: *under }),
            Step::CheckLineage { node: active, promoted } => {
                let work = Work::Lineage { node: self.index_of(*active), promoted: *promoted };
                let delay = self.rng.millis(5, 60);
                self.begin(node, Job::CheckingLineage, work, delay);
                Next::Done
            }
            Step::Rejoin { from, .. } | Step::CopyDatabase { from, .. } => {
                let from = self.index_of(*from);
                if phase == 0
                    && !(self.passes(node, from) && self.passes(from, node) && self.nodes[from].pg.is_primary())
                {
                    // nothing is destroyed for a source that is not there
                    self.pause(node, Job::Rebuilding, "the active node cannot be copied from");
                    return Next::Failed;
                }
                if phase < 2 {
                    let rebuilt = |durable: &mut Durable| {
                        let is_new = durable.data != DataState::Rebuilding { until: None };
                        durable.data = DataState::Rebuilding { until: None };
                        durable.incarnation = DataIncarnation(durable.incarnation.0 + u64::from(is_new));
                    };
                    return match self.persist(node, phase, true, rebuilt) {
                        Next::Done => Next::After(MS),
                        other => other,
                    };
                }
                let work = Work::Rebuild { from, copy: None };
                if self.begin(node, Job::Rebuilding, work, 30 * MS) {
                    self.postgres_kill(node, 10 * MS);
                }
                Next::Done
            }
            Step::ArmGuard { generation, deadline } => {
                let host = &mut self.nodes[node];
                let guard = &mut host.guard;
                if !guard.is_alive || guard.has_fence_begun || guard.armed > Some(*generation) {
                    return Next::Failed;
                }
                let former = guard.armed.map(|_| guard.deadline);
                guard.armed = Some(*generation);
                guard.deadline = former.map_or(*deadline, |former| former.max(*deadline));
                if let Some(daemon) = &mut host.daemon {
                    daemon.acted_under = daemon.acted_under.max(*generation);
                }
                self.note(|| format!("node {} arms its guard for generation {generation}", node + 1));
                self.extend(node);
                crate::invariants::on_lease(self, node);
                self.plan_fence(node);
                Next::Done
            }
            Step::SetNames { names, .. } if self.nodes[node].pg.run == Run::Primary => {
                self.begin(node, Job::SettingNames, Work::SetNames { names: names.clone(), phase: 0 }, MS);
                Next::Done
            }
            Step::SetNames { names, .. } => self.set_names(node, phase, names),
            Step::Promote { generation, timeline } => {
                let delay = if self.rng.chance(20) {
                    self.rng.millis(1_000, 12_000)
                } else if self.rng.chance(100) {
                    self.rng.millis(100, 600)
                } else {
                    self.rng.millis(15, 60)
                };
                // through the guard, which refuses what it is not armed for
                if self.nodes[node].guard.armed != Some(*generation) && !self.broken(Mutation::PromoteWithoutLease) {
                    return Next::Failed;
                }
                let pg = &mut self.nodes[node].pg;
                if pg.run != Run::Standby {
                    return if matches!(pg.run, Run::Promoting | Run::Primary) { Next::Done } else { Next::Failed };
                }
                pg.run = Run::Promoting;
                pg.promoting_to = timeline.0;
                pg.promoted = *generation;
                let epoch = pg.epoch;
                crate::invariants::on_promoting(self, node, *generation);
                self.after(delay, Event::Promoted { node, epoch });
                Next::Done
            }
            Step::PrepareSwitchover { generation } => {
                if phase == 0 {
                    return Next::After(self.rng.millis(10, 200));
                }
                if let Some(daemon) = &mut self.nodes[node].daemon {
                    daemon.checkpointed_for = Some(*generation);
                }
                Next::Done
            }
            Step::StopCleanly { generation } => {
                if !self.nodes[node].pg.is_primary() {
                    return Next::Failed;
                }
                let work = Work::StopCleanly { generation: *generation, since: self.now };
                if self.begin(node, Job::StoppingCleanly, work, 10 * MS) {
                    self.nodes[node].pg.is_stopping = true;
                }
                Next::Done
            }
            Step::ProbeWrite { .. } => {
                let pg = &self.nodes[node].pg;
                if !pg.is_primary() || pg.is_stopping {
                    return Next::Failed;
                }
                let lsn = self.insert(node);
                self.begin(node, Job::ProbingWrite, Work::ProbeWrite { lsn, since: self.now }, 5 * MS);
                Next::Done
            }
        }
    }

    /// L9: credentials and `primary_conninfo` first, then the receiver itself, which may hang.
    fn cut_receiver(&mut self, node: usize, phase: u32, spent: Time) -> Next {
        let limit = crate::node::span(self.timing.bar_limit);
        match phase {
            0 => return Next::After(self.disk_delay(node)),
            1 => {
                let local = self.local(node);
                let host = &mut self.nodes[node];
                host.pg.follows = None;
                if std::mem::take(&mut host.pg.is_fetching)
                    && let Some(daemon) = &mut host.daemon
                {
                    daemon.fetch_ended_at = Some(local);
                }
                return Next::After(self.rng.micros(100, 2_000));
            }
            2 => {
                let delay = if self.rng.chance(40) {
                    limit + self.rng.millis(500, 3_000)
                } else if self.rng.chance(200) {
                    self.rng.millis(20, 80)
                } else {
                    self.rng.millis(1, 15)
                };
                let epoch = self.nodes[node].pg.epoch;
                self.after(delay, Event::ReceiverGone { node, epoch });
            }
            _ => {}
        }
        if self.nodes[node].pg.receiver.is_none() {
            return Next::Done;
        }
        if spent > limit {
            self.postgres_kill(node, MS);
        }
        Next::After(5 * MS)
    }

    fn follow(&mut self, node: usize, phase: u32, followed: Followed) -> Next {
        let barred = self.nodes[node].daemon.as_ref().map_or(Generation(0), |daemon| daemon.durable.barred);
        if followed.generation <= barred && !self.broken(Mutation::AcceptStale) {
            return Next::Failed;
        }
        self.receive_from(node, phase, followed, false)
    }

    fn fetch(&mut self, node: usize, phase: u32, followed: Followed) -> Next {
        let local = self.local(node);
        let Some(daemon) = &mut self.nodes[node].daemon else { return Next::Failed };
        if daemon.durable.barred.max(daemon.durable.resigned) < followed.generation {
            return Next::Failed;
        }
        daemon.fetch_moved_at = Some(local);
        if phase == 1 {
            self.trigger(Trigger::Fetches, node);
        }
        self.receive_from(node, phase, followed, true)
    }

    fn receive_from(&mut self, node: usize, phase: u32, followed: Followed, is_fetching: bool) -> Next {
        if phase == 0 {
            return Next::After(self.disk_delay(node));
        }
        let pg = &mut self.nodes[node].pg;
        pg.follows = Some(followed);
        pg.is_fetching = is_fetching;
        let epoch = pg.epoch;
        if pg.receiver.is_some() {
            // a changed setting restarts the receiver, sooner or later
            let delay = if self.rng.chance(50) { self.rng.millis(100, 2_000) } else { self.rng.millis(1, 20) };
            self.after(delay, Event::ReceiverGone { node, epoch });
        }
        let delay = self.rng.millis(1, 10);
        self.plan_connect(node, delay);
        Next::Done
    }

    /// L18: cut where old and new copies may not mix, set, reload, see it in a new connection, admit, checkpoint. A standby needs no
    /// checkpoint: its commits are to wait ever since it started.
    fn set_names(&mut self, node: usize, phase: u32, names: &SyncNames) -> Next {
        let pg = &self.nodes[node].pg;
        if !matches!(pg.run, Run::Standby | Run::Promoting | Run::Primary) {
            return Next::Failed;
        }
        let is_primary = pg.run == Run::Primary;
        match phase {
            0 if pg.names == *names => Next::After(MS),
            0 => {
                if is_primary && (!pg.names.may_mix_with(names) || !pg.admits) {
                    self.nodes[node].pg.admits = false;
                    for stream in 0..self.streams.len() {
                        if self.streams[stream].primary == node {
                            self.sender_ends(stream);
                        }
                    }
                }
                Next::After(self.rng.millis(1, 5))
            }
            1 => {
                if pg.names != *names {
                    // neither these nor those before are in effect until all have read them
                    if let Some(daemon) = &mut self.nodes[node].daemon {
                        daemon.names = None;
                    }
                    self.names_reload(node, names);
                }
                Next::After(self.rng.millis(1, 8))
            }
            2 => {
                // a new connection shows it, so that every sender forked from now on has it
                self.nodes[node].pg.admits = true;
                Next::After(2 * MS)
            }
            _ if pg.names_read || !is_primary => {
                self.names_are_in_effect(node);
                Next::Done
            }
            // the checkpoint takes as long as it takes
            phase if phase > 60_000 => Next::Failed,
            _ => Next::After(5 * MS),
        }
    }

    // ---- long work ----

    /// Begins long work, if its one place is free, or held only by what some work failed with; returns whether it did.
    fn begin(&mut self, node: usize, job: Job, work: Work, delay: Time) -> bool {
        let running = self.nodes[node].daemon.as_ref().and_then(|daemon| daemon.running.as_ref());
        if running.is_some_and(|running| !matches!(running.job, Job::Failed { .. })) {
            return false;
        }
        self.planned_jobs += 1;
        let number = self.planned_jobs;
        let epoch = self.nodes[node].daemon_epoch;
        if let Some(daemon) = &mut self.nodes[node].daemon {
            daemon.running = Some(Running { job, work, number });
        }
        self.after(delay, Event::Job { node, epoch, job: number });
        true
    }

    fn end_job(&mut self, node: usize) {
        if let Some(daemon) = &mut self.nodes[node].daemon {
            daemon.running = None;
        }
        self.news(node);
    }

    /// Ends the running work with an error.
    fn fail_job(&mut self, node: usize, error: &str) {
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        let Some(running) = daemon.running.take() else { return };
        self.pause(node, running.job, error);
    }

    /// Notes that `work` failed: its next try waits.
    fn pause(&mut self, node: usize, work: Job, error: &str) {
        let pause = self.rng.millis(200, 600);
        let retry_at = self.local(node) + std::time::Duration::from_nanos(pause);
        let failed = Job::Failed { work: Box::new(work), error: error.to_owned(), retry_at };
        self.begin(node, failed, Work::Pause, pause);
        self.news(node);
    }

    /// Goes on with long work.
    pub fn job(&mut self, node: usize, number: u64) {
        let Some(daemon) = &self.nodes[node].daemon else { return };
        let Some(running) = daemon.running.as_ref().filter(|running| running.number == number) else { return };
        let epoch = self.nodes[node].daemon_epoch;
        let again = |delay: Time| (delay, Event::Job { node, epoch, job: number });
        let (delay, event) = match running.work.clone() {
            Work::Pause => return self.end_job(node),
            Work::Start => match self.nodes[node].pg.run {
                Run::Starting => again(5 * MS),
                _ => return self.end_job(node),
            },
            Work::SetNames { names, phase } => match self.set_names(node, phase, &names) {
                Next::After(delay) => {
                    if let Some(running) = self.nodes[node].daemon.as_mut().and_then(|daemon| daemon.running.as_mut()) {
                        running.work = Work::SetNames { names, phase: phase + 1 };
                    }
                    again(delay)
                }
                Next::Done => return self.end_job(node),
                Next::Failed => return self.fail_job(node, "the names are not in effect"),
            },
            Work::ProbeWrite { lsn, since } => {
                let pg = &self.nodes[node].pg;
                if !pg.is_primary() || self.now - since > FIRST_WRITE_LIMIT {
                    return self.fail_job(node, "no write came through");
                }
                if pg.acknowledged < lsn {
                    again(5 * MS)
                } else {
                    if let Some(daemon) = &mut self.nodes[node].daemon {
                        daemon.has_written = true;
                    }
                    return self.end_job(node);
                }
            }
            Work::StopCleanly { generation, since } => {
                let pg = &self.nodes[node].pg;
                let end = pg.wal.end();
                let is_flushed = pg.insert == end;
                let all = self
                    .streams
                    .iter()
                    .filter(|stream| stream.primary == node && stream.sender)
                    .all(|stream| stream.flushed >= Some(end));
                if pg.run == Run::Stopped {
                    return self.end_job(node);
                } else if is_flushed && all {
                    let at = self.local(node);
                    let standbys = self.streams.iter().filter(|stream| stream.primary == node && stream.sender).count();
                    if let Some(daemon) = &mut self.nodes[node].daemon {
                        daemon.cleanly_stopped = Some(CleanStop { generation, at, standbys });
                    }
                    self.postgres_dead(node);
                    return self.end_job(node);
                } else if self.now - since > crate::node::span(self.timing.clean_stop_limit) {
                    self.postgres_kill(node, 5 * MS);
                }
                again(10 * MS)
            }
            Work::Lineage { node: active, promoted } => {
                let pg = &self.nodes[active].pg;
                let reaches =
                    self.passes(node, active) && self.passes(active, node) && self.nodes[active].frozen.is_none();
                if !reaches || !pg.is_primary() || pg.promoted != promoted {
                    return self.fail_job(node, "the active node's history cannot be read");
                }
                let own = &self.nodes[node].pg.wal;
                let follows = own.is_prefix_of(&pg.wal);
                let verdict =
                    if follows { hasup::ha::view::Lineage::Follows } else { hasup::ha::view::Lineage::Diverged };
                if let Some(daemon) = &mut self.nodes[node].daemon {
                    daemon.lineage = Some((promoted, verdict));
                }
                return self.end_job(node);
            }
            Work::Rebuild { from, copy } => {
                if self.nodes[node].pg.run != Run::Stopped {
                    let (delay, event) = again(10 * MS);
                    return self.after(delay, event);
                }
                let pg = &self.nodes[from].pg;
                let reaches = self.passes(node, from) && self.passes(from, node) && self.nodes[from].frozen.is_none();
                if !reaches || !pg.is_primary() {
                    return self.fail_job(node, "the active node cannot be copied from");
                }
                match copy {
                    None => {
                        let (start, epoch) = (pg.wal.end(), pg.epoch);
                        let seen = pg.wal.position(&self.instances);
                        let until = self.now + self.rng.millis(200, 2_500);
                        self.nodes[node].pg.half_made = Some(seen);
                        if let Some(running) =
                            self.nodes[node].daemon.as_mut().and_then(|daemon| daemon.running.as_mut())
                        {
                            running.work = Work::Rebuild { from, copy: Some((start, epoch, until)) };
                        }
                        again(50 * MS)
                    }
                    Some((_, epoch, _)) if pg.epoch != epoch => {
                        return self.fail_job(node, "the active node's PostgreSQL went away");
                    }
                    Some((start, _, until)) if self.now >= until => {
                        self.finish_copy(node, from, start);
                        return self.end_job(node);
                    }
                    Some(_) => again(100 * MS),
                }
            }
        };
        self.after(delay, event);
    }

    /// The copy is complete: it answers once that it has streamed past where the source's log ends now.
    fn finish_copy(&mut self, node: usize, from: usize, start: u64) {
        let source = &self.nodes[from].pg;
        let (wal, until, history_files) = (source.wal.prefix(start), source.wal.end(), source.history_files);
        let host = &mut self.nodes[node];
        host.pg.wal = wal;
        host.pg.insert = start;
        host.pg.half_made = None;
        host.pg.follows = None;
        host.pg.has_standby_signal = true;
        host.pg.is_readable = true;
        host.pg.history_files = host.pg.history_files.max(history_files);
        let data = DataState::Rebuilding { until: Some(hasup::types::Lsn(until)) };
        host.disk.data = data;
        if let Some(daemon) = &mut host.daemon {
            daemon.durable.data = data;
            daemon.lineage = None;
        }
    }
}
