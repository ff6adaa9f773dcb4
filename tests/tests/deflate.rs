//! Compression (permessage-deflate) on real sockets: what is negotiated, what is compressed, and what hostile clients
//! get.

use serde_json::{Value, json};
use tests::{
    client::{Client, Place, soon},
    deflate::{COMPRESSED, Compressing, Frame, OFFER, Peer, compress},
    message,
    random::Random,
    streams::{STREAMS, Served, Stream},
};
use ws_cluster::{Config, Details, IntoHandler, MemoryPool, Server, Target};

const AGREED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

const TEXT: u8 = 0x81;

/// A node that answers `say` with the text that it got.
struct Node(Served);

impl Node {
    async fn start(config: Config) -> Self {
        let builder = Server::builder(MemoryPool::default()).config(config);
        let say = async |Details(text): Details<String>| text;
        let builder = builder.action("say", say.with_guests());
        let server = builder.start().await.unwrap();
        soon(server.wait_ready()).await;
        Self(Served::start(server).await)
    }

    /// Returns a client that offers this, and is known to the hub.
    async fn peer(&self, over: &str, query: &str, offers: &[&str]) -> Peer<Box<dyn Stream>> {
        let (stream, path) = (self.0.stream(over).await, format!("/WebSockets{query}"));
        soon(Peer::open(stream, &path, offers)).await
    }

    async fn publish(&self, details: impl serde::Serialize) {
        soon(self.0.server.publish(message("news", details, Target::all()))).await.unwrap();
    }
}

/// Returns a text of this size as sites send it: JSON of some records.
fn records(size: usize) -> String {
    (0_u64..)
        .flat_map(|number| format!("id {} costs {}; ", number * 7919 % 997, number % 13).into_bytes())
        .take(size)
        .map(char::from)
        .collect()
}

fn json_of(frame: &Frame) -> Value {
    serde_json::from_str(&frame.text()).unwrap()
}

