//! Decodes a client's bytes into messages. A frame that is a whole message is read in place. Everything else
//! (fragments, close frames, errors) goes frame by frame through tungstenite, whose context exists only while a message
//! is incomplete. The fragments of a compressed message are kept, and inflated when the last one has come. So an idle
//! connection has no buffer.

use std::{
    borrow::Cow,
    io::{self, Cursor, Read, Write},
};

use bytes::Bytes;
use tungstenite::{
    Error, Message,
    protocol::{
        Role, WebSocketConfig, WebSocketContext,
        frame::{
            FrameHeader,
            coding::{Control, Data, OpCode},
        },
    },
};

use super::{InflateError, deflate::Deflate, frame};
use crate::CloseCode;

/// Size of tungstenite's reads and of its buffer. Most messages of clients are smaller.
const BUFFER_SIZE: usize = 4 * 1024;

/// Maximum size of a control frame's payload, in bytes.
const MAX_CONTROL_SIZE: u64 = 125;

/// A decoded event of a client.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Event<'a> {
    /// A whole text message.
    Text(Cow<'a, str>),
    /// A whole binary message.
    Binary(Cow<'a, [u8]>),
    /// A ping, with the frame that answers it.
    Ping(Bytes),
    /// A pong.
    Pong,
    /// A close frame, with the frame that answers it if we have not closed first.
    Close(Bytes),
}

impl Event<'_> {
    /// Returns the size of a message in bytes, 0 for other events.
    fn size(&self) -> usize {
        match self {
            Event::Text(text) => text.len(),
            Event::Binary(bytes) => bytes.len(),
            Event::Ping(_) | Event::Pong | Event::Close(_) => 0,
        }
    }
}

/// What was decoded at the beginning of a client's bytes. By default more bytes are needed.
#[derive(Debug, Default)]
pub(crate) struct Decoded<'a> {
    /// Number of bytes of the frame. 0 if more bytes are needed.
    pub(crate) size: usize,
    /// The event that the frame completes.
    pub(crate) event: Option<Event<'a>>,
    /// The message's compressed or inflated size in bytes, whichever is larger. Both take time:
    /// empty blocks are many bytes that are inflated to nothing. 0 for a plain message.
    pub(crate) inflating: usize,
}

/// The reason why a client's bytes cannot be decoded. The bytes after them have no meaning.
#[derive(Debug)]
pub(crate) struct Broken {
    /// The code to close with.
    pub(crate) code: CloseCode,
    /// The reason for the close frame.
    pub(crate) reason: String,
}

/// Decodes the bytes of one client.
#[derive(Default)]
pub(crate) struct Decoder {
    /// `None` between messages.
    partial: Option<Box<PartialMessage>>,
}

#[derive(Default)]
struct PartialMessage {
    /// The bytes that came and are not decoded yet.
    kept: Vec<u8>,
    /// Number of bytes at the beginning of `kept` that are whole frames of messages.
    scanned: usize,
    /// The context within a message of several frames.
    context: Option<WebSocketContext>,
    /// The beginning of a compressed message of several frames.
    compressed: Option<CompressedMessage>,
}

impl PartialMessage {
    fn is_between_messages(&self) -> bool {
        self.context.is_none() && self.compressed.is_none()
    }
}

/// The beginning of a compressed message. It is inflated as a whole, because an inflater takes more memory.
struct CompressedMessage {
    deflate: Deflate,
    is_text: bool,
    bytes: Vec<u8>,
}

