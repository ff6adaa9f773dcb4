//! Bytes of a client in, messages out: tungstenite's protocol without its I/O, held only while something is
//! incomplete, so that an idle connection has no buffer.

use std::io::{self, Cursor, Read, Write};

use bytes::Bytes;
use tungstenite::{
    Error, Message, Utf8Bytes,
    protocol::{
        Role, WebSocketConfig, WebSocketContext,
        frame::{FrameHeader, coding::OpCode},
    },
};

use crate::CloseCode;

/// What tungstenite reads at a time, and allocates for it: more than most messages of clients.
const CHUNK: usize = 4 * 1024;

/// What a client sent.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A whole text message.
    Text(Utf8Bytes),
    /// A whole binary message.
    Binary,
    /// A ping; its answer is in [`Decoder::take_answer`].
    Ping,
    /// A pong.
    Pong,
    /// A close frame; its answer, should we not have closed first, is in [`Decoder::take_answer`].
    Close,
}

/// Why a client's bytes cannot be read on: nothing after them makes sense.
#[derive(Debug)]
pub(super) struct Broken {
    /// The code to close with.
    pub(super) code: CloseCode,
    /// What is wrong, for the close frame.
    pub(super) reason: String,
}

/// Decodes what one client sends.
pub(super) struct Decoder {
    config: WebSocketConfig,
    /// `None` between messages.
    partial: Option<Box<Partial>>,
    boundary: Boundary,
    answer: Vec<u8>,
    /// The bytes made no sense: what follows is passed over.
    broken: bool,
}

struct Partial {
    context: WebSocketContext,
    pipe: Pipe,
}

impl Decoder {
    /// With the largest message to take, in bytes.
    pub(super) fn new(message_size: usize) -> Self {
        let config = WebSocketConfig::default()
            .read_buffer_size(CHUNK)
            .write_buffer_size(0)
            .max_message_size(Some(message_size))
            .max_frame_size(Some(message_size));
        Self { config, partial: None, boundary: Boundary::default(), answer: Vec::new(), broken: false }
    }

    /// Takes bytes off the socket.
    pub(super) fn feed(&mut self, bytes: &[u8]) {
        if self.broken {
            return;
        }
        self.boundary.advance(bytes);
        let partial = self.partial.get_or_insert_with(|| {
            let context = WebSocketContext::new(Role::Server, Some(self.config));
            Box::new(Partial { context, pipe: Pipe::default() })
        });
        partial.pipe.feed(bytes);
    }

    /// What came next, or `None` where more bytes are needed. After an error nothing comes any more.
    pub(super) fn next(&mut self) -> Result<Option<Event>, Broken> {
        let Some(partial) = &mut self.partial else { return Ok(None) };
        let Partial { context, pipe } = &mut **partial;
        let event = match context.read(pipe) {
            Ok(Message::Text(text)) => Ok(Some(Event::Text(text))),
            Ok(Message::Binary(_)) => Ok(Some(Event::Binary)),
            Ok(Message::Pong(_)) => Ok(Some(Event::Pong)),
            Ok(Message::Ping(_)) => Ok(Some(Event::Ping)),
            Ok(Message::Close(_) | Message::Frame(_)) => Ok(Some(Event::Close)),
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(broken(&error)),
        };
        if matches!(event, Ok(Some(Event::Ping | Event::Close))) {
            // Formats the answer. After a close tungstenite reports the end, which is no failure here.
            let _ = context.flush(pipe);
        }
        self.answer.append(&mut pipe.output);
        self.broken |= event.is_err();
        if self.broken || matches!(event, Ok(None)) && self.boundary.is_message() {
            self.partial = None;
        }
        event
    }

    /// The frames with which tungstenite answers what came: a pong, or a close.
    pub(super) fn take_answer(&mut self) -> Option<Bytes> {
        (!self.answer.is_empty()).then(|| std::mem::take(&mut self.answer).into())
    }
}

fn broken(error: &Error) -> Broken {
    let (code, reason) = match error {
        Error::Capacity(error) => (CloseCode::TooLarge, error.to_string()),
        Error::Utf8(_) => (CloseCode::NotUtf8, "not UTF-8".to_owned()),
        Error::Protocol(error) => (CloseCode::Protocol, error.to_string()),
        error => (CloseCode::Protocol, error.to_string()),
    };
    Broken { code, reason }
}

/// The socket as tungstenite sees it: what has come, and room for its answers.
#[derive(Default)]
struct Pipe {
    input: Vec<u8>,
    read: usize,
    output: Vec<u8>,
}

