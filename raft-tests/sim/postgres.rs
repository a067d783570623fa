//! The model of PostgreSQL: what of it matters to the protocol, and as unkind as the real one.
//!
//! - A crash keeps flushed log and loses the rest; local log is replayed before the position is known (L10).
//! - A WAL sender releases commits by its own copy of the names over everybody's membership; the checkpointer decides whether
//!   commits wait at all, and reads the names when it gets to it (L18).
//! - A WAL receiver takes its time to die, or hangs. A promotion begins at the end of the log and takes the next free timeline.
//! - A replication slot a member, so that one standby never counts twice.

use hasup::ha::record::{CommitSet, DataMember, Durability};
use hasup::ha::rules::Mutation;
use hasup::ha::view::{Followed, SyncNames};
use hasup::types::{Generation, Lsn, NodeId, Timeline, WalPosition};

use crate::event::Event;
use crate::rng::{MS, Time};
use crate::wal::{Instance, Wal};
use crate::world::World;

/// What PostgreSQL is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run {
    /// No process is left.
    Stopped,
    /// Starts, does not answer yet.
    Starting,
    /// In recovery.
    Standby,
    /// In recovery, told to promote.
    Promoting,
    /// Takes writes.
    Primary,
}

/// One node's PostgreSQL and its data directory.
#[derive(Debug, Clone)]
pub struct Postgres {
    /// What it is doing.
    pub run: Run,
    /// Which life of the postmaster this is.
    pub epoch: u64,
    /// The flushed log.
    pub wal: Wal,
    /// The end of the log in memory, on a primary.
    pub insert: u64,
    /// Whether all local log has been replayed in this life.
    pub is_replayed: bool,
    /// Where replay is before that; an honest node does not state it.
    pub replay: u64,
    /// Whether a WAL receiver has run in this life.
    pub receiver_started: bool,
    /// The stream that the receiver reads, if one exists.
    pub receiver: Option<usize>,
    /// Whether a connection attempt is planned.
    pub is_connecting: bool,
    /// Whether `standby.signal` is there.
    pub has_standby_signal: bool,
    /// Whom the receiver may follow.
    pub follows: Option<Followed>,
    /// Whether that is to fetch log from another standby, under a name that nobody waits for.
    pub is_fetching: bool,
    /// `synchronous_standby_names` in the file.
    pub names: SyncNames,
    /// Whether the checkpointer has seen what the file says.
    pub names_read: bool,
    /// Whether commits wait at all, as the checkpointer last read it.
    pub waits: bool,
    /// Whether replication connections are let in.
    pub admits: bool,
    /// No more writes: a clean stop goes on.
    pub is_stopping: bool,
    /// The instance that it writes, as a primary.
    pub instance: usize,
    /// Where that began.
    pub promoted_at: u64,
    /// The generation of its promotion.
    pub promoted: Generation,
    /// The highest commit that a client saw acknowledged in this life.
    pub acknowledged: u64,
    /// The timeline that is to be taken, while promoting.
    pub promoting_to: u32,
    /// The highest timeline number that has a history file here.
    pub history_files: u32,
    /// Whether the files of a stopped server can be read for the position.
    pub is_readable: bool,
    /// A flush is under way.
    pub is_flushing: bool,
    /// The position that the control file of a half-made copy shows.
    pub half_made: Option<WalPosition>,
    /// The running death is nobody's order.
    pub dies_by_itself: bool,
}

impl Postgres {
    /// Returns a stopped server with `wal`.
    pub fn new(wal: Wal) -> Self {
        let end = wal.end();
        Self {
            run: Run::Stopped,
            epoch: 0,
            wal,
            insert: end,
            is_replayed: false,
            replay: 0,
            receiver_started: false,
            receiver: None,
            is_connecting: false,
            has_standby_signal: true,
            follows: None,
            is_fetching: false,
            names: SyncNames::Nobody,
            names_read: true,
            waits: true,
            admits: true,
            is_stopping: false,
            instance: 0,
            promoted_at: 0,
            promoted: Generation(0),
            acknowledged: 0,
            promoting_to: 0,
            history_files: 1,
            is_readable: true,
            is_flushing: false,
            half_made: None,
            dies_by_itself: false,
        }
    }

    /// Returns whether it is a primary with clients.
    pub fn is_primary(&self) -> bool {
        self.run == Run::Primary
    }

