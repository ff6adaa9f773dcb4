//! Batches of messages over HTTP: each message has its outcome, and the others do not suffer from a bad one.

use std::{sync::Arc, time::Duration};

use serde_json::{Value, json};
use tests::{
    client::soon,
    http_client::{self, Answer},
    message,
    nodes::{KEY as CLUSTER_KEY, Node, Nodes, config},
    solo::Solo,
};
use ws_cluster::{Config, Degraded, MemoryPool, Message, PublishError, Publisher, Server, Target};

const KEY: (&str, &str) = ("authorization", "Bearer key");
const MIB: usize = 1024 * 1024;

async fn start() -> Solo {
    Solo::start(Server::builder(MemoryPool::default()).publish_key("key")).await
}

async fn post(solo: &Solo, body: &[u8]) -> Answer {
    soon(http_client::request(solo.address, "POST", "/_publish", &[KEY], body)).await.expect("an answer")
}

/// Posts a batch that is understood. Returns the outcomes.
async fn batch(solo: &Solo, messages: &Value) -> Vec<Value> {
    let answer = post(solo, messages.to_string().as_bytes()).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("application/json")), "{answer:?}");
    serde_json::from_str(&answer.text).expect("an array")
}

fn to_all(action: &str, details: Value) -> Value {
    json!({ "action": action, "details": details, "to": "all" })
}

/// The status of each outcome.
fn statuses(outcomes: &[Value]) -> Vec<u64> {
    outcomes.iter().map(|outcome| outcome["status"].as_u64().expect("a status")).collect()
}

#[tokio::test]
async fn the_messages_of_a_batch_come_in_their_order() {
    let solo = start().await;
    let mut client = solo.guest().await;
    let messages: Vec<Value> = (0..1000).map(|number| to_all("news", json!([number]))).collect();
    let outcomes = batch(&solo, &messages.into()).await;
    assert_eq!(outcomes, vec![json!({ "status": 204 }); 1000]);
    for number in 0..1000 {
        client.expect("news", json!([number])).await;
    }
}

#[tokio::test]
async fn the_others_of_a_batch_go_out_beside_a_bad_one() {
    let solo = start().await;
    let mut client = solo.guest().await;
    let outcomes = batch(
        &solo,
        &json!([
            to_all("one", json!([])),
            to_all("", json!([])),
            7,
            null,
            [to_all("nested", json!([]))],
            {"action": "x", "to": "everyone"},
            {"action": "x", "to": "all", "volatile": 1},
            {"action": "x", "to": "all", "key": "x".repeat(65)},
            to_all("large", json!(["x".repeat(MIB)])),
            to_all("two", json!([])),
        ]),
    )
    .await;
    assert_eq!(statuses(&outcomes), [204, 400, 400, 400, 400, 400, 400, 400, 413, 204], "{outcomes:?}");
    assert_eq!(outcomes[0], json!({ "status": 204 }));
    assert_eq!(outcomes[4], json!({ "status": 400, "error": "a message must be a JSON object, not an array" }));
    for refused in &outcomes[1..9] {
        assert!(refused["error"].as_str().is_some_and(|why| !why.is_empty()), "{refused}");
    }
    client.expect("one", json!([])).await;
    client.expect("two", json!([])).await;
}

#[tokio::test]
async fn a_key_that_is_twice_in_a_batch_delivers_one_message() {
    let solo = start().await;
    let mut client = solo.guest().await;
    let with_key = |action: &str| json!({ "action": action, "to": "all", "key": "once" });
    let outcomes = batch(&solo, &json!([with_key("first"), with_key("second"), to_all("end", json!([]))])).await;
    assert_eq!(statuses(&outcomes), [204, 204, 204]);
    client.expect("first", json!([])).await;
    client.expect("end", json!([])).await;
    assert_eq!(statuses(&batch(&solo, &json!([with_key("third"), to_all("end", json!([]))])).await), [204, 204]);
    client.expect("end", json!([])).await;
}

