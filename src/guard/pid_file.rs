//! Whose `postmaster.pid` lies in the data directory: one of hasup's own PostgreSQL may go, another server's may not.
//!
//! PostgreSQL refuses to start beside a file that names a living process, and after a reboot that may well be a thread of hasup.
//! Yet the file may also be that of a server in another container or on another host, which `/proc` does not show: so what is
//! removed is only what PostgreSQL wrote under this guard or an earlier one of the same node. Two things say so: the process
//! id, which `exec-postgres` noted before it became PostgreSQL, and the folder of the server's first socket, which is the node's.

use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::sys::fs::{remove_durably, write_durably};

/// Returns where the process id of the PostgreSQL that was started last is noted.
pub(super) fn mark_path(data_dir: &Path) -> PathBuf {
    data_dir.join("guard.postgres")
}

/// Notes that the calling process becomes PostgreSQL.
pub(super) fn mark(path: &Path) {
    if write_durably(path, std::process::id().to_string().as_bytes(), 0o600).is_err() {
        // of a full disk: none is better than a wrong one
        let _best_effort = remove_durably(path);
    }
}

/// Removes what an earlier life of the node's own PostgreSQL left behind. Nobody whom this machine shows works in `pgdata`.
///
/// # Errors
/// It is another server's, or cannot be removed.
pub(super) fn remove_stale(pgdata: &Path, mark: &Path, own_socket_dir: Option<&Path>) -> Result<(), String> {
    let path = pgdata.join("postmaster.pid");
    let failed = |error: io::Error| format!("remove {}: {error}", path.display());
    let text = match fs::read(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(failed)?,
    };
    let noted = fs::read_to_string(mark).ok().and_then(|text| text.trim().parse().ok());
    if !is_ours(&text, noted, own_socket_dir) {
        return Err(format!(
            "{} was written by another server than hasup's. It may run in another container or on another host, and two servers \
             in one data directory destroy it: PostgreSQL is not started. If surely none runs, remove that file",
            path.display()
        ));
    }
    fs::remove_file(&path).map_err(failed)
}

/// The lines are: process id, data directory, start time, port, folder of the first socket; the last one comes a little later.
fn is_ours(text: &[u8], noted: Option<u32>, own_socket_dir: Option<&Path>) -> bool {
    let mut lines = text.split(|byte| *byte == b'\n');
    let pid: Option<u32> = lines.next().and_then(|line| std::str::from_utf8(line).ok()?.trim().parse().ok());
    let socket_dir = lines.nth(3).unwrap_or_default();
    match (noted, socket_dir) {
        // a power cut in the moment of its making
        (Some(_), _) if text.is_empty() => true,
        (Some(noted), b"") => pid == Some(noted),
        (Some(noted), folder) => pid == Some(noted) && is_folder(folder, own_socket_dir),
        // nothing was noted: the disk was full
        (None, b"") => false,
        (None, folder) => is_folder(folder, own_socket_dir),
    }
}

fn is_folder(folder: &[u8], own: Option<&Path>) -> bool {
    own.is_some_and(|own| own.as_os_str().as_bytes() == folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_nodes_own_postgresql_leaves_what_may_be_removed() {
        let own = Some(Path::new("/d/sock"));
        let whole = b"12\n/d/pgdata\n1700000000\n5432\n/d/sock\n*\n  1  2\nready   \n";
        let theirs = b"12\n/d/pgdata\n1700000000\n5432\n/var/run/postgresql\n*\n  1  2\nready   \n";
        let early = b"12\n/d/pgdata\n1700000000\n5432\n\n";
        for (text, noted, expected) in [
            (whole.as_slice(), Some(12), true),
            (whole, None, true),
            // of another container, with the same folders
            (whole, Some(13), false),
            (theirs, Some(12), false),
            (theirs, None, false),
            (early, Some(12), true),
            (early, Some(13), false),
            (early, None, false),
            (b"", Some(12), true),
            (b"", None, false),
            (b"12\n/d/pgdata\n", Some(12), true),
            (b"\xff\n\xff", Some(12), false),
        ] {
            assert_eq!(is_ours(text, noted, own), expected, "{} {noted:?}", String::from_utf8_lossy(text));
        }
        assert!(!is_ours(whole, None, None));
    }

    #[test]
    fn a_foreign_file_stays_and_what_to_do_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let (mark_file, pid_file) = (mark_path(folder.path()), folder.path().join("postmaster.pid"));
        let remove = || remove_stale(folder.path(), &mark_file, Some(Path::new("/d/sock")));
        remove().unwrap();
        fs::write(&pid_file, "1\n/d\n1\n5432\n/elsewhere\n").unwrap();
        let refused = remove().unwrap_err();
        assert!(refused.contains("another container") && pid_file.exists(), "{refused}");
        mark(&mark_file);
        fs::write(&pid_file, format!("{}\n/d\n1\n5432\n/d/sock\n", std::process::id())).unwrap();
        remove().unwrap();
        assert!(!pid_file.exists());
    }
}
