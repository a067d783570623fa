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
        let fault = match &self.fault {
            Fault::Crash => "crash".to_owned(),
            Fault::Boot => "boot".to_owned(),
            Fault::Cut => "cut".to_owned(),
            Fault::Heal => "heal".to_owned(),
            Fault::Oneway(Direction::In) => "oneway in".to_owned(),
            Fault::Oneway(Direction::Out) => "oneway out".to_owned(),
            Fault::Loss(percent) => format!("loss {percent}%"),
            Fault::Pause => "pause".to_owned(),
            Fault::Resume => "resume".to_owned(),
            Fault::Kill(Part::Daemon) => "kill daemon".to_owned(),
            Fault::Kill(Part::Guard) => "kill guard".to_owned(),
            Fault::Kill(Part::Postgres) => "kill postgres".to_owned(),
            Fault::Switchover => "switchover".to_owned(),
            Fault::Part(other) => return write!(f, "at {}ms part {} {other}", self.at.as_millis(), self.victim),
            Fault::Mark(true) => "mark".to_owned(),
            Fault::Mark(false) => "unmark".to_owned(),
            Fault::Insert(rows) => format!("insert {rows}"),
            Fault::Remove => "remove".to_owned(),
            Fault::Join => "join".to_owned(),
        };
        write!(f, "at {}ms {fault} {}", self.at.as_millis(), self.victim)
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

    /// Parses a schedule; `hosts` are the names that it may speak of.
    ///
    /// # Errors
    /// [`ScheduleError`] with all problems, each with its line and what would be right.
    pub fn parse(text: &str, hosts: &[&str]) -> Result<Self, ScheduleError> {
        let mut schedule = Self::default();
        let mut end = None;
        let mut problems = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            let parsed = match words.as_slice() {
                [] => continue,
                ["end", at] => span(at).map(|at| {
                    if end.replace(at).is_some() {
                        problems.push(format!("line {number}: a second `end`; keep one"));
                    }
                }),
                ["at", at, rest @ ..] => {
                    span(at).and_then(|at| step(at, rest, hosts)).map(|step| schedule.steps.push(step))
                }
                [kind @ ("silent" | "writes"), from, until] => {
                    stretch(*kind == "writes", from, until).map(|stretch| schedule.stretches.push(stretch))
                }
                ["option", option] if option.contains('=') => {
                    schedule.options.push((*option).to_owned());
                    Ok(())
                }
                ["form", names @ ..] if !names.is_empty() => names.iter().try_for_each(|name| {
                    schedule.form.push((*name).to_owned());
                    let known = hosts.join(", ");
                    hosts.contains(name).then_some(()).ok_or(format!("`{name}` is no host; use some of {known}"))
                }),
                ["addresses", kind @ ("ipv4" | "ipv6" | "names")] => {
                    schedule.addresses = match *kind {
                        "ipv6" => Addresses::Ipv6,
                        "names" => Addresses::Names,
                        _ => Addresses::Ipv4,
                    };
                    Ok(())
                }
                ["lossy"] => {
                    schedule.lossy = true;
                    Ok(())
                }
                ["aside", rows] => count(rows).map(|rows| schedule.aside = usize::try_from(rows).ok()),
                ["rewound"] => {
                    schedule.rewound = true;
                    Ok(())
                }
                ["lenient"] => {
                    schedule.lenient = true;
                    Ok(())
                }
                [other, ..] => Err(format!(
                    "`{other}` begins no statement; use `at TIME FAULT [HOST]`, `end TIME`, `silent TIME TIME`, `writes TIME TIME`, \
                     `option NAME=VALUE`, `form HOST…`, `addresses ipv4|ipv6|names`, `lossy`, `aside NUMBER`, `rewound` or `lenient`"
                )),
            };
            if let Err(problem) = parsed {
                problems.push(format!("line {number}: {problem}"));
            }
        }
        schedule.steps.sort_by_key(|step| step.at);
        let stretches = schedule.stretches.iter().map(|stretch| stretch.until);
        let last = schedule.steps.iter().map(|step| step.at).chain(stretches).max();
        match (end, last) {
            (Some(end), Some(last)) if last > end => {
                problems.push(format!(
                    "`end {}s` lies before the last statement's {}s",
                    end.as_secs_f64(),
                    last.as_secs_f64()
                ));
            }
            (None, _) => problems.push("there is no `end TIME`: say when the faults are over, as `end 60s`".to_owned()),
            _ => {}
        }
        if problems.is_empty() {
            Ok(Self { end: end.unwrap_or_default(), ..schedule })
        } else {
            Err(ScheduleError(problems))
        }
    }
}

fn stretch(writes: bool, from: &str, until: &str) -> Result<Stretch, String> {
    let (from, until) = (span(from)?, span(until)?);
    if from >= until {
        return Err(format!("the stretch ends at {}s, before it began", until.as_secs_f64()));
    }
    Ok(Stretch { from, until, writes })
}

