//! Logs that other processes append to, kept short: they hold the file open, so its text is copied aside and the file emptied.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};

/// A log is rotated when it is longer than this.
pub const LOG_BYTES_MAX: u64 = 64 << 20;
/// So many earlier parts are kept, as `<name>.1`, the newest, and so on.
const KEPT: u32 = 3;

/// Moves what the log at `path` holds to `<path>.1`, and the earlier parts on by one, where it has more than `bytes_max` bytes;
/// returns whether it did. Whoever writes it must append. What is appended between `before`, which is called when the copy is
/// complete, and the return is lost.
///
/// # Errors
/// The log is as it was, for want of room for the copy perhaps; the oldest part may be gone.
pub fn rotate(path: &Path, bytes_max: u64, before: impl FnOnce()) -> io::Result<bool> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > bytes_max => {}
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    }
    // written beside: a copy that was cut short is not taken for a part
    let copy = part(path, "new");
    absent_is_well(fs::remove_file(part(path, KEPT)))?;
    let mut from = File::open(path)?;
    let copied = fs::copy(path, &copy).and_then(|_| {
        for number in (1..KEPT).rev() {
            absent_is_well(fs::rename(part(path, number), part(path, number + 1)))?;
        }
        fs::rename(&copy, part(path, 1))
    });
    if let Err(error) = copied {
        // The first error is the one to tell.
        let _ = fs::remove_file(&copy);
        return Err(error);
    }
    // what came while it was copied
    let mut newest = OpenOptions::new().append(true).open(part(path, 1))?;
    io::Seek::seek(&mut from, io::SeekFrom::Start(newest.metadata()?.len()))?;
    // The log goes on without the last lines of its copy if there is no room for them.
    let _ = io::copy(&mut from, &mut newest);
    before();
    OpenOptions::new().write(true).open(path)?.set_len(0)?;
    Ok(true)
}

fn part(path: &Path, number: impl std::fmt::Display) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    name.into()
}

fn absent_is_well(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_log_that_is_held_open_is_emptied_and_three_parts_of_it_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("postgres.log");
        assert!(!rotate(&path, 10, || ()).unwrap(), "there is none");
        let mut writer = OpenOptions::new().create(true).append(true).open(&path).unwrap();
        for round in 0..6 {
            write!(writer, "round {round}").unwrap();
            assert!(!rotate(&path, 10, || ()).unwrap(), "it is short");
            write!(writer, " is long enough").unwrap();
            assert!(rotate(&path, 10, || ()).unwrap());
        }
        write!(writer, "now").unwrap();
        let text = |path: &Path| fs::read_to_string(path).unwrap();
        assert_eq!(text(&path), "now", "no hole is left before it");
        for number in 1..=3 {
            assert_eq!(text(&part(&path, number)), format!("round {} is long enough", 6 - number));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 4);
    }
}
