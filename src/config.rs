//! Text in, checked settings out.