    /// Returns whether it is a standby that lets others read its log.
    pub fn sends_on(&self) -> bool {
        matches!(self.run, Run::Standby | Run::Promoting) && (self.is_replayed || self.receiver_started)
    }

    /// Returns the end of valid log by L10, or nothing where it cannot be known yet.
    pub fn position(&self, instances: &[Instance], understates: bool) -> Option<WalPosition> {
        let end = self.wal.position(instances);
        match self.run {
            Run::Stopped => self.is_readable.then_some(end),
            Run::Starting => None,
            Run::Standby | Run::Promoting if self.is_replayed || self.receiver_started => Some(end),
            Run::Standby | Run::Promoting => understates.then(|| self.wal.prefix(self.replay).position(instances)),
            Run::Primary => Some(end),
        }
    }
}

/// One replication connection: the sender's end and the receiver's end, which die apart.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Who sends.
    pub primary: usize,
    /// In which life.
    pub primary_epoch: u64,
    /// Who receives.
    pub standby: usize,
    /// In which life.
    pub standby_epoch: u64,
    /// Under which name.
    pub member: DataMember,
    /// The generation that the receiver's credentials were made for.
    pub generation: Generation,
    /// The sender is a standby, or was one, and the receiver's name is none that commits wait for.
    pub is_fetch: bool,
    /// The sender's log but for the end of its last stretch.
    pub history: Wal,
    /// What the standby said that it has flushed; nothing yet.
    pub flushed: Option<u64>,
    /// Up to where log was sent.
    pub sent: u64,
    /// The primary's end when the connection was made.
    pub target: u64,
    /// A message is under way.
    pub is_busy: bool,
    /// The sender's own copy: whether this standby counts, and how many have to.
    pub counts: bool,
    /// See `counts`.
    pub k: u32,
    /// The sender lives.
    pub sender: bool,
    /// The receiver lives.
    pub receiver: bool,
}

impl Stream {
    /// Returns whether it streams and has caught up.
    pub fn has_caught_up(&self) -> bool {
        self.sender && self.flushed.is_some_and(|lsn| lsn >= self.target)
    }
}

/// What a new sender makes of the names for `member`.
fn copy_of(names: &SyncNames, member: &DataMember) -> (bool, u32) {
    match names {
        SyncNames::Nobody => (false, 1),
        SyncNames::Set(set) => (set.k > 0 && set.members.contains(member), set.k),
    }
}

impl World {
    /// Starts the server of `node`.
    pub fn postgres_start(&mut self, node: usize) {
        let delay = if self.rng.chance(30) { self.rng.millis(500, 4_000) } else { self.rng.millis(20, 150) };
        let pg = &mut self.nodes[node].pg;
        if pg.run != Run::Stopped {
            return;
        }
        pg.run = Run::Starting;
        pg.is_replayed = false;
        pg.receiver_started = false;
        pg.dies_by_itself = false;
        // started with a name that nobody bears, a standby's commits wait from its first instant as a primary on, however late the
        // checkpointer reads what is set before the promotion
        pg.names = SyncNames::Nobody;
        pg.names_read = true;
        pg.waits = true;
        pg.admits = true;
        let back = self.rng.between(0, 40);
        let pg = &mut self.nodes[node].pg;
        pg.replay = pg.wal.end().saturating_sub(back);
        let epoch = pg.epoch;
        self.after(delay, Event::PostgresUp { node, epoch });
    }

    /// The server answers.
    pub fn postgres_up(&mut self, node: usize) {
        let pg = &mut self.nodes[node].pg;
        if !pg.has_standby_signal {
            self.break_rule("I6", format!("PostgreSQL of node {} came up writable by itself", node + 1));
            return;
        }
        pg.run = Run::Standby;
        let epoch = pg.epoch;
        let delay = if self.rng.chance(60) { self.rng.millis(300, 3_000) } else { self.rng.millis(1, 60) };
        self.after(delay, Event::Replayed { node, epoch });
        self.news(node);
    }

    /// All local log is replayed: the receiver may start.
    pub fn postgres_replayed(&mut self, node: usize) {
        let pg = &mut self.nodes[node].pg;
        pg.is_replayed = true;
        pg.replay = pg.wal.end();
        self.plan_connect(node, MS);
        self.news(node);
    }