fn step(at: Duration, words: &[&str], hosts: &[&str]) -> Result<Step, String> {
    let (fault, rest) = match words {
        ["part", one, other] => (Fault::Part(victim(other, hosts)?), std::slice::from_ref(one)),
        ["part", ..] => return Err("`part` needs two hosts, as `part n1 n3`".into()),
        ["mark", rest @ ..] => (Fault::Mark(true), rest),
        ["unmark", rest @ ..] => (Fault::Mark(false), rest),
        ["insert", rows, rest @ ..] => (Fault::Insert(count(rows)?), rest),
        ["insert"] => return Err("`insert` needs a number of rows, as `insert 10000 active`".into()),
        ["remove", rest @ ..] => (Fault::Remove, rest),
        ["join", rest @ ..] => (Fault::Join, rest),
        ["crash", rest @ ..] => (Fault::Crash, rest),
        ["boot", rest @ ..] => (Fault::Boot, rest),
        ["cut", rest @ ..] => (Fault::Cut, rest),
        ["heal", rest @ ..] => (Fault::Heal, rest),
        ["pause", rest @ ..] => (Fault::Pause, rest),
        ["resume", rest @ ..] => (Fault::Resume, rest),
        ["switchover", rest @ ..] => (Fault::Switchover, rest),
        ["oneway", "in", rest @ ..] => (Fault::Oneway(Direction::In), rest),
        ["oneway", "out", rest @ ..] => (Fault::Oneway(Direction::Out), rest),
        ["oneway", ..] => {
            return Err("`oneway` needs `in` (packets to the host) or `out`, as `oneway in active`".into());
        }
        ["loss", share, rest @ ..] => (Fault::Loss(percent(share)?), rest),
        ["loss"] => return Err("`loss` needs a share, as `loss 20% n3`".into()),
        ["kill", "daemon", rest @ ..] => (Fault::Kill(Part::Daemon), rest),
        ["kill", "guard", rest @ ..] => (Fault::Kill(Part::Guard), rest),
        ["kill", "postgres", rest @ ..] => (Fault::Kill(Part::Postgres), rest),
        ["kill", ..] => return Err("`kill` needs `daemon`, `guard` or `postgres`, as `kill postgres active`".into()),
        [other, ..] => {
            return Err(format!(
                "`{other}` is no fault; there are crash, boot, cut, heal, oneway, loss, pause, resume, kill, switchover, part, mark, unmark, \
                 insert, remove, join"
            ));
        }
        [] => return Err("no fault is named, as in `at 5s crash active`".into()),
    };
    let victim = match rest {
        [] => match fault {
            Fault::Boot | Fault::Resume | Fault::Join => Victim::Last,
            Fault::Heal => Victim::All,
            Fault::Switchover => Victim::Active,
            _ => return Err("no host is named; use active, standby, leader, last, all or a host's name".into()),
        },
        [name] => victim(name, hosts)?,
        [_, extra, ..] => return Err(format!("`{extra}` is too much; one host a step")),
    };
    Ok(Step { at, fault, victim })
}

fn victim(word: &str, hosts: &[&str]) -> Result<Victim, String> {
    Ok(match word {
        "active" => Victim::Active,
        "standby" => Victim::Standby,
        "leader" => Victim::Leader,
        "last" => Victim::Last,
        "standbys" => Victim::Standbys,
        "down" => Victim::Down,
        "all" => Victim::All,
        name if hosts.contains(&name) => Victim::Host(name.to_owned()),
        name => {
            let known = hosts.join(", ");
            return Err(format!(
                "`{name}` is no host; use active, standby, leader, last, standbys, down, all or one of {known}"
            ));
        }
    })
}

/// Reads a time: a number with ms, s, m or h.
pub(super) fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; use a number with ms, s, m or h, as `1500ms`, `5s`, `2m`");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let number: f64 = text[..split].parse().map_err(|_| wrong())?;
    let seconds = match &text[split..] {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(wrong()),
    };
    // A day is longer than any run, and keeps the arithmetic far from overflow.
    if seconds > 86_400.0 { Err(wrong()) } else { Ok(Duration::from_secs_f64(seconds)) }
}

fn count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(number @ 1..=1_000_000) => Ok(number),
        _ => Err(format!("`{text}` is no number of rows; use 1 to 1000000")),
    }
}

