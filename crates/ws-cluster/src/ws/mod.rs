//! WebSocket frames as in RFC 6455: encoding and decoding, and the compression of RFC 7692. Pure.

pub(crate) mod decoder;
#[cfg(feature = "deflate")]
pub(crate) mod deflate;
#[cfg(not(feature = "deflate"))]
#[path = "no_deflate.rs"]
pub(crate) mod deflate;
pub(crate) mod frame;

/// The reason why a client's message cannot be inflated.
#[cfg_attr(not(feature = "deflate"), allow(dead_code, reason = "only what inflates makes one"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InflateError {
    /// The message is over the limit.
    TooLarge,
    /// The payload is no DEFLATE stream as the RFC describes it.
    Invalid,
}

/// A whole WebSocket message, for [`ServerBuilder::raw`](crate::ServerBuilder::raw).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RawMessage {
    /// A text message.
    Text(String),
    /// A binary message.
    Binary(Vec<u8>),
}

/// Returns the size of a client's text message, for the micro-benchmarks.
#[cfg(feature = "internals")]
pub(crate) fn decoded(frame: &mut [u8]) -> Option<usize> {
    match decoder::Decoder::default().decode(frame, usize::MAX, None).ok()?.event {
        Some(decoder::Event::Text(text)) => Some(text.len()),
        _ => None,
    }
}
