//! What the decoder makes of the frames of a client that compresses.

use bytes::Bytes;

use super::{Deflate, MAX_WINDOW_BITS, codec::tests::compressed};
use crate::{
    CloseCode,
    ws::decoder::{
        Decoder, Event,
        tests::{LIMIT, decode_all, frame, read_alike_in_pieces},
    },
};

fn deflate() -> Option<Deflate> {
    Some(Deflate::new(256, MAX_WINDOW_BITS))
}

#[test]
fn a_compressed_message_is_inflated_in_one_frame_and_in_many() {
    let hello = compressed("Hellö Hellö".as_bytes());
    let text = Event::Text("Hellö Hellö".into());
    for (bytes, expected) in [
        (frame(0xc1, &hello), text),
        (frame(0xc2, &compressed(b"ab")), Event::Binary(b"ab"[..].into())),
        (frame(0xc1, &[0x00]), Event::Text("".into())),
        (frame(0xc2, &[]), Event::Binary(b""[..].into())),
        ([frame(0x41, &hello[..5]), frame(0x80, &hello[5..])].concat(), Event::Text("Hellö Hellö".into())),
        ([frame(0x41, b""), frame(0x00, &hello), frame(0x80, b"")].concat(), Event::Text("Hellö Hellö".into())),
        // A plain message of a client that may compress.
        (frame(0x81, b"plain"), Event::Text("plain".into())),
        ([frame(0x01, b"pl"), frame(0x80, b"ain")].concat(), Event::Text("plain".into())),
    ] {
        let mut decoder = Decoder::default();
        assert_eq!(decode_all(&mut decoder, &bytes, deflate()).unwrap(), [expected], "{bytes:02x?}");
        assert!(decoder.is_free());
    }
}

#[test]
fn control_frames_come_between_the_frames_of_a_compressed_message() {
    let hello = compressed(b"Hello");
    let bytes = [frame(0x41, &hello[..2]), frame(0x89, b"1"), frame(0x00, &hello[2..4]), frame(0x8a, b"")].concat();
    let mut decoder = Decoder::default();
    let pong = Event::Ping(Bytes::from_static(b"\x8a\x011"));
    assert_eq!(decode_all(&mut decoder, &bytes, deflate()).unwrap(), [pong, Event::Pong]);
    assert!(!decoder.is_empty(), "a connection with half a message is not parked");
    let events = decode_all(&mut decoder, &frame(0x80, &hello[4..]), deflate()).unwrap();
    assert_eq!(events, [Event::Text("Hello".into())]);
    let closed = [frame(0x41, &hello), frame(0x88, b"\x03\xe8")].concat();
    let events = decode_all(&mut Decoder::default(), &closed, deflate()).unwrap();
    assert_eq!(events, [Event::Close(Bytes::from_static(b"\x88\x02\x03\xe8"))]);
}

#[test]
fn a_frame_that_the_rfc_forbids_has_its_close_code() {
    let hello = compressed(b"Hello");
    let large = compressed(&vec![b'x'; LIMIT + 1]);
    let noise: Vec<u8> = (0..600_u32).map(|number| (number.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    for (bytes, code) in [
        // The bit on control frames and on the frames after the first.
        (frame(0xc9, b"x"), CloseCode::Protocol),
        (frame(0xca, b"x"), CloseCode::Protocol),
        (frame(0xc8, b"\x03\xe8"), CloseCode::Protocol),
        (frame(0xc0, &hello), CloseCode::Protocol),
        ([frame(0x41, &hello[..2]), frame(0xc0, &hello[2..])].concat(), CloseCode::Protocol),
        ([frame(0x01, b"a"), frame(0xc0, &hello)].concat(), CloseCode::Protocol),
        // The other bits.
        (frame(0xe1, &hello), CloseCode::Protocol),
        (frame(0xd1, &hello), CloseCode::Protocol),
        ([frame(0x41, &hello[..2]), frame(0xa0, &hello[2..])].concat(), CloseCode::Protocol),
        // Other messages amid the message, and no mask.
        ([frame(0x41, &hello), frame(0x81, b"a")].concat(), CloseCode::Protocol),
        ([frame(0x41, &hello), frame(0xc1, &hello)].concat(), CloseCode::Protocol),
        ([frame(0x01, b"a"), frame(0xc1, &hello)].concat(), CloseCode::Protocol),
        (frame(0xc3, b"x"), CloseCode::Protocol),
        ([&[0xc1, hello.len() as u8], &hello[..]].concat(), CloseCode::Protocol),
        ([&frame(0x41, &hello)[..], &[0x80, 0]].concat(), CloseCode::Protocol),
        // The content.
        (frame(0xc1, &compressed(b"\xff")), CloseCode::NotUtf8),
        (frame(0xc1, &hello[..4]), CloseCode::NotUtf8),
        (frame(0xc2, b"\x07"), CloseCode::NotUtf8),
        // The size, compressed and inflated.
        (frame(0xc1, &large), CloseCode::TooLarge),
        (frame(0xc1, &vec![0; LIMIT + 1])[..8].to_vec(), CloseCode::TooLarge),
        ([frame(0x42, &noise), frame(0x00, &noise)].concat(), CloseCode::TooLarge),
        ([frame(0x41, &large[..3]), frame(0x80, &large[3..])].concat(), CloseCode::TooLarge),
    ] {
        let error = decode_all(&mut Decoder::default(), &bytes, deflate()).expect_err(&format!("{bytes:02x?}"));
        assert_eq!(error.code, code, "{bytes:02x?} {}", error.reason);
        assert!(error.reason.len() <= 123);
    }
    // Without negotiation the bit is one that is reserved.
    for bytes in [frame(0xc1, &hello), frame(0x41, &hello), frame(0xc2, b"")] {
        let error = decode_all(&mut Decoder::default(), &bytes, None).expect_err("no negotiation");
        assert_eq!(error.code, CloseCode::Protocol);
    }
}

#[test]
fn hostile_compressed_frames_are_read_alike_in_one_piece_and_in_many() {
    let text = compressed(b"{\"action\":\"a\",\"details\":[\"Hello\",\"Hello\",\"Hello\"]}");
    let corpus = [
        [frame(0xc1, &text), frame(0x89, b"ping"), frame(0xc2, &compressed(&[7; 400]))].concat(),
        [frame(0x41, &text[..9]), frame(0x00, &text[9..20]), frame(0x80, &text[20..])].concat(),
        [frame(0x42, &compressed(&[b'x'; 900])), frame(0x89, b""), frame(0x80, b"")].concat(),
        [frame(0x41, &text), frame(0x88, b"\x03\xe8bye")].concat(),
    ];
    let corpus: Vec<&[u8]> = corpus.iter().map(Vec::as_slice).collect();
    read_alike_in_pieces(&corpus, deflate());
}
