//! What an outside client saw, line by line, and the write gaps that follow from it.
//!
//! A journal is text, appended and fsynced by the client process alone; every verdict is drawn from it and from the tables
//! of the nodes, never from what hasup says about itself. Instants are nanoseconds of the machine's boot-time clock, so the
//! journals of several clients on one machine compare.
//!
//! ```text
//! row  <sent> <answered> <key> <node> <timeline|-> <ok|failed|unknown> [detail]
//! look <sent> <answered> <node> <writable|read_only|refused|unreachable> [detail]
//! poll <sent> <answered> <node> <HTTP status|-> [state and timeline of the node's PostgreSQL]
//! ```

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::types::{BootTime, Timeline};

/// The span from a request's sending to its answer: whatever the node decided, it decided within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Span {
    /// When the request was sent.
    pub sent: BootTime,
    /// When its answer had come, or was given up.
    pub answered: BootTime,
}

impl Span {
    /// Returns whether all of this span lies before all of `later`: the only order that proves anything.
    #[must_use]
    pub fn is_before(&self, later: &Self) -> bool {
        self.answered < later.sent
    }
}

/// What became of one inserted row, as far as the client can know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Acknowledged: it must be kept.
    Ok,
    /// Certainly not written.
    Failed,
    /// Sent, and no answer that settles it: it may be there or not.
    Unknown,
}

/// What a client found where it looked for the writable node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Found {
    /// The node takes writes.
    Writable,
    /// The node answers and takes no writes.
    ReadOnly,
    /// The node's PostgreSQL answered with an error, or nothing listens there.
    Refused,
    /// No answer in time.
    Unreachable,
}

/// One attempt to insert a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// From sending to answer.
    pub span: Span,
    /// The row's unique key.
    pub key: String,
    /// The node that it was sent to.
    pub node: String,
    /// The timeline that the node wrote it on; only acknowledged rows have one.
    pub timeline: Option<Timeline>,
    /// What became of it.
    pub outcome: Outcome,
    /// The error, where there was one.
    pub detail: String,
}

/// One look whether a node is writable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// From sending to answer.
    pub span: Span,
    /// The node that was asked.
    pub node: String,
    /// What it said.
    pub found: Found,
    /// The error, where there was one.
    pub detail: String,
}

/// One request to a role endpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Poll {
    /// From sending to answer.
    pub span: Span,
    /// The node that was asked.
    pub node: String,
    /// The HTTP status, none where no answer came.
    pub status: Option<u16>,
    /// What the answer said of the node's PostgreSQL: its state, and its timeline where it has one.
    pub detail: String,
}

/// A line of a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// An inserted row.
    Row(Row),
    /// A look for the writable node.
    Look(Look),
    /// A request to a role endpoint.
    Poll(Poll),
}

/// A line is no line of a journal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {number} of the journal is damaged (`{text}`): no verdict can be drawn from it. Run the schedule again")]
pub struct JournalError {
    /// Counted from 1.
    pub number: usize,
    /// The line as it stands, shortened.
    pub text: String,
}

/// Everything that one or several clients wrote down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journal {
    /// Inserted rows, by the instant of their answer.
    pub rows: Vec<Row>,
    /// Looks for the writable node, by the instant of their answer.
    pub looks: Vec<Look>,
    /// Requests to role endpoints, by the instant of their answer.
    pub polls: Vec<Poll>,
}

/// A stretch in which no write was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last acknowledgement before.
    pub from: BootTime,
    /// The first acknowledgement after.
    pub to: BootTime,
    /// What the client itself may have added at most: from the last answer that said "not writable yet" at the node that then
    /// took the write, up to the acknowledgement. It holds the retry's wait, the connect and the insert.
    pub client: Duration,
}

impl Gap {
    /// Returns the gap's length.
    #[must_use]
    pub fn length(&self) -> Duration {
        self.to.since(self.from)
    }
}

impl Journal {
    /// Parses the text of a journal. A torn last line (no line feed) is left out: its client died while writing it.
    ///
    /// # Errors
    /// [`JournalError`] for the first line that is no line of a journal.
    pub fn parse(text: &str) -> Result<Self, JournalError> {
        let mut journal = Self::default();
        journal.append(text)?;
        Ok(journal)
    }

