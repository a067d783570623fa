//! Who somebody is, and which life of it is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Makes a newtype over `u64` that counts something and prints as the bare number.
macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// Returns the value that follows this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

counter! {
    /// Identifies a member of the cluster for ever: a removed or wiped node that joins again gets a new one. Never 0.
    NodeId
}
counter! {
    /// Counts the assignments of the active role; orders of an older one are refused. 0 means "none yet".
    Generation
}
counter! {
    /// Counts the lives of the cluster: `recover` opens a new one, and messages of another are refused.
    ClusterGeneration
}
counter! {
    /// Counts the lives of one node's PostgreSQL data: rewind, base backup and a wiped disk each begin a new one.
    DataIncarnation
}
counter! {
    /// Names one start of the daemon; drawn at random, so that nothing said to an earlier start counts for this one.
    DaemonIncarnation
}

/// Names one boot of the machine: instants on the boot-time clock compare only within it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct BootId(pub [u8; 16]);

impl fmt::Debug for BootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

/// The name an operator gave a node: 1 to 63 of `a-z 0-9 -`, beginning and ending with a letter or digit.
///
/// It is used as a certificate name, in `application_name` and in file names, hence the narrow alphabet (RFC 1123 label).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeName(String);

/// A text is no node name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no node name: use 1 to 63 of a-z, 0-9 and -, beginning and ending with a letter or digit")]
pub struct NodeNameError(pub String);

impl NodeName {
    /// Returns the name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for NodeName {
    type Err = NodeNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let bytes = text.as_bytes();
        let edge_is_hyphen = bytes.first() == Some(&b'-') || bytes.last() == Some(&b'-');
        if (1..=63).contains(&bytes.len()) && bytes.iter().all(|b| inner(*b)) && !edge_is_hyphen {
            Ok(Self(text.to_owned()))
        } else {
            Err(NodeNameError(text.to_owned()))
        }
    }
}

impl TryFrom<String> for NodeName {
    type Error = NodeNameError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<NodeName> for String {
    fn from(name: NodeName) -> Self {
        name.0
    }
}

impl fmt::Display for NodeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_names_keep_to_one_dns_label() {
        for good in ["a", "n1", "db-3", &"x".repeat(63)] {
            assert!(good.parse::<NodeName>().is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a_b", "a.b", "ä", &"x".repeat(64)] {
            assert!(bad.parse::<NodeName>().is_err(), "{bad}");
        }
    }
}
