//! Breaks a cluster and judges it, from outside.
//!
//! Everything here treats hasup as a black box: it starts processes of the binary, asks its endpoints and its PostgreSQL, and
//! believes only the journals of its own clients. Nothing of a node's inside is used, so that a defect of a node cannot
//! acquit itself.

pub mod checkers;
pub mod client;
pub mod dsn;
pub mod http;
pub mod journal;
pub mod schedule;
