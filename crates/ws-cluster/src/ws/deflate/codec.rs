//! Compresses and inflates single messages.

use bytes::Bytes;
use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress, Status};
use parking_lot::Mutex;

use crate::ws::{InflateError, frame};

/// The level of the compressor. Higher levels make JSON of some kilobytes at most 2 % smaller, and take longer.
const LEVEL: Compression = Compression::new(3);

/// Maximum number of compressors, and of inflaters, that are kept between messages. A compressor takes about 270 KB and
/// an inflater 50 KB.
const KEPT: usize = 8;

/// What the sender leaves out at the end of a message (RFC 7692, section 7.2.1).
const TAIL: [u8; 4] = [0x00, 0x00, 0xff, 0xff];

/// The tail, and an empty final block. The stream ends with this block only if the message ended between two blocks.
const END: [u8; 9] = [0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff];

/// Size of the first buffer of an inflated message, as a multiple of the compressed size. JSON often has this ratio.
const USUAL_RATIO: usize = 4;

/// Smallest buffer of an inflated message.
const MIN_BUFFER: usize = 256;

static COMPRESSORS: Pool<Compress> = Pool::new();
static INFLATERS: Pool<Decompress> = Pool::new();

/// Compressors or inflaters that are free at the moment. At most as many are kept as messages were handled at the same
/// time.
struct Pool<T>(Mutex<Vec<T>>);

impl<T> Pool<T> {
    const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    fn with<R>(&self, make: impl FnOnce() -> T, work: impl FnOnce(&mut T) -> R) -> R {
        let free = self.0.lock().pop();
        let mut taken = free.unwrap_or_else(make);
        let result = work(&mut taken);
        let mut free = self.0.lock();
        if free.len() < KEPT {
            free.push(taken);
        }
        result
    }
}

/// Compresses a frame of a server's text or binary message. Returns `None` if that does not make it smaller.
pub(crate) fn compress(frame: &Bytes) -> Option<Bytes> {
    let payload = frame::payload(frame);
    // Room for a message that does not shrink.
    let mut compressed = Vec::with_capacity(payload.len() + payload.len() / 8 + 128);
    let make = || Compress::new(LEVEL, false);
    let whole = COMPRESSORS.with(make, |compressor| {
        compressor.reset();
        let done = compressor.compress_vec(payload, &mut compressed, FlushCompress::Sync);
        let whole =
            done.is_ok() && compressor.total_in() == payload.len() as u64 && compressed.len() < compressed.capacity();
        if !whole {
            // It may still have output. A reset forgets the output, and not the place that it takes: after many such
            // messages the compressor would panic.
            *compressor = make();
        }
        whole
    });
    let compressed = compressed.strip_suffix(&TAIL).filter(|compressed| whole && compressed.len() < payload.len())?;
    Some(frame::compressed(frame, compressed))
}

/// Inflates a client's message. The output is never larger than `limit`, apart from one byte.
pub(super) fn inflate(compressed: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
    // A sender must send one byte for an empty message, but zlib takes this one as well.
    if compressed.is_empty() {
        return Ok(Vec::new());
    }
    INFLATERS.with(
        || Decompress::new(false),
        |inflater| {
            inflater.reset(false);
            run(inflater, compressed, limit)
        },
    )
}

