//! Breaks a cluster and judges it.
