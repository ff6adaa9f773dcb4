//! A connection on virtual time, over a stream in memory: heartbeat, expiry, rate and time-outs to the second.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    net::{TcpListener, TcpStream},
    time::Instant,
};

use super::{Accepted, serve, serve_tcp, task::Connection, transport::Tcp};
use crate::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Config, ConnectionId, Credentials, Handshake,
    Identity, MemoryPool, Message, Request, Server, Target, TrustedProxies,
    auth::{Inquiry, Validity},
    hub::{
        Client, Membership,
        membership::GivenHashes,
        resume::{ResumeRequest, ResumeState, unix_time},
    },
};

mod identity;
mod replay;
mod unannounced;

struct Echo;

#[async_trait]
impl ActionHandler for Echo {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        request.reply(request.details())?;
        Ok(())
    }

    fn guests(&self) -> bool {
        true
    }
}

/// Answers after a while.
struct Wait;

#[async_trait]
impl ActionHandler for Wait {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        tokio::time::sleep(Duration::from_secs(20)).await;
        request.reply(())?;
        Ok(())
    }
}

/// Ann's session, from a store that may be down.
struct Store(Arc<AtomicBool>);

#[async_trait]
impl Authenticator for Store {
    async fn authenticate(
        &self,
        _: &Handshake,
        _: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(AuthenticationError::Unavailable("down".into())),
            false => Ok(Some(Identity::user("ann"))),
        }
    }
}

/// Returns a server, and the switch of its store, which is down.
async fn server(config: Config) -> (Server, Arc<AtomicBool>) {
    let down = Arc::new(AtomicBool::new(true));
    let builder = Server::builder(MemoryPool::default())
        .authenticator(Store(down.clone()))
        .action("echo", Echo)
        .action("wait", Wait);
    (builder.config(config).start().await.unwrap(), down)
}

/// Returns Ann after her upgrade, with the time that is left of her session.
fn ann(server: &Server, session: Option<Duration>) -> (Arc<Client>, Accepted) {
    upgraded(server, Identity::user("ann"), session)
}

/// Returns a client after its upgrade, with the time that is left of its session.
fn upgraded(server: &Server, identity: Identity, session: Option<Duration>) -> (Arc<Client>, Accepted) {
    offering(server, &[], identity, session)
}

/// Returns a client after its upgrade, which offered these extensions.
fn offering(
    server: &Server,
    offers: &[&[u8]],
    identity: Identity,
    session: Option<Duration>,
) -> (Arc<Client>, Accepted) {
    let handshake = Handshake::new(&http::Request::new(()).into_parts().0, None, &TrustedProxies::none());
    let deflate = crate::ws::deflate::answer(offers.iter().copied(), 256).map(|(deflate, _)| deflate);
    let client = Client::new(server.hub().next_id(), handshake, 1024 * 1024, false).with_deflate(deflate);
    let client = Arc::new(client);
    let mut slot = server.hub().admission().admit(None, 1, 100).ok();
    let (membership, now) = (Membership::of(identity), server.hub().closes().now());
    let handle = server.hub().arrive(client.clone(), membership, &mut slot, now).unwrap();
    server.hub().begin_delivery(&client);
    let validity = Validity { expires: session.map(|left| SystemTime::now() + left), recheck: None };
    (client, Accepted { handle, validity, may_join: true, refused: false, asked: None })
}

struct Peer {
    stream: DuplexStream,
    start: Instant,
    down: Arc<AtomicBool>,
}

impl Peer {
    /// Connects Ann, whose session ends after a time, on a stream that takes `room` bytes.
    async fn connect(config: Config, session: Option<Duration>, room: usize) -> Self {
        let (server, down) = server(config).await;
        let (_, accepted) = ann(&server, session);
        let (stream, far) = duplex(room);
        tokio::spawn(serve(server, accepted, far, &[]));
        Self { stream, start: Instant::now(), down }
    }

