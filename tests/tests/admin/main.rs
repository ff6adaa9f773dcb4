//! The admin page: what it tells of a server's life, and what it is told to do. `access` has who gets in, and `page` the
//! page itself, in a browser.

use std::{fs, net::SocketAddr};

use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{
    WsServer,
    client::{Client, eventually, soon},
    free_port,
    http_client::{self, Answer},
};
use tokio::{
    net::{TcpListener, TcpStream},
    process::Command,
};

mod access;
mod page;

const KEY: &str = "a key of an administrator";

fn state() -> TempDir {
    tempfile::Builder::new().prefix("ws-server-").tempdir().expect("a temporary directory")
}

/// A server with an admin page.
struct Admin {
    server: WsServer,
    /// The address of the page.
    address: SocketAddr,
    _state: TempDir,
}

impl Admin {
    /// A supervisor with its server.
    async fn supervise(arguments: &[&str]) -> Self {
        let state = state();
        let mut command = WsServer::command(state.path());
        command.args(["supervise", "--listen", "127.0.0.1:0", "--pool", "memory:", "--admin", "127.0.0.1:0"]);
        command.args(["--admin-key", KEY]).args(arguments);
        Self::of(command, state).await
    }

    /// A node without a supervisor.
    async fn run(arguments: &[&str]) -> Self {
        let state = state();
        let mut command = WsServer::command(state.path());
        command.args(["run", "--listen", "127.0.0.1:0", "--pool", "memory:", "--admin", "127.0.0.1:0"]).args(arguments);
        Self::of(command, state).await
    }

    async fn of(command: Command, state: TempDir) -> Self {
        let server = WsServer::launch(command);
        Self { address: server.admin_address().await, server, _state: state }
    }

    async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        soon(http_client::request(self.address, method, path, headers, body)).await.expect("an answer")
    }

    /// Asks with the key, as a script does.
    async fn with_key(&self, method: &str, path: &str, body: &str) -> (StatusCode, Value) {
        let answer = self.ask(method, path, &[("authorization", &format!("Bearer {KEY}"))], body).await;
        (answer.status, serde_json::from_str(&answer.text).unwrap_or(Value::String(answer.text)))
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.with_key("GET", path, "").await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    async fn order(&self, order: &str) -> StatusCode {
        self.with_key("POST", &format!("/admin/api/{order}"), "").await.0
    }

    /// Waits until the server is in a state that matches.
    async fn until(&self, matches: impl Fn(&Value) -> bool) -> Value {
        eventually(async || Some(self.get("/admin/api/state").await).filter(|state| matches(state))).await
    }

    async fn is(&self, name: &str) -> Value {
        self.until(|state| state["state"] == name).await
    }

    /// Waits until the node behind the page answers, and takes clients.
    async fn answers(&self) -> Value {
        eventually(async || {
            let (status, value) = self.with_key("GET", "/admin/api/cluster", "").await;
            let is_ready = |nodes: &Vec<Value>| !nodes.is_empty() && nodes.iter().all(|node| node["ready"] == true);
            (status == StatusCode::OK && value["nodes"].as_array().is_some_and(is_ready)).then_some(value)
        })
        .await
    }
}

/// The server's process, as a state tells it.
fn process(state: &Value) -> Pid {
    let id = state["pid"].as_i64().and_then(|id| i32::try_from(id).ok());
    id.and_then(Pid::from_raw).unwrap_or_else(|| panic!("no process: {state}"))
}

/// Waits until all threads of a process stand still after SIGSTOP.
async fn frozen(process: Pid) {
    let tasks = format!("/proc/{}/task", process.as_raw_nonzero());
    let stands =
        |task: fs::DirEntry| fs::read_to_string(task.path().join("stat")).is_ok_and(|stat| stat.contains(") T "));
    eventually(async || fs::read_dir(&tasks).unwrap().map(Result::unwrap).all(stands).then_some(())).await;
}

fn address(state: &Value) -> SocketAddr {
    state["address"].as_str().and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("no address: {state}"))
}

