//! How others talk to the running node.
