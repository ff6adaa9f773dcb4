//! The rules of RFC 6455 on frames, messages and closing: a table of cases with bytes in and frames out. An echo server
//! is tested over a TCP socket, over TLS, and over another kind of stream, as with other frameworks; each time with
//! clients that negotiate compression (RFC 7692) and with others.

use std::{fmt, time::Duration};

use serde_json::json;
use tests::{
    client::soon,
    deflate::{COMPRESSED, OFFER, compress, inflate},
    message,
    streams::{STREAMS, Served, Stream, UNANNOUNCED},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split},
    task::yield_now,
    time::timeout,
};
use ws_cluster::{Config, MemoryPool, Server, Target};

/// Maximum size of a client's message.
const LIMIT: usize = 1024 * 1024;

/// Maximum time for a case. Only a failing case takes so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// First bytes of frames: whole messages and control frames.
const TEXT: u8 = 0x81;
const BINARY: u8 = 0x82;
const CLOSE: u8 = 0x88;
const PING: u8 = 0x89;
const PONG: u8 = 0x8a;
/// First bytes of frames: fragments.
const FIRST_TEXT: u8 = 0x01;
const FIRST_BINARY: u8 = 0x02;
const NEXT: u8 = 0x00;
const LAST: u8 = 0x80;

const MASK: [u8; 4] = [0x37, 0xfa, 0x21, 0x3d];

/// Returns a frame as a client sends it.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = header(first, payload.len() as u64);
    frame.extend(payload.iter().zip(MASK.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

/// Returns the header of a frame.
fn header(first: u8, size: u64) -> Vec<u8> {
    let mut header = match size {
        0..126 => vec![first, 0x80 | size as u8],
        126..0x1_0000 => [&[first, 0x80 | 126][..], &(size as u16).to_be_bytes()].concat(),
        _ => [&[first, 0x80 | 127][..], &size.to_be_bytes()].concat(),
    };
    header.extend(MASK);
    header
}

/// Returns the payload of a close frame.
fn reason(code: u16, text: &[u8]) -> Vec<u8> {
    [&code.to_be_bytes(), text].concat()
}

/// Returns a text that changes at any cut: its characters have several bytes, and no two parts are equal.
fn text(size: usize) -> Vec<u8> {
    let numbers = (0..).flat_map(|number: u32| format!("{number}€").into_bytes());
    let mut text: Vec<u8> = numbers.take(size).collect();
    let whole = std::str::from_utf8(&text).map_or_else(|cut| cut.valid_up_to(), str::len);
    text[whole..].fill(b'.');
    text
}

fn bytes(size: usize) -> Vec<u8> {
    (0..size).map(|index| (index * 31 / 7) as u8).collect()
}

/// A frame as it comes from the server.
#[derive(PartialEq)]
struct Answer {
    first: u8,
    payload: Vec<u8>,
}

impl fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, payload } = self;
        let shown = &payload[..payload.len().min(32)];
        write!(formatter, "{first:#04x} of {} bytes \"{}\"", payload.len(), shown.escape_ascii())
    }
}

impl Answer {
    /// Inflates the message if it is compressed.
    fn inflate(&mut self) {
        if self.first & COMPRESSED > 0 {
            assert!(matches!(self.first, 0xc1 | 0xc2), "{self:?}");
            self.first &= !COMPRESSED;
            self.payload = inflate(&self.payload);
        }
    }
}

fn answer(first: u8, payload: impl Into<Vec<u8>>) -> Answer {
    Answer { first, payload: payload.into() }
}

/// Parses the bytes that the server sent.
fn answers(mut bytes: &[u8]) -> Result<Vec<Answer>, String> {
    let mut answers = Vec::new();
    while let [first, size, rest @ ..] = bytes {
        let (size, rest) = match (size, rest) {
            (0..126, _) => (u64::from(*size), rest),
            (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), rest),
            (127, [a, b, c, d, e, f, g, h, rest @ ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), rest),
            (126.., _) => return Err(format!("a masked frame or half a header: {:02x?}", &bytes[..2])),
        };
        let head = bytes.len() - rest.len();
        if head + MASK.len() != header(*first, size).len() {
            return Err(format!("{size} bytes with a header of {head}"));
        }
        let Some((payload, rest)) = rest.split_at_checked(size as usize) else {
            return Err(format!("{} bytes of a frame of {size}", rest.len()));
        };
        answers.push(answer(*first, payload));
        bytes = rest;
    }
    match bytes {
        [] => Ok(answers),
        _ => Err("half a header".to_owned()),
    }
}

