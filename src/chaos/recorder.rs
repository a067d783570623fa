//! Appends a client's journal and makes it durable, on a thread of its own so that the disk adds nothing to a write gap.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

use super::journal::Line;

/// Takes lines in order. Cheap to clone; the journal is complete once every clone is gone and [`Recorder::finish`] returned.
#[derive(Debug, Clone)]
pub struct Lines(Sender<Line>);

impl Lines {
    /// Appends a line. Lines after a failed write are dropped; [`Recorder::finish`] tells.
    pub fn put(&self, line: Line) {
        let _ = self.0.send(line);
    }
}

/// Owns the journal's file.
#[derive(Debug)]
pub struct Recorder {
    thread: JoinHandle<io::Result<()>>,
}

impl Recorder {
    /// Opens `path` for appending, creating it, and starts to write what [`Lines`] takes.
    ///
    /// # Errors
    /// The I/O error when the file cannot be opened or the thread not started.
    pub fn open(path: &Path) -> io::Result<(Self, Lines)> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let (sender, receiver) = channel();
        let thread = std::thread::Builder::new().name("journal".into()).spawn(move || write_all(file, &receiver))?;
        Ok((Self { thread }, Lines(sender)))
    }

    /// Waits until every line is durable; every [`Lines`] must have been dropped.
    ///
    /// # Errors
    /// The I/O error that ended the journal early: the run then proves nothing.
    pub fn finish(self) -> io::Result<()> {
        self.thread.join().map_err(|_| io::Error::other("the journal's thread panicked"))?
    }

    /// Returns whether the journal can no longer be written.
    pub fn has_failed(&self) -> bool {
        self.thread.is_finished()
    }
}

fn write_all(mut file: File, lines: &Receiver<Line>) -> io::Result<()> {
    while let Ok(first) = lines.recv() {
        let mut text = format!("{first}\n");
        // Whatever came during the last fsync shares the next one.
        while let Ok(next) = lines.try_recv() {
            text.push_str(&format!("{next}\n"));
        }
        file.write_all(text.as_bytes())?;
        file.sync_data()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::journal::{Journal, Poll, Span};
    use crate::types::BootTime;

    #[test]
    fn every_line_is_in_the_file_once_finished() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("journal");
        let (recorder, lines) = Recorder::open(&path).unwrap();
        for number in 0..500 {
            let span = Span { sent: BootTime(number), answered: BootTime(number + 1) };
            lines.put(Line::Poll(Poll { span, node: "n1".into(), status: Some(200), detail: String::new() }));
        }
        drop(lines);
        recorder.finish().unwrap();
        let journal = Journal::parse(&std::fs::read_to_string(&path).unwrap()).unwrap();
        assert_eq!(journal.polls.len(), 500);
    }
}
