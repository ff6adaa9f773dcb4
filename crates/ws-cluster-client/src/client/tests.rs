//! A client on virtual time, against a server that plays a script over streams in memory.

use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use futures_util::{SinkExt, StreamExt};
use http::Request;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncWriteExt, DuplexStream, duplex},
    sync::mpsc,
    task::yield_now,
    time::{Instant, timeout},
};
use tokio_tungstenite::{WebSocketStream, accept_async, client_async_with_config};
use tungstenite::{Message as Frame, protocol::CloseFrame};

use super::{
    Builder, Client, Event, Events, Message, SendError,
    task::{Dial, config},
};

mod identity;
mod requests;
mod silence;

/// Bytes that are under way between the two.
const ROOM: usize = 16 * 1024;

/// Connections in memory, whose other ends the script gets.
struct Memory(mpsc::UnboundedSender<Attempt>);

impl Dial for Memory {
    type Stream = DuplexStream;

    async fn dial(&self, request: Request<()>) -> tungstenite::Result<WebSocketStream<DuplexStream>> {
        let (near, far) = duplex(ROOM);
        let seen = Attempt { request: request.clone(), stream: far };
        self.0.send(seen).map_err(|_| tungstenite::Error::ConnectionClosed)?;
        Ok(client_async_with_config(request, near, Some(config())).await?.0)
    }
}

/// The server's side of a dial.
struct Attempt {
    request: Request<()>,
    stream: DuplexStream,
}

impl Attempt {
    fn query(&self) -> &str {
        self.request.uri().query().unwrap_or_default()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.request.headers().get(name).map(|value| value.to_str().unwrap())
    }

    /// Opens the WebSocket and reads the client's first message.
    async fn open(self) -> Peer {
        let mut peer = Peer(accept_async(self.stream).await.unwrap());
        peer.expect("Client/authentication", json!([])).await;
        peer
    }

    /// The same, and answers it.
    async fn welcome(self) -> Peer {
        let mut peer = self.open().await;
        peer.say("Client/authentication", json!(["ok"])).await;
        peer
    }
}

/// The server's end of a connection.
struct Peer(WebSocketStream<DuplexStream>);

impl Peer {
    async fn say(&mut self, action: &str, details: Value) {
        self.text(json!({ "action": action, "details": details })).await;
    }

    async fn text(&mut self, message: Value) {
        self.0.send(Frame::text(message.to_string())).await.unwrap();
    }

    async fn expect(&mut self, action: &str, details: Value) {
        let Some(Ok(Frame::Text(text))) = self.0.next().await else { panic!("no text") };
        let message: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(message, json!({ "action": action, "details": details }));
    }

    async fn close(mut self, code: u16) {
        self.0.send(Frame::Close(Some(CloseFrame { code: code.into(), reason: "why".into() }))).await.unwrap();
    }
}

struct Script {
    client: Client,
    events: Events,
    attempts: mpsc::UnboundedReceiver<Attempt>,
}

impl Script {
    fn start(builder: Builder) -> Self {
        let (sender, attempts) = mpsc::unbounded_channel();
        let (client, events) = builder.connect_by(Memory(sender)).unwrap();
        Self { client, events, attempts }
    }

    fn plain() -> Self {
        Self::start(Client::builder(["ws://a/"]))
    }

    async fn attempt(&mut self) -> Attempt {
        self.attempts.recv().await.expect("the client lives")
    }

    async fn event(&mut self) -> Event {
        self.events.next().await.expect("an event")
    }

    async fn expect(&mut self, event: Event) {
        assert_eq!(self.event().await, event);
    }

    /// A connection that is authenticated.
    async fn connected(&mut self) -> Peer {
        let peer = self.attempt().await.welcome().await;
        assert!(matches!(self.event().await, Event::Open { .. }));
        self.expect(message("Client/authentication", json!(["ok"]), None)).await;
        peer
    }

    /// The loss of a connection, after which it comes again.
    async fn lost(&mut self) -> (u16, String, Duration) {
        match self.event().await {
            Event::Closed { code, reason, retry_in: Some(delay) } => (code, reason, delay),
            other => panic!("{other:?}"),
        }
    }

    /// The end.
    async fn ended(&mut self, code: u16, reason: &str) {
        self.expect(Event::Closed { code, reason: reason.into(), retry_in: None }).await;
        assert_eq!(self.events.next().await, None);
        assert_eq!(self.client.send("late", json!([])), Err(SendError::Closed));
    }
}

fn message(action: &str, details: Value, at: Option<&str>) -> Event {
    Event::Message(Message { action: action.into(), details: details.into(), at: at.map(str::to_owned) })
}

