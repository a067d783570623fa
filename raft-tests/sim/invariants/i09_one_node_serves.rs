//! I9: one node at a time tells relay and services to serve as the active one, but for a thawed guest whose clock stood still.

use crate::world::World;

fn serves(world: &World, node: usize) -> bool {
    let host = &world.nodes[node];
    let until = host.daemon.as_ref().and_then(|daemon| daemon.serves_until);
    until.is_some_and(|until| until > world.local(node)) && !host.has_lost_time
}

/// Checks `node`, which has just decided, against all others.
pub fn check(world: &mut World, node: usize) {
    if !serves(world, node) {
        return;
    }
    if let Some(other) = (0..world.nodes.len()).find(|other| *other != node && serves(world, *other)) {
        world.break_rule("I9", format!("nodes {} and {} both serve", node + 1, other + 1));
    }
}
