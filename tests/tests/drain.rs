//! What clients see of a node that shuts down.

use std::process::Output;

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

#[tokio::test]
async fn a_node_is_drained_from_outside_and_the_others_go_on() {
    let state = tempfile::tempdir().unwrap();
    let staying = WsServer::start(state.path(), &["--demo"]).await;
    let mut leaving = WsServer::start(state.path(), &["--demo"]).await;
    leaving.ready().await;
    let mut client = leaving.client(Some("ann")).await;
    let run = async |arguments: &[&str]| {
        let Output { status, stdout, stderr } = WsServer::run(state.path(), arguments).await;
        let text = String::from_utf8_lossy(&stdout).into_owned() + &String::from_utf8_lossy(&stderr);
        (status.code(), text)
    };

    let (status, text) = run(&["drain", "ws://127.0.0.1:1"]).await;
    assert!(status == Some(1) && text.contains("the cluster has no node ws://127.0.0.1:1"), "{text}");
    let (status, text) = run(&["drain", "0123", "--key", "another key than the one of the cluster"]).await;
    assert!(status == Some(1) && text.contains("the cluster has no node 0123"), "{text}");
    let address = format!("ws://{}", leaving.address());
    let (status, text) = run(&["drain", &address, "--key", "another key than the one of the cluster"]).await;
    assert!(status == Some(1) && text.contains("refuses"), "{text}");

    let (status, text) = run(&["drain", &address]).await;
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains(&format!("{address} has left the cluster")), "{text}");
    assert_eq!(closed(&mut client).await, 1012);
    assert_eq!(leaving.wait().await.code(), Some(0));
    let (_, pool) = run(&["pool"]).await;
    assert!(pool.contains(&staying.address().to_string()) && !pool.contains(&address), "{pool}");
    // The other node accepts messages alone.
    let (status, text) = run(&["send", "news", "1", "--to", "all"]).await;
    assert_eq!(status, Some(0), "{text}");
}

/// The code with which a client is closed; the demo tells it how the cluster fares meanwhile.
async fn closed(client: &mut tests::client::Client) -> u16 {
    loop {
        if let tokio_tungstenite::tungstenite::Message::Close(frame) = client.message_in().await {
            return frame.map_or(1005, |frame| frame.code.into());
        }
    }
}
