//! An attacker on the path between two nodes, or between a publisher and a node, can only end a link.

use std::{net::SocketAddr, sync::Arc};
use tests::message;

use serde_json::json;
use tests::{
    client::{Client, soon},
    log::Log,
    nodes::{KEY, config},
    proxy::Way,
    tamper::{Attacker, Frame, Tampering},
};
use tokio::net::TcpListener;
use ws_cluster::{Config, MemoryPool, Pool, Publisher, Server, Target};

/// The log's text about a link with a packet that is not the one that the peer sent next.
const CUT: &str = "a packet was changed, inserted, repeated, reordered or dropped on its way";

/// Number of messages of the greeting in each direction. Packets follow.
const GREETING: usize = 2;

/// A server behind an attacker.
struct Node {
    server: Server,
    address: SocketAddr,
    _attacker: Attacker,
}

impl Node {
    async fn start(pool: &Arc<dyn Pool>, tampering: &Tampering, config: Config) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let attacker = Attacker::start(address, tampering).await;
        let server = Server::builder(pool.clone())
            .address(format!("ws://{}", attacker.address()))
            .key(KEY)
            .config(config)
            .start()
            .await
            .unwrap();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(std::future::pending()).await });
        Self { server, address, _attacker: attacker }
    }

    /// Waits until the node is one of two members.
    async fn linked(&self) {
        let mut status = self.server.subscribe_status();
        let both = status.wait_for(|status| {
            status.ready && status.degraded.is_none() && status.nodes.iter().filter(|node| node.member).count() == 2
        });
        soon(both).await.expect("the server lives");
    }

    async fn publish(&self, text: &str) {
        self.server.publish(message("said", json!([text]), Target::all())).await.expect("accepted");
    }
}

/// Starts two nodes. The master comes first.
async fn pair(tampering: &Tampering, config: Config) -> [Node; 2] {
    let pool: Arc<dyn Pool> = Arc::new(MemoryPool::default());
    let first = Node::start(&pool, tampering, config.clone()).await;
    let second = Node::start(&pool, tampering, config).await;
    first.linked().await;
    second.linked().await;
    if first.server.status().master == Some(first.server.node_id()) { [first, second] } else { [second, first] }
}

/// An attack on the first packet.
type Attack = fn(Frame) -> Vec<Frame>;

/// Attacks that are noticed at the next packet at the latest.
const ATTACKS: [(&str, Attack); 7] = [
    ("changes a letter", |mut frame| {
        let letter = frame.payload.windows(6).position(|bytes| bytes == b"before").unwrap_or(0);
        if let Some(byte) = frame.payload.get_mut(letter) {
            *byte ^= 1;
        }
        vec![frame]
    }),
    ("changes the end", |mut frame| {
        *frame.payload.last_mut().unwrap() ^= 0x80;
        vec![frame]
    }),
    ("repeats", |frame| vec![frame.clone(), frame]),
    ("drops", |_| Vec::new()),
    ("inserts an empty packet", |frame| vec![Frame::binary([]), frame]),
    ("inserts a packet of its own", |frame| vec![Frame::binary([0x0a, 0x02, 0x18, 0x01]), frame]),
    ("shortens", |mut frame| {
        frame.payload.pop();
        vec![frame]
    }),
];

/// Attacks the first packet that contains this text, and no other.
fn attack_packet_with(tampering: &Tampering, text: &'static str, attack: Attack) {
    let mut done = false;
    tampering.set(move |_, number, frame| {
        let meant = frame.payload.windows(text.len()).any(|bytes| bytes == text.as_bytes());
        if done || number < GREETING || !meant {
            return vec![frame];
        }
        done = true;
        attack(frame)
    });
}

async fn said(client: &mut Client, text: &str) {
    client.expect("said", json!([text])).await;
}

#[tokio::test]
async fn a_tampered_link_between_nodes_delivers_no_forged_packet() {
    let mut log = Log::listen();
    let tampering = Tampering::default();
    let nodes = pair(&tampering, config()).await;
    let mut clients = [Client::connect(nodes[0].address, &[]).await, Client::connect(nodes[1].address, &[]).await];
    for (what, attack) in ATTACKS {
        // The packets of the master contain entries, those of the follower proposals.
        for publisher in &nodes {
            attack_packet_with(&tampering, "before", attack);
            publisher.publish("before").await;
            log.line(CUT).await;
            publisher.publish("after").await;
            for client in &mut clients {
                said(client, "before").await;
                said(client, "after").await;
            }
            for node in &nodes {
                node.linked().await;
            }
            println!("{what}: the link was cut, and all came once");
        }
    }
}