    /// Connects Ann with compression. Returns the server's side of her as well.
    #[cfg(feature = "deflate")]
    async fn compressing(config: Config) -> (Self, Arc<Client>) {
        let (server, down) = server(config).await;
        let (client, accepted) = offering(&server, &[b"permessage-deflate"], Identity::user("ann"), None);
        let (stream, far) = duplex(1024 * 1024);
        tokio::spawn(serve(server, accepted, far, &[]));
        (Self { stream, start: Instant::now(), down }, client)
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(&[0x81, 0x80 | text.len() as u8, 0, 0, 0, 0]).await.unwrap();
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Returns the next frame: its first byte and payload, and the seconds since the beginning.
    async fn frame(&mut self) -> (u8, Vec<u8>, u64) {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; head[1].into()];
        self.stream.read_exact(&mut payload).await.unwrap();
        (head[0], payload, self.seconds())
    }

    /// Returns the next text, of at most 64 KiB. It answers pings.
    async fn text(&mut self) -> (String, u64) {
        loop {
            let mut head = [0; 2];
            self.stream.read_exact(&mut head).await.unwrap();
            let size = match head[1] {
                126 => self.stream.read_u16().await.unwrap().into(),
                size => usize::from(size),
            };
            let mut payload = vec![0; size];
            self.stream.read_exact(&mut payload).await.unwrap();
            match head[0] {
                0x89 => self.stream.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.unwrap(),
                first => {
                    assert_eq!(first, 0x81);
                    return (String::from_utf8(payload).unwrap(), self.seconds());
                }
            }
        }
    }

    /// Returns the code of the next close frame, and the time.
    async fn closed(&mut self) -> (u16, u64) {
        let (first, payload, at) = self.frame().await;
        assert_eq!(first, 0x88, "{}", String::from_utf8_lossy(&payload));
        (u16::from_be_bytes([payload[0], payload[1]]), at)
    }

    async fn dropped(&mut self) -> u64 {
        let mut rest = Vec::new();
        self.stream.read_to_end(&mut rest).await.unwrap();
        self.seconds()
    }

    /// Rounded: a session ends by the wall clock, which runs on its own, and timers tick in milliseconds.
    fn seconds(&self) -> u64 {
        self.start.elapsed().as_secs_f64().round() as u64
    }
}

#[tokio::test(start_paused = true)]
async fn silence_is_pinged_and_closed_and_dropped() {
    let mut peer = Peer::connect(Config::default(), None, 1000).await;
    assert_eq!(peer.frame().await, (0x89, vec![], 25));
    peer.stream.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.unwrap();
    assert_eq!(peer.frame().await, (0x89, vec![], 50));
    assert_eq!(peer.closed().await, (4001, 70));
    assert_eq!(peer.dropped().await, 75);
}

#[tokio::test(start_paused = true)]
async fn messages_beyond_the_burst_wait_their_turn() {
    let mut config = Config::default();
    config.connection.messages_per_second = 2;
    config.connection.message_burst = 4;
    let mut peer = Peer::connect(config, None, 10_000).await;
    for _ in 0..10 {
        peer.send(r#"["echo"]"#).await;
    }
    let mut times = Vec::new();
    for _ in 0..10 {
        times.push(peer.frame().await.2);
    }
    assert_eq!(times[..4], [0; 4]);
    assert_eq!(times[9], 3);
}

/// Returns a frame that is masked with zeros.
fn small(first: u8, payload: &str) -> Vec<u8> {
    [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0], payload.as_bytes()].concat()
}

/// Returns a frame with a text, compressed, as a client sends it.
#[cfg(feature = "deflate")]
fn compressed(text: &str) -> Vec<u8> {
    use crate::ws::{deflate::compress, frame};
    let compressed = compress(&frame::text(&[text.as_bytes()])).expect("it shrinks");
    let payload = frame::payload(&compressed);
    [&[0xc1, 0x80 | 126], &(payload.len() as u16).to_be_bytes()[..], &[0; 4], payload].concat()
}

