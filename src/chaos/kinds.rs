//! The one table of what a schedule can do to a host; the parser, `hasup chaos list`, `--allow-skip` and the README read it.

use std::fmt;
use std::str::FromStr;

use serde::{Serialize, Serializer};

use super::machine::Need;

/// A kind of step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Power loss.
    Crash,
    /// Power is back.
    Boot,
    /// The cable is pulled.
    Cut,
    /// The network is whole again.
    Heal,
    /// Packets of one direction are dropped.
    Oneway,
    /// A share of packets is dropped.
    Loss,
    /// Packets between two hosts are dropped.
    Part,
    /// Everything is frozen.
    Pause,
    /// Everything goes on.
    Resume,
    /// A process is killed.
    Kill,
    /// The role is moved by command.
    Switchover,
    /// A node is marked.
    Mark,
    /// The mark is taken off.
    Unmark,
    /// Rows are inserted beside the host.
    Insert,
    /// A node is removed.
    Remove,
    /// A node joins.
    Join,
}

/// What stands between the kind's word and its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// Nothing.
    None,
    /// `in` or `out`.
    Direction,
    /// A share of packets, as `20%`.
    Share,
    /// `daemon`, `guard` or `postgres`.
    Process,
    /// A number of rows.
    Rows,
    /// Nothing before the host, and another host behind it.
    OtherHost,
}

impl Argument {
    /// Returns what it is, in the words of an error.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::None => "nothing but a host",
            Self::Direction => "`in` (packets to the host) or `out`",
            Self::Share => "a share of packets",
            Self::Process => "`daemon`, `guard` or `postgres`",
            Self::Rows => "a number of rows",
            Self::OtherHost => "two hosts",
        }
    }

    /// Returns how it stands in a statement, with its host.
    #[must_use]
    pub fn form(self) -> &'static str {
        match self {
            Self::None => "HOST",
            Self::Direction => "in|out HOST",
            Self::Share => "PERCENT% HOST",
            Self::Process => "daemon|guard|postgres HOST",
            Self::Rows => "NUMBER HOST",
            Self::OtherHost => "HOST HOST",
        }
    }
}

/// What a schedule's writer, and its parser, must know of a kind.
#[derive(Debug)]
pub struct Row {
    /// The kind.
    pub kind: Kind,
    /// Its word in a schedule.
    pub word: &'static str,
    /// What stands between the word and its host.
    pub argument: Argument,
    /// Who is meant where no host is named, as a schedule says it; none where one must be.
    pub default_victim: Option<&'static str>,
    /// A statement without its time.
    pub example: &'static str,
    /// What it does.
    pub does: &'static str,
    /// What shows, from outside hasup, that it did.
    pub proof: &'static str,
    /// The kind that ends it; none for what is over at once.
    pub undone_by: Option<Kind>,
    /// What it needs of the machine beyond what hosts need.
    pub needs: &'static [Need],
}

const fn row(kind: Kind, word: &'static str, argument: Argument, example: &'static str) -> Row {
    Row { kind, word, argument, default_victim: None, example, does: "", proof: "", undone_by: None, needs: &[] }
}

