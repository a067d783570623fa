//! The command line: what can be said, and which part does it.
//!
//! Exit codes: 0 done, 1 failed, 2 usage, 3 refused, 4 unknown outcome; `check` has monitoring's 0, 1, 2, 3.

mod args;
mod begin;
mod check;
mod cluster;
mod destroy;
mod here;
mod kv;
mod leave;
mod local;
mod progress;
mod show;
mod systemd;

use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

pub use args::{Cli, Command};
pub use begin::{Daemon, prepare_daemon, run_daemon};
pub use local::{Local, drop_privileges};

use crate::node::error::HandleError;
use crate::sys::journal::{self, Priority};

/// A command did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The command makes no sense as written, or here.
    #[error("{0}")]
    Usage(String),
    /// It would be unsafe or pointless; nothing was done.
    #[error("{0}")]
    Refused(String),
    /// A node's word.
    #[error(transparent)]
    Node(#[from] HandleError),
    /// The configuration has problems.
    #[error(transparent)]
    Config(#[from] crate::config::Problems),
    /// Anything else that went wrong.
    #[error(transparent)]
    Failed(#[from] anyhow::Error),
}

impl CliError {
    /// Returns the exit code.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) => 2,
            Self::Refused(_) => 3,
            Self::Node(error) => error.code.exit_code(),
            Self::Failed(_) => 1,
        }
    }
}

/// Reads the command line; prints help, version and usage errors itself.
///
/// # Errors
/// The exit code where there is nothing more to do: 0 after help, 2 after a usage error.
pub fn parse<I: IntoIterator<Item = std::ffi::OsString>>(words: I) -> Result<Cli, ExitCode> {
    Cli::try_parse_from(words).map_err(|error| {
        // Nobody is left to tell when the terminal is gone.
        let _ = error.print();
        if error.use_stderr() { ExitCode::from(2) } else { ExitCode::SUCCESS }
    })
}

/// Prints `error` with its causes to standard error, as JSON where asked for, and returns its exit code.
pub fn report(error: &CliError, json: bool) -> ExitCode {
    let text = match error {
        CliError::Failed(error) => format!("{error:#}"),
        other => other.to_string(),
    };
    let line = if json {
        let code = match error {
            CliError::Usage(_) | CliError::Config(_) => "bad_request".to_owned(),
            CliError::Refused(_) => "refused".to_owned(),
            CliError::Node(error) => error.code.to_string(),
            CliError::Failed(_) => "internal".to_owned(),
        };
        serde_json::json!({"error": {"code": code, "message": text}}).to_string()
    } else {
        // In the journal, this is the line that `journalctl -p err` must find.
        let line = format!("hasup: {text}");
        if journal::reads_stderr() { journal::stamped(Priority::Error, &line) } else { line }
    };
    // Nobody is left to tell when the terminal is gone.
    let _ = writeln!(std::io::stderr(), "{line}");
    ExitCode::from(error.exit_code())
}

/// Runs a command that ends by itself: everything but the daemon, the guard and what they start.
///
/// # Errors
/// The command failed, was refused, or its outcome is not known.
pub async fn run_command(cli: &Cli) -> Result<ExitCode, CliError> {
    let out = show::Out::new(cli.reach.json);
    match &cli.command {
        Command::Kv { command } => kv::run(cli, command, out).await,
        Command::Check => check::run(cli, out).await,
        Command::Leave => leave::run(cli, out).await,
        Command::Destroy { yes } => destroy::run(cli, *yes, out).await,
        Command::Demo(args) => {
            let mut args = args.clone();
            args.json |= cli.reach.json;
            Ok(ExitCode::from(crate::demo::main(args)?))
        }
        Command::Chaos(args) => Ok(ExitCode::from(crate::chaos::main(args.clone())?)),
        Command::Config { command: args::ConfigCommand::Check { node } } => local::config_check(cli, node, out),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut shown_commands(), "hasup", &mut script);
            out.bytes(&script)?;
            Ok(ExitCode::SUCCESS)
        }
        _ => cluster::run(cli, out).await,
    }
}

/// Returns the tree of commands without those that only hasup itself gives: a completion script would offer hidden ones too.
fn shown_commands() -> clap::Command {
    shown(&Cli::command()).version(env!("CARGO_PKG_VERSION")).propagate_version(true)
}

