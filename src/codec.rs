//! How values become bytes on disk and on the wire.
