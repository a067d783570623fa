//! How a node begins, kept in its data directory until that has succeeded: whoever starts the daemon, and however often it
//! is interrupted, it goes on with what the operator asked for.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Uid, fchown};
use serde::{Deserialize, Serialize};

use super::lock::LockError;
use super::memory::ForgottenError;
use super::ports::PortError;
use crate::config::Secret;
use crate::node::NodeError;
use crate::peer::join::JoinError;
use crate::postgres::adopt::AdoptRefused;
use crate::tls::TlsError;

/// What `start` and `join` were told, kept in the data directory; its presence marks a folder of hasup's.
pub const REMEMBERED: &str = "node.toml";
/// What is left of it when the try was refused: the mark alone, as nothing that was said then counts any more.
const REFUSED_MARK: &str = "# A node was to begin here and was refused. Nothing that it was told is kept.\n";

/// How a node begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Begin {
    /// As a member that it already is.
    Run,
    /// As the first node of a new cluster.
    Start {
        /// Options of the cluster, names and values as written and already checked.
        options: BTreeMap<String, String>,
        /// Whether it takes over a database that is there, instead of making one.
        #[serde(default)]
        adopt: bool,
    },
    /// As a further node.
    Join {
        /// Members to ask, as `host:port` of their peer port, in the order to try.
        targets: Vec<String>,
        /// What admits it.
        #[serde(serialize_with = "Secret::serialize_exposed")]
        token: Secret,
        /// Options that must agree with the cluster's.
        options: BTreeMap<String, String>,
    },
}

/// What was asked for cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub enum BeginError {
    /// A file cannot be read or written.
    #[error(
        "{action} {path} failed. The node has not begun. See that the folder exists, belongs to hasup's user and has room"
    )]
    File {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file is not understood.
    #[error("{path} is not understood. The node has not begun. Remove it and give `hasup start` or `hasup join` again")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
}

impl Begin {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("begin.json")
    }

    /// Reads what the node of `data_dir` still has to do; [`Begin::Run`] where it has begun before.
    ///
    /// # Errors
    /// The file cannot be read or is not understood.
    pub fn load(data_dir: &Path) -> Result<Self, BeginError> {
        let path = Self::path(data_dir);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|source| BeginError::Broken { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::Run),
            Err(source) => Err(BeginError::File { action: "reading", path, source }),
        }
    }

    /// Keeps it durably in `data_dir`, readable by `owner` alone.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, data_dir: &Path, owner: Option<(Uid, Gid)>) -> Result<(), BeginError> {
        let path = Self::path(data_dir);
        let bytes = serde_json::to_vec(self).map_err(|source| BeginError::Broken { path: path.clone(), source })?;
        keep(&path, &bytes, 0o600, owner)
    }

    /// Forgets it: the node has begun, and from now on just runs.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(data_dir: &Path) -> Result<(), BeginError> {
        let path = Self::path(data_dir);
        match fs::remove_file(&path).and_then(|()| File::open(data_dir)?.sync_all()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(BeginError::File { action: "removing", path, source: error })
            }
            _ => Ok(()),
        }
    }

    /// Forgets it after a refusal, and with it what the node was told beside: the next try says anew what it wants. A node that
    /// has its identity keeps its settings.
    ///
    /// # Errors
    /// A file cannot be removed or written.
    pub fn withdraw(data_dir: &Path, owner: Option<(Uid, Gid)>) -> Result<(), BeginError> {
        Self::forget(data_dir)?;
        let remembered = data_dir.join(REMEMBERED);
        if super::is_member(data_dir) || !remembered.exists() {
            return Ok(());
        }
        keep(&remembered, REFUSED_MARK.as_bytes(), 0o644, owner)
    }
}

/// Whether somebody else has one of the node's ports, or no interface its address, or nobody its name.
fn is_of_a_port(error: &anyhow::Error) -> bool {
    let is_taken = |cause: &io::Error| cause.kind() == io::ErrorKind::AddrInUse;
    let is_nowhere =
        |cause: &PortError| matches!(cause, PortError::NoSuchAddress { .. } | PortError::NoSuchName { .. });
    error.chain().any(|cause| {
        cause.downcast_ref().is_some_and(is_taken) || cause.downcast_ref::<PortError>().is_some_and(is_nowhere)
    })
}

/// What kind of end a try to begin came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The cluster said no, or the database is not adopted: nothing was done, and the same again is refused again.
    Refused,
    /// Nobody here knows whether it was done.
    Unknown,
    /// Anything else.
    Other,
}

impl FailureKind {
    /// Returns the kind of `error`.
    pub fn of(error: &anyhow::Error) -> Self {
        let is_refusal = |cause: &(dyn std::error::Error + 'static)| {
            cause.is::<AdoptRefused>()
                || cause.is::<ForgottenError>()
                || matches!(cause.downcast_ref(), Some(TlsError::Missing { .. }))
                || matches!(cause.downcast_ref(), Some(LockError::Taken { .. }))
                || matches!(cause.downcast_ref(), Some(NodeError::Forgotten { .. }))
        };
        if error.chain().any(is_refusal) || is_of_a_port(error) {
            return Self::Refused;
        }
        match error.chain().find_map(|cause| cause.downcast_ref::<JoinError>()) {
            Some(JoinError::Refused(_) | JoinError::WrongAuthority { .. } | JoinError::ClocksDiffer { .. }) => {
                Self::Refused
            }
            Some(JoinError::Unknown { .. }) => Self::Unknown,
            Some(JoinError::NotReached { .. } | JoinError::BadGrant { .. } | JoinError::Prepare(_)) | None => {
                Self::Other
            }
        }
    }
}

