//! The settings of `ws-server` from flags, the environment and the file of `--config`.

use std::{fs, os::unix::fs::PermissionsExt, path::Path, process::Output};

use rustix::process::Signal;
use serde_json::json;
use tempfile::TempDir;
use tests::{
    WsServer,
    client::{Client, soon},
};
use tokio_tungstenite::tungstenite::Message;

const KEY: &str = "0123456789abcdef0123456789abcdef";

fn state() -> TempDir {
    tempfile::Builder::new().prefix("ws-server-").tempdir().expect("a temporary directory")
}

/// Writes a file that only its user can read, and returns its path.
fn write(state: &Path, text: &str) -> String {
    let path = state.join("ws.toml");
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

async fn run_with(state: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = WsServer::command(state);
    soon(command.args(arguments).envs(variables.iter().copied()).output()).await.expect("the binary runs")
}

#[track_caller]
fn output(output: &Output, status: i32) -> String {
    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{errors}");
    if status == 0 { String::from_utf8_lossy(&output.stdout).into_owned() } else { errors }
}

/// Returns the line of a key in what `ws-server config` printed, from its section on.
fn line<'a>(text: &'a str, section: &str, name: &str) -> &'a str {
    let begin = if section.is_empty() { 0 } else { text.find(&format!("\n[{section}]\n")).expect(section) };
    let is_meant = |line: &&str| line.trim_start_matches("# ").split(' ').next() == Some(name);
    text[begin..].lines().find(is_meant).unwrap_or_else(|| panic!("{section}.{name} in {text}"))
}

#[tokio::test]
async fn a_flag_wins_over_its_variable_and_the_variable_over_the_file() {
    let state = state();
    let path = write(
        state.path(),
        "listen = \"127.0.0.1:1\"\npath = \"/file\"\nno_guests = true\n[connection]\nmessage_size = \"1 KiB\"\n\
         queue_size = \"2 KiB\"\n[cluster]\nname = \"file\"\n",
    );
    let shown = run_with(
        state.path(),
        &["config", "--config", &path, "--listen", "127.0.0.1:3", "--message-size", "3K"],
        &[
            ("WS_SERVER_LISTEN", "127.0.0.1:2"),
            ("WS_SERVER_PATH", "/variable"),
            ("WS_SERVER_NO_GUESTS", "no"),
            ("WS_SERVER_MESSAGE_SIZE", "2K"),
        ],
    )
    .await;
    let shown = output(&shown, 0);
    assert_eq!(line(&shown, "", "listen"), "listen = \"127.0.0.1:3\"  # --listen");
    assert_eq!(line(&shown, "", "path"), "path = \"/variable\"  # WS_SERVER_PATH");
    assert_eq!(line(&shown, "", "no_guests"), "no_guests = false  # WS_SERVER_NO_GUESTS");
    assert_eq!(line(&shown, "", "demo"), "demo = false  # default");
    assert_eq!(line(&shown, "", "session_cookie"), "# session_cookie is not set");
    assert_eq!(line(&shown, "cluster", "name"), format!("name = \"file\"  # {path} line 8"));
    assert_eq!(line(&shown, "connection", "message_size"), "message_size = \"3 KiB\"  # --message-size");
    assert_eq!(line(&shown, "connection", "queue_size"), format!("queue_size = \"2 KiB\"  # {path} line 6"));
    assert_eq!(line(&shown, "connection", "ping_interval"), "ping_interval = \"25s\"  # default");
    assert!(shown.contains("# Largest message of a client"), "no comments: {shown}");

    let shown = run_with(state.path(), &["config"], &[("WS_SERVER_CONFIG", &path)]).await;
    assert_eq!(line(&output(&shown, 0), "", "path"), format!("path = \"/file\"  # {path} line 2"));
}

#[tokio::test]
async fn a_flag_or_its_variable_turns_compression_off() {
    let state = state();
    let off = write(state.path(), "[connection]\ncompression = false\n");
    let on = "compression = true  # default";
    for (arguments, variables, expected) in [
        (&["config"][..], &[][..], on.to_owned()),
        (&["config"], &[("WS_SERVER_NO_COMPRESSION", "0")], on.to_owned()),
        (&["config"], &[("WS_SERVER_NO_COMPRESSION", "1")], "compression = false  # WS_SERVER_NO_COMPRESSION".into()),
        (&["config", "--no-compression"], &[], "compression = false  # --no-compression".into()),
        (&["config", "--config", &off], &[], format!("compression = false  # {off} line 2")),
    ] {
        let shown = output(&run_with(state.path(), arguments, variables).await, 0);
        assert_eq!(line(&shown, "connection", "compression"), expected);
    }
    for (variable, compresses) in [("", true), ("1", false)] {
        let mut command = WsServer::command(state.path());
        command.args(["--listen", "127.0.0.1:0", "--pool", "memory:"]).env("WS_SERVER_NO_COMPRESSION", variable);
        let node = WsServer::spawn(command).await;
        node.ready().await;
        let stream = tokio::net::TcpStream::connect(node.address()).await.unwrap();
        let peer = tests::deflate::Peer::open(stream, "/WebSockets", &[tests::deflate::OFFER]).await;
        assert_eq!(peer.agreed.is_some(), compresses);
    }
}

