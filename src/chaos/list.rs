//! `hasup chaos list`: what a schedule can say, who writes and who judges, and what this machine lacks for it.

use std::fmt::Write;

use serde_json::json;

use super::checkers::CHECKERS;
use super::kinds::{KINDS, Row};
use super::machine::{Machine, Need};
use super::schedule::{STATEMENTS, VICTIMS};

/// The clients of a run, each a process of its own with a journal of its own, outside the hosts.
pub const CLIENTS: &[(&str, &str)] = &[
    (
        "w0",
        "a writer outside: looks for the node that takes writes and inserts one unique row each 5 ms; gaps are measured by it",
    ),
    ("w-NODE", "a writer beside each host, which tries that node alone: it catches a node that writes behind a cut"),
    ("poller", "asks every node's role endpoint each 20 ms, as a load balancer does"),
    ("iN-NODE", "writes the rows of an `insert` step"),
];

/// List the faults, clients and checkers, and what this machine lacks for them
#[derive(Debug, Clone, clap::Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

/// Prints the list; its exit status is 0 also where the machine lacks something.
pub fn run(args: &ListArgs) -> u8 {
    let machine = Machine::look();
    if args.json {
        println!("{}", as_json(&machine))
    } else {
        print!("{}", as_text(&machine))
    }
    0
}

fn lacks<'a>(machine: &'a Machine, row: &Row) -> Option<&'a str> {
    machine.lacks(row.needs)
}

/// Says, behind what a fault does, whom it is done to where no host is named; empty where one must be.
fn default_host(row: &Row) -> String {
    row.default_victim.map_or_else(String::new, |host| format!(" (without a host: `{host}`)"))
}

fn as_json(machine: &Machine) -> serde_json::Value {
    let faults = KINDS.iter().map(|row| {
        json!({
            "fault": row.word,
            "form": format!("{} {}", row.word, row.argument.form()),
            "example": row.example,
            "does": row.does,
            "proof": row.proof,
            "default_host": row.default_victim,
            "undone_by": row.undone_by,
            "lacks": lacks(machine, row),
        })
    });
    let pairs = |name: &str, table: &[(&str, &str)]| {
        table.iter().map(|(word, does)| json!({name: word, "does": does})).collect::<Vec<_>>()
    };
    json!({
        "lacks": machine.lacks(Need::OF_HOSTS),
        "faults": faults.collect::<Vec<_>>(),
        "hosts": pairs("host", VICTIMS),
        "statements": pairs("statement", STATEMENTS),
        "clients": pairs("client", CLIENTS),
        "checkers": pairs("checker", CHECKERS),
    })
}

fn as_text(machine: &Machine) -> String {
    let head = |title: &str| (format!("\n{title}"), String::new());
    let mut lines = vec![("Faults, in a schedule behind `at TIME`:".to_owned(), String::new())];
    for row in KINDS {
        lines.push((format!("  {} {}", row.word, row.argument.form()), format!("{}{}", row.does, default_host(row))));
        if let Some(why) = lacks(machine, row) {
            lines.push((String::new(), format!("THIS MACHINE CANNOT: {why}")));
        }
    }
    for (title, table) in [
        ("Hosts that a fault is done to:", VICTIMS),
        ("Other statements of a schedule:", STATEMENTS),
        ("Clients:", CLIENTS),
        ("Checkers:", CHECKERS),
    ] {
        lines.push(head(title));
        lines.extend(table.iter().map(|(word, does)| (format!("  {word}"), (*does).to_owned())));
    }
    lines.push(head("This machine:"));
    let whole = machine.lacks(Need::OF_HOSTS).map_or_else(
        || "has what `hasup chaos run` needs for its hosts".to_owned(),
        |why| format!("cannot play a schedule: {why}"),
    );
    lines.push((format!("  {whole}"), String::new()));
    let mut text = String::new();
    for (words, does) in lines {
        let _ = if does.is_empty() { writeln!(text, "{words}") } else { writeln!(text, "{words:<36}  {does}") };
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::schedule::Schedule;

    const README: &str = include_str!("../../README.md");

    /// Returns the table of faults as the README has it.
    fn as_markdown() -> String {
        let mut text = "| fault | what it does | what shows that it bit |\n|---|---|---|\n".to_owned();
        for row in KINDS {
            // A bar would end the cell.
            let form = format!("{} {}", row.word, row.argument.form()).replace('|', "\\|");
            let _ = writeln!(text, "| `{form}`{} | {} | {} |", default_host(row), row.does, row.proof);
        }
        text
    }

    #[test]
    fn the_list_tells_every_fault_client_and_checker_and_what_is_lacking() {
        let machine = Machine::without(Need::Rules, "no nft");
        let text = as_text(&machine);
        for word in KINDS.iter().map(|row| row.does).chain(CHECKERS.iter().chain(CLIENTS).map(|(_, does)| *does)) {
            assert!(text.contains(word), "{word}\n{text}");
        }
        assert_eq!(text.matches("THIS MACHINE CANNOT: no nft").count(), 3, "{text}");
        assert!(text.contains("nothing is dropped any more (without a host: `all`)"), "{text}");
        let told = as_json(&machine);
        assert_eq!(told["faults"].as_array().map(Vec::len), Some(KINDS.len()));
        assert_eq!((&told["lacks"], &told["faults"][4]["lacks"]), (&serde_json::Value::Null, &json!("no nft")));
        assert!(as_text(&Machine::without(Need::Root, "be root")).contains("cannot play a schedule: be root"));
    }

    #[test]
    fn every_checker_is_listed() {
        let sources = [include_str!("checkers.rs"), include_str!("range/judge.rs")];
        let shipped = sources.iter().filter_map(|source| source.split("mod tests").next());
        let names =
            |text: &'static str| text.split("Verdict::new(\"").skip(1).filter_map(|rest| rest.split('"').next());
        let mut named: Vec<&str> = shipped.flat_map(names).collect();
        named.sort_unstable();
        let mut listed: Vec<&str> = CHECKERS.iter().map(|(name, _)| *name).collect();
        listed.sort_unstable();
        assert_eq!(named, listed);
    }

    #[test]
    fn the_readme_has_the_tables_of_the_list_and_an_example_that_is_a_schedule() {
        let page = as_markdown();
        assert!(README.contains(&page), "the README's table of faults is another one; it should be\n{page}");
        for (word, does) in VICTIMS.iter().chain(STATEMENTS).chain(CHECKERS).chain(CLIENTS) {
            let row = format!("| `{}` | {does} |", word.replace('|', "\\|"));
            assert!(README.contains(&row), "the README lacks the row\n{row}");
        }
        let example = README.split("```chaos\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap_or_default();
        let parsed = Schedule::parse(example, &["n1", "n2", "n3"]);
        assert!(parsed.as_ref().is_ok_and(|schedule| schedule.steps.len() > 2), "{parsed:?}");
    }
}
