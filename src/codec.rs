//! How values become bytes on disk and on the wire.
//!
//! A format byte, then bincode with a limit; bytes left over are an error. Types that pass here use plain derives only.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The first byte of everything that is encoded here.
const FORMAT: u8 = 1;
/// What decoding may ask for, in bytes: a hostile length must not exhaust memory.
const LIMIT: usize = 64 * 1024 * 1024;

/// Bytes are no value of the type that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// There are no bytes at all.
    #[error("no bytes to decode")]
    Empty,
    /// The first byte names a format that this version does not know.
    #[error("format {0} is unknown to this version of hasup")]
    Format(u8),
    /// The bytes do not decode.
    #[error("the bytes do not decode")]
    Decode(#[source] Box<bincode::error::DecodeError>),
    /// The value ends before the bytes do.
    #[error("{0} bytes follow the value")]
    Trailing(usize),
}

fn config() -> impl bincode::config::Config {
    bincode::config::standard().with_limit::<LIMIT>()
}

/// Returns `value` as bytes: the format byte, then bincode.
pub fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    let body = bincode::serde::encode_to_vec(value, config()).expect("plain derived types in memory always encode");
    bytes.extend_from_slice(&body);
    bytes
}

/// Returns the value that `bytes` hold, all of them.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (format, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *format != FORMAT {
        return Err(CodecError::Format(*format));
    }
    let (value, used) =
        bincode::serde::decode_from_slice(body, config()).map_err(|error| CodecError::Decode(Box::new(error)))?;
    match body.len() - used {
        0 => Ok(value),
        left => Err(CodecError::Trailing(left)),
    }
}
