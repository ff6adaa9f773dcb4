//! A server that says nothing.

use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::json;
use tokio::time::{Instant, timeout};
use tungstenite::Message as Frame;

use super::{Client, Event, Script};

const SILENT: &str = "the server is silent";

#[tokio::test(start_paused = true)]
async fn a_silent_server_is_given_up_and_a_ping_is_a_word() {
    let mut script = Script::start(Client::builder(["ws://a/"]).silence_timeout(Duration::from_secs(50)));
    let mut peer = script.connected().await;
    let start = Instant::now();
    for _ in 0..3 {
        assert!(timeout(Duration::from_secs(25), peer.0.next()).await.is_err(), "the server pings first");
        peer.0.send(Frame::Ping("?".into())).await.unwrap();
        assert_eq!(peer.0.next().await.unwrap().unwrap(), Frame::Pong("?".into()));
    }
    let (code, reason, _) = script.lost().await;
    assert_eq!((code, reason.as_str()), (1006, SILENT));
    assert_eq!(start.elapsed().as_secs(), 125);
}

#[tokio::test(start_paused = true)]
async fn a_server_that_has_no_cause_to_ping_is_pinged() {
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    let start = Instant::now();
    // It hears its client, and has nothing to say.
    for round in 1..20 {
        for _ in 0..3 {
            script.client.send("a", json!([])).unwrap();
            peer.expect("a", json!([])).await;
        }
        assert_eq!(peer.0.next().await.unwrap().unwrap(), Frame::Ping("".into()));
        // Reading on sends the pong.
        assert!(timeout(Duration::from_millis(1), peer.0.next()).await.is_err());
        assert_eq!(start.elapsed().as_secs(), round * 30);
    }
    script.client.send("still", json!([])).unwrap();
    peer.expect("still", json!([])).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_loses_its_client_to_the_next() {
    let mut script = Script::start(Client::builder(["ws://a/", "ws://b/"]).reconnect_delay(Duration::ZERO));
    let hangs = script.connected().await;
    let start = Instant::now();
    let (code, reason, _) = script.lost().await;
    assert_eq!((code, reason.as_str(), start.elapsed().as_secs()), (1006, SILENT, 50));
    let attempt = script.attempt().await;
    assert_eq!(attempt.header("host"), Some("b"));
    drop(hangs);
    let mut peer = attempt.welcome().await;
    script.expect(Event::Open { url: "ws://b/".into() }).await;
    script.client.send("a", json!([])).unwrap();
    peer.expect("a", json!([])).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_hangs_before_it_answers_authentication_is_left_too() {
    let mut script = Script::start(Client::builder(["ws://a/", "ws://b/"]));
    let _hangs = script.attempt().await.open().await;
    script.expect(Event::Open { url: "ws://a/".into() }).await;
    assert_eq!(script.lost().await.1, SILENT);
    assert_eq!(script.attempt().await.header("host"), Some("b"));
}
