//! Groups that the site changes, on all nodes and in the order of messages.

use serde_json::{Value, json};
use tests::{
    client::{Client, Place, soon},
    http_client, message,
    nodes::{KEY as CLUSTER_KEY, Nodes},
};
use ws_cluster::{GroupChange, PublishError, Publisher, Target};

const KEY: (&str, &str) = ("authorization", "Bearer key");

async fn start(count: usize) -> Nodes {
    let nodes = Nodes::start(count).await;
    for node in 0..count {
        nodes[node].server.change_settings(|live| live.set_publish_key(Some("key")).expect("a key"));
    }
    nodes
}

/// Changes groups over HTTP, at one node.
async fn change(nodes: &Nodes, node: usize, order: Value) {
    let (address, body) = (nodes[node].address, order.to_string());
    let answer = soon(http_client::request(address, "POST", "/_groups", &[KEY], body)).await.expect("an answer");
    assert_eq!(answer.status, 204, "{answer:?}");
}

/// Publishes a message to a group, and one to all.
async fn say(nodes: &Nodes, node: usize, group: &str, text: &str) {
    for (action, target) in [("said", Target::group(group)), ("end", Target::all())] {
        nodes[node].server.publish(message(action, json!([text]), target)).await.expect("accepted");
    }
}

/// Asserts that the client gets the message to the group or not, and then the one to all.
async fn hears(client: &mut Client, member: bool, text: &str) {
    let mut came = client.json().await;
    // The new resume token of a client that tracks its position may come before.
    while came["action"] == "Server/position" {
        came = client.json().await;
    }
    assert_eq!(came["details"], json!([text]));
    if member {
        assert_eq!(came["action"], "said", "{text}");
        came = client.json().await;
    }
    assert_eq!(came["action"], "end", "{text}");
}

