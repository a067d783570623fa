//! I5: once L11 is met, at most k − 1 members of any set that the old primary may use can acknowledge to it; and what was stated
//! under a bar stays all that the node holds until a later record.

use hasup::ha::durable::DataState;
use hasup::ha::quorum::majority_of_every;
use hasup::ha::record::PriorAssignment;

use crate::raft::ClusterState;
use crate::world::World;

/// Checks a record that names somebody to be promoted.
pub fn check_assignment(world: &mut World, old: &ClusterState, new: &ClusterState) {
    let (Some((old, _)), Some((new, _))) = (&old.record, &new.record) else { return };
    if new.promoted == old.promoted {
        return;
    }
    let generation = old.generation;
    let host = |node| &world.nodes[world.index_of(node)];
    let has_ended = |node| host(node).disk.resigned >= generation && node == old.node;
    let voted = majority_of_every(&old.voter_sets, |voter| host(voter).disk.barred >= generation || has_ended(voter));
    if !voted {
        world.break_rule("I5", format!("generation {} was assigned without a majority's bars on disk", new.generation));
        return;
    }
    let mut chain: Vec<PriorAssignment> = old.since_opened.clone();
    chain.push(old.to_prior());
    for record in &chain {
        let primary = world.index_of(record.node);
        if world.nodes[primary].disk.resigned >= record.generation {
            continue;
        }
        for set in &record.commit_sets {
            let helpers = set.members.iter().filter(|member| {
                let node = world.index_of(member.node);
                let host = &world.nodes[node];
                let is_same = host.disk.incarnation == member.incarnation;
                let streams = host.pg.receiver.is_some_and(|stream| world.streams[stream].primary == primary);
                is_same && (host.disk.barred < record.generation || streams)
            });
            let helpers = helpers.count();
            if set.k > 0 && helpers >= set.k as usize {
                let what = format!(
                    "generation {} was assigned while {helpers} of generation {}'s set can still acknowledge to node {}",
                    new.generation,
                    record.generation,
                    primary + 1
                );
                world.break_rule("I5", what);
                return;
            }
        }
    }
    let chosen = host(new.node);
    let holds = chosen.pg.wal.position(&world.instances);
    if chosen.disk.data != DataState::Intact || chosen.disk.incarnation != new.incarnation || holds != new.start {
        let what = format!(
            "node {} was chosen for log up to {} and holds {holds}, {:?}",
            new.node, new.start, chosen.disk.data
        );
        world.break_rule("I5", what);
    }
}

/// Checks that what a barred node fetches comes from another that is barred, and whose own log comes from nobody of that generation.
pub fn check_fetch(world: &mut World, stream: usize) {
    let stream = &world.streams[stream];
    if !stream.is_fetch {
        return;
    }
    let generation = stream.generation;
    let has_refused = |node: usize| {
        let disk = &world.nodes[node].disk;
        disk.barred >= generation || disk.resigned >= generation
    };
    let onward = world.nodes[stream.primary].pg.receiver.map(|onward| &world.streams[onward]);
    let is_still = onward.is_none_or(|onward| onward.is_fetch || onward.generation > generation);
    if !has_refused(stream.primary) || !has_refused(stream.standby) || !is_still {
        let what = format!(
            "node {} fetches from node {} under generation {generation}, which both had to refuse to help before",
            stream.standby + 1,
            stream.primary + 1
        );
        world.break_rule("I5", what);
    }
}

/// Checks that a node that stated its position under a bar does not go past it.
pub fn check_stated(world: &mut World, stream: usize) {
    let stream = &world.streams[stream];
    let Some(daemon) = &world.nodes[stream.standby].daemon else { return };
    let Some(stated) = daemon.report.data.and_then(|data| data.stated) else { return };
    let holds = world.nodes[stream.standby].pg.wal.end();
    if stream.generation <= stated.under && holds > stated.position.lsn.0 {
        let what = format!(
            "node {} stated {} under a bar and holds log up to {holds} by now",
            stream.standby + 1,
            stated.position
        );
        world.break_rule("I5", what);
    }
}
