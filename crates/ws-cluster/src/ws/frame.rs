//! WebSocket frames as a server sends them, encoded by tungstenite. Connections share them.

use bytes::Bytes;
use tungstenite::protocol::{
    CloseFrame,
    frame::{
        Frame, FrameHeader,
        coding::{Data, OpCode},
    },
};

use crate::CloseCode;

/// Maximum size of a close frame's reason, in bytes: a control frame carries 125, of which the code takes two.
const REASON_SIZE: usize = 123;

/// Returns the frame of a text message, joined from parts.
pub(crate) fn text(parts: &[&[u8]]) -> Bytes {
    data(Data::Text, parts)
}

/// Returns the frame of a binary message.
pub(crate) fn binary(bytes: &[u8]) -> Bytes {
    data(Data::Binary, &[bytes])
}

/// Returns a text or binary frame of this module with its payload compressed.
#[cfg(feature = "deflate")]
pub(super) fn compressed(frame: &[u8], payload: &[u8]) -> Bytes {
    let kind = if frame[0] & 0x0f == 1 { Data::Text } else { Data::Binary };
    whole(FrameHeader { rsv1: true, opcode: OpCode::Data(kind), ..FrameHeader::default() }, &[payload])
}

/// Returns true if a frame of this module is compressed.
pub(crate) fn is_compressed(frame: &[u8]) -> bool {
    frame[0] & 0x40 > 0
}

/// Returns the payload of a frame of this module.
pub(crate) fn payload(frame: &[u8]) -> &[u8] {
    let header = match frame[1] {
        126 => 4,
        127 => 10,
        _ => 2,
    };
    &frame[header..]
}

fn data(kind: Data, parts: &[&[u8]]) -> Bytes {
    whole(FrameHeader { opcode: OpCode::Data(kind), ..FrameHeader::default() }, parts)
}

fn whole(header: FrameHeader, parts: &[&[u8]]) -> Bytes {
    let size: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(header.len(size as u64) + size);
    // Writing to memory cannot fail.
    header.format(size as u64, &mut frame).expect("a header can be written");
    parts.iter().for_each(|part| frame.extend_from_slice(part));
    frame.into()
}

/// Returns the text messages among frames of a server.
#[cfg(any(test, feature = "testing"))]
pub(crate) fn texts(mut frames: &[u8]) -> Vec<String> {
    let mut texts = Vec::new();
    while let [first, size, rest @ ..] = frames {
        let (size, rest) = match size {
            126 => (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..]),
            127 => (u64::from_be_bytes(rest[..8].try_into().expect("eight bytes")) as usize, &rest[8..]),
            size => (usize::from(*size), rest),
        };
        let (payload, behind) = rest.split_at(size);
        texts.extend((*first == 0x81).then(|| String::from_utf8_lossy(payload).into_owned()));
        frames = behind;
    }
    texts
}

/// Returns a ping without payload. Any bytes from the client count as its answer.
pub(crate) fn ping() -> Bytes {
    Bytes::from_static(&[0x89, 0x00])
}

/// Returns the answer to a ping.
pub(crate) fn pong(payload: &[u8]) -> Bytes {
    format(Frame::pong(payload.to_vec()))
}

/// Returns a close frame. A reason over 123 bytes is cut.
pub(crate) fn close(code: CloseCode, reason: &str) -> Bytes {
    let reason = &reason[..reason.floor_char_boundary(REASON_SIZE)];
    format(Frame::close(Some(CloseFrame { code: (code as u16).into(), reason: reason.into() })))
}

fn format(frame: Frame) -> Bytes {
    let mut bytes = Vec::with_capacity(frame.len());
    // Writing to memory cannot fail.
    frame.format(&mut bytes).expect("a frame can be written");
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        assert_eq!(&text(&[b"a", b"bc"])[..], b"\x81\x03abc");
        assert_eq!(text(&[&[b'x'; 126]])[..4], [0x81, 126, 0, 126]);
        assert_eq!(text(&[&[b'x'; 65536]])[..10], [0x81, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    }

    #[test]
    fn the_payload_is_what_the_header_leaves() {
        for size in [0, 1, 125, 126, 65535, 65536] {
            assert_eq!(payload(&binary(&vec![7; size])), vec![7; size], "{size}");
        }
    }

    #[test]
    fn a_reason_is_cut_at_a_character() {
        let frame = close(CloseCode::Malformed, &"ä".repeat(100));
        assert_eq!(frame[..4], [0x88, 124, 0x11, 0x30]);
        assert_eq!(frame.len(), 126);
        assert_eq!(&close(CloseCode::Normal, "")[..], b"\x88\x02\x03\xe8");
    }

    #[test]
    fn a_ping_is_tungstenites() {
        let mut bytes = Vec::new();
        Frame::ping(Bytes::new()).format(&mut bytes).unwrap();
        assert_eq!(ping(), bytes);
    }
}
