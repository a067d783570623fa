//! Where everything of one node's PostgreSQL is, and how files there are changed.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::{PgError, file_error};
use crate::types::Generation;

/// The folders and files of one node's PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// The node's data directory.
    pub data_dir: PathBuf,
    /// PostgreSQL's data directory; inside `data_dir` unless adopted.
    pub pgdata: PathBuf,
    /// User and group that own it all, where this process is root.
    pub owner: Option<(u32, u32)>,
}

/// The longest path of a unix socket, by the kernel's `sun_path`.
const SOCKET_PATH_BYTES_MAX: usize = 107;

impl Layout {
    /// Returns the layout of a data directory made by hasup.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        let data_dir = data_dir.into();
        Self { pgdata: data_dir.join("pgdata"), data_dir, owner: None }
    }

    /// hasup's own files about PostgreSQL.
    pub fn config_dir(&self) -> PathBuf {
        self.data_dir.join("postgres")
    }

    /// The settings that PostgreSQL is started with.
    pub fn config_file(&self) -> PathBuf {
        self.config_dir().join("hasup.conf")
    }

    /// The settings that change while it runs, included last.
    pub fn dynamic_file(&self) -> PathBuf {
        self.config_dir().join("dynamic.conf")
    }

    /// Who may connect.
    pub fn hba_file(&self) -> PathBuf {
        self.config_dir().join("hba.conf")
    }

    /// Which certificate may be which role.
    pub fn ident_file(&self) -> PathBuf {
        self.config_dir().join("ident.conf")
    }

    /// PostgreSQL's standard output and error.
    pub fn log_file(&self) -> PathBuf {
        self.config_dir().join("postgres.log")
    }

    /// Where PostgreSQL writes its process id for others.
    pub fn external_pid_file(&self) -> PathBuf {
        self.config_dir().join("postgres.pid")
    }

    /// What an adoption replaced in the data directory, as it was.
    pub fn originals_dir(&self) -> PathBuf {
        self.config_dir().join("adopted")
    }

    /// The folder of its local socket.
    pub fn socket_dir(&self) -> PathBuf {
        self.data_dir.join("sock")
    }

    /// The credentials of replication connections of one generation.
    pub fn generation_dir(&self, generation: Generation) -> PathBuf {
        self.config_dir().join(format!("g{generation}"))
    }

    /// Where tails are kept that a rewind drops, or that a copy would remove.
    pub fn salvage_dir(&self) -> PathBuf {
        self.data_dir.join("salvage")
    }

    /// The write-ahead log.
    pub fn wal_dir(&self) -> PathBuf {
        self.pgdata.join("pg_wal")
    }

    /// The file that makes PostgreSQL start as a standby.
    pub fn standby_signal(&self) -> PathBuf {
        self.pgdata.join("standby.signal")
    }

    /// What marks a cluster that was adopted; in the data directory, so that copies of it are marked too.
    pub fn adopted_file(&self) -> PathBuf {
        self.pgdata.join("hasup-adopted.conf")
    }

    /// Tells whether the cluster was adopted, here or on the node that this one is a copy of.
    pub fn is_adopted(&self) -> bool {
        self.adopted_file().exists()
    }

    /// The folder in which a copy is made before it takes the place of `pgdata`: beside it, so that a rename suffices.
    pub fn new_holder(&self) -> Holder {
        self.holder("new")
    }

    /// The folder in which old `pgdata` wait for their removal.
    pub fn old_holder(&self) -> Holder {
        self.holder("old")
    }

    fn holder(&self, what: &str) -> Holder {
        let mut name = std::ffi::OsString::from(".");
        name.push(self.pgdata.file_name().unwrap_or_default());
        name.push(format!(".hasup-{what}"));
        Holder(self.pgdata.with_file_name(name))
    }

    /// Refuses where somebody else's folders have the names that copies need, before anything depends on them.
    ///
    /// # Errors
    /// There is one.
    pub fn refuse_foreign_holders(&self) -> Result<(), PgError> {
        [self.new_holder(), self.old_holder()].iter().try_for_each(Holder::refuse_foreign)
    }

    /// Makes hasup's folders. Refuses a data directory whose path is too long for PostgreSQL's socket.
    pub fn prepare(&self) -> Result<(), PgError> {
        let socket = self.socket_dir().join(".s.PGSQL.65535.lock");
        if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
            return Err(PgError::Refused(format!(
                "{} is too long a path for PostgreSQL's local socket: nothing was started; choose a data directory of at most \
                 {} bytes",
                self.data_dir.display(),
                SOCKET_PATH_BYTES_MAX - "/sock/.s.PGSQL.65535.lock".len()
            )));
        }
        for folder in [self.data_dir.clone(), self.config_dir(), self.socket_dir()] {
            self.make_dir(&folder)?;
        }
        Ok(())
    }

    /// Makes a private folder, and its parents; that it exists is no error.
    pub fn make_dir(&self, path: &Path) -> Result<(), PgError> {
        let existed = path.is_dir();
        fs::create_dir_all(path).map_err(file_error("create folder", path))?;
        if !existed {
            fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(file_error("make private", path))?;
            self.give(path)?;
            if let Some(parent) = path.parent() {
                sync_dir(parent)?;
            }
        }
        Ok(())
    }

    /// Hands a file to the user that PostgreSQL runs as.
    pub fn give(&self, path: &Path) -> Result<(), PgError> {
        let Some((uid, gid)) = self.owner else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(file_error("change the owner of", path))
    }

    /// Writes a private file durably: beside, fsynced, renamed, folder fsynced.
    pub fn write(&self, path: &Path, content: &[u8]) -> Result<(), PgError> {
        let beside = sibling(path, "tmp");
        let file = self.write_beside(&beside, content)?;
        file.sync_all().map_err(file_error("write", &beside))?;
        fs::rename(&beside, path).map_err(file_error("put in place", path))?;
        path.parent().map_or(Ok(()), sync_dir)
    }

    fn write_beside(&self, beside: &Path, content: &[u8]) -> Result<File, PgError> {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(beside)
            .map_err(file_error("write", beside))?;
        file.write_all(content).map_err(file_error("write", beside))?;
        self.give(beside)?;
        Ok(file)
    }

    /// Writes a private file that a start makes anew after a power cut: beside and renamed, not fsynced.
    pub fn write_volatile(&self, path: &Path, content: &[u8]) -> Result<(), PgError> {
        let beside = sibling(path, "tmp");
        self.write_beside(&beside, content)?;
        fs::rename(&beside, path).map_err(file_error("put in place", path))
    }

    /// Writes a private file durably, where it is not there already as it is to be.
    pub fn write_changed(&self, path: &Path, content: &[u8]) -> Result<(), PgError> {
        let is_private = fs::symlink_metadata(path).is_ok_and(|found| {
            found.is_file()
                && found.mode() & 0o7777 == 0o600
                && self.owner.is_none_or(|owner| owner == (found.uid(), found.gid()))
        });
        if is_private && fs::read(path).is_ok_and(|held| held == content) {
            return Ok(());
        }
        self.write(path, content)
    }

    /// Makes a file durable that was written before.
    pub fn make_durable(&self, path: &Path) -> Result<(), PgError> {
        File::open(path).and_then(|file| file.sync_all()).map_err(file_error("write", path))?;
        path.parent().map_or(Ok(()), sync_dir)
    }

    /// Writes text that PostgreSQL reads as settings, without waiting for the disk: whom PostgreSQL follows is written anew at each start,
    /// and the promises behind that are durable elsewhere.
    ///
    /// Where the disk is full and the new text is not longer than the old one, it is written over that: a bar must not fail for want of
    /// room, and such a file lies within one block of the disk.
    pub fn write_settings(&self, path: &Path, content: &str) -> Result<(), PgError> {
        match self.write_volatile(path, content.as_bytes()) {
            Err(PgError::File { source, .. })
                if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) =>
            {
                // the half-written copy may be what fills the disk
                remove_file(&sibling(path, "tmp"))?;
                overwrite(path, content).map_err(file_error("write", path))
            }
            other => other,
        }
    }

    /// Puts `standby.signal` in place, durably.
    pub fn put_standby_signal(&self) -> Result<(), PgError> {
        put_standby_signal(self, &self.pgdata)
    }
}

