//! The program as people run it: the output and exit status of its commands, and two nodes on one machine that lose
//! each other.

use std::{os::unix::fs::PermissionsExt, path::Path, process::Output};

use http::StatusCode;
use mysql_async::{Conn, Opts, prelude::Queryable};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{
    MariaDb, WsServer,
    client::{Client, eventually},
};
use tokio_tungstenite::tungstenite::Message;

const KEY: &str = "0123456789abcdef0123456789abcdef";
const DEMO: &[&str] = &["--demo"];

fn state() -> TempDir {
    tempfile::Builder::new().prefix("ws-server-").tempdir().expect("a temporary directory")
}

/// Asserts that the program ended with this status and a line with this text, after the line with the pool's URL.
#[track_caller]
fn assert_failed(output: &Output, status: i32, says: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{errors}");
    let mut lines = errors.trim_end().lines().filter(|line| !line.contains(" pool=\""));
    let error = lines.next().unwrap_or_default();
    assert_eq!(lines.next(), None, "{errors}");
    assert!(error.starts_with("error: ") && error.contains(says), "{errors}");
    assert!(output.stdout.is_empty());
}

/// Asserts that `pool` shows no node.
#[track_caller]
fn assert_pool_is_empty(output: &Output) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{errors}");
    assert!(errors.contains("has no node of the cluster default"), "{errors}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("No nodes"));
}

