//! A node's control loop: look, decide, take the stance, carry out the steps one after another.

use hasup::ha::decide::decide;
use hasup::ha::pulse::PulseCore;
use hasup::ha::record::MemberKind;
use hasup::ha::timing::Timing;
use hasup::ha::view::{GuardView, NamesInEffect, NodeView, PostgresView};
use hasup::types::{BootId, ClusterGeneration, Lsn};

use crate::event::Event;
use crate::node::{Acting, Daemon, incarnation_of};
use crate::postgres::Run;
use crate::rng::{MS, Time};
use crate::world::World;

/// Two looks are at least this far apart.
const PACE: Time = 4 * MS;

impl World {
    /// Something happened that the control loop of `node` should look at.
    pub fn news(&mut self, node: usize) {
        let now = self.now;
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        if daemon.is_deciding || daemon.acting.is_some() {
            daemon.has_news = true;
            return;
        }
        let delay = (daemon.looked_at + PACE).saturating_sub(now).max(MS / 5);
        self.plan_look(node, delay);
    }

    /// Plans a look, unless an earlier one is planned.
    fn plan_look(&mut self, node: usize, delay: Time) {
        let at = self.now + delay;
        let epoch = self.nodes[node].daemon_epoch;
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        if daemon.look_at <= at {
            return;
        }
        daemon.look_at = at;
        daemon.look_token += 1;
        let token = daemon.look_token;
        self.after(delay, Event::Look { node, epoch, token });
    }

    /// Starts a daemon where none runs.
    pub fn daemon_start(&mut self, node: usize) {
        let host = &self.nodes[node];
        if !host.is_powered || host.daemon.is_some() {
            return;
        }
        let epoch = host.daemon_epoch;
        let local = self.local(node);
        let mut boot = [0_u8; 16];
        boot[0] = u8::try_from(host.boots % 251).unwrap_or(0);
        let mut core = PulseCore::new(
            host.id,
            ClusterGeneration(1),
            BootId(boot),
            incarnation_of(node, epoch),
            Timing::default(),
            host.disk.lease_span,
            local,
        );
        core.set_rules(self.rules);
        let daemon = Daemon::new(core, host.disk.clone());
        self.nodes[node].daemon = Some(daemon);
        if !self.nodes[node].guard.is_alive {
            self.after(0, Event::GuardBack { node });
        }
        let is_member = self.raft.newest().members.contains_key(&self.nodes[node].id);
        if is_member {
            self.take_applied(node);
        }
        self.note(|| format!("the daemon of node {} starts", node + 1));
        let delay = self.rng.micros(100, 3_000);
        self.after(delay, Event::Pulse { node, epoch });
        self.plan_look(node, delay + MS);
    }

    /// The control loop looks at everything.
    pub fn look(&mut self, node: usize, token: u64) {
        let now = self.now;
        let stalled = self.nodes[node].stalled_until;
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        if daemon.look_token != token || daemon.acting.is_some() || daemon.is_deciding {
            return;
        }
        daemon.look_at = Time::MAX;
        if now < stalled {
            self.plan_look(node, stalled - now);
            return;
        }
        daemon.is_deciding = true;
        daemon.has_news = false;
        daemon.looked_at = now;
        daemon.core.set_timing(daemon.timing.clone());
        let view = Box::new(self.node_view(node));
        let epoch = self.nodes[node].daemon_epoch;
        let delay = if self.rng.chance(20) { self.rng.millis(5, 150) } else { self.rng.micros(200, 2_500) };
        self.after(delay, Event::Decide { node, epoch, view });
    }

    /// The control loop decides on what it saw.
    pub fn decide(&mut self, node: usize, view: NodeView) {
        let epoch = self.nodes[node].daemon_epoch;
        if self.now < self.nodes[node].stalled_until {
            let delay = self.nodes[node].stalled_until - self.now;
            self.after(delay, Event::Decide { node, epoch, view: Box::new(view) });
            return;
        }
        let mut plan = decide(&view);
        if let Some(daemon) = &mut self.nodes[node].daemon {
            daemon.resigning.clone_from(&plan.resigning);
        }
        let local = self.local(node);
        let now = self.now;
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        daemon.is_deciding = false;
        daemon.report = plan.stance.report.clone();
        daemon.serves_until = plan.serves_until;
        let round = daemon.core.set_stance(local, plan.stance.clone());
        plan.heed_promise(view.pulse.promise_end, daemon.core.promise_end());
        let has_steps = !plan.steps.is_empty();
        if self.trace.is_some() {
            let waits: Vec<String> = plan.waiting_on.iter().map(ToString::to_string).collect();
            let mut text = format!("node {} is {}", node + 1, plan.state);
            if has_steps {
                text += &format!(": {:?}", plan.steps);
            }
            if !waits.is_empty() {
                text += &format!(", waiting on {}", waits.join("; "));
            }
            if let Some(stated) = plan.stated {
                text += &format!(", states {stated}");
            }
            if self.nodes[node].told != text {
                self.nodes[node].told.clone_from(&text);
                self.note(|| text);
            }
        }
        self.extend(node);
        crate::invariants::on_decided(self, node);
        self.send(node, round);
        let look_again = self.until(node, plan.look_again).max(MS);
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        if has_steps {
            daemon.acting = Some(Acting { steps: plan.steps.into(), phase: 0, since: now });
            daemon.step_token += 1;
            let token = daemon.step_token;
            self.after(0, Event::Step { node, epoch, token });
        } else {
            self.rest(node, look_again);
        }
    }

