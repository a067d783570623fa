//! The schedule of a chaos run: what is done to which host, and when.
//!
//! One statement a line; `#` begins a comment. Times count from the moment at which the cluster is whole and the writers run.
//!
//! ```text
//! at 5s   crash active          # cable first, then SIGKILL to everything of the host
//! at 12s  boot                  # the host that was crashed last
//! at 20s  cut n2
//! at 25s  heal n2               # `heal` alone heals every host
//! at 30s  oneway in active      # packets to the host are dropped; `out`: packets from it
//! at 32s  loss 20% n3
//! at 40s  pause active
//! at 45s  resume
//! at 50s  kill daemon active    # or postgres, guard
//! at 60s  switchover
//! at 65s  part n1 active        # packets between the two are dropped; `heal n1` ends it
//! at 65s  mark n3               # `nofailover`, by command; `unmark` takes it off
//! at 65s  insert 10000 active   # so many rows by a client beside the host, as fast as it can, in batches
//! at 66s  remove standby        # by command; its daemon is stopped and its folders are emptied
//! at 68s  join last             # as a new node, with a new token
//! end 70s
//!
//! silent 6s 7s                  # nothing may be acknowledged in this time
//! writes 7s 9s                  # something must be
//! option durability=one_node    # an option that the cluster starts with
//! form n1 n2                    # the hosts that the cluster has at first; all where this is absent
//! addresses ipv6                # how hosts find each other: ipv4 (as without it), ipv6, or names, by each host's /etc/hosts
//! lossy                         # acknowledged rows may be lost, as that durability says; the nodes must agree all the same
//! aside 10000                   # of those lost, at least so many, and each of them is in the log that nodes put aside
//! rewound                       # parted databases are mended without a copy, and at least one was
//! lenient                       # a step that nobody is there for is passed over; without it, it ends the run
//! ```

use std::fmt;
use std::time::Duration;

use super::kinds::Kind;

mod parse;

pub(in crate::chaos) use parse::span;

/// The words for a step's host, beside the hosts' own names.
pub const VICTIMS: &[(&str, &str)] = &[
    ("active", "the host that is active when the step is due"),
    (
        "standby",
        "the first, by name, that is up and not active; as the second host of `part`, another one than the first",
    ),
    ("leader", "the one that leads Raft when the step is due"),
    ("last", "the one that the newest step was done to"),
    ("standbys", "every host that is up and not active"),
    ("down", "every host that lost its power and has not booted since"),
    ("all", "every host"),
];

/// The statements beside `at`.
pub const STATEMENTS: &[(&str, &str)] = &[
    (
        "end TIME",
        "when the faults are over: everything is healed, and the cluster judged once it is whole; must be there",
    ),
    ("silent TIME TIME", "nothing may be acknowledged in this time"),
    ("writes TIME TIME", "something must be acknowledged in this time"),
    ("option NAME=VALUE", "an option that the cluster starts with"),
    ("form HOST…", "the hosts that the cluster has at first, without it all; others come by `join`"),
    ("addresses ipv4|ipv6|names", "how hosts find each other; without it `ipv4`"),
    (
        "lossy",
        "acknowledged rows may be lost, as the durability that was chosen says; the nodes must agree all the same",
    ),
    ("aside NUMBER", "of those lost, at least so many, and each of them is in the log that nodes put aside"),
    ("rewound", "parted databases are mended without a copy, and at least one was"),
    ("lenient", "a step that nobody is there for is passed over; without it, it ends the run"),
];

/// Which host a step is done to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Victim {
    /// The one that is active when the step is due.
    Active,
    /// The first, by name, that is up and not active when the step is due.
    Standby,
    /// The one that leads Raft when the step is due.
    Leader,
    /// The one that the newest step of this schedule with a victim was done to.
    Last,
    /// Every host that is up and not active when the step is due.
    Standbys,
    /// Every host that is down when the step is due.
    Down,
    /// Every host.
    All,
    /// The host of this name.
    Host(String),
}

/// The direction of packets that are dropped, as seen from the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Packets to the host.
    In,
    /// Packets from the host.
    Out,
}

/// A process of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// `hasup run`, `start` or `join`.
    Daemon,
    /// `hasup guard`.
    Guard,
    /// The postmaster.
    Postgres,
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Power loss: the cable is pulled, then everything of the host is killed.
    Crash,
    /// The host starts again: cable in, daemon started as by its supervisor.
    Boot,
    /// The cable is pulled.
    Cut,
    /// The cable is put back and every packet rule of the host removed.
    Heal,
    /// Packets of one direction are dropped.
    Oneway(Direction),
    /// This share of packets is dropped in both directions; percent.
    Loss(u8),
    /// Everything of the host is frozen.
    Pause,
    /// Everything of the host goes on.
    Resume,
    /// One process is killed by SIGKILL; the host's supervisor starts a daemon again.
    Kill(Part),
    /// The active role is moved by command, to the victim when that is a named host.
    Switchover,
    /// Packets between the victim and this one are dropped.
    Part(Victim),
    /// The node is marked `nofailover` by command, or the mark is taken off.
    Mark(bool),
    /// So many rows are inserted by a client beside the host, which tries no other one.
    Insert(u64),
    /// The node is removed by command, then stopped and emptied.
    Remove,
    /// The host joins as a new node.
    Join,
}

impl fmt::Display for Victim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Active => "active",
            Self::Standby => "standby",
            Self::Leader => "leader",
            Self::Last => "last",
            Self::Standbys => "standbys",
            Self::Down => "down",
            Self::All => "all",
            Self::Host(name) => name,
        })
    }
}