async fn with_session(nodes: &Nodes, node: usize, user: &str, session: &str) -> Client {
    Client::connect(nodes[node].address, &[("x-user", user), ("x-session", session), ("x-groups", "staff")]).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_join_and_leave_on_every_node() {
    let mut nodes = start(3).await;
    let mut clients = [
        with_session(&nodes, 0, "ann", "a").await,
        with_session(&nodes, 1, "ann", "b").await,
        with_session(&nodes, 1, "bob", "c").await,
        nodes[2].guest().await,
    ];
    let guest = nodes.connection_of(&mut clients[3]).await.to_string();
    let cases = [
        (json!({"user": "ann", "join": ["room", "other"]}), "room", [true, true, false, false]),
        (json!({"session": "b", "leave": ["room", "unknown"]}), "room", [true, false, false, false]),
        (json!({"session": "c", "join": ["room"]}), "room", [true, false, true, false]),
        (json!({"connection": guest, "join": ["room"]}), "room", [true, false, true, true]),
        (json!({"user": "ann", "join": [7], "leave": ["room"]}), "room", [false, false, true, true]),
        (json!({"connection": guest, "leave": ["room"]}), "room", [false, false, true, false]),
        // What the authenticator gave can be taken away as well.
        (json!({"user": "bob", "leave": ["staff"]}), "staff", [true, true, false, false]),
        (json!({"user": "nobody", "join": ["7"]}), "7", [true, true, false, false]),
    ];
    for (turn, (order, group, members)) in cases.into_iter().enumerate() {
        let text = order.to_string();
        change(&nodes, turn % 3, order).await;
        say(&nodes, (turn + 1) % 3, group, &text).await;
        for (client, member) in clients.iter_mut().zip(members) {
            hears(client, member, &text).await;
        }
    }
    // From another process, and with its mistake.
    let publisher = Publisher::connect(nodes.pool(), CLUSTER_KEY).await.expect("a server that answers");
    publisher.change_groups(GroupChange::user("ann").join("room")).await.expect("accepted");
    let mistake = publisher.change_groups(GroupChange::user("ann")).await;
    assert!(matches!(mistake, Err(PublishError::Invalid { .. })), "{mistake:?}");
    say(&nodes, 0, "room", "outside").await;
    for (client, member) in clients.iter_mut().zip([true, true, true, false]) {
        hears(client, member, "outside").await;
    }
}

/// Connects a client that tracks its position, and waits for what the server says first.
async fn begin(nodes: &Nodes, node: usize, user: &str) -> (Client, Place) {
    let mut place = Place::default();
    let mut client = nodes[node].tracking(user, &place).await;
    assert_eq!(client.moved(&mut place).await["details"], json!(["new"]));
    (client, place)
}

/// Connects a client again. Returns the messages that it missed.
async fn come_back(nodes: &Nodes, node: usize, user: &str, place: &mut Place) -> (Client, Vec<Value>) {
    let mut client = nodes[node].tracking(user, place).await;
    let first = client.moved(place).await;
    assert_eq!(first["details"][0], "recovered", "{first}");
    let mut missed = Vec::new();
    for _ in 0..first["details"][1].as_u64().expect("a number") {
        missed.push(client.moved(place).await["details"][0].clone());
    }
    (client, missed)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_resumes_is_in_the_groups_that_the_site_gave_it() {
    let nodes = start(2).await;
    let (mut client, mut place) = begin(&nodes, 0, "ann").await;
    let to_room = |text: &str| message("said", json!([text]), Target::group("room"));
    nodes[1].server.publish(to_room("before")).await.expect("accepted");
    change(&nodes, 1, json!({"user": "ann", "join": ["room"]})).await;
    // The token with the group.
    let token = client.moved(&mut place).await;
    assert!(token["state"].is_string() && token["details"] == json!(["now"]), "{token}");
    drop(client);
    nodes[1].server.publish(to_room("missed")).await.expect("accepted");
    let (mut client, missed) = come_back(&nodes, 1, "ann", &mut place).await;
    assert_eq!(missed, ["missed"]);
    say(&nodes, 0, "room", "again").await;
    hears(&mut client, true, "again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_order_concerns_a_client_that_is_away_and_comes_back() {
    let nodes = start(2).await;
    let (client, mut place) = begin(&nodes, 0, "ann").await;
    let to = |group: &str, text: &str| message("said", json!([text]), Target::group(group));
    drop(client);
    nodes[0].server.publish(to("room", "too early")).await.expect("accepted");
    change(&nodes, 1, json!({"user": "ann", "join": ["room", "hall"]})).await;
    nodes[0].server.publish(to("room", "in time")).await.expect("accepted");
    change(&nodes, 0, json!({"user": "ann", "leave": ["hall"]})).await;
    nodes[1].server.publish(to("hall", "too late")).await.expect("accepted");
    change(&nodes, 0, json!({"user": "bob", "leave": ["room"]})).await;
    let (mut client, missed) = come_back(&nodes, 1, "ann", &mut place).await;
    assert_eq!(missed, ["in time"]);
    say(&nodes, 0, "room", "room").await;
    hears(&mut client, true, "room").await;
    say(&nodes, 0, "hall", "hall").await;
    hears(&mut client, false, "hall").await;
    // The old token again: what the site took away while the client was there does not come back with it.
    let old = place.clone();
    change(&nodes, 1, json!({"user": "ann", "leave": ["room"]})).await;
    say(&nodes, 0, "room", "taken").await;
    hears(&mut client, false, "taken").await;
    drop(client);
    let (mut client, missed) = come_back(&nodes, 0, "ann", &mut old.clone()).await;
    assert_eq!(missed.last(), Some(&json!("taken")));
    say(&nodes, 0, "room", "gone").await;
    hears(&mut client, false, "gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handlers_change_after_an_order_stays_when_the_client_comes_back() {
    let nodes = start(2).await;
    let (mut client, mut place) = begin(&nodes, 0, "ann").await;
    change(&nodes, 0, json!({"user": "ann", "join": ["room"]})).await;
    client.moved(&mut place).await;
    client.send("leave", json!(["room"])).await;
    // The answer comes behind the token that has the change.
    while client.moved(&mut place).await["action"] != "leave" {}
    drop(client);
    let (mut client, missed) = come_back(&nodes, 1, "ann", &mut place).await;
    assert_eq!(missed, Vec::<Value>::new());
    say(&nodes, 0, "room", "left").await;
    hears(&mut client, false, "left").await;
}
