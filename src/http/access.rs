//! Who is asking, and whether they may.

use axum::http::{HeaderMap, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

use crate::config::Secret;
use crate::node::error::{ErrorCode, HandleError};

/// How a connection came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// Through the admin socket, whose file mode lets in only those who may everything.
    Admin,
    /// Over TCP from this machine.
    Loopback,
    /// Over TCP from elsewhere.
    Remote,
}

/// What opens the API.
#[derive(Debug, Default)]
pub struct Access {
    /// The bearer token that may everything over TCP; without one, TCP changes nothing.
    pub api_token: Option<Secret>,
    /// What a load balancer must show on `/api/v3.1/status`; without them it is open.
    pub balancer: Option<BasicCredentials>,
}

/// A user and a password, as HTTP Basic carries them.
#[derive(Debug)]
pub struct BasicCredentials {
    /// The user.
    pub user: String,
    /// The password.
    pub password: Secret,
}

impl Access {
    /// Lets pass who may see the node's state.
    pub(super) fn may_read(&self, caller: Caller, headers: &HeaderMap) -> Result<(), HandleError> {
        match caller {
            Caller::Admin | Caller::Loopback => Ok(()),
            Caller::Remote => self.shows_token(headers),
        }
    }

    /// Lets pass who may ask the node for anything.
    pub(super) fn may_ask(&self, caller: Caller, headers: &HeaderMap) -> Result<(), HandleError> {
        match caller {
            Caller::Admin => Ok(()),
            Caller::Loopback | Caller::Remote => self.shows_token(headers),
        }
    }

    fn shows_token(&self, headers: &HeaderMap) -> Result<(), HandleError> {
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let shown = shown.and_then(|text| text.strip_prefix("Bearer ")).map(str::trim);
        match (&self.api_token, shown) {
            (Some(token), Some(shown)) if same(token.expose(), shown) => Ok(()),
            (_, Some(_)) => Err(HandleError::new(
                ErrorCode::Unauthenticated,
                "The API token is wrong. Nothing was done. Use the one in api.token of the node's data directory",
            )),
            (_, None) => Err(HandleError::new(
                ErrorCode::Unauthenticated,
                "This needs the API token or the admin socket. Nothing was done. Give the token that is in api.token of the \
                 node's data directory, or run the command on the node itself",
            )),
        }
    }

    /// Lets pass a load balancer.
    pub(super) fn may_balance(&self, headers: &HeaderMap) -> bool {
        let Some(expected) = &self.balancer else { return true };
        let shown = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(encoded) = shown.and_then(|text| text.strip_prefix("Basic ")) else { return false };
        let Ok(decoded) = STANDARD.decode(encoded.trim()) else { return false };
        let wanted = format!("{}:{}", expected.user, expected.password.expose());
        wanted.as_bytes().ct_eq(&decoded).into()
    }
}

/// Compares without telling by its duration where they differ.
fn same(one: &str, other: &str) -> bool {
    one.as_bytes().ct_eq(other.as_bytes()).into()
}
