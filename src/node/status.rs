//! What a node publishes about itself and the cluster.
