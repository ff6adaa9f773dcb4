//! Details reach clients as the bytes that came in, on every way into the server, and a message with malformed details
//! does not end a connection.

use async_trait::async_trait;
use serde_json::json;
use tests::message;
use tests::{
    WsServer,
    client::{Client, soon},
    nodes::{KEY, Nodes},
    solo::Solo,
};
use ws_cluster::{ActionError, ActionHandler, Dialect, MemoryPool, Publisher, RawDetails, Request, Server, Target};

/// Details that a program would change if it parsed and encoded them.
const DELICATE: [&str; 9] = [
    "[117.63331139400017]",
    "[18446744073709551616,-9223372036854775809,9007199254740993]",
    "[1.0,1.50,1e400,-0,1E+2,1e-7]",
    r#"[{"z":1,"a":2,"z":3}]"#,
    r#"[ 1 , {"a" : [ ] } ]"#,
    r#"["\u00e9\ud83c\udf89\/\u0000","é🎉/"]"#,
    r#"["\\ud83c"]"#,
    "[null,true,\"\"]",
    "[]",
];

/// A handler that sends back its details.
struct Echo;

#[async_trait]
impl ActionHandler for Echo {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        match request.action() {
            "first" => request.reply(RawDetails::from_serialize(&request.details().raw()[..1]).expect("JSON"))?,
            "pair" => {
                let (one, other): (&str, &str) = request.parse()?;
                request.reply(json!([other, one]))?;
            }
            _ => request.reply(request.details())?,
        }
        Ok(())
    }

    fn guests(&self) -> bool {
        true
    }
}

async fn echo() -> Solo {
    Solo::start(Server::builder(MemoryPool::default()).fallback(Echo).publish_key("key")).await
}

