//! Join tokens.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use super::JoinRefusal;
use crate::ha::record::JoinToken;
use crate::tls::{Fingerprint, TlsError, random};

/// What every token begins with.
const PREFIX: &str = "hasup1";
/// Bytes of the public part.
const ID_BYTES: usize = 4;
/// Bytes of the secret: 128 bits cannot be guessed, with or without a limit on attempts.
const SECRET_BYTES: usize = 16;

/// The secret part of a token with its id, as the joiner shows it to a proven member. Prints nothing of the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenProof {
    id: String,
    secret: [u8; SECRET_BYTES],
}

impl TokenProof {
    /// Returns the public part.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Checks the secret against the tokens that the cluster remembers, at `now` (wall clock since 1970).
    ///
    /// A wrong secret and an unknown id are told apart by nobody: neither by the answer nor by its time. That a token has
    /// expired is told only to who holds its secret.
    pub fn check<'a>(
        &self,
        known: impl IntoIterator<Item = &'a JoinToken>,
        now: Duration,
    ) -> Result<&'a JoinToken, JoinRefusal> {
        let hash = blake3::hash(&self.secret);
        let mut matching = None;
        for token in known {
            if bool::from(hash.as_bytes().ct_eq(&token.secret_hash)) && token.id == self.id {
                matching = Some(token);
            }
        }
        let token = matching.ok_or(JoinRefusal::WrongToken)?;
        if now.as_secs() >= token.expires_at {
            return Err(JoinRefusal::ExpiredToken { expired_s_ago: now.as_secs() - token.expires_at });
        }
        Ok(token)
    }
}

impl fmt::Debug for TokenProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenProof({}, …)", self.id)
    }
}

impl Drop for TokenProof {
    fn drop(&mut self) {
        self.secret.zeroize();
    }
}

/// A whole token, as the operator carries it to the new node: `hasup1-<id>-<secret>-<fingerprint of the authority>`.
///
/// Letters and digits only beside the hyphens, so that it survives shells, URLs and forms. Prints nothing of the secret.
#[derive(Clone, PartialEq, Eq)]
pub struct TokenText {
    proof: TokenProof,
    fingerprint: Fingerprint,
}

impl TokenText {
    /// Draws a token for the cluster whose newest authority has this fingerprint.
    ///
    /// Returns the text to show once, and the record to keep, which holds only a hash. `expires_at` is the wall-clock
    /// time since 1970.
    pub fn generate(fingerprint: Fingerprint, expires_at: Duration) -> Result<(Self, JoinToken), TlsError> {
        let proof = TokenProof { id: hex(&random::<ID_BYTES>()?), secret: random()? };
        let record = JoinToken {
            id: proof.id.clone(),
            secret_hash: *blake3::hash(&proof.secret).as_bytes(),
            expires_at: expires_at.as_secs(),
        };
        Ok((Self { proof, fingerprint }, record))
    }

    /// Returns the text, secret included: for the operator's terminal and nothing else.
    pub fn expose(&self) -> Zeroizing<String> {
        let secret = Zeroizing::new(hex(&self.proof.secret));
        Zeroizing::new(format!("{PREFIX}-{}-{}-{}", self.proof.id, *secret, hex(&self.fingerprint.0)))
    }

    /// Returns what a member is shown.
    pub fn proof(&self) -> TokenProof {
        self.proof.clone()
    }

    /// Returns the fingerprint of the authority that a member must prove.
    pub fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TokenText({}, …)", self.proof.id)
    }
}

/// A text is no join token. Does not show the text, which may hold a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is no join token: it must be the whole text that begins with `hasup1-`, as `hasup start` or `hasup token create` \
     printed it on a member. Nothing was sent; copy it again, or create a new one"
)]
pub struct TokenTextError;

impl FromStr for TokenText {
    type Err = TokenTextError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.trim().split('-');
        let (prefix, id) = (parts.next(), parts.next().ok_or(TokenTextError)?);
        let secret = parts.next().and_then(unhex::<SECRET_BYTES>).ok_or(TokenTextError)?;
        let fingerprint = parts.next().and_then(unhex::<32>).ok_or(TokenTextError)?;
        if prefix != Some(PREFIX) || unhex::<ID_BYTES>(id).is_none() || parts.next().is_some() {
            return Err(TokenTextError);
        }
        Ok(Self { proof: TokenProof { id: id.to_owned(), secret }, fingerprint: Fingerprint(fingerprint) })
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits: Vec<u8> =
        text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok())).collect::<Option<_>>()?;
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
        *byte = pair[0] << 4 | pair[1];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Duration = Duration::from_secs(1_800_000_000);

    #[test]
    fn token_survives_its_text_and_never_prints() {
        let (token, record) = TokenText::generate(Fingerprint([7; 32]), NOW).unwrap();
        let text = token.expose();
        assert_eq!(text.parse::<TokenText>().as_ref(), Ok(&token));
        assert_eq!(format!(" {}\n", *text).parse::<TokenText>().as_ref(), Ok(&token), "pasted with blanks");
        let secret = text.split('-').nth(2).unwrap();
        assert!(!format!("{token:?}{:?}", token.proof()).contains(secret));
        assert_eq!(record.id, token.proof().id());
        for bad in ["", "hasup1", "hasup1-a-b-c", &text[1..], &text[..text.len() - 1], &format!("{}-x", *text)] {
            assert_eq!(bad.parse::<TokenText>(), Err(TokenTextError), "{bad}");
        }
    }

    #[test]
    fn only_the_secret_admits_and_only_until_it_expires() {
        let hour = Duration::from_secs(3600);
        let (token, record) = TokenText::generate(Fingerprint([7; 32]), NOW + hour).unwrap();
        let (other, other_record) = TokenText::generate(Fingerprint([7; 32]), NOW + hour).unwrap();
        let known = [other_record.clone(), record.clone()];
        assert_eq!(token.proof().check(&known, NOW), Ok(&known[1]));
        assert_eq!(other.proof().check([&record], NOW), Err(JoinRefusal::WrongToken));
        let swapped = TokenProof { id: record.id.clone(), secret: other.proof().secret };
        assert_eq!(swapped.check(&known, NOW), Err(JoinRefusal::WrongToken));
        assert_eq!(token.proof().check([], NOW), Err(JoinRefusal::WrongToken));
        let late = token.proof().check(&known, NOW + hour + Duration::from_secs(5));
        assert_eq!(late, Err(JoinRefusal::ExpiredToken { expired_s_ago: 5 }));
        assert_eq!(
            swapped.check(&known, NOW + 2 * hour),
            Err(JoinRefusal::WrongToken),
            "expiry is told to its holder only"
        );
    }
}