    /// Has the server die within `delay`.
    pub fn postgres_kill(&mut self, node: usize, delay: Time) {
        let pg = &self.nodes[node].pg;
        if pg.run != Run::Stopped {
            let epoch = pg.epoch;
            self.after(delay, Event::PostgresDead { node, epoch });
        }
    }

    /// The server is gone: what was not flushed is lost.
    pub fn postgres_dead(&mut self, node: usize) {
        let is_readable = self.rng.chance(700);
        let Self { nodes, streams, .. } = self;
        let host = &mut nodes[node];
        if host.pg.run == Run::Stopped {
            return;
        }
        host.pg.run = Run::Stopped;
        host.pg.epoch += 1;
        host.pg.insert = host.pg.wal.end();
        host.pg.receiver = None;
        host.pg.is_connecting = false;
        host.pg.is_stopping = false;
        host.pg.is_flushing = false;
        host.pg.is_readable = is_readable;
        if host.pg.dies_by_itself && host.guard.is_alive && host.guard.armed.is_some() {
            host.guard.has_postmaster_died = true;
        }
        if let Some(daemon) = &mut host.daemon {
            daemon.names = None;
            daemon.has_written = false;
            daemon.checkpointed_for = None;
        }
        let mut notices = Vec::new();
        for (index, stream) in streams.iter_mut().enumerate() {
            if stream.primary == node && stream.sender {
                stream.sender = false;
                notices.push(Event::ReceiverNotices { stream: index, tries: 0 });
            }
            if stream.standby == node && stream.receiver {
                stream.receiver = false;
                notices.push(Event::SenderGone { stream: index, tries: 0 });
            }
        }
        for notice in notices {
            let delay = self.rng.micros(200, 3_000);
            self.after(delay, notice);
        }
        self.note(|| format!("PostgreSQL of node {} is gone", node + 1));
        self.news(node);
    }

    /// Ends a promotion.
    pub fn postgres_promoted(&mut self, node: usize) {
        let pg = &mut self.nodes[node].pg;
        if pg.run != Run::Promoting {
            return;
        }
        let own = pg.wal.position(&self.instances).timeline.0;
        let timeline = own.max(pg.history_files).max(pg.promoting_to.saturating_sub(1)) + 1;
        let start = pg.wal.clone();
        let instance = self.instances.len();
        pg.history_files = timeline;
        pg.promoted_at = start.end();
        pg.instance = instance;
        pg.wal.stretches.push((instance, start.end() + 1));
        pg.insert = start.end() + 1;
        pg.acknowledged = start.end() + 1;
        pg.run = Run::Primary;
        pg.has_standby_signal = false;
        pg.is_stopping = false;
        let (epoch, generation) = (pg.epoch, pg.promoted);
        let acknowledged = start.end() + 1;
        self.instances.push(Instance { timeline, generation: generation.0, node, start, acknowledged });
        self.note(|| format!("node {} promoted under generation {generation}, timeline {timeline}", node + 1));
        for stream in 0..self.streams.len() {
            // those who read on from here go on with the next timeline
            if self.streams[stream].primary == node && self.streams[stream].is_fetch {
                self.sender_ends(stream);
            }
        }
        crate::invariants::on_promoted(self, node, instance);
        let delay = self.rng.millis(1, 20);
        self.after(delay, Event::Write { node, epoch });
        self.news(node);
    }

    /// A client writes and comes again.
    pub fn postgres_write(&mut self, node: usize) {
        let pg = &mut self.nodes[node].pg;
        if pg.run != Run::Primary || pg.is_stopping {
            return;
        }
        let epoch = pg.epoch;
        self.insert(node);
        let delay = self.rng.millis(20, 90);
        self.after(delay, Event::Write { node, epoch });
    }

    /// Writes one commit; returns the end of the log with it.
    pub fn insert(&mut self, node: usize) -> u64 {
        let pg = &mut self.nodes[node].pg;
        pg.insert += 1;
        let (lsn, epoch, is_flushing) = (pg.insert, pg.epoch, pg.is_flushing);
        pg.is_flushing = true;
        if !is_flushing {
            let delay = self.rng.micros(300, 2_000);
            self.after(delay, Event::Flush { node, epoch });
        }
        lsn
    }

