//! The three nodes, their folders and ports, the writer beside them, and the tidying up.

use std::fs::{self, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::Signal;
use nix::unistd::{Uid, User, chown};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::Progress;
use crate::chaos::forming::{self, WayIn};
use crate::chaos::journal::Journal;
use crate::chaos::node::{Node, Supervisor};
use crate::chaos::process::{self, SharedMemory};
use crate::chaos::schedule::Part;
use crate::chaos::view::View;

/// The addresses, one a node.
const HOSTS: [&str; 3] = ["127.0.0.1", "127.0.0.2", "127.0.0.3"];
/// The user that the nodes and PostgreSQL run as when the demonstration is started as root.
const USER: &str = "postgres";
/// A Unix socket's path holds 107 bytes; the longest one here is `<dir>/n1/sock/.s.PGSQL.65535`.
const DIR_MAX: usize = 60;

/// Everything that the demonstration set up.
pub(crate) struct Scene {
    /// The folder that holds all of it.
    pub(crate) dir: PathBuf,
    /// The nodes, in the order of their names; empty until formed.
    pub(crate) nodes: Vec<Supervisor>,
    /// How clients connect; known once formed.
    pub(crate) way_in: Option<WayIn>,
    /// What servers that were killed have left.
    pub(crate) memory: SharedMemory,
    keep: bool,
    dir_is_ours: bool,
    ports: [u16; 3],
    writer: Option<Child>,
}

impl Scene {
    /// Makes the folder and chooses the ports. Starts nothing.
    pub(crate) fn set_up(dir: Option<&Path>, keep: bool, progress: Progress) -> anyhow::Result<Self> {
        let (dir, dir_is_ours) = match dir {
            Some(dir) => {
                let is_new = !dir.exists();
                fs::create_dir_all(dir).with_context(|| format!("make {}", dir.display()))?;
                if fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some()) {
                    bail!("{} is not empty; nothing was touched. Name an empty or absent folder", dir.display());
                }
                (fs::canonicalize(dir).with_context(|| format!("find {}", dir.display()))?, is_new)
            }
            None => (new_folder()?, true),
        };
        if dir.as_os_str().len() > DIR_MAX {
            bail!(
                "{} is too long a path: PostgreSQL's Unix sockets lie in it, and their paths hold 107 bytes. Use one of at most \
                 {DIR_MAX} bytes",
                dir.display()
            );
        }
        // The nodes of a demonstration by root run as another user, which has to get in.
        fs::set_permissions(&dir, Permissions::from_mode(0o755)).context("open the folder")?;
        if Uid::effective().is_root() {
            let user = User::from_name(USER).context("look for the user postgres")?;
            let user = user.context(
                "there is no user `postgres`; nothing was started. Install PostgreSQL: apt-get install postgresql",
            )?;
            chown(&dir, Some(user.uid), Some(user.gid))
                .with_context(|| format!("give {} to postgres", dir.display()))?;
        }
        progress.line(&format!("working in {}", dir.display()));
        Ok(Self {
            dir,
            nodes: Vec::new(),
            way_in: None,
            memory: SharedMemory::default(),
            keep,
            dir_is_ours,
            ports: free_ports()?,
            writer: None,
        })
    }

    /// Starts the first node, joins the two others, and waits until all three stream and vote.
    pub(crate) async fn form(&mut self, options: &[String], progress: Progress) -> anyhow::Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        let [peer_port, api_port, postgres_port] = self.ports;
        let nodes: Vec<Arc<Node>> = HOSTS
            .iter()
            .enumerate()
            .map(|(index, host)| {
                let name = format!("n{}", index + 1);
                Arc::new(Node {
                    host: (*host).to_owned(),
                    data_dir: self.dir.join(&name),
                    run_dir: self.dir.join(format!("{name}-run")),
                    config: self.dir.join(format!("{name}.toml")),
                    log: self.dir.join(format!("{name}.log")),
                    answers: self.dir.join(format!("{name}.out")),
                    name,
                    peer_port,
                    api_port,
                    postgres_port,
                    program: program.clone(),
                    prefix: Vec::new(),
                })
            })
            .collect();
        forming::form(&nodes, options, &self.dir, &mut self.nodes, &|line| progress.line(line)).await?;
        self.way_in = Some(WayIn::find(&nodes, &self.dir).await?);
        Ok(())
    }

    /// Starts the writer: a process of its own with a journal of its own.
    pub(crate) fn start_writer(&mut self) -> anyhow::Result<()> {
        let way_in = self.way_in.as_ref().context("the cluster has not formed")?;
        let program = std::env::current_exe().context("find this program")?;
        let mut command = Command::new(program);
        command.args(way_in.writer("w0", &self.journal_path(), |_| true));
        let log = fs::File::create(self.dir.join("writer.log")).context("make the writer's log")?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).process_group(0);
        self.writer = Some(command.spawn().context("start the writer")?);
        Ok(())
    }

    /// Returns the path of the writer's journal.
    pub(crate) fn journal_path(&self) -> PathBuf {
        self.dir.join("journal")
    }

    /// Returns an error when the writer has ended by itself.
    pub(crate) fn check_writer(&mut self) -> anyhow::Result<()> {
        if let Some(writer) = &mut self.writer
            && let Some(status) = writer.try_wait().context("look after the writer")?
        {
            let said = fs::read_to_string(self.dir.join("writer.log")).unwrap_or_default();
            bail!("the writer ended ({status}), so nothing can be judged: {}", said.trim());
        }
        Ok(())
    }

    /// Returns the node named `name`.
    pub(crate) fn node(&self, name: &str) -> anyhow::Result<&Supervisor> {
        self.nodes.iter().find(|supervisor| supervisor.node.name == name).with_context(|| format!("no node {name}"))
    }

    /// Returns the first view that any node gives.
    pub(crate) async fn any_view(&self) -> Option<View> {
        let mut best: Option<View> = None;
        for supervisor in &self.nodes {
            if let Ok(view) = supervisor.node.view().await {
                if view.cluster.majority && view.active.is_some() {
                    return Some(view);
                }
                best = best.or(Some(view));
            }
        }
        best
    }

    /// Takes note of the shared memory of every server that runs now, for one that is killed does not free it.
    pub(crate) fn note_memory(&mut self) {
        let all = process::scan();
        for supervisor in &self.nodes {
            let among = process::of_folder(&all, &supervisor.node.data_dir);
            process::parts(&all, &among, Part::Postgres).into_iter().for_each(|pid| self.memory.note(pid));
        }
    }

    /// Returns the numbers of the processes of a node's part: as it is now, one or none.
    pub(crate) fn part(node: &Node, part: Part) -> Vec<i32> {
        process::parts(&process::scan(), &node.processes(), part)
    }

    /// Stops everything in order, kills what does not stop, and removes the folder unless it is to be kept.
    pub(crate) async fn tear_down(mut self, failed: bool, progress: Progress) -> anyhow::Result<()> {
        if let Some(writer) = &mut self.writer {
            process::send(writer.id().and_then(|pid| i32::try_from(pid).ok()), Signal::SIGTERM);
            if timeout(Duration::from_secs(5), writer.wait()).await.is_err() {
                writer.kill().await.context("end the writer")?;
            }
        }
        self.note_memory();
        let folders: Vec<Arc<Node>> = self.nodes.iter().map(|supervisor| Arc::clone(&supervisor.node)).collect();
        let left = || folders.iter().flat_map(|node| node.processes()).collect::<std::collections::BTreeSet<i32>>();
        for supervisor in &self.nodes {
            supervisor.down();
            process::send(supervisor.seen().pid, Signal::SIGTERM);
        }
        if !process::gone(left, Duration::from_secs(15)).await {
            // An immediate shutdown still frees PostgreSQL's shared memory; a kill would not.
            process::send(folders.iter().flat_map(|node| Self::part(node, Part::Postgres)), Signal::SIGQUIT);
            process::gone(left, Duration::from_secs(3)).await;
        }
        process::kill_all(left, Duration::from_secs(10))
            .await
            .map_err(|pids| anyhow::anyhow!("processes {pids:?} do not die; end them by hand"))?;
        self.memory.remove();
        if self.keep || failed {
            progress.line(&format!("logs and journal are kept in {}", self.dir.display()));
            return Ok(());
        }
        for entry in fs::read_dir(&self.dir).with_context(|| format!("read {}", self.dir.display()))? {
            let path = entry?.path();
            let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
        if self.dir_is_ours {
            fs::remove_dir(&self.dir).with_context(|| format!("remove {}", self.dir.display()))?;
        }
        Ok(())
    }
}

