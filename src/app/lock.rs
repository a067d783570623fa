//! One daemon at a time runs with a data directory: two would each believe to be the node.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// The daemon may not run with this data directory now.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another one does.
    #[error(
        "another hasup runs with the data directory {data_dir} (pid {owner}), and that one is the node: nothing was touched and nothing is to \
         be mended. `hasup status` asks it; end it first if this one is to run instead"
    )]
    Taken {
        /// The data directory.
        data_dir: PathBuf,
        /// The other's process id, as it wrote it.
        owner: String,
    },
    /// The file cannot be made or locked.
    #[error("lock {path}, so that no second daemon runs beside this one; the node has not begun")]
    Io {
        /// The lock's file.
        path: PathBuf,
        /// What failed.
        #[source]
        source: io::Error,
    },
}

/// The right to run with a data directory; it ends with this value, or with the process however that ends.
#[derive(Debug)]
pub(super) struct DaemonLock {
    _file: File,
}

impl DaemonLock {
    /// Takes the right to run with `data_dir`, before anything in it is read or written.
    pub(super) fn take(data_dir: &Path) -> Result<Self, LockError> {
        let path = data_dir.join("daemon.lock");
        let failed = |source| LockError::Io { path: path.clone(), source };
        let open = OpenOptions::new().create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let file = open.map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let written = io::read_to_string(&file).unwrap_or_default();
                let owner = if written.trim().is_empty() { "unknown" } else { written.trim() }.to_owned();
                return Err(LockError::Taken { data_dir: data_dir.to_owned(), owner });
            }
            Err(error) => return Err(failed(error.into())),
        }
        // Of one length, so that it takes no more room on a disk that is full; it is only told to people.
        let _ = file.write_at(format!("{:<10}\n", std::process::id()).as_bytes(), 0);
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_told_of_the_first_and_runs_once_that_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let first = DaemonLock::take(folder.path()).unwrap();
        let refused = DaemonLock::take(folder.path()).unwrap_err().to_string();
        assert!(refused.contains(&format!("(pid {})", std::process::id())), "{refused}");
        drop(first);
        DaemonLock::take(folder.path()).unwrap();
    }
}
