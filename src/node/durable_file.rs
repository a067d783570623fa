//! The node's own durable facts on disk: changed in place, so that a full disk cannot prevent a bar.

use std::io;
use std::path::Path;

use parking_lot::Mutex;

use crate::codec;
use crate::ha::durable::Durable;
use crate::raft::LogMark;
use crate::sys::fs::TwoSlotFile;

/// More than the facts ever take.
const SLOT_BYTES: usize = 512;

/// The file that holds a node's durable facts. Each change is on disk before it is seen.
#[derive(Debug)]
pub struct DurableFile {
    file: Mutex<TwoSlotFile>,
    facts: Mutex<Durable>,
    /// How far Raft's log had come when that was last written: a log that has less is not this node's, or not all of it.
    mark: Mutex<LogMark>,
}

impl DurableFile {
    /// Opens the file, or makes it with the facts of a node that has done nothing yet.
    ///
    /// # Errors
    ///
    /// The file cannot be read or made, or holds something else.
    pub fn open(path: &Path) -> io::Result<Self> {
        let mut file = TwoSlotFile::open_or_create(path, SLOT_BYTES)?;
        let (facts, mark) = match file.read() {
            Some(bytes) => read(&bytes).map_err(|error| {
                let text = format!(
                    "{} does not hold this node's facts ({error}): it cannot know what it promised. Remove this node from the \
                     cluster and join again with an empty data directory",
                    path.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
            None => {
                let fresh = (Durable::default(), LogMark::default());
                file.write(&codec::encode(&fresh))?;
                fresh
            }
        };
        Ok(Self { file: Mutex::new(file), facts: Mutex::new(facts), mark: Mutex::new(mark) })
    }

    /// Returns the facts as they are on disk.
    pub fn get(&self) -> Durable {
        self.facts.lock().clone()
    }

    /// Changes the facts; when this returns they are on disk. Waits for the disk: call it from a thread that may.
    ///
    /// # Errors
    ///
    /// The disk did not take it: the facts are as before.
    pub fn change(&self, change: impl FnOnce(&mut Durable)) -> io::Result<()> {
        let mut file = self.file.lock();
        let mut facts = self.facts.lock().clone();
        change(&mut facts);
        file.write(&codec::encode(&(&facts, self.mark())))?;
        *self.facts.lock() = facts;
        Ok(())
    }

    /// Returns how far Raft's log had come when that was last written.
    pub fn mark(&self) -> LogMark {
        *self.mark.lock()
    }

    /// Writes how far Raft's log has come, where that is news. Waits for the disk.
    ///
    /// # Errors
    ///
    /// The disk did not take it: the mark is as before.
    pub fn note_mark(&self, mark: LogMark) -> io::Result<()> {
        let mut file = self.file.lock();
        if mark == self.mark() {
            return Ok(());
        }
        let facts = self.get();
        file.write(&codec::encode(&(facts, mark)))?;
        *self.mark.lock() = mark;
        Ok(())
    }
}

/// Reads the facts with the mark, or as they were written before there was one.
fn read(bytes: &[u8]) -> Result<(Durable, LogMark), codec::CodecError> {
    codec::decode(bytes).or_else(|_| Ok((codec::decode(bytes)?, LogMark::default())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Generation;

    #[test]
    fn a_bar_is_there_after_reopening() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("facts");
        let file = DurableFile::open(&path).expect("made");
        file.change(|facts| facts.barred = Generation(4)).expect("written");
        let mark = LogMark { term: 7, committed: 300 };
        file.note_mark(mark).expect("written");
        file.change(|facts| facts.resigned = Generation(2)).expect("written");
        drop(file);
        let file = DurableFile::open(&path).expect("opened");
        assert_eq!((file.get().barred, file.get().resigned, file.mark()), (Generation(4), Generation(2), mark));
    }

    #[test]
    fn facts_written_before_there_was_a_mark_are_read() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("facts");
        let facts = Durable { barred: Generation(4), ..Durable::default() };
        let mut older = TwoSlotFile::open_or_create(&path, SLOT_BYTES).expect("made");
        older.write(&codec::encode(&facts)).expect("written");
        let file = DurableFile::open(&path).expect("opened");
        assert_eq!((file.get(), file.mark()), (facts, LogMark::default()));
    }
}
