//! Clients that come back: to the same node or another, with what they missed, or with a reset.

use std::sync::Arc;
use tests::message;

use serde_json::{Value, json};
use tests::{
    client::{Client, Place},
    nodes::{Nodes, config},
};
use ws_cluster::{
    Config, MemoryPool, Target,
    client::{Event, Events},
};

/// Starts one server, with settings.
async fn one(set: impl FnOnce(&mut Config)) -> Nodes {
    let mut config = config();
    set(&mut config);
    Nodes::with(1, Arc::new(MemoryPool::default()), config).await
}

/// Returns the next message's action and details.
async fn next(client: &mut Client, place: &mut Place) -> (String, Value) {
    let message = client.moved(place).await;
    (message["action"].as_str().expect("an action").to_owned(), message["details"].clone())
}

fn position(details: Value) -> (String, Value) {
    ("Server/position".to_owned(), details)
}

fn said(text: &str) -> (String, Value) {
    ("said".to_owned(), json!([text]))
}

/// Connects a new client of this user, which begins.
async fn begin(nodes: &Nodes, node: usize, user: &str) -> (Client, Place) {
    let mut place = Place::default();
    let mut client = nodes[node].tracking(user, &place).await;
    assert_eq!(next(&mut client, &mut place).await, position(json!(["new"])));
    assert!(!place.at.is_empty() && place.state.is_some());
    (client, place)
}

