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
//! end 70s
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
        let victim = match &self.victim {
            Victim::Active => "active",
            Victim::Standby => "standby",
            Victim::Leader => "leader",
            Victim::Last => "last",
            Victim::All => "all",
            Victim::Host(name) => name,
        };
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
        };
        write!(f, "at {}ms {fault} {victim}", self.at.as_millis())
    }
}

/// A schedule: steps in the order of their times, and the instant at which faults end and health is awaited.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Schedule {
    /// Steps, earliest first; those of one time in the order of the file.
    pub steps: Vec<Step>,
    /// When everything is healed and judged.
    pub end: Duration,
}

/// A schedule cannot be played.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the schedule has {} problem(s); nothing was started:\n{}", .0.len(), .0.join("\n"))]
pub struct ScheduleError(pub Vec<String>);

impl Schedule {
    /// Parses a schedule; `hosts` are the names that it may speak of.
    ///
    /// # Errors
    /// [`ScheduleError`] with all problems, each with its line and what would be right.
    pub fn parse(text: &str, hosts: &[&str]) -> Result<Self, ScheduleError> {
        let mut steps = Vec::new();
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
                ["at", at, rest @ ..] => span(at).and_then(|at| step(at, rest, hosts)).map(|step| steps.push(step)),
                [other, ..] => Err(format!("`{other}` begins no statement; use `at TIME FAULT [HOST]` or `end TIME`")),
            };
            if let Err(problem) = parsed {
                problems.push(format!("line {number}: {problem}"));
            }
        }
        steps.sort_by_key(|step| step.at);
        let last = steps.last().map(|step| step.at);
        match (end, last) {
            (Some(end), Some(last)) if last > end => {
                problems.push(format!(
                    "`end {}s` lies before the last step at {}s",
                    end.as_secs_f64(),
                    last.as_secs_f64()
                ));
            }
            (None, _) => problems.push("there is no `end TIME`: say when the faults are over, as `end 60s`".to_owned()),
            _ => {}
        }
        if problems.is_empty() {
            Ok(Self { steps, end: end.unwrap_or_default() })
        } else {
            Err(ScheduleError(problems))
        }
    }
}

fn step(at: Duration, words: &[&str], hosts: &[&str]) -> Result<Step, String> {
    let (fault, rest) = match words {
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
                "`{other}` is no fault; there are crash, boot, cut, heal, oneway, loss, pause, resume, kill, switchover"
            ));
        }
        [] => return Err("no fault is named, as in `at 5s crash active`".into()),
    };
    let victim = match rest {
        [] => match fault {
            Fault::Boot | Fault::Resume => Victim::Last,
            Fault::Heal => Victim::All,
            Fault::Switchover => Victim::Active,
            _ => return Err("no host is named; use active, standby, leader, last, all or a host's name".into()),
        },
        ["active"] => Victim::Active,
        ["standby"] => Victim::Standby,
        ["leader"] => Victim::Leader,
        ["last"] => Victim::Last,
        ["all"] => Victim::All,
        [name] if hosts.contains(name) => Victim::Host((*name).to_owned()),
        [name] => {
            let known = hosts.join(", ");
            return Err(format!("`{name}` is no host; use active, standby, leader, last, all or one of {known}"));
        }
        [_, extra, ..] => return Err(format!("`{extra}` is too much; one host a step")),
    };
    Ok(Step { at, fault, victim })
}

fn span(text: &str) -> Result<Duration, String> {
    let wrong = || format!("`{text}` is no time; use a number with ms, s or m, as `1500ms`, `5s`, `2m`");
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
    let number: f64 = text[..split].parse().map_err(|_| wrong())?;
    let seconds = match &text[split..] {
        "ms" => number / 1000.0,
        "s" => number,
        "m" => number * 60.0,
        _ => return Err(wrong()),
    };
    // A day is longer than any run, and keeps the arithmetic far from overflow.
    if seconds > 86_400.0 { Err(wrong()) } else { Ok(Duration::from_secs_f64(seconds)) }
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
        assert_eq!(Schedule::parse(&text, HOSTS).map(|schedule| schedule.steps.len()), Ok(10));
    }

    #[test]
    fn a_printed_step_parses_to_itself() {
        for text in
            ["oneway in active", "oneway out n1", "pause standby", "kill guard leader", "kill daemon n2", "cut all"]
        {
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
        assert!(Schedule::parse("at 9s cut n1\nend 5s", HOSTS).is_err());
    }
}