/// A step with its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Since the run's start.
    pub at: Duration,
    /// What is done.
    pub fault: Fault,
    /// To whom.
    pub victim: Victim,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (at, kind, victim) = (self.at.as_millis(), self.fault.kind(), &self.victim);
        match &self.fault {
            Fault::Oneway(Direction::In) => write!(f, "at {at}ms {kind} in {victim}"),
            Fault::Oneway(Direction::Out) => write!(f, "at {at}ms {kind} out {victim}"),
            Fault::Loss(percent) => write!(f, "at {at}ms {kind} {percent}% {victim}"),
            Fault::Kill(part) => write!(f, "at {at}ms {kind} {part} {victim}"),
            Fault::Part(other) => write!(f, "at {at}ms {kind} {victim} {other}"),
            Fault::Insert(rows) => write!(f, "at {at}ms {kind} {rows} {victim}"),
            Fault::Crash
            | Fault::Boot
            | Fault::Cut
            | Fault::Heal
            | Fault::Pause
            | Fault::Resume
            | Fault::Switchover
            | Fault::Mark(_)
            | Fault::Remove
            | Fault::Join => write!(f, "at {at}ms {kind} {victim}"),
        }
    }
}

impl Fault {
    /// Returns its kind.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Crash => Kind::Crash,
            Self::Boot => Kind::Boot,
            Self::Cut => Kind::Cut,
            Self::Heal => Kind::Heal,
            Self::Oneway(_) => Kind::Oneway,
            Self::Loss(_) => Kind::Loss,
            Self::Pause => Kind::Pause,
            Self::Resume => Kind::Resume,
            Self::Kill(_) => Kind::Kill,
            Self::Switchover => Kind::Switchover,
            Self::Part(_) => Kind::Part,
            Self::Mark(true) => Kind::Mark,
            Self::Mark(false) => Kind::Unmark,
            Self::Insert(_) => Kind::Insert,
            Self::Remove => Kind::Remove,
            Self::Join => Kind::Join,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Daemon => "daemon",
            Self::Guard => "guard",
            Self::Postgres => "postgres",
        })
    }
}

/// What must be true of the acknowledgements in a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stretch {
    /// Since the run's start.
    pub from: Duration,
    /// Since the run's start.
    pub until: Duration,
    /// Whether something must be acknowledged; else nothing may be.
    pub writes: bool,
}

/// How hosts, and the clients outside, find each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Addresses {
    /// IPv4 addresses.
    #[default]
    Ipv4,
    /// IPv6 addresses.
    Ipv6,
    /// Host names.
    Names,
}

/// A schedule: steps in the order of their times, and the instant at which faults end and health is awaited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Schedule {
    /// Steps, earliest first; those of one time in the order of the file.
    pub steps: Vec<Step>,
    /// When everything is healed and judged.
    pub end: Duration,
    /// What is expected of the acknowledgements.
    pub stretches: Vec<Stretch>,
    /// Options that the cluster starts with, as `name=value`.
    pub options: Vec<String>,
    /// The hosts that the cluster has at first; all where empty.
    pub form: Vec<String>,
    /// How hosts find each other.
    pub addresses: Addresses,
    /// Whether acknowledged rows may be lost.
    pub lossy: bool,
    /// How many acknowledged rows must have been lost at least, all of them kept aside; where absent, nobody looks.
    pub aside: Option<usize>,
    /// Whether a database must have been rewound, and none copied.
    pub rewound: bool,
    /// Whether a step that has no victim, when it is due, is passed over.
    pub lenient: bool,
}

impl fmt::Display for Schedule {
    /// Writes the schedule as [`parse`](Self::parse) reads it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for option in &self.options {
            writeln!(f, "option {option}")?;
        }
        if !self.form.is_empty() {
            writeln!(f, "form {}", self.form.join(" "))?;
        }
        match self.addresses {
            Addresses::Ipv4 => {}
            Addresses::Ipv6 => writeln!(f, "addresses ipv6")?,
            Addresses::Names => writeln!(f, "addresses names")?,
        }
        for (word, is_said) in [("lossy", self.lossy), ("rewound", self.rewound), ("lenient", self.lenient)] {
            if is_said {
                writeln!(f, "{word}")?;
            }
        }
        if let Some(rows) = self.aside {
            writeln!(f, "aside {rows}")?;
        }
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        for stretch in &self.stretches {
            let word = if stretch.writes { "writes" } else { "silent" };
            writeln!(f, "{word} {}ms {}ms", stretch.from.as_millis(), stretch.until.as_millis())?;
        }
        writeln!(f, "end {}ms", self.end.as_millis())
    }
}

/// A schedule cannot be played.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the schedule has {} problem(s); nothing was started:\n{}", .0.len(), .0.join("\n"))]
pub struct ScheduleError(pub Vec<String>);

impl Schedule {
    /// Tells whether a fault that did not come about, though it had a victim, is passed over as if it had none: who was found may be
    /// gone, or refuse. What the range itself could not do ends the run in any case.
    #[must_use]
    pub fn passes_over(&self, fault: &Fault) -> bool {
        self.lenient
            && match fault {
                Fault::Kill(_) | Fault::Switchover => true,
                Fault::Crash
                | Fault::Boot
                | Fault::Cut
                | Fault::Heal
                | Fault::Oneway(_)
                | Fault::Loss(_)
                | Fault::Pause
                | Fault::Resume
                | Fault::Part(_)
                | Fault::Mark(_)
                | Fault::Insert(_)
                | Fault::Remove
                | Fault::Join => false,
            }
    }
}