/// A folder of hasup's beside the data directory. A mark in it says so: what bears none is never written to or removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder(PathBuf);

/// The mark's name.
const HOLDER_MARK: &str = "made-by-hasup";

impl Holder {
    /// Returns its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Returns where the data directory in it is.
    pub fn data(&self) -> PathBuf {
        self.0.join("data")
    }

    /// Returns a name in it that is free: what could not be removed keeps its own.
    pub fn free_name(&self) -> PathBuf {
        let names = std::iter::once(self.data()).chain((1_u32..).map(|number| self.0.join(format!("data-{number}"))));
        // the numbers do not end before the names do
        names.into_iter().find(|path| path.symlink_metadata().is_err()).unwrap_or_else(|| self.data())
    }

    /// Returns what is in it but for the mark; nothing where it is not there.
    pub fn contents(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        entries.filter(|entry| entry.file_name() != HOLDER_MARK).map(|entry| entry.path()).collect()
    }

    /// Refuses where it is somebody else's. An empty folder is nobody's.
    ///
    /// # Errors
    /// It is, or cannot be looked into.
    pub fn refuse_foreign(&self) -> Result<(), PgError> {
        let path = &self.0;
        let is_free = match fs::read_dir(path) {
            // a crash may have come before the mark, or while it was written
            Ok(mut entries) => {
                self.0.join(HOLDER_MARK).is_file()
                    || entries.all(|entry| {
                        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(HOLDER_MARK))
                    })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => true,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => false,
            Err(error) => return Err(file_error("look into", path)(error)),
        };
        if is_free {
            return Ok(());
        }
        Err(PgError::Refused(format!(
            "{} is not hasup's, and copies of the database need that name: nothing was touched; move it away",
            path.display()
        )))
    }

