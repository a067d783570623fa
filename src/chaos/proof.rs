//! What shows that a fault did what it says, measured outside hasup, and whether it did.
//!
//! Pure. A measurement is taken when the fault is in force, and again just before it is taken back; a fault that did not bite
//! proves nothing about the cluster, so a run with one is `inconclusive`.

use std::fmt;

use serde::Serialize;

use super::hosts::Packets;
use super::schedule::{Direction, Fault};

/// Of so many packets, dropping a share should have hit one: with fewer expected, none is what that share is.
const EXPECTED_MIN: u64 = 5;

/// A measurement.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Proof {
    /// Of a power loss.
    Power {
        /// Processes of the host before.
        processes_before: usize,
        /// Processes of the host after.
        processes_after: usize,
        /// Whether the host's interface has a carrier.
        carrier: bool,
        /// Requests that were sent to the host and answered by it while it lasted.
        answers: usize,
    },
    /// Of power that is back.
    Boot {
        /// Whether the host's interface has a carrier.
        carrier: bool,
        /// How often the supervisor started the daemon afterwards.
        starts: u64,
    },
    /// Of a pulled cable.
    Cable {
        /// Whether the host's interface had a carrier before.
        carrier_before: bool,
        /// Whether it had one at any of the looks while the cable was out.
        carrier: bool,
        /// Requests that were sent to the host and answered by it while it lasted.
        answers: usize,
    },
    /// Of packets that are dropped.
    Dropped(Packets),
    /// Of a network that is whole again.
    Healed {
        /// Whether the host's interface has a carrier.
        carrier: bool,
        /// Rules that drop packets of the host.
        rules: usize,
    },
    /// Of a frozen host.
    Frozen {
        /// Its processes.
        processes: usize,
        /// Whether the kernel said at each look that all of them were frozen.
        frozen: bool,
        /// Ticks of processor time that they used from the first look to the last.
        cpu_ticks: u64,
        /// From the first look to the last.
        frozen_ms: u64,
        /// Requests that were sent to the host and answered by it while it lasted.
        answers: usize,
    },
    /// Of a host that goes on.
    Thawed {
        /// Whether the kernel says that all of its processes are frozen.
        frozen: bool,
    },
    /// Of killed processes.
    Killed {
        /// Their numbers.
        pids: Vec<i32>,
        /// Those that were still there.
        left: Vec<i32>,
        /// How long it took until they were gone.
        gone_ms: u64,
    },
    /// Of a role that was moved.
    Moved {
        /// Who acknowledged the last write before.
        writer_before: Option<String>,
        /// Who acknowledged the last write up to the next step.
        writer_after: Option<String>,
    },
    /// Of a mark.
    Said {
        /// The member that was asked, another one where there is one.
        by: String,
        /// Whether it says that the node is marked.
        nofailover: Option<bool>,
    },
    /// Of rows.
    Sent {
        /// So many are in the client's journal.
        rows: u64,
    },
    /// Of a node that was removed.
    Gone {
        /// Processes of the host before.
        processes_before: usize,
        /// Processes of the host after.
        processes_after: usize,
        /// Whether its folder is still there.
        folder: bool,
    },
    /// Of a node that joined.
    Came {
        /// PostgreSQL servers that were seen running on the host.
        servers: usize,
    },
}

