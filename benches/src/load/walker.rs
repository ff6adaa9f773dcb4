//! Reads a server's WebSocket frames without copying them. It counts frames and marks, and keeps only the frames that
//! need an answer or end the connection. Pure.

use benches::MARK;
use memchr::memchr_iter;
use tungstenite::protocol::frame::FrameHeader;

/// Maximum size of a payload that is kept to check whether it needs an answer. Control frames have at most 125 bytes.
const KEPT: u64 = 125;

/// The contents of a piece of the stream.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Number of text and binary frames that ended.
    pub(super) frames: usize,
    /// Number of marks in them, which is the number of messages.
    pub(super) marks: usize,
    /// Frames to send back.
    pub(super) answers: Vec<u8>,
    /// The code of a close frame.
    pub(super) closed: Option<u16>,
}

/// The state within a frame at the end of the bytes so far.
#[derive(Debug, Default)]
pub(super) struct Walker {
    header: [u8; 10],
    have: u8,
    left: u64,
    inside: bool,
    kept: Vec<u8>,
}

impl Walker {
    /// Continues with bytes that were read. A text frame that equals the first of a pair in `pings` is answered with
    /// the second.
    pub(super) fn walk(&mut self, mut bytes: &[u8], pings: &[(String, String)], seen: &mut Seen) {
        while !bytes.is_empty() || self.inside && self.left == 0 {
            if !self.inside {
                self.header[usize::from(self.have)] = bytes[0];
                self.have += 1;
                bytes = &bytes[1..];
                self.inside = self.header_ends();
                continue;
            }
            let (part, rest) = bytes.split_at(bytes.len().min(usize::try_from(self.left).unwrap_or(usize::MAX)));
            bytes = rest;
            self.left -= part.len() as u64;
            let data = self.opcode() < 8;
            if data {
                seen.marks += memchr_iter(MARK, part).count();
            }
            if (!data || !pings.is_empty()) && self.left + part.len() as u64 + self.kept.len() as u64 <= KEPT {
                self.kept.extend_from_slice(part);
            }
            if self.left == 0 {
                self.frame_ends(pings, seen);
            }
        }
    }

    fn opcode(&self) -> u8 {
        self.header[0] & 15
    }

    /// Returns true if the header is complete. Then the size of the rest is known.
    fn header_ends(&mut self) -> bool {
        let have = usize::from(self.have);
        if have < 2 {
            return false;
        }
        let extended = match self.header[1] & 127 {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        if have < 2 + extended {
            return false;
        }
        self.left = match extended {
            0 => u64::from(self.header[1] & 127),
            _ => self.header[2..2 + extended].iter().fold(0, |size, byte| size << 8 | u64::from(*byte)),
        };
        true
    }

    fn frame_ends(&mut self, pings: &[(String, String)], seen: &mut Seen) {
        match self.opcode() {
            8 => {
                let code = self.kept.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code));
                seen.closed = Some(code);
                push_frame(&mut seen.answers, 8, &self.kept[..self.kept.len().min(2)]);
            }
            9 => push_frame(&mut seen.answers, 10, &self.kept),
            10 => {}
            _ => {
                seen.frames += 1;
                if let Some((_, pong)) = pings.iter().find(|(ping, _)| ping.as_bytes() == self.kept) {
                    push_frame(&mut seen.answers, self.opcode(), pong.as_bytes());
                }
            }
        }
        self.kept.clear();
        (self.have, self.inside) = (0, false);
    }
}

/// Appends a client's frame. Its mask is zero, which is valid like any other mask.
pub(super) fn push_frame(to: &mut Vec<u8>, opcode: u8, payload: &[u8]) {
    let header = FrameHeader { opcode: opcode.into(), mask: Some([0; 4]), ..FrameHeader::default() };
    header.format(payload.len() as u64, to).expect("a header can be written to memory");
    to.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        let header = FrameHeader { opcode: opcode.into(), ..FrameHeader::default() };
        header.format(payload.len() as u64, &mut frame).unwrap();
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn frames_are_counted_however_they_are_cut() {
        let mut sent = frame(1, b"one~");
        sent.extend(frame(9, b"~ping"));
        sent.extend(frame(2, &[b'~'; 300]));
        sent.extend(frame(1, b""));
        sent.extend(frame(1, b"2"));
        sent.extend(frame(1, &b"x~".repeat(40_000)));
        sent.extend(frame(8, &[0x0f, 0xa0, b'w', b'h', b'y']));
        let pings = [("2".to_owned(), "3".to_owned())];
        for step in [1, 2, 3, 7, 100, 1_000_000] {
            let (mut walker, mut seen) = (Walker::default(), Seen::default());
            sent.chunks(step).for_each(|part| walker.walk(part, &pings, &mut seen));
            let mut answers = Vec::new();
            push_frame(&mut answers, 10, b"~ping");
            push_frame(&mut answers, 1, b"3");
            push_frame(&mut answers, 8, &[0x0f, 0xa0]);
            assert_eq!(seen, Seen { frames: 5, marks: 40_301, answers, closed: Some(4000) }, "in steps of {step}");
        }
    }
}