fn percent(text: &str) -> Result<u8, String> {
    let wrong = || format!("`{text}` is no share; use 1% to 100%");
    let number: u8 = text.strip_suffix('%').ok_or_else(wrong)?.parse().map_err(|_| wrong())?;
    if (1..=100).contains(&number) { Ok(number) } else { Err(wrong()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &[&str] = &["n1", "n2", "n3"];

    #[test]
    fn a_schedule_reads_as_it_is_written() {
        let text =
            "# power loss\nat 12s boot\nat 5s crash active # now\n\nat 1500ms loss 20% n3\nat 20s heal\nend 1m\n";
        let schedule = Schedule::parse(text, HOSTS).unwrap();
        let printed: Vec<String> = schedule.steps.iter().map(Step::to_string).collect();
        assert_eq!(
            printed,
            ["at 1500ms loss 20% n3", "at 5000ms crash active", "at 12000ms boot last", "at 20000ms heal all"]
        );
        assert_eq!(schedule.end, Duration::from_secs(60));
    }

    #[test]
    fn the_page_on_schedules_is_a_schedule() {
        let page = include_str!("schedule.rs");
        let text: String = page
            .lines()
            .skip_while(|line| !line.contains("```text"))
            .skip(1)
            .take_while(|line| !line.contains("```"))
            .map(|line| format!("{}\n", line.trim_start_matches("//!")))
            .collect();
        let schedule = Schedule::parse(&text, HOSTS).unwrap();
        assert_eq!(schedule.steps.len(), 15);
        assert_eq!(Schedule::parse(&schedule.to_string(), HOSTS), Ok(schedule), "it is printed as it is read");
    }

    #[test]
    fn a_printed_step_parses_to_itself() {
        for text in [
            "oneway in active",
            "oneway out n1",
            "pause standby",
            "kill guard leader",
            "kill daemon n2",
            "cut all",
            "crash standbys",
            "boot down",
            "part n1 active",
            "mark n3",
            "unmark n3",
            "insert 10000 last",
            "remove n3",
            "join n3",
        ] {
            let schedule = Schedule::parse(&format!("at 5s {text}\nend 6s"), HOSTS).unwrap();
            let again = Schedule::parse(&format!("{}\nend 6s", schedule.steps[0]), HOSTS).unwrap();
            assert_eq!(schedule, again);
        }
    }

    #[test]
    fn every_problem_is_told_at_once_with_its_line() {
        let text = "at 5 crash active\nat 5s explode n1\nat 5s cut n9\nat 5s cut\nat 5s oneway n1\nwhat\nat 5s loss 0% n1\nat 99999m cut n1";
        let ScheduleError(problems) = Schedule::parse(text, HOSTS).unwrap_err();
        assert_eq!(problems.len(), 9, "{problems:#?}");
        assert!(problems[0].starts_with("line 1: `5` is no time"));
        assert!(problems[2].contains("`n9` is no host") && problems[2].contains("n1, n2, n3"));
        assert!(problems[8].contains("no `end TIME`"));
        for bad in [
            "at 9s cut n1",
            "silent 6s 9s",
            "writes 3s 2s",
            "form n9",
            "form",
            "option x",
            "at 1s part n1",
            "lossy now",
            "aside 0",
            "at 1s insert n1",
            "at 1s insert",
            "addresses ipx",
        ] {
            assert!(Schedule::parse(&format!("{bad}\nend 5s"), HOSTS).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_lenient_schedule_passes_over_what_a_node_was_not_there_for_and_nothing_that_the_range_could_not_do() {
        let faults = "crash, boot, cut, heal, oneway in, oneway out, loss 5%, pause, resume, part n2, mark, unmark, insert 5, remove, join, \
                      kill daemon, kill guard, kill postgres, switchover";
        let lines: String = faults.split(", ").map(|fault| format!("at 1s {fault} n1\n")).collect();
        let passed_over = |schedule: &Schedule| {
            let steps = schedule.steps.iter().filter(|step| schedule.passes_over(&step.fault));
            steps.map(|step| step.to_string().replace("at 1000ms ", "").replace(" n1", "")).collect::<Vec<_>>()
        };
        let lenient = Schedule::parse(&format!("{lines}lenient\nend 2s"), HOSTS).unwrap();
        assert_eq!(lenient.steps.len(), faults.split(", ").count());
        assert_eq!(passed_over(&lenient), ["kill daemon", "kill guard", "kill postgres", "switchover"]);
        let strict = Schedule::parse(&format!("{lines}end 2s"), HOSTS).unwrap();
        assert!(passed_over(&strict).is_empty());
    }

    #[test]
    fn expectations_and_the_first_members_are_read() {
        let text = "silent 1s 2s\nwrites 2s 3s\noption durability=one_node\nform n1 n2\naddresses names\nlossy\naside 7\nrewound\nend 5s";
        let schedule = Schedule::parse(text, HOSTS).unwrap();
        let of = |from, until, writes| Stretch {
            from: Duration::from_secs(from),
            until: Duration::from_secs(until),
            writes,
        };
        assert_eq!(schedule.stretches, [of(1, 2, false), of(2, 3, true)]);
        assert_eq!(
            (schedule.options, schedule.form),
            (vec!["durability=one_node".to_owned()], vec!["n1".to_owned(), "n2".to_owned()])
        );
        assert_eq!(schedule.addresses, Addresses::Names);
        assert!(schedule.lossy && schedule.rewound && schedule.aside == Some(7));
    }
}
