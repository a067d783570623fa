//! PostgreSQL: programs, settings, state.