#[tokio::test]
async fn packets_that_come_in_another_order_end_a_link() {
    let mut log = Log::listen();
    let tampering = Tampering::default();
    let nodes = pair(&tampering, config()).await;
    let mut client = Client::connect(nodes[1].address, &[]).await;
    let mut held = None;
    let mut done = false;
    tampering.set(move |_, number, frame| {
        if done || number < GREETING {
            return vec![frame];
        }
        match held.take() {
            None if frame.payload.windows(6).any(|bytes| bytes == b"before") => {
                held = Some(frame);
                Vec::new()
            }
            None => vec![frame],
            Some(earlier) => {
                done = true;
                vec![frame, earlier]
            }
        }
    });
    nodes[0].publish("before").await;
    log.line(CUT).await;
    said(&mut client, "before").await;
    nodes[1].publish("after").await;
    said(&mut client, "after").await;
}

#[tokio::test]
async fn pings_do_not_keep_a_link_whose_packets_are_dropped() {
    let mut log = Log::listen();
    let tampering = Tampering::default();
    let nodes = pair(&tampering, config()).await;
    let mut client = Client::connect(nodes[1].address, &[]).await;
    tampering.set(|_, number, frame| if number < GREETING { vec![frame] } else { vec![Frame::ping()] });
    let line = log.line("a link was lost").await;
    assert!(line.contains("no answer in time"), "{line}");
    tampering.clear();
    nodes[0].publish("after").await;
    said(&mut client, "after").await;
}

#[tokio::test]
async fn a_tampered_link_of_a_publisher_delivers_no_forged_packet() {
    let mut log = Log::listen();
    let tampering = Tampering::default();
    let pool: Arc<dyn Pool> = Arc::new(MemoryPool::default());
    let node = Node::start(&pool, &tampering, config()).await;
    soon(node.server.wait_ready()).await;
    let mut client = Client::connect(node.address, &[]).await;
    let publisher = soon(async {
        loop {
            // The node is in the pool a little after it is ready.
            if let Ok(publisher) = Publisher::connect(pool.clone(), KEY).await {
                break publisher;
            }
            tokio::task::yield_now().await;
        }
    })
    .await;
    let publish =
        async |text| publisher.publish(message("said", json!([text]), Target::all())).await.expect("accepted");
    for (what, attack) in ATTACKS {
        attack_packet_with(&tampering, "before", attack);
        publish("before").await;
        log.line(CUT).await;
        // An answer: an outcome or a heartbeat.
        let mut done = false;
        tampering.set(move |way, number, frame| {
            if done || number < GREETING || way == Way::In {
                return vec![frame];
            }
            done = true;
            attack(frame)
        });
        publish("during").await;
        log.line(CUT).await;
        publish("after").await;
        for text in ["before", "during", "after"] {
            said(&mut client, text).await;
        }
        println!("{what}: the link was cut, and all came once");
    }
}

#[tokio::test]
async fn a_greeting_that_was_changed_makes_no_link() {
    let tampering = Tampering::default();
    let pool: Arc<dyn Pool> = Arc::new(MemoryPool::default());
    let node = Node::start(&pool, &tampering, config()).await;
    soon(node.server.wait_ready()).await;
    let connect = || Publisher::connect(pool.clone(), KEY);
    // The node is in the pool a little after it is ready.
    soon(async {
        while connect().await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;
    for way in [Way::In, Way::Out] {
        for message in 0..GREETING {
            for byte in 0.. {
                let (size, sizes) = std::sync::mpsc::channel();
                tampering.set(move |its_way, number, mut frame| {
                    if (its_way, number) == (way, message) {
                        let _ = size.send(frame.payload.len());
                        let byte = byte % frame.payload.len();
                        frame.payload[byte] ^= 1;
                    }
                    vec![frame]
                });
                let connected = soon(connect()).await;
                assert!(connected.is_err(), "byte {byte} of message {message}, {way:?}");
                if byte + 1 >= sizes.try_recv().unwrap_or(0) {
                    break;
                }
            }
        }
    }
    tampering.clear();
    connect().await.expect("a greeting that nobody changed");
}