#[cfg(feature = "deflate")]
#[tokio::test(start_paused = true)]
async fn a_compressed_message_counts_by_its_inflated_size() {
    let mut config = Config::default();
    config.connection.messages_per_second = 2;
    config.connection.message_burst = 4;
    // Each counts as two messages.
    let (mut peer, _) = Peer::compressing(config).await;
    let text = format!(r#"["echo","{}"]"#, "x".repeat(8_000));
    let bytes = compressed(&text).repeat(10);
    assert!(bytes.len() < 1_000);
    peer.stream.write_all(&bytes).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..10 {
        let (first, _, at) = peer.frame().await;
        assert_eq!(first, 0xc1);
        times.push(at);
    }
    assert_eq!(times[..2], [0; 2]);
    // 20 messages, of which 4 come at once, and the last two together.
    assert!((7..=8).contains(&times[9]), "{times:?}");
}

#[cfg(feature = "deflate")]
#[tokio::test(start_paused = true)]
async fn a_compressed_message_that_is_inflated_to_little_counts_by_its_compressed_size() {
    let mut config = Config::default();
    config.connection.messages_per_second = 2;
    config.connection.message_burst = 4;
    let (mut peer, _) = Peer::compressing(config).await;
    // Empty blocks, and then the message in a block without compression. Each message counts as two.
    let text = r#"["echo"]"#;
    let size = text.len() as u16;
    let stored = [&[0], &size.to_le_bytes()[..], &(!size).to_le_bytes(), text.as_bytes(), &[0]].concat();
    let payload = [[0, 0, 0, 0xff, 0xff].repeat(1_500), stored].concat();
    let head = [&[0xc1, 0x80 | 126], &(payload.len() as u16).to_be_bytes()[..], &[0; 4]].concat();
    peer.stream.write_all(&[head, payload].concat().repeat(10)).await.unwrap();
    let mut times = Vec::new();
    for _ in 0..10 {
        times.push(peer.frame().await.2);
    }
    assert_eq!(times[..2], [0; 2]);
    assert!((7..=8).contains(&times[9]), "{times:?}");
}

#[cfg(feature = "deflate")]
#[tokio::test(start_paused = true)]
async fn a_connection_that_closes_inflates_nothing() {
    let mut config = Config::default();
    config.connection.message_size = 1_000;
    let (mut peer, client) = Peer::compressing(config).await;
    // Inflated, each of them would end the connection with 1009, and the close frame behind them would not be read.
    let bombs = compressed(&" ".repeat(10_000)).repeat(1_000);
    let closes = small(0x81, "this is no JSON");
    peer.stream.write_all(&[closes, bombs, vec![0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]].concat()).await.unwrap();
    let (code, at) = peer.closed().await;
    assert_eq!((code, at), (4400, 0));
    assert_eq!(peer.dropped().await, 0);
    assert!(client.is_forgotten(), "the client's close frame has ended the connection");
}

#[tokio::test(start_paused = true)]
async fn a_ping_behind_many_messages_is_answered_before_all_are_handled() {
    let mut peer = Peer::connect(Config::default(), None, 1024 * 1024).await;
    let echo = |number: usize| format!(r#"["echo",["{number:026}"]]"#);
    let messages: Vec<u8> = (0..5000).flat_map(|number| small(0x81, &echo(number))).collect();
    peer.stream.write_all(&messages).await.unwrap();
    let (mut count, mut pinged, mut answered) = (0, false, None);
    while count < 5000 {
        let (first, payload, at) = peer.frame().await;
        match first {
            0x81 => {
                assert_eq!(payload, echo(count).as_bytes());
                count += 1;
            }
            0x8a => answered = Some((payload, at)),
            _ => peer.stream.write_all(&small(0x8a, "")).await.unwrap(),
        }
        if at >= 20 && !std::mem::replace(&mut pinged, true) {
            peer.stream.write_all(&small(0x89, "alive?")).await.unwrap();
        }
    }
    // Python's `websockets` pings every 20 s, and waits for 20 s.
    let (payload, at) = answered.expect("an answer");
    assert_eq!(payload, b"alive?");
    assert!(at < 40, "{at}");
}

#[tokio::test(start_paused = true)]
async fn pings_among_messages_that_wait_are_answered_at_once() {
    let mut config = Config::default();
    config.connection.messages_per_second = 1;
    config.connection.message_burst = 5;
    let mut peer = Peer::connect(config, None, 1024 * 1024).await;
    for number in 0..7 {
        peer.stream.write_all(&small(0x81, &format!(r#"["echo",[{number}]]"#))).await.unwrap();
        peer.stream.write_all(&small(0x89, &number.to_string())).await.unwrap();
    }
    let (mut pongs, mut echoes) = (Vec::new(), Vec::new());
    while echoes.len() < 7 {
        let (first, payload, at) = peer.frame().await;
        match first {
            0x81 => echoes.push(payload),
            0x8a => pongs.push((payload, at)),
            _ => peer.stream.write_all(&small(0x8a, "")).await.unwrap(),
        }
    }
    let expected: Vec<_> = (0..7).map(|number| format!(r#"["echo",[{number}]]"#).into_bytes()).collect();
    assert_eq!(echoes, expected);
    let expected: Vec<_> = (0..7).map(|number| number.to_string().into_bytes()).collect();
    assert_eq!(pongs.iter().map(|(payload, _)| payload.clone()).collect::<Vec<_>>(), expected);
    assert!(pongs[..6].iter().all(|(_, at)| *at == 0), "{pongs:?}");
}

#[tokio::test(start_paused = true)]
async fn a_ping_is_answered_while_a_handler_runs_and_later_messages_are_handled() {
    let mut peer = Peer::connect(Config::default(), None, 1024 * 1024).await;
    for frame in [small(0x81, r#"["wait"]"#), small(0x89, "?"), small(0x81, r#"["echo",[1]]"#)] {
        peer.stream.write_all(&frame).await.unwrap();
    }
    // The client sends no more, and still gets its answers.
    peer.stream.shutdown().await.unwrap();
    assert_eq!(peer.frame().await, (0x8a, b"?".to_vec(), 0));
    assert_eq!(peer.frame().await, (0x81, br#"["wait",[]]"#.to_vec(), 20));
    assert_eq!(peer.frame().await, (0x81, br#"["echo",[1]]"#.to_vec(), 20));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_pings_is_held_back_while_messages_wait() {
    let mut config = Config::default();
    config.connection.messages_per_second = 10;
    config.connection.message_burst = 5;
    let mut peer = Peer::connect(config, None, 1024 * 1024).await;
    for _ in 0..6 {
        peer.stream.write_all(&small(0x81, r#"["echo"]"#)).await.unwrap();
    }
    for _ in 0..500 {
        peer.stream.write_all(&small(0x89, "")).await.unwrap();
    }
    let (mut at_once, mut pongs) = (0, 0);
    while pongs < 100 {
        let (first, _, at) = peer.frame().await;
        pongs += usize::from(first == 0x8a);
        at_once += usize::from(at == 0);
    }
    // Five messages, and five pings more.
    assert!(at_once <= 20, "{at_once}");
    assert!(peer.seconds() >= 8);
}

#[tokio::test(start_paused = true)]
async fn a_stream_of_one_byte_at_a_time_works() {
    let mut peer = Peer::connect(Config::default(), None, 1).await;
    peer.send(r#"["echo","x"]"#).await;
    assert_eq!(peer.frame().await, (0x81, br#"["echo",["x"]]"#.to_vec(), 0));
    peer.stream.write_all(&[0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8]).await.unwrap();
    assert_eq!(peer.closed().await, (1000, 0));
    assert_eq!(peer.dropped().await, 0);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_floods_after_an_error_is_dropped_in_time() {
    let mut peer = Peer::connect(Config::default(), None, 1000).await;
    peer.stream.write_all(&[0x83, 0x80, 0, 0, 0, 0]).await.unwrap();
    assert_eq!(peer.closed().await, (1002, 0));
    // The bytes are read and ignored until the time is up.
    while peer.stream.write_all(&[0; 1000]).await.is_ok() {
        tokio::time::advance(Duration::from_millis(100)).await;
    }
    assert!((4..=6).contains(&peer.seconds()), "{}", peer.seconds());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_no_more_has_some_time_to_read() {
    let echo = br#"["echo",[]]"#;
    for (wait, comes) in [(4, true), (6, false)] {
        let mut peer = Peer::connect(Config::default(), None, 10).await;
        peer.send(r#"["echo"]"#).await;
        peer.stream.shutdown().await.unwrap();
        tokio::time::sleep(Duration::from_secs(wait)).await;
        let mut rest = Vec::new();
        peer.stream.read_to_end(&mut rest).await.unwrap();
        assert_eq!(rest.ends_with(echo), comes, "{rest:?}");
        assert_eq!(peer.seconds(), wait);
    }
}

#[tokio::test(start_paused = true)]
async fn a_burst_over_another_stream_reaches_a_client_that_reads() {
    let (server, _) = server(Config::default()).await;
    let (_, accepted) = ann(&server, None);
    let (mut stream, far) = duplex(4096);
    tokio::spawn(serve(server.clone(), accepted, far, &[]));
    let large = "x".repeat(100_000);
    for _ in 0..40 {
        server.deliver(Message::new("large", &large).unwrap().to(Target::all())).unwrap();
    }
    let mut came = vec![0; 40 * large.len()];
    stream.read_exact(&mut came).await.unwrap();
    assert!(came.iter().filter(|byte| **byte == b'x').count() > 39 * large.len());
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_another_stream_is_closed() {
    let (server, _) = server(Config::default()).await;
    let (client, accepted) = ann(&server, None);
    let (_stream, far) = duplex(4096);
    tokio::spawn(serve(server.clone(), accepted, far, &[]));
    let large = "x".repeat(100_000);
    let mut count = 0;
    while !client.queue.is_sealed() {
        server.deliver(Message::new("large", &large).unwrap().to(Target::all())).unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        count += 1;
    }
    assert!((11..=16).contains(&count), "{count}");
}

/// Connects a client that tracks its position, with this path.
async fn resumes(server: &Server, path: &str) -> DuplexStream {
    resumes_offering(server, path, &[], 10_000).1
}

/// Connects a client that tracks its position, with this path and these extensions, on a stream that takes `room` bytes.
fn resumes_offering(server: &Server, path: &str, offers: &[&[u8]], room: usize) -> (Arc<Client>, DuplexStream) {
    let mut parts = http::Request::get(path).body(()).unwrap().into_parts().0;
    parts.headers.clear();
    let mut handshake = Handshake::new(&parts, None, &TrustedProxies::none());
    let asked = ResumeRequest::take(&mut handshake);
    assert_eq!(handshake.query("heartbeat"), None, "it is not the application's");
    let deflate = crate::ws::deflate::answer(offers.iter().copied(), 256).map(|(deflate, _)| deflate);
    let client = Client::new(server.hub().next_id(), handshake, 1024 * 1024, asked.is_some()).with_deflate(deflate);
    let client = Arc::new(client);
    let mut slot = server.hub().admission().admit(None, 1, 9).ok();
    let (membership, now) = (Membership::of(Identity::user("ann")), server.hub().closes().now());
    let handle = server.hub().arrive(client.clone(), membership, &mut slot, now).unwrap();
    let (stream, far) = duplex(room);
    let accepted = Accepted { handle, validity: Validity::default(), may_join: true, refused: false, asked };
    tokio::spawn(serve(server.clone(), accepted, far, &[]));
    (client, stream)
}

#[tokio::test(start_paused = true)]
async fn a_client_hears_something_as_often_as_it_asks() {
    let (server, _) = server(Config::default()).await;
    for (asked, seconds) in [("heartbeat=25", 25), ("heartbeat=1", 5), ("heartbeat=9999", 300)] {
        let stream = resumes(&server, &format!("/?resume=&{asked}")).await;
        let mut peer = Peer { stream, start: Instant::now(), down: Arc::default() };
        let (first, _) = peer.text().await;
        assert!(first.contains(r#"["new"]"#) && first.ends_with(&format!(r#","heartbeat":{seconds}}}"#)), "{first}");
        for _ in 0..3 {
            let before = Instant::now();
            let (text, _) = peer.text().await;
            assert!(text.contains(r#"{"action":"Server/position","details":["now"],"at":"#), "{text}");
            let passed = before.elapsed().as_secs_f64();
            assert!((0.8 * f64::from(seconds)..=f64::from(seconds)).contains(&passed), "{passed} for {asked}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_resume_token_is_renewed_in_time() {
    let config = Config::default();
    let quarter = config.log.age.as_secs() / 4;
    let (server, _) = server(config).await;
    for path in ["/?resume=", "/?resume=&heartbeat=25"] {
        let stream = resumes(&server, path).await;
        let mut peer = Peer { stream, start: Instant::now(), down: Arc::default() };
        assert!(peer.text().await.0.contains(r#"["new"]"#));
        for round in 1..=3 {
            while !peer.text().await.0.contains(r#""state":"#) {}
            assert!(peer.seconds() <= round * (quarter + 25), "{path} {} {round}", peer.seconds());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_old_resume_token_gives_nothing_back() {
    let (server, _) = server(Config::default()).await;
    let at = crate::message::position::Position::START;
    let id = server.hub().next_id();
    for (time, why) in [(unix_time(), "before the first message"), (7, "too old")] {
        let (changes, since) = Default::default();
        let given = GivenHashes::Each(Vec::new());
        let state = ResumeState { id, changes, version: 0, began: 0, since, given, at, time };
        let sealed = server.resumption().sealer.seal(Some("ann"), None, &state);
        let stream = resumes(&server, &format!("/?resume={at}&state={sealed}")).await;
        let mut peer = Peer { stream, start: Instant::now(), down: Arc::default() };
        let (text, _) = peer.text().await;
        assert!(text.contains(r#"["reset","#) && text.contains(why), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_ask_for_a_heartbeat_gets_none() {
    let (server, _) = server(Config::default()).await;
    for path in ["/?resume=", "/?resume=&heartbeat=", "/?resume=&heartbeat=often"] {
        let stream = resumes(&server, path).await;
        let mut peer = Peer { stream, start: Instant::now(), down: Arc::default() };
        let (first, _) = peer.text().await;
        assert!(first.contains(r#"["new"]"#) && !first.contains("heartbeat"), "{first}");
        // After that, a quiet client is told its position if it has changed.
        for _ in 0..2 {
            assert_eq!(peer.frame().await.0, 0x89);
            peer.stream.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.unwrap();
        }
    }
}

/// The memory of an idle connection, of which there are tens of thousands. It has no task, which would be the size of
/// the first two.
#[test]
fn an_idle_connection_is_small() {
    assert!(size_of::<Connection<Tcp, Server>>() <= 128, "{}", size_of::<Connection<Tcp, Server>>());
    // Plus the counters of its `Arc`.
    assert!(size_of::<Client>() + 16 <= 256, "{}", size_of::<Client>());
}

#[tokio::test]
async fn a_quiet_connection_is_parked_and_woken_by_its_events() {
    let mut config = Config::default();
    config.connection.ping_interval = Duration::from_millis(10);
    config.connection.close_timeout = Duration::from_millis(10);
    let (server, _) = server(config).await;
    let (client, accepted) = ann(&server, None);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (near, accepted_socket) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
    let mut near = near.unwrap();
    tokio::spawn(serve_tcp(server.clone(), accepted, accepted_socket.unwrap().0, &[]));
    let parked = || async {
        while !client.queue.is_parked() {
            tokio::task::yield_now().await;
        }
    };
    let mut buffer = [0; 64];
    for _ in 0..3 {
        // Pings wake it and are answered.
        parked().await;
        let size = near.read(&mut buffer).await.unwrap();
        assert_eq!(buffer[..size].first(), Some(&0x89));
        near.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.unwrap();
    }
    parked().await;
    server.deliver(Message::new("news", "x").unwrap().to(Target::user("ann"))).unwrap();
    let mut came = Vec::new();
    while !came.windows(4).any(|part| part == b"news") {
        let size = near.read(&mut buffer).await.unwrap();
        came.extend_from_slice(&buffer[..size]);
    }
    parked().await;
    near.write_all(&[&[0x81, 0x88, 0, 0, 0, 0], &br#"["echo"]"#[..]].concat()).await.unwrap();
    while !came.windows(4).any(|part| part == b"echo") {
        let size = near.read(&mut buffer).await.unwrap();
        came.extend_from_slice(&buffer[..size]);
    }
    parked().await;
    client.dismiss("enough");
    came.clear();
    near.read_to_end(&mut came).await.unwrap();
    assert!(came.windows(12).any(|part| part == b"Server/close"), "{came:?}");
}
