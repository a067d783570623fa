//! A small file that a full disk cannot keep from being changed.

use std::fs::{File, OpenOptions};
use std::io;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::write_durably_with;

/// A preallocated file of two checksummed slots, each overwritten in place in turn.
///
/// The newest valid slot counts. A write goes over the older one, so that one torn by a crash leaves the newer one readable;
/// both slots are laid out with their full length at creation, so that a write needs no free space. One process at a time
/// may hold the file; the type does not lock it.
///
/// A slot is: magic (8 bytes), sequence number (u64), payload length (u32, [`EMPTY`] for none), payload, and at its end the
/// first 16 bytes of BLAKE3 over all of that. Numbers are little-endian. A slot fills whole pages of 4 KiB, so that no write
/// of one touches a sector of the other.
#[derive(Debug)]
pub struct TwoSlotFile {
    file: File,
    path: PathBuf,
    slot_len: usize,
    newest: Slot,
}

/// A valid slot, as read.
#[derive(Debug, Clone)]
struct Slot {
    position: usize,
    sequence: u64,
    payload: Option<Vec<u8>>,
}

const MAGIC: [u8; 8] = *b"HASUP2S1";
const HEADER: usize = 8 + 8 + 4;
const CHECKSUM: usize = 16;
const PAGE: usize = 4096;
/// The length that stands for "nothing was written yet".
const EMPTY: u32 = u32::MAX;

impl TwoSlotFile {
    /// Opens the file at `path`, or creates it with room for `slot_bytes` of payload in each slot, mode 0600.
    ///
    /// Fails with `InvalidData` when neither slot is valid, which no crash can cause: what the node had promised is unknown
    /// then, and it must not take part under its old identity.
    pub fn open_or_create(path: &Path, slot_bytes: usize) -> io::Result<Self> {
        let slot_len = (HEADER + slot_bytes + CHECKSUM).next_multiple_of(PAGE);
        if !path.try_exists()? {
            write_durably_with(path, 0o600, |file| {
                let empty = seal(0, None, slot_len)?;
                file.write_all(&empty)?;
                file.write_all(&empty)
            })?;
        }
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len();
        if len != 2 * slot_len as u64 {
            return Err(damaged(path, &format!("it has {len} bytes instead of {}", 2 * slot_len)));
        }
        let mut newest: Option<Slot> = None;
        for position in 0..2 {
            let mut bytes = vec![0; slot_len];
            file.read_exact_at(&mut bytes, (position * slot_len) as u64)?;
            if let Some(slot) = open_slot(&bytes, position)
                && newest.as_ref().is_none_or(|newest| newest.sequence < slot.sequence)
            {
                newest = Some(slot);
            }
        }
        let newest = newest.ok_or_else(|| damaged(path, "neither of its two copies is whole"))?;
        Ok(Self { file, path: path.to_owned(), slot_len, newest })
    }

    /// Returns what was last written, `None` before the first write.
    pub fn read(&self) -> Option<Vec<u8>> {
        self.newest.payload.clone()
    }

    /// Makes `payload` durable before it returns. After an error the earlier payload still counts.
    pub fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        let position = 1 - self.newest.position;
        let sequence = self.newest.sequence + 1;
        let bytes = seal(sequence, Some(payload), self.slot_len)?;
        self.file.write_all_at(&bytes, (position * self.slot_len) as u64)?;
        self.file.sync_data()?;
        self.newest = Slot { position, sequence, payload: Some(payload.to_owned()) };
        Ok(())
    }

    /// Returns where the file is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn damaged(path: &Path, what: &str) -> io::Error {
    let path = path.display();
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!(
            "{path} is damaged: {what}. It held what this node has promised the others, so the node must not act under its \
             old identity. Remove the node from the cluster and join it again with an empty state folder"
        ),
    )
}

