//! What a node says of itself, and does with its clients, while something is wrong around it.

use std::{sync::Arc, time::Duration};

use http_body_util::{BodyExt, Empty};
use hyper_util::{client::legacy::Client as Http, rt::TokioExecutor};
use tests::{
    client::{Client, soon},
    nodes::{Node, Nodes, config},
};
use ws_cluster::{MemoryPool, Target};

/// The answer of `/ready`.
async fn ready(node: &Node) -> (u16, String) {
    let http = Http::builder(TokioExecutor::new()).build_http::<Empty<bytes::Bytes>>();
    let url = format!("http://{}/ready", node.address).parse().unwrap();
    let answer = soon(http.get(url)).await.unwrap();
    let status = answer.status().as_u16();
    let text = soon(answer.collect()).await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// A node that is degraded for this reason takes clients, relays, and says so.
async fn is_degraded(node: &Node, why: &str) {
    node.until(|status| status.degraded == Some(why)).await;
    assert_eq!(ready(node).await, (503, format!("degraded: {why}")));
    node.guest().await;
}

async fn is_well(node: &Node) {
    node.until(|status| status.degraded.is_none()).await;
    assert_eq!(ready(node).await, (200, "ready".to_owned()));
}

async fn said(client: &mut Client, text: &str) {
    client.expect("said", serde_json::json!([text])).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pool_that_does_not_answer_is_told_and_hinders_nobody() {
    let nodes = Nodes::start(2).await;
    let mut client = nodes[0].guest().await;
    nodes.cut_from_pool(0);
    nodes.cut_from_pool(1);
    for node in [0, 1] {
        is_degraded(&nodes[node], "the pool's database does not answer").await;
        nodes[node].server.publish("said", "all the same", Target::all()).await.expect("accepted");
        said(&mut client, "all the same").await;
    }
    nodes.heal();
    for node in [0, 1] {
        is_well(&nodes[node]).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_lost_all_others_says_that_it_is_alone_and_one_that_they_left_does_not() {
    let mut nodes = Nodes::start(2).await;
    let master = nodes.master();
    let follower = 1 - master;
    is_well(&nodes[master]).await;
    nodes.cut(master, follower);
    is_degraded(&nodes[master], "alone: the other nodes are not linked").await;
    nodes[master].server.publish("said", "alone", Target::all()).await.expect("accepted");
    nodes.heal();
    let master = nodes.settled().await;
    is_well(&nodes[master]).await;
    nodes[1 - master].stop().await.expect("a clean end");
    nodes[master].until(|status| status.nodes.len() == 1).await;
    is_well(&nodes[master]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_cut_off_the_master_sends_its_clients_elsewhere() {
    let mut settings = config();
    settings.cluster.cut_off_timeout = Duration::from_secs(3);
    let nodes = Nodes::with(3, Arc::new(MemoryPool::default()), settings).await;
    let (master, followers) = (nodes.master(), nodes.followers());
    let (cut, other) = (&nodes[followers[0]], &nodes[followers[1]]);
    let mut client = cut.guest().await;
    let mut elsewhere = other.guest().await;
    nodes.cut(master, followers[0]);
    is_degraded(cut, "no link to the master").await;
    let (code, _) = client.closed().await;
    assert_eq!(code, 1013);
    assert_eq!(ready(cut).await, (503, "not ready: no link to the master".to_owned()));
    assert_eq!(Client::try_connect(cut.address, "/WebSockets", &[]).await.err().map(|code| code.as_u16()), Some(503));
    other.server.publish("said", "the others go on", Target::all()).await.expect("accepted");
    said(&mut elsewhere, "the others go on").await;
    nodes.heal();
    is_well(cut).await;
    let mut client = cut.guest().await;
    other.server.publish("said", "together", Target::all()).await.expect("accepted");
    said(&mut client, "together").await;
}
