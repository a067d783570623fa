//! What is wrong with a node's machine: said in its pulses, so that every node can tell an operator.

use serde::{Deserialize, Serialize};

/// What is wrong with a node's machine. New variants are added at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Trouble {
    /// Raft has stopped there, as its disk is full: the node votes for nothing until it has room.
    RaftStoppedDiskFull,
    /// Raft has stopped there for another reason.
    RaftStopped,
    /// A disk of it takes no writes.
    DiskFull,
    /// A disk of it is nearly full.
    DiskLow,
    /// A disk of it is read-only, as after an error of it.
    DiskReadOnly,
    /// By its clock, the certificate of another member does not hold: it cannot connect to that one anew.
    ClocksDiffer,
}

impl Trouble {
    /// Returns whether what it is needed for has stopped already.
    pub fn is_critical(self) -> bool {
        self != Self::DiskLow
    }

    /// Returns it as a sentence about the node `name`.
    pub fn of(self, name: &str) -> String {
        match self {
            Self::RaftStoppedDiskFull => {
                format!("{name}'s Raft has stopped: disk full; it goes on by itself once there is room")
            }
            Self::RaftStopped => format!("{name}'s Raft has stopped; its log tells why"),
            Self::DiskFull => format!("{name}'s disk is full: free some space there"),
            Self::DiskLow => format!("{name}'s disk is nearly full: free some space there"),
            Self::DiskReadOnly => format!(
                "{name}'s disk takes no writes: it is read-only or has failed; `dmesg` there tells why. Stop hasup there, mend and \
                 mount the disk, start hasup again"
            ),
            Self::ClocksDiffer => format!(
                "by {name}'s clock the certificate of another member does not hold, so it cannot connect to that one: one of their \
                 clocks is wrong by a day or more. `date -u` on each shows which; set it (`timedatectl set-ntp true`), and hasup goes \
                 on by itself"
            ),
        }
    }

    /// Returns whether it is about a disk that takes no writes, or will soon take none.
    pub fn is_of_disk(self) -> bool {
        matches!(self, Self::DiskFull | Self::DiskLow | Self::RaftStoppedDiskFull | Self::DiskReadOnly)
    }

    /// Returns whether what clients write cannot be kept.
    pub fn stops_writes(self) -> bool {
        matches!(self, Self::DiskFull | Self::DiskReadOnly)
    }
}