    /// Adds the lines of another client's journal, or further lines of the same one.
    ///
    /// # Errors
    /// [`JournalError`] for the first line that is no line of a journal; the lines before it have been added.
    pub fn append(&mut self, text: &str) -> Result<(), JournalError> {
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for (index, line) in whole.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            match parse_line(line) {
                Some(Line::Row(row)) => self.rows.push(row),
                Some(Line::Look(look)) => self.looks.push(look),
                Some(Line::Poll(poll)) => self.polls.push(poll),
                None => {
                    return Err(JournalError { number: index + 1, text: line.chars().take(120).collect() });
                }
            }
        }
        self.rows.sort_by_key(|row| row.span.answered);
        self.looks.sort_by_key(|look| look.span.answered);
        self.polls.sort_by_key(|poll| poll.span.answered);
        Ok(())
    }

    /// Returns the acknowledged rows in the order of their acknowledgement.
    pub fn acknowledged(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.outcome == Outcome::Ok)
    }

    /// Returns the keys of every row that was ever sent.
    #[must_use]
    pub fn keys(&self) -> BTreeSet<&str> {
        self.rows.iter().map(|row| row.key.as_str()).collect()
    }

    /// Returns how many rows ended in `outcome` with an answer at or after `since`.
    #[must_use]
    pub fn count(&self, outcome: Outcome, since: BootTime) -> usize {
        self.rows.iter().filter(|row| row.outcome == outcome && row.span.answered >= since).count()
    }

    /// Returns the longest gap that ends at or after `from` and begins at or before `until`; none with fewer than two
    /// acknowledgements around.
    #[must_use]
    pub fn longest_gap(&self, from: BootTime, until: BootTime) -> Option<Gap> {
        self.neighbours()
            .filter(|(before, after)| after.span.answered >= from && *before <= until)
            .max_by_key(|(before, after)| after.span.answered.since(*before))
            .map(|(before, after)| self.gap(before, after))
    }

    /// Returns every gap that is longer than `longer_than`, earliest first.
    #[must_use]
    pub fn gaps(&self, longer_than: Duration) -> Vec<Gap> {
        self.neighbours()
            .filter(|(before, after)| after.span.answered.since(*before) > longer_than)
            .map(|(before, after)| self.gap(before, after))
            .collect()
    }

    /// Returns each acknowledged row with the instant of the acknowledgement before it.
    fn neighbours(&self) -> impl Iterator<Item = (BootTime, &Row)> {
        self.acknowledged().map(|row| row.span.answered).zip(self.acknowledged().skip(1))
    }

    fn gap(&self, before: BootTime, after: &Row) -> Gap {
        Gap { from: before, to: after.span.answered, client: self.client_share(before, after) }
    }

    fn client_share(&self, before: BootTime, after: &Row) -> Duration {
        // A failed insert at the node that later takes one is an answer "not yet" as well.
        let looks = self
            .looks
            .iter()
            .filter(|look| look.node == after.node && look.found != Found::Writable)
            .map(|look| look.span.answered);
        let inserts = self
            .rows
            .iter()
            .filter(|row| row.node == after.node && row.outcome != Outcome::Ok)
            .map(|row| row.span.answered);
        let refused = looks
            .chain(inserts)
            .filter(|at| *at >= before && *at <= after.span.answered)
            .max()
            .unwrap_or(after.span.sent);
        after.span.answered.since(refused.max(before))
    }
}

fn parse_line(line: &str) -> Option<Line> {
    let mut words = line.split(' ');
    let kind = words.next()?;
    let mut instant = || words.next()?.parse().ok().map(BootTime);
    let span = Span { sent: instant()?, answered: instant()? };
    if span.answered < span.sent {
        return None;
    }
    let mut word = || words.next().filter(|word| !word.is_empty()).map(str::to_owned);
    match kind {
        "row" => {
            let (key, node) = (word()?, word()?);
            let timeline = match word()?.as_str() {
                "-" => None,
                number => Some(Timeline(number.parse().ok()?)),
            };
            let outcome = match word()?.as_str() {
                "ok" => Outcome::Ok,
                "failed" => Outcome::Failed,
                "unknown" => Outcome::Unknown,
                _ => return None,
            };
            Some(Line::Row(Row { span, key, node, timeline, outcome, detail: rest(words) }))
        }
        "look" => {
            let node = word()?;
            let found = match word()?.as_str() {
                "writable" => Found::Writable,
                "read_only" => Found::ReadOnly,
                "refused" => Found::Refused,
                "unreachable" => Found::Unreachable,
                _ => return None,
            };
            Some(Line::Look(Look { span, node, found, detail: rest(words) }))
        }
        "poll" => {
            let node = word()?;
            let status = match word()?.as_str() {
                "-" => None,
                number => Some(number.parse().ok()?),
            };
            Some(Line::Poll(Poll { span, node, status, detail: rest(words) }))
        }
        _ => None,
    }
}

fn rest(words: std::str::Split<'_, char>) -> String {
    words.collect::<Vec<_>>().join(" ")
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Failed => "failed",
            Self::Unknown => "unknown",
        })
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Writable => "writable",
            Self::ReadOnly => "read_only",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
        })
    }
}