/// Every kind, in the order of [`Kind`].
pub static KINDS: &[Row] = &[
    Row {
        does: "power loss: the cable is pulled, then every process is killed",
        proof: "the host had processes and has none, its carrier is gone, and it answers nobody until it boots",
        undone_by: Some(Kind::Boot),
        ..row(Kind::Crash, "crash", Argument::None, "crash active")
    },
    Row {
        does: "power and cable are back, and the supervisor starts the daemon",
        proof: "the carrier is there and the daemon was started",
        default_victim: Some("last"),
        ..row(Kind::Boot, "boot", Argument::None, "boot n1")
    },
    Row {
        does: "the cable is pulled",
        proof: "the host's interface lost its carrier, and it answers nobody until the cable is back",
        undone_by: Some(Kind::Heal),
        ..row(Kind::Cut, "cut", Argument::None, "cut n2")
    },
    Row {
        does: "the cable is put back and nothing is dropped any more",
        proof: "the carrier is there, and no rule drops packets of the host",
        default_victim: Some("all"),
        ..row(Kind::Heal, "heal", Argument::None, "heal n2")
    },
    Row {
        does: "packets to the host, or those from it, are dropped",
        proof: "the switch counted dropped packets of that direction",
        undone_by: Some(Kind::Heal),
        needs: &[Need::Rules],
        ..row(Kind::Oneway, "oneway", Argument::Direction, "oneway in active")
    },
    Row {
        does: "that share of packets is dropped, both ways",
        proof: "the switch counted packets of both directions, and dropped ones among them",
        undone_by: Some(Kind::Heal),
        needs: &[Need::Rules, Need::Shares],
        ..row(Kind::Loss, "loss", Argument::Share, "loss 20% n3")
    },
    Row {
        does: "packets between the two hosts are dropped",
        proof: "the switch counted dropped packets between them",
        undone_by: Some(Kind::Heal),
        needs: &[Need::Rules],
        ..row(Kind::Part, "part", Argument::OtherHost, "part n1 active")
    },
    Row {
        does: "every process of the host is frozen",
        proof: "the kernel says that all are frozen, they used no processor time, and the host answers nobody until it goes on",
        undone_by: Some(Kind::Resume),
        ..row(Kind::Pause, "pause", Argument::None, "pause active")
    },
    Row {
        does: "the host's processes go on",
        proof: "the kernel says that none is frozen",
        default_victim: Some("last"),
        ..row(Kind::Resume, "resume", Argument::None, "resume")
    },
    Row {
        does: "that process is killed by SIGKILL; the supervisor starts a daemon again",
        proof: "the process was there and is gone",
        ..row(Kind::Kill, "kill", Argument::Process, "kill postgres active")
    },
    Row {
        does: "the active role is moved by command, to the host where one is named",
        proof: "clients were served by one node before and by another afterwards",
        default_victim: Some("active"),
        ..row(Kind::Switchover, "switchover", Argument::None, "switchover n2")
    },
    Row {
        does: "the node is marked `nofailover` by command",
        proof: "another member says so",
        undone_by: Some(Kind::Unmark),
        ..row(Kind::Mark, "mark", Argument::None, "mark n3")
    },
    Row {
        does: "that mark is taken off by command",
        proof: "another member says so",
        ..row(Kind::Unmark, "unmark", Argument::None, "unmark n3")
    },
    Row {
        does: "so many rows are inserted by a client beside the host, as fast as it can",
        proof: "the client's journal holds so many",
        ..row(Kind::Insert, "insert", Argument::Rows, "insert 10000 active")
    },
    Row {
        does: "the node is removed by command; its daemon is stopped and its folders are emptied",
        proof: "the host had processes and has none, and its folder is gone",
        ..row(Kind::Remove, "remove", Argument::None, "remove standby")
    },
    Row {
        does: "the host joins as a new node, with a new token",
        proof: "its PostgreSQL was seen running",
        default_victim: Some("last"),
        ..row(Kind::Join, "join", Argument::None, "join last")
    },
];

impl Kind {
    /// Returns its row.
    #[must_use]
    pub fn row(self) -> &'static Row {
        // In the order of the variants, which a test holds.
        &KINDS[self as usize]
    }

    /// Returns whether it takes back what an earlier step did.
    #[must_use]
    pub fn undoes(self) -> bool {
        KINDS.iter().any(|row| row.undone_by == Some(self))
    }

    /// Returns whether the switch drops packets by a rule for it; a host has one such rule at a time.
    #[must_use]
    pub fn is_rule(self) -> bool {
        matches!(self, Self::Oneway | Self::Loss | Self::Part)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().word)
    }
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.row().word)
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = KINDS.iter().find(|row| row.word == text).map(|row| row.kind);
        found.ok_or_else(|| {
            let words: Vec<&str> = KINDS.iter().map(|row| row.word).collect();
            format!("`{text}` is no fault; there are {}", words.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::schedule::Schedule;

    #[test]
    fn every_kind_has_its_row_and_every_example_is_a_step_of_that_kind() {
        for (index, row) in KINDS.iter().enumerate() {
            assert_eq!((row.kind as usize, row.kind.row().word), (index, row.word));
            let schedule = Schedule::parse(&format!("at 1s {}\nend 2s", row.example), &["n1", "n2", "n3"]).unwrap();
            assert_eq!(schedule.steps[0].fault.kind(), row.kind, "{}", row.example);
            assert!(!row.does.is_empty() && !row.proof.is_empty(), "{}", row.word);
            assert_eq!(row.word.parse(), Ok(row.kind));
            let alone = Schedule::parse(&format!("at 1s {}\nend 2s", row.word), &["n1"]);
            assert_eq!(alone.is_ok(), row.default_victim.is_some(), "{} alone", row.word);
        }
        assert!("what".parse::<Kind>().unwrap_err().contains("crash, boot, cut"));
        assert!(Kind::Heal.undoes() && !Kind::Kill.undoes());
    }
}
