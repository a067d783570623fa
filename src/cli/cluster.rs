//! Commands that ask a running node and print its answer.

use std::collections::BTreeMap;
use std::fs;
use std::process::ExitCode;

use serde_json::json;

use super::args::{CaCommand, Cli, Command, NodesCommand, OptionsCommand, TokenCommand};
use super::here::{self, Told};
use super::show::{self, Out, table};
use super::{CliError, local};
use crate::config::Secret;
use crate::node::handle::{Answer, Request};
use crate::node::options;
use crate::tls::Fingerprint;

pub(super) async fn run(cli: &Cli, out: Out) -> Result<ExitCode, CliError> {
    match &cli.command {
        Command::Status => {
            let Told { mut status, notice, .. } = here::status(cli).await?;
            let text = show::status(&status, notice.as_deref());
            status.cluster.warnings.splice(0..0, notice);
            out.answer(&status, &text)?;
        }
        Command::Nodes { command: NodesCommand::List } => {
            let Told { status, notice, .. } = here::status(cli).await?;
            out.answer(&status.nodes, &show::nodes(&status, notice.as_deref()))?;
        }
        _ => {
            let answer = local::client(cli)?.request(&request(cli)?).await?;
            out.answer(&answer, &text(&answer))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Returns what the command asks a node for.
fn request(cli: &Cli) -> Result<Request, CliError> {
    let usage = |text: String| CliError::Usage(text);
    Ok(match &cli.command {
        Command::Nodes { command: NodesCommand::Remove { node } } => Request::NodesRemove { name: node.clone() },
        Command::Nodes { command: NodesCommand::Set { node, changes } } => nodes_set(node, changes)?,
        Command::Switchover { to } => Request::Switchover { to: to.clone() },
        Command::Promote { node, force } => Request::Promote { node: node.clone(), force: *force },
        Command::Options { command: OptionsCommand::List } => Request::OptionsList,
        Command::Options { command: OptionsCommand::Set { changes } } => {
            Request::OptionsSet { changes: options::parse(changes).map_err(|error| usage(error.to_string()))? }
        }
        Command::Token { command: TokenCommand::Create { ttl } } => Request::TokenCreate { ttl: *ttl },
        Command::Token { command: TokenCommand::List } => Request::TokenList,
        Command::Token { command: TokenCommand::Revoke { id } } => Request::TokenRevoke { id: id.clone() },
        Command::History { limit } => Request::History { limit: *limit },
        Command::Dsn => Request::Dsn,
        Command::Ca { command: CaCommand::Export } => Request::CaExport,
        Command::Ca { command: CaCommand::Import { file } } => {
            let bundle = fs::read_to_string(file)
                .map_err(|error| usage(format!("{} cannot be read ({error}). Nothing was changed", file.display())))?;
            Request::CaImport { bundle: Secret::new(bundle) }
        }
        Command::Status
        | Command::Nodes { command: NodesCommand::List }
        | Command::Start { .. }
        | Command::Join { .. }
        | Command::Run { .. }
        | Command::Guard { .. }
        | Command::Leave
        | Command::Destroy { .. }
        | Command::Check
        | Command::Config { .. }
        | Command::Demo(_)
        | Command::Chaos(_)
        | Command::Kv { .. }
        | Command::Completions { .. }
        | Command::ExecPostgres(_) => {
            return Err(usage("this build does not hold that command. Nothing was done".to_owned()));
        }
    })
}

fn nodes_set(node: &str, changes: &[String]) -> Result<Request, CliError> {
    let mut priority = None;
    let mut nofailover = None;
    for change in changes {
        let bad = || {
            CliError::Usage(format!("`{change}` sets nothing. Nothing was changed. Use priority=N or nofailover=true"))
        };
        match change.split_once('=').ok_or_else(bad)? {
            ("priority", value) => priority = Some(value.parse().map_err(|_| bad())?),
            ("nofailover", value) => nofailover = Some(value.parse().map_err(|_| bad())?),
            _ => return Err(bad()),
        }
    }
    Ok(Request::NodesSet { name: node.to_owned(), priority, nofailover })
}

/// Returns what people read of an answer.
pub(super) fn text(answer: &Answer) -> String {
    match answer {
        Answer::Done(done) => done.message.clone(),
        Answer::Options(options) => options_text(options),
        Answer::Token(token) => {
            format!("admits until {}\n{}", show::moment(token.expires_at), token.join_token.expose())
        }
        Answer::Tokens(tokens) => {
            let rows: Vec<_> =
                tokens.iter().map(|token| vec![token.id.clone(), show::moment(token.expires_at)]).collect();
            table(&["ID", "ADMITS UNTIL"], &rows)
        }
        Answer::History(events) => show::history(events),
        Answer::KvChanged(changed) => format!("done at index {}", changed.index),
        Answer::Kv(found) => {
            let rows: Vec<_> = found
                .entries
                .iter()
                .map(|entry| {
                    let value = String::from_utf8_lossy(&entry.value).into_owned();
                    vec![entry.key.clone(), entry.modify_index.to_string(), value]
                })
                .collect();
            table(&["KEY", "INDEX", "VALUE"], &rows)
        }
        Answer::Ca(ca) => ca.bundle.expose().to_owned(),
        Answer::Dsn(dsn) => dsn_text(dsn),
    }
}

fn options_text(options: &BTreeMap<String, String>) -> String {
    options.iter().map(|(name, value)| format!("{name}={value}\n")).collect()
}

fn dsn_text(dsn: &crate::node::handle::Dsn) -> String {
    let mut text = if dsn.user.is_empty() {
        format!("{}\nusers, databases and passwords are those that the adopted cluster has\n", dsn.uri)
    } else {
        format!("{}\nuser {}, database {}\n", dsn.uri, dsn.user, dsn.database)
    };
    if let Some(file) = &dsn.password_file {
        text += &format!("its password is in {file}\n");
    }
    if let Some(file) = &dsn.ca_file {
        text += &format!("the authority's certificate is in {file}\n");
    }
    text
}

/// Returns what `start` prints once PostgreSQL takes writes; the join token is on the last line.
pub(super) fn started(
    name: &str,
    peer: &str,
    dsn: &crate::node::handle::Dsn,
    token: &crate::node::handle::NewToken,
    authority: Fingerprint,
) -> (serde_json::Value, String) {
    let value = json!({
        "node": name,
        "dsn": dsn,
        "join": format!("hasup join {peer}"),
        "join_token_expires_at": token.expires_at,
        "join_token": token.join_token.expose(),
        "ca_fingerprint": authority.to_string(),
    });
    let text = format!(
        "{name} takes writes. Clients connect by\n{}\
         its fingerprint, to compare where it is fetched (SHA-256):\n{authority}\n\n\
         Further nodes join by `hasup join {peer}` until {} with the token\n{}\n",
        dsn_text(dsn),
        show::moment(token.expires_at),
        token.join_token.expose()
    );
    (value, text)
}
