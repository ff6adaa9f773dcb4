//! What the server says of who the client is, and credentials that expire.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};
use tokio_tungstenite::accept_async;
use tungstenite::Message as Frame;

use super::{Builder, Client, Event, Peer, Script};

/// A client whose credentials are the numbers from 0 on; `None` where there are none at that time.
fn numbered(none: &'static [u32]) -> Builder {
    let asked = Arc::new(AtomicU32::new(0));
    Client::builder(["ws://a/"]).reconnect_delay(Duration::ZERO).silence_timeout(Duration::MAX).credentials_with(
        move || {
            let number = asked.fetch_add(1, Ordering::Relaxed);
            async move { if none.contains(&number) { Err("none".into()) } else { Ok(number) } }
        },
    )
}

async fn begin(script: &mut Script) -> Peer {
    let peer = Peer(accept_async(script.attempt().await.stream).await.unwrap());
    assert!(matches!(script.event().await, Event::Open { .. }));
    peer
}

impl Peer {
    async fn accept(&mut self, script: &mut Script, about: Value) {
        self.say("Client/authentication", json!(["ok", about])).await;
        assert!(matches!(script.event().await, Event::Message(message) if message.action == "Client/authentication"));
    }

    async fn refuse(&mut self, script: &mut Script, code: u16) {
        self.say("Client/authentication:error", json!([code, "why"])).await;
        assert!(matches!(script.event().await, Event::Message(message) if message.error().unwrap().code == code));
    }

    /// Nothing comes for so long.
    async fn nothing(&mut self, seconds: u64) {
        assert!(timeout(Duration::from_secs(seconds), self.0.next()).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn the_answer_says_the_connection_and_the_user() {
    let mut script = Script::start(Client::builder(["ws://a/"]).silence_timeout(Duration::MAX));
    let client = script.client.clone();
    let said = || (client.connection_id(), client.user());
    let both = (Some("7f.1".to_owned()), Some("ann".to_owned()));
    assert_eq!(said(), (None, None));
    let mut peer = script.attempt().await.open().await;
    assert!(matches!(script.event().await, Event::Open { .. }));
    peer.accept(&mut script, json!({ "connection": "7f.1", "user": "ann", "expires_in": 7 })).await;
    assert_eq!(said(), both);
    // On a connection that is authenticated a refusal changes nothing, nor does a loss.
    peer.refuse(&mut script, 403).await;
    assert_eq!(said(), both);
    drop(peer);
    script.lost().await;
    assert_eq!(said(), both);
    let mut peer = script.attempt().await.open().await;
    assert!(matches!(script.event().await, Event::Open { .. }));
    peer.refuse(&mut script, 403).await;
    assert_eq!(said(), (None, None));
    for odd in [json!(null), json!("x"), json!([]), json!({ "connection": 7, "user": null, "expires_in": -1 })] {
        peer.accept(&mut script, odd).await;
        assert_eq!(said(), (None, None));
    }
    peer.nothing(100_000).await;
}

#[tokio::test(start_paused = true)]
async fn credentials_are_shown_again_before_they_expire() {
    let mut script = Script::start(numbered(&[]));
    let mut peer = begin(&mut script).await;
    for number in 0..4 {
        peer.expect("Client/authentication", json!([number])).await;
        let start = Instant::now();
        peer.accept(&mut script, json!({ "user": "ann", "expires_in": 3600 })).await;
        peer.nothing(3479).await;
        script.client.send("meanwhile", json!([])).unwrap();
        peer.expect("meanwhile", json!([])).await;
        assert!(start.elapsed() < Duration::from_secs(3480));
    }
    let asked = Instant::now();
    peer.expect("Client/authentication", json!([4])).await;
    assert!(asked.elapsed() <= Duration::from_secs(61));
}

#[tokio::test(start_paused = true)]
async fn credentials_that_last_a_few_seconds_are_shown_again_in_time() {
    for seconds in [2, 3, 7, 12] {
        let mut script = Script::start(numbered(&[]));
        let mut peer = begin(&mut script).await;
        for number in 0..10 {
            let start = Instant::now();
            peer.expect("Client/authentication", json!([number])).await;
            assert!(start.elapsed() < Duration::from_secs(seconds), "{seconds} s");
            peer.accept(&mut script, json!({ "user": "ann", "expires_in": seconds })).await;
        }
    }
    // If the time is almost over, the next connection brings new ones.
    let mut script = Script::start(numbered(&[]));
    let mut peer = begin(&mut script).await;
    peer.expect("Client/authentication", json!([0])).await;
    peer.accept(&mut script, json!({ "user": "ann", "expires_in": 1 })).await;
    peer.nothing(100).await;
}

#[tokio::test(start_paused = true)]
async fn what_fails_for_now_is_tried_again_while_time_remains() {
    let mut script = Script::start(numbered(&[1]));
    let mut peer = begin(&mut script).await;
    peer.expect("Client/authentication", json!([0])).await;
    let start = Instant::now();
    peer.accept(&mut script, json!({ "expires_in": 600 })).await;
    for (number, code) in [(2, 503), (3, 429), (4, 403)] {
        peer.expect("Client/authentication", json!([number])).await;
        assert!(start.elapsed() < Duration::from_secs(600));
        peer.refuse(&mut script, code).await;
        script.client.send("lives", json!([])).unwrap();
        peer.expect("lives", json!([])).await;
        if start.elapsed() > Duration::from_secs(590) {
            return;
        }
    }
    // Refused for good.
    peer.nothing(600).await;
}

#[tokio::test(start_paused = true)]
async fn messages_wait_for_the_next_connection_if_the_server_closes_after_an_error() {
    let mut script = Script::start(numbered(&[]));
    let mut peer = begin(&mut script).await;
    peer.expect("Client/authentication", json!([0])).await;
    script.client.send("a", json!([])).unwrap();
    let error = json!({ "action": "Client/authentication:error", "details": [503, "why"], "close": 4002 });
    peer.text(error).await;
    assert!(matches!(script.event().await, Event::Message(message) if message.error().unwrap().code == 503));
    script.client.send("b", json!([])).unwrap();
    peer.nothing(5).await;
    peer.close(4002).await;
    assert_eq!(script.lost().await.0, 4002);
    let mut peer = begin(&mut script).await;
    peer.expect("Client/authentication", json!([1])).await;
    peer.accept(&mut script, json!({ "user": "ann" })).await;
    for action in ["a", "b"] {
        peer.expect(action, json!([])).await;
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_that_do_not_change_are_shown_again_and_none_are_not() {
    let builder = || Client::builder(["ws://a/"]).silence_timeout(Duration::MAX);
    for (builder, details, again) in
        [(builder().credentials("token"), json!(["token"]), true), (builder(), json!([]), false)]
    {
        let mut script = Script::start(builder);
        let mut peer = begin(&mut script).await;
        peer.expect("Client/authentication", details.clone()).await;
        peer.accept(&mut script, json!({ "user": "ann", "expires_in": 100 })).await;
        if again {
            peer.expect("Client/authentication", details).await;
        } else {
            peer.nothing(100).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn credentials_that_are_too_large_are_not_sent() {
    let mut script = Script::start(Client::builder(["ws://a/"]).credentials("x".repeat(65_536)));
    let mut peer = begin(&mut script).await;
    let (code, reason, _) = script.lost().await;
    assert_eq!(code, 1006);
    assert!(reason.starts_with("no credentials: they have 655"), "{reason}");
    assert!(!matches!(peer.0.next().await, Some(Ok(Frame::Text(_)))));
}