/// The end of a case.
#[derive(Clone, Copy)]
enum End {
    /// The client closes after everything else, and the close is answered, so everything before it was correct.
    Normal,
    /// The connection ends as the case says, and nothing more comes.
    Over,
    /// The server closes with this code.
    Failed(u16),
}

struct Case {
    name: String,
    /// The bytes that the client sends.
    sent: Vec<u8>,
    /// The frames that come back, except for a close frame that the end determines.
    expected: Vec<Answer>,
    end: End,
    /// True if the client reads only once it has sent everything.
    late: bool,
    /// True if the bytes come together with the upgrade request.
    early: bool,
    /// True if the client then shuts its writing side down.
    half_closed: bool,
    /// True for clients that negotiate compression, false for others, `None` for both.
    compressed: Option<bool>,
}

impl Case {
    fn new(name: impl Into<String>, sent: Vec<u8>, expected: impl Into<Vec<Answer>>, end: End) -> Self {
        let expected = expected.into();
        Self { name: name.into(), sent, expected, end, late: false, early: false, half_closed: false, compressed: None }
    }

    fn works(name: impl Into<String>, sent: Vec<u8>, expected: impl Into<Vec<Answer>>) -> Self {
        Self::new(name, sent, expected, End::Normal)
    }

    fn fails(name: impl Into<String>, sent: Vec<u8>, code: u16) -> Self {
        Self::new(name, sent, [], End::Failed(code))
    }

    fn late(self) -> Self {
        Self { late: true, ..self }
    }

    fn early(self) -> Self {
        Self { early: true, ..self }
    }

    fn half_closed(self) -> Self {
        Self { half_closed: true, ..self }
    }

    /// The case is for clients that negotiate compression, or for those that do not.
    fn only(self, compressed: bool) -> Self {
        Self { compressed: Some(compressed), ..self }
    }

    /// Sends the bytes of the case in pieces of this size, and compares the answers.
    async fn play(&self, stream: Box<dyn Stream>, piece: usize, compressed: bool) -> Result<(), String> {
        let mut sent = self.sent.clone();
        if let End::Normal = self.end {
            sent.extend(frame(CLOSE, &reason(1000, b"")));
        }
        let (mut reading, mut writing) = split(stream);
        let (early, sent) = sent.split_at(if self.early { sent.len() } else { 0 });
        let mut came = Vec::new();
        let exchange = async {
            upgrade(&mut reading, &mut writing, early, compressed).await?;
            let write = async {
                for piece in sent.chunks(piece) {
                    // The case decides whether the server may close before it has taken everything.
                    let _ = writing.write_all(piece).await;
                    // The server reads what has come until now.
                    yield_now().await;
                }
                if self.half_closed {
                    writing.shutdown().await.map_err(|error| error.to_string())?;
                }
                Ok(())
            };
            let read = async {
                while reading.read_buf(&mut came).await.map_err(|error| error.to_string())? > 0 {}
                Ok::<_, String>(())
            };
            match self.late {
                true => {
                    write.await?;
                    read.await
                }
                false => tokio::try_join!(write, read).map(drop),
            }
        };
        let end = timeout(PATIENCE, exchange).await.unwrap_or_else(|_| Err("no end".to_owned()));
        let mut came = answers(&came)?;
        if compressed {
            came.iter_mut().for_each(Answer::inflate);
        }
        end.map_err(|error| format!("{error} after {came:?}"))?;
        let closed = match self.end {
            End::Normal => (came.pop() == Some(answer(CLOSE, reason(1000, b"")))).then_some(()),
            End::Failed(code) => came.pop().filter(|last| is_close(last, code)).map(drop),
            End::Over => Some(()),
        };
        if closed.is_none() || came != self.expected {
            return Err(format!("{came:?}, closed as expected: {}; expected: {:?}", closed.is_some(), self.expected));
        }
        Ok(())
    }
}

/// Returns true for a close frame with this code and a reason that is UTF-8.
fn is_close(answer: &Answer, code: u16) -> bool {
    match &answer.payload[..] {
        [a, b, reason @ ..] => {
            answer.first == CLOSE
                && u16::from_be_bytes([*a, *b]) == code
                && (1..=123).contains(&reason.len())
                && std::str::from_utf8(reason).is_ok()
        }
        _ => false,
    }
}

