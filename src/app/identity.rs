//! Who this node is, kept in its data directory from the moment it belongs to a cluster.

use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::sys::fs::write_durably;
use crate::types::{NodeId, NodeName};

/// Who this node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Its number.
    pub node_id: NodeId,
    /// Its name, which stays.
    pub name: NodeName,
    /// The cluster's id.
    pub cluster_id: String,
    /// Which life of the cluster it belongs to.
    pub cluster_generation: u64,
    /// The members known when it joined: whom to listen to before the store says more.
    pub peers: Vec<KnownPeer>,
}

/// A member as it was when this node joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownPeer {
    /// Its number.
    pub id: NodeId,
    /// Its name.
    pub name: NodeName,
    /// Where its peer port is.
    pub peer_addresses: Vec<String>,
}

impl Identity {
    /// Returns where it is kept.
    pub fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("identity.json")
    }

    /// Reads it; none where the node belongs to no cluster.
    pub fn load(data_dir: &Path) -> anyhow::Result<Option<Self>> {
        let path = Self::path(data_dir);
        match std::fs::read(&path) {
            Ok(bytes) => {
                let identity = serde_json::from_slice(&bytes).with_context(|| {
                    format!("{} is damaged: this node no longer knows who it is. Remove it from the cluster and join again empty", path.display())
                })?;
                Ok(Some(identity))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("read {}", path.display())),
        }
    }

    /// Keeps it: from now on the node is this one.
    pub fn save(&self, data_dir: &Path) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec_pretty(self).context("encode who this node is")?;
        write_durably(&Self::path(data_dir), &bytes, 0o600).context("keep who this node is")
    }
}