impl Pipe {
    fn feed(&mut self, bytes: &[u8]) {
        self.input.drain(..std::mem::take(&mut self.read));
        self.input.extend_from_slice(bytes);
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match (&self.input[self.read..]).read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            size => {
                self.read += size;
                Ok(size)
            }
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Walks over frames to know where a message ends: there tungstenite holds nothing that is still needed.
#[derive(Default)]
struct Boundary {
    /// The beginning of a header; less than the 14 bytes that the longest has.
    header: Vec<u8>,
    /// Bytes of payload still to come.
    payload: u64,
    /// Within a message of several frames.
    fragmented: bool,
    /// The bytes are no frames. The decoder says so in its turn.
    lost: bool,
}

impl Boundary {
    fn is_message(&self) -> bool {
        self.header.is_empty() && self.payload == 0 && !self.fragmented && !self.lost
    }

    fn advance(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && !self.lost {
            let skipped = self.payload.min(bytes.len() as u64);
            self.payload -= skipped;
            bytes = &bytes[skipped as usize..];
            if bytes.is_empty() {
                return;
            }
            let known = self.header.len();
            let parsed = if known == 0 {
                parse(bytes)
            } else {
                self.header.extend_from_slice(&bytes[..bytes.len().min(14)]);
                parse(&self.header)
            };
            match parsed {
                Ok(Some((header, payload, size))) => {
                    if matches!(header.opcode, OpCode::Data(_)) {
                        self.fragmented = !header.is_final;
                    }
                    self.payload = payload;
                    bytes = &bytes[size - known..];
                    self.header = Vec::new();
                }
                Ok(None) => {
                    if known == 0 {
                        self.header = bytes.to_vec();
                    }
                    return;
                }
                Err(_) => self.lost = true,
            }
        }
    }
}

/// The header at the beginning, the size of its payload, and its own.
fn parse(bytes: &[u8]) -> Result<Option<(FrameHeader, u64, usize)>, Error> {
    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor)?;
    Ok(parsed.map(|(header, payload)| (header, payload, cursor.position() as usize)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A frame as a client masks it, with a mask of zeros.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![first];
        match payload.len() {
            size @ 0..126 => frame.push(0x80 | size as u8),
            size => {
                frame.push(0x80 | 126);
                frame.extend((size as u16).to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(payload);
        frame
    }

    fn all(decoder: &mut Decoder) -> Vec<Event> {
        std::iter::from_fn(|| decoder.next().unwrap()).collect()
    }

    #[test]
    fn the_buffer_lives_while_a_message_is_incomplete() {
        let mut decoder = Decoder::new(1000);
        let bytes = [frame(0x01, b"hello "), frame(0x89, b"ping"), frame(0x80, &[b'x'; 200])].concat();
        for byte in &bytes[..bytes.len() - 1] {
            decoder.feed(&[*byte]);
            assert!(all(&mut decoder).iter().all(|event| *event == Event::Ping));
            assert!(decoder.partial.is_some());
        }
        decoder.feed(&bytes[bytes.len() - 1..]);
        assert_eq!(all(&mut decoder), [Event::Text(format!("hello {}", "x".repeat(200)).into())]);
        assert!(decoder.partial.is_none());
        assert_eq!(&decoder.take_answer().unwrap()[..], b"\x8a\x04ping");
    }

    #[test]
    fn several_messages_come_one_by_one() {
        let mut decoder = Decoder::new(1000);
        decoder.feed(&[frame(0x81, b"a"), frame(0x82, b"b"), frame(0x8a, b""), frame(0x81, b"c")].concat()[..26]);
        assert_eq!(all(&mut decoder), [Event::Text("a".into()), Event::Binary, Event::Pong]);
        assert!(decoder.partial.is_some());
        decoder.feed(b"c");
        assert_eq!(all(&mut decoder), [Event::Text("c".into())]);
        assert!(decoder.partial.is_none());
    }

    #[test]
    fn what_breaks_the_protocol_has_its_close_code() {
        for (bytes, code) in [
            (frame(0x81, b"\xff"), CloseCode::NotUtf8),
            ([frame(0x01, b"\xc3"), frame(0x80, b"x")].concat(), CloseCode::NotUtf8),
            (frame(0x81, &[b'x'; 1001]), CloseCode::TooLarge),
            ([frame(0x01, &[b'x'; 600]), frame(0x80, &[b'x'; 600])].concat(), CloseCode::TooLarge),
            (frame(0x80, b"x"), CloseCode::Protocol),
            (frame(0xc1, b"x"), CloseCode::Protocol),
            (frame(0x83, b"x"), CloseCode::Protocol),
            (frame(0x09, b"x"), CloseCode::Protocol),
            (frame(0x89, &[b'x'; 126]), CloseCode::Protocol),
            (frame(0x88, b"x"), CloseCode::Protocol),
            (vec![0x81, 1, b'x'], CloseCode::Protocol),
            ([frame(0x01, b"a"), frame(0x81, b"b")].concat(), CloseCode::Protocol),
        ] {
            let mut decoder = Decoder::new(1000);
            decoder.feed(&bytes);
            let error = loop {
                match decoder.next() {
                    Ok(event) => assert!(event.is_some(), "{bytes:?}"),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.code, code, "{bytes:?} {}", error.reason);
        }
    }

    #[test]
    fn a_close_is_answered_with_its_code() {
        let mut decoder = Decoder::new(1000);
        decoder.feed(&frame(0x88, b"\x03\xe8bye"));
        assert_eq!(decoder.next().unwrap(), Some(Event::Close));
        assert_eq!(&decoder.take_answer().unwrap()[..], b"\x88\x05\x03\xe8bye");
    }
}
