//! The running node: everything that waits.

pub mod handle;
pub mod status;
pub mod tasks;