/// Opens a connection with the example of the RFC, and sends the first bytes right after it.
async fn upgrade(
    reading: &mut (impl AsyncRead + Unpin),
    writing: &mut (impl AsyncWrite + Unpin),
    early: &[u8],
    compressed: bool,
) -> Result<(), String> {
    let offer = if compressed { format!("Sec-WebSocket-Extensions: {OFFER}\r\n") } else { String::new() };
    let request = "GET /WebSockets HTTP/1.1\r\nHost: server.example.com\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n";
    let request = format!("{request}{offer}\r\n");
    writing.write_all(&[request.as_bytes(), early].concat()).await.map_err(|error| error.to_string())?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(reading.read_u8().await.map_err(|error| format!("{error} in the head of the response"))?);
    }
    let head = String::from_utf8(head).map_err(|error| error.to_string())?;
    let agrees = head.starts_with("HTTP/1.1 101 ") && head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    match agrees && head.to_lowercase().contains("sec-websocket-extensions") == compressed {
        true => Ok(()),
        false => Err(head),
    }
}

/// Returns a server that echoes.
async fn echo() -> Served {
    let mut config = Config::default();
    config.connection.message_size = LIMIT;
    config.connection.queue_size = 64 * LIMIT;
    config.connection.messages_per_second = 1_000_000;
    config.connection.message_burst = 1_000_000;
    let server = Server::builder(MemoryPool::default()).raw(Some).config(config).start().await.unwrap();
    server.wait_ready().await;
    Served::start(server).await
}

