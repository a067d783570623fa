//! Schedules by chance: a seed gives the same one for ever.
//!
//! A schedule is a row of episodes with some quiet between them. In each, one thing is done, mostly to whoever has a role just then;
//! it lasts for as long as is near the limits of the lease, or far beyond them; then it is undone. Some episodes overlap, so that a
//! second fault meets a cluster that is still at work on the first.

use std::time::Duration;

use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{RngCore, SeedableRng};

use super::schedule::{Direction, Fault, Part, Schedule, Step, Victim};

/// Quiet before the first fault, and from the last undoing to the end.
const QUIET: Duration = Duration::from_secs(3);

/// The source of chance.
struct Chance(Xoshiro256PlusPlus);

impl Chance {
    /// A number in `low..=high`.
    fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.0.next_u64() % (high - low + 1)
    }

    fn one_of<T: Clone>(&mut self, choices: &[T]) -> Option<T> {
        let index = self.between(0, choices.len().checked_sub(1)? as u64);
        choices.get(usize::try_from(index).ok()?).cloned()
    }

    fn percent(&mut self, share: u64) -> bool {
        self.between(1, 100) <= share
    }

    /// A time in milliseconds: most are near a lease, some far longer.
    fn hold(&mut self) -> Duration {
        let (low, high) = if self.percent(75) { (100, 5_000) } else { (5_000, 15_000) };
        Duration::from_millis(self.between(low, high))
    }

    fn victim(&mut self, hosts: &[&str]) -> Victim {
        match self.between(0, 9) {
            0..=4 => Victim::Active,
            5 => Victim::Leader,
            6 => Victim::Standby,
            _ => Victim::Host(self.one_of(hosts).unwrap_or_default().to_owned()),
        }
    }
}

/// Returns the schedule of `seed`, `duration` long, for these hosts; of two hosts or more.
///
/// Who has a role at some instant is known only when it is played, so a step that then has no victim is passed over
/// ([`Schedule::lenient`]).
#[must_use]
pub fn schedule(seed: u64, duration: Duration, hosts: &[&str]) -> Schedule {
    let mut chance = Chance(Xoshiro256PlusPlus::seed_from_u64(seed));
    let mut steps: Vec<Step> = Vec::new();
    let mut at = QUIET;
    let last = duration.saturating_sub(QUIET);
    while at < last {
        let hold = chance.hold();
        let (fault, undoing) = episode(&mut chance, hosts);
        let victim = match &fault {
            // all at once, and all but the active one: rarely, as everything else stops meanwhile
            Fault::Crash | Fault::Cut | Fault::Pause if chance.percent(10) => {
                if chance.percent(50) {
                    Victim::All
                } else {
                    Victim::Standbys
                }
            }
            Fault::Switchover => Victim::Active,
            _ => chance.victim(hosts),
        };
        steps.push(Step { at, fault, victim });
        let mut over = at;
        if let Some((undoing, victim)) = undoing {
            over = (at + hold).min(last);
            steps.push(Step { at: over, fault: undoing, victim });
        }
        let quiet = Duration::from_millis(chance.between(500, 8_000));
        // the next one begins amid this one now and then
        at = if chance.percent(25) { at + half(hold) } else { over + quiet };
    }
    steps.sort_by_key(|step| step.at);
    // as many in a row would ask for a person
    let options = vec!["role_changes_per_hour=1000".to_owned()];
    Schedule { steps, end: duration, options, lenient: true, ..Schedule::default() }
}

/// Half of a time in whole milliseconds, as schedules are written.
fn half(span: Duration) -> Duration {
    Duration::from_millis((super::whole_millis(span) / 2).max(1))
}

/// Returns what is done, and how and to whom it is undone.
fn episode(chance: &mut Chance, hosts: &[&str]) -> (Fault, Option<(Fault, Victim)>) {
    let heal = Some((Fault::Heal, Victim::All));
    match chance.between(0, 99) {
        0..=19 => (Fault::Crash, Some((Fault::Boot, Victim::Down))),
        20..=34 => (Fault::Cut, heal),
        35..=44 => {
            let direction = if chance.percent(50) { Direction::In } else { Direction::Out };
            (Fault::Oneway(direction), heal)
        }
        45..=54 => (Fault::Part(Victim::Host(chance.one_of(hosts).unwrap_or_default().to_owned())), heal),
        55..=61 => (Fault::Loss(u8::try_from(chance.between(2, 30)).unwrap_or(30)), heal),
        62..=76 => (Fault::Pause, Some((Fault::Resume, Victim::All))),
        77..=91 => {
            let part = chance.one_of(&[Part::Daemon, Part::Guard, Part::Postgres]).unwrap_or(Part::Daemon);
            (Fault::Kill(part), None)
        }
        _ => (Fault::Switchover, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTS: &[&str] = &["n1", "n2", "n3"];
    const LONG: Duration = Duration::from_secs(600);

    #[test]
    fn a_seed_gives_one_schedule_and_another_gives_another() {
        let first = schedule(1, LONG, HOSTS);
        assert_eq!(first, schedule(1, LONG, HOSTS));
        assert_ne!(first, schedule(2, LONG, HOSTS));
        // replayed by number in years to come: whoever changes this gives old numbers another meaning
        let printed = first.steps[0].to_string();
        assert_eq!(printed, "at 3000ms oneway out active");
    }

    #[test]
    fn a_schedule_is_written_as_it_is_read() {
        for seed in 0..200 {
            let made = schedule(seed, LONG, HOSTS);
            assert_eq!(Schedule::parse(&made.to_string(), HOSTS), Ok(made), "seed {seed}");
        }
    }

    #[test]
    fn what_is_done_is_undone_before_the_end_and_every_kind_is_done() {
        let mut kinds = std::collections::BTreeSet::new();
        for seed in 0..50 {
            let made = schedule(seed, LONG, HOSTS);
            assert!(made.steps.len() > 40, "seed {seed}: {}", made.steps.len());
            let last_of = |wanted: &dyn Fn(&Fault) -> bool| made.steps.iter().rposition(|step| wanted(&step.fault));
            for (done, undone) in [
                (last_of(&|it| *it == Fault::Crash), last_of(&|it| *it == Fault::Boot)),
                (last_of(&|it| *it == Fault::Cut), last_of(&|it| *it == Fault::Heal)),
                (last_of(&|it| *it == Fault::Pause), last_of(&|it| *it == Fault::Resume)),
            ] {
                assert!(done < undone || done.is_none(), "seed {seed}");
            }
            let kind = |step: &Step| step.to_string().split_whitespace().nth(2).unwrap_or_default().to_owned();
            kinds.extend(made.steps.iter().map(kind));
        }
        let expected =
            ["boot", "crash", "cut", "heal", "kill", "loss", "oneway", "part", "pause", "resume", "switchover"];
        assert_eq!(kinds, expected.map(str::to_owned).into());
    }
}
