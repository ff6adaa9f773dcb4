//! Pages that embed where the order stood when they were rendered.

use std::sync::Arc;

use http_body_util::BodyExt;
use serde_json::{Value, json};
use tests::{
    client::{Client, Place, soon},
    http_client::{self, Answer},
    message,
    nodes::{Nodes, config},
};
use tokio_tungstenite::tungstenite::http::Request;
use ws_cluster::{GroupChange, MemoryPool, Target};

const KEY: (&str, &str) = ("authorization", "Bearer key");

async fn start(count: usize) -> Nodes {
    with(Nodes::start(count).await, count)
}

fn with(nodes: Nodes, count: usize) -> Nodes {
    for node in 0..count {
        nodes[node].server.change_settings(|live| live.set_publish_key(Some("key")).expect("a key"));
    }
    nodes
}

async fn ask(nodes: &Nodes, node: usize, headers: &[(&str, &str)]) -> Answer {
    soon(http_client::request(nodes[node].address, "GET", "/_position", headers, "")).await.expect("an answer")
}

/// Renders a page: returns the position that a node tells.
async fn render(nodes: &Nodes, node: usize) -> String {
    let answer = ask(nodes, node, &[KEY]).await;
    let told = (answer.status.as_u16(), answer.header("content-type"), answer.header("cache-control"));
    assert_eq!(told, (200, Some("application/json"), Some("no-store")), "{answer:?}");
    let told: Value = serde_json::from_str(&answer.text).expect("JSON");
    told["position"].as_str().expect("a position").to_owned()
}

/// Loads a page: connects with its position.
async fn load(nodes: &Nodes, node: usize, position: &str, headers: &[(&str, &str)]) -> Client {
    let path = format!("/WebSockets?resume=&state={position}");
    Client::try_connect(nodes[node].address, &path, headers).await.expect("no refusal")
}

/// Asserts that the client begins with these messages.
async fn begins(client: &mut Client, place: &mut Place, texts: &[&str]) {
    let first = client.moved(place).await;
    assert_eq!((&first["action"], &first["details"]), (&json!("Server/position"), &json!(["new"])), "{first}");
    assert!(first["state"].as_str().is_some_and(|state| !state.starts_with("p.")), "{first}");
    for text in texts {
        let message = client.moved(place).await;
        assert_eq!(message["details"], json!([text]));
        assert!(message["at"].is_string(), "{message}");
    }
}

