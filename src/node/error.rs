//! What can come of a request, and the one place that says which HTTP status and which exit code that is.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request was not done. Stable: scripts and other programs read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request makes no sense as written.
    BadRequest,
    /// No credentials, or wrong ones.
    Unauthenticated,
    /// These credentials do not give that right.
    Forbidden,
    /// What it names does not exist.
    NotFound,
    /// Something changed in between; nothing was done.
    Conflict,
    /// It would be unsafe or pointless now; nothing was done, and the message says why.
    Refused,
    /// It is larger than is taken.
    TooLarge,
    /// The node does not hear a majority, so nothing was done.
    NoMajority,
    /// The node is starting, stopping or busy; nothing was done.
    Unavailable,
    /// It may have been done or not: look before trying again.
    Unknown,
    /// No node could be reached; nothing was done.
    Unreachable,
    /// hasup itself went wrong.
    Internal,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 12] = [
        Self::BadRequest,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::NotFound,
        Self::Conflict,
        Self::Refused,
        Self::TooLarge,
        Self::NoMajority,
        Self::Unavailable,
        Self::Unknown,
        Self::Unreachable,
        Self::Internal,
    ];

    /// Returns HTTP status, exit code of the command line, and whether trying the same again is safe and may help.
    const fn row(self) -> (u16, u8, bool) {
        match self {
            Self::BadRequest => (400, 2, false),
            Self::Unauthenticated => (401, 3, false),
            Self::Forbidden => (403, 3, false),
            Self::NotFound => (404, 1, false),
            Self::Conflict => (409, 3, false),
            Self::Refused => (422, 3, false),
            Self::TooLarge => (413, 2, false),
            Self::NoMajority => (503, 1, true),
            Self::Unavailable => (503, 1, true),
            Self::Unknown => (504, 4, false),
            Self::Unreachable => (502, 1, true),
            Self::Internal => (500, 1, false),
        }
    }

    /// Returns the HTTP status.
    pub const fn http_status(self) -> u16 {
        self.row().0
    }

    /// Returns the exit code: 1 failed, 2 usage, 3 refused, 4 unknown.
    pub const fn exit_code(self) -> u8 {
        self.row().1
    }

    /// Returns whether nothing was done and trying again may help.
    pub const fn is_retryable(self) -> bool {
        self.row().2
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::BadRequest => "bad_request",
            Self::Unauthenticated => "unauthenticated",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::Conflict => "conflict",
            Self::Refused => "refused",
            Self::TooLarge => "too_large",
            Self::NoMajority => "no_majority",
            Self::Unavailable => "unavailable",
            Self::Unknown => "unknown",
            Self::Unreachable => "unreachable",
            Self::Internal => "internal",
        })
    }
}

/// A request was not done, or it is not known whether it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct HandleError {
    /// What kind of failure it is.
    pub code: ErrorCode,
    /// What happened, what it means for the cluster, what to do.
    pub message: String,
}

impl HandleError {
    /// Returns an error of kind `code`; `message` says what happened, what it means, and what to do.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_print_as_they_serialize_and_only_what_was_not_done_is_retryable() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.to_string());
            assert!((1..=4).contains(&code.exit_code()), "{code}");
            assert!((400..600).contains(&code.http_status()), "{code}");
        }
        assert!(!ErrorCode::Unknown.is_retryable());
        assert_eq!(ErrorCode::Unknown.exit_code(), 4);
    }
}
