//! Which messages clients get compressed.

use bytes::Bytes;

use super::*;

const OFFER: &[&[u8]] = &[b"permessage-deflate"];

#[test]
fn a_replay_compresses_large_messages_only_and_none_under_the_lock() {
    let node = Node::new();
    let (ann, _ann) = node.arrive_offering(OFFER, Identity::user("ann"), true);
    let large = |size: usize| {
        let details = format!("[\"{}\"]", "x".repeat(size)).into();
        Content::Message { target: Target::all(), action: "x".into(), details, volatile: false }
    };
    let log_position = LogPosition { term: 1, master: NODE, seq: 1 };
    for (size, is_compressed) in [(1_000, false), (1_900, false), (2_100, true), (100_000, true)] {
        resume::replay(&ann, log_position, &large(size));
        assert_eq!(ann.queue.take()[0], if is_compressed { 0xc1 } else { 0x81 }, "{size}");
    }
    node.content(large(900));
    node.content(large(5_000));
    // A queue that is empty takes a message of any size.
    let (bob, _bob) = node.arrive_offering(OFFER, Identity::user("bob"), true);
    let epoch = node.hub.replay_log.lock().epoch();
    assert_eq!(node.hub.catch_up(&bob, 1, epoch), Ok(true));
    let frame = bob.queue.take();
    assert_eq!(frame[0], 0x81);
    assert!(frame.len() > 5_000);
}

/// Returns the first byte of each frame that waits, with the size of its payload.
fn frames(client: &Client) -> Vec<(u8, usize)> {
    let mut bytes = Vec::new();
    take_all(client, &mut bytes);
    let (mut bytes, mut frames) = (&bytes[..], Vec::new());
    while let [first, size, rest @ ..] = bytes {
        let (size, rest) = match (size, rest) {
            (126, [high, low, rest @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), rest),
            (127, rest) => (u64::from_be_bytes(rest[..8].try_into().unwrap()) as usize, &rest[8..]),
            (size, rest) => (usize::from(*size), rest),
        };
        frames.push((*first, size));
        bytes = &rest[size..];
    }
    frames
}

#[test]
fn of_many_large_messages_that_are_delivered_together_only_the_first_are_compressed() {
    let node = Node::new();
    let mut clients: Vec<_> = (0..3)
        .map(|number| node.arrive_with(OFFER, Identity::user("ann"), number == 0, 64 * 1024 * 1024))
        .inspect(|(client, _)| node.hub.begin_delivery(client))
        .collect();
    clients[1].0.set_dialect(Dialect::Array);
    clients.push(node.arrive_with(&[], Identity::guest(), false, 64 * 1024 * 1024));
    node.hub.begin_delivery(&clients[3].0);
    let details: Bytes = format!("[\"{}\"]", "x".repeat(100_000)).into();
    let deliver = |first, count| {
        let entry = |seq| {
            let (target, details) = (Target::all(), details.clone());
            let content = Content::Message { target, action: "x".into(), details, volatile: false }.encode();
            Delivery {
                position: LogPosition { term: 1, master: NODE, seq },
                id: PublishId { origin: NODE, counter: seq },
                size: content.len(),
                repeated: None,
                content: Some(content),
            }
        };
        node.hub.deliver((first..first + count).map(entry).collect());
        clients.iter().map(|(client, _)| frames(client)).collect::<Vec<_>>()
    };
    // 768 KiB are 7 messages in one of their three forms.
    let got = deliver(1, 24);
    let compressed = got.iter().map(|frames| frames.iter().filter(|(first, _)| *first == 0xc1).count());
    let compressed: Vec<_> = compressed.collect();
    assert!(got.iter().all(|frames| frames.len() == 24), "all come");
    assert_eq!((compressed.iter().sum::<usize>(), compressed[3]), (7, 0), "{compressed:?}");
    // What comes later is compressed again.
    assert_eq!(deliver(25, 2).concat().iter().filter(|(first, _)| *first == 0xc1).count(), 6);
}
