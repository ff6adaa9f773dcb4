//! Every example as its reader starts it: a process of its own, which does what its first lines promise.

use std::{
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Output, Stdio},
};

use http::StatusCode;
use mysql_async::{Conn, Opts, prelude::Queryable};
use serde_json::json;
use tempfile::TempDir;
use tests::{
    MariaDb,
    client::{Client, soon},
    http_client::{self, Answer},
    program,
};
use tokio::task::spawn_blocking;
use tokio_tungstenite::tungstenite::Message;

fn command(name: &str, temporary: &Path) -> Command {
    let mut command = Command::new(program(name));
    // The directory of the pool of `chat` and `publish`.
    command.env("TMPDIR", temporary);
    command
}

/// A running example. It is killed when dropped.
struct Example {
    process: Child,
    address: SocketAddr,
}

impl Example {
    async fn start(mut command: Command) -> Self {
        let starting = spawn_blocking(move || {
            let mut process = command.arg("127.0.0.1:0").stdout(Stdio::piped()).spawn().unwrap();
            let mut line = String::new();
            BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
            let address = line.trim().strip_prefix("http://").expect("the first line is a URL").parse().unwrap();
            Self { process, address }
        });
        soon(starting).await.unwrap()
    }

    /// Connects a client with this cookie, as soon as the example takes clients.
    async fn client(&self, cookie: &str) -> Client {
        let connecting = async {
            loop {
                match Client::try_connect(self.address, "/WebSockets", &[("cookie", cookie)]).await {
                    Ok(client) => return client,
                    Err(status) => assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE),
                }
            }
        };
        soon(connecting).await
    }

    /// Returns the answer to one request over HTTP.
    async fn http(&self, method: &str, path: &str, body: &str) -> Answer {
        soon(http_client::request(self.address, method, path, &[], body)).await.unwrap()
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        // The example may have ended by itself. A test that fails for that reason reports it.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

async fn run(mut command: Command) -> Output {
    soon(spawn_blocking(move || command.output().unwrap())).await.unwrap()
}

#[tokio::test]
async fn hello_comes_back_to_every_tab() {
    let temporary = TempDir::new().unwrap();
    let hello = Example::start(command("hello", temporary.path())).await;
    let (mut one, mut two) = (hello.client("user=ann").await, hello.client("user=ann").await);
    one.send("hello", json!(["world"])).await;
    one.expect("hello", json!(["world"])).await;
    two.expect("hello", json!(["world"])).await;
    two.send("hello", json!(null)).await;
    two.expect("hello:error", json!([400, "No hello message:("])).await;
    let mut guest = hello.client("").await;
    guest.send("hello", json!(["world"])).await;
    guest.expect("hello:error", json!([403, "Forbidden"])).await;
    assert!(hello.http("GET", "/health", "").await.status.is_success());
    assert!(hello.http("GET", "/ws-cluster.js", "").await.text.contains("WsCluster"));
}

#[tokio::test]
async fn chat_goes_to_the_others_in_a_room_on_every_node_and_publish_joins_in() {
    let temporary = TempDir::new().unwrap();
    let one = Example::start(command("chat", temporary.path())).await;
    let mut ann = one.client("user=ann").await;
    ann.send("join", json!(["lobby"])).await;
    ann.expect("join", json!(["lobby", ["ann"]])).await;

    let two = Example::start(command("chat", temporary.path())).await;
    let mut bob = two.client("user=bob").await;
    bob.send("say", json!(["lobby", "Let me in"])).await;
    bob.expect("say:error", json!([403, "Join the room first"])).await;
    bob.send("join", json!(["lobby"])).await;
    bob.expect("join", json!(["lobby", ["bob"]])).await;
    ann.expect("joined", json!(["lobby", "bob"])).await;

    let mut cid = one.client("user=cid").await;
    cid.send("join", json!(["lobby"])).await;
    cid.expect("join", json!(["lobby", ["ann", "cid"]])).await;
    ann.expect("joined", json!(["lobby", "cid"])).await;
    bob.expect("joined", json!(["lobby", "cid"])).await;

    ann.send("say", json!(["lobby", "Good morning"])).await;
    bob.expect("said", json!(["lobby", "ann", "Good morning"])).await;
    cid.expect("said", json!(["lobby", "ann", "Good morning"])).await;
    // The sender does not get it, so her next message is another one.
    cid.send("say", json!(["lobby", "Morning"])).await;
    ann.expect("said", json!(["lobby", "cid", "Morning"])).await;
    bob.expect("said", json!(["lobby", "cid", "Morning"])).await;

    drop(cid);
    ann.expect("left", json!(["lobby", "cid"])).await;
    bob.expect("left", json!(["lobby", "cid"])).await;
    ann.text(r#"{"action":"who","details":["lobby"],"id":1}"#).await;
    assert_eq!(ann.json().await, json!({"action": "who", "details": ["lobby", ["ann"]], "id": 1}));

    let mut publish = command("publish", temporary.path());
    publish.arg("Lunch is ready");
    assert_eq!(run(publish).await.stdout, b"accepted\n");
    ann.expect("said", json!(["lobby", "the kitchen", "Lunch is ready"])).await;
    bob.expect("said", json!(["lobby", "the kitchen", "Lunch is ready"])).await;

    bob.send("leave", json!(["lobby"])).await;
    bob.expect("leave", json!(["lobby", []])).await;
    ann.expect("left", json!(["lobby", "bob"])).await;
}

#[tokio::test]
async fn publish_says_that_no_server_runs() {
    let temporary = TempDir::new().unwrap();
    let mut publish = command("publish", temporary.path());
    publish.arg("Lunch is ready");
    let output = run(publish).await;
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("NoServer"));
}

#[tokio::test]
async fn echo_sends_back_what_it_gets() {
    let temporary = TempDir::new().unwrap();
    let echo = Example::start(command("echo", temporary.path())).await;
    let mut client = echo.client("").await;
    for message in [Message::text("Grüß Gott"), Message::binary(vec![0, 255, 10])] {
        client.message(message.clone()).await;
        assert_eq!(client.message_in().await, message);
    }
}

#[tokio::test]
async fn axum_publishes_from_a_route_of_its_own() {
    let temporary = TempDir::new().unwrap();
    let app = Example::start(command("axum", temporary.path())).await;
    assert!(app.http("GET", "/", "").await.text.contains("<h1>News</h1>"));
    assert!(app.http("GET", "/ws-cluster.js", "").await.text.contains("WsCluster"));
    let mut client = app.client("").await;
    let response = app.http("POST", "/news", "It works").await;
    assert!(response.status == StatusCode::OK && response.text.ends_with("accepted\n"), "{response:?}");
    client.expect("news", json!(["It works"])).await;
}

#[tokio::test]
async fn sessions_are_those_of_the_site() {
    let temporary = TempDir::new().unwrap();
    let url = MariaDb::shared().await.database().await;
    let sessions = |url: &str| {
        let mut command = command("sessions", temporary.path());
        command.env("DATABASE_URL", url);
        command
    };
    // Before its tables exist.
    let output = run(sessions(&url)).await;
    assert!(!output.status.success());
    assert!(String::from_utf8(output.stderr).unwrap().contains("sessions' doesn't exist"));

    let mut site = Conn::new(Opts::from_url(&url).unwrap()).await.unwrap();
    for statement in tables().split_terminator(';') {
        site.query_drop(statement).await.unwrap();
    }
    site.disconnect().await.unwrap();
    let example = Example::start(sessions(&url)).await;
    for (cookie, whoami) in [
        ("PHPSESSID=e4d909", json!(["7", ["authors", "editors"]])),
        ("PHPSESSID=0a1b2c", json!([null, []])),
        ("PHPSESSID=nobodys", json!([null, []])),
        ("", json!([null, []])),
    ] {
        let mut client = example.client(cookie).await;
        client.send("whoami", json!([])).await;
        client.expect("whoami", whoami).await;
    }
}

/// Returns the statements that the example tells its reader to run.
fn tables() -> String {
    let lines = include_str!("../../examples/src/bin/sessions.rs").lines().map_while(|line| line.strip_prefix("//!"));
    lines.skip_while(|line| *line != " ```sql").skip(1).take_while(|line| *line != " ```").collect()
}
