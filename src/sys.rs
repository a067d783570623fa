//! The smallest edges to the operating system: clocks, durable file changes, child processes, precedence.

pub mod clock;
pub mod exec;
pub mod fs;
pub mod journal;
pub mod priority;
pub mod rotate;
