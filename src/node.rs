//! The running node: everything that waits.

pub mod error;
pub mod handle;
pub mod options;
pub mod status;
pub mod tasks;
