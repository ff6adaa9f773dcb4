//! The proofs of a client that comes back: the cluster accepts what it has sealed for the client, and nothing that the
//! client made up or kept from before.

use std::{sync::Arc, time::Duration};
use tests::message;

use async_trait::async_trait;
use data_encoding::BASE64URL_NOPAD;
use serde_json::{Value, json};
use tests::{
    client::{Client, Place},
    nodes::Nodes,
};
use tokio::net::TcpListener;
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Config, Credentials, Handshake, Identity,
    MemoryPool, Request, Server, Target,
};

/// Returns the same position with another number in it, as anyone can write it.
fn forged(at: &str, seq: u8) -> String {
    let bytes = BASE64URL_NOPAD.decode(at.as_bytes()).unwrap();
    let end = |from: usize| from + 1 + bytes[from..].iter().position(|byte| byte & 0x80 == 0).unwrap();
    let (term, after) = (end(0), end(end(0)));
    BASE64URL_NOPAD.encode(&[&bytes[..term], &[seq], &bytes[after..]].concat())
}

async fn begin(nodes: &Nodes, node: usize, user: &str) -> (Client, Place) {
    let mut place = Place::default();
    let mut client = nodes[node].tracking(user, &place).await;
    assert_eq!(client.moved(&mut place).await["details"], json!(["new"]));
    (client, place)
}

async fn say(nodes: &Nodes, node: usize, text: &str, target: Target) {
    nodes[node].server.publish(message("said", text, target)).await.expect("accepted");
}

/// Lets a client perform an action, and takes its new resume token.
async fn act(client: &mut Client, place: &mut Place, action: &str, detail: &str) {
    client.send(action, json!([detail])).await;
    while client.moved(place).await["action"] != action {}
}