#[tokio::test]
async fn a_batch_that_is_not_understood_publishes_nothing() {
    let solo = start().await;
    let mut client = solo.guest().await;
    let good = to_all("news", json!([])).to_string();
    let many = format!("[{}]", vec![&*good; 1001].join(","));
    let mut wide: Vec<u8> = format!("[{good}]").into_bytes();
    wide.insert(2, 0xff);
    let large = to_all("x", json!(["x".repeat(MIB - 100)])).to_string();
    let huge = format!("[{}]", [&*large; 8].join(","));
    let numbers = format!("[{}1]", "1,".repeat(2 * MIB));
    for (body, status, why) in [
        (many.as_bytes(), 413, "1001 messages in one batch: post at most 1000 at a time"),
        (numbers.as_bytes(), 413, "2097153 messages in one batch"),
        (huge.as_bytes(), 413, "a batch of more than"),
        (&wide, 400, "not UTF-8"),
        (format!("[{good}").as_bytes(), 400, "not JSON"),
        (format!("[{good}]x").as_bytes(), 400, "text follows"),
        (b"[]", 400, "the array is empty"),
        ("[".repeat(6 * MIB).as_bytes(), 400, "not JSON"),
    ] {
        let answer = post(&solo, body).await;
        assert!(answer.status == status && answer.text.contains(why), "{answer:?}");
    }
    batch(&solo, &json!([to_all("end", json!([]))])).await;
    client.expect("end", json!([])).await;
}

/// Two nodes, one of which is alone and does not reach the pool: it accepts nothing.
async fn cut_off(config: Config) -> (Nodes, usize) {
    let nodes = Nodes::with(2, Arc::new(MemoryPool::default()), config).await;
    let master = nodes.master();
    for node in 0..2 {
        nodes[node].server.change_settings(|live| live.set_publish_key(Some("key")).expect("a key"));
        nodes.cut_from_pool(node);
    }
    nodes.cut(0, 1);
    nodes[master].until(|status| status.degraded == Some(Degraded::Isolated)).await;
    (nodes, master)
}

async fn post_at(node: &Node, messages: &Value) -> Vec<Value> {
    let body = messages.to_string();
    let answer = soon(http_client::request(node.address, "POST", "/_publish", &[KEY], body)).await.expect("an answer");
    assert_eq!(answer.status, 200, "{answer:?}");
    serde_json::from_str(&answer.text).expect("an array")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_master_each_message_of_a_batch_has_its_outcome() {
    let mut config = config();
    config.cluster.publish_timeout = Duration::from_millis(300);
    config.cluster.pending_size = 2000;
    let (nodes, master) = cut_off(config).await;
    let small = || to_all("x", json!([]));
    let messages = json!([small(), {"action": "x"}, to_all("x", json!(["x".repeat(3000)])), small()]);
    let outcomes = post_at(&nodes[master], &messages).await;
    assert_eq!(statuses(&outcomes), [504, 400, 503, 504], "{outcomes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_publisher_publishes_several_messages_in_their_order() {
    let nodes = Nodes::start(2).await;
    let mut clients = [nodes[0].guest().await, nodes[1].guest().await];
    let publisher = Publisher::connect(nodes.pool(), CLUSTER_KEY).await.expect("a server that answers");
    let news = (0..100).map(|number| message("news", json!([number]), Target::all()));
    let bad = Message::raw("", "[]".parse::<ws_cluster::RawDetails>().expect("JSON"));
    let outcomes = publisher.publish_all(news.chain([bad, message("end", json!([]), Target::all())])).await;
    assert!(matches!(outcomes[100], Err(PublishError::ActionSize { size: 0 })), "{:?}", outcomes[100]);
    assert!(outcomes.iter().enumerate().all(|(at, outcome)| at == 100 || outcome.is_ok()), "{outcomes:?}");
    assert_eq!(publisher.publish_all([]).await, []);
    for client in &mut clients {
        for number in 0..100 {
            client.expect("news", json!([number])).await;
        }
        client.expect("end", json!([])).await;
    }
}
