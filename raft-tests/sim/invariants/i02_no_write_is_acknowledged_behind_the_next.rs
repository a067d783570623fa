//! I2: a write acknowledged under g after g + 1 is there is in the log that g + 1 started from; checked from the promotion on,
//! which is earlier than `opened`. And `opened` says what it means: k of the set hold the log up to the promotion.

use crate::raft::ClusterState;
use crate::world::World;

/// Checks a commit that is being acknowledged.
pub fn check(world: &mut World, node: usize, instance: usize, lsn: u64) {
    let own = world.instances[instance].generation;
    let behind = world.instances[instance + 1..]
        .iter()
        .find(|later| later.generation > own && !later.start.holds(instance, lsn));
    if let Some(later) = behind {
        let what = format!(
            "node {} acknowledged {lsn} under generation {own} after node {} was promoted under {} without it",
            node + 1,
            later.node + 1,
            later.generation
        );
        world.break_rule("I2", what);
    }
}

/// Checks a record that becomes opened.
pub fn check_opened(world: &mut World, old: &ClusterState, new: &ClusterState) {
    let (Some((old, _)), Some((new, _))) = (&old.record, &new.record) else { return };
    if old.opened || !new.opened {
        return;
    }
    let Some(instance) = world.instances.iter().rposition(|instance| instance.generation == new.promoted.0) else {
        world.break_rule("I2", format!("generation {} was opened before anybody promoted under it", new.generation));
        return;
    };
    let began = world.instances[instance].start.end() + 1;
    let Some(set) = new.commit_sets.last() else { return };
    let holds = set.members.iter().filter(|member| {
        let host = &world.nodes[world.index_of(member.node)];
        host.disk.incarnation == member.incarnation && host.pg.wal.holds(instance, began)
    });
    let holds = holds.count();
    if holds < set.k as usize {
        let what = format!("generation {} was opened while {holds} of {} hold its beginning", new.generation, set.k);
        world.break_rule("I2", what);
    }
}
