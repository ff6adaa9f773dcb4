//! Compression of messages (permessage-deflate, RFC 7692), without memory for each connection. Both sides compress each
//! message on its own (`no_context_takeover`), so all connections can share a compressed message, and compressors and
//! inflaters are free between messages. `offer` negotiates, and `codec` compresses and inflates.

use std::num::NonZeroU8;

use super::InflateError;

mod codec;
#[cfg(test)]
mod decoding_tests;
mod offer;

pub(crate) use self::{codec::compress, offer::answer};

/// Size of the largest message that is compressed, in bytes. Compressing 1 MiB takes about 10 ms, and this happens in the
/// cluster's task while it delivers, under the hub's lock, for each of the three forms of a message that clients get.
const MAX_SIZE: usize = 256 * 1024;

/// Maximum number of bytes that are compressed for messages that are delivered together: the largest message in its
/// three forms. That takes about 8 ms, which delays other messages little.
pub(crate) const MAX_TOGETHER: usize = 3 * MAX_SIZE;

/// The smallest window that the RFC knows, as an exponent of two.
const MIN_WINDOW_BITS: u8 = 8;

/// The largest window, which the compressor and the inflater have.
const MAX_WINDOW_BITS: u8 = 15;

/// Number of bits for the window in [`Deflate`].
const WINDOW_BITS: u8 = 3;

/// Largest exponent of the minimum size.
const MAX_SIZE_EXPONENT: u32 = (u8::MAX >> WINDOW_BITS) as u32;

/// What a connection has negotiated: the sizes of the messages that it gets compressed. One byte, because each
/// connection has one. The lower bits are the client's window, the upper bits the exponent of the minimum size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Deflate(NonZeroU8);

impl Deflate {
    /// `min_size` is rounded up to a power of two, and is at least 2. `window_bits`: the size of the client's window as
    /// an exponent of two, 8 to 15.
    fn new(min_size: usize, window_bits: u8) -> Self {
        let exponent = usize::BITS - min_size.saturating_sub(1).leading_zeros();
        let exponent = exponent.clamp(1, MAX_SIZE_EXPONENT) as u8;
        let window = window_bits.clamp(MIN_WINDOW_BITS, MAX_WINDOW_BITS) - MIN_WINDOW_BITS;
        Self(NonZeroU8::MIN.saturating_add((exponent << WINDOW_BITS | window) - 1))
    }

    /// Returns true if the connection gets a message of `size` bytes compressed, if that makes it smaller. A longer
    /// message than the client's window could refer further back than the window reaches.
    pub(crate) fn takes(self, size: usize) -> bool {
        let bits = self.0.get();
        let (exponent, window) = (u32::from(bits >> WINDOW_BITS), bits & ((1 << WINDOW_BITS) - 1));
        let fits = window == MAX_WINDOW_BITS - MIN_WINDOW_BITS || size <= 1 << (window + MIN_WINDOW_BITS);
        size as u64 >= 1 << exponent && size <= MAX_SIZE && fits
    }

    /// Inflates a client's message, which may have up to `limit` bytes.
    pub(crate) fn inflate(self, compressed: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
        codec::inflate(compressed, limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_takes_messages_from_the_minimum_size_up_to_its_window() {
        for (min_size, window_bits, taken, refused) in [
            (256, 15, &[256, 32_768, MAX_SIZE][..], &[0, 1, 255, MAX_SIZE + 1, 1 << 30][..]),
            (257, 15, &[512], &[256, 511]),
            (0, 15, &[2, 3], &[0, 1]),
            (1, 15, &[2], &[1]),
            (256, 8, &[256], &[255, 257]),
            (256, 9, &[256, 512], &[255, 513]),
            (256, 14, &[256, 16_384], &[16_385]),
            (MAX_SIZE, 15, &[MAX_SIZE], &[MAX_SIZE - 1]),
            (usize::MAX, 15, &[], &[256, MAX_SIZE, 1 << 31]),
        ] {
            let deflate = Deflate::new(min_size, window_bits);
            taken.iter().for_each(|size| assert!(deflate.takes(*size), "{min_size} {window_bits} {size}"));
            refused.iter().for_each(|size| assert!(!deflate.takes(*size), "{min_size} {window_bits} {size}"));
        }
        assert_eq!(size_of::<Option<Deflate>>(), 1);
    }
}