fn shown(command: &clap::Command) -> clap::Command {
    // clap takes no subcommand away again, so the tree is built anew of what completions know
    clap::Command::new(command.get_name().to_owned())
        .about(command.get_about().cloned().unwrap_or_default())
        .args(command.get_arguments())
        .subcommands(command.get_subcommands().filter(|inner| !inner.is_hide_set()).map(shown))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn completions_offer_what_help_shows() {
        use clap_complete::Shell;
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::PowerShell, Shell::Elvish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut shown_commands(), "hasup", &mut script);
            let script = String::from_utf8(script).unwrap();
            for hidden in ["exec-postgres", "exec__postgres", "exec__subcmd__postgres", "poller"] {
                assert!(!script.contains(hidden), "{shell} has {hidden}");
            }
            for word in ["switchover", "completions", "run-dir", "watch", "version"] {
                assert!(script.contains(word), "{shell} lacks {word}");
            }
        }
    }

    #[test]
    fn variables_of_commands_are_no_unknown_settings() {
        fn env_of(command: &clap::Command, found: &mut std::collections::BTreeSet<String>) {
            let names = command.get_arguments().filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned));
            found.extend(names);
            command.get_subcommands().for_each(|inner| env_of(inner, found));
        }
        let mut found = std::collections::BTreeSet::new();
        env_of(&Cli::command(), &mut found);
        assert_eq!(found.into_iter().collect::<Vec<_>>(), crate::config::VARIABLES_OF_COMMANDS);
    }

    fn code_of(words: &[&str]) -> String {
        let words = std::iter::once("hasup").chain(words.iter().copied()).map(std::ffi::OsString::from);
        match Cli::try_parse_from(words) {
            Ok(_) => "parsed".to_owned(),
            Err(error) if error.use_stderr() => "2".to_owned(),
            Err(_) => "0".to_owned(),
        }
    }

    #[test]
    fn the_command_tree_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn words_for_postgresql_pass_untouched() {
        let words =
            ["12", "/usr/lib/postgresql/15/bin/postgres", "-D", "/d", "-c", "a=b", "--config", "--json", "--help"];
        let line = ["hasup", "exec-postgres"].into_iter().chain(words).map(std::ffi::OsString::from);
        let Ok(Cli { command: Command::ExecPostgres(passed), reach }) = Cli::try_parse_from(line) else {
            panic!("it is read as something else")
        };
        assert_eq!(passed.words, words);
        assert!(!reach.json);
        assert_eq!(code_of(&["guard", "--data-dir", "/d", "--pgdata", "/p"]), "parsed");
    }

    #[test]
    fn exit_codes_are_those_of_the_manual() {
        let node = |code| CliError::Node(HandleError::new(code, "")).exit_code();
        let refused = CliError::Refused(String::new()).exit_code();
        let usage = CliError::Usage(String::new()).exit_code();
        let failed = CliError::Failed(anyhow::anyhow!("x")).exit_code();
        let unknown = node(crate::node::error::ErrorCode::Unknown);
        assert_eq!([failed, usage, refused, unknown], [1, 2, 3, 4]);
        assert_eq!(node(crate::node::error::ErrorCode::Refused), refused);
    }

    #[test]
    fn every_command_parses_as_documented_and_nonsense_is_a_usage_error() {
        for good in [
            "start --foreground --node-name n1 --host-ip 127.0.0.1 --data-dir /d --run-dir /r --peer-port 1 --api-port 2 --postgres-port 3",
            "start --options check_ttl_multiplier=0.5,check_fail_fast=false --options raft_multiplier=2 --json",
            "join 127.0.0.1:7400,db2 --token-file /t --foreground --no-wait --witness",
            "start --adopt /var/lib/postgresql/15/main --stop-running",
            "run --foreground --data-dir /d",
            "guard --data-dir /d",
            "status --json --target a:1,b:2",
            "--json nodes list",
            "nodes remove n2",
            "nodes set n2 priority=5 nofailover=true",
            "switchover --to n2",
            "promote n2 --force",
            "leave",
            "destroy --yes",
            "options list",
            "options set durability=one_node",
            "token create --ttl 2h",
            "token list",
            "token revoke abc",
            "history --limit 5",
            "check",
            "config check --config /c",
            "dsn",
            "demo --smoke --json",
            "chaos run --schedule f --allow-skip loss --json",
            "chaos list --json",
            "chaos replay /tmp/r --json",
            "ca export",
            "ca import /f",
            "kv get a --stale",
            "kv put a b --cas 1",
            "kv delete a --recurse",
            "kv list",
            "kv watch a --prefix",
            "completions bash",
        ] {
            assert_eq!(code_of(&good.split(' ').collect::<Vec<_>>()), "parsed", "{good}");
        }
        for bad in
            ["", "nonsense", "join", "promote", "nodes", "status --nonsense", "kv put a", "token create --ttl soon"]
        {
            let words: Vec<_> = bad.split(' ').filter(|word| !word.is_empty()).collect();
            assert_eq!(code_of(&words), "2", "{bad}");
        }
        assert_eq!(code_of(&["--help"]), "0");
        assert_eq!(code_of(&["--version"]), "0");
    }
}
