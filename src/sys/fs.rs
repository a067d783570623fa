//! Changes of files that outlive a power cut.
//!
//! A file is changed in one of two ways: written beside and renamed ([`write_durably`]), or, where a full disk must not get
//! in the way, overwritten in place in one of two slots ([`TwoSlotFile`]).

mod two_slot;

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

pub use two_slot::TwoSlotFile;

/// Tells apart the files that one process writes beside their targets at the same time.
static BESIDE: AtomicU64 = AtomicU64::new(0);

/// Replaces the file at `path` by one that holds `bytes` with permission bits `mode`: written beside, fsynced, renamed, folder
/// fsynced.
///
/// After an error the old file is still there, whole. A crash may leave a file named `.<name>.<number>.new` behind, which
/// nobody reads.
pub fn write_durably(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    write_durably_with(path, mode, |file| file.write_all(bytes))
}

/// Does as [`write_durably`] with what `fill` writes into the new file.
pub fn write_durably_with(path: &Path, mode: u32, fill: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let beside = beside(path)?;
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        // The mode given at creation was cut by the umask.
        file.set_permissions(Permissions::from_mode(mode))?;
        fill(&mut file)?;
        file.sync_all()?;
        fs::rename(&beside, path)
    })();
    if let Err(error) = written {
        // The first error is the one to tell; the name beside is never read.
        let _ = fs::remove_file(&beside);
        return Err(error);
    }
    fsync_dir(folder_of(path))
}

/// Writes what need not outlive a power cut: a trigger for a running process, or an entry of `/proc`.
pub fn write_volatile(path: &Path, bytes: &[u8]) -> io::Result<()> {
    #[allow(clippy::disallowed_methods, reason = "nothing is lost with it, and some of it is no file")]
    fs::write(path, bytes)
}

/// The name of a file that is written to see whether a disk takes it: PostgreSQL's copies of a database leave such names out.
pub const PROBE: &str = "pgsql_tmp.hasup";

/// Makes an empty file in `folder` and removes it: a file system that has turned read-only by itself is told by nothing less.
///
/// # Errors
/// What the file system says to it.
pub fn try_to_write(folder: &Path) -> io::Result<()> {
    let path = folder.join(PROBE);
    OpenOptions::new().write(true).create(true).truncate(false).open(&path)?;
    match fs::remove_file(&path) {
        // another process tries at the same time
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Tells whether `error` says that the file system takes no write at all: it is read-only, or was given up after an error.
pub fn is_read_only(error: &io::Error) -> bool {
    let was_given_up = Some(rustix::io::Errno::IO.raw_os_error());
    error.kind() == io::ErrorKind::ReadOnlyFilesystem || error.raw_os_error() == was_given_up
}

/// Makes the names in the folder `dir` durable.
pub fn fsync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// Removes the file at `path` for good; returns whether there was one.
pub fn remove_durably(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => fsync_dir(folder_of(path)).map(|()| true),
        // An earlier removal may not have become durable before a crash of this process.
        Err(error) if error.kind() == io::ErrorKind::NotFound => fsync_dir(folder_of(path)).map(|()| false),
        Err(error) => Err(error),
    }
}

/// Returns the folder that holds the name `path`.
fn folder_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Returns an unused name in the folder of `path`.
fn beside(path: &Path) -> io::Result<PathBuf> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} names no file", path.display())))?;
    let number = BESIDE.fetch_add(1, Ordering::Relaxed);
    let beside = format!(".{}.{}-{number}.new", name.to_string_lossy(), std::process::id());
    let beside = folder_of(path).join(beside);
    // Left by a crashed process that had this one's id.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(beside),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_durable_write_replaces_the_whole_file_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("secret");
        write_durably(&path, b"first and long", 0o600).unwrap();
        write_durably(&path, b"second", 0o640).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kept");
        write_durably(&path, b"old", 0o600).unwrap();
        let failed = write_durably_with(&path, 0o600, |file| {
            file.write_all(b"half")?;
            Err(io::Error::other("disk full"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn removing_twice_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone");
        write_durably(&path, b"", 0o600).unwrap();
        assert!(remove_durably(&path).unwrap());
        assert!(!remove_durably(&path).unwrap());
    }
}
