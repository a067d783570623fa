//! One node: what survives what, its clock, its guard and its daemon.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hasup::ha::durable::Durable;
use hasup::ha::plan::Step;
use hasup::ha::pulse::{PulseCore, Report};
use hasup::ha::record::{Goals, MemberKind, ResignReason};
use hasup::ha::timing::Timing;
use hasup::ha::view::{AppliedRecord, CleanStop, Job, Lineage, NamesInEffect, SyncNames};
use hasup::types::{BootTime, DaemonIncarnation, Generation, NodeId};

use crate::event::Event;
use crate::postgres::Postgres;
use crate::rng::Time;

/// A boot-time clock: runs a little fast or slow, and stands still while its guest is stopped if told so.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// The virtual time at which it showed `local`.
    pub base: Time,
    /// What it showed then.
    pub local: u64,
    /// Parts per million that it runs fast.
    pub drift: i64,
}

impl Clock {
    /// Returns what it shows at `now`.
    pub fn at(&self, now: Time) -> BootTime {
        let passed = i128::from(now.saturating_sub(self.base));
        let shown = passed * i128::from(1_000_000 + self.drift) / 1_000_000;
        BootTime(self.local + u64::try_from(shown).unwrap_or(0))
    }

    /// Returns the virtual time at which it will show `local`, or a little later.
    pub fn when(&self, local: BootTime) -> Time {
        let ahead = i128::from(local.0.saturating_sub(self.local));
        let passed = ahead * 1_000_000 / i128::from(1_000_000 + self.drift);
        self.base + u64::try_from(passed).unwrap_or(0) + 2_000
    }
}

/// The guard: the deadline, and whether the fence has begun.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// It runs.
    pub is_alive: bool,
    /// Which life.
    pub epoch: u64,
    /// The generation that it is armed for.
    pub armed: Option<Generation>,
    /// When the lease ends.
    pub deadline: BootTime,
    /// The fence has begun.
    pub has_fence_begun: bool,
    /// The postmaster ended by itself while armed.
    pub has_postmaster_died: bool,
    /// A timer is planned.
    pub has_timer: bool,
}

/// A guest that does not run.
#[derive(Debug, Clone, Copy)]
pub struct Frozen {
    /// Whether its clock stands still, too.
    pub stops_clock: bool,
}

/// A write to the node's durable facts that is under way.
#[derive(Debug, Clone)]
pub struct DiskWrite {
    /// What will be on disk.
    pub durable: Durable,
}

/// Steps being carried out.
#[derive(Debug, Clone)]
pub struct Acting {
    /// What is left, the present one first.
    pub steps: VecDeque<Step>,
    /// How far the present one is.
    pub phase: u32,
    /// When the present one began.
    pub since: Time,
}

/// What long work is about.
#[derive(Debug, Clone)]
pub enum Work {
    /// PostgreSQL starts.
    Start,
    /// A clean stop with its limit.
    StopCleanly {
        /// The generation that ends.
        generation: Generation,
        /// When it began.
        since: Time,
    },
    /// A copy or a rewind.
    Rebuild {
        /// From whom.
        from: usize,
        /// Where the source's log ended when the copy began, and until when it takes.
        copy: Option<(u64, u64, Time)>,
    },
    /// A comparison of histories.
    Lineage {
        /// With whom.
        node: usize,
        /// The generation of its promotion.
        promoted: Generation,
    },
    /// Other names are put into effect.
    SetNames {
        /// What they are to say.
        names: SyncNames,
        /// How far that is.
        phase: u32,
    },
    /// A first write waits for the standbys.
    ProbeWrite {
        /// The end of the log with it.
        lsn: u64,
        /// When it began.
        since: Time,
    },
    /// A pause after an error.
    Pause,
}

/// Long work that goes on.
#[derive(Debug, Clone)]
pub struct Running {
    /// How the brain sees it.
    pub job: Job,
    /// What it does.
    pub work: Work,
    /// Its number.
    pub number: u64,
}