fn run(inflater: &mut Decompress, compressed: &[u8], limit: usize) -> Result<Vec<u8>, InflateError> {
    let max = limit.saturating_add(1);
    let first = compressed.len().saturating_mul(USUAL_RATIO).max(MIN_BUFFER).min(max);
    let mut message = Vec::with_capacity(first);
    let mut in_message = true;
    for mut input in [compressed, &END] {
        while !input.is_empty() {
            if message.len() == message.capacity() {
                message.reserve_exact(message.len().min(max - message.len()));
            }
            let (read, written) = (inflater.total_in(), message.len());
            let status = inflater
                .decompress_vec(input, &mut message, FlushDecompress::None)
                .map_err(|_| InflateError::Invalid)?;
            if message.len() > limit {
                return Err(InflateError::TooLarge);
            }
            let read = (inflater.total_in() - read) as usize;
            input = &input[read..];
            match status {
                // The stream ends with all of `END`, or with none of it: the final block of a message without the byte
                // ends here if the buffer was full before.
                Status::StreamEnd if !in_message => {
                    let ends = input.is_empty() || input.len() == END.len();
                    return if ends { Ok(message) } else { Err(InflateError::Invalid) };
                }
                // A sender may end with a final block. It must then add one zero byte, the head of an empty block that is
                // not final (RFC 7692, section 7.2.3.4). A message without this byte is clear as well, so it is accepted.
                Status::StreamEnd if input.is_empty() => return Ok(message),
                Status::StreamEnd => inflater.reset(false),
                Status::Ok | Status::BufError if read == 0 && message.len() == written => {
                    // There was room, so the inflater cannot go on.
                    return Err(InflateError::Invalid);
                }
                Status::Ok | Status::BufError => {}
            }
        }
        in_message = false;
    }
    // The message ends inside a block.
    Err(InflateError::Invalid)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const LIMIT: usize = 64 * 1024;

    /// Returns a message as a client compresses it.
    pub(in crate::ws::deflate) fn compressed(text: &[u8]) -> Vec<u8> {
        let mut compressed = Vec::with_capacity(text.len() + 100);
        Compress::new(LEVEL, false).compress_vec(text, &mut compressed, FlushCompress::Sync).unwrap();
        compressed.strip_suffix(&TAIL).unwrap().to_vec()
    }

    fn json(size: usize) -> Vec<u8> {
        (0_u64..).flat_map(|number| format!("{{\"id\":{}}},", number * 77_777 % 9973).into_bytes()).take(size).collect()
    }

    #[test]
    fn a_compressed_frame_has_the_same_message_and_the_bit() {
        for size in [300, 2_000, 70_000, 1_000_000] {
            let message = json(size);
            for (plain, first) in [(frame::text(&[b"", &message]), 0xc1), (frame::binary(&message), 0xc2)] {
                let compressed = compress(&plain).expect("it shrinks");
                assert_eq!(compressed[0], first);
                assert!(compressed.len() < plain.len() / 2);
                assert_eq!(inflate(frame::payload(&compressed), size).as_ref(), Ok(&message), "{size}");
                assert_eq!(compress(&plain), Some(compressed), "each message is compressed on its own");
            }
        }
    }

    #[test]
    fn a_message_that_does_not_shrink_stays_plain() {
        let mut random = ws_cluster_core::simulator::Random(7);
        let noise: Vec<u8> = std::iter::repeat_with(|| random.below(256) as u8).take(70_000).collect();
        for message in [&b""[..], b"a", b"abcdefgh", &noise[..300], &noise] {
            assert_eq!(compress(&frame::binary(message)), None);
        }
        // Nothing of them stays in the compressor: it would be full after some hundred.
        for start in 0..1_000 {
            assert_eq!(compress(&frame::binary(&noise[start..start + 256])), None);
        }
        let message = json(300);
        let compressed = compress(&frame::binary(&message)).expect("it shrinks");
        assert_eq!(inflate(frame::payload(&compressed), LIMIT).as_ref(), Ok(&message));
    }

    #[test]
    fn the_examples_of_the_rfc_are_inflated() {
        for (example, message) in [
            (&[0xf2, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00][..], &b"Hello"[..]),
            // One block with a compression of zero.
            (&[0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00], b"Hello"),
            // A final block, with the empty block behind it and without.
            (&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00], b"Hello"),
            (&[0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00], b"Hello"),
            // Two blocks.
            (&[0xf2, 0x48, 0x05, 0x00, 0x00, 0x00, 0xff, 0xff, 0xca, 0xc9, 0xc9, 0x07, 0x00], b"Hello"),
            // An empty message, as the RFC has it, and as zlib takes it as well.
            (&[0x00], b""),
            (&[], b""),
        ] {
            assert_eq!(inflate(example, LIMIT).as_deref(), Ok(message), "{example:02x?}");
        }
    }

    #[test]
    fn a_message_of_any_size_may_end_with_a_final_block() {
        let mut compressor = Compress::new(LEVEL, false);
        let noise = json(6_000);
        for size in 0..6_000 {
            for message in [&vec![b'x'; size], &noise[..size]] {
                let mut ended = Vec::with_capacity(size + 100);
                compressor.reset();
                compressor.compress_vec(message, &mut ended, FlushCompress::Finish).unwrap();
                assert_eq!(inflate(&ended, LIMIT).as_deref(), Ok(message), "{size} without the byte");
                assert_eq!(inflate(&ended, size).as_deref(), Ok(message), "{size}, which is the limit");
                ended.push(0x00);
                assert_eq!(inflate(&ended, LIMIT).as_deref(), Ok(message), "{size} with the byte");
                ended.truncate(ended.len() - 2);
                assert_eq!(inflate(&ended, LIMIT), Err(InflateError::Invalid), "{size} without its last byte");
            }
        }
    }

    #[test]
    fn a_stream_that_is_broken_is_refused() {
        let whole = compressed(&json(1_000));
        let cut = (1..whole.len()).map(|size| whole[..size].to_vec());
        let other = [
            vec![0x07],
            vec![0xff; 10],
            // A block that has not the size that it states.
            vec![0x00, 0x06, 0x00, 0xf9, 0xff, 0x48],
            vec![0x00, 0x05, 0x00, 0xfa, 0xfe, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            // A context that the client has taken over from an earlier message: "Hello" once more.
            vec![0xf2, 0x00, 0x11, 0x00, 0x00],
            // The tail has not been left out.
            [&whole[..], &TAIL].concat(),
        ];
        for broken in cut.chain(other) {
            assert_eq!(inflate(&broken, LIMIT), Err(InflateError::Invalid), "{broken:02x?}");
        }
    }

    #[test]
    fn a_bomb_is_refused_at_the_limit() {
        let bomb = compressed(&vec![b'x'; 1024 * LIMIT]);
        assert!(bomb.len() < 100_000);
        assert_eq!(inflate(&bomb, LIMIT), Err(InflateError::TooLarge));
        let exact = compressed(&vec![b'x'; LIMIT]);
        assert_eq!(
            inflate(&exact, LIMIT).map(|message| (message.len(), message.capacity() <= LIMIT + 1)),
            Ok((LIMIT, true))
        );
        assert_eq!(inflate(&exact, LIMIT - 1), Err(InflateError::TooLarge));
        assert_eq!(inflate(&[0x00], 0), Ok(Vec::new()));
    }

    #[test]
    fn few_compressors_are_kept() {
        let pool = Pool::<u8>::new();
        fn nest(pool: &Pool<u8>, depth: usize) {
            if depth > 0 {
                pool.with(|| 0, |_| nest(pool, depth - 1));
            }
        }
        nest(&pool, 3);
        assert_eq!(pool.0.lock().len(), 3);
        nest(&pool, 100);
        assert_eq!(pool.0.lock().len(), KEPT);
    }

    #[test]
    fn a_hostile_stream_is_inflated_within_the_limit_or_refused() {
        let corpus = [
            compressed(b"{\"action\":\"a\",\"details\":[\"Hello\",\"Hello\",\"Hello\"]}"),
            compressed(&json(2_000)),
            compressed(&[b'x'; 5_000]),
            vec![0x00, 0x05, 0x00, 0xfa, 0xff, 0x48, 0x65, 0x6c, 0x6c, 0x6f, 0x00],
            vec![0xf3, 0x48, 0xcd, 0xc9, 0xc9, 0x07, 0x00, 0x00],
        ];
        let corpus: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
        crate::fuzz::search(&corpus, |input| {
            let (wide, narrow) = (inflate(input, LIMIT), inflate(input, 100));
            let bounded = |message: &Result<Vec<u8>, _>, limit| {
                message.as_ref().is_ok_and(|message| message.len() > limit || message.capacity() > limit + MIN_BUFFER)
            };
            if bounded(&wide, LIMIT) || bounded(&narrow, 100) {
                return Err("it is over the limit".into());
            }
            let expected = match &wide {
                Ok(message) if message.len() > 100 => Err(InflateError::TooLarge),
                other => other.clone(),
            };
            // A stream may break behind the limit.
            let agree = narrow == expected || narrow == Err(InflateError::TooLarge) && expected.is_err();
            agree.then_some(()).ok_or_else(|| format!("{wide:?}, within 100 bytes {narrow:?}"))
        });
    }
}
