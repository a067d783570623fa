//! Three nodes on loopback.
