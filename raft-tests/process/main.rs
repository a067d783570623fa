//! The command line as its user meets it: the binary on loopback addresses, what it prints, and how it ends.
#![allow(clippy::unwrap_used, reason = "tests")]

mod adopt;
mod begin;
mod clock;
mod cluster;
mod connections;
mod full;
mod moved;
mod node;
mod progress;
mod readonly;
mod release;
mod renewal;
mod settings;
mod switchover;
mod toolchain;
mod troubles;
