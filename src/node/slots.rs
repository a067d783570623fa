//! For whom this node's PostgreSQL keeps log: every other member with data, whichever role this node has.
//!
//! On the active node the WAL senders tell how far a member is; on a standby, the member's own reports. A position counts only
//! on the timeline that this node is on: on another, the same number may stand for other log.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::Shared;
use super::database::parse_member;
use crate::ha::pulse::PulseView;
use crate::ha::record::MemberKind;
use crate::kv::State;
use crate::postgres::PostgresFacts;
use crate::postgres::observe::LiveFacts;
use crate::postgres::slots::Keep;
use crate::sys::clock::boot_now;
use crate::types::{BootTime, NodeId};

/// How often slots are looked after. What a member lacks meanwhile, `wal_keep_size` holds.
const EVERY: Duration = Duration::from_secs(5);
/// A member silent for so long is copied anew when it comes back, whatever room there is.
const SILENT_MAX: Duration = Duration::from_secs(24 * 3600);
/// A report so young speaks of now, for this purpose.
const HEARD: Duration = Duration::from_secs(5);

/// Looks after the slots again and again. Ends with the node.
pub(super) async fn keep(shared: Arc<Shared>) {
    let began = boot_now();
    loop {
        tokio::time::sleep(EVERY).await;
        let state = shared.state();
        // before it has come to its own admission, a new node knows no members
        if !state.members.contains_key(&shared.me) {
            continue;
        }
        let observation = shared.postgres.last_observation();
        if let PostgresFacts::Live(live) = &observation.facts {
            let members = wanted(&state, shared.me, live, &shared.pulses.view(), began, boot_now());
            shared.postgres.keep_slots(&members, &state).await;
        }
    }
}

fn wanted(
    state: &State,
    me: NodeId,
    live: &LiveFacts,
    pulse: &PulseView,
    began: BootTime,
    now: BootTime,
) -> BTreeMap<NodeId, Keep> {
    let mut wanted = BTreeMap::new();
    for member in state.members.values().filter(|member| member.id != me && member.kind == MemberKind::Data) {
        let peer = pulse.peers.get(&member.id);
        let silent_for = now.since(peer.map_or(began, |peer| peer.proved_at));
        if silent_for > SILENT_MAX {
            continue;
        }
        let reported = || {
            let position = peer?.report.data?.position?;
            (position.timeline == live.timeline).then_some(position.lsn)
        };
        let sent = || {
            let mut senders = live.senders.iter();
            senders.find(|it| parse_member(&it.application_name).is_some_and(|it| it.node == member.id))?.flush_lsn
        };
        let reached = if live.in_recovery { reported() } else { sent() };
        wanted.insert(member.id, Keep { reached, is_heard: peer.is_some() && silent_for <= HEARD });
    }
    wanted
}
