//! Frames: a length, the id of the request, its payload.
//!
//! ```text
//! 4 bytes  length of what follows, big endian: 8 + payload
//! 8 bytes  request id, big endian; an answer repeats the id of its request; 0 is the server's welcome
//! …        payload, as `codec` encodes it
//! ```

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// The longest payload between members, in bytes. Longer things travel in parts.
pub const PAYLOAD_MAX: usize = 2 * 1024 * 1024;
/// The longest payload of a stranger.
pub const STRANGER_PAYLOAD_MAX: usize = 64 * 1024;
/// Bytes of the request id.
const ID_BYTES: usize = 8;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// Which request it is, or answers.
    pub id: u64,
    /// What it says.
    pub payload: Vec<u8>,
}

/// Bytes are no frame; the connection they came on cannot be used any further.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The length is below that of an id, or above the limit.
    #[error("a frame claims {length} bytes; 8 to {max} are possible")]
    Length {
        /// What it claims.
        length: usize,
        /// What is allowed.
        max: usize,
    },
    /// The connection failed, or ended within a frame.
    #[error("read from the peer")]
    Io(#[from] io::Error),
}

/// Appends a frame to `out`. The caller has checked the payload's length.
pub fn put_frame(out: &mut Vec<u8>, id: u64, payload: &[u8]) {
    let length = u32::try_from(ID_BYTES + payload.len()).expect("payloads are limited to some MiB");
    out.extend_from_slice(&length.to_be_bytes());
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Reads one frame with at most `payload_max` bytes of payload; `None` when the peer ended the stream between frames.
///
/// Not cancel-safe: dropped half-way, the rest of the stream means nothing.
pub async fn read_frame<R>(reader: &mut R, payload_max: usize) -> Result<Option<Frame>, FrameError>
where
    R: AsyncRead + Unpin,
{
    let mut header = [0; 4];
    if reader.read(&mut header[..1]).await? == 0 {
        return Ok(None);
    }
    reader.read_exact(&mut header[1..]).await?;
    let length = u32::from_be_bytes(header) as usize;
    let max = payload_max + ID_BYTES;
    if !(ID_BYTES..=max).contains(&length) {
        return Err(FrameError::Length { length, max });
    }
    let id = reader.read_u64().await?;
    // Grows with what arrives, not with what is claimed.
    let mut payload = Vec::new();
    let wanted = length - ID_BYTES;
    reader.take(wanted as u64).read_to_end(&mut payload).await?;
    if payload.len() < wanted {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(Frame { id, payload }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::tests::some_bytes;
    use rand_xoshiro::Xoshiro256PlusPlus;
    use rand_xoshiro::rand_core::{RngCore, SeedableRng};

    fn read_all(mut bytes: &[u8], max: usize) -> Result<Vec<Frame>, FrameError> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut frames = Vec::new();
            while let Some(frame) = read_frame(&mut bytes, max).await? {
                frames.push(frame);
            }
            Ok(frames)
        })
    }

    #[test]
    fn frames_survive_the_stream() {
        for seed in 0..256 {
            let mut chance = Xoshiro256PlusPlus::seed_from_u64(seed);
            let count = chance.next_u64() % 8;
            let frames: Vec<_> = (0..count).map(|_| (chance.next_u64(), some_bytes(&mut chance, 300))).collect();
            let mut bytes = Vec::new();
            frames.iter().for_each(|(id, payload)| put_frame(&mut bytes, *id, payload));
            let read = read_all(&bytes, 300).unwrap();
            assert_eq!(
                read.into_iter().map(|frame| (frame.id, frame.payload)).collect::<Vec<_>>(),
                frames,
                "seed {seed}"
            );
        }
    }

    #[test]
    fn garbage_is_an_error_or_frames_but_never_a_panic() {
        for seed in 0..1000 {
            let mut bytes = some_bytes(&mut Xoshiro256PlusPlus::seed_from_u64(seed), 200);
            let _ = read_all(&bytes, 100);
            // lengths that are small enough, so that more than the first is read
            bytes.chunks_mut(4).step_by(5).flat_map(|length| length.iter_mut().take(3)).for_each(|byte| *byte = 0);
            let _ = read_all(&bytes, 100);
        }
    }

    #[test]
    fn impossible_lengths_and_cut_frames_are_refused() {
        for length in [0_u32, 7, 109, u32::MAX] {
            let mut bytes = length.to_be_bytes().to_vec();
            bytes.extend([0; 200]);
            assert!(matches!(read_all(&bytes, 100), Err(FrameError::Length { .. })), "{length}");
        }
        let mut whole = Vec::new();
        put_frame(&mut whole, 1, b"abc");
        for cut in 1..whole.len() {
            assert!(matches!(read_all(&whole[..cut], 100), Err(FrameError::Io(_))), "cut at {cut}");
        }
    }
}