/// Connects a client that comes back. Returns it with the details of its position.
async fn back(nodes: &Nodes, node: usize, user: &str, place: &Place) -> (Client, Value) {
    let mut client = nodes[node].tracking(user, place).await;
    let details = client.moved(&mut place.clone()).await["details"].clone();
    (client, details)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_made_up_position_repeats_nothing_from_before_its_client_began() {
    let nodes = Nodes::start(2).await;
    for text in ["secret", "secret too"] {
        say(&nodes, 0, text, Target::all()).await;
    }
    let (client, place) = begin(&nodes, 0, "ann").await;
    drop(client);
    say(&nodes, 0, "missed", Target::all()).await;
    for node in [0, 1] {
        let early = Place { at: forged(&place.at, 1), ..place.clone() };
        let (mut client, details) = back(&nodes, node, "ann", &early).await;
        assert_eq!(details, json!(["recovered", 1]));
        assert_eq!(client.json().await["details"], json!(["missed"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_made_up_position_repeats_nothing_from_before_its_client_joined_or_was_marked() {
    let nodes = Nodes::start(2).await;
    let (mut client, mut place) = begin(&nodes, 0, "ann").await;
    say(&nodes, 0, "secret", Target::group("kitchen")).await;
    say(&nodes, 0, "secret", Target::property("colour", "red")).await;
    act(&mut client, &mut place, "join", "kitchen").await;
    act(&mut client, &mut place, "paint", "red").await;
    say(&nodes, 0, "for the kitchen", Target::group("kitchen")).await;
    say(&nodes, 0, "for reds", Target::property("colour", "red")).await;
    let early = Place { at: forged(&place.at, 1), ..place.clone() };
    drop(client);
    for node in [1, 0] {
        let (mut client, details) = back(&nodes, node, "ann", &early).await;
        assert_eq!(details, json!(["recovered", 2]));
        assert_eq!(client.json().await["details"], json!(["for the kitchen"]));
        assert_eq!(client.json().await["details"], json!(["for reds"]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_that_are_new_at_the_return_get_nothing_older() {
    let nodes = Nodes::start(1).await;
    let (client, place) = begin(&nodes, 0, "ann").await;
    drop(client);
    say(&nodes, 0, "before", Target::group("editors")).await;
    let path = format!("/WebSockets?resume={}&state={}", place.at, place.state.as_deref().unwrap());
    let headers = [("x-user", "ann"), ("x-groups", "editors")];
    let mut client = Client::try_connect(nodes[0].address, &path, &headers).await.unwrap();
    let mut now = Place::default();
    assert_eq!(client.moved(&mut now).await["details"], json!(["recovered", 0]));
    drop(client);
    say(&nodes, 0, "after", Target::group("editors")).await;
    // From the very beginning once more, with its present resume token.
    let path = format!("/WebSockets?resume={}&state={}", place.at, now.state.as_deref().unwrap());
    let mut client = Client::try_connect(nodes[0].address, &path, &headers).await.unwrap();
    assert_eq!(client.moved(&mut now).await["details"], json!(["recovered", 1]));
    assert_eq!(client.json().await["details"], json!(["after"]));
}

/// Checks that an old token gives nothing back, once the nodes know of the revocation.
async fn rolled_back(taken: &[(&str, &str)], target: Target) {
    let nodes = Nodes::start(2).await;
    let (mut client, mut place) = begin(&nodes, 0, "ann").await;
    act(&mut client, &mut place, "join", "kitchen").await;
    act(&mut client, &mut place, "paint", "red").await;
    let before = place.clone();
    for (action, detail) in taken {
        act(&mut client, &mut place, action, detail).await;
    }
    drop(client);
    for node in [1, 0] {
        // The other nodes are told without a wait for their acknowledgement.
        let mut client = loop {
            let (client, details) = back(&nodes, node, "ann", &before).await;
            if details[0] == "reset" {
                assert_eq!(details[1], "the resume token was revoked");
                break client;
            }
        };
        say(&nodes, 0, "not for ann", target.clone()).await;
        say(&nodes, 0, "for ann", Target::user("ann")).await;
        assert_eq!(client.json().await["details"], json!(["for ann"]));
        // With its last token the client is what it was then.
        let (_, details) = back(&nodes, node, "ann", &place).await;
        assert_eq!(details[0], "recovered");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_from_before_a_room_was_left_gives_nothing_back() {
    rolled_back(&[("leave", "kitchen")], Target::group("kitchen")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_from_before_a_property_changed_gives_nothing_back() {
    rolled_back(&[("paint", "blue")], Target::property("colour", "red")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_state_of_before_is_not_valid_after_several_changes_and_a_hop() {
    let nodes = Nodes::start(2).await;
    let (mut client, mut place) = begin(&nodes, 0, "ann").await;
    act(&mut client, &mut place, "join", "kitchen").await;
    let before = place.clone();
    drop(client);
    let (mut client, details) = back(&nodes, 1, "ann", &place).await;
    assert_eq!(details[0], "recovered");
    act(&mut client, &mut place, "leave", "kitchen").await;
    act(&mut client, &mut place, "join", "kitchen").await;
    drop(client);
    say(&nodes, 0, "for the kitchen", Target::group("kitchen")).await;
    while back(&nodes, 0, "ann", &before).await.1[0] != "reset" {}
    let (mut client, details) = back(&nodes, 0, "ann", &place).await;
    assert_eq!(details, json!(["recovered", 1]));
    assert_eq!(client.json().await["details"], json!(["for the kitchen"]));
}

/// An authenticator for which every client is ann.
struct Ann;

#[async_trait]
impl Authenticator for Ann {
    async fn authenticate(
        &self,
        _: &Handshake,
        _: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        Ok(Some(Identity::user("ann")))
    }

    fn uses_cookies(&self) -> bool {
        false
    }
}

/// A handler that adds its sender to a room, and removes a client that comes back.
struct Door;

#[async_trait]
impl ActionHandler for Door {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        match request.action() {
            "join" => drop(request.join("room")),
            _ => drop(request.leave("room")),
        }
        // Slow enough for the replay to happen meanwhile.
        tokio::task::yield_now().await;
        request.reply(request.groups().into_iter().collect::<Vec<_>>())?;
        Ok(())
    }
}

#[tokio::test]
async fn a_handler_of_the_authentication_decides_before_the_replay() {
    let builder = Server::builder(MemoryPool::default()).authenticator(Ann);
    let server = builder.action("join", Door).action("Client/authentication", Door).start().await.unwrap();
    server.wait_ready().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(std::future::pending()).await });
    server.publish(message("first", json!([]), Target::all())).await.unwrap();
    let mut place = Place::default();
    let mut client = Client::connect_to(address, "/WebSockets?resume=").await;
    act(&mut client, &mut place, "join", "").await;
    drop(client);
    server.publish(message("said", "in the room", Target::group("room"))).await.unwrap();
    server.publish(message("said", "for all", Target::all())).await.unwrap();
    let path = format!("/WebSockets?resume={}&state={}", place.at, place.state.unwrap());
    let mut client = Client::connect_to(address, &path).await;
    client.expect("Client/authentication", json!([])).await;
    assert_eq!(client.json().await["details"], json!(["recovered", 1]));
    assert_eq!(client.json().await["details"], json!(["for all"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_do_not_read_their_replay_keep_no_other_client_from_one() {
    let mut config = Config::default();
    config.connection.replays = 4;
    config.connection.queue_size = 16 * 1024;
    // Less than eight clients would take that keep their turn until they are closed.
    config.connection.resume_timeout = Duration::from_secs(15);
    let nodes = Nodes::with(1, Arc::new(MemoryPool::default()), config).await;
    say(&nodes, 0, "first", Target::all()).await;
    let (bobs, bob) = begin(&nodes, 0, "bob").await;
    let (anns, ann) = begin(&nodes, 0, "ann").await;
    drop((anns, bobs));
    // More than sockets take, and more messages than are sent without a turn.
    for _ in 0..200 {
        say(&nodes, 0, &"x".repeat(100_000), Target::user("ann")).await;
    }
    for number in 0..100 {
        say(&nodes, 0, &number.to_string(), Target::user("bob")).await;
    }
    let mut stuck = Vec::new();
    for _ in 0..8 {
        stuck.push(nodes[0].tracking("ann", &ann).await);
    }
    // All clients have one address, which has one of the four turns. A client that does not read gives its turn back.
    let (mut client, details) = back(&nodes, 0, "bob", &bob).await;
    assert_eq!(details, json!(["recovered", 100]));
    for number in 0..100 {
        assert_eq!(client.json().await["details"], json!([number.to_string()]));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replay_to_an_address_is_limited() {
    let mut config = Config::default();
    config.connection.replay_bytes_per_minute = 300_000;
    let nodes = Nodes::with(1, Arc::new(MemoryPool::default()), config).await;
    say(&nodes, 0, "first", Target::all()).await;
    let (client, place) = begin(&nodes, 0, "ann").await;
    drop(client);
    say(&nodes, 0, &"x".repeat(100_000), Target::all()).await;
    for _ in 0..3 {
        let (mut client, details) = back(&nodes, 0, "ann", &place).await;
        assert_eq!(details, json!(["recovered", 1]));
        client.json().await;
    }
    let (mut client, details) = back(&nodes, 0, "ann", &place).await;
    assert_eq!(details, json!(["reset", "too much was replayed to its address lately"]));
    // The client still continues from there.
    say(&nodes, 0, "live", Target::all()).await;
    assert_eq!(client.json().await["details"], json!(["live"]));
}