/// Reads a journal as it grows, each line once.
#[derive(Debug)]
pub(crate) struct Tail {
    path: PathBuf,
    offset: usize,
    /// All that was read so far.
    pub(crate) journal: Journal,
}

impl Tail {
    /// Begins at the start of `path`, which need not exist yet.
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, offset: 0, journal: Journal::default() }
    }

    /// Reads what was added since the last call.
    pub(crate) fn read(&mut self) -> anyhow::Result<&Journal> {
        use std::io::{Read, Seek, SeekFrom};
        let mut file = match fs::File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(&self.journal),
            Err(error) => return Err(error).with_context(|| format!("open {}", self.path.display())),
        };
        let mut text = String::new();
        file.seek(SeekFrom::Start(u64::try_from(self.offset).unwrap_or(u64::MAX)))?;
        file.read_to_string(&mut text).with_context(|| format!("read {}", self.path.display()))?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        self.journal.append(&text[..whole])?;
        self.offset += whole;
        Ok(&self.journal)
    }
}

fn new_folder() -> anyhow::Result<PathBuf> {
    for _ in 0..16 {
        let id = uuid::Uuid::new_v4().simple().to_string();
        let dir = PathBuf::from(format!("/tmp/hasup-demo.{}", &id[..6]));
        match fs::create_dir(&dir) {
            Ok(()) => return Ok(dir),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error).with_context(|| format!("make {}", dir.display())),
        }
    }
    bail!("no free name for a folder under /tmp")
}

