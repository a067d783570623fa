//! The joiner's side.

use std::collections::VecDeque;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use rustls::CertificateError;
use rustls::pki_types::ServerName;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::io::AsyncWriteExt;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsConnector;

use super::{JoinGrant, JoinRefusal, JoinRequest, TokenText};
use crate::codec;
use crate::peer::dial::connect;
use crate::peer::frame::{PAYLOAD_MAX, put_frame, read_frame};
use crate::peer::with_default_port;
use crate::tls::config::{join_client, refused_certificate};
use crate::tls::{CertificateFacts, Fingerprint, TlsError};

/// One target has this long to answer with a proven certificate.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// Members that may send the joiner on, one after the other.
const HANDED_ON_MAX: usize = 3;

/// A join did not come about.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// No target answered as a member of the cluster that the token is of.
    #[error(
        "no member could be asked: {tried}. Nothing was sent; check the addresses, that hasup runs there, and that TCP to \
         the peer port is open"
    )]
    NotReached {
        /// What was tried and how each ended.
        tried: String,
    },
    /// Who answers is of another cluster, or somebody is in between.
    #[error(
        "{target} is not of the cluster that the token belongs to (its authority must have the fingerprint {fingerprint}). \
         The token was not shown to it; check the address, or create a token on that cluster"
    )]
    WrongAuthority {
        /// Who was asked.
        target: String,
        /// What the token demands.
        fingerprint: Fingerprint,
    },
    /// The two machines' clocks differ by more than certificates allow for.
    #[error(
        "the clocks of this machine and of {target} differ too much: its certificate holds {holds}, and here it is {}. Nothing was \
         joined and the token was not shown to it. Set the clock that is wrong (`date -u` on both shows which; \
         `timedatectl set-ntp true` keeps it right), then run the same command again",
        shown(*here)
    )]
    ClocksDiffer {
        /// Who was asked.
        target: String,
        /// From or until when the certificate holds.
        holds: CertificateBound,
        /// This machine's clock, as the time since 1970.
        here: Duration,
    },
    /// A member said no.
    #[error("{0}")]
    Refused(JoinRefusal),
    /// The request was sent and its answer did not come.
    #[error(
        "{target} did not answer the request ({because}): the node may or may not be a member now. Run the same command \
         again: it is recognised as the same node"
    )]
    Unknown {
        /// Who was asked.
        target: String,
        /// What went wrong.
        because: String,
    },
    /// What was granted does not hold together.
    #[error(
        "what {target} granted cannot be used: {because}. Run the same command again with another member's address"
    )]
    BadGrant {
        /// Who was asked.
        target: String,
        /// What is wrong with it.
        because: String,
    },
    /// The settings for the connection could not be made.
    #[error("prepare the join")]
    Prepare(#[from] TlsError),
}

/// The end of a certificate's life that this machine's clock lies beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateBound {
    /// It holds from this time since 1970 on.
    From(Duration),
    /// It holds until this time since 1970.
    Until(Duration),
}

impl fmt::Display for CertificateBound {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::From(time) => write!(f, "from {} on", shown(*time)),
            Self::Until(time) => write!(f, "until {}", shown(*time)),
        }
    }
}

/// Returns a wall-clock time since 1970 in UTC as people read it.
fn shown(since_1970: Duration) -> String {
    let seconds = i64::try_from(since_1970.as_secs()).unwrap_or(i64::MAX);
    let moment = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|moment| moment.format(&Rfc3339).ok());
    moment.unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// Asks the members at `targets` (`host` or `host:port`), in order, to take this node; waits `within` for the decision.