    /// The log in memory reaches the disk.
    pub fn postgres_flush(&mut self, node: usize) {
        let pg = &mut self.nodes[node].pg;
        pg.is_flushing = false;
        if pg.run != Run::Primary {
            return;
        }
        let insert = pg.insert;
        if let Some(last) = pg.wal.stretches.last_mut() {
            last.1 = insert;
        }
        if !pg.waits {
            self.release(node, insert);
        }
        for stream in 0..self.streams.len() {
            if self.streams[stream].primary == node {
                self.pump(stream);
            }
        }
    }

    /// Acknowledges every commit up to `lsn` to its client.
    fn release(&mut self, node: usize, lsn: u64) {
        let pg = &mut self.nodes[node].pg;
        let upto = lsn.min(pg.wal.end());
        if pg.run != Run::Primary || upto <= pg.acknowledged {
            return;
        }
        pg.acknowledged = upto;
        let instance = pg.instance;
        if !self.may_lose(instance) {
            crate::invariants::on_acknowledged(self, node, instance, upto);
            self.instances[instance].acknowledged = self.instances[instance].acknowledged.max(upto);
        }
        self.acknowledgements += 1;
        self.last_acknowledged = self.now;
        if self.healed_at.is_some() && self.recovered_at.is_none() {
            self.recovered_at = Some(self.now);
        }
    }

    /// Whether the option, or the record under which `instance` writes, declares that what its node alone acknowledges may be lost.
    fn may_lose(&self, instance: usize) -> bool {
        let promoted = self.instances[instance].generation;
        let newest = self.raft.log.iter().rev().find_map(|state| {
            let (record, _) = state.record.as_ref()?;
            (record.promoted.0 == promoted).then_some(record)
        });
        self.raft.newest().options.durability == Durability::OneNode
            || newest.is_some_and(|record| record.commit_sets.iter().any(CommitSet::may_lose))
    }

    /// A sender that lives reads the names.
    pub fn names_read_by(&mut self, stream: usize) {
        let Self { nodes, streams, .. } = self;
        let stream = &mut streams[stream];
        if stream.sender && !stream.is_fetch {
            (stream.counts, stream.k) = copy_of(&nodes[stream.primary].pg.names, &stream.member);
        }
    }

    /// Writes the names and has every process read them again, each when it gets to it.
    pub fn names_reload(&mut self, node: usize, names: &SyncNames) {
        let delay = if self.rng.chance(50) { self.rng.millis(100, 2_500) } else { self.rng.millis(1, 25) };
        let pg = &mut self.nodes[node].pg;
        pg.names = names.clone();
        pg.names_read = false;
        let epoch = pg.epoch;
        self.after(delay, Event::NamesRead { node, epoch });
        for stream in 0..self.streams.len() {
            if self.streams[stream].primary == node && self.streams[stream].sender {
                let delay = if self.rng.chance(50) { self.rng.millis(20, 1_500) } else { self.rng.millis(0, 10) };
                self.after(delay, Event::NamesReadBy { stream });
            }
        }
    }

    /// The checkpointer reads the names: from now on commits wait, or not.
    pub fn names_read(&mut self, node: usize) {
        let pg = &mut self.nodes[node].pg;
        pg.names_read = true;
        pg.waits = !matches!(&pg.names, SyncNames::Set(set) if set.k == 0);
        if !pg.waits {
            let end = pg.wal.end();
            self.release(node, end);
        }
    }

    /// Plans a connection attempt of the receiver.
    pub fn plan_connect(&mut self, node: usize, delay: Time) {
        let pg = &mut self.nodes[node].pg;
        if pg.run == Run::Standby && !pg.is_connecting && pg.receiver.is_none() && pg.follows.is_some() {
            pg.is_connecting = true;
            let epoch = pg.epoch;
            self.after(delay, Event::Connect { node, epoch });
        }
    }

