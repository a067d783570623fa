//! How far long work is, how fast it goes, and when it will be done. Pure.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::types::{BootTime, Lsn, Size};

/// What stands still for this long is told.
const STILL_TOLD_AFTER: Duration = Duration::from_secs(5);
/// Before this much has passed a rate says nothing.
const RATE_AFTER: Duration = Duration::from_secs(1);

/// Long work that can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LongWork {
    /// The database is copied from another node.
    Copying,
    /// PostgreSQL replays the log that it has.
    Replaying,
}

impl LongWork {
    /// Returns its name as metrics have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Copying => "copying",
            Self::Replaying => "replaying",
        }
    }
}

/// How far long work is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProgressStatus {
    /// Which work.
    pub work: LongWork,
    /// How much is done, in bytes.
    pub done_bytes: u64,
    /// How much there is to do, in bytes, as far as is known.
    pub total_bytes: u64,
    /// How much is done, in percent.
    pub percent: u64,
    /// How long the rest will take at the rate so far, in seconds; absent where that is not known yet.
    pub seconds_left: Option<u64>,
    /// For how long nothing has moved, in seconds; 0 while it does.
    pub still_seconds: u64,
    /// All that in words.
    pub text: String,
}

/// Measures one piece of long work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Meter {
    work: LongWork,
    /// Where in the log a replay began; 0 for other work.
    from: Lsn,
    total: u64,
    began_at: BootTime,
    done_before: u64,
    done: u64,
    moved_at: BootTime,
}

impl Meter {
    /// Begins to measure, at `now`, a copy of which `done` of `total` bytes are there.
    pub(super) fn of_copy(done: u64, total: u64, now: BootTime) -> Self {
        let work = LongWork::Copying;
        Self { work, from: Lsn(0), total, began_at: now, done_before: done, done, moved_at: now }
    }

    /// Begins to measure, at `now`, a replay of the log between `from` and `end`, which has come to `at`.
    pub(super) fn of_replay(from: Lsn, at: Lsn, end: Lsn, now: BootTime) -> Self {
        let done = at.0.saturating_sub(from.0);
        let total = end.0.saturating_sub(from.0);
        Self { work: LongWork::Replaying, from, total, began_at: now, done_before: done, done, moved_at: now }
    }

    /// Notes that `done` of `total` bytes are done at `now`.
    pub(super) fn note(&mut self, done: u64, total: u64, now: BootTime) {
        if done != self.done {
            self.moved_at = now;
        }
        (self.done, self.total) = (done, total);
    }

    /// Notes that a replay has come to `at` at `now`.
    pub(super) fn note_replayed(&mut self, at: Lsn, now: BootTime) {
        self.note(at.0.saturating_sub(self.from.0), self.total, now);
    }

    /// Returns how far the work is at `now`.
    pub(super) fn read(&self, now: BootTime) -> ProgressStatus {
        let total = self.total.max(self.done);
        let percent = u128::from(self.done) * 100 / u128::from(total.max(1));
        let (elapsed, moved) = (now.since(self.began_at), self.done.saturating_sub(self.done_before));
        let is_known = elapsed >= RATE_AFTER && moved > 0;
        let left = || elapsed.as_millis() * u128::from(total - self.done) / u128::from(moved) / 1000;
        let seconds_left = is_known.then(|| u64::try_from(left()).unwrap_or(u64::MAX));
        let still = now.since(self.moved_at);
        let percent = u64::try_from(percent).unwrap_or(100);
        let mut text = match self.work {
            LongWork::Copying => format!("copied {} of {} ({percent} %)", Size(self.done), Size(total)),
            LongWork::Replaying => format!(
                "replayed up to {}, {percent} % of the {} of log on disk, which ends before {}",
                Lsn(self.from.0 + self.done),
                Size(total),
                Lsn(self.from.0 + total)
            ),
        };
        if self.work == LongWork::Copying && self.done >= total {
            text += "; it is made durable and put in place";
        } else if still >= STILL_TOLD_AFTER {
            text += &format!("; nothing has moved for {} s", still.as_secs());
        } else if let Some(left) = seconds_left {
            text += &format!(", about {} left", span(left));
        }
        let still_seconds = if still >= STILL_TOLD_AFTER { still.as_secs() } else { 0 };
        let work = self.work;
        ProgressStatus { work, done_bytes: self.done, total_bytes: total, percent, seconds_left, still_seconds, text }
    }
}

/// Returns a span as people say it, in the largest unit that leaves two digits.
fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7200 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: u64) -> BootTime {
        BootTime::from_millis(second * 1000)
    }

    #[test]
    fn a_copy_tells_share_and_rest() {
        let mut meter = Meter::of_copy(0, 1000 << 20, at(10));
        assert_eq!(meter.read(at(10)).text, "copied 0 B of 1000 MB (0 %)", "no rate yet");
        meter.note(200 << 20, 1000 << 20, at(20));
        let read = meter.read(at(20));
        assert_eq!((read.percent, read.seconds_left), (20, Some(40)));
        assert_eq!(read.text, "copied 200 MB of 1000 MB (20 %), about 40 s left");
        let read = meter.read(at(32));
        assert_eq!(read.still_seconds, 12);
        assert_eq!(read.text, "copied 200 MB of 1000 MB (20 %); nothing has moved for 12 s");
        // the source has grown since it was measured
        meter.note(1100 << 20, 1000 << 20, at(60));
        assert_eq!(meter.read(at(60)).text, "copied 1100 MB of 1100 MB (100 %); it is made durable and put in place");
    }

    #[test]
    fn a_replay_tells_where_it_stands() {
        let mut meter = Meter::of_replay(Lsn(1 << 30), Lsn(1 << 30), Lsn(3 << 30), at(1));
        meter.note_replayed(Lsn(5 << 28), at(101));
        let text = meter.read(at(101)).text;
        assert_eq!(
            text,
            "replayed up to 0/50000000, 12 % of the 2048 MB of log on disk, which ends before 0/C0000000, about 11 min left"
        );
        let nothing = Meter::of_replay(Lsn(5), Lsn(5), Lsn(5), at(1)).read(at(9));
        assert_eq!((nothing.percent, nothing.seconds_left), (0, None));
    }
}