#[tokio::test]
async fn secrets_are_not_shown() {
    let state = state();
    let path = write(
        state.path(),
        &format!(
            "key = [\"{KEY}\", \"{KEY}\"]\npublish_key = \"open sesame\"\npool = \"mysql://ann:s3cret@db:1/site\"\n"
        ),
    );
    let shown = output(&run_with(state.path(), &["config", "--config", &path], &[]).await, 0);
    assert_eq!(line(&shown, "", "key"), format!("key = [\"(hidden)\", \"(hidden)\"]  # {path} line 1"));
    assert!(line(&shown, "", "publish_key").starts_with("publish_key = \"(hidden)\""));
    assert!(line(&shown, "", "pool").starts_with("pool = \"mysql://ann:(hidden)@db:1/site\""));
    assert!(![KEY, "sesame", "s3cret"].iter().any(|secret| shown.contains(secret)), "{shown}");
}

#[tokio::test]
async fn a_node_runs_with_the_settings_of_its_file() {
    let state = state();
    let path = write(
        state.path(),
        "listen = \"127.0.0.1:0\"\npath = \"/live\"\npool = \"memory:\"\ndemo = true\n[connection]\n\
         message_size = \"1 KiB\"\nhandshake_timeout = \"30s\"\n",
    );
    let mut command = WsServer::command(state.path());
    command.args(["--config", &path]);
    let node = WsServer::spawn(command).await;
    node.ready().await;
    let mut client = Client::try_connect(node.address(), "/live?user=ann", &[]).await.expect("the path of the file");
    client.send("hello", json!(["x".repeat(2_000)])).await;
    // The demo tells how the cluster fares meanwhile.
    let code = loop {
        if let Message::Close(frame) = client.message_in().await {
            break frame.map(|frame| u16::from(frame.code));
        }
    };
    assert_eq!(code, Some(1009), "the limit of the file");
    node.terminate();
}

#[tokio::test]
async fn commands_find_the_cluster_of_the_file() {
    let state = state();
    let pool = format!("sqlite:{}/pool.sqlite", state.path().display());
    let path = write(state.path(), &format!("pool = \"{pool}\"\nlisten = \"127.0.0.1:0\"\ncluster.name = \"blue\"\n"));
    let mut command = WsServer::command(state.path());
    command.args(["run", "--config", &path]);
    let node = WsServer::spawn(command).await;
    node.ready().await;
    output(&run_with(state.path(), &["check", "--config", &path], &[]).await, 0);
    let elsewhere = ["check", "--config", &path, "--cluster", "green"];
    assert!(output(&run_with(state.path(), &elsewhere, &[]).await, 1).contains("no running server"));
}

#[tokio::test]
async fn a_mistake_is_one_line_that_names_its_place() {
    let state = state();
    for (text, says) in [
        ("lisen = \"x\"", "line 1: unknown key lisen: the nearest is listen"),
        ("[conection]\nreplays = 1", "line 1: unknown section [conection]: the nearest is [connection]"),
        ("listen = 8080", "line 1: listen is of the wrong type (integer): give a text in quotes"),
        ("listen = \"x", "line 1 is not TOML"),
        ("\n[connection]\nmessage_size = \"64 Q\"", "line 3 (connection.message_size): invalid value '64 Q'"),
        ("[connection]\nping_interval = \"25 parsecs\"", "line 2: invalid value '25 parsecs' for connection.ping"),
        ("dialect = \"verse\"", "line 1 (dialect): invalid value 'verse'"),
        ("trusted_proxy = \"nowhere\"", "line 1 (trusted_proxy) sets --trusted-proxy"),
        ("key = \"short\"", "the cluster's key has 5 bytes"),
        ("cluster.lease = \"1s\"", "cluster.renew_interval must be shorter than cluster.lease"),
    ] {
        let path = write(state.path(), text);
        for arguments in [&["config", "--check", "--config", &path][..], &["--config", &path, "--pool", "memory:"]] {
            let why = output(&run_with(state.path(), arguments, &[]).await, 2);
            assert!(why.contains(says), "{text}: {why}");
            assert_eq!(why.trim_end().lines().count(), 1, "{why}");
            assert!(why.starts_with("error: "), "{why}");
        }
    }
    let missing = state.path().join("nothing.toml");
    let why = output(&run_with(state.path(), &["config", "--config", missing.to_str().unwrap()], &[]).await, 2);
    assert!(why.contains("nothing.toml cannot be read") && why.lines().count() == 1, "{why}");
    // The variable wins, so that the file's mistake does no harm.
    let path = write(state.path(), "[connection]\nmessage_size = \"64 Q\"");
    let why = run_with(state.path(), &["config", "--config", &path], &[("WS_SERVER_MESSAGE_SIZE", "1 Q")]).await;
    assert!(output(&why, 2).contains("WS_SERVER_MESSAGE_SIZE: invalid value '1 Q'"));
}