    /// The receiver connects, if it is let in and its log fits.
    pub fn postgres_connect(&mut self, node: usize) {
        self.nodes[node].pg.is_connecting = false;
        let pg = &self.nodes[node].pg;
        let Some(followed) = pg.follows else { return };
        if pg.run != Run::Standby || !pg.is_replayed || pg.receiver.is_some() {
            return;
        }
        let primary = self.index_of(followed.node);
        let is_reachable = self.passes(node, primary) && self.passes(primary, node);
        let sender = &self.nodes[primary].pg;
        let has_slot = |stream: &Stream| stream.primary == primary && stream.standby == node && stream.sender;
        let is_busy = self.streams.iter().any(has_slot);
        let is_let_in = is_reachable
            && self.nodes[primary].frozen.is_none()
            && (sender.is_primary() || (pg.is_fetching && sender.sends_on()))
            && sender.admits
            && !is_busy
            && pg.wal.is_prefix_of(&sender.wal);
        if !is_let_in {
            let delay = self.rng.millis(100, 300);
            self.plan_connect(node, delay);
            return;
        }
        let member = DataMember { node: self.nodes[node].id, incarnation: self.nodes[node].disk.incarnation };
        let (counts, k) = if pg.is_fetching { (false, 1) } else { copy_of(&sender.names, &member) };
        let stream = Stream {
            primary,
            primary_epoch: sender.epoch,
            standby: node,
            standby_epoch: pg.epoch,
            member,
            generation: followed.generation,
            is_fetch: pg.is_fetching,
            history: sender.wal.clone(),
            flushed: None,
            sent: pg.wal.end(),
            target: sender.wal.end(),
            is_busy: true,
            counts,
            k,
            sender: true,
            receiver: true,
        };
        let lsn = pg.wal.end();
        let index = self.streams.len();
        self.streams.push(stream);
        let history_files = sender.history_files;
        let pg = &mut self.nodes[node].pg;
        pg.history_files = pg.history_files.max(history_files);
        pg.receiver = Some(index);
        pg.receiver_started = true;
        crate::invariants::on_connected(self, index);
        let delay = self.tcp_delay(node, primary);
        self.after(delay, Event::Flushed { stream: index, lsn, tries: 0 });
        self.news(node);
    }

    /// Sends what the standby does not have yet.
    fn pump(&mut self, stream: usize) {
        let s = &self.streams[stream];
        let end = self.nodes[s.primary].pg.wal.end();
        if !s.sender || s.is_busy || s.sent >= end {
            return;
        }
        let (primary, standby) = (s.primary, s.standby);
        let delay = self.tcp_delay(primary, standby) + self.rng.micros(200, 1_500);
        let s = &mut self.streams[stream];
        if s.is_fetch {
            // a standby's log may go on with what another primary wrote
            s.history.clone_from(&self.nodes[primary].pg.wal);
        }
        s.is_busy = true;
        s.sent = end;
        self.after(delay, Event::Wal { stream, upto: end, tries: 0 });
    }

    /// Log reaches the standby's disk.
    pub fn wal_arrives(&mut self, stream: usize, upto: u64, tries: u32) {
        let s = &self.streams[stream];
        let (primary, standby) = (s.primary, s.standby);
        if !s.receiver || self.nodes[standby].pg.epoch != s.standby_epoch {
            return;
        }
        if !self.passes(primary, standby) {
            self.retry(stream, tries, Event::Wal { stream, upto, tries: tries + 1 });
            return;
        }
        let mut wal = s.history.clone();
        if let Some(last) = wal.stretches.last_mut() {
            last.1 = last.1.max(upto);
        }
        let pg = &mut self.nodes[standby].pg;
        if upto > pg.wal.end() {
            pg.wal = wal.prefix(upto);
        }
        if self.streams[stream].is_fetch {
            let local = self.local(standby);
            if let Some(daemon) = &mut self.nodes[standby].daemon {
                daemon.fetch_moved_at = Some(local);
            }
            self.news(standby);
        }
        crate::invariants::on_flushed(self, stream);
        for onward in 0..self.streams.len() {
            if self.streams[onward].is_fetch && self.streams[onward].primary == standby {
                self.pump(onward);
            }
        }
        let delay = self.tcp_delay(standby, primary);
        self.after(delay, Event::Flushed { stream, lsn: upto, tries: 0 });
    }

