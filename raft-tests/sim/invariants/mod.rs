//! The invariants of the protocol, a file each, and the moments at which they are checked.

mod i01_acknowledged_writes_survive;
mod i02_no_write_is_acknowledged_behind_the_next;
mod i03_one_lease;
mod i05_the_old_primary_finds_no_help;
mod i06_what_ended_stays_ended;
mod i07_a_timeline_has_one_maker;
mod i08_both_sets_overlap_what_is_used;
mod i09_one_node_serves;
pub mod i10_it_heals;

use hasup::ha::pulse::Datagram;
use hasup::types::Generation;

use crate::raft::ClusterState;
use crate::rng::Time;
use crate::world::World;

/// A broken rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub rule: &'static str,
    /// What happened.
    pub what: String,
    /// When.
    pub at: Time,
}

/// A node was told to promote.
pub fn on_promoting(world: &mut World, node: usize, generation: Generation) {
    i03_one_lease::check_promotion(world, node, generation);
    i06_what_ended_stays_ended::check_promotion(world, node, generation);
}

/// A promotion ended.
pub fn on_promoted(world: &mut World, node: usize, instance: usize) {
    i07_a_timeline_has_one_maker::check(world, instance);
    i01_acknowledged_writes_survive::check(world, node, instance);
}

/// A client was told that its commit is safe.
pub fn on_acknowledged(world: &mut World, node: usize, instance: usize, lsn: u64) {
    i02_no_write_is_acknowledged_behind_the_next::check(world, node, instance, lsn);
    i08_both_sets_overlap_what_is_used::check(world, node, instance, lsn);
}

/// A standby connected.
pub fn on_connected(world: &mut World, stream: usize) {
    i05_the_old_primary_finds_no_help::check_fetch(world, stream);
    i06_what_ended_stays_ended::check_stream(world, stream);
}

/// A standby flushed log and is about to say so.
pub fn on_flushed(world: &mut World, stream: usize) {
    i05_the_old_primary_finds_no_help::check_fetch(world, stream);
    i05_the_old_primary_finds_no_help::check_stated(world, stream);
    i06_what_ended_stays_ended::check_stream(world, stream);
}

/// A datagram leaves a node.
pub fn on_sent(world: &mut World, node: usize, datagram: &Datagram) {
    i06_what_ended_stays_ended::check_sent(world, node, datagram);
}

/// A node answers a pulse.
pub fn on_granted(world: &mut World, node: usize, to: usize, reply: &Datagram) {
    i06_what_ended_stays_ended::check_granted(world, node, to, reply);
}

/// A lease may have begun or grown.
pub fn on_lease(world: &mut World, node: usize) {
    i03_one_lease::check(world, node);
}

/// A node has decided.
pub fn on_decided(world: &mut World, node: usize) {
    i09_one_node_serves::check(world, node);
}

/// The log has a new state.
pub fn on_committed(world: &mut World, old: &ClusterState, new: &ClusterState) {
    i05_the_old_primary_finds_no_help::check_assignment(world, old, new);
    i02_no_write_is_acknowledged_behind_the_next::check_opened(world, old, new);
}
