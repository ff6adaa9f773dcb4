//! Volatile messages: for those who read, and never again.

use std::sync::Arc;

use serde_json::json;
use tests::{
    client::Place,
    message,
    nodes::{Nodes, config},
};
use ws_cluster::{MemoryPool, Target};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volatile_message_reaches_those_who_read_on_every_node() {
    let nodes = Nodes::start(2).await;
    let mut clients = [nodes[0].guest().await, nodes[1].guest().await];
    let cursor = |number: usize| {
        let message = message("cursor", json!([number]), Target::all());
        if number.is_multiple_of(3) { message } else { message.volatile() }
    };
    // Together, so that several wait for one write.
    let outcomes = nodes[0].server.publish_all((0..30).map(cursor)).await;
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
    for client in &mut clients {
        for number in 0..30 {
            client.expect("cursor", json!([number])).await;
        }
    }
    nodes[1].server.deliver(message("here", json!([]), Target::all()).volatile()).expect("a message");
    clients[1].expect("here", json!([])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volatile_message_does_not_reach_a_client_that_does_not_read() {
    let mut config = config();
    config.connection.queue_size = 256 * 1024 * 1024;
    let nodes = Nodes::with(1, Arc::new(MemoryPool::default()), config).await;
    let (mut slow, mut quick) = (nodes[0].guest().await, nodes[0].guest().await);
    // More than the buffers of two sockets take.
    let large = "x".repeat(512 * 1024);
    for number in 0..64 {
        nodes[0].server.publish(message("large", json!([number, large]), Target::all())).await.expect("accepted");
        assert_eq!(quick.json().await["details"][0], number);
    }
    let cursor = || message("cursor", json!([]), Target::all()).volatile();
    nodes[0].server.publish(cursor()).await.expect("accepted");
    nodes[0].server.publish(message("end", json!([]), Target::all())).await.expect("accepted");
    quick.expect("cursor", json!([])).await;
    quick.expect("end", json!([])).await;
    for number in 0..64 {
        assert_eq!(slow.json().await["details"][0], number);
    }
    slow.expect("end", json!([])).await;
    // It has read everything.
    nodes[0].server.publish(cursor()).await.expect("accepted");
    slow.expect("cursor", json!([])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volatile_message_is_not_replayed_and_not_missed() {
    let nodes = Nodes::start(2).await;
    let mut place = Place::default();
    let mut client = nodes[0].tracking("ann", &place).await;
    client.moved(&mut place).await;
    let publish = async |text: &str, volatile: bool| {
        let message = message("said", json!([text]), Target::all());
        let message = if volatile { message.volatile() } else { message };
        nodes[1].server.publish(message).await.expect("accepted");
    };
    publish("there", true).await;
    let there = client.moved(&mut place).await;
    assert!(there["details"] == json!(["there"]) && there["at"].is_string(), "{there}");
    drop(client);
    for (text, volatile) in [("one", true), ("two", false), ("three", true), ("four", false), ("five", true)] {
        publish(text, volatile).await;
    }
    let mut client = nodes[1].tracking("ann", &place).await;
    assert_eq!(client.moved(&mut place).await["details"], json!(["recovered", 2]));
    publish("six", true).await;
    for text in ["two", "four", "six"] {
        assert_eq!(client.moved(&mut place).await["details"], json!([text]));
    }
}
