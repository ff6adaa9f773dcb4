//! Requests and their answers.

use serde_json::{Value, json};
use tokio::task::{JoinHandle, yield_now};

use super::{Client, Frame, Instant, Peer, Script, SendError, StreamExt, message};
use crate::{ActionError, RawDetails, RequestError, client::requests::Answer};

/// Begins a request, and waits until the client has taken it.
async fn ask(client: &Client, action: &'static str) -> JoinHandle<Answer> {
    let asking = client.clone();
    let asked = tokio::spawn(async move { asking.request(action, json!([action])).await });
    yield_now().await;
    asked
}

/// Returns the id of the next message, which is this request.
async fn asked(peer: &mut Peer, action: &str) -> Value {
    let Some(Ok(Frame::Text(text))) = peer.0.next().await else { panic!("no text") };
    let mut message: Value = serde_json::from_str(&text).unwrap();
    let id = message["id"].take();
    assert_eq!(message, json!({ "action": action, "details": [action], "id": null }));
    id
}

async fn answer(peer: &mut Peer, action: &str, details: Value, id: &Value) {
    peer.text(json!({ "action": action, "details": details, "id": id })).await;
}

#[tokio::test(start_paused = true)]
async fn answers_reach_those_who_asked_in_any_order_and_are_no_events() {
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    let (one, two) = (ask(&script.client, "a").await, ask(&script.client, "a").await);
    let (first, second) = (asked(&mut peer, "a").await, asked(&mut peer, "a").await);
    assert_ne!(first, second);
    answer(&mut peer, "a", json!([2]), &second).await;
    peer.say("a", json!(["for all"])).await;
    answer(&mut peer, "a", json!([]), &first).await;
    for id in [first, json!(99), json!("x"), json!(1.5)] {
        answer(&mut peer, "a", json!(["too late"]), &id).await;
    }
    peer.say("last", json!([])).await;
    assert_eq!(one.await.unwrap(), Ok(RawDetails::default()));
    assert_eq!(two.await.unwrap(), Ok(RawDetails::from(json!([2]))));
    script.expect(message("a", json!(["for all"]), None)).await;
    script.expect(message("last", json!([]), None)).await;
}

#[tokio::test(start_paused = true)]
async fn an_error_of_the_action_is_the_error_of_its_request() {
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    let failed = ask(&script.client, "a").await;
    let id = asked(&mut peer, "a").await;
    answer(&mut peer, "a:error", json!([404, "Not Found"]), &id).await;
    let error = failed.await.unwrap().unwrap_err();
    assert_eq!(error, RequestError::Action(ActionError::not_found("Not Found")));
    assert_eq!((error.code(), error.is_outcome_unknown()), (404, false));
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_ends_what_was_sent_and_the_rest_goes_to_the_next() {
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    let lost = ask(&script.client, "a").await;
    asked(&mut peer, "a").await;
    drop(peer);
    script.lost().await;
    let error = lost.await.unwrap().unwrap_err();
    assert_eq!((&error, error.code(), error.is_outcome_unknown()), (&RequestError::Lost, 499, true));
    let waits = ask(&script.client, "b").await;
    let mut peer = script.connected().await;
    let id = asked(&mut peer, "b").await;
    answer(&mut peer, "b", json!([7]), &id).await;
    assert_eq!(waits.await.unwrap(), Ok(RawDetails::from(json!(7))));
}

#[tokio::test(start_paused = true)]
async fn the_time_for_an_answer_includes_the_wait_for_a_connection() {
    let script = Script::plain();
    let begun = Instant::now();
    let unsent = ask(&script.client, "a").await;
    let error = unsent.await.unwrap().unwrap_err();
    assert_eq!((&error, error.code(), begun.elapsed().as_secs()), (&RequestError::NotConnected, 503, 30));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_has_ended_is_not_sent() {
    let mut script = Script::plain();
    let attempt = script.attempt().await;
    let dropped = ask(&script.client, "dropped").await;
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    script.client.send("after", json!([])).unwrap();
    attempt.welcome().await.expect("after", json!([])).await;
}

#[tokio::test(start_paused = true)]
async fn requests_that_end_without_a_connection_make_room_for_others() {
    let mut script = Script::start(Client::builder(["ws://a/"]).queue_size(3));
    let attempt = script.attempt().await;
    script.client.send("before", json!([])).unwrap();
    // One is dropped, and one times out.
    let (dropped, expires) = (ask(&script.client, "dropped").await, ask(&script.client, "expires").await);
    assert_eq!(script.client.send("full", json!([])), Err(SendError::Full));
    dropped.abort();
    assert!(dropped.await.unwrap_err().is_cancelled());
    script.client.send("between", json!([])).unwrap();
    assert_eq!(expires.await.unwrap(), Err(RequestError::NotConnected));
    let waits = ask(&script.client, "waits").await;
    assert_eq!(script.client.send("full", json!([])), Err(SendError::Full));
    // The attempts have ended meanwhile, so another one takes what waits, in its order.
    drop(attempt);
    while script.attempts.try_recv().is_ok() {}
    let mut peer = script.attempt().await.welcome().await;
    peer.expect("before", json!([])).await;
    peer.expect("between", json!([])).await;
    let id = asked(&mut peer, "waits").await;
    answer(&mut peer, "waits", json!([7]), &id).await;
    assert_eq!(waits.await.unwrap(), Ok(RawDetails::from(json!(7))));
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_answer_is_waited_for_in_vain() {
    let mut script = Script::start(Client::builder(["ws://a/"]).request_timeout(std::time::Duration::from_secs(5)));
    let mut peer = script.connected().await;
    let begun = Instant::now();
    let waits = ask(&script.client, "a").await;
    asked(&mut peer, "a").await;
    let error = waits.await.unwrap().unwrap_err();
    assert_eq!((&error, error.code(), begun.elapsed().as_secs()), (&RequestError::NoAnswer, 504, 5));
    assert!(error.is_outcome_unknown());
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_client_ends_its_requests() {
    let mut script = Script::plain();
    let mut peer = script.connected().await;
    let lost = ask(&script.client, "a").await;
    asked(&mut peer, "a").await;
    peer.close(4401).await;
    script.ended(4401, "why").await;
    assert_eq!(lost.await.unwrap(), Err(RequestError::Lost));
    assert_eq!(script.client.request("b", ()).await, Err(SendError::Closed.into()));

    // One that waits is no unsent message, and it ends with the events as well.
    for events_too in [false, true] {
        let mut script = Script::plain();
        let _attempt = script.attempt().await;
        let waits = ask(&script.client, "a").await;
        if events_too {
            drop(script.events);
        } else {
            script.client.close();
            script.ended(1000, "").await;
        }
        assert_eq!(waits.await.unwrap(), Err(SendError::Closed.into()));
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_not_taken_is_refused_with_the_reason() {
    let script = Script::start(Client::builder(["ws://a/"]).queue_size(1).message_size(100));
    let request = async |action: &str, details: &str| script.client.request(action, details).await.unwrap_err();
    assert_eq!(request("", "").await, SendError::Action.into());
    let large = request("a", &"x".repeat(100)).await;
    assert!(matches!(large, RequestError::Unsent(SendError::TooLarge { limit: 100, .. })) && large.code() == 413);
    script.client.send("a", json!([])).unwrap();
    assert_eq!(request("a", "").await, SendError::Full.into());
    assert!(script.client.0.requests.is_empty());
}