impl Proof {
    /// Checks that the measurement shows what `fault` says.
    ///
    /// # Errors
    /// What it shows instead, in plain words.
    pub fn check(&self, fault: &Fault) -> Result<(), String> {
        match self {
            Self::Power { processes_before: 0, .. } => Err("no process was there that could lose power".to_owned()),
            Self::Power { processes_after: 1.., .. } => Err("processes of the host outlived it".to_owned()),
            Self::Power { carrier: true, .. } => Err("its cable still carries".to_owned()),
            Self::Power { answers, .. } | Self::Frozen { answers, .. } | Self::Cable { answers, .. }
                if *answers > 0 =>
            {
                Err(format!("the host answered {answers} requests meanwhile"))
            }
            Self::Boot { carrier: false, .. } => Err("its cable does not carry".to_owned()),
            Self::Boot { starts: 0, .. } => Err("no daemon was started".to_owned()),
            Self::Cable { carrier_before: false, .. } => Err("the cable was out already".to_owned()),
            Self::Cable { carrier: true, .. } => Err("its cable carried meanwhile".to_owned()),
            Self::Dropped(packets) => dropped(packets, fault),
            Self::Healed { carrier: false, .. } => Err("its cable does not carry".to_owned()),
            Self::Healed { rules, .. } if *rules > 0 => Err(format!("{rules} rules still drop its packets")),
            Self::Frozen { processes: 0, .. } => Err("no process was there that could be frozen".to_owned()),
            Self::Frozen { frozen: false, .. } => Err("its processes were not frozen all the time".to_owned()),
            Self::Frozen { cpu_ticks, .. } if *cpu_ticks > 0 => {
                Err(format!("its processes used {cpu_ticks} ticks of processor time while frozen"))
            }
            Self::Thawed { frozen: true } => Err("its processes are still frozen".to_owned()),
            Self::Killed { pids, .. } if pids.is_empty() => Err("no such process was there".to_owned()),
            Self::Killed { left, .. } if !left.is_empty() => Err(format!("processes {left:?} are still there")),
            Self::Moved { writer_before: None, .. } => Err("no write was acknowledged before".to_owned()),
            Self::Moved { writer_before, writer_after } if writer_before == writer_after => {
                Err("the same node acknowledged the writes before and after".to_owned())
            }
            Self::Said { by, nofailover } => match (fault, nofailover) {
                (Fault::Mark(wanted), Some(said)) if wanted == said => Ok(()),
                (_, Some(_)) => Err(format!("{by} says otherwise")),
                (_, None) => Err(format!("{by} says nothing of it")),
            },
            Self::Sent { rows } => match fault {
                Fault::Insert(wanted) if rows < wanted => Err(format!("{rows} rows of {wanted} were sent")),
                _ => Ok(()),
            },
            Self::Gone { processes_before: 0, .. } => Err("no process was there".to_owned()),
            Self::Gone { processes_after: 1.., .. } => Err("processes of the host outlived it".to_owned()),
            Self::Gone { folder: true, .. } => Err("its folder is still there".to_owned()),
            Self::Came { servers: 0 } => Err("no PostgreSQL was seen running".to_owned()),
            Self::Power { .. }
            | Self::Boot { .. }
            | Self::Cable { .. }
            | Self::Healed { .. }
            | Self::Frozen { .. }
            | Self::Thawed { .. }
            | Self::Killed { .. }
            | Self::Moved { .. }
            | Self::Gone { .. }
            | Self::Came { .. } => Ok(()),
        }
    }
}