/// Asserts that the next message has these details.
async fn expect(client: &mut Client, action: &str, details: &str) {
    let expected = format!(r#"{{"action":"{action}","details":{details}}}"#);
    assert_eq!(client.text_in().await, expected);
}

#[tokio::test]
async fn details_that_are_echoed_are_unchanged_in_both_forms() {
    let solo = echo().await;
    let (mut object, mut array) = (solo.guest().await, solo.guest().await);
    for details in DELICATE {
        object.text(&format!(r#"{{"action":"echo","details":{details}}}"#)).await;
        expect(&mut object, "echo", details).await;
        array.text(&format!(r#"["echo",{details}]"#)).await;
        assert_eq!(array.text_in().await, format!(r#"["echo",{details}]"#));
    }
    for (sent, wrapped) in [("1e400", "[1e400]"), (r#"{"z":1, "a":2.0}"#, r#"[{"z":1, "a":2.0}]"#), ("null", "[]")] {
        object.text(&format!(r#"{{"details":{sent},"action":"echo"}}"#)).await;
        expect(&mut object, "echo", wrapped).await;
    }
    object.text(r#"{"action":"first","details":[1.0,2]}"#).await;
    expect(&mut object, "first", "[1.0]").await;
    object.text(r#"{"action":"pair","details":["\"one\"","\u00e9"]}"#).await;
    expect(&mut object, "pair", r#"["é","\"one\""]"#).await;
}

#[tokio::test]
async fn details_go_through_the_cluster_unchanged() {
    let nodes = Nodes::start(2).await;
    let publisher = Publisher::connect(nodes.pool(), KEY).await.unwrap();
    let (mut here, mut there) = (nodes[0].user("ann").await, nodes[1].user("ann").await);
    for details in DELICATE {
        here.text(&format!(r#"{{"action":"hello","details":{details}}}"#)).await;
        nodes_expect(&mut here, &mut there, "hello", details).await;
        let parsed: RawDetails = details.parse().unwrap();
        nodes[1].server.publish(message("news", &parsed, Target::user("ann"))).await.unwrap();
        nodes_expect(&mut here, &mut there, "news", details).await;
        publisher.publish(message("more", parsed, Target::user("ann"))).await.unwrap();
        nodes_expect(&mut here, &mut there, "more", details).await;
    }
}

async fn nodes_expect(here: &mut Client, there: &mut Client, action: &str, details: &str) {
    expect(here, action, details).await;
    expect(there, action, details).await;
}

#[tokio::test]
async fn details_go_through_http_unchanged() {
    let solo = echo().await;
    let mut client = solo.guest().await;
    for details in DELICATE {
        let body = format!(r#"{{"action":"news","details":{details},"to":"all"}}"#);
        let (status, text) = solo.post("/_publish", &[("authorization", "Bearer key")], body.as_bytes()).await;
        assert_eq!(status, 204, "{text}");
        expect(&mut client, "news", details).await;
    }
}

#[tokio::test]
async fn details_go_through_the_command_line_unchanged() {
    let state = tempfile::tempdir().unwrap();
    let node = WsServer::start(state.path(), &[]).await;
    node.ready().await;
    let mut client = Client::connect(node.address(), &[]).await;
    let details = r#"[117.63331139400017,1.0,1e400,18446744073709551616,{"z":1,"a":2}]"#;
    let output = WsServer::run(state.path(), &["send", "news", details, "--to", "all"]).await;
    assert!(output.status.success(), "{output:?}");
    expect(&mut client, "news", details).await;
}

#[tokio::test]
async fn a_client_in_rust_reads_details_as_they_came() {
    let solo = echo().await;
    let url = format!("ws://{}/WebSockets", solo.address);
    let (client, mut events) = ws_cluster::Client::builder([url]).connect().unwrap();
    for details in DELICATE {
        client.send("echo", details.parse::<RawDetails>().unwrap()).unwrap();
        let message = loop {
            match soon(events.next()).await.unwrap() {
                ws_cluster::client::Event::Message(message) if message.action == "echo" => break message,
                _ => {}
            }
        };
        assert_eq!(message.details.as_str(), details);
    }
}

#[tokio::test]
async fn half_of_a_surrogate_pair_becomes_the_replacement_character() {
    let solo = echo().await;
    let mut client = solo.guest().await;
    client.text(r#"{"action":"echo","details":["\ud83c","\udf89\ud83c\udf89",{"\ud83c":1.0}]}"#).await;
    expect(&mut client, "echo", "[\"\u{fffd}\",\"\u{fffd}\\ud83c\\udf89\",{\"\u{fffd}\":1.0}]").await;
    client.text(r#"{"action":"\ud83c","details":[1.0]}"#).await;
    expect(&mut client, "\u{fffd}", "[1.0]").await;
    client.text(r#"{"action":"a\u0000","details":[]}"#).await;
    expect(&mut client, r"a\u0000", "[]").await;
}

#[tokio::test]
async fn a_message_that_is_malformed_in_its_details_is_answered_and_the_connection_lives() {
    let solo = echo().await;
    let (mut object, mut array) = (solo.guest().await, solo.guest().await);
    let deep = "[".repeat(130) + &"]".repeat(130);
    let deeper = "[".repeat(20_000) + &"]".repeat(20_000);
    for details in [
        "[NaN]",
        "[Infinity]",
        "undefined",
        "[1",
        "[1]]",
        "[1,]",
        "[01]",
        "['a']",
        "[\"a\nb\"]",
        r#"["\x"]"#,
        r#"["\u12"]"#,
        "{1:2}",
        "",
        "1 2",
        &deep,
        &deeper,
    ] {
        object.text(&format!(r#"{{"action":"echo","details":{details}}}"#)).await;
        let answer = object.json().await;
        assert_eq!((&answer["action"], &answer["details"][0]), (&json!("echo:error"), &json!(400)), "{details:.40}");
        assert!(!answer["details"][1].as_str().unwrap().is_empty());
        array.text(&format!(r#"["echo",{details}]"#)).await;
        let answer = array.json().await;
        assert_eq!((&answer[0], &answer[1][0]), (&json!("echo:error"), &json!(400)), "{details:.40}");
    }
    for client in [&mut object, &mut array] {
        client.text(&format!(r#"["echo",[{}]]"#, &deep[5..255])).await;
        assert!(client.text_in().await.contains(&deep[5..255]));
    }
}

#[tokio::test]
async fn a_client_that_has_not_spoken_is_addressed_in_the_dialect_of_the_server() {
    let builder = Server::builder(MemoryPool::default()).fallback(Echo).dialect(Dialect::Array);
    let solo = Solo::start(builder).await;
    let (mut silent, mut object) = (solo.guest().await, solo.guest().await);
    object.text(r#"{"action":"echo","details":[1.0]}"#).await;
    expect(&mut object, "echo", "[1.0]").await;
    let mut resuming = Client::try_connect(solo.address, "/WebSockets?resume=", &[]).await.unwrap();
    assert_eq!(resuming.json().await["action"], "Server/position");
    solo.server.publish(message("news", 1, Target::all())).await.unwrap();
    assert_eq!(silent.text_in().await, r#"["news",[1]]"#);
    expect(&mut object, "news", "[1]").await;
    assert_eq!(resuming.json().await["action"], "news");
    silent.text(r#"{"action":"echo","details":[]}"#).await;
    expect(&mut silent, "echo", "[]").await;
}

#[tokio::test]
async fn the_binary_takes_a_dialect() {
    let state = tempfile::tempdir().unwrap();
    let node = WsServer::start(state.path(), &["--dialect", "array"]).await;
    node.ready().await;
    let mut client = Client::connect(node.address(), &[]).await;
    let output = WsServer::run(state.path(), &["send", "news", "7", "--to", "all"]).await;
    assert!(output.status.success(), "{output:?}");
    assert_eq!(client.text_in().await, r#"["news",[7]]"#);
    let output = WsServer::run(state.path(), &["run", "--dialect", "list"]).await;
    assert!(String::from_utf8_lossy(&output.stderr).contains("use object or array"), "{output:?}");
    assert_eq!(output.status.code(), Some(2));
}
