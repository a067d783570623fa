//! The replicated store: commands in, state out. Pure.