    /// Makes it, marked.
    ///
    /// # Errors
    /// It is somebody else's, or cannot be made.
    pub fn make(&self, layout: &Layout) -> Result<(), PgError> {
        self.refuse_foreign()?;
        layout.make_dir(&self.0)?;
        let mark = self.0.join(HOLDER_MARK);
        if mark.is_file() { Ok(()) } else { layout.write(&mark, b"hasup makes and removes this folder.\n") }
    }

    /// Removes it with all in it, the mark last; that it is not there is no error.
    ///
    /// # Errors
    /// It is somebody else's, or something in it cannot be removed.
    pub fn remove(&self) -> Result<(), PgError> {
        self.refuse_foreign()?;
        let entries = match fs::read_dir(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(file_error("look into", &self.0))?,
        };
        for entry in entries.flatten().filter(|entry| entry.file_name() != HOLDER_MARK) {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_dir(&entry.path())?;
            } else {
                remove_file(&entry.path())?;
            }
        }
        remove_dir(&self.0)
    }
}

/// Replaces a file's text by one that is no longer, filled up with empty lines: no block is needed for it.
fn overwrite(path: &Path, content: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(path)?;
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX);
    if content.len() > length {
        return Err(io::ErrorKind::StorageFull.into());
    }
    let mut bytes = content.as_bytes().to_vec();
    bytes.resize(length, b'\n');
    file.write_all(&bytes)
}

/// Puts `standby.signal` into a data directory that may not yet be the node's.
pub(super) fn put_standby_signal(layout: &Layout, pgdata: &Path) -> Result<(), PgError> {
    let path = pgdata.join("standby.signal");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .map_err(file_error("write", &path))?;
    file.sync_all().map_err(file_error("write", &path))?;
    layout.give(&path)?;
    sync_dir(pgdata)
}

