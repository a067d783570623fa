//! hasup keeps a cluster of PostgreSQL alive by itself.

pub mod ha;
pub mod types;