#[tokio::test]
async fn an_offer_is_answered_by_the_rfc_and_the_upgrade_never_fails_for_it() {
    let node = Node::start(Config::default()).await;
    for (offers, agreed) in [
        (&[][..], None),
        (&["permessage-deflate"][..], Some(AGREED.to_owned())),
        (&[OFFER], Some(AGREED.to_owned())),
        (&["permessage-deflate; server_max_window_bits=9"], Some(format!("{AGREED}; server_max_window_bits=9"))),
        (&["permessage-deflate; server_max_window_bits=7"], None),
        (&["permessage-deflate; x"], None),
        (&["permessage-deflate; x, permessage-deflate"], Some(AGREED.to_owned())),
        (&["foo; x=\"y, z\"", "permessage-deflate"], Some(AGREED.to_owned())),
        (&["\"", "=;,"], None),
    ] {
        for over in STREAMS {
            let mut peer = node.peer(over, "", offers).await;
            assert_eq!(peer.agreed, agreed, "{offers:?} over {over}");
            // The bit is an error without negotiation only.
            peer.text(r#"["say","hello"]"#).await;
            match &agreed {
                Some(_) => assert_eq!(soon(peer.frame()).await.text(), r#"["say",["hello"]]"#),
                None => assert_eq!(soon(peer.closed()).await, 1002),
            }
        }
    }
    let mut config = Config::default();
    config.connection.compression = false;
    let node = Node::start(config).await;
    let mut peer = node.peer("a socket", "", &[OFFER]).await;
    assert_eq!(peer.agreed, None);
    peer.text(r#"["say","hello"]"#).await;
    assert_eq!(soon(peer.closed()).await, 1002);
}

#[tokio::test]
async fn a_broadcast_is_compressed_once_and_small_messages_stay_plain() {
    let node = Node::start(Config::default()).await;
    let mut peers = Vec::new();
    for over in STREAMS.into_iter().chain(STREAMS) {
        peers.push(node.peer(over, "", &[OFFER]).await);
    }
    let mut plain = node.peer("a socket", "", &[]).await;
    let mut narrow = node.peer("a socket", "", &["permessage-deflate; server_max_window_bits=9"]).await;
    let (large, small, huge) = (records(2_000), records(200), records(300_000));
    let noise: String =
        (0..100).map(|number: u32| char::from(33 + (number.wrapping_mul(2_654_435_761) >> 26) as u8)).collect();
    for details in [&large, &small, &noise, &huge] {
        node.publish(details).await;
    }
    let expected =
        [&large, &small, &noise, &huge].map(|details| json!({ "action": "news", "details": [details] }).to_string());
    for (number, expected) in expected.iter().enumerate() {
        let mut frames = Vec::new();
        for peer in &mut peers {
            frames.push(soon(peer.frame()).await);
        }
        assert_eq!(frames[0].first, if number == 0 { TEXT | COMPRESSED } else { TEXT });
        assert_eq!(&frames[0].text(), expected);
        assert!(frames.iter().all(|frame| *frame == frames[0]), "all clients share a frame");
        assert_eq!(frames[0].payload.len() < expected.len() / 2, number == 0);
        for peer in [&mut plain, &mut narrow] {
            let frame = soon(peer.frame()).await;
            assert_eq!((frame.first, &frame.text()), (TEXT, expected), "plain, or longer than the client's window");
        }
    }
    node.publish(records(400)).await;
    assert!(soon(narrow.frame()).await.is_compressed(), "the message fits into the window");
}

#[tokio::test]
async fn the_threshold_is_a_setting() {
    let mut config = Config::default();
    config.connection.compression_min_size = 1_024;
    let node = Node::start(config).await;
    let mut peer = node.peer("a socket", "", &[OFFER]).await;
    for (size, compressed) in [(1_024 - 35, false), (1_024, true)] {
        node.publish(records(size)).await;
        assert_eq!(soon(peer.frame()).await.is_compressed(), compressed, "{size}");
    }
}

#[tokio::test]
async fn replies_and_large_replays_are_compressed_in_both_dialects() {
    let node = Node::start(Config::default()).await;
    let (text, small) = (records(2_500), records(1_500));
    for over in STREAMS {
        let mut peer = node.peer(over, "", &[OFFER]).await;
        for say in [json!({ "action": "say", "details": text }), json!({ "action": "say", "details": text, "id": 7 })] {
            peer.text(&say.to_string()).await;
            let frame = soon(peer.frame()).await;
            assert!(frame.is_compressed());
            assert_eq!(json_of(&frame)["details"], json!([text]));
        }
        let mut peer = node.peer(over, "", &[OFFER]).await;
        peer.text(&json!(["say", text]).to_string()).await;
        let frame = soon(peer.frame()).await;
        assert!(frame.is_compressed());
        assert_eq!(json_of(&frame), json!(["say", [text]]));

        let mut place = Place::default();
        let mut peer = node.peer(over, "?resume=", &[OFFER]).await;
        place.take(&json_of(&soon(peer.frame()).await));
        drop(peer);
        for number in 0..100 {
            node.publish(json!([number, if number % 2 == 0 { &text } else { &small }])).await;
        }
        let state = place.state.as_deref().unwrap();
        let query = format!("?resume={}&state={state}", place.at);
        let mut peer = node.peer(over, &query, &[OFFER]).await;
        let recovered = soon(peer.frame()).await;
        assert_eq!(json_of(&recovered)["details"], json!(["recovered", 100]));
        for number in 0..100 {
            let frame = soon(peer.frame()).await;
            let (is_large, text) = if number % 2 == 0 { (true, &text) } else { (false, &small) };
            assert_eq!(frame.is_compressed(), is_large);
            assert_eq!(json_of(&frame)["details"], json!([number, text]));
        }
    }
}

#[tokio::test]
async fn a_compressed_message_comes_in_fragments_with_pings_between_them() {
    let node = Node::start(Config::default()).await;
    let compressed = compress(json!(["say", records(3_000)]).to_string().as_bytes());
    for over in STREAMS {
        let mut peer = node.peer(over, "", &[OFFER]).await;
        for size in [1, 7, compressed.len() - 1] {
            let parts: Vec<_> = compressed.chunks(size).collect();
            for (number, part) in parts.iter().enumerate() {
                let first = if number == 0 { 0x01 | COMPRESSED } else { 0x00 };
                peer.send(first | if number + 1 == parts.len() { 0x80 } else { 0 }, part).await;
                if number < 3 && number + 1 < parts.len() {
                    peer.send(0x89, b"ping").await;
                    assert_eq!(soon(peer.frame()).await.payload, b"ping");
                }
            }
            assert_eq!(json_of(&soon(peer.frame()).await), json!(["say", [records(3_000)]]), "{size} over {over}");
        }
    }
}

#[tokio::test]
async fn a_hostile_client_is_closed_with_the_code_of_its_fault() {
    let mut config = Config::default();
    config.connection.message_size = 64 * 1024;
    let node = Node::start(config).await;
    let hello = compress(br#"["say","hello"]"#);
    let bomb = compress(&vec![b' '; 64 * 1024 * 1024]);
    assert!(bomb.len() < 64 * 1024, "it is over the limit only when it is inflated");
    let (one, other) = bomb.split_at(bomb.len() / 2);
    let frame = |first: u8, payload: &[u8]| Frame { first, payload: payload.to_vec() }.masked();
    for (name, bytes, code) in [
        ("a bomb", frame(0xc1, &bomb), 1009),
        ("a bomb in fragments", [frame(0x42, one), frame(0x80, other)].concat(), 1009),
        ("too many compressed bytes", [frame(0x42, &[0; 40_000]), frame(0x80, &[0; 40_000])].concat(), 1009),
        ("a broken stream", frame(0xc1, &[0xff; 20]), 1007),
        ("a stream that ends early", frame(0xc1, &hello[..hello.len() - 3]), 1007),
        ("not UTF-8", frame(0xc1, &compress(b"[\"say\",\"\xff\"]")), 1007),
        ("the bit on a continuation", [frame(0x41, &hello[..3]), frame(0xc0, &hello[3..])].concat(), 1002),
        ("the bit on a ping", frame(0xc9, b""), 1002),
        ("another bit", frame(0xe1, &hello), 1002),
    ] {
        for over in STREAMS {
            let mut peer = node.peer(over, "", &[OFFER]).await;
            peer.bytes(&bytes).await;
            assert_eq!(soon(peer.closed()).await, code, "{name} over {over}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_with_compression_and_without_get_the_same_messages_in_one_order() {
    let seed = Random::seed();
    let mut random = Random::new(seed);
    let node = Node::start(Config::default()).await;
    let offers = [
        "",
        OFFER,
        "permessage-deflate",
        "permessage-deflate; server_max_window_bits=8",
        "permessage-deflate; server_max_window_bits=11",
        "permessage-deflate; unknown",
    ];
    let mut peers = Vec::new();
    for _ in 0..40 {
        let (over, offer) = (*random.choose(&STREAMS), *random.choose(&offers));
        let resume = if random.percent(30) { "?resume=" } else { "" };
        let mut peer = node.peer(over, resume, &[offer][..usize::from(!offer.is_empty())]).await;
        if !resume.is_empty() {
            assert_eq!(json_of(&soon(peer.frame()).await)["action"], "Server/position");
        }
        if random.percent(30) {
            peer.send(TEXT, br#"["say","hello"]"#).await;
            assert_eq!(soon(peer.frame()).await.payload.len(), 17);
        }
        peers.push((peer, format!("{over} {offer} {resume}")));
    }
    let sizes: Vec<usize> = (0..60).map(|_| [10, 230, 300, 1_000, 5_000, 70_000][random.below(6) as usize]).collect();
    let publish = async {
        for (number, size) in sizes.iter().enumerate() {
            node.publish(json!([number, records(*size)])).await;
        }
    };
    let read = async {
        for (mut peer, which) in peers {
            for (number, size) in sizes.iter().enumerate() {
                let came = json_of(&soon(peer.frame()).await);
                let details = if came.is_array() { &came[1] } else { &came["details"] };
                assert_eq!(details, &json!([number, records(*size)]), "seed {seed}, {which}");
            }
        }
    };
    tokio::join!(publish, read);
}

#[tokio::test]
async fn any_client_compresses_through_the_proxy_of_the_tests() {
    let node = Node::start(Config::default()).await;
    let proxy = Compressing::start(node.0.address).await;
    let mut client = Client::connect(proxy.address(), &[]).await;
    for size in [10, 2_000, 2_000] {
        client.send("say", json!(records(size))).await;
        client.expect("say", json!([records(size)])).await;
    }
    assert_eq!(proxy.inflated(), 2);
}