impl fmt::Display for Proof {
    /// Says what was measured, in plain words.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cable = |carries: &bool| if *carries { "the cable carries" } else { "the cable does not carry" };
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "nobody".to_owned());
        match self {
            Self::Power { processes_before, processes_after, carrier, answers } => write!(
                f,
                "{processes_before} processes before, {processes_after} after; {}; {answers} requests answered",
                cable(carrier)
            ),
            Self::Boot { carrier, starts } => write!(f, "{}; the daemon was started {starts} times", cable(carrier)),
            Self::Cable { carrier_before, carrier, answers } => write!(
                f,
                "before, {}; meanwhile, {}; {answers} requests answered",
                cable(carrier_before),
                cable(carrier)
            ),
            Self::Dropped(packets) if packets.seen_in + packets.seen_out > 0 => write!(
                f,
                "dropped {} of {} packets to the host and {} of {} from it",
                packets.dropped_in, packets.seen_in, packets.dropped_out, packets.seen_out
            ),
            Self::Dropped(packets) => {
                write!(f, "dropped {} packets to the host and {} from it", packets.dropped_in, packets.dropped_out)
            }
            Self::Healed { carrier, rules } => write!(f, "{}; {rules} rules drop packets", cable(carrier)),
            Self::Frozen { processes, frozen, cpu_ticks, frozen_ms, answers } => {
                let word = if *frozen { "frozen" } else { "not all frozen" };
                let time = format!("{cpu_ticks} ticks of processor time");
                write!(f, "{processes} processes {word} for {frozen_ms} ms; {time}; {answers} requests answered")
            }
            Self::Thawed { frozen } => f.write_str(if *frozen { "still frozen" } else { "nothing is frozen" }),
            Self::Killed { pids, left, gone_ms } if left.is_empty() => {
                write!(f, "processes {pids:?} were gone after {gone_ms} ms")
            }
            Self::Killed { pids, left, gone_ms } => {
                write!(f, "of processes {pids:?}, {left:?} are there after {gone_ms} ms")
            }
            Self::Moved { writer_before, writer_after } => {
                write!(
                    f,
                    "writes were acknowledged by {} before and by {} after",
                    name(writer_before),
                    name(writer_after)
                )
            }
            Self::Said { by, nofailover } => match nofailover {
                Some(true) => write!(f, "{by} says that it is marked"),
                Some(false) => write!(f, "{by} says that it is not marked"),
                None => write!(f, "{by} says nothing of it"),
            },
            Self::Sent { rows } => write!(f, "{rows} rows are in the client's journal"),
            Self::Gone { processes_before, processes_after, folder } => {
                let folder = if *folder { "is there" } else { "is gone" };
                write!(f, "{processes_before} processes before, {processes_after} after; its folder {folder}")
            }
            Self::Came { servers } => write!(f, "{servers} PostgreSQL servers run"),
        }
    }
}

