//! I1: every acknowledged write is in the log of every primary promoted later. With k ≥ 1 under any clocks (I4), and with k = 0
//! too, as L11 then lets only the node itself be chosen; but for what a set that declares it (`one_node`) had one node acknowledge alone. Later is meant by generation: a guest that thaws in the middle of a promotion
//! whose generation has passed may finish it, and finds nobody who helps it to acknowledge anything (I2).

use crate::world::World;

/// Checks a promotion that has just ended.
pub fn check(world: &mut World, node: usize, instance: usize) {
    let wal = &world.instances[instance].start;
    let generation = world.instances[instance].generation;
    let lost = (0..instance).filter(|former| world.instances[*former].generation < generation).find(|former| {
        let acknowledged = world.instances[*former].acknowledged;
        let began = world.instances[*former].start.end() + 1;
        // the first record of a promotion is nobody's commit
        acknowledged > began && !wal.holds(*former, acknowledged)
    });
    if let Some(former) = lost {
        let former = &world.instances[former];
        let what = format!(
            "node {} promoted with log up to {}, without writes up to {} that node {} had acknowledged under generation {}",
            node + 1,
            wal.end(),
            former.acknowledged,
            former.node + 1,
            former.generation
        );
        world.break_rule("I1", what);
    }
}
