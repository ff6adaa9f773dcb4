//! Standard error and standard output of `ws-server` that have no reader, or cannot be written. They lose lines, and
//! never affect the service.

use std::{
    fs::{File, OpenOptions},
    net::SocketAddr,
    process::Stdio,
};

use http::StatusCode;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{
    WsServer,
    client::{Client, soon},
    program,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::{Child, Command},
};
use tokio_tungstenite::tungstenite::Message;

fn state() -> TempDir {
    tempfile::Builder::new().prefix("ws-server-").tempdir().expect("a temporary directory")
}

/// Opens a device that is always full.
fn full() -> File {
    OpenOptions::new().write(true).open("/dev/full").expect("Linux has it")
}

/// Returns the command of a node that logs everything.
fn loud(state: &TempDir) -> Command {
    let mut command = WsServer::command(state.path());
    command.args(["run", "--demo", "--pool", "memory:", "--listen", "127.0.0.1:0"]);
    command.env("RUST_LOG", "trace").stdout(Stdio::piped());
    command
}

/// Returns the address that a node prints. The test has its log.
async fn address(node: &mut Child) -> SocketAddr {
    let mut output = BufReader::new(node.stdout.take().expect("piped"));
    let mut line = String::new();
    soon(output.read_line(&mut line)).await.expect("text");
    let address = line.trim().strip_prefix("http://").and_then(|line| line.strip_suffix('/'));
    address.expect("the first line is a URL").parse().expect("an address")
}

/// Makes the node log `lines` lines.
async fn provoke(address: SocketAddr, lines: usize) {
    for _ in 0..lines {
        let mut stream = TcpStream::connect(address).await.expect("it listens");
        stream.write_all(b"no HTTP\r\n\r\n").await.expect("sent");
        // The connection ends in one way or another.
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
}

/// Asserts that the node takes a client and delivers to it.
async fn delivers(address: SocketAddr) {
    let mut client = soon(async {
        loop {
            match Client::try_connect(address, "/WebSockets?user=ann", &[]).await {
                Ok(client) => break client,
                Err(status) => assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "it does not take clients yet"),
            }
        }
    })
    .await;
    client.send("say", json!(["still here"])).await;
    while client.json().await["action"] != "said" {}
}

#[tokio::test]
async fn a_log_that_is_not_read_any_more_does_not_stop_deliveries() {
    let state = state();
    let mut node = loud(&state).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut log = BufReader::new(node.stderr.take().expect("piped"));
    // As with `2> >(head -n 1)`.
    let mut line = String::new();
    soon(log.read_line(&mut line)).await.expect("text");
    drop(log);
    let address = address(&mut node).await;
    provoke(address, 10).await;
    delivers(address).await;
    assert!(node.try_wait().expect("a child").is_none(), "it ended");
}