/// Asserts that the program succeeded. Returns its output.
#[track_caller]
fn printed(output: Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Returns the next state of the cluster that a page gets and that matches. Other messages are skipped.
async fn cluster(client: &mut Client, wanted: impl Fn(&Value) -> bool) -> Value {
    loop {
        let message = client.json().await;
        if message["action"] == "demo/node" && wanted(&message["details"][0]) {
            return message["details"][0].clone();
        }
    }
}

/// Asserts that this is the next message that is not about the cluster.
async fn expect(client: &mut Client, action: &str, details: Value) {
    loop {
        let message = client.json().await;
        if message["action"] != "demo/node" {
            assert_eq!(message, json!({ "action": action, "details": details }));
            return;
        }
    }
}

fn is_whole(state: &Value) -> bool {
    state["nodes"].as_array().is_some_and(|nodes| nodes.len() == 2) && !state["master"].is_null()
}

/// Starts two nodes that share one user's default pool, and waits until they have found each other. The master comes
/// first.
async fn pair(state: &Path) -> (WsServer, WsServer) {
    let (first, second) = tokio::join!(WsServer::start(state, DEMO), WsServer::start(state, DEMO));
    let mut of_first = first.client(None).await;
    let mut of_second = second.client(None).await;
    let seen = cluster(&mut of_first, is_whole).await;
    cluster(&mut of_second, is_whole).await;
    if seen["master"] == seen["node"] { (first, second) } else { (second, first) }
}

#[tokio::test]
async fn settings_that_cannot_work_are_reported_in_one_line() {
    let state = state();
    let down = "mysql://site:p4ssw0rd@127.0.0.1:1/site";
    for (arguments, says) in [
        (&["--pool", "postgres://localhost/site"][..], "unknown scheme `postgres:`"),
        (&["--pool", "mysql://site:p4ssw0rd@localhost"], "no database"),
        (&["--pool", "sqlite:"], "a path has to follow"),
        (&["--pool", "memory:", "--key", "p4ssw0rd"], "the cluster's key has 8 bytes: give one of at least 32"),
        (&["--pool", down], "a MySQL pool needs the cluster's key: give --key or WS_CLUSTER_KEY"),
        (&["--pool", down, "--key", "p4ssw0rd"], "has 8 bytes"),
        (&["--pool", down, "--key", KEY, "--listen", "0.0.0.0:0"], "give --address ws://HOST:PORT"),
        (&["--pool", down, "--key", KEY, "--listen", "[::]:0"], "give --address"),
        (&["--pool", down, "--key", KEY, "--address", "ws://0.0.0.0:80", "--listen", "127.0.0.1:0"], "give --address"),
        (&["--pool", down, "--key", KEY, "--listen", "127.0.0.1:0"], "database does not answer: 127.0.0.1:1"),
        (&["--pool", "sqlite:/dev/null/pool", "--listen", "127.0.0.1:0"], "database does not answer: /dev/null/pool"),
        (&["--address", "example.org", "--listen", "127.0.0.1:0"], "is not ws://HOST:PORT"),
        (&["--path", "sockets", "--listen", "127.0.0.1:0"], "is not a plain one, like /WebSockets"),
        (&["--cluster", "", "--listen", "127.0.0.1:0"], "the cluster's name"),
        (&["--listen", "nowhere"], "is no HOST:PORT"),
        (&["--publish-key", ""], "--publish-key is empty"),
        (&["--publish-key", "another-one", "--pool", "memory:", "--listen", "127.0.0.1:0"], "`openssl rand -hex 32`"),
        (&["--trusted-proxy", "10.0.0.0/64"], "use ADDRESS or ADDRESS/BITS"),
        (&["--allowed-origin", "example.org"], "write https://example.org"),
        (&["--session-cookie", "sid"], "both --session-cookie and --session-query"),
        (&["--session-cookie", "sid", "--session-query", "SELECT ?"], "give --session-database"),
        (
            &["--session-cookie", "sid", "--session-query", "SELECT 1", "--session-database", down],
            "the session query names no session",
        ),
        (&["send", "news", "{", "--to", "all"], "no JSON"),
        (&["send", "news", "--to", "everybody"], "unknown target \"everybody\": use all, registered"),
        (&["send", "news", "--to", "all", "--pool", "nowhere"], "no scheme"),
        (&["send", "news", "--to", "all", "--pool", "memory:"], "give --pool"),
        (&["send", "news", "--to", "all", "--pool", down, "--key", KEY], "database does not answer"),
        (&["close", "group:editors"], "use session:ID or user:ID"),
        (&["close", "user:ann", "--key", "p4ssw0rd"], "has 8 bytes"),
        (&["check", "--pool", down, "--key", KEY], "database does not answer"),
        (&["pool", "--pool", down], "database does not answer"),
    ] {
        let output = WsServer::run(state.path(), arguments).await;
        assert_failed(&output, 2, says);
        assert!(!String::from_utf8_lossy(&output.stderr).contains("p4ssw0rd"), "{arguments:?}");
    }
    let output =
        WsServer::command(state.path()).arg("check").env("RUST_LOG", "ws_cluster=loud").output().await.unwrap();
    assert_failed(&output, 2, "RUST_LOG is malformed");
}

#[tokio::test]
async fn a_taken_port_or_address_is_reported_in_one_line() {
    let state = state();
    let node = WsServer::start(state.path(), &[]).await;
    node.ready().await;
    let taken = node.address().to_string();
    let output = WsServer::run(state.path(), &["--listen", &taken]).await;
    assert_failed(&output, 2, "is taken: stop what listens there, or give another --listen");

    let address = format!("ws://{taken}");
    let output = WsServer::run(state.path(), &["--listen", "127.0.0.1:0", "--address", &address]).await;
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(errors.contains("belongs to another node: give each node an address of its own"), "{errors}");
}

#[tokio::test]
async fn without_a_server_no_publish_is_accepted() {
    let state = state();
    for arguments in [&["check"][..], &["send", "news", "--to", "all"], &["close", "user:ann"]] {
        assert_failed(&WsServer::run(state.path(), arguments).await, 1, "the pool has no running server");
    }
    assert_failed(&WsServer::run(state.path(), &["pool"]).await, 1, "the pool has no running server");
    assert_eq!(std::fs::read_dir(state.path()).unwrap().count(), 0, "a command created something");

    let node = WsServer::start(state.path(), &[]).await;
    node.ready().await;
    let output = WsServer::run(state.path(), &["check", "--key", KEY]).await;
    assert_failed(&output, 1, "refuses");
    let output = WsServer::run(state.path(), &["check", "--cluster", "other"]).await;
    assert_failed(&output, 1, "the pool has no running server");
}

#[tokio::test]
async fn two_starts_are_a_cluster_of_two_that_obeys_commands() {
    let state = state();
    let (master, follower) = pair(state.path()).await;

    let key = std::fs::metadata(state.path().join("ws-cluster/pool.sqlite.key")).unwrap();
    assert_eq!(key.permissions().mode() & 0o777, 0o600);
    let left = std::fs::read_dir(state.path().join("ws-cluster")).unwrap();
    let keys = left.filter(|file| file.as_ref().unwrap().file_name().to_string_lossy().contains(".key")).count();
    assert_eq!(keys, 1, "drafts of the key are left");

    // The follower announces its membership a little later.
    eventually(async || {
        let table = printed(WsServer::run(state.path(), &["pool"]).await);
        let shows = |node: &WsServer, role: &str| {
            let address = format!("ws://{}", node.address());
            let line = table.lines().find(|line| line.contains(&address)).expect("a line for each node");
            assert!(line.contains(" s ago"), "{table}");
            line.contains(role)
        };
        (shows(&master, "master") && shows(&follower, "follower")).then_some(())
    })
    .await;
    printed(WsServer::run(state.path(), &["check"]).await);

    let (mut ann, mut also_ann) = (master.client(Some("ann")).await, follower.client(Some("ann")).await);
    let mut guest = follower.client(None).await;
    ann.send("hello", json!(["Hello"])).await;
    expect(&mut ann, "hello", json!(["Hello"])).await;
    expect(&mut also_ann, "hello", json!(["Hello"])).await;
    guest.send("tell", json!(["ann", "psst"])).await;
    expect(&mut ann, "told", json!([null, "psst"])).await;
    expect(&mut also_ann, "told", json!([null, "psst"])).await;
    also_ann.send("say", json!(["all of you"])).await;
    for client in [&mut ann, &mut also_ann, &mut guest] {
        expect(client, "said", json!(["ann", "all of you"])).await;
    }
    guest.send("say", json!([])).await;
    assert_eq!(guest.json().await["details"][0], 400);

    assert_eq!(printed(WsServer::run(state.path(), &["send", "news", "[7]", "--to", "user:ann"]).await), "");
    printed(WsServer::run(state.path(), &["send", "news", "--to", "all", "--volatile"]).await);
    expect(&mut ann, "news", json!([7])).await;
    expect(&mut also_ann, "news", json!([7])).await;
    for client in [&mut ann, &mut also_ann, &mut guest] {
        expect(client, "news", json!([])).await;
    }
    printed(WsServer::run(state.path(), &["close", "user:ann"]).await);
    for client in [&mut ann, &mut also_ann] {
        expect(client, "Server/close", json!([])).await;
        assert_eq!(client.closed().await.0, 1000);
    }
    printed(WsServer::run(state.path(), &["send", "last", "--to", "all"]).await);
    expect(&mut guest, "last", json!([])).await;
}

#[tokio::test]
async fn the_page_is_served_with_its_path() {
    let state = state();
    let mut node = WsServer::start(state.path(), &["--demo", "--path", "/live", "--pool", "memory:"]).await;
    assert_eq!(node.line().await, format!("Open http://{}/?user=ann in a browser", node.address()));
    let (status, page) = node.http("GET", "/?user=ann", &[], "").await;
    assert_eq!(status, StatusCode::OK);
    assert!(page.contains(r#"data-path="/live""#) && !page.contains("/WebSockets"), "{page}");
    assert_eq!(node.http("POST", "/", &[], "").await.0, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(node.http("GET", "/other", &[], "").await.0, StatusCode::NOT_FOUND);
    node.ready().await;
    let mut client = Client::try_connect(node.address(), "/live?user=ann", &[]).await.expect("no refusal");
    let seen = cluster(&mut client, |_| true).await;
    assert_eq!(seen["master"], seen["node"]);
    assert_eq!(seen["nodes"][0]["address"], format!("ws://{}", node.address()));
    assert_eq!(seen["nodes"][0]["master"], true);

    let plain = WsServer::start(state.path(), &[]).await;
    assert_eq!(plain.http("GET", "/", &[], "").await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn the_site_publishes_and_closes_over_http() {
    let state = state();
    let mut command = WsServer::command(state.path());
    // All flags may come from the environment.
    command.env("WS_SERVER_DEMO", "true").env("WS_SERVER_LISTEN", "127.0.0.1:0").env("WS_SERVER_POOL", "memory:");
    command.env("WS_SERVER_PUBLISH_KEY", KEY).env("RUST_LOG", "debug");
    let node = WsServer::spawn(command).await;
    let mut ann = node.client(Some("ann")).await;
    cluster(&mut ann, |_| true).await;
    let bearer = format!("Bearer {KEY}");
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let publish = r#"{"action": "news", "details": {"id": 7}, "to": "user:ann"}"#;
    assert_eq!(node.http("POST", "/_publish", &headers, publish).await.0, StatusCode::NO_CONTENT);
    expect(&mut ann, "news", json!([{ "id": 7 }])).await;
    assert_eq!(node.http("POST", "/_publish", &[], publish).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(node.http("POST", "/_close", &headers, r#"{"user": "ann"}"#).await.0, StatusCode::NO_CONTENT);
    expect(&mut ann, "Server/close", json!([])).await;
    assert_eq!(ann.closed().await.0, 1000);
    assert!(!node.end().await.contains(KEY));

    let closed = WsServer::start(state.path(), &["--pool", "memory:"]).await;
    assert_eq!(closed.http("POST", "/_publish", &headers, publish).await.0, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_killed_master_is_replaced_and_its_port_is_free_again() {
    let state = state();
    let (mut master, follower) = pair(state.path()).await;
    let mut ann = follower.client(Some("ann")).await;
    let before = cluster(&mut ann, is_whole).await;
    assert_ne!(before["master"], before["node"]);

    master.kill().await;
    let after = cluster(&mut ann, |state| state["master"] == state["node"]).await;
    assert!(after["term"].as_u64() > before["term"].as_u64());
    ann.send("say", json!(["still here"])).await;
    expect(&mut ann, "said", json!(["ann", "still here"])).await;

    let mut command = WsServer::command(state.path());
    command.args(["--demo", "--listen", &master.address().to_string()]);
    let back = WsServer::spawn(command).await;
    let mut bob = back.client(Some("bob")).await;
    ann.send("tell", json!(["bob", "welcome back"])).await;
    expect(&mut bob, "told", json!(["ann", "welcome back"])).await;
}

#[tokio::test]
async fn a_terminated_master_hands_over_and_sends_its_clients_elsewhere() {
    let state = state();
    let (mut master, mut follower) = pair(state.path()).await;
    let (mut ann, mut bob) = (master.client(Some("ann")).await, follower.client(Some("bob")).await);
    cluster(&mut bob, is_whole).await;
    cluster(&mut ann, is_whole).await;

    master.terminate();
    let code = loop {
        match ann.message_in().await {
            Message::Text(_) => {}
            Message::Close(Some(frame)) => break u16::from(frame.code),
            other => panic!("neither text nor a close: {other:?}"),
        }
    };
    assert_eq!(code, 1012);
    assert!(master.wait().await.success());
    cluster(&mut bob, |state| state["master"] == state["node"]).await;
    bob.send("say", json!(["mine now"])).await;
    expect(&mut bob, "said", json!(["bob", "mine now"])).await;

    follower.interrupt();
    assert!(follower.wait().await.success());
    assert_pool_is_empty(&WsServer::run(state.path(), &["pool"]).await);
}

#[tokio::test]
async fn a_clean_shutdown_warns_of_nothing() {
    let state = state();
    let mut node = WsServer::start(state.path(), &["--demo", "--pool", "memory:"]).await;
    let _client = node.client(Some("ann")).await;
    node.terminate();
    node.logged("shutting down").await;
    assert!(node.wait().await.success());
    let log = node.whole_log().await;
    assert!(!log.contains("WARN") && !log.contains("ERROR"), "{log}");
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let state = state();
    let mut node = WsServer::start(state.path(), &["--demo", "--pool", "memory:", "--drain", "1h"]).await;
    // The second of them is closed after half an hour.
    let _clients = [node.client(None).await, node.client(None).await];
    node.terminate();
    node.logged("shutting down").await;
    node.interrupt();
    assert_eq!(node.wait().await.code(), Some(1));
}

#[tokio::test]
async fn a_site_on_mariadb_has_its_sessions_and_its_cluster_there() {
    let state = state();
    let url = MariaDb::shared().await.database().await;
    let mut site = Conn::new(Opts::from_url(&url).unwrap()).await.unwrap();
    for sql in [
        "CREATE TABLE sessions (id VARCHAR(64) PRIMARY KEY, user INT, expires BIGINT)",
        "CREATE TABLE memberships (user INT, name VARCHAR(64))",
        "INSERT INTO sessions VALUES ('s1', 7, UNIX_TIMESTAMP() + 3600)",
        "INSERT INTO memberships VALUES (7, 'editors')",
    ] {
        site.query_drop(sql).await.unwrap();
    }
    let place = ["--pool", &url, "--key", KEY];
    assert_pool_is_empty(&WsServer::run(state.path(), &["pool", "--pool", &url]).await);
    let tables: Vec<String> = site.query("SHOW TABLES LIKE 'ws\\_%'").await.unwrap();
    assert!(tables.is_empty(), "a command created {tables:?}");
    assert!(printed(WsServer::run(state.path(), &["pool", "--schema"]).await).contains("CREATE TABLE"));

    let mut arguments = place.to_vec();
    arguments.extend(["--session-cookie", "sid", "--session-query", "SELECT who FROM sessions WHERE id = ?"]);
    let refused = WsServer::run(state.path(), &[&["--listen", "127.0.0.1:0"], &arguments[..]].concat()).await;
    assert_eq!(refused.status.code(), Some(2));
    let errors = String::from_utf8_lossy(&refused.stderr);
    assert!(errors.contains("misconfigured") && errors.contains("--session-query"), "{errors}");

    *arguments.last_mut().unwrap() = "SELECT user, expires FROM sessions WHERE id = ?";
    arguments.extend(["--groups-query", "SELECT name FROM memberships WHERE user = ?"]);
    let (first, second) =
        tokio::join!(WsServer::start(state.path(), &arguments), WsServer::start(state.path(), &arguments));
    let mut clients = Vec::new();
    for node in [&first, &second] {
        node.ready().await;
        let client = Client::try_connect(node.address(), "/WebSockets", &[("cookie", "sid=s1")]).await;
        clients.push(client.expect("no refusal"));
        let first = node.first_logged().await;
        let database = url.rsplit('@').next().unwrap();
        assert!(first.contains(&format!("pool=\"mysql://{database}\"")), "{first}");
    }
    for to in ["group:editors", "user:7", "session:s1"] {
        printed(WsServer::run(state.path(), &[&["send", "news", "--to", to], &place[..]].concat()).await);
        for client in &mut clients {
            client.expect("news", json!([])).await;
        }
    }
    printed(WsServer::run(state.path(), &[&["close", "session:s1"], &place[..]].concat()).await);
    for client in &mut clients {
        client.expect("Server/close", json!([])).await;
    }
    for node in [first, second] {
        let log = node.end().await;
        assert!(!log.contains("--address"), "{log}");
        assert!(!log.contains(KEY) && !log.contains(MariaDb::PASSWORD), "a secret is in the log");
    }
}
