//! How values become bytes on disk and on the wire: one format byte, then bincode, with a limit and nothing left over.
//!
//! What may change later goes into enums whose new variants are added at their end. A field added to a struct does not read
//! old bytes, so it needs a new format byte or a new variant.

use bincode::config::{Configuration, Limit, LittleEndian, Varint};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The format that [`encode`] writes.
const FORMAT: u8 = 1;

/// The most that one value may take in memory while it is decoded. Without it a hostile frame of ten bytes makes the decoder
/// ask for terabytes.
const LIMIT: usize = 16 << 20;

/// Bytes do not hold the value that was expected.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// There are no bytes at all.
    #[error("decode a value from no bytes")]
    Empty,
    /// A later hasup wrote it.
    #[error("format {0} is unknown, this hasup reads format {FORMAT}: upgrade it to the version of the sender")]
    Format(u8),
    /// The bytes are cut off, damaged, hostile or of another type.
    #[error("decode a value")]
    Malformed(#[source] bincode::error::DecodeError),
    /// The value was followed by bytes that belong to nothing.
    #[error("decode a value: {0} bytes follow it")]
    Trailing(usize),
}

fn config() -> Configuration<LittleEndian, Varint, Limit<LIMIT>> {
    bincode::config::standard().with_limit::<LIMIT>()
}

/// Returns the bytes of `value`.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Vec<u8> {
    let mut bytes = vec![FORMAT];
    bincode::serde::encode_into_std_write(value, &mut bytes, config())
        .expect("a vector takes all bytes, and only derived types of known length are encoded");
    bytes
}

/// Returns the value that `bytes` hold, all of them. Never panics, and never allocates much more than `bytes` justify.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, CodecError> {
    let (format, body) = bytes.split_first().ok_or(CodecError::Empty)?;
    if *format != FORMAT {
        return Err(CodecError::Format(*format));
    }
    let (value, used) = bincode::serde::decode_from_slice(body, config()).map_err(CodecError::Malformed)?;
    match body.len() - used {
        0 => Ok(value),
        left => Err(CodecError::Trailing(left)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_was_encoded_is_decoded(value: (u64, Option<String>, Vec<(i32, bool)>)) {
            let decoded: (u64, Option<String>, Vec<(i32, bool)>) = decode(&encode(&value)).unwrap();
            prop_assert_eq!(decoded, value);
        }

        #[test]
        fn bad_bytes_never_panic(bytes: Vec<u8>) {
            let _ = decode::<Vec<(String, Vec<u8>)>>(&bytes);
            let mut bytes = bytes;
            bytes.insert(0, FORMAT);
            let _ = decode::<Vec<(String, Vec<u8>)>>(&bytes);
        }
    }

    #[test]
    fn a_length_that_the_bytes_cannot_hold_is_refused() {
        let hostile = [FORMAT, 253, 255, 255, 255, 255, 255, 255, 255, 127];
        assert!(matches!(decode::<Vec<u8>>(&hostile), Err(CodecError::Malformed(_))));
        assert!(matches!(decode::<String>(&hostile), Err(CodecError::Malformed(_))));
    }

    #[test]
    fn trailing_bytes_other_formats_and_nothing_are_refused() {
        let mut bytes = encode(&7u32);
        bytes.push(0);
        assert!(matches!(decode::<u32>(&bytes), Err(CodecError::Trailing(1))));
        assert!(matches!(decode::<u32>(&[9, 7]), Err(CodecError::Format(9))));
        assert!(matches!(decode::<u32>(&[]), Err(CodecError::Empty)));
    }
}