/// The daemon: all that is lost when it dies.
pub struct Daemon {
    /// The pulses.
    pub core: PulseCore,
    /// The durable facts as it believes them.
    pub durable: Durable,
    /// The newest record applied.
    pub record: Option<AppliedRecord>,
    /// Operators' wishes applied.
    pub goals: Goals,
    /// The spans by the options applied; the defaults before.
    pub timing: Timing,
    /// The members marked never to be made active, as applied.
    pub kept_back: BTreeSet<NodeId>,
    /// When a fetch of another standby's log began, or brought some.
    pub fetch_moved_at: Option<BootTime>,
    /// When the last one ended.
    pub fetch_ended_at: Option<BootTime>,
    /// The highest generation it may have acted under.
    pub acted_under: Generation,
    /// What it has begun to give up.
    pub resigning: Option<(Generation, ResignReason)>,
    /// How its data stands to the active node's.
    pub lineage: Option<(Generation, Lineage)>,
    /// Long work.
    pub running: Option<Running>,
    /// Steps being carried out.
    pub acting: Option<Acting>,
    /// A disk write under way.
    pub writing: Option<DiskWrite>,
    /// Only the look with this token counts.
    pub look_token: u64,
    /// When the next look is planned.
    pub look_at: Time,
    /// An observation is under way.
    pub is_deciding: bool,
    /// Something happened meanwhile.
    pub has_news: bool,
    /// When it last looked.
    pub looked_at: Time,
    /// Only the step event with this token counts.
    pub step_token: u64,
    /// The names seen in effect.
    pub names: Option<NamesInEffect>,
    /// A write has succeeded since the promotion.
    pub has_written: bool,
    /// Prepared for a switchover.
    pub checkpointed_for: Option<Generation>,
    /// A clean stop was finished.
    pub cleanly_stopped: Option<CleanStop>,
    /// Is to stop in order.
    pub is_stopping: bool,
    /// What it last said.
    pub report: Report,
    /// Until when it serves.
    pub serves_until: Option<BootTime>,
    /// As leader: who failed to promote lately.
    pub failed_promotion: BTreeMap<NodeId, BootTime>,
    /// As leader: the resignations already seen.
    pub seen_resigned: BTreeMap<NodeId, Generation>,
    /// As leader: since when the active node is known to have resigned.
    pub holder_resigned_seen: Option<(Generation, BootTime)>,
    /// As leader: who does not stream.
    pub not_streaming_since: BTreeMap<NodeId, BootTime>,
    /// As leader: until when an answer to a proposal is awaited.
    pub proposing_until: Time,
}

/// One machine.
pub struct Node {
    /// Its number.
    pub id: NodeId,
    /// What it takes part in.
    pub kind: MemberKind,
    /// It has power.
    pub is_powered: bool,
    /// It is a stopped guest.
    pub frozen: Option<Frozen>,
    /// What waits for it to run again.
    pub deferred: Vec<Event>,
    /// Its clock.
    pub clock: Clock,
    /// Boots so far.
    pub boots: u64,
    /// The durable facts on disk.
    pub disk: Durable,
    /// How much of Raft's log is applied, on disk.
    pub applied: usize,
    /// The daemon, if it runs.
    pub daemon: Option<Daemon>,
    /// Which life of the daemon.
    pub daemon_epoch: u64,
    /// The guard.
    pub guard: Guard,
    /// PostgreSQL and its files.
    pub pg: Postgres,
    /// The control loop does not run before this.
    pub stalled_until: Time,
    /// It is not fit to become active before this.
    pub unfit_until: Time,
    /// An operator has marked it never to be made active, for a while.
    pub is_marked: bool,
    /// Disk writes are slow before this.
    pub slow_disk_until: Time,
    /// Raft's entries are applied late before this.
    pub slow_apply_until: Time,
    /// The highest generation that it told anybody it had barred.
    pub said_barred: Generation,
    /// The highest generation that it told anybody it had resigned.
    pub said_resigned: Generation,
    /// The highest generation under whose bar or resignation it stated a position.
    pub stated_under: Generation,
    /// Its clock has stood still once: I3 says nothing about it any more.
    pub has_lost_time: bool,
    /// What the trace last said about it.
    pub told: String,
}

impl Daemon {
    /// Returns a daemon as it starts.
    pub fn new(core: PulseCore, durable: Durable) -> Self {
        Self {
            core,
            acted_under: durable.acknowledged,
            resigning: None,
            durable,
            record: None,
            goals: Goals::default(),
            kept_back: BTreeSet::new(),
            fetch_moved_at: None,
            fetch_ended_at: None,
            timing: Timing::default(),
            lineage: None,
            running: None,
            acting: None,
            writing: None,
            look_token: 0,
            look_at: Time::MAX,
            is_deciding: false,
            has_news: false,
            looked_at: 0,
            step_token: 0,
            names: None,
            has_written: false,
            checkpointed_for: None,
            cleanly_stopped: None,
            is_stopping: false,
            report: Report::default(),
            serves_until: None,
            failed_promotion: BTreeMap::new(),
            seen_resigned: BTreeMap::new(),
            holder_resigned_seen: None,
            not_streaming_since: BTreeMap::new(),
            proposing_until: 0,
        }
    }
}

/// Returns the name of a daemon's life.
pub fn incarnation_of(node: usize, epoch: u64) -> DaemonIncarnation {
    DaemonIncarnation((epoch + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ node as u64)
}

/// Returns `span` as virtual time.
pub fn span(span: Duration) -> Time {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}