/// Returns three ports that are free on all three addresses, for TCP and UDP: the system offers, the others are tried.
fn free_ports() -> anyhow::Result<[u16; 3]> {
    // Held until all are chosen, so that none is offered twice.
    let mut held: Vec<(Vec<TcpListener>, Vec<UdpSocket>)> = Vec::new();
    let mut ports = Vec::new();
    for _ in 0..100 {
        let first = TcpListener::bind((HOSTS[0], 0)).context("ask the system for a free port on 127.0.0.1")?;
        let port = first.local_addr().context("learn the port")?.port();
        let others: Result<Vec<_>, _> = HOSTS[1..].iter().map(|host| TcpListener::bind((*host, port))).collect();
        let datagrams: Result<Vec<_>, _> = HOSTS.iter().map(|host| UdpSocket::bind((*host, port))).collect();
        if let (Ok(mut listeners), Ok(datagrams)) = (others, datagrams) {
            listeners.push(first);
            held.push((listeners, datagrams));
            ports.push(port);
        }
        if let [peer, api, postgres] = ports[..] {
            return Ok([peer, api, postgres]);
        }
    }
    bail!(
        "no port is free on 127.0.0.1, 127.0.0.2 and 127.0.0.3 alike; nothing was started. Does this machine's loopback hold 127.0.0.0/8?"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_distinct() {
        let [a, b, c] = free_ports().unwrap();
        assert!(a != b && b != c && a != c);
    }

    #[test]
    fn a_growing_journal_is_read_line_by_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let mut tail = Tail::new(path.clone());
        assert_eq!(tail.read().unwrap().rows.len(), 0);
        fs::write(&path, "row 1 2 a n1 1 ok\nrow 3 4 b").unwrap();
        assert_eq!(tail.read().unwrap().rows.len(), 1);
        fs::write(&path, "row 1 2 a n1 1 ok\nrow 3 4 b n1 1 ok\n").unwrap();
        assert_eq!(tail.read().unwrap().rows.len(), 2);
        assert_eq!(tail.read().unwrap().rows.len(), 2);
    }

    #[test]
    fn a_folder_with_something_in_it_is_not_touched() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mine"), "x").unwrap();
        let error = Scene::set_up(Some(folder.path()), false, Progress { to_stderr: true }).err().unwrap();
        assert!(error.to_string().contains("nothing was touched"), "{error}");
    }
}
