//! `hasup kv`.

use std::collections::BTreeMap;
use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde::Serialize;

use super::args::{Cli, KvCommand};
use super::show::Out;
use super::{CliError, cluster, local};
use crate::http::client::Client;
use crate::node::error::{ErrorCode, HandleError};
use crate::node::handle::{Answer, KvEntries, KvEntry, Request};

/// How long one question of a watch waits before it is asked again.
const WATCH_WAIT: Duration = Duration::from_secs(60);

pub(super) async fn run(cli: &Cli, command: &KvCommand, out: Out) -> Result<ExitCode, CliError> {
    let client = local::client(cli)?;
    match command {
        KvCommand::Get { key, stale } => {
            let found = ask(&client, Request::KvGet { key: key.clone(), stale: *stale }).await?;
            let Some(entry) = found.entries.first() else {
                let text = format!("The key {key} does not exist. Write it by `hasup kv put`");
                return Err(HandleError::new(ErrorCode::NotFound, text).into());
            };
            if out.is_json() {
                out.answer(entry, "")?;
            } else {
                // As it is, so that binary values survive a pipe; a line's end for people.
                out.bytes(&entry.value)?;
                if !entry.value.ends_with(b"\n") {
                    out.bytes(b"\n")?;
                }
            }
        }
        KvCommand::Put { key, value, flags, cas } => {
            let mut bytes = value.clone().into_bytes();
            if value == "-" {
                bytes.clear();
                std::io::stdin().lock().read_to_end(&mut bytes).context("read the value from standard input")?;
            }
            let request = Request::KvPut { key: key.clone(), value: bytes, flags: *flags, cas: *cas };
            let answer = client.request(&request).await?;
            out.answer(&answer, &cluster::text(&answer))?;
        }
        KvCommand::Delete { key, recurse, cas } => {
            let answer = client.request(&Request::KvDelete { key: key.clone(), recurse: *recurse, cas: *cas }).await?;
            out.answer(&answer, &cluster::text(&answer))?;
        }
        KvCommand::List { prefix, stale } => {
            let found = ask(&client, Request::KvList { prefix: prefix.clone(), stale: *stale }).await?;
            out.answer(&found, &cluster::text(&Answer::Kv(found.clone())))?;
        }
        KvCommand::Watch { key, prefix, count } => watch(&client, key, *prefix, *count, out).await?,
    }
    Ok(ExitCode::SUCCESS)
}

/// A state of the watched keys, and what makes it another than the one before.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Step<'a> {
    #[serde(flatten)]
    found: &'a KvEntries,
    /// Keys that are new or have changed; at first, all.
    changed: Vec<&'a str>,
    /// Keys that are gone.
    deleted: Vec<&'a str>,
}

impl<'a> Step<'a> {
    fn of(before: &'a [KvEntry], found: &'a KvEntries) -> Self {
        let by_key = |entries: &'a [KvEntry]| -> BTreeMap<&'a str, &'a KvEntry> {
            entries.iter().map(|entry| (entry.key.as_str(), entry)).collect()
        };
        let (old, new) = (by_key(before), by_key(&found.entries));
        let changed = new.iter().filter(|(key, entry)| old.get(*key) != Some(*entry)).map(|(key, _)| *key).collect();
        let deleted = old.keys().filter(|key| !new.contains_key(*key)).copied().collect();
        Self { found, changed, deleted }
    }

    /// Returns a line for each key that has changed or is gone.
    fn text(&self) -> String {
        let changed = self.found.entries.iter().filter(|entry| self.changed.contains(&entry.key.as_str()));
        let changed = changed.map(|entry| {
            format!("{}  {}  {}\n", entry.key, entry.modify_index, String::from_utf8_lossy(&entry.value).trim_end())
        });
        // no value has such an index
        changed.chain(self.deleted.iter().map(|key| format!("{key}  -  (deleted)\n"))).collect()
    }
}

/// Prints the present state, then the keys that each change made or changed, and those that are gone.
async fn watch(client: &Client, key: &str, prefix: bool, count: Option<u64>, out: Out) -> Result<(), CliError> {
    let mut index = 0;
    let mut printed = 0;
    let mut last: Option<Vec<KvEntry>> = None;
    while count.is_none_or(|count| printed < count) {
        let request = Request::KvWatch { key: key.to_owned(), prefix, index, wait: WATCH_WAIT };
        let found = ask(client, request).await?;
        index = found.index;
        if last.as_ref() == Some(&found.entries) {
            continue;
        }
        let step = Step::of(last.as_deref().unwrap_or_default(), &found);
        let text = if last.is_none() { cluster::text(&Answer::Kv(found.clone())) } else { step.text() };
        if prefix {
            out.answer(&step, &text)?;
        } else {
            out.answer(&found, &text)?;
        }
        last = Some(found.entries);
        printed += 1;
    }
    Ok(())
}

async fn ask(client: &Client, request: Request) -> Result<KvEntries, CliError> {
    match client.request(&request).await? {
        Answer::Kv(found) => Ok(found),
        _ => Err(HandleError::new(ErrorCode::Internal, "The node gave another answer than keys").into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_under_a_prefix_is_told_without_the_keys_that_stayed() {
        let entry = |key: &str, value: &str, modify_index| KvEntry {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            flags: 0,
            create_index: 1,
            modify_index,
        };
        let before = [entry("a/1", "one", 3), entry("a/2", "two", 4), entry("a/3", "three", 5)];
        let found = KvEntries {
            index: 9,
            entries: vec![entry("a/1", "one", 3), entry("a/3", "drei\n", 8), entry("a/4", "vier", 7)],
        };
        let step = Step::of(&before, &found);
        assert_eq!(step.text(), "a/3  8  drei\na/4  7  vier\na/2  -  (deleted)\n");
        let json = serde_json::to_value(&step).unwrap();
        assert_eq!(
            (&json["changed"], &json["deleted"]),
            (&serde_json::json!(["a/3", "a/4"]), &serde_json::json!(["a/2"]))
        );
        assert_eq!(json["index"], 9);
        assert_eq!(json["entries"].as_array().unwrap().len(), 3, "the whole state, as `kv list` tells it");
        assert_eq!(Step::of(&[], &found).changed.len(), 3);
    }
}
