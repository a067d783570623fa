//! The node's own durable facts on disk: changed in place, so that a full disk cannot prevent a bar.

use std::io;
use std::path::Path;

use parking_lot::Mutex;

use crate::codec;
use crate::ha::durable::Durable;
use crate::sys::fs::TwoSlotFile;

/// More than the facts ever take.
const SLOT_BYTES: usize = 512;

/// The file that holds a node's durable facts. Each change is on disk before it is seen.
#[derive(Debug)]
pub(super) struct DurableFile {
    file: Mutex<TwoSlotFile>,
    facts: Mutex<Durable>,
}

impl DurableFile {
    /// Opens the file, or makes it with the facts of a node that has done nothing yet.
    ///
    /// # Errors
    ///
    /// The file cannot be read or made, or holds something else.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let mut file = TwoSlotFile::open_or_create(path, SLOT_BYTES)?;
        let facts = match file.read() {
            Some(bytes) => codec::decode(&bytes).map_err(|error| {
                let text = format!(
                    "{} does not hold this node's facts ({error}): it cannot know what it promised. Remove this node from the \
                     cluster and join again with an empty data directory",
                    path.display()
                );
                io::Error::new(io::ErrorKind::InvalidData, text)
            })?,
            None => {
                let facts = Durable::default();
                file.write(&codec::encode(&facts))?;
                facts
            }
        };
        Ok(Self { file: Mutex::new(file), facts: Mutex::new(facts) })
    }

    /// Returns the facts as they are on disk.
    pub(super) fn get(&self) -> Durable {
        self.facts.lock().clone()
    }

    /// Changes the facts; when this returns they are on disk. Waits for the disk: call it from a thread that may.
    ///
    /// # Errors
    ///
    /// The disk did not take it: the facts are as before.
    pub(super) fn change(&self, change: impl FnOnce(&mut Durable)) -> io::Result<()> {
        let mut file = self.file.lock();
        let mut facts = self.facts.lock().clone();
        change(&mut facts);
        file.write(&codec::encode(&facts))?;
        *self.facts.lock() = facts;
        Ok(())
    }
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
        drop(file);
        assert_eq!(DurableFile::open(&path).expect("opened").get().barred, Generation(4));
    }
}
