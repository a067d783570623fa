//! The cluster's options as operators name and write them.

use std::collections::BTreeMap;

use crate::ha::record::{Durability, Multiplier, Options};

/// An option cannot be set so.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    /// No option has that name.
    #[error("`{0}` is no option. Nothing was changed. Options are: {names}", names = names())]
    Unknown(String),
    /// The value is outside of what the option takes.
    #[error("option {name} cannot be `{value}`. Nothing was changed. Use {cure}")]
    Value {
        /// The option.
        name: &'static str,
        /// The value as written.
        value: String,
        /// What it takes.
        cure: &'static str,
    },
    /// A text is no `name=value`.
    #[error("`{0}` sets no option. Nothing was changed. Write name=value, like check_ttl_multiplier=0.5")]
    Form(String),
}

/// An option: name, what it takes, how to read and to write it.
struct Row {
    name: &'static str,
    cure: &'static str,
    get: fn(&Options) -> String,
    set: fn(&mut Options, &str) -> Option<()>,
}

const ROWS: &[Row] = &[
    Row {
        name: "check_ttl_multiplier",
        cure: "a number from 0.5 to 30",
        get: |options| options.check_ttl_multiplier.to_string(),
        set: |options, text| {
            let thousandths = thousandths(text).filter(|value| (500..=30_000).contains(value))?;
            options.check_ttl_multiplier = Multiplier { thousandths };
            Some(())
        },
    },
    Row {
        name: "check_fail_fast",
        cure: "true or false",
        get: |options| options.check_fail_fast.to_string(),
        set: |options, text| {
            options.check_fail_fast = text.parse().ok()?;
            Some(())
        },
    },
    Row {
        name: "consul_raft_multiplier",
        cure: "a whole number from 1 to 10",
        get: |options| options.raft_multiplier.to_string(),
        set: |options, text| {
            options.raft_multiplier = text.parse().ok().filter(|value| (1..=10).contains(value))?;
            Some(())
        },
    },
    Row {
        name: "durability",
        cure: "two_nodes, best_effort or one_node",
        get: |options| durability_name(options.durability).to_owned(),
        set: |options, text| {
            options.durability = match text {
                "two_nodes" => Durability::TwoNodes,
                "best_effort" => Durability::BestEffort,
                "one_node" => Durability::OneNode,
                _ => return None,
            };
            Some(())
        },
    },
    Row {
        name: "role_changes_per_hour",
        cure: "a whole number from 0 to 1000",
        get: |options| options.role_changes_per_hour.to_string(),
        set: |options, text| {
            options.role_changes_per_hour = text.parse().ok().filter(|value| *value <= 1000)?;
            Some(())
        },
    },
];

fn names() -> String {
    ROWS.iter().map(|row| row.name).collect::<Vec<_>>().join(", ")
}

/// Returns the name of a durability as options and status print it.
pub fn durability_name(durability: Durability) -> &'static str {
    match durability {
        Durability::TwoNodes => "two_nodes",
        Durability::BestEffort => "best_effort",
        Durability::OneNode => "one_node",
    }
}

/// Reads a decimal with up to three places as thousandths, exactly.
fn thousandths(text: &str) -> Option<u32> {
    let (whole, places) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    if whole.is_empty() || places.len() > 3 || !digits(whole) || !digits(places) {
        return None;
    }
    let fraction: u32 = format!("{places:0<3}").parse().ok()?;
    whole.parse::<u32>().ok()?.checked_mul(1000)?.checked_add(fraction)
}

/// Returns every option with its value, by name.
pub fn list(options: &Options) -> BTreeMap<String, String> {
    ROWS.iter().map(|row| (row.name.to_owned(), (row.get)(options))).collect()
}

/// Returns `options` with `changes` made: all of them, or none.
///
/// # Errors
/// The first option that does not exist or cannot have its value.
pub fn apply(options: &Options, changes: &BTreeMap<String, String>) -> Result<Options, OptionError> {
    let mut changed = options.clone();
    for (name, value) in changes {
        // The short name of the same option.
        let name = if name == "raft_multiplier" { "consul_raft_multiplier" } else { name.as_str() };
        let row = ROWS.iter().find(|row| row.name == name).ok_or_else(|| OptionError::Unknown(name.to_owned()))?;
        let bad = || OptionError::Value { name: row.name, value: value.clone(), cure: row.cure };
        (row.set)(&mut changed, value.trim()).ok_or_else(bad)?;
    }
    Ok(changed)
}

/// Returns each option that differs, as `name=value, before it was value`.
pub fn changes(before: &Options, after: &Options) -> Vec<String> {
    let differ = ROWS.iter().map(|row| (row.name, (row.get)(before), (row.get)(after)));
    differ
        .filter(|(_, old, new)| old != new)
        .map(|(name, old, new)| format!("{name}={new}, before it was {old}"))
        .collect()
}

/// Reads `name=value` texts, each possibly several joined by commas.
///
/// # Errors
/// A text of another form, or a change that no options could take.
pub fn parse(texts: &[String]) -> Result<BTreeMap<String, String>, OptionError> {
    let mut changes = BTreeMap::new();
    for text in texts.iter().flat_map(|text| text.split(',')).map(str::trim).filter(|text| !text.is_empty()) {
        let (name, value) = text.split_once('=').ok_or_else(|| OptionError::Form(text.to_owned()))?;
        changes.insert(name.trim().to_owned(), value.trim().to_owned());
    }
    apply(&Options::default(), &changes)?;
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_names_what_differs_and_what_was_before() {
        let before = Options::default();
        let set = |name: &str, value: &str| apply(&before, &[(name.to_owned(), value.to_owned())].into()).unwrap();
        assert_eq!(changes(&before, &set("durability", "one_node")), ["durability=one_node, before it was two_nodes"]);
        assert!(changes(&before, &set("durability", "two_nodes")).is_empty(), "it is so already");
    }

    #[test]
    fn options_are_read_as_they_are_printed() {
        let texts = ["check_ttl_multiplier=0.5,check_fail_fast=false".to_owned(), "raft_multiplier=3".to_owned()];
        let changed = apply(&Options::default(), &parse(&texts).unwrap()).unwrap();
        assert_eq!(changed.check_ttl_multiplier, Multiplier { thousandths: 500 });
        assert_eq!(changed.raft_multiplier, 3);
        assert_eq!(apply(&Options::default(), &list(&changed)).unwrap(), changed);
    }

    #[test]
    fn wrong_options_are_refused_with_their_cure() {
        for bad in
            ["a=1", "check_ttl_multiplier", "check_ttl_multiplier=0.4", "check_ttl_multiplier=1e3", "durability=x"]
        {
            let error = parse(&[bad.to_owned()]).unwrap_err().to_string();
            assert!(error.contains("Nothing was changed"), "{error}");
        }
    }
}
