//! Reads a schedule: every problem at once, each with its line and with what would be right.

use std::time::Duration;

use crate::chaos::kinds::Kind;

use super::{Addresses, Direction, Fault, Part, STATEMENTS, Schedule, ScheduleError, Step, Stretch, VICTIMS, Victim};

impl Schedule {
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
                [other, ..] => Err(no_statement(other)),
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

/// Says what would be right where a line begins with `word` and is no statement.
fn no_statement(word: &str) -> String {
    if let Some((form, _)) = STATEMENTS.iter().find(|(form, _)| form.split(' ').next() == Some(word)) {
        return format!("`{word}` stands in another form; write `{form}`");
    }
    let known: Vec<String> = STATEMENTS.iter().map(|(form, _)| format!("`{form}`")).collect();
    format!("`{word}` begins no statement; use `at TIME FAULT [HOST]`, {}", known.join(", "))
}

fn stretch(writes: bool, from: &str, until: &str) -> Result<Stretch, String> {
    let (from, until) = (span(from)?, span(until)?);
    if from >= until {
        return Err(format!("the stretch ends at {}s, before it began", until.as_secs_f64()));
    }
    Ok(Stretch { from, until, writes })
}

fn step(at: Duration, words: &[&str], hosts: &[&str]) -> Result<Step, String> {
    let (word, mut rest) = words.split_first().ok_or("no fault is named, as in `at 5s crash active`")?;
    let row = word.parse::<Kind>()?.row();
    let wrong = || format!("`{word}` needs {}, as `{}`", row.argument.what(), row.example);
    let mut argument = || {
        let (first, others) = rest.split_first().ok_or_else(wrong)?;
        rest = others;
        Ok::<&str, String>(first)
    };
    let fault = match row.kind {
        Kind::Crash => Fault::Crash,
        Kind::Boot => Fault::Boot,
        Kind::Cut => Fault::Cut,
        Kind::Heal => Fault::Heal,
        Kind::Pause => Fault::Pause,
        Kind::Resume => Fault::Resume,
        Kind::Switchover => Fault::Switchover,
        Kind::Mark => Fault::Mark(true),
        Kind::Unmark => Fault::Mark(false),
        Kind::Remove => Fault::Remove,
        Kind::Join => Fault::Join,
        Kind::Oneway => Fault::Oneway(match argument()? {
            "in" => Direction::In,
            "out" => Direction::Out,
            _ => return Err(wrong()),
        }),
        Kind::Loss => Fault::Loss(percent(argument()?)?),
        Kind::Kill => Fault::Kill(match argument()? {
            "daemon" => Part::Daemon,
            "guard" => Part::Guard,
            "postgres" => Part::Postgres,
            _ => return Err(wrong()),
        }),
        Kind::Insert => Fault::Insert(count(argument()?)?),
        Kind::Part => {
            let [_, other] = *rest else { return Err(wrong()) };
            rest = &rest[..1];
            Fault::Part(victim(other, hosts)?)
        }
    };
    let victim = match rest {
        [] => {
            let none = || format!("no host is named; use {} or a host's name", victim_words());
            victim(row.default_victim.ok_or_else(none)?, hosts)?
        }
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
            return Err(format!("`{name}` is no host; use {} or one of {}", victim_words(), hosts.join(", ")));
        }
    })
}

fn victim_words() -> String {
    VICTIMS.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ")
}

/// Reads a time: a number with ms, s, m or h.
pub(in crate::chaos) fn span(text: &str) -> Result<Duration, String> {
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
    use super::super::*;

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
        let page = include_str!("../schedule.rs");
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
        for (form, _) in STATEMENTS {
            let word = form.split(' ').next().unwrap();
            assert!(text.lines().any(|line| line.split_whitespace().next() == Some(word)), "it shows `{form}`");
        }
    }

    #[test]
    fn every_word_for_a_host_is_one() {
        for (word, _) in VICTIMS {
            let schedule = Schedule::parse(&format!("at 1s cut {word}\nend 2s"), HOSTS).unwrap();
            assert_eq!(schedule.steps[0].victim.to_string(), *word);
        }
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
        assert!(problems[3].contains("use active, standby, leader"), "{}", problems[3]);
        assert!(problems[5].starts_with("line 6: `what` begins no statement; use `at TIME FAULT [HOST]`, `end TIME`"));
        assert!(problems[8].contains("no `end TIME`"));
        let ScheduleError(problems) = Schedule::parse("silent 5s\nend 9s", HOSTS).unwrap_err();
        assert_eq!(problems, ["line 1: `silent` stands in another form; write `silent TIME TIME`"]);
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
