//! `hasup destroy`: this node's state and database are deleted; the rest of the cluster is not asked, and a node that runs as a
//! member refuses.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::args::{Cli, NodeFlags};
use super::local::{Local, NODE_FILE, REMEMBERED, data_dir_of, is_own_node_file};
use super::show::Out;
use super::{CliError, local, systemd};
use crate::http::client::{Client, Target};
use crate::node::handle::Request;
use crate::postgres::Layout;
use crate::sys::fs::write_durably;

/// How long the daemon and its guard may take to end.
const END_LIMIT: Duration = Duration::from_secs(90);
/// After it was removed, a node may take so long to notice that the others are silent.
const SILENCE_LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn run(cli: &Cli, yes: bool, out: Out) -> Result<ExitCode, CliError> {
    let config = Local::load(&cli.reach, &NodeFlags::default())?.config;
    let data_dir = &config.data_dir;
    if !data_dir.join(REMEMBERED).exists() {
        let text = format!(
            "{} holds no node of hasup. Nothing was deleted. Name the right one by --data-dir",
            data_dir.display()
        );
        return Err(CliError::Refused(text));
    }
    // A database outside was there before hasup, or was put there on purpose: it stays.
    let is_inside = config.postgres.data_dir.starts_with(data_dir);
    if !yes {
        let database = if is_inside { " and the database in it" } else { "; the database outside of it stays" };
        let text = format!(
            "this would stop node {} and delete {}{database}. Nothing was deleted. Take it out of the cluster first by \
             `hasup leave`, then say --yes",
            config.node_name,
            data_dir.display()
        );
        return Err(CliError::Refused(text));
    }
    let socket = config.admin_socket();
    refuse_member(&socket).await?;
    if systemd::runs(data_dir) {
        // Stopped by its supervisor, which else would start it again.
        systemd::retire()?;
    }
    if UnixStream::connect(&socket).is_ok() {
        let client = Client::new(vec![Target::Admin(socket.clone())], None, None).context("prepare to ask the node")?;
        client.request(&Request::Shutdown { handover: true }).await?;
    }
    for socket in [socket.as_path(), &data_dir.join("guard.sock")] {
        wait_until_silent(socket).await?;
    }
    // read before anything is gone
    let node_file = fs::read_to_string(NODE_FILE).unwrap_or_default();
    let is_of_this_node = is_own_node_file(&node_file) && data_dir_of(&node_file) == *data_dir;
    let originals = if is_inside { None } else { keep_originals(data_dir, &config.postgres.data_dir)? };
    fs::remove_dir_all(data_dir).with_context(|| format!("delete {}", data_dir.display()))?;
    let mut text = format!("{} and everything in it was deleted", data_dir.display());
    if !is_inside && config.postgres.data_dir.join("standby.signal").exists() {
        text += &format!(
            ". The database in {0} stays. To start it without hasup, remove {0}/standby.signal, unless it still belongs to a cluster",
            config.postgres.data_dir.display()
        );
    }
    if let Some(folder) = &originals {
        text += &format!(". Its settings of before the adoption are in {}", folder.display());
    }
    if is_of_this_node {
        local::remove_if_there(Path::new(NODE_FILE))?;
        text += &format!(". {NODE_FILE}, which was written when the node began, was removed");
    } else if Path::new(NODE_FILE).exists() {
        text += &format!(". {NODE_FILE} stays, and counts for whatever begins here next");
    }
    local::remove_if_there(&config.admin_socket())?;
    out.answer(&json!({"deleted": data_dir}), &text)?;
    Ok(ExitCode::SUCCESS)
}

/// Refuses where the node runs as a member of a cluster that has a majority now, with others in it: there it is to leave first.
async fn refuse_member(socket: &Path) -> Result<(), CliError> {
    if UnixStream::connect(socket).is_err() {
        return Ok(());
    }
    let client = Client::new(vec![Target::Admin(socket.to_owned())], None, None).context("prepare to ask the node")?;
    let deadline = Instant::now() + SILENCE_LIMIT;
    let status = loop {
        // one that does not answer is in nobody's service
        let Ok(status) = client.status().await else { return Ok(()) };
        let is_listed = status.nodes.iter().any(|node| node.name == status.me);
        if !status.cluster.majority || !is_listed || status.nodes.len() < 2 {
            return Ok(());
        }
        if Instant::now() > deadline {
            break status;
        }
        sleep(Duration::from_millis(100)).await;
    };
    Err(CliError::Refused(format!(
        "{0} is a member of a cluster of {1}, whose commits and votes may count on it. Nothing was deleted. Run `hasup leave` here first \
         (`hasup switchover` before, where it is active). To delete it all the same, stop hasup here first",
        status.me,
        status.nodes.len()
    )))
}

/// Puts the files that an adoption replaced beside the database that stays; returns the folder, if there are any.
fn keep_originals(data_dir: &Path, pgdata: &Path) -> Result<Option<PathBuf>, CliError> {
    let aside = Layout::new(data_dir).originals_dir();
    let Ok(entries) = fs::read_dir(&aside) else { return Ok(None) };
    let mut name = pgdata.file_name().unwrap_or_default().to_owned();
    name.push(".before-hasup");
    let folder = pgdata.with_file_name(name);
    fs::create_dir_all(&folder).with_context(|| format!("make {}", folder.display()))?;
    let give = |path: &Path, like: &fs::Metadata| {
        std::os::unix::fs::chown(path, Some(like.uid()), Some(like.gid()))
            .with_context(|| format!("change the owner of {}", path.display()))
    };
    give(&folder, &fs::metadata(pgdata).with_context(|| format!("look at {}", pgdata.display()))?)?;
    for entry in entries {
        let from = entry.with_context(|| format!("list {}", aside.display()))?.path();
        let to = folder.join(from.file_name().unwrap_or_default());
        let bytes = fs::read(&from).with_context(|| format!("read {}", from.display()))?;
        write_durably(&to, &bytes, 0o600).with_context(|| format!("write {}", to.display()))?;
        give(&to, &fs::metadata(&from).with_context(|| format!("look at {}", from.display()))?)?;
    }
    Ok(Some(folder))
}

/// Waits until nobody listens on `socket`: deleting a running node's files would leave a database nobody guards.
async fn wait_until_silent(socket: &Path) -> Result<(), CliError> {
    let deadline = Instant::now() + END_LIMIT;
    while UnixStream::connect(socket).is_ok() {
        if Instant::now() > deadline {
            let text = format!(
                "somebody still answers on {}. Nothing was deleted. Stop hasup and its guard, then try again",
                socket.display()
            );
            return Err(CliError::Failed(anyhow::Error::msg(text)));
        }
        sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_adoption_replaced_is_put_beside_the_database_that_stays() {
        let folder = tempfile::tempdir().unwrap();
        let (data_dir, pgdata) = (folder.path().join("hasup"), folder.path().join("main"));
        fs::create_dir(&pgdata).unwrap();
        assert_eq!(keep_originals(&data_dir, &pgdata).unwrap(), None);
        let aside = Layout::new(&data_dir).originals_dir();
        fs::create_dir_all(&aside).unwrap();
        fs::write(aside.join("postgresql.auto.conf"), "work_mem = '9MB'\n").unwrap();
        let kept = keep_originals(&data_dir, &pgdata).unwrap().unwrap();
        assert_eq!(kept, folder.path().join("main.before-hasup"));
        assert_eq!(fs::read_to_string(kept.join("postgresql.auto.conf")).unwrap(), "work_mem = '9MB'\n");
    }
}