///
/// The joiner must answer probes meanwhile ([`answer_probes`](super::answer_probes)). A grant has been checked: it is for
/// this name and of the authority that the token names.
pub async fn join(
    targets: &[String],
    token: &TokenText,
    request: &JoinRequest,
    within: Duration,
) -> Result<JoinGrant, JoinError> {
    let deadline = Instant::now() + within;
    let connector = TlsConnector::from(join_client(token.fingerprint())?);
    let mut targets: VecDeque<String> = targets.iter().map(|target| with_default_port(target)).collect();
    let mut handed_on = 0;
    let mut tried = Vec::new();
    let mut unfit = None;
    while let Some(target) = targets.pop_front() {
        let stream = timeout_at(deadline.min(Instant::now() + CONNECT_LIMIT), async {
            let tcp = connect(&target).await?;
            // The name goes to the server as a hint and is not checked; the authority is.
            connector.connect(ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into()), tcp).await
        });
        let mut stream = match stream.await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                unfit = unfit_certificate(&error, &target, token).or(unfit);
                tried.push(format!("{target}: {error}"));
                continue;
            }
            Err(_) => {
                tried.push(format!("{target}: no answer within {CONNECT_LIMIT:?}"));
                continue;
            }
        };
        let exchange = async {
            let mut frame = Vec::new();
            put_frame(&mut frame, 1, &codec::encode(request));
            stream.write_all(&frame).await.map_err(|error| error.to_string())?;
            stream.flush().await.map_err(|error| error.to_string())?;
            let answer = read_frame(&mut stream, PAYLOAD_MAX).await.map_err(|error| error.to_string())?;
            let answer = answer.ok_or("it closed the connection")?;
            codec::decode::<Result<JoinGrant, JoinRefusal>>(&answer.payload).map_err(|error| error.to_string())
        };
        let unknown = |because| JoinError::Unknown { target: target.clone(), because };
        let answer = timeout_at(deadline, exchange).await.map_err(|_| unknown("the time was over".into()))?;
        let _ = timeout(Duration::from_millis(100), stream.shutdown()).await;
        match answer.map_err(unknown)? {
            Ok(grant) => {
                check(&grant, token, request).map_err(|because| JoinError::BadGrant { target, because })?;
                return Ok(grant);
            }
            Err(JoinRefusal::AskInstead { addresses }) if handed_on < HANDED_ON_MAX && !addresses.is_empty() => {
                handed_on += 1;
                tried.push(format!("{target}: sent on to {}", addresses.join(", ")));
                addresses.iter().rev().for_each(|address| targets.push_front(with_default_port(address)));
            }
            Err(refusal) => return Err(JoinError::Refused(refusal)),
        }
    }
    Err(unfit.unwrap_or_else(|| JoinError::NotReached { tried: tried.join("; ") }))
}

/// Returns what is wrong with the certificate that `target` has shown, if that is why the connection failed.
fn unfit_certificate(error: &std::io::Error, target: &str, token: &TokenText) -> Option<JoinError> {
    let since_1970 = |time: &rustls::pki_types::UnixTime| Duration::from_secs(time.as_secs());
    let (holds, here) = match refused_certificate(error)? {
        CertificateError::NotValidYetContext { time, not_before } => {
            (CertificateBound::From(since_1970(not_before)), since_1970(time))
        }
        CertificateError::ExpiredContext { time, not_after } => {
            (CertificateBound::Until(since_1970(not_after)), since_1970(time))
        }
        _ => return Some(JoinError::WrongAuthority { target: target.to_owned(), fingerprint: token.fingerprint() }),
    };
    Some(JoinError::ClocksDiffer { target: target.to_owned(), holds, here })
}

fn check(grant: &JoinGrant, token: &TokenText, request: &JoinRequest) -> Result<(), String> {
    let identity = CertificateFacts::of_pem(&grant.certificate).map_err(|error| error.to_string())?.identity;
    if identity.name != request.name || identity.node != grant.node_id || identity.cluster_id != grant.cluster_id {
        return Err("the certificate is not this node's".into());
    }
    let pinned = |pem: &String| crate::tls::ca::fingerprint_of_pem(pem).ok() == Some(token.fingerprint());
    match grant.ca_certificates.iter().any(pinned) {
        true => Ok(()),
        false => Err("the token's authority is not among those to accept".into()),
    }
}