/// Why a node has not begun, kept beside what was asked for: whoever gave the command is another process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What kind of end it was.
    pub kind: FailureKind,
    /// What to tell the operator.
    pub message: String,
}

impl Failure {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("begin-failure.json")
    }

    /// Keeps why the node of `data_dir` has not begun; does nothing for one that has. What was refused is not tried again.
    ///
    /// # Errors
    /// A file cannot be read or written.
    pub fn note(data_dir: &Path, error: &anyhow::Error) -> Result<(), BeginError> {
        if Begin::load(data_dir)? == Begin::Run {
            return Ok(());
        }
        let mut failure = Self { kind: FailureKind::of(error), message: format!("{error:#}") };
        if failure.kind == FailureKind::Refused && data_dir.join("identity.json").exists() && is_of_a_port(error) {
            // it had begun in an earlier try, and a port becomes free, an address comes up
            failure.kind = FailureKind::Other;
        }
        let path = Self::path(data_dir);
        let bytes = serde_json::to_vec(&failure).map_err(|source| BeginError::Broken { path: path.clone(), source })?;
        keep(&path, &bytes, 0o600, None)?;
        match failure.kind {
            FailureKind::Refused => Begin::withdraw(data_dir, None),
            FailureKind::Unknown | FailureKind::Other => Ok(()),
        }
    }

    /// Returns why the node of `data_dir` has not begun, once that is known.
    ///
    /// # Errors
    /// The file cannot be read or is not understood.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, BeginError> {
        let path = Self::path(data_dir);
        match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|source| BeginError::Broken { path, source }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(BeginError::File { action: "reading", path, source }),
        }
    }

    /// Forgets it, before another try.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn forget(data_dir: &Path) -> Result<(), BeginError> {
        let path = Self::path(data_dir);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(BeginError::File { action: "removing", path, source: error })
            }
            _ => Ok(()),
        }
    }
}

/// Writes a file durably, whole or not at all, for `owner`.
///
/// # Errors
/// The file cannot be written.
pub fn keep(path: &Path, bytes: &[u8], mode: u32, owner: Option<(Uid, Gid)>) -> Result<(), BeginError> {
    let beside = path.with_extension("new");
    let write = || -> io::Result<()> {
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Made anew, so that neither a link nor an older mode is followed.
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        if let Some((user, group)) = owner {
            fchown(&file, Some(user), Some(group))?;
        }
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, path)?;
        path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    };
    write().map_err(|source| BeginError::File { action: "writing", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn what_was_asked_for_survives_until_it_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let begin = Begin::Join {
            targets: vec!["10.0.0.1:7400".to_owned()],
            token: Secret::new("hasup1-secret"),
            options: BTreeMap::new(),
        };
        assert_eq!(Begin::load(folder.path()).unwrap(), Begin::Run);
        begin.save(folder.path(), None).unwrap();
        begin.save(folder.path(), None).unwrap();
        assert_eq!(Begin::load(folder.path()).unwrap(), begin);
        let mode = fs::metadata(folder.path().join("begin.json")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "it holds the token");
        assert!(!format!("{begin:?}").contains("hasup1-secret"));
        Begin::forget(folder.path()).unwrap();
        Begin::forget(folder.path()).unwrap();
        assert_eq!(Begin::load(folder.path()).unwrap(), Begin::Run);
    }

    #[test]
    fn what_the_cluster_refused_is_told_and_not_tried_again() {
        let folder = tempfile::tempdir().unwrap();
        let remembered = folder.path().join(REMEMBERED);
        fs::write(&remembered, "witness = true\n").unwrap();
        let begin = Begin::Start { options: BTreeMap::new(), adopt: false };
        begin.save(folder.path(), None).unwrap();
        let lost = anyhow::Error::new(JoinError::NotReached { tried: "a".to_owned() }).context("join");
        Failure::note(folder.path(), &lost).unwrap();
        assert_eq!(Begin::load(folder.path()).unwrap(), begin, "a member that was down may be up again");
        assert_eq!(fs::read_to_string(&remembered).unwrap(), "witness = true\n", "and the node goes on as it was told");
        let refused = JoinError::Refused(crate::peer::join::JoinRefusal::WrongToken);
        Failure::note(folder.path(), &anyhow::Error::new(refused).context("join the cluster")).unwrap();
        let told = Failure::load(folder.path()).unwrap().unwrap();
        assert_eq!(told.kind, FailureKind::Refused);
        assert!(told.message.contains("token"), "{}", told.message);
        assert_eq!(Begin::load(folder.path()).unwrap(), Begin::Run);
        assert_eq!(
            fs::read_to_string(&remembered).unwrap(),
            REFUSED_MARK,
            "what was refused stays in force for nobody"
        );
        Failure::forget(folder.path()).unwrap();
        Failure::note(folder.path(), &lost).unwrap();
        assert_eq!(Failure::load(folder.path()).unwrap(), None, "it has begun before");
    }
}
