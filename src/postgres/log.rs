//! Follows PostgreSQL's log for what no query tells.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

/// The most that is read at once; the rest comes the next time.
const BYTES_MAX: u64 = 1 << 20;

/// Reads a log from where it ended when the reader was made.
#[derive(Debug)]
pub struct LogReader {
    path: PathBuf,
    at: u64,
    /// The beginning of a line that is not whole yet.
    rest: Vec<u8>,
}

impl LogReader {
    /// Makes a reader that leaves out what is there already.
    pub fn at_end(path: PathBuf) -> Self {
        let at = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Self { path, at, rest: Vec::new() }
    }

    /// Returns how many commits were told, since the last look, that their wait for a standby was cancelled. They are on this
    /// node and perhaps on no other, and the client has an answer all the same. Those whose connection was ended are not counted:
    /// their clients know that they do not know.
    ///
    /// # Errors
    /// The log cannot be read. That there is none is no error.
    pub fn cancelled_waits(&mut self) -> io::Result<u64> {
        let bytes = self.read()?;
        self.rest.extend_from_slice(&bytes);
        let Some(end) = self.rest.iter().rposition(|byte| *byte == b'\n') else {
            // no line of interest is so long
            if self.rest.len() as u64 > BYTES_MAX {
                self.rest.clear();
            }
            return Ok(0);
        };
        let whole: Vec<u8> = self.rest.drain(..=end).collect();
        let count = String::from_utf8_lossy(&whole).lines().filter(|line| is_cancelled_wait(line)).count();
        Ok(count as u64)
    }

    fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            other => other?,
        };
        if file.metadata()?.len() < self.at {
            // emptied, or replaced by a new one
            self.at = 0;
            self.rest.clear();
        }
        file.seek(SeekFrom::Start(self.at))?;
        let mut bytes = Vec::new();
        self.at += file.take(BYTES_MAX).read_to_end(&mut bytes)? as u64;
        Ok(bytes)
    }
}

/// A line like `2026-01-01 12:00:00.000 UTC [42] WARNING:  canceling wait for synchronous replication due to user request`. What a
/// client wrote stands behind `STATEMENT:` or in lines that begin with a tab.
fn is_cancelled_wait(line: &str) -> bool {
    let told = line.split_once("WARNING:  canceling wait for synchronous replication");
    told.is_some_and(|(before, _)| {
        !before.starts_with('\t') && !["STATEMENT:", "LOG:", "ERROR:"].iter().any(|word| before.contains(word))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    const LINE: &str =
        "2026-01-01 12:00:00.000 UTC [42] WARNING:  canceling wait for synchronous replication due to user request\n";

    #[test]
    fn only_new_and_whole_lines_of_the_server_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        let mut file = File::create(&path).unwrap();
        file.write_all(LINE.as_bytes()).unwrap();
        let mut reader = LogReader::at_end(path.clone());
        assert_eq!(reader.cancelled_waits().unwrap(), 0, "what was there before is not counted");
        let (begin, end) = LINE.split_at(60);
        file.write_all(begin.as_bytes()).unwrap();
        assert_eq!(reader.cancelled_waits().unwrap(), 0);
        file.write_all(format!("{end}\tDETAIL:  The transaction has already committed locally\n{LINE}").as_bytes())
            .unwrap();
        file.write_all(format!("x [1] STATEMENT:  select '{}'\n", LINE.trim_end()).as_bytes()).unwrap();
        assert_eq!(reader.cancelled_waits().unwrap(), 2);
        assert_eq!(reader.cancelled_waits().unwrap(), 0);
        std::fs::write(&path, LINE).unwrap();
        assert_eq!(reader.cancelled_waits().unwrap(), 1, "a log that was replaced is read from its beginning");
        std::fs::remove_file(&path).unwrap();
        assert_eq!(reader.cancelled_waits().unwrap(), 0);
    }
}
