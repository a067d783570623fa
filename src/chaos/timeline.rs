//! What happened when, for a person's eye: roles, leases, acknowledged writes and gaps from the clients' journals, and the
//! cluster's own history beside them. Pure.
//!
//! Times are milliseconds since the schedule began; what lies before it is negative.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::journal::{Gap, Journal, Poll};
use super::millis;
use super::view::{EventView, WhyView};
use crate::types::{BootTime, Timeline};

/// Acknowledgements of one node that are closer together are one stretch of work.
const STRETCH: Duration = Duration::from_millis(250);
/// Shorter gaps are not told: a checkpoint, or a busy processor, makes as much.
const GAP_MIN: Duration = Duration::from_millis(200);

/// What a node's role endpoint said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// It answered 200: it holds the lease and takes writes.
    Active,
    /// It answered otherwise, and its PostgreSQL runs.
    Standby,
    /// It answered otherwise, and its PostgreSQL does not run.
    Stopped,
    /// It did not answer.
    Silent,
}

/// A stretch in which a node's role endpoint said the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RoleSpan {
    /// Its first request.
    pub from_ms: i64,
    /// The first request that was answered otherwise, or the last one of all.
    pub to_ms: i64,
    /// What it said.
    pub role: Role,
    /// The timeline of its PostgreSQL.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeline: Option<Timeline>,
}

/// A stretch in which a node said that it holds the lease.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseSpan {
    /// The node.
    pub node: String,
    /// The timeline that it wrote on.
    pub timeline: Option<Timeline>,
    /// When it first said so.
    pub from_ms: i64,
    /// When it no longer did.
    pub to_ms: i64,
}

/// A stretch in which a node acknowledged writes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct WriteSpan {
    /// The node.
    pub node: String,
    /// The timeline that it wrote on.
    pub timeline: Option<Timeline>,
    /// The first acknowledgement.
    pub from_ms: i64,
    /// The last one.
    pub to_ms: i64,
    /// How many there were.
    pub rows: usize,
}

/// A time without an acknowledgement to the client outside.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GapRecord {
    /// The last acknowledgement before.
    pub from_ms: i64,
    /// The first one after.
    pub to_ms: i64,
    /// How long it was.
    pub length_ms: f64,
    /// What of it the client itself may have added.
    pub client_ms: f64,
}

/// An event of the cluster's history.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EventRecord {
    /// By the recording node's wall clock, which is the machine's.
    pub at_ms: i64,
    /// Its number in the history.
    pub id: u64,
    /// The node that recorded it.
    pub node: String,
    /// The generation that it belongs to.
    pub generation: u64,
    /// What happened.
    pub kind: String,
    /// Why.
    pub why: WhyView,
}

/// Everything that a timeline shows beside the faults.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Timelines {
    /// From here on there is something to show.
    pub from_ms: i64,
    /// Up to here.
    pub to_ms: i64,
    /// What each node's role endpoint said.
    pub roles: BTreeMap<String, Vec<RoleSpan>>,
    /// Who said that it holds the lease.
    pub leases: Vec<LeaseSpan>,
    /// Who acknowledged writes.
    pub writes: Vec<WriteSpan>,
    /// When nobody did.
    pub gaps: Vec<GapRecord>,
    /// What the cluster did, and why.
    pub events: Vec<EventRecord>,
}

/// When a schedule began, on both clocks.
#[derive(Debug, Clone, Copy, Default)]
pub struct Start {
    /// On the boot-time clock.
    pub boot: BootTime,
    /// On the wall clock.
    pub wall: Duration,
}

impl Start {
    fn ms(self, at: BootTime) -> i64 {
        let ns = i128::from(at.0) - i128::from(self.boot.0);
        i64::try_from(ns.div_euclid(1_000_000)).unwrap_or_default()
    }
}

impl Timelines {
    /// Draws them from all journals, from that of the client outside, and from the history since the start.
    #[must_use]
    pub fn draw(start: Start, all: &Journal, outside: &Journal, history: &[EventView]) -> Self {
        let spans = all.rows.iter().map(|row| row.span).chain(all.polls.iter().map(|poll| poll.span));
        let (mut from_ms, mut to_ms) = (0, 0);
        for span in spans {
            from_ms = from_ms.min(start.ms(span.sent));
            to_ms = to_ms.max(start.ms(span.answered));
        }
        let roles = roles(start, all);
        let mut leases: Vec<LeaseSpan> = Vec::new();
        for (node, spans) in &roles {
            leases.extend(spans.iter().filter(|span| span.role == Role::Active).map(|span| LeaseSpan {
                node: node.clone(),
                timeline: span.timeline,
                from_ms: span.from_ms,
                to_ms: span.to_ms,
            }));
        }
        leases.sort_by_key(|lease| lease.from_ms);
        let gap = |gap: Gap| GapRecord {
            from_ms: start.ms(gap.from),
            to_ms: start.ms(gap.to),
            length_ms: millis(gap.length()),
            client_ms: millis(gap.client),
        };
        let wall = i64::try_from(start.wall.as_millis()).unwrap_or_default();
        let event = |event: &EventView| EventRecord {
            at_ms: i64::try_from(event.at_ms).unwrap_or_default() - wall,
            id: event.id,
            node: event.node.clone(),
            generation: event.generation,
            kind: event.kind.clone(),
            why: event.why.clone(),
        };
        let mut events: Vec<EventRecord> = history.iter().map(event).collect();
        // What a node recorded while it was cut off comes later than it was.
        events.sort_by_key(|event| event.at_ms);
        Self {
            from_ms,
            to_ms: events.iter().map(|event| event.at_ms).fold(to_ms, i64::max),
            roles,
            leases,
            writes: writes(start, all),
            gaps: outside.gaps(GAP_MIN).into_iter().map(gap).collect(),
            events,
        }
    }
}

