//! The cluster's secret.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, Zeroizing};

use super::{TlsError, random};

/// 32 random bytes that every member holds and nobody else; they travel only in the answer to a join.
///
/// Prints nothing and is wiped when dropped. Keys for different uses are derived from it, each with its own context.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ClusterSecret([u8; 32]);

impl ClusterSecret {
    /// Draws a new one.
    pub fn generate() -> Result<Self, TlsError> {
        Ok(Self(random()?))
    }

    /// Returns the secret made of these bytes.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the key for one use; `context` names that use and is unique to it in all of hasup.
    pub fn derive(&self, context: &str) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(blake3::derive_key(context, &self.0))
    }

    /// Returns the text that [`from_text`](Self::from_text) reads, for a file that only hasup's user may read.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(format!("{}\n", STANDARD.encode(self.0)))
    }

    /// Returns the secret that [`to_text`](Self::to_text) wrote, if it is one.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(STANDARD.decode(text.trim()).ok()?);
        Some(Self(bytes.as_slice().try_into().ok()?))
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(…)")
    }
}

impl Drop for ClusterSecret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secret_survives_its_file_and_never_prints() {
        let secret = ClusterSecret::generate().unwrap();
        assert_eq!(ClusterSecret::from_text(&secret.to_text()), Some(secret.clone()));
        assert_eq!(format!("{secret:?}"), "ClusterSecret(…)");
        for bad in ["", "AAAA", "%%%%"] {
            assert_eq!(ClusterSecret::from_text(bad), None, "{bad}");
        }
        assert_ne!(secret.derive("a"), secret.derive("b"));
    }
}
