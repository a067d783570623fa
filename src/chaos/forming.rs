//! Forms a cluster as its operator would: start, token, joins; and finds out how its clients connect.

use crate::sys::fs::write_volatile;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::unistd::chown;
use tokio::time::{Instant, sleep};

use super::client::{Access, Target};
use super::dsn::Dsn;
use super::node::{First, Node, Supervisor, wait_settled};

/// How long the first node may take to take writes: `initdb` on a slow disk is most of it.
pub const START_LIMIT: Duration = Duration::from_secs(90);
/// How long the cluster may take to be whole: base backups, or a rewind after a fault.
pub const WHOLE_LIMIT: Duration = Duration::from_secs(180);

/// Starts the first of `nodes`, joins the others to it, and waits until all stream and vote and a standby leads. Supervisors are put into
/// `supervisors` as they begin, so that the caller can stop them also when this fails. `dir` takes the token's file.
///
/// # Errors
/// When the cluster is not whole in time, or a daemon ends before it is a member, with its last messages.
pub async fn form(
    nodes: &[Arc<Node>],
    options: &[String],
    dir: &Path,
    supervisors: &mut Vec<Supervisor>,
    tell: &(dyn Fn(&str) + Sync),
) -> anyhow::Result<()> {
    let Some((first, others)) = nodes.split_first() else { bail!("a cluster needs a node") };
    nodes.iter().try_for_each(|node| write_node_file(node))?;
    tell(&format!("{}: hasup start", first.name));
    supervisors.push(Supervisor::begin(Arc::clone(first), First::Start(options.to_vec())));
    let token = token(&supervisors[0]).await?;
    supervisors[0].is_member();
    let token_file = dir.join("token");
    write_private(&token_file, &format!("{token}\n"))?;
    let member = first.peer_address();
    for node in others {
        tell(&format!("{}: hasup join {member}", node.name));
        supervisors.push(Supervisor::begin(Arc::clone(node), First::Join(member.clone(), token_file.clone())));
    }
    let view = wait_settled(supervisors, WHOLE_LIMIT).await?;
    supervisors.iter().for_each(Supervisor::is_member);
    tell(&format!("{} nodes, {} is active", nodes.len(), view.active.unwrap_or_default()));
    Ok(())
}

/// Writes a node file that says nothing, so that the one of this machine, meant for another node, is not read.
///
/// # Errors
/// When it cannot be written.
pub fn write_node_file(node: &Node) -> anyhow::Result<()> {
    write_volatile(&node.config, b"# Everything is said by flags.\n")
        .with_context(|| format!("write {}", node.config.display()))
}

async fn token(first: &Supervisor) -> anyhow::Result<String> {
    let name = &first.node.name;
    let deadline = Instant::now() + START_LIMIT;
    loop {
        if let Some(token) = first.node.join_token() {
            return Ok(token);
        }
        if let Some(end) = first.seen().gave_up {
            bail!("{name} did not start: {end}\n{}", first.node.last_messages());
        }
        if Instant::now() > deadline {
            let limit = START_LIMIT.as_secs();
            bail!("{name} printed no join token within {limit} s\n{}", first.node.last_messages());
        }
        sleep(Duration::from_millis(50)).await;
    }
}

/// How clients reach the database.
pub struct WayIn {
    /// The connection string, without a password.
    pub uri: String,
    /// The user.
    pub user: String,
    /// The database.
    pub database: String,
    /// A password file in libpq's form.
    pub passfile: PathBuf,
    /// A file with the connection string.
    pub dsn_file: PathBuf,
    /// The CA certificates that servers are checked by, where they are.
    pub ca: Option<PathBuf>,
    /// Opens sessions.
    pub access: Access,
    /// Every node's PostgreSQL.
    pub targets: Vec<Target>,
}

impl WayIn {
    /// Asks the first of `nodes` how clients connect, and keeps it in files of `dir` for clients.
    ///
    /// # Errors
    /// When the node does not tell, or a file that it names cannot be read.
    pub async fn find(nodes: &[Arc<Node>], dir: &Path) -> anyhow::Result<Self> {
        let first = nodes.first().context("there are no nodes")?;
        let told = first.ask(&["dsn"], Duration::from_secs(20)).await?;
        let text = |key: &str| told.get(key).and_then(|value| value.as_str()).map(str::to_owned);
        let uri = text("uri").context("`hasup dsn` told no `uri`")?;
        let mut dsn = Dsn::parse(&uri)?;
        dsn.password_file = text("password_file").map(PathBuf::from).or(dsn.password_file);
        dsn.ca = text("ca_file").map(PathBuf::from).or(dsn.ca);
        let password = match &dsn.password_file {
            Some(path) => {
                let file = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
                Some(
                    dsn.password_in(&file)
                        .with_context(|| format!("{} has no password for {}", path.display(), dsn.user))?,
                )
            }
            None => dsn.password.clone(),
        };
        let passfile = dir.join("pgpass");
        let escaped = password.as_deref().unwrap_or_default().replace('\\', "\\\\").replace(':', "\\:");
        write_private(&passfile, &format!("*:*:*:{}:{escaped}\n", dsn.user))?;
        let dsn_file = dir.join("dsn");
        write_private(&dsn_file, &uri)?;
        // Of its own, like the password: a client that named a node's folder would pass for one of the node's processes.
        if let Some(path) = dsn.ca.take() {
            let copy = dir.join("ca.crt");
            fs::copy(&path, &copy).with_context(|| format!("copy {}", path.display()))?;
            dsn.ca = Some(copy);
        }
        let access = Access::new(&dsn.user, &dsn.database, password.as_deref(), dsn.ssl_mode, dsn.ca.as_deref())?;
        let targets = nodes
            .iter()
            .map(|node| Target { name: node.name.clone(), host: node.host.clone(), port: node.postgres_port })
            .collect();
        Ok(Self { uri, user: dsn.user, database: dsn.database, passfile, dsn_file, ca: dsn.ca, access, targets })
    }

    /// Returns the command line of a writer for the nodes that `wanted` picks by name.
    #[must_use]
    pub fn writer(&self, id: &str, journal: &Path, wanted: impl Fn(&str) -> bool) -> Vec<OsString> {
        let mut words: Vec<OsString> = ["chaos", "writer", "--with-parent", "--id", id].map(OsString::from).into();
        words.extend(["--targets".into(), self.target_list(wanted).into()]);
        words.extend(["--dsn-file".into(), self.dsn_file.clone().into()]);
        words.extend(["--password-file".into(), self.passfile.clone().into()]);
        words.extend(["--journal".into(), journal.into()]);
        if let Some(ca) = &self.ca {
            words.extend(["--ca".into(), ca.into()]);
        }
        words
    }

    fn target_list(&self, wanted: impl Fn(&str) -> bool) -> String {
        let picked = self.targets.iter().filter(|target| wanted(&target.name));
        picked.map(|target| format!("{}={}:{}", target.name, target.host, target.port)).collect::<Vec<_>>().join(",")
    }
}

/// Writes a file that only the owner of its folder, and root, can read: the nodes run as that owner.
///
/// # Errors
/// When it cannot be written or handed over.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("make {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("write {}", path.display()))?;
    let owner = fs::metadata(path.parent().unwrap_or(path)).context("look at the folder's owner")?;
    chown(path, Some(owner.uid().into()), Some(owner.gid().into()))
        .with_context(|| format!("hand over {}", path.display()))
}
