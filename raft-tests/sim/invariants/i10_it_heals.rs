//! I10: with a majority that hears each other both ways, holding intact data that satisfies L11, writes return within the bound,
//! and nobody stays barred. Checked at the end of a run, long after all was repaired.

use hasup::ha::durable::DataState;
use hasup::ha::record::MemberKind;

use crate::postgres::Run;
use crate::rng::{MS, Time};
use crate::world::World;

/// Writes are back this long after the last repair: the chosen one may have to fail at promoting once (`promote_limit`).
pub const WRITES_BACK: Time = 20_000 * MS;

/// Checks a run that has ended.
pub fn check(world: &mut World) {
    if let Some(what) = unhealthy(world) {
        world.break_rule("I10", what);
    }
}

fn unhealthy(world: &World) -> Option<String> {
    let (record, _) = world.raft.newest().record.as_ref()?;
    if world.now.saturating_sub(world.last_acknowledged) > 2_000 * MS {
        let leads = world.raft.leader.map_or(0, |leader| leader + 1);
        let since = world.last_acknowledged as f64 / 1e9;
        return Some(format!("no write was acknowledged since {since:.3} s; node {leads} leads; {record:?}"));
    }
    let healed = world.healed_at?;
    let back = world.recovered_at?;
    if back.saturating_sub(healed) > WRITES_BACK {
        return Some(format!("writes came back only {:.3} s after the last repair", (back - healed) as f64 / 1e9));
    }
    if !record.opened || record.commit_sets.len() != 1 || record.voter_sets.len() != 1 {
        return Some(format!("a change of the record never ended: {record:?}"));
    }
    let active = world.index_of(record.node);
    for (id, info) in &world.raft.newest().members {
        let node = world.index_of(*id);
        let host = &world.nodes[node];
        if host.disk.barred >= record.generation {
            return Some(format!("node {id} stays barred: {} of {}", host.disk.barred, record.generation));
        }
        if info.kind != MemberKind::Data {
            continue;
        }
        if host.disk.data != DataState::Intact {
            return Some(format!("the data of node {id} was never made whole: {:?}", host.disk.data));
        }
        if node == active {
            if host.pg.run != Run::Primary {
                return Some(format!("node {id} is active and no primary"));
            }
        } else if host.pg.receiver.is_none_or(|stream| world.streams[stream].primary != active) {
            return Some(format!("node {id} does not stream from node {}", record.node));
        }
    }
    let expected = expected_voters(world);
    let voters = record.voter_sets.last().map_or(0, std::collections::BTreeSet::len);
    if voters != expected || world.raft.voters.len() != 1 {
        let set = record.commit_sets.last();
        let removing = &world.raft.newest().goals.removing;
        let raft = &world.raft.voters;
        return Some(format!(
            "{voters} voters instead of {expected}: {:?}, Raft's {raft:?}, {set:?}, removing {removing:?}, active {}",
            record.voter_sets, record.node
        ));
    }
    None
}

fn expected_voters(world: &World) -> usize {
    let members = world.raft.newest().members.len();
    if members.is_multiple_of(2) { members - 1 } else { members }
}