impl Decoder {
    /// Decodes one frame at the beginning of `bytes`. The client's mask is removed in place. After an error the content
    /// of `bytes` is unspecified. `limit`: the maximum size of a message in bytes, compressed as well as inflated.
    /// `deflate`: present if the client may compress messages.
    pub(crate) fn decode<'a>(
        &mut self,
        bytes: &'a mut [u8],
        limit: usize,
        deflate: Option<Deflate>,
    ) -> Result<Decoded<'a>, Broken> {
        let Some(WholeFrame { header, start, frame }) = whole(bytes, limit)? else { return Ok(Decoded::default()) };
        let (size, payload, mut inflating) = (frame.len(), (frame.len() - start) as u64, 0);
        let plain = header.is_final && !has_reserved_bit(&header);
        let event = match (header.opcode, header.mask) {
            (OpCode::Data(Data::Text), Some(mask)) if plain && self.is_between_messages() => {
                let text = std::str::from_utf8(unmask(&mut frame[start..], mask)).map_err(|_| not_utf8())?;
                Some(Event::Text(text.into()))
            }
            (OpCode::Data(Data::Binary), Some(mask)) if plain && self.is_between_messages() => {
                Some(Event::Binary((&*unmask(&mut frame[start..], mask)).into()))
            }
            (OpCode::Control(Control::Ping), Some(mask)) if plain && payload <= MAX_CONTROL_SIZE => {
                Some(Event::Ping(frame::pong(unmask(&mut frame[start..], mask))))
            }
            (OpCode::Control(Control::Pong), Some(_)) if plain && payload <= MAX_CONTROL_SIZE => Some(Event::Pong),
            (OpCode::Data(kind), Some(mask)) if self.is_compressed(&header, deflate) => {
                let payload = unmask(&mut frame[start..], mask);
                let decoded = self.decode_compressed(&header, kind, payload, limit, deflate)?;
                decoded.map(|(event, compressed)| {
                    inflating = compressed.max(event.size());
                    event
                })
            }
            (opcode, _) => {
                let event = self.decode_in_context(frame, limit)?;
                if header.is_final && matches!(opcode, OpCode::Data(_)) {
                    self.leave_context();
                }
                event
            }
        };
        Ok(Decoded { size, event, inflating })
    }

    /// Decodes one frame for a connection that closes: only the client's close frame matters. The content of every other
    /// frame is skipped, so nothing is inflated, although no rate limit counts these frames.
    pub(crate) fn decode_close(&mut self, bytes: &mut [u8], limit: usize) -> Result<Decoded<'static>, Broken> {
        let Some(WholeFrame { header, start, frame }) = whole(bytes, limit)? else { return Ok(Decoded::default()) };
        let (size, payload) = (frame.len(), (frame.len() - start) as u64);
        self.drop_message();
        let plain = header.is_final && !has_reserved_bit(&header);
        let event = match (header.opcode, header.mask) {
            (OpCode::Data(Data::Text | Data::Binary | Data::Continue), Some(_)) if !(header.rsv2 || header.rsv3) => {
                None
            }
            (OpCode::Control(Control::Ping | Control::Pong), Some(_)) if plain && payload <= MAX_CONTROL_SIZE => None,
            _ => self.decode_in_context(frame, limit)?,
        };
        Ok(Decoded { size, event, inflating: 0 })
    }

    fn is_between_messages(&self) -> bool {
        self.partial.as_ref().is_none_or(|partial| partial.is_between_messages())
    }

    /// Returns true if a data frame begins a compressed message or comes within one.
    fn is_compressed(&self, header: &FrameHeader, deflate: Option<Deflate>) -> bool {
        let begins = deflate.is_some() && header.rsv1 && !header.rsv2 && !header.rsv3;
        begins && self.is_between_messages()
            || self.partial.as_ref().is_some_and(|partial| partial.compressed.is_some())
    }

    /// Decodes a data frame that begins a compressed message or comes within one. Returns the message and its compressed
    /// size if the frame ends it.
    fn decode_compressed<'a>(
        &mut self,
        header: &FrameHeader,
        kind: Data,
        payload: &[u8],
        limit: usize,
        deflate: Option<Deflate>,
    ) -> Result<Option<(Event<'a>, usize)>, Broken> {
        let begun = self.partial.as_mut().and_then(|partial| partial.compressed.take());
        let (deflate, is_text, joined) = match (kind, begun, deflate) {
            (Data::Text | Data::Binary, None, Some(deflate)) => (deflate, kind == Data::Text, Cow::Borrowed(payload)),
            // Only the first frame of a message has the bit.
            (Data::Continue, Some(begun), _) if !has_reserved_bit(header) => {
                let CompressedMessage { deflate, is_text, mut bytes } = begun;
                if bytes.len() + payload.len() > limit {
                    return Err(too_large(format!("a compressed message of more than {limit} bytes")));
                }
                bytes.extend_from_slice(payload);
                (deflate, is_text, Cow::Owned(bytes))
            }
            _ => {
                let reason = "a frame that does not continue the compressed message".to_owned();
                return Err(Broken { code: CloseCode::Protocol, reason });
            }
        };
        if !header.is_final {
            let compressed = CompressedMessage { deflate, is_text, bytes: joined.into_owned() };
            self.partial.get_or_insert_default().compressed = Some(compressed);
            return Ok(None);
        }
        self.drop_empty();
        let message = deflate.inflate(&joined, limit).map_err(|error| match error {
            InflateError::TooLarge => too_large(format!("a message of more than {limit} bytes when it is inflated")),
            // The code for data that contradicts its type.
            InflateError::Invalid => Broken { code: CloseCode::NotUtf8, reason: "cannot be inflated".to_owned() },
        })?;
        let event = match is_text {
            true => Event::Text(String::from_utf8(message).map_err(|_| not_utf8())?.into()),
            false => Event::Binary(message.into()),
        };
        Ok(Some((event, joined.len())))
    }

    /// Passes a whole frame to tungstenite.
    fn decode_in_context<'a>(&mut self, frame: &[u8], limit: usize) -> Result<Option<Event<'a>>, Broken> {
        let context = self.partial.get_or_insert_default().context.get_or_insert_with(|| {
            let config = WebSocketConfig::default()
                .read_buffer_size(BUFFER_SIZE)
                .write_buffer_size(0)
                .max_message_size(Some(limit))
                .max_frame_size(Some(limit));
            WebSocketContext::new(Role::Server, Some(config))
        });
        let mut io = FrameIo { input: frame, output: Vec::new() };
        match context.read(&mut io) {
            Ok(Message::Text(text)) => Ok(Some(Event::Text(text.as_str().to_owned().into()))),
            Ok(Message::Binary(bytes)) => Ok(Some(Event::Binary(Vec::from(bytes).into()))),
            Ok(_) => {
                // This is a close frame, because other complete control frames were decoded before. The flush writes
                // the answer; after it tungstenite reports the end of the connection, which is no error here.
                let _ = context.flush(&mut io);
                Ok(Some(Event::Close(io.output.into())))
            }
            Err(Error::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(broken(error)),
        }
    }

    /// Drops the context after a message of several frames.
    fn leave_context(&mut self) {
        if let Some(partial) = &mut self.partial {
            partial.context = None;
        }
        self.drop_empty();
    }

    /// Drops the beginning of an incomplete message.
    fn drop_message(&mut self) {
        if let Some(partial) = &mut self.partial {
            partial.compressed = None;
        }
        self.leave_context();
    }

    /// Frees what an incomplete message needed, if none is incomplete and no bytes are kept.
    fn drop_empty(&mut self) {
        if self.is_empty() {
            self.partial = None;
        }
    }

    /// Keeps bytes, after those that are kept already.
    pub(crate) fn keep(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.partial.get_or_insert_default().kept.extend_from_slice(bytes);
        }
    }

    /// Takes the kept bytes out, to be decoded. [`put_back`](Self::put_back) returns the rest.
    pub(crate) fn take_kept(&mut self) -> Vec<u8> {
        self.partial.as_mut().map(|partial| std::mem::take(&mut partial.kept)).unwrap_or_default()
    }

    /// Keeps the rest of the bytes, without the first ones, which are decoded.
    pub(crate) fn put_back(&mut self, mut kept: Vec<u8>, decoded: usize) {
        if decoded < kept.len() {
            let partial = self.partial.get_or_insert_default();
            partial.scanned = partial.scanned.saturating_sub(decoded);
            kept.drain(..decoded);
            partial.kept = kept;
        } else {
            self.partial.iter_mut().for_each(|partial| partial.scanned = 0);
            self.drop_empty();
        }
    }

    /// Takes pings and pongs out of the kept bytes, although messages before them are not decoded yet. It offers each
    /// ping's answer to `answer`, which returns true if it has sent the answer; after a false the search ends. The
    /// search also ends at a close frame and at invalid bytes, which are handled in their order.
    pub(crate) fn take_pings(&mut self, limit: usize, mut answer: impl FnMut(Bytes) -> bool) {
        let Some(partial) = &mut self.partial else { return };
        let PartialMessage { kept, scanned, .. } = &mut **partial;
        let (mut from, mut to) = (*scanned, *scanned);
        while let Ok(Some((header, payload, start))) = parse(&kept[from..]) {
            let whole = payload <= limit as u64 && kept.len() - from >= start + payload as usize;
            let plain = header.is_final && !has_reserved_bit(&header);
            if !whole {
                break;
            }
            let size = start + payload as usize;
            match (header.opcode, header.mask) {
                (OpCode::Data(Data::Text | Data::Binary | Data::Continue), _) => {
                    kept.copy_within(from..from + size, to);
                    to += size;
                }
                (OpCode::Control(Control::Ping), Some(mask)) if plain && payload <= MAX_CONTROL_SIZE => {
                    let mut payload = kept[from + start..from + size].to_vec();
                    if !answer(frame::pong(unmask(&mut payload, mask))) {
                        break;
                    }
                }
                (OpCode::Control(Control::Pong), Some(_)) if plain && payload <= MAX_CONTROL_SIZE => {}
                _ => break,
            }
            from += size;
        }
        kept.drain(to..from);
        *scanned = to;
        self.drop_empty();
    }

    /// Returns the number of kept bytes.
    pub(crate) fn kept(&self) -> usize {
        self.partial.as_ref().map_or(0, |partial| partial.kept.len())
    }

    /// Returns true if no bytes are kept and no message is incomplete.
    pub(crate) fn is_empty(&self) -> bool {
        !self.keeps() && self.is_between_messages()
    }

    /// Returns true if the decoder has no memory at all.
    #[cfg(all(test, feature = "deflate"))]
    pub(super) fn is_free(&self) -> bool {
        self.partial.is_none()
    }

    /// Returns true if bytes are kept.
    pub(crate) fn keeps(&self) -> bool {
        self.kept() > 0
    }
}