fn sibling(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".");
    name.push(suffix);
    path.with_file_name(name)
}

/// Makes the names in a folder durable.
pub fn sync_dir(path: &Path) -> Result<(), PgError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(file_error("make durable", path))
}

/// Removes a file durably; that it is not there is no error.
pub fn remove_file(path: &Path) -> Result<(), PgError> {
    match fs::remove_file(path) {
        Ok(()) => path.parent().map_or(Ok(()), sync_dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(file_error("remove", path)(error)),
    }
}

/// Removes a folder with all in it; that it is not there is no error.
pub fn remove_dir(path: &Path) -> Result<(), PgError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Returns the size of the file system of `path`, in bytes.
pub fn size_bytes(path: &Path) -> Result<u64, PgError> {
    let stat = rustix::fs::statvfs(path).map_err(|error| file_error("measure the disk of", path)(error.into()))?;
    Ok(stat.f_blocks * stat.f_frsize)
}

/// Returns the bytes free for this user on the file system of `path`.
pub fn free_bytes(path: &Path) -> Result<u64, PgError> {
    let stat = rustix::fs::statvfs(path).map_err(|error| file_error("measure free space of", path)(error.into()))?;
    Ok(stat.f_bavail * stat.f_frsize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_without_hasups_mark_are_never_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let layout = Layout::new(folder.path());
        let holder = layout.old_holder();
        assert_eq!(holder.path(), folder.path().join(".pgdata.hasup-old"));
        fs::create_dir(holder.path()).expect("made");
        holder.remove().expect("an empty one is nobody's");
        fs::create_dir(holder.path()).expect("made");
        fs::write(holder.path().join("precious"), "").expect("written");
        for refused in [holder.remove(), holder.make(&layout), layout.refuse_foreign_holders()] {
            let text = refused.expect_err("it bears no mark").to_string();
            assert!(text.contains("move it away"), "{text}");
        }
        assert!(holder.path().join("precious").exists());
        fs::remove_file(holder.path().join("precious")).expect("removed");
        holder.make(&layout).expect("made");
        fs::create_dir(holder.data()).expect("made");
        fs::write(holder.data().join("x"), "").expect("written");
        assert_eq!(holder.free_name(), holder.path().join("data-1"));
        holder.remove().expect("it is hasup's");
        assert!(!holder.path().exists());
    }

    #[test]
    fn a_file_is_written_again_only_where_text_or_rights_are_others() {
        let folder = tempfile::tempdir().expect("a folder");
        let layout = Layout::new(folder.path());
        let path = folder.path().join("hba.conf");
        let inode = || fs::metadata(&path).expect("it is there").ino();
        layout.write_changed(&path, b"local\n").expect("written");
        let first = inode();
        layout.write_changed(&path, b"local\n").expect("nothing to do");
        assert_eq!(inode(), first, "it was written again");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).expect("made readable for all");
        layout.write_changed(&path, b"local\n").expect("written");
        assert_eq!(fs::metadata(&path).expect("it is there").mode() & 0o777, 0o600);
        layout.write_changed(&path, b"host\n").expect("written");
        assert_eq!(fs::read(&path).expect("read"), b"host\n");
    }

    #[test]
    fn a_shorter_text_goes_over_the_old_one_and_a_longer_one_does_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("dynamic.conf");
        fs::write(&path, "primary_conninfo = 'host=a'\n").expect("written");
        overwrite(&path, "primary_conninfo = ''\n").expect("it is shorter");
        let text = fs::read_to_string(&path).expect("read");
        assert_eq!(text.trim_end(), "primary_conninfo = ''");
        assert_eq!(text.len(), "primary_conninfo = 'host=a'\n".len());
        let error = overwrite(&path, &"x".repeat(100)).expect_err("there is no room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(fs::read_to_string(&path).expect("read"), text);
    }
}