    /// The standby's word reaches its sender, which releases whom it may.
    pub fn flushed_arrives(&mut self, stream: usize, lsn: u64, tries: u32) {
        let s = &self.streams[stream];
        let (primary, standby) = (s.primary, s.standby);
        if !s.sender || self.nodes[primary].pg.epoch != s.primary_epoch {
            return;
        }
        if !self.passes(standby, primary) {
            self.retry(stream, tries, Event::Flushed { stream, lsn, tries: tries + 1 });
            return;
        }
        let had_caught_up = s.has_caught_up();
        let s = &mut self.streams[stream];
        s.flushed = Some(s.flushed.unwrap_or(0).max(lsn));
        s.is_busy = false;
        let (counts, k, has_caught_up) = (s.counts, s.k as usize, s.has_caught_up());
        if counts {
            let mut held: Vec<u64> = self
                .streams
                .iter()
                .filter(|other| other.primary == primary && other.counts && other.has_caught_up())
                .filter_map(|other| other.flushed)
                .collect();
            held.sort_unstable_by(|a, b| b.cmp(a));
            if k > 0 && held.len() >= k {
                self.release(primary, held[k - 1]);
            }
        }
        if !had_caught_up && has_caught_up {
            self.news(primary);
        }
        self.pump(stream);
    }

    /// TCP tries again for a while; then both ends give up.
    fn retry(&mut self, stream: usize, tries: u32, event: Event) {
        if tries < 10 {
            let delay = self.rng.millis(100, 250);
            self.after(delay, event);
            return;
        }
        self.sender_ends(stream);
        self.receiver_ends(stream);
    }

    /// A sender ends; its receiver will notice.
    pub fn sender_ends(&mut self, stream: usize) {
        if std::mem::take(&mut self.streams[stream].sender) {
            let primary = self.streams[stream].primary;
            let delay = self.rng.micros(200, 3_000);
            self.after(delay, Event::ReceiverNotices { stream, tries: 0 });
            self.news(primary);
        }
    }

    /// A receiver ends; its sender will notice, and it will be started again if it may.
    pub fn receiver_ends(&mut self, stream: usize) {
        if std::mem::take(&mut self.streams[stream].receiver) {
            let standby = self.streams[stream].standby;
            let delay = self.rng.micros(200, 3_000);
            self.after(delay, Event::SenderGone { stream, tries: 0 });
            let pg = &mut self.nodes[standby].pg;
            if pg.receiver == Some(stream) {
                pg.receiver = None;
            }
            let delay = self.rng.millis(50, 200);
            self.plan_connect(standby, delay);
            self.news(standby);
        }
    }

    /// One end notices that the other is gone, at once if a packet gets through, else by its own time limit.
    pub fn notice(&mut self, stream: usize, is_sender: bool, tries: u32) {
        let s = &self.streams[stream];
        let (near, far) = if is_sender { (s.primary, s.standby) } else { (s.standby, s.primary) };
        if !self.passes(far, near) && tries < 6 {
            let event = if is_sender {
                Event::SenderGone { stream, tries: tries + 1 }
            } else {
                Event::ReceiverNotices { stream, tries: tries + 1 }
            };
            let delay = self.rng.millis(200, 350);
            self.after(delay, event);
        } else if is_sender {
            self.sender_ends(stream);
        } else {
            self.receiver_ends(stream);
        }
    }

    /// Returns what the names, the log and the standbys of a primary look like to its daemon.
    pub fn standbys_of(&self, node: usize) -> std::collections::BTreeMap<DataMember, Lsn> {
        let of_this = |stream: &&Stream| stream.primary == node && !stream.is_fetch && stream.has_caught_up();
        let streams = self.streams.iter().filter(of_this);
        streams.filter_map(|stream| Some((stream.member, Lsn(stream.flushed?)))).collect()
    }

    /// Returns what a node's data says about its position, honest or not.
    pub fn position_of(&self, node: usize) -> Option<WalPosition> {
        use hasup::ha::durable::DataState;
        let host = &self.nodes[node];
        match host.disk.data {
            DataState::Empty => None,
            DataState::Rebuilding { until: None } => host.pg.half_made,
            DataState::Rebuilding { until: Some(_) } | DataState::Intact => {
                host.pg.position(&self.instances, self.rules.broken(Mutation::UnderstateAfterRestart))
            }
        }
    }

    /// Returns the timeline a primary writes.
    pub fn timeline_of(&self, node: usize) -> Option<Timeline> {
        let pg = &self.nodes[node].pg;
        pg.is_primary().then(|| Timeline(self.instances[pg.instance].timeline))
    }

    /// Returns the index of a node by its number.
    pub fn index_of(&self, node: NodeId) -> usize {
        usize::try_from(node.0 - 1).unwrap_or(0)
    }
}
