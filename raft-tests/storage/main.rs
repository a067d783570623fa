//! The Raft log, the state machine and a group of three: nothing acknowledged is lost, whatever is killed or cut.

mod crash;
mod full;
mod group;
mod million;
mod release;
mod speed;
mod suite;