#[tokio::test]
async fn a_reader_of_the_log_that_stops_does_not_stop_deliveries() {
    let state = state();
    let mut node = loud(&state).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let mut log = node.stderr.take().expect("piped");
    let address = address(&mut node).await;
    // More than the pipe and the queue before it hold.
    provoke(address, 3_000).await;
    delivers(address).await;
    assert!(node.try_wait().expect("a child").is_none(), "it ended");
    // Once it is read again, the log continues and says how many lines are missing.
    let mut text = Vec::new();
    let mut part = vec![0; 64 * 1024];
    soon(async {
        while !String::from_utf8_lossy(&text).contains("lines of the log were dropped") {
            let count = log.read(&mut part).await.expect("a pipe");
            assert!(count > 0, "the log ended");
            text.extend_from_slice(&part[..count]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_node_runs_without_a_place_for_its_log() {
    let state = state();
    let mut node = loud(&state).stderr(full()).spawn().expect("the binary starts");
    let place = address(&mut node).await;
    provoke(place, 10).await;
    delivers(place).await;

    // Its descriptor may be closed, and no other file may take its place.
    let program = tests::program("ws-server");
    let settings = WsServer::command(state.path());
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(r#"exec "$0" run --demo --pool memory: --listen 127.0.0.1:0 2>&-"#).arg(program);
    for (name, value) in settings.as_std().get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.env("RUST_LOG", "trace").kill_on_drop(true).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut node = shell.spawn().expect("a shell");
    let place = address(&mut node).await;
    provoke(place, 10).await;
    delivers(place).await;
}

#[tokio::test]
async fn commands_exit_as_always_without_a_place_for_their_output() {
    let state = state();
    let node = WsServer::start(state.path(), &[]).await;
    node.ready().await;
    for (arguments, status) in [
        (&["check"][..], 0),
        (&["send", "news", "--to", "all"], 0),
        (&["close", "user:ann"], 0),
        // These commands cannot write their warnings and errors.
        (&["check", "--cluster", "other"], 1),
        (&["send", "news", "{", "--to", "all"], 2),
        (&["--no-such-flag"], 2),
        (&["--listen", "nowhere"], 2),
    ] {
        let mut command = WsServer::command(state.path());
        command.args(arguments).stdout(full()).stderr(full());
        let ended = soon(command.status()).await.expect("the binary runs");
        assert_eq!(ended.code(), Some(status), "{arguments:?}");
    }
    // If a table cannot be printed, the command fails.
    let mut command = WsServer::command(state.path());
    let pool = command.arg("pool").stdout(full()).stderr(Stdio::piped()).spawn().expect("the binary starts");
    let output = soon(pool.wait_with_output()).await.expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("standard output cannot be written"));
    let mut command = WsServer::command(state.path());
    let help = soon(command.arg("--help").stdout(full()).status()).await.expect("it runs");
    assert_eq!(help.code(), Some(0));
}

#[tokio::test]
async fn a_program_whose_cluster_task_panics_sends_its_clients_away_and_ends_with_a_failure() {
    let mut command = Command::new(program("panicking"));
    let mut node = command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true).spawn().expect("it starts");
    let mut client = Client::connect(address(&mut node).await, &[]).await;
    client.send("go", json!([])).await;
    // The handler's error comes only if it is quicker than the end of the connection.
    let code = loop {
        match client.message_in().await {
            Message::Close(frame) => break frame.map(|frame| u16::from(frame.code)),
            message => assert!(message.to_string().contains("go:error"), "{message}"),
        }
    };
    assert_eq!(code, Some(1013));
    let output = soon(node.wait_with_output()).await.expect("it ends");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("error: the task that runs the cluster ended by a panic"), "{errors}");
}

/// The publishes whose spans a node logged.
#[derive(Default)]
struct Traced {
    accepted: Vec<(Value, Value)>,
    relayed: Vec<(Value, Value)>,
    delivered: Vec<(Value, Value)>,
}

impl Traced {
    /// Reads a line, which is one JSON object.
    fn read(&mut self, line: &str) {
        let line: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(line["timestamp"].is_string() && line["level"].is_string() && line["target"].is_string(), "{line}");
        let publish = (line["span"]["origin"].clone(), line["span"]["counter"].clone());
        match (line["message"].as_str(), line["span"]["name"].as_str()) {
            (Some("accepted"), Some("publish")) => self.accepted.push(publish),
            (Some("sent"), Some("relay")) => self.relayed.push(publish),
            (Some("queued"), Some("deliver")) => self.delivered.push(publish),
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_log_as_json_has_one_object_in_each_line_and_the_spans_of_a_publish() {
    let state = state();
    let mut nodes = Vec::new();
    for _ in 0..2 {
        let mut command = WsServer::command(state.path());
        command.args(["run", "--demo", "--listen", "127.0.0.1:0", "--log-format", "json"]);
        command.env("RUST_LOG", "ws_cluster=debug").stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut node = command.spawn().expect("the binary starts");
        let log = BufReader::new(node.stderr.take().expect("piped")).lines();
        let address = address(&mut node).await;
        delivers(address).await;
        nodes.push((node, log, address));
    }
    // The second node joined the first, so this publish goes through the first node to both.
    delivers(nodes[1].2).await;
    let (mut master, mut follower) = (Traced::default(), Traced::default());
    let is_complete = |master: &Traced, follower: &Traced| {
        follower.accepted.iter().any(|publish| {
            let both = [&master.relayed, &follower.relayed, &master.delivered, &follower.delivered];
            both.iter().all(|publishes| publishes.contains(publish))
        })
    };
    while !is_complete(&master, &follower) {
        let [(_, masters, _), (_, followers, _)] = &mut nodes[..] else { unreachable!("two nodes") };
        let (traced, line) = soon(async {
            tokio::select! {
                line = masters.next_line() => (&mut master, line),
                line = followers.next_line() => (&mut follower, line),
            }
        })
        .await;
        traced.read(&line.expect("text").expect("the node runs"));
    }
    for (node, ..) in &mut nodes {
        node.kill().await.expect("killed");
    }
}
