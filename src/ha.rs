//! The brain: who may be active, what each node does about it, and why. Plain data in, plain data out.
//!
//! Everything here is pure: no clock, no disk, no network, no randomness, no logging. The real node and the simulator run the
//! same code. Rules are cited as L1…L28; [`protocol`](crate#protocol) in the crate documentation states them.

pub mod record;
pub mod rules;
pub mod timing;
pub mod trouble;

pub mod durable;
pub mod pulse;
pub mod quorum;
pub mod state;
pub mod view;

pub mod assign;
pub mod decide;
pub mod plan;