/// Returns the bytes of a slot.
fn seal(sequence: u64, payload: Option<&[u8]>, slot_len: usize) -> io::Result<Vec<u8>> {
    let room = slot_len - HEADER - CHECKSUM;
    let (len, payload) = match payload {
        None => (EMPTY, &[][..]),
        Some(payload) if payload.len() <= room => (u32::try_from(payload.len()).map_err(io::Error::other)?, payload),
        Some(payload) => {
            let told = format!("{} bytes do not fit a slot of {room}", payload.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, told));
        }
    };
    let mut bytes = Vec::with_capacity(slot_len);
    bytes.extend_from_slice(&MAGIC);
    bytes.extend_from_slice(&sequence.to_le_bytes());
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(payload);
    bytes.resize(slot_len - CHECKSUM, 0);
    let checksum = blake3::hash(&bytes);
    bytes.extend_from_slice(&checksum.as_bytes()[..CHECKSUM]);
    Ok(bytes)
}

/// Returns the slot in `bytes`, if it is whole.
fn open_slot(bytes: &[u8], position: usize) -> Option<Slot> {
    let (body, checksum) = bytes.split_at_checked(bytes.len().checked_sub(CHECKSUM)?)?;
    if !body.starts_with(&MAGIC) || blake3::hash(body).as_bytes()[..CHECKSUM] != *checksum {
        return None;
    }
    let sequence = u64::from_le_bytes(body.get(8..16)?.try_into().ok()?);
    let len = u32::from_le_bytes(body.get(16..20)?.try_into().ok()?);
    let payload = match len {
        EMPTY => None,
        len => Some(body.get(HEADER..HEADER.checked_add(usize::try_from(len).ok()?)?)?.to_vec()),
    };
    Some(Slot { position, sequence, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file_with(writes: &[&[u8]]) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("promises");
        let mut slots = TwoSlotFile::open_or_create(&path, 1000).unwrap();
        for bytes in writes {
            slots.write(bytes).unwrap();
            assert_eq!(slots.read().as_deref(), Some(*bytes));
        }
        (dir, path)
    }

    #[test]
    fn the_newest_write_is_read_after_reopening() {
        let (_dir, path) = file_with(&[]);
        assert_eq!(TwoSlotFile::open_or_create(&path, 1000).unwrap().read(), None);
        for writes in [&[&b"one"[..]][..], &[b"one", b"two"], &[b"one", b"two", b""], &[b"1", b"2", b"3", b"4"]] {
            let (_dir, path) = file_with(writes);
            let slots = TwoSlotFile::open_or_create(&path, 1000).unwrap();
            assert_eq!(slots.read().as_deref(), writes.last().copied());
        }
    }

    #[test]
    fn a_write_torn_at_any_byte_leaves_the_one_before_or_the_new_one() {
        let (_dir, path) = file_with(&[b"before the last", b"last"]);
        let before = std::fs::read(&path).unwrap();
        TwoSlotFile::open_or_create(&path, 1000).unwrap().write(b"torn, as power failed").unwrap();
        let after = std::fs::read(&path).unwrap();
        let changed: Vec<usize> = (0..before.len()).filter(|at| before[*at] != after[*at]).collect();
        for cut in changed {
            let mut torn = after.clone();
            torn[cut..].copy_from_slice(&before[cut..]);
            std::fs::write(&path, &torn).unwrap();
            assert_eq!(TwoSlotFile::open_or_create(&path, 1000).unwrap().read().unwrap(), b"last", "cut at {cut}");
        }
        std::fs::write(&path, &after).unwrap();
        assert_eq!(TwoSlotFile::open_or_create(&path, 1000).unwrap().read().unwrap(), b"torn, as power failed");
    }

    #[test]
    fn damage_to_both_slots_is_an_error_and_never_an_empty_file() {
        let (_dir, path) = file_with(&[b"a promise"]);
        let mut bytes = std::fs::read(&path).unwrap();
        let half = bytes.len() / 2;
        bytes[30] ^= 1;
        bytes[half + 30] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(TwoSlotFile::open_or_create(&path, 1000).unwrap_err().kind(), io::ErrorKind::InvalidData);
        std::fs::write(&path, &bytes[..half]).unwrap();
        assert_eq!(TwoSlotFile::open_or_create(&path, 1000).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_payload_that_does_not_fit_changes_nothing() {
        let (_dir, path) = file_with(&[b"fits"]);
        let mut slots = TwoSlotFile::open_or_create(&path, 1000).unwrap();
        assert_eq!(slots.write(&[7; 9000]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
        assert_eq!(slots.read().unwrap(), b"fits");
        assert_eq!(TwoSlotFile::open_or_create(&path, 1000).unwrap().read().unwrap(), b"fits");
    }
}
