//! The process that owns PostgreSQL and the fence deadline.
