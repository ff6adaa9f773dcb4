//! What clients see of a node that shuts down.

use serde_json::json;
use tests::WsServer;

#[tokio::test]
async fn clients_are_closed_one_after_the_other_and_those_that_are_left_are_served() {
    let state = tempfile::tempdir().unwrap();
    let mut command = WsServer::command(state.path());
    // Far longer than the test takes: it ends when the last client is gone.
    command.args(["run", "--listen", "127.0.0.1:0", "--pool", "memory:", "--demo", "--drain", "1h"]);
    let mut node = WsServer::spawn(command).await;
    let mut clients = [node.client(Some("ann")).await, node.client(Some("bob")).await];
    node.terminate();
    node.logged("shutting down").await;
    // One of the two is closed at once, the other after half of the time.
    let (ann, bob) = {
        let [ann, bob] = &mut clients;
        tokio::select! {
            code = closed(ann) => (Some(code), None),
            code = closed(bob) => (None, Some(code)),
        }
    };
    assert_eq!(ann.or(bob), Some(1012));
    let [ann_left, bob_left] = clients;
    let mut left = if ann.is_some() { bob_left } else { ann_left };
    left.send("hello", json!(["world"])).await;
    loop {
        let message = left.json().await;
        if message["action"] == "hello" {
            break;
        }
        assert_eq!(message["action"], "demo/node");
    }
    drop(left);
    assert_eq!(node.wait().await.code(), Some(0));
}

/// The code with which a client is closed; the demo tells it how the cluster fares meanwhile.
async fn closed(client: &mut tests::client::Client) -> u16 {
    loop {
        if let tokio_tungstenite::tungstenite::Message::Close(frame) = client.message_in().await {
            return frame.map_or(1005, |frame| frame.code.into());
        }
    }
}
