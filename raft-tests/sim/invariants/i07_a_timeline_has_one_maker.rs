//! I7: a timeline number has one maker.

use crate::world::World;

/// Checks a promotion that has just ended.
pub fn check(world: &mut World, instance: usize) {
    let new = &world.instances[instance];
    if let Some(former) = world.instances[..instance].iter().find(|former| former.timeline == new.timeline) {
        let what = format!("nodes {} and {} both made timeline {}", former.node + 1, new.node + 1, new.timeline);
        world.break_rule("I7", what);
    }
}
