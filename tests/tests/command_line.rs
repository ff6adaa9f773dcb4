//! `ws-server` as scripts, units and containers call it: values in the environment, details from files, keys with a
//! newline at the end, and missing pools.

use std::{
    fs,
    path::Path,
    process::{Output, Stdio},
};

use http::StatusCode;
use mysql_async::prelude::Queryable;
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{
    MariaDb, WsServer,
    client::{Client, soon},
};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

const KEY: &str = "0123456789abcdef0123456789abcdef";

fn state() -> TempDir {
    tempfile::Builder::new().prefix("ws-server-").tempdir().expect("a temporary directory")
}

/// Runs a command with these variables to its end.
async fn run_with(state: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = WsServer::command(state);
    soon(command.args(arguments).envs(variables.iter().copied()).output()).await.expect("the binary runs")
}

/// Starts a node with these variables.
async fn start_with(state: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> WsServer {
    let mut command = WsServer::command(state);
    command.args(["run", "--listen", "127.0.0.1:0"]).args(arguments).envs(variables.iter().copied());
    let node = WsServer::spawn(command).await;
    node.ready().await;
    node
}

#[track_caller]
fn errors(output: &Output, status: i32) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{errors}");
    errors
}

#[tokio::test]
async fn details_come_as_numbers_from_files_and_from_standard_input() {
    let state = state();
    let node = start_with(state.path(), &["--demo"], &[]).await;
    let mut client = Client::try_connect(node.address(), "/WebSockets?user=ann", &[]).await.expect("no refusal");
    let file = state.path().join("details.json");
    let long = "x".repeat(300_000);
    fs::write(&file, format!("\u{feff}{}\n", json!([long]))).unwrap();
    let at_file = format!("@{}", file.display());

    for (argument, input, details) in [
        ("-5", "", json!([-5])),
        ("-0.5", "", json!([-0.5])),
        ("-", "[1, 2]\n", json!([1, 2])),
        ("-", "\"-\"", json!(["-"])),
        (r#""@home""#, "", json!(["@home"])),
        (&at_file, "", json!([long])),
    ] {
        let mut command = WsServer::command(state.path());
        command.args(["send", "news", argument, "--to", "all"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut sending = command.spawn().expect("the binary starts");
        sending.stdin.take().expect("piped").write_all(input.as_bytes()).await.unwrap();
        assert_eq!(errors(&soon(sending.wait_with_output()).await.unwrap(), 0), "");
        let message = loop {
            let message = client.json().await;
            if message["action"] == "news" {
                break message;
            }
        };
        assert!(message["details"] == details, "{argument}");
    }
    fs::write(&file, b"\xff").unwrap();
    for (argument, why) in [
        (at_file.as_str(), "give JSON in UTF-8"),
        ("@/nowhere/details", "cannot be read"),
        // Standard input is empty.
        ("-", "no JSON in standard input"),
    ] {
        let output = run_with(state.path(), &["send", "news", argument, "--to", "all"], &[]).await;
        assert!(errors(&output, 2).contains(why), "{argument}: {output:?}");
    }
}

#[tokio::test]
async fn lines_of_standard_input_are_messages_with_an_outcome_each() {
    let state = state();
    let node = start_with(state.path(), &["--demo"], &[]).await;
    let mut client = Client::try_connect(node.address(), "/WebSockets?user=ann", &[]).await.expect("no refusal");
    let mut command = WsServer::command(state.path());
    command.args(["send", "--lines"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut sending = command.spawn().expect("the binary starts");
    let (mut input, output) = (sending.stdin.take().expect("piped"), sending.stdout.take().expect("piped"));
    let mut output = BufReader::new(output).lines();
    let mut outcome = async || -> Value {
        let line = soon(output.next_line()).await.unwrap().expect("a line");
        serde_json::from_str(&line).unwrap()
    };
    // The outcome of a line does not wait for the next.
    input.write_all(b"{\"action\": \"news\", \"details\": [0], \"to\": \"user:ann\"}\n").await.unwrap();
    assert_eq!(outcome().await, json!({ "status": 204 }));
    let mut lines = String::from("\n");
    for number in 1..=2000 {
        lines += &json!({ "action": "news", "details": [number], "to": { "user": "ann" } }).to_string();
        lines.push('\n');
    }
    lines += "{\"action\": \"news\"}\nno JSON\n{\"action\": \"last\", \"to\": \"all\"}";
    let writing = tokio::spawn(async move { input.write_all(lines.as_bytes()).await });
    for _ in 1..=2000 {
        assert_eq!(outcome().await, json!({ "status": 204 }));
    }
    for why in ["`to`", "JSON"] {
        let refused = outcome().await;
        assert!(refused["status"] == 400 && refused["error"].as_str().unwrap().contains(why), "{refused}");
    }
    assert_eq!(outcome().await, json!({ "status": 204 }));
    writing.await.unwrap().unwrap();
    let ended = soon(sending.wait_with_output()).await.unwrap();
    assert!(errors(&ended, 1).contains("2 of 2004 messages were not accepted"), "{ended:?}");
    let mut next = 0;
    loop {
        let message = client.json().await;
        match message["action"].as_str() {
            Some("news") => {
                assert_eq!(message["details"], json!([next]));
                next += 1;
            }
            Some("last") => break,
            _ => {}
        }
    }
    assert_eq!(next, 2001);
    let output = run_with(state.path(), &["send", "--lines", "--to", "all"], &[]).await;
    assert!(errors(&output, 2).contains("cannot be used with"), "{output:?}");
}

#[tokio::test]
async fn switches_of_the_environment_are_read_as_people_write_them() {
    let state = state();
    for (value, welcome) in [
        ("1", false),
        ("yes", false),
        ("on", false),
        ("TRUE", false),
        ("true\n", false),
        ("0", true),
        ("No", true),
        ("", true),
    ] {
        let node = start_with(state.path(), &["--pool", "memory:"], &[("WS_SERVER_NO_GUESTS", value)]).await;
        let mut guest = Client::connect(node.address(), &[]).await;
        guest.send("Client/authentication", json!([])).await;
        guest.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
        if welcome {
            guest.send("nothing", json!([])).await;
            guest.expect("nothing:error", json!([404, "Not Found"])).await;
        } else {
            assert_eq!(guest.closed().await.0, 4401, "{value:?}");
        }
    }
}

#[tokio::test]
async fn a_malformed_variable_is_named_and_counts_for_its_command_only() {
    let state = state();
    for (variable, value, says) in [
        ("WS_SERVER_NO_GUESTS", "maybe", "use 1, true, yes or on"),
        ("WS_SERVER_DEMO", "2", "use 1, true, yes or on"),
        ("WS_SERVER_LISTEN", "nowhere", "give --listen 127.0.0.1:8080"),
        ("WS_SERVER_ALLOWED_ORIGINS", "https://a.example,example.org", "the scheme is missing"),
        ("WS_SERVER_ALLOWED_ORIGINS", "https://a.example,,https://b.example", "empty item"),
        ("WS_SERVER_TRUSTED_PROXIES", "10.0.0.1,10.0.0.0/64", "use ADDRESS or ADDRESS/BITS"),
        ("WS_SERVER_TRUSTED_PROXIES", ",10.0.0.1", "empty item"),
        ("WS_CLUSTER_KEY", KEY[1..].trim(), "has 31 bytes"),
        ("WS_SERVER_CONNECTIONS_PER_IP", "many", "use a whole number"),
        ("WS_SERVER_MESSAGE_SIZE", "64Q", "as 64K or 1M"),
    ] {
        let refused = run_with(state.path(), &["--pool", "memory:"], &[(variable, value)]).await;
        let told = errors(&refused, 2);
        assert!(told.contains(says), "{variable}: {told}");
        if variable != "WS_CLUSTER_KEY" {
            assert!(told.contains(variable), "{told}");
            for command in [&["check"][..], &["pool"], &["close", "user:ann"], &["send", "news", "--to", "all"]] {
                let output = run_with(state.path(), command, &[(variable, value)]).await;
                assert!(errors(&output, 1).contains("the pool has no running server"), "{variable}");
            }
        }
    }
}

#[tokio::test]
async fn empty_variables_and_trailing_commas_count_as_nothing() {
    let state = state();
    let names = [
        "WS_SERVER_ADDRESS",
        "WS_SERVER_ALLOWED_ORIGINS",
        "WS_SERVER_CLUSTER",
        "WS_SERVER_CONNECTIONS",
        "WS_SERVER_DEMO",
        "WS_SERVER_GROUPS_QUERY",
        "WS_SERVER_LISTEN",
        "WS_SERVER_MESSAGE_SIZE",
        "WS_SERVER_PATH",
        "WS_SERVER_POOL",
        "WS_SERVER_PUBLISH_KEY",
        "WS_SERVER_SESSION_COOKIE",
        "WS_SERVER_SESSION_DATABASE",
        "WS_SERVER_SESSION_QUERY",
        "WS_SERVER_TRUSTED_PROXIES",
        "WS_CLUSTER_KEY",
    ];
    for empty in ["", " \n"] {
        let state = self::state();
        let variables = names.map(|name| (name, empty));
        let _node = start_with(state.path(), &[], &variables).await;
        assert_eq!(errors(&run_with(state.path(), &["check"], &variables).await, 0), "");
    }
    let lists = [
        ("WS_SERVER_ALLOWED_ORIGINS", "https://a.example, https://b.example,\n"),
        ("WS_SERVER_TRUSTED_PROXIES", "127.0.0.1,::1,"),
        ("WS_CLUSTER_KEY", "0123456789abcdef0123456789abcdef, fedcba9876543210fedcba9876543210,"),
    ];
    start_with(state.path(), &["--pool", "memory:"], &lists).await;
}

#[tokio::test]
async fn white_space_around_keys_does_not_count() {
    let state = state();
    let padded = format!(" {KEY}\r\n");
    let publish_key = "fedcba9876543210";
    let variables = [("WS_CLUSTER_KEY", &*padded), ("WS_SERVER_PUBLISH_KEY", "fedcba9876543210\n")];
    let node = start_with(state.path(), &[], &variables).await;
    assert_eq!(errors(&run_with(state.path(), &["check"], &[("WS_CLUSTER_KEY", KEY)]).await, 0), "");
    assert_eq!(errors(&run_with(state.path(), &["check", "--key", &padded], &[]).await, 0), "");
    let bearer = format!("Bearer {publish_key}");
    let order = json!({ "action": "news", "to": "all" }).to_string();
    let (status, text) = node.http("POST", "/_publish", &[("authorization", &bearer)], &order).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{text}");
}

#[tokio::test]
async fn keys_of_the_documentation_and_keys_of_two_lines_are_refused() {
    let state = state();
    let two = format!("{KEY}\n{KEY}");
    for (variable, value, says) in [
        ("WS_CLUSTER_KEY", "at-least-32-bytes-the-same-for-both-servers", "placeholder"),
        ("WS_SERVER_PUBLISH_KEY", "another-one", "placeholder"),
        ("WS_CLUSTER_KEY", &two, "a line break"),
        ("WS_SERVER_PUBLISH_KEY", &two, "a line break"),
    ] {
        let arguments = ["--pool", "memory:", "--listen", "127.0.0.1:0"];
        let told = errors(&run_with(state.path(), &arguments, &[(variable, value)]).await, 2);
        assert!(told.contains(says), "{variable}: {told}");
        assert!(!told.contains(value), "{told}");
    }
}

#[tokio::test]
async fn commands_create_nothing() {
    let state = state();
    let home = state.path().to_str().unwrap();
    let inside = format!("sqlite:{home}/directory/pool.sqlite");
    for pool in ["sqlite:~/pool.sqlite", "sqlite://~/pool.sqlite", &inside, "sqlite:nowhere.sqlite"] {
        for command in [&["check"][..], &["pool"], &["close", "user:ann"], &["send", "news", "--to", "all"]] {
            let arguments = [command, &["--pool", pool]].concat();
            let told = errors(&run_with(state.path(), &arguments, &[("HOME", home)]).await, 1);
            assert!(told.contains("does not exist"), "{told}");
        }
    }
    // An empty file stays empty.
    let empty = state.path().join("empty.sqlite");
    fs::write(&empty, "").unwrap();
    let pool = format!("sqlite:{}", empty.display());
    let told = errors(&run_with(state.path(), &["pool", "--pool", &pool], &[]).await, 1);
    assert!(told.contains("has no node of the cluster default"), "{told}");
    let told = errors(&run_with(state.path(), &["check", "--pool", &pool], &[]).await, 2);
    assert!(told.contains("empty.sqlite.key cannot be used"), "{told}");
    assert_eq!(fs::metadata(&empty).unwrap().len(), 0);
    let files: Vec<_> = fs::read_dir(state.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["empty.sqlite"]);
}

#[tokio::test]
async fn a_pool_in_the_home_directory_is_found_there() {
    let state = state();
    let home = [("HOME", state.path().to_str().unwrap())];
    let _node = start_with(state.path(), &["--pool", "sqlite:~/ws/pool.sqlite"], &home).await;
    assert!(state.path().join("ws/pool.sqlite").exists());
    let output = run_with(state.path(), &["pool", "--pool", "sqlite:~/ws/pool.sqlite"], &home).await;
    let table = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(errors(&output, 0), "");
    assert!(table.starts_with(&format!("Pool sqlite:{}/ws/pool.sqlite\n", state.path().display())), "{table}");
    let told = errors(&run_with(state.path(), &["pool", "--pool", "sqlite:~ann/pool.sqlite"], &home).await, 2);
    assert!(told.contains("sqlite:~/PATH"), "{told}");
}

#[tokio::test]
async fn a_node_says_first_which_pool_it_uses() {
    let state = state();
    let default = format!("pool=\"sqlite:{}/ws-cluster/pool.sqlite\"", state.path().display());
    let node = start_with(state.path(), &[], &[]).await;
    let first = node.first_logged().await;
    assert!(first.contains(&default) && first.contains("no pool was given") && !first.contains(" WARN "), "{first}");
    // The variable was meant for other programs, and is missing here.
    let node = start_with(state.path(), &["--no-guests"], &[]).await;
    let first = node.first_logged().await;
    assert!(first.contains(&default) && first.contains("no pool was given") && first.contains(" WARN "), "{first}");
    let node = start_with(state.path(), &["--pool", "memory:", "--no-guests"], &[]).await;
    let log = node.end().await;
    assert!(log.lines().next().unwrap_or_default().contains("pool=\"memory:\""), "{log}");
    assert!(!log.contains(" WARN "), "{log}");
}

#[tokio::test]
async fn checks_tell_which_node_does_not_answer() {
    let state = state();
    let (one, two) = (start_with(state.path(), &[], &[]).await, start_with(state.path(), &[], &[]).await);
    let address = |node: &WsServer| format!("ws://{}", node.address());
    let (first, second) = (address(&one), address(&two));
    let check = async |arguments: &[&str]| run_with(state.path(), &[&["check"], arguments].concat(), &[]).await;

    let output = check(&["--all"]).await;
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(errors(&output, 0), "");
    assert!(
        lines.contains(&format!("{first}: answers\n")) && lines.contains(&format!("{second}: answers\n")),
        "{lines}"
    );
    assert_eq!(errors(&check(&["--address", &second]).await, 0), "");
    assert_eq!(errors(&check(&[]).await, 0), "");

    // Its sockets still take connections.
    two.stop();
    let output = check(&["--all"]).await;
    assert!(errors(&output, 1).contains("1 of 2 nodes do not answer"));
    let lines = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        lines.contains(&format!("{first}: answers\n")) && !lines.contains(&format!("{second}: answers")),
        "{lines}"
    );
    assert!(errors(&check(&["--address", &second]).await, 1).contains(&second));
    assert_eq!(errors(&check(&["--address", &first]).await, 0), "");
    // One node that answers is enough, but the other one is named.
    let told = errors(&check(&[]).await, 0);
    assert!(told.starts_with("warning: ") && told.contains(&second), "{told}");
    two.cont();

    let told = errors(&check(&["--address", "nowhere", "--key", KEY]).await, 1);
    assert!(told.contains("nowhere"), "{told}");
    assert!(errors(&check(&["--all", "--address", &first]).await, 2).contains("cannot be used with"));
}

#[tokio::test]
async fn limits_have_flags() {
    let state = state();
    let flags = ["--pool", "memory:", "--connections-per-ip", "1", "--message-size", "1K"];
    let node = start_with(state.path(), &flags, &[("WS_SERVER_CONNECTIONS", "2")]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    let refused = Client::try_connect(node.address(), "/WebSockets", &[]).await.err();
    assert_eq!(refused, Some(StatusCode::TOO_MANY_REQUESTS));
    client.send("long", json!(["x".repeat(1024)])).await;
    assert_eq!(client.closed().await.0, 1009);

    let head = [("WS_SERVER_REQUEST_HEAD_SIZE", "2K")];
    let node = start_with(state.path(), &["--pool", "memory:", "--connections", "1"], &head).await;
    let long = "x".repeat(3000);
    let refused = Client::try_connect(node.address(), "/WebSockets", &[("x-long", &long)]).await.err();
    assert_eq!(refused, Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
    let _client = Client::connect(node.address(), &[]).await;
    let refused = Client::try_connect(node.address(), "/WebSockets", &[]).await.err();
    assert_eq!(refused, Some(StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test]
async fn send_says_why_a_database_that_takes_no_writes_keeps_a_message_from_being_accepted() {
    let (state, database) = (state(), MariaDb::start().await);
    let mut admin = database.connect().await;
    database.database().await;
    // An account with all rights writes to a read-only database all the same.
    for statement in [
        "CREATE USER site@'%' IDENTIFIED BY 'site'",
        "GRANT SELECT, INSERT, UPDATE, DELETE, CREATE ON test_0.* TO site@'%'",
    ] {
        admin.query_drop(statement).await.expect("a statement");
    }
    let pool = database.url("site", "site", "test_0");
    let place = ["--pool", &pool, "--key", KEY];
    let node = start_with(state.path(), &place, &[]).await;
    admin.query_drop("SET GLOBAL read_only = 1").await.expect("a statement");
    // As after an hour in which the node could not announce itself.
    let aged = "UPDATE test_0.ws_node SET seen_at = seen_at - INTERVAL 1 HOUR";
    admin.query_drop(aged).await.expect("a statement");
    // A lone master can no longer show that it is one.
    soon(async { while !node.http("GET", "/ready", &[], "").await.1.contains("isolated") {} }).await;
    let sent = run_with(state.path(), &[&["send", "news", "[1]", "--to", "all"][..], &place].concat(), &[]).await;
    let errors = errors(&sent, 1);
    assert!(!errors.contains("no running server"), "{errors}");
    for part in ["may still be delivered", "isolated", "the pool's database fails", &node.address().to_string()] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
    // The node's log has the database's own words. Only those with the publish key are told them over HTTP.
    assert!(!errors.contains("read-only"), "{errors}");
    admin.query_drop("SET GLOBAL read_only = 0").await.expect("a statement");
    soon(async { while node.http("GET", "/ready", &[], "").await.1.trim_end() != "ready" {} }).await;
    let sent = run_with(state.path(), &[&["send", "news", "[1]", "--to", "all"][..], &place].concat(), &[]).await;
    assert!(sent.status.success());
    admin.disconnect().await.expect("a farewell");
}
