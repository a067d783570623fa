//! Guard and PostgreSQL adapter on real PostgreSQL servers. Each test that finds none says so and is skipped.
#![allow(clippy::unwrap_used, reason = "tests")]

mod fetch;
mod fixture;
mod guard;
mod rejoin;
mod required_settings;
mod roles;
mod slots;
mod switchover;
