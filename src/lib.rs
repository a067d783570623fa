//! hasup keeps a cluster of PostgreSQL alive by itself.

pub mod codec;
pub mod types;

pub mod config;
pub mod ha;
pub mod kv;

pub mod sys;

pub mod telemetry;
pub mod tls;

pub mod guard;
pub mod postgres;
pub mod pulse;
pub mod raft;

pub mod node;

pub mod http;
pub mod peer;

pub mod app;

pub mod chaos;
pub mod cli;
pub mod demo;
