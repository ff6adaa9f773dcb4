//! WebSocket frames as RFC 6455 has them: encoding what is sent, decoding what comes. Pure.

pub(crate) mod decoder;
pub(crate) mod frame;

/// Returns the size of the text message that a client's frame is, for the micro-benchmarks.
#[cfg(feature = "internals")]
pub(crate) fn decoded(frame: &mut [u8]) -> Option<usize> {
    match decoder::Decoder::default().decode(frame, usize::MAX) {
        Ok((_, Some(decoder::Event::Text(text)))) => Some(text.len()),
        _ => None,
    }
}
