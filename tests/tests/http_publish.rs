//! Publishes and closes over HTTP, with the variants of JSON and requests that the languages and tools of sites
//! produce.

use async_trait::async_trait;
use serde_json::json;
use tests::{
    client::{Client, soon},
    http_client::answer,
    nodes::Sessions,
    solo::Solo,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use ws_cluster::{ActionError, ActionHandler, MemoryPool, Request, Server};

const KEY: (&str, &str) = ("authorization", "Bearer key");
const MIB: usize = 1024 * 1024;

/// A handler that tells a client the id of its connection.
struct Where;

#[async_trait]
impl ActionHandler for Where {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        request.reply(request.connection().to_string())?;
        Ok(())
    }
}

async fn start() -> Solo {
    let builder = Server::builder(MemoryPool::default()).authenticator(Sessions).action("where", Where);
    Solo::start(builder.publish_key("key")).await
}

async fn user(solo: &Solo, name: &str, groups: &str) -> Client {
    Client::connect(solo.address, &[("x-user", name), ("x-groups", groups), ("x-colour", "red")]).await
}

#[track_caller]
fn accepted((status, text): (u16, String)) {
    assert_eq!(status, 204, "{text}");
}

#[tokio::test]
async fn escapes_do_not_count_towards_the_size_of_a_publish() {
    let solo = start().await;
    let mut client = solo.guest().await;
    let body = format!(r#"{{"action": "news", "details": ["{}"], "to": "all"}}"#, r"\u043f".repeat(500_000));
    accepted(solo.post("/_publish", &[KEY], body.as_bytes()).await);
    let text = client.text_in().await;
    assert_eq!(text, format!(r#"{{"action":"news","details":["{}"]}}"#, "п".repeat(500_000)));
    for (escape, character, size) in
        [(r"\u0001", r"\u0001", 6), (r"\u0041", "A", 1), (r"\/", "/", 1), (r"\ud83c\udf89", "🎉", 4)]
    {
        let fits = (MIB - "news[\"\"]".len()) / size;
        let body = |count: usize| format!(r#"{{"action":"news","details":"{}","to":"all"}}"#, escape.repeat(count));
        let refused = solo.post("/_publish", &[KEY], body(fits + 1).as_bytes()).await;
        assert_eq!(refused.0, 413, "{escape}");
        accepted(solo.post("/_publish", &[KEY], body(fits).as_bytes()).await);
        assert!(client.text_in().await.contains(&character.repeat(fits)), "{escape}");
    }
}

#[tokio::test]
async fn a_body_that_is_too_large_gets_its_answer_after_it_was_written() {
    let solo = start().await;
    let body = vec![b'x'; 20 * MIB];
    assert_eq!(solo.post("/_publish", &[KEY], &body).await.0, 413);
    assert_eq!(solo.post("/_publish", &[], &body).await.0, 401);
    assert_eq!(solo.post("/_publish", &[KEY, ("content-encoding", "gzip")], &body).await.0, 415);
    assert_eq!(solo.post("/_close", &[KEY], &body).await.0, 413);
    // The size is not known in advance.
    let mut stream = solo.head("/_publish", &[KEY, ("transfer-encoding", "chunked"), ("connection", "close")]).await;
    for _ in 0..20 {
        soon(stream.write_all(b"100000\r\n")).await.unwrap();
        soon(stream.write_all(&body[..MIB])).await.unwrap();
        soon(stream.write_all(b"\r\n")).await.unwrap();
    }
    soon(stream.write_all(b"0\r\n\r\n")).await.unwrap();
    assert_eq!(soon(answer(stream)).await.unwrap().status, 413);
}

#[tokio::test]
async fn a_client_that_waits_for_the_go_ahead_gets_it_or_its_refusal() {
    const GO: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
    let solo = start().await;
    let body = br#"{"action":"news","to":"all"}"#;
    let (size, expect) = (body.len().to_string(), ("expect", "100-continue"));
    let close = ("connection", "close");
    let mut stream = solo.head("/_publish", &[KEY, expect, close, ("content-length", &size)]).await;
    let mut go = vec![0; GO.len()];
    soon(stream.read_exact(&mut go)).await.unwrap();
    assert_eq!(go, GO);
    stream.write_all(body).await.unwrap();
    let accepting = soon(answer(stream)).await.unwrap();
    accepted((accepting.status.as_u16(), accepting.text));
    for (headers, status) in [
        (vec![KEY, expect, close, ("content-length", "20000000")], 413),
        (vec![expect, close, ("content-length", &size)], 401),
        (vec![KEY, expect, close, ("content-length", &size), ("content-encoding", "br")], 415),
    ] {
        assert_eq!(soon(answer(solo.head("/_publish", &headers).await)).await.unwrap().status, status);
    }
}

#[tokio::test]
async fn a_body_is_utf8_text() {
    let solo = start().await;
    let mut client = solo.guest().await;
    let json = r#"{"action":"news","details":"é","to":"all"}"#;
    let units = || json.encode_utf16();
    let wide: Vec<u8> = units().flat_map(u16::to_le_bytes).collect();
    let big: Vec<u8> = [0xfeff].into_iter().chain(units()).flat_map(u16::to_be_bytes).collect();
    for (body, why) in [
        (wide, "UTF-16"),
        (big, "UTF-16"),
        (b"{\"action\":\"news\",\"details\":\"\xe9\",\"to\":\"all\"}".to_vec(), "not UTF-8"),
    ] {
        let (status, text) = solo.post("/_publish", &[KEY], &body).await;
        assert!(status == 400 && text.contains(why), "{status} {text}");
    }
    for encoding in ["gzip", "identity, deflate", "GZIP"] {
        let (status, text) = solo.post("/_publish", &[KEY, ("content-encoding", encoding)], json.as_bytes()).await;
        assert!(status == 415 && text.contains("Content-Encoding"), "{status} {text}");
    }
    for headers in [
        vec![KEY],
        vec![KEY, ("content-encoding", "Identity")],
        vec![KEY, ("content-type", "application/x-www-form-urlencoded")],
        vec![KEY, ("content-type", "text/plain; charset=latin1")],
    ] {
        accepted(solo.post("/_publish", &headers, format!("\u{feff}{json}\r\n").as_bytes()).await);
        client.expect("news", json!(["é"])).await;
    }
}

#[tokio::test]
async fn each_mistake_in_an_order_is_named() {
    let solo = start().await;
    for (path, body, why) in [
        ("/_publish", r#"{"to":"all"}"#, "`action` is missing"),
        ("/_publish", r#"{"action":"x","to":null}"#, "`to` must be text or an object"),
        ("/_publish", r#"{"action":"x","to":"user:"}"#, "an id is empty"),
        ("/_publish", r#"{"action":"x","to":"all","too":1}"#, "unknown member `too`"),
        ("/_publish", r#"{"action":"x","to":"all","key":[]}"#, "`key` must be text"),
        ("/_publish", r#"{"action":"x","to":"all","volatile":"true"}"#, "`volatile` must be true or false, not text"),
        ("/_publish", r#"{"action":"x","to":"all"}{"action":"y","to":"all"}"#, "one object at a time"),
        ("/_publish", "[]", "the array is empty"),
        ("/_publish", r#"[{"action":"x","to":"all"},]"#, "not JSON"),
        ("/_publish", r#"[{"action":"x","to":"all"}][]"#, "an array of messages"),
        ("/_groups", r#"{"user":7}"#, "names no group"),
        ("/_groups", r#"{"user":7,"join":[]}"#, "names no group"),
        ("/_groups", r#"{"user":7,"join":["a"],"leave":["a"]}"#, "the group \"a\" is there twice"),
        ("/_groups", r#"{"join":["a"]}"#, "say whose"),
        ("/_groups", r#"{"user":7,"join":[["a"]]}"#, "`join[0]` must be text or a number, not an array"),
        ("/_groups", r#"[{"user":7,"join":["a"]}]"#, "the body must be a JSON object, not an array"),
        ("/_publish", r#"{"action":"x","to":"all","details":[nan]}"#, "not JSON"),
        ("/_close", r#"{"user":null}"#, "`user` must be text or a number, not null"),
        ("/_close", r#"{"session":{}}"#, "`session` must be text or a number, not an object"),
        ("/_close", r#"{"session":""}"#, "`session` is empty"),
        ("/_close", r#"{"users":7}"#, "unknown member `users`"),
        ("/_close", "{}", "say whose"),
        ("/_close", r#"{"user":7,"reconnect":"yes"}"#, "`reconnect` must be true or false, not text"),
        ("/_close", r#"{"session":7,"except_session":8}"#, "`except_session` goes with `user`"),
        ("/_refresh", r#"{"user":7,"reconnect":true}"#, "unknown member `reconnect`"),
        ("/_refresh", r#"{"user":false}"#, "`user` must be text or a number, not true or false"),
        ("/_close", "", "the body is empty"),
    ] {
        let (status, text) = solo.post(path, &[KEY], body.as_bytes()).await;
        assert!(status == 400 && text.contains(why), "{path} {body}: {status} {text}");
    }
}

#[tokio::test]
async fn a_target_as_json_reaches_the_clients_that_it_names() {
    let solo = start().await;
    let (mut whole, mut doe) = (user(&solo, "doe,john", "a,b").await, user(&solo, "doe", "c").await);
    doe.send("where", json!([])).await;
    let id = doe.json().await["details"][0].as_str().unwrap().to_owned();
    let publish = async |action: &str, to: &str| {
        let body = format!(r#"{{"action":"{action}","to":{to}}}"#);
        accepted(solo.post("/_publish", &[KEY], body.as_bytes()).await);
    };
    publish("whole", r#"{"users":["doe,john"]}"#).await;
    publish("text", r#""user:doe,john""#).await;
    publish("one", r#"{"user":"doe,john"}"#).await;
    publish("groups", r#"{"groups":["b","none"]}"#).await;
    publish("group", r#"{"group":"c"}"#).await;
    publish("connection", &format!(r#"{{"connection":"{id}"}}"#)).await;
    publish(
        "but one",
        &format!(r#"{{"property":{{"name":"colour","value":"red"}}}},"except":{{"connection":"{id}"}}"#),
    )
    .await;
    publish("but a user", r#""registered","except":{"user":"doe,john"}"#).await;
    publish("end", r#""all""#).await;
    for action in ["whole", "one", "groups", "but one", "end"] {
        whole.expect(action, json!([])).await;
    }
    for action in ["text", "group", "connection", "but a user", "end"] {
        doe.expect(action, json!([])).await;
    }
}