impl fmt::Display for Line {
    /// Prints the line as a journal holds it, without the line feed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Row(row) => {
                let timeline = row.timeline.map_or_else(|| "-".to_owned(), |timeline| timeline.to_string());
                let Row { span, key, node, outcome, .. } = row;
                write!(f, "row {} {} {key} {node} {timeline} {outcome}", span.sent.0, span.answered.0)?;
                detail(f, &row.detail)
            }
            Self::Look(Look { span, node, found, detail: text }) => {
                write!(f, "look {} {} {node} {found}", span.sent.0, span.answered.0)?;
                detail(f, text)
            }
            Self::Poll(Poll { span, node, status, detail: text }) => {
                let status = status.map_or_else(|| "-".to_owned(), |status| status.to_string());
                write!(f, "poll {} {} {node} {status}", span.sent.0, span.answered.0)?;
                detail(f, text)
            }
        }
    }
}

fn detail(f: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    if text.is_empty() {
        return Ok(());
    }
    write!(f, " {}", text.replace(['\n', '\r'], " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAMPLE: &str = "# format 1\n\
        row 100 110 w1.1 n1 1 ok\n\
        row 120 130 w1.2 n1 1 ok\n\
        row 140 150 w1.3 n1 - unknown connection closed\n\
        look 151 152 n2 read_only\n\
        look 160 170 n2 refused the database system is starting up\n\
        look 180 185 n2 writable\n\
        row 186 200 w1.4 n2 2 ok\n\
        row 205 210 w1.5 n2 2 ok\n\
        poll 300 301 n2 200\n\
        poll 300 350 n1 -\n";

    #[test]
    fn a_journal_prints_as_it_was_parsed() {
        for line in SAMPLE.lines().filter(|line| !line.starts_with('#')) {
            assert_eq!(parse_line(line).map(|parsed| parsed.to_string()), Some(line.to_owned()));
        }
    }

    #[test]
    fn a_line_feed_in_an_error_cannot_forge_a_line() {
        let row = Row {
            span: Span { sent: BootTime(1), answered: BootTime(2) },
            key: "k".into(),
            node: "n1".into(),
            timeline: None,
            outcome: Outcome::Failed,
            detail: "bad\nrow 1 2 forged n1 1 ok".into(),
        };
        let text = format!("{}\n", Line::Row(row));
        assert_eq!(Journal::parse(&text).map(|journal| journal.rows.len()), Ok(1));
    }

    #[test]
    fn a_gap_lasts_from_the_last_acknowledgement_before_to_the_first_after() {
        let journal = Journal::parse(SAMPLE).unwrap();
        let gap = journal.longest_gap(BootTime(135), BootTime(1000)).unwrap();
        assert_eq!((gap.from, gap.to), (BootTime(130), BootTime(200)));
        assert_eq!(gap.length(), Duration::from_nanos(70));
        assert_eq!(gap.client, Duration::from_nanos(30), "from the last refusal at n2 to the acknowledgement");
    }

    #[test]
    fn without_a_refusal_the_client_share_is_the_insert_alone() {
        let journal = Journal::parse(SAMPLE).unwrap();
        let gap = journal.longest_gap(BootTime(201), BootTime(1000)).unwrap();
        assert_eq!((gap.length(), gap.client), (Duration::from_nanos(10), Duration::from_nanos(5)));
    }

    #[test]
    fn a_gap_that_never_ended_is_none() {
        let journal = Journal::parse(SAMPLE).unwrap();
        assert_eq!(journal.longest_gap(BootTime(211), BootTime(1000)), None);
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_a_damaged_one_refused() {
        let torn = "row 1 2 a n1 1 ok\nrow 3 4 b n1 1 o";
        assert_eq!(Journal::parse(torn).map(|journal| journal.rows.len()), Ok(1));
        for bad in ["row 1 2 a n1 1 maybe\n", "row 5 2 a n1 1 ok\n", "row x 2 a n1 1 ok\n", "what\n", "row 1 2 a n1\n"]
        {
            assert_eq!(Journal::parse(bad).map_err(|error| error.number), Err(1), "{bad}");
        }
    }

    #[test]
    fn rows_are_counted_by_outcome_since_an_instant() {
        let journal = Journal::parse(SAMPLE).unwrap();
        assert_eq!(journal.count(Outcome::Ok, BootTime(0)), 4);
        assert_eq!(journal.count(Outcome::Ok, BootTime(200)), 2);
        assert_eq!(journal.count(Outcome::Unknown, BootTime(0)), 1);
    }
}