async fn say(nodes: &Nodes, node: usize, text: &str, target: Target) {
    nodes[node].server.publish(message("said", json!([text]), target)).await.expect("accepted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_gets_what_was_published_since_it_was_rendered() {
    let nodes = start(2).await;
    // Before the first message of the order as well.
    let first = render(&nodes, 0).await;
    let mut early = load(&nodes, 1, &first, &[]).await;
    begins(&mut early, &mut Place::default(), &[]).await;
    say(&nodes, 0, "shown", Target::all()).await;
    early.moved(&mut Place::default()).await;
    let position = render(&nodes, 0).await;
    for (text, target) in [
        ("for all", Target::all()),
        ("for bob", Target::user("bob")),
        ("for ann", Target::user("ann")),
        ("for her session", Target::session("s")),
        ("for her group", Target::group("staff")),
        ("for her colour", Target::property("colour", "red")),
        ("for another group", Target::group("room")),
    ] {
        say(&nodes, 1, text, target).await;
    }
    let change = |change: GroupChange| nodes[0].server.change_groups(change);
    change(GroupChange::user("ann").join("room")).await.expect("accepted");
    say(&nodes, 1, "for her new group", Target::group("room")).await;
    change(GroupChange::session("s").leave("staff")).await.expect("accepted");
    say(&nodes, 1, "for her old group", Target::group("staff")).await;
    let headers = [("x-user", "ann"), ("x-session", "s"), ("x-groups", "staff"), ("x-colour", "red")];
    let mut ann = load(&nodes, 1, &position, &headers).await;
    let mut place = Place::default();
    let missed = ["for all", "for ann", "for her session", "for her colour", "for her new group"];
    begins(&mut ann, &mut place, &missed).await;
    let mut guest = load(&nodes, 0, &position, &[]).await;
    begins(&mut guest, &mut Place::default(), &["for all"]).await;
    say(&nodes, 0, "live", Target::group("room")).await;
    assert_eq!(ann.moved(&mut place).await["details"], json!(["live"]));
    // From here on the client resumes as any other.
    drop(ann);
    say(&nodes, 0, "later", Target::group("room")).await;
    let mut ann = nodes[0].tracking("ann", &place).await;
    assert_eq!(ann.moved(&mut place).await["details"][0], "reset", "the session is another one");
    say(&nodes, 0, "end", Target::all()).await;
    assert_eq!(guest.json().await["details"], json!(["end"]));
    // With the earlier position everything comes: it is no secret, and nothing is for others.
    let mut guest = load(&nodes, 1, &first, &[]).await;
    begins(&mut guest, &mut Place::default(), &["shown", "for all", "end"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_the_cluster_did_not_make_is_a_reset() {
    let nodes = start(1).await;
    let position = render(&nodes, 0).await;
    let reset = async |state: &str| {
        let first = load(&nodes, 0, state, &[]).await.json().await;
        assert_eq!(first["details"][0], "reset", "{state}: {first}");
    };
    reset("p.").await;
    reset(&format!("{position}A")).await;
    reset(&format!("p.{}", "A".repeat(3000))).await;
    reset(&position.to_lowercase()).await;
    // What is no page's position is ignored by a client that begins, as ever.
    let first = load(&nodes, 0, "AAAA", &[]).await.json().await;
    assert_eq!(first["details"], json!(["new"]));
    assert_eq!(ask(&nodes, 0, &[]).await.status, 401);
    assert_eq!(ask(&nodes, 0, &[("authorization", "Bearer wrong")]).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_position_that_the_log_no_longer_reaches_is_a_reset() {
    let mut config = config();
    config.log.count = 10;
    let nodes = with(Nodes::with(1, Arc::new(MemoryPool::default()), config).await, 1);
    let position = render(&nodes, 0).await;
    // The log is trimmed some times per second.
    soon(async {
        loop {
            say(&nodes, 0, "more", Target::all()).await;
            let first = load(&nodes, 0, &position, &[]).await.json().await;
            if first["details"] == json!(["reset", "too much has happened since"]) {
                return;
            }
            assert_eq!(first["details"], json!(["new"]));
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_page_that_missed_little_is_not_reset_because_much_was_replayed_to_its_address() {
    let mut config = config();
    config.connection.replay_bytes_per_minute = 1;
    let nodes = with(Nodes::with(1, Arc::new(MemoryPool::default()), config).await, 1);
    let (position, large) = (render(&nodes, 0).await, "x".repeat(100_000));
    say(&nodes, 0, &large, Target::all()).await;
    begins(&mut load(&nodes, 0, &position, &[]).await, &mut Place::default(), &[&large]).await;
    let used_up = json!(["reset", "too much was replayed to its address lately"]);
    assert_eq!(load(&nodes, 0, &position, &[]).await.json().await["details"], used_up);
    // The page loads again, and a message comes meanwhile.
    let position = render(&nodes, 0).await;
    say(&nodes, 0, "meanwhile", Target::all()).await;
    begins(&mut load(&nodes, 0, &position, &[]).await, &mut Place::default(), &["meanwhile"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_not_ready_has_no_position() {
    let nodes = start(1).await;
    nodes[0].server.shutdown().await;
    // Its listener has ended with it. An application with a listener of its own still asks it.
    let request = Request::get("/_position").header(KEY.0, KEY.1).body(String::new()).unwrap();
    let answer = nodes[0].server.handle(request).await;
    assert_eq!(answer.status(), 503);
    let text = answer.into_body().collect().await.unwrap().to_bytes();
    assert!(text.starts_with(b"this node is not ready"), "{text:?}");
}
