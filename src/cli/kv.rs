//! `hasup kv`.

use std::io::Read;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;

use super::args::{Cli, KvCommand};
use super::show::Out;
use super::{CliError, cluster, local};
use crate::http::client::Client;
use crate::node::error::{ErrorCode, HandleError};
use crate::node::handle::{Answer, KvEntries, Request};

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

/// Prints the present state, then each state after a change.
async fn watch(client: &Client, key: &str, prefix: bool, count: Option<u64>, out: Out) -> Result<(), CliError> {
    let mut index = 0;
    let mut printed = 0;
    let mut last = None;
    while count.is_none_or(|count| printed < count) {
        let request = Request::KvWatch { key: key.to_owned(), prefix, index, wait: WATCH_WAIT };
        let found = ask(client, request).await?;
        index = found.index;
        if last.as_ref() != Some(&found.entries) {
            out.answer(&found, &cluster::text(&Answer::Kv(found.clone())))?;
            last = Some(found.entries);
            printed += 1;
        }
    }
    Ok(())
}

async fn ask(client: &Client, request: Request) -> Result<KvEntries, CliError> {
    match client.request(&request).await? {
        Answer::Kv(found) => Ok(found),
        _ => Err(HandleError::new(ErrorCode::Internal, "The node gave another answer than keys").into()),
    }
}