#[tokio::test]
async fn bad_requests_get_a_clear_answer() {
    let admin = Admin::run(&["--admin-key", KEY]).await;
    let long = format!(r#"{{"key": "{}"}}"#, "x".repeat(8 * 1024));
    let json = [("content-type", "application/json")];
    let answer = admin.ask("POST", "/admin/login", &json, &long).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE, "{}", answer.text);
    for (path, body, says) in [
        ("/admin/api/publish", "{", "the body is not what is expected here"),
        ("/admin/api/publish", r#"{"action": "a", "to": "all", "more": 1}"#, "unknown field `more`"),
        ("/admin/api/publish", r#"{"action": "a", "to": "everybody"}"#, "to: "),
        ("/admin/api/publish", r#"{"action": "", "to": "all"}"#, "action"),
        ("/admin/api/close", "{}", "say which connections"),
        ("/admin/api/close", r#"{"user": "a", "session": "b"}"#, "say which connections"),
        ("/admin/api/close", r#"{"user": 7}"#, "expected a string"),
        ("/admin/api/close", r#"{"connection": "7"}"#, "connection: "),
    ] {
        let (status, answer) = admin.with_key("POST", path, body).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{body}: {answer}");
        assert!(answer["error"].as_str().unwrap_or_default().contains(says), "{body}: {answer}");
    }
    for path in ["/admin/api/log?after=x", "/admin/api/connections?limit=0", "/admin/api/connections?address=x"] {
        assert_eq!(admin.with_key("GET", path, "").await.0, StatusCode::BAD_REQUEST, "{path}");
    }
    assert_eq!(admin.with_key("GET", "/admin/api/nothing", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(admin.with_key("GET", "/admin/../etc/passwd", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(admin.with_key("GET", "/admin/api/stop", "").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(admin.with_key("DELETE", "/admin/api/state", "").await.0, StatusCode::METHOD_NOT_ALLOWED);
}

#[tokio::test]
async fn an_administrator_stops_starts_and_restarts_a_server() {
    let admin = Admin::supervise(&[]).await;
    let first = admin.is("running").await;
    assert_eq!(first["can"], json!({ "start": false, "stop": true, "restart": true }));
    admin.answers().await;
    assert_eq!(admin.order("start").await, StatusCode::CONFLICT);
    assert_eq!(admin.order("stop").await, StatusCode::ACCEPTED);
    let stopped = admin.is("stopped").await;
    assert_eq!((&stopped["pid"], &stopped["can"]["start"]), (&Value::Null, &json!(true)));
    assert!(TcpStream::connect(address(&first)).await.is_err(), "it still listens");
    let (status, answer) = admin.with_key("GET", "/admin/api/cluster", "").await;
    assert_eq!((status, &answer["error"]), (StatusCode::SERVICE_UNAVAILABLE, &json!("the server does not run")));
    assert_eq!(admin.ask("GET", "/ready", &[], "").await.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(admin.order("stop").await, StatusCode::CONFLICT);

    assert_eq!(admin.order("start").await, StatusCode::ACCEPTED);
    let second = admin.is("running").await;
    assert_ne!(process(&second), process(&first));
    assert_eq!(admin.order("restart").await, StatusCode::ACCEPTED);
    let third = admin.until(|state| state["state"] == "running" && state["pid"] != second["pid"]).await;
    assert_eq!(third["restart_count"], 1);
    assert_eq!(third["restarts"][0]["why"], "the administrator ordered it");
    admin.answers().await;
}

#[tokio::test]
async fn a_killed_server_comes_back_and_the_page_says_why() {
    let admin = Admin::supervise(&[]).await;
    let first = admin.is("running").await;
    kill_process(process(&first), Signal::KILL).unwrap();
    let next = admin.until(|state| state["state"] == "running" && state["pid"] != first["pid"]).await;
    assert_eq!(next["restarts"][0]["why"], "the server ended (signal 9)");
    let log = admin.get("/admin/api/log").await;
    let said = |text: &str| {
        let lines = log["lines"].as_array().unwrap();
        lines.iter().any(|line| line["text"].as_str().unwrap().contains(text))
    };
    assert!(said("the server is started") && said("the server ended (signal 9)"), "the supervisor's: {log}");
    assert!(said("starting pool=\"memory:\""), "the server's: {log}");
}

#[tokio::test]
async fn a_server_that_waits_for_its_next_start_can_be_stopped() {
    let admin = Admin::supervise(&[]).await;
    kill_process(process(&admin.is("running").await), Signal::KILL).unwrap();
    // It lived for less than 5 s: the next start is a second later, or more after each further end.
    let waiting = loop {
        let state = admin.until(|state| state["state"] == "waiting" || state["state"] == "running").await;
        if state["state"] == "waiting" {
            break state;
        }
        // Already gone, or missed.
        let _ = kill_process(process(&state), Signal::KILL);
    };
    assert!(waiting["next_start"].as_u64() > waiting["since"].as_u64(), "{waiting}");
    assert_eq!(admin.order("stop").await, StatusCode::ACCEPTED);
    admin.is("stopped").await;
    assert_eq!(admin.order("restart").await, StatusCode::ACCEPTED);
    admin.is("running").await;
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why_until_it_can() {
    let taken = TcpListener::bind(("127.0.0.1", free_port())).await.unwrap();
    let listen = taken.local_addr().unwrap().to_string();
    let (directory, arguments) = (state(), ["--admin", "127.0.0.1:0", "--admin-key", KEY, "--listen", &listen]);
    let mut command = WsServer::command(directory.path());
    command.args(["supervise", "--pool", "memory:"]).args(arguments);
    let admin = Admin::of(command, directory).await;
    let state = admin.is("cannot start").await;
    assert!(state["why"].as_str().unwrap().contains(&format!("{listen} is taken")), "{state}");
    drop(taken);
    assert_eq!(admin.order("start").await, StatusCode::ACCEPTED);
    assert_eq!(address(&admin.is("running").await).to_string(), listen);
}

#[tokio::test]
async fn a_server_that_hangs_is_told_and_asked_no_longer_than_two_seconds() {
    let admin = Admin::supervise(&["--check-interval", "100ms", "--check-timeout", "8s"]).await;
    let running = admin.is("running").await;
    admin.answers().await;
    kill_process(process(&running), Signal::STOP).unwrap();
    frozen(process(&running)).await;
    let (status, answer) = admin.with_key("GET", "/admin/api/cluster", "").await;
    assert_eq!(
        (status, &answer["error"]),
        (StatusCode::SERVICE_UNAVAILABLE, &json!("the server did not answer in 2 s"))
    );
    let hanging = admin.is("hanging").await;
    assert!(hanging["why"].as_str().unwrap().contains("a test connection got no answer"), "{hanging}");
    kill_process(process(&running), Signal::CONT).unwrap();
    admin.is("running").await;
}

#[tokio::test]
async fn a_node_alone_can_be_stopped_and_not_started() {
    let mut admin = Admin::run(&["--admin-key", KEY]).await;
    let state = admin.is("running").await;
    assert_eq!((&state["supervised"], &state["pid"]), (&json!(false), &json!(admin.server.id())));
    for order in ["start", "restart"] {
        assert_eq!(admin.order(order).await, StatusCode::CONFLICT);
    }
    assert_eq!(admin.order("stop").await, StatusCode::ACCEPTED);
    assert_eq!(admin.server.wait().await.code(), Some(0));
    admin.server.logged("shutting down").await;
}

#[tokio::test]
async fn a_message_of_the_page_reaches_a_client_and_an_order_to_close_ends_it() {
    let admin = Admin::supervise(&["--demo"]).await;
    let state = admin.is("running").await;
    admin.answers().await;
    let mut ann = Client::connect_to(address(&state), "/WebSockets?user=ann").await;
    ann.send("Client/authentication", json!([])).await;
    while ann.json().await["action"] != "Client/authentication" {}
    let message = r#"{"action": "test", "details": [12345678901234567890], "to": "user:ann"}"#;
    assert_eq!(
        admin.with_key("POST", "/admin/api/publish", message).await,
        (StatusCode::OK, json!({ "accepted": true }))
    );
    loop {
        let text = ann.json().await;
        if text["action"] == "test" {
            assert_eq!(text["details"][0].to_string(), "12345678901234567890");
            break;
        }
    }
    let close = r#"{"user": "ann"}"#;
    assert_eq!(admin.with_key("POST", "/admin/api/close", close).await.0, StatusCode::OK);
    while ann.json().await["action"] != "Server/close" {}
    ann.closed().await;
}

#[tokio::test]
async fn connections_of_all_nodes_are_found_and_closed_one_by_one() {
    let directory = state();
    let pool = format!("sqlite:{}", directory.path().join("pool.sqlite").display());
    let mut command = WsServer::command(directory.path());
    command.args(["supervise", "--demo", "--listen", "127.0.0.1:0", "--pool", &pool]);
    command.args(["--admin", "127.0.0.1:0", "--admin-key", KEY]);
    let other = WsServer::start(directory.path(), &["--demo", "--pool", &pool]).await;
    let admin = Admin::of(command, directory).await;
    let own = address(&admin.is("running").await);
    eventually(async || (admin.answers().await["nodes"].as_array().unwrap().len() == 2).then_some(())).await;
    let mut clients = Vec::new();
    for (address, user) in [(own, "ann"), (other.address(), "ann"), (other.address(), "bob")] {
        let mut client = Client::connect_to(address, &format!("/WebSockets?user={user}")).await;
        client.send("Client/authentication", json!([])).await;
        while client.json().await["action"] != "Client/authentication" {}
        clients.push(client);
    }
    let found = admin.get("/admin/api/connections").await;
    assert_eq!((&found["matching"], &found["silent"]), (&json!(3), &json!([])), "{found}");
    let found = admin.get("/admin/api/connections?user=ann&limit=1").await;
    assert_eq!((found["connections"].as_array().unwrap().len(), &found["matching"]), (1, &json!(2)), "{found}");
    let found = admin.get("/admin/api/connections?user=bob&address=127.0.0.1").await;
    let order = json!({ "connection": found["connections"][0]["id"] }).to_string();
    assert_eq!(admin.with_key("POST", "/admin/api/close", &order).await.0, StatusCode::OK);
    let mut bob = clients.pop().unwrap();
    while bob.json().await["action"] != "Server/close" {}
    bob.closed().await;
    // The demo's sessions are named like their users.
    let order = json!({ "session": "ann" }).to_string();
    assert_eq!(admin.with_key("POST", "/admin/api/close", &order).await.0, StatusCode::OK);
    for mut ann in clients {
        while ann.json().await["action"] != "Server/close" {}
        ann.closed().await;
    }
}

#[tokio::test]
async fn the_metrics_are_shown_with_the_key_or_to_all_if_they_are_open() {
    let told = |text: &str| text.contains("\nws_cluster_role{role=\"master\"} 1\n");
    let admin = Admin::supervise(&[]).await;
    admin.is("running").await;
    let bearer = format!("Bearer {KEY}");
    let shown = eventually(async || {
        let answer = admin.ask("GET", "/metrics", &[("authorization", &bearer)], "").await;
        (answer.status == StatusCode::OK && told(&answer.text)).then_some(answer)
    })
    .await;
    assert_eq!(shown.header("content-type"), Some("text/plain; version=0.0.4; charset=utf-8"));
    for series in ws_cluster::metrics::SERIES {
        assert!(shown.text.contains(&format!("# TYPE {} {}\n", series.name, series.kind.as_str())), "{}", series.name);
    }
    let open = Admin::run(&["--admin-key", KEY, "--metrics-open"]).await;
    assert_eq!(open.ask("GET", "/metrics", &[], "").await.status, StatusCode::OK);
}

#[tokio::test]
async fn the_log_is_told_from_a_number_on() {
    let admin = Admin::run(&["--admin-key", KEY]).await;
    let log = admin.get("/admin/api/log").await;
    let lines = log["lines"].as_array().unwrap();
    assert_eq!(lines[0]["number"], 1);
    let last = log["last"].as_u64().unwrap();
    assert_eq!(lines.last().unwrap()["number"], last);
    let later = admin.get(&format!("/admin/api/log?after={}", last - 1)).await;
    assert_eq!(later["lines"][0], *lines.last().unwrap());
}

#[tokio::test]
async fn the_configuration_is_shown_with_its_sources_and_without_secrets() {
    let secret = "a key of the cluster: thirty-two bytes";
    let admin = Admin::supervise(&["--key", secret, "--message-size", "32K"]).await;
    admin.is("running").await;
    admin.answers().await;
    let settings = admin.get("/admin/api/config").await;
    let of =
        |key: &str| settings["settings"].as_array().unwrap().iter().find(|row| row["key"] == key).cloned().unwrap();
    let size = of("connection.message_size");
    assert_eq!((&size["value"], &size["source"]), (&json!("\"32 KiB\""), &json!("--message-size")));
    assert_eq!(of("path")["source"], "default");
    assert_eq!(of("admin_key")["value"], "\"(hidden)\"");
    assert!(!settings.to_string().contains(secret) && !settings.to_string().contains(KEY), "{settings}");
}

#[tokio::test]
async fn a_taken_port_of_the_page_ends_a_node_alone_and_no_supervised_one() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let page = taken.local_addr().unwrap().to_string();
    let state = state();
    let common = ["--listen", "127.0.0.1:0", "--pool", "memory:", "--admin", &page, "--admin-key", KEY];
    let output = WsServer::run(state.path(), &[&["run"][..], &common].concat()).await;
    let log = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{log}");
    assert!(log.trim_end().lines().last().unwrap().starts_with(&format!("error: --admin {page} is taken")), "{log}");

    let mut command = WsServer::command(state.path());
    command.arg("supervise").args(common);
    let mut supervisor = WsServer::spawn(command).await;
    supervisor
        .logged(&format!("there is no admin page, and it is tried again every 5s: --admin {page} is taken"))
        .await;
    assert_eq!(supervisor.http("GET", "/health", &[], "").await.0, StatusCode::OK);
    supervisor.terminate();
    assert_eq!(supervisor.wait().await.code(), Some(0));
}