/// Plays each case over all streams, at once and in pieces.
///
/// # Panics
/// Panics with all failing cases if there are any.
async fn hold(cases: impl IntoIterator<Item = Case>) {
    let echo = echo().await;
    let mut failures = Vec::new();
    for case in cases {
        // Small cases go byte by byte. Large ones go in pieces that share no multiple with a boundary in the table.
        let small = if case.sent.len() <= 1024 { 1 } else { 997 };
        let played =
            [false, true].into_iter().filter(|compressed| case.compressed.is_none_or(|only| only == *compressed));
        for (piece, compressed) in played.flat_map(|compressed| [(usize::MAX, compressed), (small, compressed)]) {
            for over in STREAMS.into_iter().chain(case.half_closed.then_some(UNANNOUNCED)) {
                if let Err(failure) = case.play(echo.stream(over).await, piece, compressed).await {
                    let (name, with) = (&case.name, if compressed { "with" } else { "without" });
                    failures.push(format!("{name} (over {over}, pieces of {piece}, {with} compression): {failure}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} failed:\n{}", failures.len(), failures.join("\n"));
}

#[tokio::test]
async fn messages_come_back_as_they_are() {
    let sizes = [0, 1, 125, 126, 127, 65535, 65536, LIMIT];
    let texts = sizes.map(|size| (TEXT, "text", text(size)));
    let binaries = sizes.map(|size| (BINARY, "binary", bytes(size)));
    let single = texts.into_iter().chain(binaries).map(|(first, kind, payload)| {
        let name = format!("{kind} of {} bytes", payload.len());
        Case::works(name, frame(first, &payload), [answer(first, payload)])
    });
    let several = || (0..300).map(|number| format!("number {number}").into_bytes());
    let many = || several().flat_map(|payload| frame(TEXT, &payload)).collect();
    let comes: fn() -> Vec<Answer> = || (0..300).map(|number| answer(TEXT, format!("number {number}"))).collect();
    hold(single.chain([
        Case::works("many messages at once", many(), comes()),
        Case::works("messages along with the upgrade request", many(), comes()).early(),
        Case::works(
            "a length in more bytes than it needs",
            [&[TEXT, 0x80 | 127, 0, 0, 0, 0, 0, 0, 0, 2][..], &[0; 4], b"hi"].concat(),
            [answer(TEXT, "hi")],
        ),
    ]))
    .await;
}

#[tokio::test]
async fn pings_are_answered() {
    let many: Vec<Vec<u8>> = (0..500).map(|number| format!("{number}").into_bytes()).collect();
    hold([
        Case::works("an empty ping", frame(PING, b""), [answer(PONG, "")]),
        Case::works("a ping with a payload", frame(PING, b"are you there?"), [answer(PONG, "are you there?")]),
        Case::works("a ping of 125 bytes", frame(PING, &bytes(125)), [answer(PONG, bytes(125))]),
        Case::works("a ping that is not UTF-8", frame(PING, b"\xff\xfe\x00"), [answer(PONG, b"\xff\xfe\x00")]),
        Case::works(
            "many pings at once",
            many.iter().flat_map(|payload| frame(PING, payload)).collect(),
            many.iter().map(|payload| answer(PONG, payload.clone())).collect::<Vec<_>>(),
        ),
        Case::works(
            "pings amid a message of several frames",
            [
                frame(FIRST_TEXT, b"one "),
                frame(PING, b"a"),
                frame(NEXT, b"two "),
                frame(PING, b"b"),
                frame(PING, b"c"),
                frame(LAST, b"three"),
            ]
            .concat(),
            [answer(PONG, "a"), answer(PONG, "b"), answer(PONG, "c"), answer(TEXT, "one two three")],
        ),
        Case::works(
            "pongs that nobody asked for",
            [frame(PONG, b""), frame(PONG, &bytes(125)), frame(TEXT, b"x"), frame(PONG, b"x")].concat(),
            [answer(TEXT, "x")],
        ),
        Case::works(
            "a pong and a ping amid a message",
            [frame(FIRST_BINARY, b"1"), frame(PONG, b"x"), frame(PING, b"y"), frame(LAST, b"2")].concat(),
            [answer(PONG, "y"), answer(BINARY, "12")],
        ),
        Case::fails("a ping of 126 bytes", frame(PING, &bytes(126)), 1002),
        Case::fails("a pong of 126 bytes", frame(PONG, &bytes(126)), 1002),
        Case::fails("a ping in fragments", [frame(0x09, b"a"), frame(LAST, b"b")].concat(), 1002),
        Case::fails("a pong in fragments", [frame(0x0a, b"a"), frame(LAST, b"b")].concat(), 1002),
        Case::fails("a close in fragments", frame(0x08, &reason(1000, b"")), 1002),
    ])
    .await;
}

/// Returns a message in fragments of this size.
fn fragments(first: u8, payload: &[u8], size: usize) -> Vec<u8> {
    let count = payload.len().div_ceil(size);
    let frames = payload.chunks(size).enumerate().map(|(index, part)| {
        let opcode = if index == 0 { first & 0x0f } else { NEXT };
        frame(opcode | if index + 1 == count { LAST } else { 0 }, part)
    });
    frames.flatten().collect()
}

#[tokio::test]
async fn fragments_are_joined() {
    let texts = [(120, 60), (120, 40), (120, 12), (120, 1), (100_000, 4_096), (LIMIT, 65_536), (LIMIT, LIMIT - 1)];
    let joined = texts.into_iter().flat_map(|(whole, size)| {
        [(TEXT, text(whole)), (BINARY, bytes(whole))].map(|(first, payload)| {
            let name = format!("{first:#04x} of {whole} bytes in fragments of {size}");
            Case::works(name, fragments(first, &payload, size), [answer(first, payload)])
        })
    });
    hold(
        joined.chain([
            Case::works(
                "empty fragments",
                [frame(FIRST_TEXT, b""), frame(NEXT, b""), frame(NEXT, b"x"), frame(NEXT, b""), frame(LAST, b"")]
                    .concat(),
                [answer(TEXT, "x")],
            ),
            Case::works(
                "nothing but empty fragments",
                [frame(FIRST_BINARY, b""), frame(NEXT, b""), frame(LAST, b"")].concat(),
                [answer(BINARY, "")],
            ),
            Case::works(
                "one message in fragments after the other",
                [
                    fragments(TEXT, b"first", 2),
                    frame(TEXT, b"second"),
                    fragments(BINARY, b"third", 1),
                    fragments(TEXT, b"fourth", 3),
                ]
                .concat(),
                [answer(TEXT, "first"), answer(TEXT, "second"), answer(BINARY, "third"), answer(TEXT, "fourth")],
            ),
            Case::fails("a continuation of nothing", frame(NEXT, b"x"), 1002),
            Case::fails("a last fragment of nothing", frame(LAST, b"x"), 1002),
            Case::fails("text amid a message", [frame(FIRST_TEXT, b"a"), frame(TEXT, b"b")].concat(), 1002),
            Case::fails(
                "a message begun amid another",
                [frame(FIRST_TEXT, b"a"), frame(FIRST_BINARY, b"b")].concat(),
                1002,
            ),
            Case::new(
                "a continuation after the last fragment",
                [frame(FIRST_TEXT, b"a"), frame(LAST, b"b"), frame(LAST, b"c")].concat(),
                [answer(TEXT, "ab")],
                End::Failed(1002),
            ),
        ]),
    )
    .await;
}

#[tokio::test]
async fn frames_that_the_protocol_forbids_end_the_connection() {
    let reserved_bits = [0x40, 0x20, 0x10, 0x70].into_iter().flat_map(|bits| {
        [TEXT, BINARY, FIRST_TEXT, PING, PONG, CLOSE].map(|first| {
            let name = format!("{first:#04x} with the reserved bits {bits:#04x}");
            let case = Case::fails(name, frame(first | bits, b""), 1002);
            // The bit of compression.
            if bits == COMPRESSED && first & 0x08 == 0 { case.only(false) } else { case }
        })
    });
    let reserved_bits_amid = Case::fails(
        "a continuation with a reserved bit",
        [frame(FIRST_TEXT, b"a"), frame(LAST | 0x40, b"b")].concat(),
        1002,
    );
    let opcodes = [3, 4, 5, 6, 7, 11, 12, 13, 14, 15].into_iter().flat_map(|opcode| {
        [LAST | opcode, opcode].map(|first| {
            let name = format!("the reserved opcode {opcode}, first byte {first:#04x}");
            Case::fails(name, frame(first, b"x"), 1002)
        })
    });
    let unmasked = [TEXT, BINARY, FIRST_TEXT, PING, PONG, CLOSE]
        .map(|first| Case::fails(format!("{first:#04x} without a mask"), vec![first, 2, 3, 232], 1002));
    let before = Case::new(
        "a good message before one without a mask",
        [frame(TEXT, b"good"), vec![TEXT, 1, b'x']].concat(),
        [answer(TEXT, "good")],
        End::Failed(1002),
    );
    let after = Case::fails(
        "much after a frame that is forbidden",
        [frame(0x83, b"x"), frame(TEXT, &text(200_000)), frame(CLOSE, &reason(1000, b""))].concat(),
        1002,
    );
    hold(reserved_bits.chain(opcodes).chain(unmasked).chain([reserved_bits_amid, before, after])).await;
}

/// Returns the fragments of a compressed message.
fn compressed_fragments(first: u8, message: &[u8], size: usize) -> Vec<u8> {
    let mut fragments = fragments(first, &compress(message), size);
    fragments[0] |= COMPRESSED;
    fragments
}

#[tokio::test]
async fn compressed_messages_come_back_as_they_are() {
    let sizes = [0, 1, 125, 255, 256, 65_535, 65_536, LIMIT];
    let single = sizes.into_iter().flat_map(|size| {
        [(TEXT, text(size)), (BINARY, bytes(size))].map(|(first, message)| {
            let name = format!("compressed {first:#04x} of {size} bytes");
            Case::works(name, frame(first | COMPRESSED, &compress(&message)), [answer(first, message)])
        })
    });
    let fragmented = [(120, 1), (120, 40), (100_000, 4_096), (LIMIT, 997)].into_iter().flat_map(|(size, part)| {
        [(TEXT, text(size)), (BINARY, bytes(size))].map(|(first, message)| {
            let name = format!("compressed {first:#04x} of {size} bytes in fragments of {part}");
            Case::works(name, compressed_fragments(first, &message, part), [answer(first, message)])
        })
    });
    let hello = || compress(b"Hello");
    let bomb = || compress(&vec![b'x'; 100 * LIMIT]);
    let mixed = [
        frame(TEXT, b"plain"),
        frame(TEXT | COMPRESSED, &hello()),
        fragments(TEXT, b"in parts", 3),
        compressed_fragments(TEXT, b"compressed in parts", 3),
        frame(TEXT, b"plain"),
    ];
    let mixed_answers = ["plain", "Hello", "in parts", "compressed in parts", "plain"];
    let cases = single.chain(fragmented).chain([
        Case::works("plain messages beside them", mixed.concat(), mixed_answers.map(|text| answer(TEXT, text))),
        Case::works("along with the upgrade", mixed.concat(), mixed_answers.map(|text| answer(TEXT, text))).early(),
        Case::works("an empty payload", frame(TEXT | COMPRESSED, b""), [answer(TEXT, "")]),
        Case::works(
            "control frames amid one",
            [
                frame(FIRST_TEXT | COMPRESSED, &hello()[..3]),
                frame(PING, b"a"),
                frame(PONG, b""),
                frame(LAST, &hello()[3..]),
            ]
            .concat(),
            [answer(PONG, "a"), answer(TEXT, "Hello")],
        ),
        Case::new(
            "a close amid one",
            [frame(FIRST_TEXT | COMPRESSED, &hello()), frame(CLOSE, b""), frame(LAST, b"")].concat(),
            [answer(CLOSE, "")],
            End::Over,
        ),
        Case::fails(
            "the bit on a continuation",
            [frame(FIRST_TEXT | COMPRESSED, &hello()[..3]), frame(LAST | COMPRESSED, &hello()[3..])].concat(),
            1002,
        ),
        Case::fails("text amid one", [frame(FIRST_TEXT | COMPRESSED, &hello()), frame(TEXT, b"a")].concat(), 1002),
        Case::fails("another bit as well", frame(TEXT | COMPRESSED | 0x20, &hello()), 1002),
        Case::fails("no mask", [&[TEXT | COMPRESSED, hello().len() as u8], &hello()[..]].concat(), 1002),
        Case::fails("no stream", frame(BINARY | COMPRESSED, &[0xff; 10]), 1007),
        Case::fails("a stream that ends early", frame(TEXT | COMPRESSED, &hello()[..4]), 1007),
        Case::fails("not UTF-8", frame(TEXT | COMPRESSED, &compress(b"a\xff")), 1007),
        Case::fails("a bomb", frame(TEXT | COMPRESSED, &bomb()), 1009),
        Case::fails("a bomb in fragments", compressed_fragments(TEXT, &vec![b'x'; 100 * LIMIT], 10_000), 1009),
        Case::fails("one byte over the limit", frame(BINARY | COMPRESSED, &compress(&bytes(LIMIT + 1))), 1009),
    ]);
    hold(cases.map(|case| case.only(true))).await;
}

#[tokio::test]
async fn text_is_utf8() {
    let valid = [
        ("the first code point", &b"\0"[..]),
        ("the last code point", "\u{10ffff}".as_bytes()),
        ("code points around the surrogates", "\u{d7ff}\u{e000}".as_bytes()),
        ("code points of every length", "\u{7f}\u{80}\u{7ff}\u{800}\u{ffff}\u{10000}".as_bytes()),
        ("text", "Hello-µ@ßöäüàá-UTF-8!! κόσμε 🎈".as_bytes()),
    ];
    let valid = valid.into_iter().flat_map(|(name, text)| {
        [
            Case::works(name, frame(TEXT, text), [answer(TEXT, text)]),
            Case::works(format!("{name}, cut within characters"), fragments(TEXT, text, 1), [answer(TEXT, text)]),
        ]
    });
    let invalid: [(&str, &[u8]); 13] = [
        ("a byte that no character has", b"a\xff"),
        ("a continuation byte alone", b"a\x80b"),
        ("a lead byte alone", b"a\xc3b"),
        ("text cut at its end, two bytes", "aß".as_bytes().split_last().unwrap().1),
        ("text cut at its end, three bytes", "a€".as_bytes().split_last().unwrap().1),
        ("text cut at its end, four bytes", "a🎈".as_bytes().split_last().unwrap().1),
        ("the first surrogate", b"\xed\xa0\x80"),
        ("the last surrogate", b"\xed\xbf\xbf"),
        ("a pair of surrogates", b"\xed\xa0\x80\xed\xb0\x80"),
        ("overlong, two bytes", b"\xc0\xaf"),
        ("overlong, three bytes", b"\xe0\x80\xaf"),
        ("overlong, four bytes", b"\xf0\x80\x80\xaf"),
        ("beyond the last code point", b"\xf4\x90\x80\x80"),
    ];
    let invalid = invalid.into_iter().flat_map(|(name, text)| {
        let long = [&b"x".repeat(70_000)[..], text].concat();
        [
            Case::fails(name, frame(TEXT, text), 1007),
            Case::fails(format!("{name}, in fragments"), fragments(TEXT, text, 1), 1007),
            Case::fails(format!("{name}, at the end of much"), frame(TEXT, &long), 1007),
        ]
    });
    hold(valid.chain(invalid).chain([
        Case::works(
            "binary need not be UTF-8",
            fragments(BINARY, b"\xff\xc0\x80", 1),
            [answer(BINARY, b"\xff\xc0\x80")],
        ),
        Case::works(
            "a character around a ping",
            [frame(FIRST_TEXT, b"\xe2\x82"), frame(PING, b"\x82"), frame(LAST, b"\xac")].concat(),
            [answer(PONG, b"\x82"), answer(TEXT, "€")],
        ),
        Case::fails(
            "a fragment that is not UTF-8, before the last one comes",
            [frame(FIRST_TEXT, "κόσμε".as_bytes()), frame(NEXT, b"\xf4\x90\x80\x80")].concat(),
            1007,
        ),
    ]))
    .await;
}

#[tokio::test]
async fn closing_is_answered() {
    let codes = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 3999, 4000, 4999];
    let valid = codes.map(|code| (format!("code {code}"), reason(code, b"")));
    let valid = valid.into_iter().chain([
        ("no code".to_owned(), Vec::new()),
        ("a reason".to_owned(), reason(1000, "tschüß".as_bytes())),
        ("the longest reason".to_owned(), reason(4000, &[b'x'; 123])),
    ]);
    let valid = valid
        .map(|(name, body)| Case::new(format!("close, {name}"), frame(CLOSE, &body), [answer(CLOSE, body)], End::Over));
    let invalid = [0, 999, 1004, 1005, 1006, 1015, 1016, 2000, 2999, 5000, 65535]
        .map(|code| Case::fails(format!("close, code {code}"), frame(CLOSE, &reason(code, b"")), 1002));
    let bye = || frame(CLOSE, &reason(1000, b"bye"));
    let goodbye = || answer(CLOSE, reason(1000, b"bye"));
    hold(
        valid.chain(invalid).chain([
            Case::fails("close, one byte", frame(CLOSE, b"\x03"), 1002),
            Case::fails("close, 126 bytes", frame(CLOSE, &reason(1000, &[b'x'; 124])), 1002),
            Case::fails("close, the reason is not UTF-8", frame(CLOSE, &reason(1000, b"\xce\xba\xff")), 1007),
            Case::new("close along with the upgrade request", bye(), [goodbye()], End::Over).early(),
            Case::new(
                "close after messages",
                [frame(TEXT, b"a"), frame(PING, b"b"), bye()].concat(),
                [answer(TEXT, "a"), answer(PONG, "b"), goodbye()],
                End::Over,
            ),
            Case::new(
                "close amid a message of several frames",
                [frame(FIRST_TEXT, b"a"), bye(), frame(LAST, b"b")].concat(),
                [goodbye()],
                End::Over,
            ),
            Case::new(
                "messages and a ping after a close",
                [bye(), frame(TEXT, b"a"), frame(PING, b"b"), frame(BINARY, b"c")].concat(),
                [goodbye()],
                End::Over,
            ),
            Case::new("much after a close", [bye(), frame(TEXT, &text(300_000))].concat(), [goodbye()], End::Over),
            Case::new(
                "much before a close and much after it, read late",
                [frame(BINARY, &bytes(LIMIT)), bye(), frame(TEXT, &text(300_000))].concat(),
                [answer(BINARY, bytes(LIMIT)), goodbye()],
                End::Over,
            )
            .late(),
            Case::new("a close after a close", [bye(), frame(CLOSE, b"")].concat(), [goodbye()], End::Over),
            Case::new("nonsense after a close", [bye(), vec![0xff; 20]].concat(), [goodbye()], End::Over),
        ]),
    )
    .await;
}

#[tokio::test]
async fn a_message_that_is_too_large_ends_the_connection() {
    let half = LIMIT / 2;
    hold([
        Case::fails("a message over the limit", frame(BINARY, &bytes(LIMIT + 1)), 1009),
        Case::fails("much over the limit", frame(TEXT, &text(3 * LIMIT)), 1009),
        Case::fails(
            "fragments over the limit",
            [frame(FIRST_BINARY, &bytes(half)), frame(NEXT, &bytes(half)), frame(LAST, b"x")].concat(),
            1009,
        ),
        Case::works(
            "a message after fragments that filled the limit",
            [frame(FIRST_BINARY, &bytes(half)), frame(LAST, &bytes(half)), frame(TEXT, b"x")].concat(),
            [answer(BINARY, [bytes(half), bytes(half)].concat()), answer(TEXT, "x")],
        ),
        Case::fails("a header that says 2^40 bytes", header(BINARY, 1 << 40), 1009),
        Case::fails("a fragment's header that says 2^40 bytes", header(FIRST_TEXT, 1 << 40), 1009),
        Case::fails("a length with the highest bit", header(BINARY, 1 << 63), 1009),
        Case::fails("the largest length", header(TEXT, u64::MAX), 1009),
        Case::fails(
            "a length with the highest bit amid a message",
            [frame(FIRST_TEXT, b"a"), header(LAST, (1 << 63) + 1)].concat(),
            1009,
        ),
    ])
    .await;
}

#[tokio::test]
async fn a_client_that_sends_no_more_still_reads() {
    let payload = |number: usize| bytes(10_000 + number);
    let large = || (0..800).flat_map(|number| frame(BINARY, &payload(number))).collect::<Vec<_>>();
    let comes = || (0..800).map(|number| answer(BINARY, payload(number))).collect::<Vec<_>>();
    let ends = [
        Case::new("the end at once", Vec::new(), [], End::Over),
        Case::new("the end after a message", frame(TEXT, b"a"), [answer(TEXT, "a")], End::Over),
        Case::new("the end after a ping", frame(PING, b"a"), [answer(PONG, "a")], End::Over),
        Case::new("the end after a large message", frame(TEXT, &text(LIMIT)), [answer(TEXT, text(LIMIT))], End::Over),
        Case::new("the end amid a frame", frame(TEXT, b"abc")[..8].to_vec(), [], End::Over),
        Case::new("the end amid a message", frame(FIRST_TEXT, b"a"), [], End::Over),
        Case::new("the end after a close", frame(CLOSE, b""), [answer(CLOSE, "")], End::Over),
        Case::fails("the end after what is forbidden", frame(LAST, b""), 1002),
        Case::new("the end after much that is read late", large(), comes(), End::Over).late(),
        Case::new(
            "the end after much and what is forbidden, read late",
            [large(), frame(LAST, b"")].concat(),
            comes(),
            End::Failed(1002),
        )
        .late(),
    ];
    let much = Case::works("much that is read late", large(), comes()).late();
    hold(ends.map(Case::half_closed).into_iter().chain([much])).await;
}

/// Publishes, which another task writes, while echoes wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn published_messages_come_between_frames() {
    const COUNT: usize = 200;
    let echo = echo().await;
    for (over, compressed) in ["a socket", "a pipe", "TLS"].into_iter().flat_map(|over| [(over, false), (over, true)]) {
        let stream = echo.stream(over).await;
        let (mut reading, mut writing) = split(stream);
        soon(upgrade(&mut reading, &mut writing, b"", compressed)).await.unwrap();
        let publish = async {
            for number in 0..COUNT {
                echo.server
                    .publish(message("news", json!([number, "x".repeat(number * 20)]), Target::all()))
                    .await
                    .unwrap();
            }
        };
        let write = async {
            for number in 0..COUNT {
                writing.write_all(&fragments(BINARY, &bytes(20_000 + number), 7_000)).await.unwrap();
            }
        };
        soon(async { tokio::join!(publish, write) }).await;
        writing.write_all(&frame(CLOSE, b"")).await.unwrap();
        let mut came = Vec::new();
        soon(reading.read_to_end(&mut came)).await.unwrap();
        let mut came = answers(&came).unwrap();
        came.iter_mut().for_each(Answer::inflate);
        assert_eq!(came.pop(), Some(answer(CLOSE, "")));
        let (echoed, published): (Vec<_>, Vec<_>) = came.into_iter().partition(|answer| answer.first == BINARY);
        assert!(echoed.into_iter().map(|answer| answer.payload).eq((0..COUNT).map(|number| bytes(20_000 + number))));
        let numbers = published.iter().map(|answer| {
            let message: serde_json::Value = serde_json::from_slice(&answer.payload).unwrap();
            message["details"][0].as_u64().unwrap()
        });
        assert!(numbers.eq(0..COUNT as u64), "{published:?}");
    }
}