/// Publishes `said`.
async fn say(nodes: &Nodes, node: usize, text: &str, target: Target) {
    nodes[node].server.publish(message("said", text, target)).await.expect("accepted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_carry_positions_only_for_clients_that_ask() {
    let nodes = Nodes::start(2).await;
    let (mut tracking, mut place) = begin(&nodes, 0, "ann").await;
    let (mut other, mut elsewhere) = begin(&nodes, 1, "ann").await;
    let mut plain = nodes[0].user("ann").await;
    say(&nodes, 1, "one", Target::all()).await;
    let before = place.at.clone();
    assert_eq!(next(&mut tracking, &mut place).await, said("one"));
    assert_eq!(next(&mut other, &mut elsewhere).await, said("one"));
    assert_eq!(place.at, elsewhere.at, "the same on every node");
    assert_ne!(place.at, before);
    plain.expect("said", json!(["one"])).await;
    // A message outside of the cluster's order has no position.
    tracking.send("where", json!([])).await;
    assert_eq!(tracking.json().await, json!({ "action": "where", "details": [] }));
    // The other form has no position either.
    let mut array = nodes[0].tracking("ann", &Place::default()).await;
    array.json().await;
    array.text(r#"["where"]"#).await;
    assert_eq!(array.json().await, json!(["where", []]));
    say(&nodes, 1, "two", Target::all()).await;
    assert_eq!(array.json().await, json!(["said", ["two"]]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn missed_messages_come_on_any_node_before_new_ones() {
    let nodes = Nodes::start(3).await;
    let (mut client, mut place) = begin(&nodes, 0, "ann").await;
    say(&nodes, 1, "seen", Target::all()).await;
    assert_eq!(next(&mut client, &mut place).await, said("seen"));
    let mut others = Vec::new();
    for node in 0..3 {
        others.push(nodes[node].user("carl").await);
    }
    for node in [1, 2, 0, 0] {
        drop(client);
        for (text, target) in [
            ("for all", Target::all()),
            ("for bob", Target::user("bob")),
            ("for ann", Target::users(["ann", "bob"])),
            ("for those with a user, but not ann", Target::registered().except_user("ann")),
            ("for those with a user", Target::registered()),
        ] {
            say(&nodes, 2, text, target).await;
        }
        // An accepted message is not yet delivered everywhere.
        for other in &mut others {
            while other.json().await["details"] != json!(["for those with a user"]) {}
        }
        client = nodes[node].tracking("ann", &place).await;
        assert_eq!(next(&mut client, &mut place).await, position(json!(["recovered", 3])), "on node {node}");
        say(&nodes, 1, "live", Target::all()).await;
        for text in ["for all", "for ann", "for those with a user", "live"] {
            assert_eq!(next(&mut client, &mut place).await, said(text));
        }
    }
    // The client missed nothing.
    client = nodes[1].tracking("ann", &place).await;
    assert_eq!(next(&mut client, &mut place).await, position(json!(["recovered", 0])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_properties_and_the_own_id_survive_a_hop() {
    let mut nodes = Nodes::start(2).await;
    let (mut ann, mut place) = begin(&nodes, 0, "ann").await;
    let (mut bob, mut bobs) = begin(&nodes, 0, "bob").await;
    for client in [&mut ann, &mut bob] {
        for (action, detail) in [("join", "kitchen"), ("join", "hall"), ("leave", "hall"), ("paint", "red")] {
            client.send(action, json!([detail])).await;
        }
    }
    for (client, place) in [(&mut ann, &mut place), (&mut bob, &mut bobs)] {
        for action in ["join", "join", "leave", "paint"] {
            // The resume token comes before the answer, so a client that has the answer keeps the room.
            assert_eq!(next(client, place).await, position(json!(["now"])));
            assert_eq!(next(client, place).await.0, action);
        }
    }
    let id = nodes.connection_of(&mut ann).await;
    // A message of ann reaches bob, and not ann when she comes back on another node.
    ann.send("say", json!(["kitchen", "by ann"])).await;
    assert_eq!(next(&mut ann, &mut place).await.0, "say");
    assert_eq!(next(&mut bob, &mut bobs).await, said("by ann"));
    drop(ann);
    bob.send("say", json!(["kitchen", "while ann is away"])).await;
    assert_eq!(next(&mut bob, &mut bobs).await.0, "say");
    say(&nodes, 0, "red", Target::property("colour", "red")).await;
    say(&nodes, 0, "hall", Target::group("hall")).await;
    let mut ann = nodes[1].tracking("ann", &place).await;
    assert_eq!(next(&mut ann, &mut place).await, position(json!(["recovered", 2])));
    assert_eq!(next(&mut ann, &mut place).await, said("while ann is away"));
    assert_eq!(next(&mut ann, &mut place).await, said("red"));
    assert_eq!(nodes.connection_of(&mut ann).await, id);
    say(&nodes, 0, "to all but ann", Target::all().except_connection(id)).await;
    say(&nodes, 0, "to this connection", Target::connection(id)).await;
    assert_eq!(next(&mut ann, &mut place).await, said("to this connection"));
}

#[tokio::test]
async fn a_replay_that_is_not_possible_is_a_reset() {
    let nodes = one(|config| {
        config.connection.replay_count = 3;
        config.log.count = 20;
    })
    .await;
    let (client, place) = begin(&nodes, 0, "ann").await;
    drop(client);
    let resume = async |user: &str, place: &Place| {
        let mut place = place.clone();
        let mut client = nodes[0].tracking(user, &place).await;
        let (action, details) = next(&mut client, &mut place).await;
        assert_eq!(action, "Server/position");
        // The client still continues from here.
        say(&nodes, 0, "live", Target::all()).await;
        assert_eq!(next(&mut client, &mut place).await, said("live"));
        details
    };
    let reset = |details: &Value, why: &str| {
        assert!(details[0] == "reset" && details[1].as_str().is_some_and(|text| text.contains(why)), "{details}");
    };
    assert_eq!(resume("ann", &place).await, json!(["recovered", 0]));
    reset(&resume("bob", &place).await, "not valid for this user");
    reset(&resume("ann", &Place { state: None, ..place.clone() }).await, "missing");
    reset(&resume("ann", &Place { state: Some("AAAA".into()), ..place.clone() }).await, "not valid for this user");
    reset(&resume("ann", &Place { at: "nonsense".into(), ..place.clone() }).await, "not of this cluster");
    reset(&resume("ann", &place).await, "too many");
    for number in 0..40 {
        say(&nodes, 0, &number.to_string(), Target::user("bob")).await;
    }
    // The log is trimmed some time after it is full.
    let mut details = resume("ann", &place).await;
    while details[1] != "too much has happened since" {
        details = resume("ann", &place).await;
        reset(&details, "too m");
    }
    // A position of another cluster, under the same key.
    let other = one(|_| {}).await;
    let (client, place) = begin(&other, 0, "ann").await;
    drop(client);
    reset(&resume("ann", &place).await, "");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_has_seen_more_than_its_new_node_waits_for_it() {
    let nodes = Nodes::start(3).await;
    let (master, followers) = (nodes.settled().await, nodes.followers());
    let (here, behind) = (followers[0], followers[1]);
    let (mut client, mut place) = begin(&nodes, here, "ann").await;
    nodes.cut_one_way(master, behind);
    say(&nodes, here, "not yet everywhere", Target::all()).await;
    assert_eq!(next(&mut client, &mut place).await, said("not yet everywhere"));
    drop(client);
    let mut client = nodes[behind].tracking("ann", &place).await;
    say(&nodes, here, "missed", Target::all()).await;
    // A client that comes after it, and has seen less, is answered at once.
    begin(&nodes, behind, "bob").await;
    nodes.heal();
    let (action, details) = next(&mut client, &mut place).await;
    assert_eq!((action.as_str(), &details[0]), ("Server/position", &json!("recovered")));
    assert_eq!(next(&mut client, &mut place).await, said("missed"));
}

#[tokio::test]
async fn quiet_clients_are_told_their_position() {
    let nodes = one(|config| {
        config.log.count = 8;
        config.connection.position_interval = std::time::Duration::from_millis(1);
    })
    .await;
    let (mut client, mut place) = begin(&nodes, 0, "ann").await;
    // More than the log holds, all of it for another user.
    for number in 0..30 {
        say(&nodes, 0, &number.to_string(), Target::user("bob")).await;
    }
    say(&nodes, 0, "end", Target::user("ann")).await;
    let mut told = 0;
    let mut last = next(&mut client, &mut place).await;
    while last == position(json!(["now"])) {
        told += 1;
        last = next(&mut client, &mut place).await;
    }
    assert_eq!(last, said("end"));
    say(&nodes, 0, "for bob", Target::user("bob")).await;
    assert_eq!(next(&mut client, &mut place).await, position(json!(["now"])), "told {told} times before");
    let mut client = nodes[0].tracking("ann", &place).await;
    assert_eq!(next(&mut client, &mut place).await, position(json!(["recovered", 0])));
}

/// Returns the next event of a client of the library, without the names of URLs.
async fn hear(events: &mut Events) -> String {
    match events.next().await.expect("the client lives") {
        Event::Open { .. } => "open".into(),
        Event::Message(message) if message.action == "Client/authentication" => "authenticated".into(),
        Event::Message(message) => format!("{} {}", message.action, message.details),
        Event::New => "new".into(),
        Event::Recovered(count) => format!("recovered {count}"),
        Event::Reset(why) => format!("reset: {why}"),
        Event::Closed { code, .. } => format!("closed {code}"),
        other => format!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_client_of_the_library_gets_each_message_once_while_its_nodes_leave() {
    let mut nodes = Nodes::start(3).await;
    let urls: Vec<String> = (0..3).map(|node| format!("ws://{}/WebSockets", nodes[node].address)).collect();
    let (client, mut events) = ws_cluster::Client::builder(&urls).header("x-user", "ann").connect().unwrap();
    for expected in ["open", "new", "authenticated"] {
        assert_eq!(hear(&mut events).await, expected);
    }
    client.send("join", json!(["kitchen"])).unwrap();
    assert_eq!(hear(&mut events).await, "join []");
    let mut count = 0;
    for leaving in 0..2 {
        let staying = &nodes[2];
        let last = count + 20;
        let publishing = async {
            for number in count..last {
                staying.server.publish(message("count", number, Target::group("kitchen"))).await.expect("accepted");
            }
        };
        let server = nodes[leaving].server.clone();
        tokio::join!(publishing, server.shutdown());
        while count < last {
            match hear(&mut events).await.as_str() {
                text if text.starts_with("count ") => {
                    assert_eq!(text, format!("count [{count}]"));
                    count += 1;
                }
                "closed 1012" | "closed 1006" | "open" | "authenticated" => {}
                text if text.starts_with("recovered ") => {}
                text => panic!("{text}"),
            }
        }
        nodes[leaving].stop().await.expect("a clean end");
        nodes.settled().await;
    }
}
