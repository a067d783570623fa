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
pub(crate) mod tests {
    use super::*;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};

    /// Up to `most` bytes by chance.
    pub(crate) fn some_bytes(chance: &mut Xoshiro256PlusPlus, most: u64) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(chance.next_u64() % (most + 1)).unwrap()];
        chance.fill_bytes(&mut bytes);
        bytes
    }

    #[test]
    fn what_was_encoded_is_decoded() {
        type Value = (u64, Option<String>, Vec<(i32, bool)>);
        for seed in 0..256 {
            let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed);
            // small numbers take fewer bytes than large ones
            let number = chance.next_u64() >> (chance.next_u64() % 64);
            let text = String::from_utf8_lossy(&some_bytes(&mut chance, 300)).into_owned();
            let pairs = some_bytes(&mut chance, 300);
            let pairs =
                pairs.iter().map(|byte| (i32::from(*byte) * 8_000_001 - 1_000_000_000, byte % 2 == 0)).collect();
            let value: Value = (number, (seed % 3 > 0).then_some(text), pairs);
            assert_eq!(decode::<Value>(&encode(&value)).unwrap(), value, "seed {seed}");
        }
    }

    #[test]
    fn bad_bytes_never_panic() {
        for seed in 0..1000 {
            let mut bytes = some_bytes(&mut Xoshiro256PlusPlus::seed_from_u64(seed), 100);
            let _ = decode::<Vec<(String, Vec<u8>)>>(&bytes);
            bytes.insert(0, FORMAT);
            let _ = decode::<Vec<(String, Vec<u8>)>>(&bytes);
            // a short list, so that more than its length is read
            bytes.insert(1, u8::try_from(seed % 5).unwrap());
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
