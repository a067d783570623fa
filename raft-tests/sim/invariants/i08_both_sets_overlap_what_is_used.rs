//! I8: a record's sets overlap what PostgreSQL uses, at each instant: whatever is acknowledged satisfies at least one commit set of
//! the last record under which that primary was active, so that who must answer for all of them meets it.

use crate::world::World;

/// Checks a commit that is being acknowledged.
pub fn check(world: &mut World, node: usize, instance: usize, lsn: u64) {
    let promoted = world.instances[instance].generation;
    let newest = world.raft.log.iter().rev().find_map(|state| {
        let (record, _) = state.record.as_ref()?;
        (record.promoted.0 == promoted).then_some(record)
    });
    let Some(record) = newest else { return };
    let is_held = record.commit_sets.iter().any(|set| {
        let holds = set.members.iter().filter(|member| {
            let host = &world.nodes[world.index_of(member.node)];
            host.disk.incarnation == member.incarnation && host.pg.wal.holds(instance, lsn)
        });
        holds.count() >= set.k as usize
    });
    let is_void = !record.opened && record.commit_sets.iter().all(|set| set.k == 0);
    if !is_held || is_void {
        let what = format!(
            "node {} acknowledged {lsn} under generation {}, which no commit set of the record accounts for: {:?}",
            node + 1,
            record.generation,
            record.commit_sets
        );
        world.break_rule("I8", what);
    }
}