fn dropped(packets: &Packets, fault: &Fault) -> Result<(), String> {
    let both = packets.dropped_in + packets.dropped_out;
    match fault {
        Fault::Oneway(Direction::In) if packets.dropped_in == 0 => Err("no packet to the host was dropped".to_owned()),
        Fault::Oneway(Direction::Out) if packets.dropped_out == 0 => {
            Err("no packet of the host was dropped".to_owned())
        }
        Fault::Loss(_) if packets.seen_in == 0 || packets.seen_out == 0 => {
            Err("packets did not pass in both directions, so none could be lost".to_owned())
        }
        Fault::Loss(percent) => {
            let expected = (packets.seen_in + packets.seen_out) * u64::from(*percent) / 100;
            if both == 0 && expected >= EXPECTED_MIN {
                return Err(format!("no packet was dropped, and about {expected} should have been"));
            }
            Ok(())
        }
        Fault::Part(_) if both == 0 => Err("no packet between the two was dropped".to_owned()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chaos::schedule::{Part, Victim};

    /// Says that `good` shows `fault`, and that each of `bad` does not, with a reason that holds these words.
    fn holds(fault: &Fault, good: &Proof, bad: &[(Proof, &str)]) {
        assert_eq!(good.check(fault), Ok(()), "{good:?}");
        for (proof, words) in bad {
            let why = proof.check(fault).expect_err(words);
            assert!(why.contains(words), "{why}");
        }
    }

    #[test]
    fn a_power_loss_leaves_no_process_no_carrier_and_no_answer() {
        let of = |processes_before, processes_after, carrier, answers| Proof::Power {
            processes_before,
            processes_after,
            carrier,
            answers,
        };
        let bad = [
            (of(0, 0, false, 0), "could lose power"),
            (of(9, 1, false, 0), "outlived"),
            (of(9, 0, true, 0), "still carries"),
            (of(9, 0, false, 2), "answered 2 requests"),
        ];
        holds(&Fault::Crash, &of(9, 0, false, 0), &bad);
        let of = |carrier, starts| Proof::Boot { carrier, starts };
        holds(&Fault::Boot, &of(true, 1), &[(of(false, 1), "does not carry"), (of(true, 0), "no daemon")]);
    }

    #[test]
    fn a_pulled_cable_carried_before_and_not_meanwhile() {
        let of = |carrier_before, carrier, answers| Proof::Cable { carrier_before, carrier, answers };
        let bad = [
            (of(false, false, 0), "out already"),
            (of(true, true, 0), "carried meanwhile"),
            (of(true, false, 1), "answered 1 requests"),
        ];
        holds(&Fault::Cut, &of(true, false, 0), &bad);
        let of = |carrier, rules| Proof::Healed { carrier, rules };
        holds(&Fault::Heal, &of(true, 0), &[(of(false, 0), "does not carry"), (of(true, 2), "2 rules")]);
    }

    #[test]
    fn dropped_packets_are_those_of_the_fault_s_direction() {
        let of = |dropped_in, dropped_out| Proof::Dropped(Packets { dropped_in, dropped_out, ..Packets::default() });
        holds(&Fault::Oneway(Direction::In), &of(3, 0), &[(of(0, 3), "no packet to the host")]);
        holds(&Fault::Oneway(Direction::Out), &of(0, 3), &[(of(3, 0), "no packet of the host")]);
        holds(&Fault::Part(Victim::Active), &of(1, 0), &[(of(0, 0), "between the two")]);
    }

    #[test]
    fn a_share_of_packets_needs_enough_of_them_to_be_missed() {
        let of = |seen_in, seen_out, dropped| {
            Proof::Dropped(Packets { seen_in, seen_out, dropped_in: dropped, ..Packets::default() })
        };
        let bad = [
            (of(0, 500, 0), "did not pass in both directions"),
            (of(500, 0, 9), "did not pass in both directions"),
            (of(300, 300, 0), "about 60 should have been"),
        ];
        holds(&Fault::Loss(10), &of(300, 300, 61), &bad);
        holds(&Fault::Loss(2), &of(60, 60, 0), &[]);
    }

    #[test]
    fn frozen_processes_use_no_time_and_answer_nobody() {
        let of = |processes, frozen, cpu_ticks, answers| Proof::Frozen {
            processes,
            frozen,
            cpu_ticks,
            frozen_ms: 4000,
            answers,
        };
        let bad = [
            (of(0, true, 0, 0), "could be frozen"),
            (of(9, false, 0, 0), "not frozen all the time"),
            (of(9, true, 3, 0), "3 ticks"),
            (of(9, true, 0, 1), "answered 1 requests"),
        ];
        holds(&Fault::Pause, &of(9, true, 0, 0), &bad);
        holds(&Fault::Resume, &Proof::Thawed { frozen: false }, &[(Proof::Thawed { frozen: true }, "still frozen")]);
    }

    #[test]
    fn killed_processes_were_there_and_are_gone() {
        let of = |pids: &[i32], left: &[i32]| Proof::Killed { pids: pids.into(), left: left.into(), gone_ms: 1 };
        let bad = [(of(&[], &[]), "no such process"), (of(&[7, 8], &[8]), "[8] are still there")];
        holds(&Fault::Kill(Part::Guard), &of(&[7], &[]), &bad);
    }

    #[test]
    fn commands_are_shown_by_what_came_of_them() {
        let name = |name: &str| Some(name.to_owned());
        let moved = |writer_before, writer_after| Proof::Moved { writer_before, writer_after };
        let bad = [(moved(None, name("n2")), "before"), (moved(name("n1"), name("n1")), "same node")];
        holds(&Fault::Switchover, &moved(name("n1"), name("n2")), &bad);
        let said = |nofailover| Proof::Said { by: "n2".to_owned(), nofailover };
        holds(
            &Fault::Mark(true),
            &said(Some(true)),
            &[(said(Some(false)), "otherwise"), (said(None), "nothing of it")],
        );
        holds(&Fault::Mark(false), &said(Some(false)), &[(said(Some(true)), "otherwise")]);
        holds(&Fault::Insert(10), &Proof::Sent { rows: 10 }, &[(Proof::Sent { rows: 9 }, "9 rows of 10")]);
        let gone =
            |processes_before, processes_after, folder| Proof::Gone { processes_before, processes_after, folder };
        let bad = [
            (gone(0, 0, false), "no process"),
            (gone(5, 1, false), "outlived"),
            (gone(5, 0, true), "folder is still there"),
        ];
        holds(&Fault::Remove, &gone(5, 0, false), &bad);
        holds(&Fault::Join, &Proof::Came { servers: 1 }, &[(Proof::Came { servers: 0 }, "no PostgreSQL")]);
    }
}