fn broken(error: Error) -> Broken {
    match error {
        Error::Capacity(error) => Broken { code: CloseCode::TooLarge, reason: error.to_string() },
        Error::Utf8(_) => not_utf8(),
        Error::Protocol(error) => Broken { code: CloseCode::Protocol, reason: error.to_string() },
        error => Broken { code: CloseCode::Protocol, reason: error.to_string() },
    }
}

fn too_large(reason: String) -> Broken {
    Broken { code: CloseCode::TooLarge, reason }
}

fn not_utf8() -> Broken {
    Broken { code: CloseCode::NotUtf8, reason: "not UTF-8".to_owned() }
}

/// Parses a frame's header. Returns the header, the size of the payload and the size of the header.
fn parse(bytes: &[u8]) -> Result<Option<(FrameHeader, u64, usize)>, Error> {
    let mut cursor = Cursor::new(bytes);
    let parsed = FrameHeader::parse(&mut cursor)?;
    Ok(parsed.map(|(header, payload)| (header, payload, cursor.position() as usize)))
}

/// A frame of which all bytes have come.
struct WholeFrame<'a> {
    header: FrameHeader,
    /// Size of the header, which the payload follows.
    start: usize,
    frame: &'a mut [u8],
}

/// Returns the frame at the beginning of `bytes`, if all of it has come. Fails if its payload is over the limit.
fn whole(bytes: &mut [u8], limit: usize) -> Result<Option<WholeFrame<'_>>, Broken> {
    let Some((header, payload, start)) = parse(bytes).map_err(broken)? else { return Ok(None) };
    if payload > limit as u64 {
        return Err(too_large(format!("a message of {payload} bytes, where {limit} are allowed")));
    }
    let frame = bytes.get_mut(..start + payload as usize);
    Ok(frame.map(|frame| WholeFrame { header, start, frame }))
}

