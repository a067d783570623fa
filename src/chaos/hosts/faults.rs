//! What is done to a host: cables, packets, frozen and killed processes.

use std::collections::BTreeSet;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::measure::{DROPPED_IN, DROPPED_OUT, SEEN_IN, SEEN_OUT, counting, dropping};
use super::{Freezer, Host, HostError, LIMIT, await_text, ip, nft, put, sleep};
use crate::chaos::process;
use crate::chaos::schedule::Direction;
use crate::sys::clock::boot_now;

impl Host {
    /// Pulls the cable.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn cut(&self) -> Result<(), HostError> {
        ip(&["-n", &self.switch, "link", "set", &self.port, "down"])
    }

    /// Puts the cable back and lets every packet pass.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn heal(&self) -> Result<(), HostError> {
        self.rules(&[])?;
        ip(&["-n", &self.switch, "link", "set", &self.port, "up"])
    }

    /// Drops the packets of one direction, instead of whatever was dropped before.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn oneway(&self, direction: Direction) -> Result<(), HostError> {
        // What goes to the host leaves the switch, and the other way round.
        let (side, told) = match direction {
            Direction::In => ("oifname", DROPPED_IN),
            Direction::Out => ("iifname", DROPPED_OUT),
        };
        self.rules(&[format!("{side} \"{}\" {}", self.port, dropping(told))])
    }

    /// Drops every packet between this host and `other`, instead of whatever was dropped before.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn part(&self, other: &Self) -> Result<(), HostError> {
        let way = |from: &str, to: &str, told| format!("iifname \"{from}\" oifname \"{to}\" {}", dropping(told));
        self.rules(&[way(&self.port, &other.port, DROPPED_OUT), way(&other.port, &self.port, DROPPED_IN)])
    }

    /// Drops `percent` of the packets of each direction, instead of whatever was dropped before.
    ///
    /// # Errors
    /// [`HostError::Command`].
    pub fn loss(&self, percent: u8) -> Result<(), HostError> {
        let share = if percent >= 100 { String::new() } else { format!("numgen random mod 100 < {percent} ") };
        let way = |side: &str, seen, dropped| {
            let port = &self.port;
            [format!("{side} \"{port}\" {}", counting(seen)), format!("{side} \"{port}\" {share}{}", dropping(dropped))]
        };
        self.rules(&[way("oifname", SEEN_IN, DROPPED_IN), way("iifname", SEEN_OUT, DROPPED_OUT)].concat())
    }

    fn rules(&self, rules: &[String]) -> Result<(), HostError> {
        if !self.has_rules {
            return Ok(());
        }
        let mut text = format!("flush chain bridge faults {}\n", self.port);
        for rule in rules {
            text.push_str(&format!("add rule bridge faults {} {rule}\n", self.port));
        }
        nft(&self.switch, &text)
    }

    /// Freezes the host's processes.
    ///
    /// # Errors
    /// [`HostError::File`] when the kernel refuses or does not finish in time.
    pub fn pause(&self, clients: &BTreeSet<i32>) -> Result<(), HostError> {
        match &self.freezer {
            Freezer::V1(folder) => {
                let file = folder.join("freezer.state");
                put(&file, "FROZEN")?;
                await_text(&file, "FROZEN")
            }
            Freezer::V2(folder) => {
                put(&folder.join("cgroup.freeze"), "1")?;
                await_text(&folder.join("cgroup.events"), "frozen 1")
            }
            Freezer::Stop => {
                process::send(self.processes(clients), Signal::SIGSTOP);
                Ok(())
            }
        }
    }

    /// Lets the host's processes go on.
    ///
    /// # Errors
    /// [`HostError::File`] when the kernel refuses.
    pub fn resume(&self) -> Result<(), HostError> {
        match &self.freezer {
            Freezer::V1(folder) => put(&folder.join("freezer.state"), "THAWED"),
            Freezer::V2(folder) => put(&folder.join("cgroup.freeze"), "0"),
            Freezer::Stop => {
                process::send(self.processes(&BTreeSet::new()), Signal::SIGCONT);
                Ok(())
            }
        }
    }

    /// Takes the power away: the cable first, so that no process says goodbye, then SIGKILL to everything but `clients`.
    ///
    /// # Errors
    /// [`HostError`] when the cable stays or processes do not end.
    pub fn crash(&self, clients: &BTreeSet<i32>) -> Result<(), HostError> {
        self.cut()?;
        self.kill(clients)
    }

    /// Sends SIGKILL to everything but `clients` until nothing is left.
    ///
    /// # Errors
    /// [`HostError::Alive`] when processes do not end.
    pub fn kill(&self, clients: &BTreeSet<i32>) -> Result<(), HostError> {
        let deadline = boot_now() + LIMIT;
        loop {
            let pids = self.processes(clients);
            if pids.is_empty() {
                return Ok(());
            }
            if boot_now() > deadline {
                return Err(HostError::Alive { host: self.name.clone(), pids });
            }
            process::send(pids, Signal::SIGKILL);
            // What is frozen dies when it thaws, before it runs another instruction.
            self.resume()?;
            sleep(Duration::from_millis(5));
        }
    }
}
