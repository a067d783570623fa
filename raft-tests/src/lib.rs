//! What the suites of hasup share. Each folder beside this one is a test target.

pub mod program;