/// Returns true if a frame has a bit that only extensions may set.
fn has_reserved_bit(header: &FrameHeader) -> bool {
    header.rsv1 || header.rsv2 || header.rsv3
}

/// Removes the mask, eight bytes at a time as far as possible.
fn unmask(payload: &mut [u8], mask: [u8; 4]) -> &mut [u8] {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let (chunks, rest) = payload.as_chunks_mut::<8>();
    chunks.iter_mut().for_each(|chunk| *chunk = (u64::from_ne_bytes(*chunk) ^ wide).to_ne_bytes());
    rest.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);
    payload
}

/// The socket as tungstenite sees it: the bytes of one frame, and a buffer for the answer.
struct FrameIo<'a> {
    input: &'a [u8],
    output: Vec<u8>,
}

impl Read for FrameIo<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.input.read(buffer)? {
            0 => Err(io::ErrorKind::WouldBlock.into()),
            size => Ok(size),
        }
    }
}

impl Write for FrameIo<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::ws) const LIMIT: usize = 1000;

    /// Returns a frame as a client sends it.
    pub(in crate::ws) fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [7, 0, 200, 31];
        let mut frame = vec![first];
        match payload.len() {
            size @ 0..126 => frame.push(0x80 | size as u8),
            size => {
                frame.push(0x80 | 126);
                frame.extend((size as u16).to_be_bytes());
            }
        }
        frame.extend(mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    /// Returns the events of the bytes, decoded after the kept ones, of a client that compresses nothing.
    fn all(decoder: &mut Decoder, bytes: &[u8]) -> Result<Vec<Event<'static>>, Broken> {
        decode_all(decoder, bytes, None)
    }

    /// Returns the events of the bytes, decoded after the kept ones.
    pub(in crate::ws) fn decode_all(
        decoder: &mut Decoder,
        bytes: &[u8],
        deflate: Option<Deflate>,
    ) -> Result<Vec<Event<'static>>, Broken> {
        decoder.keep(bytes);
        let mut kept = decoder.take_kept();
        let (mut at, mut events) = (0, Vec::new());
        loop {
            let Decoded { size, event, .. } = decoder.decode(&mut kept[at..], LIMIT, deflate)?;
            events.extend(event.map(|event| match event {
                Event::Text(text) => Event::Text(text.into_owned().into()),
                Event::Binary(bytes) => Event::Binary(bytes.into_owned().into()),
                Event::Ping(answer) => Event::Ping(answer),
                Event::Pong => Event::Pong,
                Event::Close(answer) => Event::Close(answer),
            }));
            at += size;
            if size == 0 {
                decoder.put_back(kept, at);
                return Ok(events);
            }
        }
    }

    #[test]
    fn no_buffer_is_held_between_messages() {
        let mut decoder = Decoder::default();
        let bytes = [frame(0x01, b"hello "), frame(0x89, b"ping"), frame(0x80, &[b'x'; 200])].concat();
        for byte in &bytes[..bytes.len() - 1] {
            let events = all(&mut decoder, &[*byte]).unwrap();
            assert!(events.iter().all(|event| *event == Event::Ping(Bytes::from_static(b"\x8a\x04ping"))));
            assert!(decoder.partial.is_some());
        }
        let events = all(&mut decoder, &bytes[bytes.len() - 1..]).unwrap();
        assert_eq!(events, [Event::Text(format!("hello {}", "x".repeat(200)).into())]);
        assert!(decoder.partial.is_none());
    }

    #[test]
    fn whole_fragments_leave_no_buffer_behind() {
        let mut decoder = Decoder::default();
        let mut bytes = frame(0x01, b"a");
        assert!(matches!(decoder.decode(&mut bytes, LIMIT, None), Ok(Decoded { size: 7, event: None, .. })));
        assert!(!decoder.is_empty());
        let mut bytes = frame(0x80, b"b");
        let decoded = decoder.decode(&mut bytes, LIMIT, None).unwrap();
        assert!(matches!(decoded, Decoded { size: 7, event: Some(Event::Text(_)), inflating: 0 }));
        assert!(decoder.partial.is_none());
    }

    #[test]
    fn several_messages_come_one_by_one() {
        let mut decoder = Decoder::default();
        let bytes = [frame(0x81, b"a"), frame(0x82, b"b"), frame(0x8a, b""), frame(0x81, b"c")].concat();
        let events = all(&mut decoder, &bytes[..26]).unwrap();
        assert_eq!(events, [Event::Text("a".into()), Event::Binary(b"b"[..].into()), Event::Pong]);
        assert!(decoder.keeps());
        assert_eq!(all(&mut decoder, &bytes[26..]).unwrap(), [Event::Text("c".into())]);
        assert!(decoder.partial.is_none());
    }

    #[test]
    fn pings_are_taken_out_of_the_kept_bytes_and_the_rest_stays() {
        let mut decoder = Decoder::default();
        let ping = |text: &[u8]| frame(0x89, text);
        let messages = [frame(0x01, b"a"), frame(0x80, &[b'x'; 300]), frame(0x82, b"b"), frame(0x88, b"\x03\xe8")];
        let bytes = [
            &messages[0],
            &ping(b"1"),
            &messages[1],
            &frame(0x8a, b""),
            &ping(b"2"),
            &messages[2],
            &messages[3],
            &ping(b"after the close"),
        ];
        let mut pongs = Vec::new();
        for byte in bytes.into_iter().flatten() {
            decoder.keep(&[*byte]);
            decoder.take_pings(LIMIT, |pong| {
                pongs.push(pong);
                true
            });
        }
        assert_eq!(pongs, [&b"\x8a\x011"[..], b"\x8a\x012"]);
        assert_eq!(decoder.take_kept(), [&messages.concat()[..], &ping(b"after the close")].concat());
        // A ping that is not answered stays.
        let mut decoder = Decoder::default();
        decoder.keep(&[ping(b"1"), ping(b"2")].concat());
        let mut count = 0;
        let mut first = |_| std::mem::replace(&mut count, 1) == 0;
        decoder.take_pings(LIMIT, &mut first);
        assert_eq!(decoder.kept(), ping(b"2").len());
        decoder.take_pings(LIMIT, |_| true);
        assert!(decoder.partial.is_none());
        // Invalid, too large and incomplete frames are handled in their order.
        for bytes in
            [frame(0x83, b"x"), frame(0x09, b"x"), frame(0x81, &[0; 1001])[..8].to_vec(), ping(b"x")[..6].to_vec()]
        {
            decoder.keep(&bytes);
            decoder.take_pings(LIMIT, |_| panic!("{bytes:?}"));
            assert_eq!(decoder.take_kept(), bytes);
        }
    }

    #[test]
    fn an_error_of_the_protocol_has_its_close_code() {
        for (bytes, code) in [
            (frame(0x81, b"\xff"), CloseCode::NotUtf8),
            ([frame(0x01, b"\xc3"), frame(0x80, b"x")].concat(), CloseCode::NotUtf8),
            (frame(0x81, &[b'x'; 1001]), CloseCode::TooLarge),
            (frame(0x81, &[b'x'; 1001])[..8].to_vec(), CloseCode::TooLarge),
            ([frame(0x01, &[b'x'; 600]), frame(0x80, &[b'x'; 600])].concat(), CloseCode::TooLarge),
            (frame(0x80, b"x"), CloseCode::Protocol),
            (frame(0xc1, b"x"), CloseCode::Protocol),
            (frame(0x83, b"x"), CloseCode::Protocol),
            (frame(0x8b, b"x"), CloseCode::Protocol),
            (frame(0x09, b"x"), CloseCode::Protocol),
            (frame(0x89, &[b'x'; 126]), CloseCode::Protocol),
            (frame(0x88, b"x"), CloseCode::Protocol),
            (vec![0x81, 1, b'x'], CloseCode::Protocol),
            ([frame(0x01, b"a"), frame(0x81, b"b")].concat(), CloseCode::Protocol),
        ] {
            let error = all(&mut Decoder::default(), &bytes).expect_err(&format!("{bytes:?}"));
            assert_eq!(error.code, code, "{bytes:?} {}", error.reason);
        }
    }

    #[test]
    fn a_close_is_answered_with_its_code() {
        let events = all(&mut Decoder::default(), &frame(0x88, b"\x03\xe8bye")).unwrap();
        assert_eq!(events, [Event::Close(Bytes::from_static(b"\x88\x05\x03\xe8bye"))]);
    }

    /// Returns the events as text, up to a close frame, and the code of the error.
    fn events_of(pieces: impl Iterator<Item = Vec<u8>>, deflate: Option<Deflate>) -> (Vec<String>, Option<CloseCode>) {
        let (mut decoder, mut told) = (Decoder::default(), Vec::new());
        for piece in pieces {
            decoder.keep(&piece);
            let mut kept = decoder.take_kept();
            let mut at = 0;
            loop {
                match decoder.decode(&mut kept[at..], LIMIT, deflate) {
                    Ok(Decoded { size: 0, .. }) => break,
                    Ok(Decoded { size, event, .. }) => {
                        at += size;
                        told.extend(event.as_ref().map(|event| format!("{event:?}")));
                        if matches!(event, Some(Event::Close(_))) {
                            return (told, None);
                        }
                    }
                    Err(broken) => return (told, Some(broken.code)),
                }
            }
            decoder.put_back(kept, at);
        }
        (told, None)
    }

    #[test]
    fn hostile_frames_are_read_alike_in_one_piece_and_in_many() {
        let corpus = [
            [frame(0x81, b"{\"action\":\"a\"}"), frame(0x89, b"ping"), frame(0x8a, b"")].concat(),
            [frame(0x01, b"\xc3"), frame(0x00, b"\xa4"), frame(0x80, b"x")].concat(),
            [frame(0x02, b"ab"), frame(0x89, b""), frame(0x80, &[b'x'; 200])].concat(),
            frame(0x88, b"\x03\xe8bye"),
            frame(0x82, &[7; 126]),
        ];
        let corpus: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
        read_alike_in_pieces(&corpus, None);
    }

    /// Searches for frames that are read in another way if they come byte by byte.
    pub(in crate::ws) fn read_alike_in_pieces(corpus: &[&[u8]], deflate: Option<Deflate>) {
        crate::fuzz::search(corpus, |input| {
            let (whole, broken) = events_of(std::iter::once(input.to_vec()), deflate);
            let (pieces, broken_in_pieces) = events_of(input.iter().map(|byte| vec![*byte]), deflate);
            let same = broken == broken_in_pieces && whole == pieces;
            same.then_some(()).ok_or_else(|| format!("{whole:?} {broken:?}, in pieces {pieces:?} {broken_in_pieces:?}"))
        });
    }

    #[test]
    fn a_connection_that_closes_skips_messages_up_to_the_close_frame() {
        let closes = |decoder: &mut Decoder, bytes: &[u8]| {
            let (mut bytes, mut at) = (bytes.to_vec(), 0);
            loop {
                match decoder.decode_close(&mut bytes[at..], LIMIT) {
                    Ok(Decoded { size: 0, .. }) => return Ok(None),
                    Ok(Decoded { event: Some(event), .. }) => return Ok(Some(event)),
                    Ok(Decoded { size, .. }) => at += size,
                    Err(broken) => return Err(broken.code),
                }
            }
        };
        // These end a connection that is open.
        let skipped = [
            frame(0x81, b"\xff"),
            frame(0xc1, b"cannot be inflated"),
            frame(0x80, b"continues nothing"),
            [frame(0x41, b"a"), frame(0x81, b"b")].concat(),
        ];
        let others = [frame(0x01, b"a"), frame(0x89, b"ping"), frame(0x8a, b""), frame(0x82, &[7; 300])];
        let close = frame(0x88, b"\x03\xe8");
        for frames in skipped.iter().chain(&others).chain([&skipped.concat(), &others.concat(), &Vec::new()]) {
            for begun in [&b""[..], &frame(0x01, b"a"), &frame(0x41, b"a")] {
                let deflate = crate::ws::deflate::answer([&b"permessage-deflate"[..]], 256).map(|(deflate, _)| deflate);
                if begun.first() == Some(&0x41) && deflate.is_none() {
                    continue;
                }
                let mut decoder = Decoder::default();
                decode_all(&mut decoder, begun, deflate).unwrap();
                assert_eq!(closes(&mut decoder, frames), Ok(None), "{frames:02x?}");
                assert!(frames.is_empty() || decoder.partial.is_none());
                let closed = Event::Close(Bytes::from_static(b"\x88\x02\x03\xe8"));
                assert_eq!(closes(&mut decoder, &close), Ok(Some(closed)), "{frames:02x?}");
            }
        }
        for (bytes, code) in [
            (frame(0x83, b"x"), CloseCode::Protocol),
            (frame(0xa1, b"x"), CloseCode::Protocol),
            (frame(0x09, b"x"), CloseCode::Protocol),
            (frame(0x89, &[b'x'; 126]), CloseCode::Protocol),
            (vec![0x81, 1, b'x'], CloseCode::Protocol),
            (frame(0x81, &[b'x'; 1001])[..8].to_vec(), CloseCode::TooLarge),
        ] {
            assert_eq!(closes(&mut Decoder::default(), &bytes), Err(code), "{bytes:02x?}");
        }
    }

    #[test]
    fn a_close_amid_a_message_is_one() {
        let bytes = [frame(0x01, b"a"), frame(0x88, b"\x03\xe8")].concat();
        let events = all(&mut Decoder::default(), &bytes).unwrap();
        assert_eq!(events, [Event::Close(Bytes::from_static(b"\x88\x02\x03\xe8"))]);
    }
}
