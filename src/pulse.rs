//! Datagrams between nodes, from a thread that waits for nothing else.