fn roles(start: Start, journal: &Journal) -> BTreeMap<String, Vec<RoleSpan>> {
    let mut polls: Vec<&Poll> = journal.polls.iter().collect();
    polls.sort_by_key(|poll| poll.span.sent);
    let mut roles: BTreeMap<String, Vec<RoleSpan>> = BTreeMap::new();
    for poll in polls {
        let mut words = poll.detail.split(' ');
        let state = words.next().unwrap_or_default();
        let role = match poll.status {
            None => Role::Silent,
            Some(200) => Role::Active,
            Some(_) if state == "stopped" => Role::Stopped,
            Some(_) => Role::Standby,
        };
        let timeline = words.next().and_then(|word| word.parse().ok()).map(Timeline);
        let (from_ms, to_ms) = (start.ms(poll.span.sent), start.ms(poll.span.answered));
        let spans = roles.entry(poll.node.clone()).or_default();
        if let Some(last) = spans.last_mut() {
            let goes_on = last.role == role && (last.timeline == timeline || role != Role::Active);
            last.to_ms = if goes_on { to_ms } else { from_ms };
            if goes_on {
                last.timeline = timeline.or(last.timeline);
                continue;
            }
        }
        spans.push(RoleSpan { from_ms, to_ms, role, timeline });
    }
    roles
}

fn writes(start: Start, journal: &Journal) -> Vec<WriteSpan> {
    let mut open: BTreeMap<(&str, Option<Timeline>), WriteSpan> = BTreeMap::new();
    let mut done = Vec::new();
    let apart = i64::try_from(STRETCH.as_millis()).unwrap_or(i64::MAX);
    for row in journal.acknowledged() {
        let at = start.ms(row.span.answered);
        let key = (row.node.as_str(), row.timeline);
        let fresh = || WriteSpan { node: row.node.clone(), timeline: row.timeline, from_ms: at, to_ms: at, rows: 0 };
        let work = open.entry(key).or_insert_with(fresh);
        if at - work.to_ms > apart {
            done.push(std::mem::replace(work, fresh()));
        }
        work.to_ms = at;
        work.rows += 1;
    }
    done.extend(open.into_values());
    done.sort_by(|one, other| (one.from_ms, &one.node).cmp(&(other.from_ms, &other.node)));
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn start() -> Start {
        Start { boot: BootTime(1000 * MS), wall: Duration::from_millis(50_000) }
    }

    fn drawn(lines: &[(&str, u64, u64, &str)]) -> Timelines {
        let text: String =
            lines.iter().map(|(kind, from, to, rest)| format!("{kind} {} {} {rest}\n", from * MS, to * MS)).collect();
        let journal = Journal::parse(&text).unwrap();
        Timelines::draw(start(), &journal, &journal, &[])
    }

    #[test]
    fn roles_and_leases_are_what_the_endpoints_said() {
        let drawn = drawn(&[
            ("poll", 900, 905, "n1 200 running 1"),
            ("poll", 1100, 1105, "n1 200 running 1"),
            ("poll", 1200, 2200, "n1 -"),
            ("poll", 2300, 2305, "n1 503 stopped"),
            ("poll", 2400, 2405, "n1 503 running 1"),
            ("poll", 2500, 2505, "n1 200 running 3"),
            ("poll", 2600, 2605, "n1 200 running 3"),
        ]);
        let of = |from_ms, to_ms, role, timeline: Option<u32>| RoleSpan {
            from_ms,
            to_ms,
            role,
            timeline: timeline.map(Timeline),
        };
        let expected = [
            of(-100, 200, Role::Active, Some(1)),
            of(200, 1300, Role::Silent, None),
            of(1300, 1400, Role::Stopped, None),
            of(1400, 1500, Role::Standby, Some(1)),
            of(1500, 1605, Role::Active, Some(3)),
        ];
        assert_eq!(drawn.roles["n1"], expected);
        let leases: Vec<_> = drawn.leases.iter().map(|lease| (lease.timeline, lease.from_ms, lease.to_ms)).collect();
        assert_eq!(leases, [(Some(Timeline(1)), -100, 200), (Some(Timeline(3)), 1500, 1605)]);
        assert_eq!((drawn.from_ms, drawn.to_ms), (-100, 1605));
    }

    #[test]
    fn writes_are_stretches_by_node_and_timeline_with_gaps_between_them() {
        let drawn = drawn(&[
            ("row", 1000, 1001, "a n1 1 ok"),
            ("row", 1100, 1101, "b n1 1 ok"),
            ("row", 3000, 3001, "c n2 2 ok"),
            ("row", 3900, 3901, "d n2 2 ok"),
        ]);
        let writes: Vec<_> =
            drawn.writes.iter().map(|work| (work.node.as_str(), work.from_ms, work.to_ms, work.rows)).collect();
        assert_eq!(writes, [("n1", 1, 101, 2), ("n2", 2001, 2001, 1), ("n2", 2901, 2901, 1)]);
        let gaps: Vec<_> = drawn.gaps.iter().map(|gap| (gap.from_ms, gap.to_ms, gap.length_ms)).collect();
        assert_eq!(gaps, [(101, 2001, 1900.0), (2001, 2901, 900.0)]);
    }

    #[test]
    fn events_are_placed_by_the_wall_clock() {
        let event = EventView { at_ms: 51_500, id: 7, kind: "assigned".into(), ..EventView::default() };
        let drawn = Timelines::draw(start(), &Journal::default(), &Journal::default(), &[event]);
        assert_eq!((drawn.events[0].at_ms, drawn.events[0].id, drawn.to_ms), (1500, 7, 1500));
    }
}
