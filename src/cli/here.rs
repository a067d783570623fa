//! This machine's own node when another one answered in its place: whether it runs, said before all else.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::args::{Cli, NodeFlags};
use super::local::{self, Local, REMEMBERED};
use super::{CliError, systemd};
use crate::config::Config;
use crate::http::client::Target;
use crate::node::error::HandleError;
use crate::node::status::Status;

/// How long a daemon that works may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// What a node says, and where it is not the one that was meant, why not.
#[derive(Debug)]
pub(super) struct Told {
    /// Its word.
    pub(super) status: Status,
    /// What is the matter with this machine's own node, as another one had to answer.
    pub(super) notice: Option<String>,
    /// Whether that one may be well, and only this user may not ask it.
    pub(super) is_closed: bool,
}

/// Asks the nodes that the command names, else this machine's node, else members once heard of.
pub(super) async fn status(cli: &Cli) -> Result<Told, CliError> {
    let client = local::client(cli)?;
    let own = client.targets().iter().find_map(|target| match target {
        Target::Admin(socket) => Some(socket.as_path()),
        Target::Tcp(_) => None,
    });
    match client.status_from().await {
        Ok((status, Target::Admin(_))) => {
            local::remember(&status);
            Ok(Told { status, notice: None, is_closed: false })
        }
        Ok((status, Target::Tcp(_))) => {
            local::remember(&status);
            let found = notice_of(cli, own).await;
            let is_closed = found.as_ref().is_some_and(|(_, is_closed)| *is_closed);
            let notice = found.map(|(notice, _)| format!("{notice}. What follows is the word of {}", status.me));
            Ok(Told { status, notice, is_closed })
        }
        Err(error) => Err(match notice_of(cli, own).await {
            Some((own, _)) => HandleError::new(error.code, format!("{own}. {}", error.message)).into(),
            None => error.into(),
        }),
    }
}

/// Says why the node behind `socket` does not answer, where there is one on this machine.
pub(super) async fn why_silent(cli: &Cli, socket: &Path) -> Option<String> {
    notice_of(cli, Some(socket)).await.map(|(notice, _)| notice)
}

/// Says what is the matter with the node behind `socket`, where there is one on this machine, and whether it is only closed to this user.
async fn notice_of(cli: &Cli, socket: Option<&Path>) -> Option<(String, bool)> {
    let socket = socket?;
    let config = Local::load(&cli.reach, &NodeFlags::default()).ok()?.config;
    if !is_here(&config, socket) {
        return None;
    }
    // who hangs takes no connection once those that wait are many
    let connected = timeout(CONNECT_LIMIT, UnixStream::connect(socket)).await;
    let connected = connected.map_or(Ok(()), |connected| connected.map(drop));
    let is_closed = connected.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied);
    Some((notice(connected, socket, systemd::is_here()), is_closed))
}

fn is_here(config: &Config, socket: &Path) -> bool {
    let has_begun = config.data_dir.join(REMEMBERED).try_exists();
    // a folder that is closed to this user may hold one
    socket.exists() || has_begun.unwrap_or_else(|_| config.data_dir.is_dir())
}

fn notice(connected: io::Result<()>, socket: &Path, has_systemd: bool) -> String {
    let start = if has_systemd {
        "`systemctl start hasup` starts it, and `journalctl -u hasup` tells why it ended"
    } else {
        "`hasup run` starts it"
    };
    match connected {
        Ok(()) => "hasup runs on this machine and does not answer: see its log".to_owned(),
        Err(error) if error.kind() == ErrorKind::WouldBlock => notice(Ok(()), socket, has_systemd),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => format!(
            "the node of this machine cannot be asked by this user ({} is closed to it): say sudo",
            socket.display()
        ),
        Err(_) => format!("hasup does not run on this machine: {start}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_does_not_run_is_not_taken_for_one_that_is_closed_or_hangs() {
        let told =
            |connected: io::Result<()>, has_systemd| notice(connected, Path::new("/run/hasup/n1.sock"), has_systemd);
        for kind in [ErrorKind::NotFound, ErrorKind::ConnectionRefused] {
            let text = told(Err(kind.into()), true);
            assert!(text.contains("does not run on this machine: `systemctl start hasup`"), "{text}");
            assert!(told(Err(kind.into()), false).contains("`hasup run`"));
        }
        let closed = told(Err(ErrorKind::PermissionDenied.into()), true);
        assert!(closed.contains("/run/hasup/n1.sock is closed") && !closed.contains("does not run"), "{closed}");
        assert!(told(Ok(()), true).contains("does not answer"));
    }
}
