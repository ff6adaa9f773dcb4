//! Bursts: a client that reads gets more than its queue may hold, and only a client that does not read is closed.

use std::{net::SocketAddr, sync::Arc};
use tests::message;

use async_trait::async_trait;
use futures_util::future::join_all;
use serde_json::{Value, json};
use tests::{
    client::{Client, Place},
    nodes::Nodes,
};
use tokio::{net::TcpListener, task::JoinSet};
use ws_cluster::{ActionError, ActionHandler, Config, MemoryPool, Request, Server, Target};

/// A handler that answers with a given number of messages of a given size.
struct Many;

#[async_trait]
impl ActionHandler for Many {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        let (count, size): (usize, usize) = request.parse()?;
        for number in 0..count {
            request.reply(json!([number, "x".repeat(size)]))?;
        }
        Ok(())
    }

    fn guests(&self) -> bool {
        true
    }
}

async fn server() -> (Server, SocketAddr) {
    let server = Server::builder(MemoryPool::default()).action("many", Many).start().await.unwrap();
    server.wait_ready().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(std::future::pending()).await });
    (server, address)
}

/// Returns the numbers of `count` messages, which must come in their order.
async fn in_order(client: &mut Client, action: &str, count: usize) {
    for number in 0..count {
        let message = client.json().await;
        assert_eq!((message["action"].as_str(), &message["details"][0]), (Some(action), &json!(number)));
    }
}

fn details(number: usize, size: usize) -> Value {
    json!([number, "x".repeat(size)])
}

/// Publishes at one node, all at once.
async fn publish(server: &Server, count: usize, size: usize) {
    let publishes = (0..count).map(|number| server.publish(message("large", details(number, size), Target::all())));
    join_all(publishes).await.into_iter().for_each(|accepted| accepted.expect("accepted"));
}

#[tokio::test]
async fn many_small_messages_at_once_reach_a_client_that_reads() {
    let (server, address) = server().await;
    let mut client = Client::connect(address, &[]).await;
    client.send("many", json!([1, 1])).await;
    client.json().await;
    for number in 0..20_000 {
        server.deliver(message("small", details(number, 200), Target::all())).unwrap();
    }
    in_order(&mut client, "small", 20_000).await;
}

#[tokio::test]
async fn publishes_of_the_largest_size_at_once_reach_a_client_that_reads() {
    let (server, address) = server().await;
    let mut client = Client::connect(address, &[]).await;
    client.send("many", json!([1, 1])).await;
    client.json().await;
    tokio::join!(publish(&server, 6, 1024 * 1024 - 50), in_order(&mut client, "large", 6));
}

#[tokio::test]
async fn answers_of_a_handler_beyond_the_queue_reach_a_client_that_reads() {
    let (_, address) = server().await;
    let mut client = Client::connect(address, &[]).await;
    client.send("many", json!([50, 100_000])).await;
    in_order(&mut client, "many", 50).await;
}

#[tokio::test]
async fn a_close_after_a_burst_comes_behind_it() {
    let (server, address) = server().await;
    let mut client = Client::connect(address, &[]).await;
    client.send("many", json!([1, 1])).await;
    client.json().await;
    for number in 0..40 {
        server.deliver(message("large", details(number, 100_000), Target::all())).unwrap();
    }
    let shut_down = server.shutdown();
    let reads = async {
        in_order(&mut client, "large", 40).await;
        assert_eq!(client.closed().await.0, 1012);
    };
    tokio::join!(shut_down, reads);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dismissal_after_a_burst_comes_behind_it() {
    let nodes = Nodes::start(1).await;
    let mut client = nodes[0].user("ann").await;
    client.send("where", json!([])).await;
    client.expect("where", json!([])).await;
    for number in 0..40 {
        nodes[0].server.deliver(message("large", details(number, 100_000), Target::all())).unwrap();
    }
    let closing = async { nodes[0].server.close_user("ann").await.expect("accepted") };
    let reading = async {
        in_order(&mut client, "large", 40).await;
        client.expect("Server/close", json!([])).await;
        assert_eq!(client.closed().await.0, 1000);
    };
    tokio::join!(closing, reading);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_of_a_node_that_hung_reaches_reading_clients_on_every_node() {
    let nodes = Nodes::start(2).await;
    let master = nodes.settled().await;
    let follower = nodes.followers()[0];
    let mut readers = JoinSet::new();
    for node in [master, master, follower, follower] {
        let mut client = nodes[node].user("ann").await;
        client.send("where", json!([])).await;
        client.expect("where", json!([])).await;
        readers.spawn(async move { in_order(&mut client, "large", 30).await });
    }
    // The next messages are delivered at once, on both nodes, when the follower has them.
    nodes.cut(master, follower);
    let publishing = publish(&nodes[master].server, 30, 100_000);
    let healing = async {
        // A query that the master answers after it has taken the publishes.
        tokio::task::yield_now().await;
        let mut client = nodes[master].user("bob").await;
        client.send("where", json!([])).await;
        client.expect("where", json!([])).await;
        nodes.heal();
    };
    tokio::join!(publishing, healing);
    while let Some(read) = readers.join_next().await {
        read.expect("all of it came");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_of_many_large_messages_comes_whole() {
    let mut config = Config::default();
    config.connection.queue_size = 64 * 1024;
    let nodes = Nodes::with(1, Arc::new(MemoryPool::default()), config).await;
    let mut place = Place::default();
    let mut client = nodes[0].tracking("ann", &place).await;
    client.moved(&mut place).await;
    nodes[0].server.publish(message("first", json!([]), Target::all())).await.unwrap();
    client.moved(&mut place).await;
    drop(client);
    publish(&nodes[0].server, 40, 100_000).await;
    let mut client = nodes[0].tracking("ann", &place).await;
    assert_eq!(client.moved(&mut place).await["details"], json!(["recovered", 40]));
    in_order(&mut client, "large", 40).await;
}