#[tokio::test(start_paused = true)]
async fn what_waits_goes_out_in_its_order_once_authentication_is_answered() {
    let mut script = Script::plain();
    script.client.send("first", json!(1)).unwrap();
    script.client.send("second", Value::Null).unwrap();
    let mut peer = script.attempt().await.open().await;
    assert!(timeout(Duration::from_secs(20), peer.0.next()).await.is_err(), "nothing before the answer");
    peer.say("Client/authentication:error", json!([403, "Forbidden"])).await;
    peer.expect("first", json!([1])).await;
    peer.expect("second", json!([])).await;
    script.client.send("third", json!([[3]])).unwrap();
    peer.expect("third", json!([[3]])).await;
    script.expect(Event::Open { url: "ws://a/".into() }).await;
    let Event::Message(refused) = script.event().await else { panic!("no message") };
    assert_eq!(refused.error().unwrap().code, 403);
}

#[tokio::test(start_paused = true)]
async fn what_was_handed_to_a_connection_is_not_sent_again() {
    let mut script = Script::plain();
    let peer = script.connected().await;
    script.client.send("swallowed", json!([])).unwrap();
    while !script.client.0.queue.is_empty() {
        yield_now().await;
    }
    drop(peer);
    script.lost().await;
    script.client.send("next", json!([])).unwrap();
    script.connected().await.expect("next", json!([])).await;
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_and_a_malformed_action_are_refused() {
    let script = Script::start(Client::builder(["ws://a/"]).queue_size(2));
    assert_eq!(script.client.send("", json!([])), Err(SendError::Action));
    assert_eq!(script.client.send(&"x".repeat(256), json!([])), Err(SendError::Action));
    assert_eq!(script.client.send("a", json!([])), Ok(()));
    assert_eq!(script.client.send("b", json!([])), Ok(()));
    assert_eq!(script.client.send("c", json!([])), Err(SendError::Full));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_the_server_would_close_for_is_refused() {
    let empty = r#"{"action":"a","details":[""]}"#.len();
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    // Two bytes each, and two more for each in an escape.
    for (fill, bytes) in [("x", 1), ("ж", 2), ("\"", 2), ("\u{1f389}", 4)] {
        let fits = fill.repeat((65_536 - empty) / bytes);
        let over =
            SendError::TooLarge { size: empty + fits.len().max(fits.chars().count() * bytes) + 4, limit: 65_536 };
        assert_eq!(script.client.send("a", format!("{fits}xxxx")), Err(over));
        assert_eq!(script.client.send("a", fits.as_str()), Ok(()));
        peer.expect("a", json!([fits])).await;
    }
    script.client.send("after", json!([])).unwrap();
    peer.expect("after", json!([])).await;
    let script = Script::start(Client::builder(["ws://a/"]).message_size(empty));
    assert_eq!(script.client.send("a", ""), Ok(()));
    assert_eq!(script.client.send("a", "x"), Err(SendError::TooLarge { size: empty + 1, limit: empty }));
}

#[tokio::test(start_paused = true)]
async fn headers_and_credentials_go_with_each_connection() {
    let builder = Client::builder(["ws://a/"]).cookie("session=7").bearer("token").credentials("secret");
    let mut script = Script::start(builder);
    for _ in 0..2 {
        let attempt = script.attempt().await;
        assert_eq!(attempt.header("cookie"), Some("session=7"));
        assert_eq!(attempt.header("authorization"), Some("Bearer token"));
        let mut peer = Peer(accept_async(attempt.stream).await.unwrap());
        peer.expect("Client/authentication", json!(["secret"])).await;
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_that_change_are_asked_for_each_connection() {
    let asked = AtomicU32::new(0);
    let builder = Client::builder(["ws://a/"]).credentials_with(move || {
        let number = asked.fetch_add(1, Ordering::Relaxed);
        async move { if number == 1 { Err("none left".into()) } else { Ok(number) } }
    });
    let mut script = Script::start(builder);
    for number in 0..3 {
        let mut peer = Peer(accept_async(script.attempt().await.stream).await.unwrap());
        assert!(matches!(script.event().await, Event::Open { .. }));
        if number != 1 {
            peer.expect("Client/authentication", json!([number])).await;
            drop(peer);
            script.lost().await;
        } else {
            assert_eq!(script.lost().await.1, "no credentials: none left");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn it_comes_back_with_its_position_and_state() {
    let mut script = Script::start(Client::builder(["ws://a/path?user=ann&resume=x"]));
    let attempt = script.attempt().await;
    assert_eq!(attempt.query(), "user=ann&resume=");
    let mut peer = attempt.welcome().await;
    peer.text(json!({ "action": "Server/position", "details": ["new"], "at": "1 1", "state": "s&t" })).await;
    peer.text(json!({ "action": "news", "details": [7], "at": "1 2" })).await;
    peer.say("aside", json!([])).await;
    drop(peer);
    assert!(matches!(script.event().await, Event::Open { .. }));
    script.expect(message("Client/authentication", json!(["ok"]), None)).await;
    script.expect(Event::New).await;
    script.expect(message("news", json!([7]), Some("1 2"))).await;
    script.expect(message("aside", json!([]), None)).await;
    script.lost().await;

    let attempt = script.attempt().await;
    assert_eq!(attempt.query(), "user=ann&resume=1+2&state=s%26t");
    let mut peer = attempt.open().await;
    peer.text(json!({ "action": "Server/position", "details": ["recovered", 1] })).await;
    peer.text(json!({ "action": "news", "details": [8], "at": "1 3" })).await;
    peer.text(json!({ "action": "Server/position", "details": ["now"], "at": "1 9" })).await;
    peer.text(json!({ "action": "Server/position", "details": ["reset", "cut"], "at": "2 1", "state": "" })).await;
    drop(peer);
    assert!(matches!(script.event().await, Event::Open { .. }));
    script.expect(Event::Recovered(1)).await;
    script.expect(message("news", json!([8]), Some("1 3"))).await;
    script.expect(Event::Reset("cut".into())).await;
    script.lost().await;
    assert_eq!(script.attempt().await.query(), "user=ann&resume=2+1&state=");
}

#[tokio::test(start_paused = true)]
async fn without_resume_the_url_stays_as_it_is() {
    let mut script = Script::start(Client::builder(["ws://a/?user=ann"]).resume(false));
    assert_eq!(script.attempt().await.query(), "user=ann");
}

#[tokio::test(start_paused = true)]
async fn an_application_that_reads_slowly_holds_back_the_server_and_misses_nothing() {
    let mut script = Script::plain();
    let mut peer = script.attempt().await.open().await;
    let mut said = 0;
    let fill = "x".repeat(1024);
    while let Ok(()) = timeout(
        Duration::from_secs(5),
        peer.text(json!({ "action": "count", "details": [said, fill], "at": said.to_string() })),
    )
    .await
    {
        said += 1;
        assert!(said < 200, "memory is bounded");
    }
    // The loss comes while the next message waits for its place, which it then did not get.
    script.client.reconnect();
    assert!(matches!(script.event().await, Event::Open { .. }));
    let mut handed = 0;
    while let Event::Message(message) = script.event().await {
        assert_eq!(message.details.values()[0], json!(handed));
        handed += 1;
    }
    assert!(handed < said);
    assert_eq!(script.attempt().await.query(), format!("resume={}", handed - 1));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_names_a_time_is_left_alone_until_then() {
    let mut script = Script::plain();
    let mut attempt = script.attempt().await;
    let answer = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 20\r\ncontent-length: 0\r\n\r\n";
    attempt.stream.write_all(answer).await.unwrap();
    let (code, _, delay) = script.lost().await;
    assert_eq!(code, 1006);
    assert!((20..=30).contains(&delay.as_secs()), "{delay:?}");
    // The next loss has nothing to do with it.
    drop(script.attempt().await);
    assert!(script.lost().await.2 < Duration::from_secs(2));
}

#[tokio::test(start_paused = true)]
async fn some_ends_are_for_good() {
    for code in [1000, 1002, 1008, 4400, 4401] {
        let mut script = Script::plain();
        script.connected().await.close(code).await;
        script.ended(code, "why").await;
    }
    for code in [1001, 1011, 1012, 1013, 4000] {
        let mut script = Script::plain();
        script.connected().await.close(code).await;
        let (lost, reason, _) = script.lost().await;
        assert_eq!((lost, reason.as_str()), (code, "why"));
        script.connected().await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_server_close_it_stays_away() {
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    peer.say("Server/close", json!([])).await;
    drop(peer);
    script.expect(message("Server/close", json!([]), None)).await;
    assert!(matches!(script.event().await, Event::Closed { code: 1006, retry_in: None, .. }));
    assert_eq!(script.events.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn what_still_waits_at_the_end_comes_back() {
    let mut script = Script::plain();
    let peer = script.attempt().await.open().await;
    script.client.send("a", json!([1])).unwrap();
    peer.close(4401).await;
    assert!(matches!(script.event().await, Event::Open { .. }));
    script.expect(Event::Unsent { action: "a".into(), details: json!([1]).into() }).await;
    script.ended(4401, "why").await;
}

#[tokio::test(start_paused = true)]
async fn closing_says_farewell_and_ends_everything() {
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    script.client.close();
    assert!(matches!(peer.0.next().await, Some(Ok(Frame::Close(Some(frame)))) if u16::from(frame.code) == 1000));
    script.ended(1000, "").await;

    // While it waits for the next attempt, and while an attempt has no answer.
    let mut script = Script::plain();
    drop(script.attempt().await);
    script.lost().await;
    script.client.close();
    script.ended(1000, "").await;
    let mut script = Script::plain();
    let _unanswered = script.attempt().await;
    script.client.close();
    script.ended(1000, "").await;
}

#[tokio::test(start_paused = true)]
async fn it_ends_with_its_events() {
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    drop(script.events);
    assert!(!matches!(peer.0.next().await, Some(Ok(_))));
    assert!(script.attempts.recv().await.is_none());
    assert_eq!(script.client.send("late", json!([])), Err(SendError::Closed));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_without_an_answer_ends_in_time() {
    let mut script = Script::plain();
    let start = Instant::now();
    let _unanswered = script.attempt().await;
    let (code, reason, delay) = script.lost().await;
    assert_eq!((code, reason.as_str(), start.elapsed().as_secs()), (1006, "no answer in time", 10));
    let lost = Instant::now();
    script.attempt().await;
    assert!((delay..delay + Duration::from_millis(2)).contains(&lost.elapsed()), "as long as it said");
}

#[tokio::test(start_paused = true)]
async fn the_delay_grows_until_authentication_is_answered() {
    let builder = Client::builder(["ws://a/", "ws://b/"]).reconnect_delay_max(Duration::from_secs(8));
    let mut script = Script::start(builder);
    for limit in [500, 500, 1000, 1000, 2000, 2000, 4000, 4000, 8000, 8000, 8000, 8000] {
        drop(script.attempt().await);
        let (.., delay) = script.lost().await;
        assert!(delay <= Duration::from_millis(limit), "{delay:?}");
    }
    // Opened is not enough.
    drop(script.attempt().await.open().await);
    assert!(matches!(script.event().await, Event::Open { .. }));
    script.lost().await;
    assert_eq!(script.client.0.urls.lock().len(), 2);
    drop(script.connected().await);
    let (.., delay) = script.lost().await;
    assert!(delay <= Duration::from_millis(500), "{delay:?}");
}

#[tokio::test(start_paused = true)]
async fn urls_are_tried_in_turn_and_can_be_changed() {
    let mut script = Script::start(Client::builder(["ws://a/", "ws://b/"]));
    for host in ["a", "b", "a"] {
        let attempt = script.attempt().await;
        assert_eq!(attempt.header("host"), Some(host));
        drop(attempt);
        script.lost().await;
    }
    let attempt = script.attempt().await;
    assert_eq!(attempt.header("host"), Some("b"));
    let peer = attempt.welcome().await;
    assert!(script.client.set_urls(["nonsense"]).is_err());
    script.client.set_urls(["ws://c/", "ws://d/"]).unwrap();
    script.expect(Event::Open { url: "ws://b/".into() }).await;
    script.event().await;
    drop(peer);
    script.lost().await;
    assert_eq!(script.attempt().await.header("host"), Some("c"), "b has left the list");
}

#[tokio::test(start_paused = true)]
async fn another_connection_comes_at_once_when_it_is_wanted() {
    let mut script = Script::start(Client::builder(["ws://a/", "ws://b/"]).reconnect_delay(Duration::from_secs(30)));
    let mut peer = script.connected().await;
    let start = Instant::now();
    script.client.reconnect();
    let (code, _, delay) = script.lost().await;
    assert_eq!((code, delay), (1006, Duration::ZERO));
    assert!(!matches!(peer.0.next().await, Some(Ok(_))), "the old one is gone");
    let attempt = script.attempt().await;
    assert_eq!(attempt.header("host"), Some("b"));
    drop(attempt);
    script.lost().await;
    script.client.reconnect();
    assert_eq!(script.attempt().await.header("host"), Some("a"));
    assert!(start.elapsed() < Duration::from_millis(10));
}

#[tokio::test(start_paused = true)]
async fn what_is_no_message_is_passed_over() {
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    peer.0.send(Frame::text("{")).await.unwrap();
    peer.0.send(Frame::binary("{}")).await.unwrap();
    peer.text(json!([7])).await;
    peer.text(json!({ "details": [] })).await;
    peer.say("after", json!([])).await;
    script.expect(message("after", json!([]), None)).await;
}

#[tokio::test(start_paused = true)]
async fn events_are_a_stream() {
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    peer.say("a", json!([1])).await;
    peer.say("b", json!([2])).await;
    let actions = script
        .events
        .filter_map(|event| async { if let Event::Message(message) = event { Some(message.action) } else { None } });
    assert_eq!(actions.take(2).collect::<Vec<_>>().await, ["a", "b"]);
}