#[tokio::test]
async fn a_check_says_nothing_of_a_file_in_order_and_warns_of_secrets_that_others_can_read() {
    let state = state();
    let path = write(state.path(), "publish_key = \"a publish key for the tests\"\n");
    let check = ["config", "--check", "--config", &path];
    let checked = run_with(state.path(), &check, &[]).await;
    assert_eq!(output(&checked, 0), "");
    assert!(checked.stderr.is_empty(), "{checked:?}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let warned = run_with(state.path(), &check, &[]).await;
    output(&warned, 0);
    let warning = String::from_utf8_lossy(&warned.stderr).into_owned();
    assert!(warning.contains("every user of this machine can read the secrets in"), "{warning}");
    assert!(warning.contains("(publish_key)") && warning.trim_end().lines().count() == 1, "{warning}");
    write(state.path(), "path = \"/live\"\n");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(run_with(state.path(), &check, &[]).await.stderr.is_empty(), "there is no secret in it");
}

#[tokio::test]
async fn the_example_is_a_file_of_all_defaults() {
    let state = state();
    let example = output(&run_with(state.path(), &["config", "--example"], &[]).await, 0);
    let is_setting = |line: &&str| line.starts_with('#') && !line.starts_with("# ");
    assert!(example.lines().filter(is_setting).count() > 60, "{example}");
    let given: Vec<_> = example
        .lines()
        .filter(|line| !line.ends_with("= \"\""))
        .map(|line| if is_setting(&line) { &line[1..] } else { line })
        .collect();
    let path = write(state.path(), &given.join("\n"));
    let with = output(&run_with(state.path(), &["config", "--config", &path], &[]).await, 0);
    let without = output(&run_with(state.path(), &["config"], &[]).await, 0);
    let values = |text: &str| -> Vec<String> {
        text.lines().filter_map(|line| Some(line.split_once("  # ")?.0.to_owned())).collect()
    };
    let with = values(&with);
    for value in values(&without) {
        assert!(with.contains(&value), "{value}");
    }
}

#[tokio::test]
async fn a_hangup_applies_what_can_change_and_names_what_cannot() {
    let state = state();
    let base = "listen = \"127.0.0.1:0\"\npool = \"memory:\"\n";
    let path = write(state.path(), &format!("{base}publish_key = \"the first key of the test\"\n"));
    let mut command = WsServer::command(state.path());
    command.args(["run", "--config", &path]);
    let node = WsServer::spawn(command).await;
    node.ready().await;
    let publish = async |key: &str| {
        let headers = [("authorization", &*format!("Bearer {key}")), ("content-type", "application/json")];
        node.http("POST", "/_publish", &headers, r#"{"action": "news", "to": "all"}"#).await.0.as_u16()
    };
    assert_eq!(publish("the first key of the test").await / 100, 2);

    let changed = "publish_key = \"the second key of the test\"\nlog_filter = \"debug\"\n[connection]\n\
                   connections_per_ip = 7\nmessage_size = \"1 KiB\"\n";
    write(state.path(), &format!("{base}{changed}"));
    node.signal(Signal::HUP);
    node.logged("SIGHUP: changed connection.connections_per_ip, log_filter, publish_key").await;
    node.logged("these change at the next start only: connection.message_size").await;
    assert_eq!(publish("the first key of the test").await, 401);
    assert_eq!(publish("the second key of the test").await / 100, 2);

    write(state.path(), &format!("{base}lisen = \"x\"\n"));
    node.signal(Signal::HUP);
    node.logged("nothing changes: ").await;
    node.logged("unknown key lisen: the nearest is listen").await;
    assert_eq!(publish("the second key of the test").await / 100, 2);
    assert!(!node.end().await.contains("key of the test"), "a secret is in the log");
}
