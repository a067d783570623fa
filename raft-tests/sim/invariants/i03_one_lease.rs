//! I3: without stopped guest clocks, no two nodes hold unexpired leases, be it in their pulses or in their guards.
//! And nothing is promoted without a lease of its own generation (L15).

use hasup::types::{BootTime, Generation};

use crate::postgres::Run;
use crate::world::World;

/// Returns until when a node believes that it may act, on its own clock.
fn held_until(world: &World, node: usize) -> Option<BootTime> {
    let host = &world.nodes[node];
    let leased = host.daemon.as_ref().and_then(|daemon| {
        let (generation, end) = daemon.core.view_lease()?;
        (daemon.durable.resigned < generation).then_some(end)
    });
    let guarded = (host.guard.is_alive && host.guard.armed.is_some() && host.pg.run != Run::Stopped)
        .then_some(host.guard.deadline);
    leased.max(guarded).filter(|end| *end > world.local(node))
}

/// Checks `node`, whose lease may have grown, against all others.
pub fn check(world: &mut World, node: usize) {
    if world.nodes[node].has_lost_time {
        return;
    }
    let Some(own) = held_until(world, node) else { return };
    let other = (0..world.nodes.len())
        .filter(|other| *other != node && !world.nodes[*other].has_lost_time)
        .find_map(|other| Some((other, held_until(world, other)?)));
    if let Some((other, end)) = other {
        let own = own.since(world.local(node));
        let end = end.since(world.local(other));
        let what = format!("node {} holds a lease for {own:?} more, and node {} for {end:?}", node + 1, other + 1);
        world.break_rule("I3", what);
    }
}

/// Checks that a node that promotes holds a lease, or held it when it armed its guard.
pub fn check_promotion(world: &mut World, node: usize, generation: Generation) {
    let host = &world.nodes[node];
    let leased = host.daemon.as_ref().and_then(|daemon| daemon.core.view_lease()).map(|(leased, _)| leased);
    if leased != Some(generation) || host.guard.armed != Some(generation) {
        let what = format!("node {} promotes under generation {generation} without a lease of it", node + 1);
        world.break_rule("I3", what);
    }
}
