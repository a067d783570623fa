//! How a node joins: the token, what the joiner says, what it gets, or why not.
//!
//! ```text
//! joiner                                            any member
//!   | TLS 1.3, ALPN hasup-join/1                        |
//!   |<-- certificate, authorities ----------------------|  accepted only if issued by the token's authority (`tls::pinned`)
//!   |--- JoinRequest (token, name, keys, addresses) --->|  token checked; then name, version, disk, addresses
//!   |<== dial back to every address, TCP and UDP =======|  `probe`: only this joiner can answer
//!   |<-- JoinGrant or JoinRefusal ----------------------|
//! ```
//!
//! Nothing on the joiner is touched before the grant, and the secret of the token is shown only to a proven member.
//! A join whose answer got lost may be repeated: the node's keys are kept first, so the same node is recognised.

mod ask;
mod grant;
mod probe;
mod token;

pub use ask::{JoinError, join};
pub use grant::{JoinGrant, JoinRefusal, JoinRequest, OptionDiffers, Transport, UnreachableAddress};
pub use probe::{ProbeKey, answer_probes, dial_back};
pub use token::{TokenProof, TokenText, TokenTextError};