    /// Waits for news, or for `look_again` at the latest.
    pub fn rest(&mut self, node: usize, look_again: Time) {
        let Some(daemon) = &mut self.nodes[node].daemon else { return };
        daemon.acting = None;
        if std::mem::take(&mut daemon.has_news) {
            self.news(node);
        } else {
            self.plan_look(node, look_again);
        }
    }

    /// Gathers what the node knows.
    fn node_view(&self, node: usize) -> NodeView {
        let host = &self.nodes[node];
        let daemon = host.daemon.as_ref().expect("only a running daemon looks");
        let pg = &host.pg;
        let is_witness = host.kind == MemberKind::Witness;
        let answers = matches!(pg.run, Run::Standby | Run::Promoting | Run::Primary);
        let postgres = if is_witness {
            PostgresView::default()
        } else {
            PostgresView {
                in_recovery: answers.then(|| pg.run != Run::Primary),
                follows: pg.follows,
                has_source_moved: false,
                has_receiver: pg.receiver.is_some(),
                is_streaming: pg.receiver.is_some_and(|stream| self.streams[stream].has_caught_up()),
                position: self.position_of(node),
                fetch_moved_at: daemon.fetch_moved_at.filter(|_| pg.is_fetching),
                fetch_ended_at: daemon.fetch_ended_at,
                has_standby_signal: pg.has_standby_signal,
                timeline: self.timeline_of(node),
                promoted_at: pg.is_primary().then_some(Lsn(pg.promoted_at)),
                names: daemon.names.clone().filter(|_| answers),
                standbys: if pg.is_primary() { self.standbys_of(node) } else { Default::default() },
                current: pg.is_primary().then(|| Lsn(pg.wal.end())),
                has_written: daemon.has_written,
                stalled_for: std::time::Duration::ZERO,
                checkpointed_for: daemon.checkpointed_for,
                cleanly_stopped: daemon.cleanly_stopped.filter(|_| pg.run == Run::Stopped),
            }
        };
        NodeView {
            now: self.local(node),
            me: host.id,
            kind: host.kind,
            timing: daemon.timing.clone(),
            rules: self.rules,
            record: daemon.record.clone(),
            goals: daemon.goals.clone(),
            durable: daemon.durable.clone(),
            acted_under: daemon.acted_under,
            resigning: daemon.resigning.clone(),
            lineage: daemon.lineage,
            rebuilt_from: None,
            pulse: daemon.core.view(),
            guard: GuardView {
                is_present: host.guard.is_alive,
                armed: host.guard.armed,
                deadline: host.guard.deadline,
                has_fence_begun: host.guard.has_fence_begun,
                has_processes: pg.run != Run::Stopped,
                has_postmaster_died: host.guard.has_postmaster_died,
            },
            postgres,
            job: daemon.running.as_ref().map(|running| running.job.clone()),
            is_stopping: daemon.is_stopping,
            newer_cluster: None,
            place: Default::default(),
            unfit: (self.now < host.unfit_until).then(|| "so it was drawn".to_owned()),
            kept_back: daemon.kept_back.clone(),
            troubles: Default::default(),
        }
    }

    /// The daemon is killed; guard and PostgreSQL go on. A write under way reaches the disk, or does not.
    pub fn daemon_killed(&mut self, node: usize) {
        let is_written = self.rng.chance(500);
        let host = &mut self.nodes[node];
        let Some(daemon) = host.daemon.take() else { return };
        if let Some(writing) = daemon.writing
            && is_written
        {
            host.disk = writing.durable;
        }
        host.daemon_epoch += 1;
        if host.pg.is_stopping {
            // the guard ends what was begun
            let delay = crate::node::span(self.timing.clean_stop_limit);
            self.postgres_kill(node, delay);
        }
        self.note(|| format!("the daemon of node {} is gone", node + 1));
    }

    /// The names seen in effect, and where the log ended then.
    pub fn names_are_in_effect(&mut self, node: usize) {
        let pg = &self.nodes[node].pg;
        let names = NamesInEffect { names: pg.names.clone(), since: Lsn(pg.insert.max(pg.wal.end())) };
        if let Some(daemon) = &mut self.nodes[node].daemon {
            daemon.names = Some(names);
        }
    }
}
