//! The members last known, by cluster: a command works although the node it names is dead.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::node::status::Status;
use crate::sys::fs::write_durably;

/// API addresses of the members of each cluster that was ever asked.
///
/// A cluster's members stand in for a named node only where that node is one of them: a command never strays to another
/// cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Members(BTreeMap<String, Vec<String>>);

impl Members {
    /// Reads what was kept at `path`; nothing where it is absent or not understood, as it only saves a question.
    pub fn load(path: &Path) -> Self {
        std::fs::read(path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
    }

    /// Takes note of `status`; returns whether anything is new.
    pub fn note(&mut self, status: &Status) -> bool {
        let addresses: Vec<_> = status.nodes.iter().map(|node| node.api_address.clone()).collect();
        if status.cluster.id.is_empty() || addresses.is_empty() {
            return false;
        }
        self.0.insert(status.cluster.id.clone(), addresses.clone()) != Some(addresses)
    }

    /// Keeps it at `path`, whole or not at all.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn save(&self, path: &Path) -> std::io::Result<()> {
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder)?;
        }
        write_durably(path, &serde_json::to_vec(self)?, 0o600)
    }

    /// Returns the members of the cluster that one of `named` belongs to; of the only cluster known where nobody is named.
    pub fn beside(&self, named: &[String]) -> &[String] {
        let found = match (named, self.0.len()) {
            ([], 1) => self.0.values().next(),
            _ => self.0.values().find(|members| members.iter().any(|member| named.contains(member))),
        };
        found.map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_never_strays_to_another_cluster() {
        let text = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let mut members = Members::default();
        members.0.insert("one".to_owned(), text(&["a:1", "b:1"]));
        assert_eq!(members.beside(&[]), text(&["a:1", "b:1"]));
        members.0.insert("two".to_owned(), text(&["c:1"]));
        assert!(members.beside(&[]).is_empty());
        assert_eq!(members.beside(&text(&["b:1"])), text(&["a:1", "b:1"]));
        assert!(members.beside(&text(&["d:1"])).is_empty());
    }
}
