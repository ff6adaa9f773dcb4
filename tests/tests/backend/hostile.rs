//! Answers that no site should give, and connections that end at the wrong moment.

use serde_json::json;
use tests::{
    client::{Client, soon},
    site::Site,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{act, error, node, ping};

#[tokio::test]
async fn an_answer_that_cannot_be_used_is_an_error_with_its_reason() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--no-backend-disconnect"]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    let json = "application/json";
    let publish = |rest: &str| format!(r#"{{"publish": [{{"action": "leak", "to": "all"}}{rest}"#);
    for (number, (status, content_type, body, says)) in [
        ("200 OK", "text/html; charset=UTF-8", "<h1>Log in</h1>", "text/html; charset=UTF-8, and not application/json"),
        ("200 OK", "text/plain", "{}", "not application/json"),
        ("200 OK", json, "<h1>Warning</h1>{}", "not JSON"),
        ("200 OK", json, "", "the answer is empty"),
        ("200 OK", json, "{\"reply\": 1", "not JSON"),
        ("200 OK", json, "7", "must be an object"),
        ("200 OK", json, r#"{"reply": 1, "join": "a"}"#, "`join` must be an array"),
        ("200 OK", json, &publish(r#", {"action": "x"}]}"#), "in `publish[1]`: `to` is missing"),
        ("200 OK", json, &publish(r#"], "properties": [1]}"#), "`properties` must be an object"),
        ("200 OK", json, &publish(r#"], "error": "no"}"#), "`error` must be [CODE"),
        ("200 OK", json, &publish(r#"], "reply": 1, "error": [400, "x"]}"#), "exclude each other"),
        ("201 Created", json, "{}", "201 Created"),
        ("301 Moved Permanently", json, "{}", "redirects are not followed"),
        ("404 Not Found", "text/html", "<h1>Not found</h1>", "404 Not Found"),
        ("500 Internal Server Error", "text/html", "<h1>Oops</h1>", "500 Internal Server Error"),
    ]
    .into_iter()
    .enumerate()
    {
        let action = format!("action {number}");
        act(&mut client, &mut site, &action, json!([])).await.answer(status, content_type, body).await;
        let text = error(&mut client, &action, 502).await;
        assert!(text.contains(says), "{body}: {text}");
        node.logged(&format!("action=\"{action}\"")).await;
    }
    // Nothing of these answers took effect.
    let asked = act(&mut client, &mut site, "x", json!([])).await;
    assert_eq!((&asked.json["groups"], &asked.json["properties"]), (&json!([]), &json!({})));
    asked.nothing().await;
    ping(&mut client, &mut site).await;
    // Another reason writes a line, and the same one again writes none.
    for _ in 0..3 {
        act(&mut client, &mut site, "action 0", json!([])).await.answer("404 Not Found", "text/html", "").await;
        error(&mut client, "action 0", 502).await;
    }
    let lines = node.end().await.lines().filter(|line| line.contains("action=\"action 0\"")).count();
    assert_eq!(lines, 2);
}

#[tokio::test]
async fn a_proxy_that_says_the_site_is_down_is_no_answer_of_the_site() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &[]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    for (status, code) in [("502 Bad Gateway", 502), ("503 Service Unavailable", 503), ("504 Gateway Timeout", 504)] {
        act(&mut client, &mut site, "x", json!([])).await.answer(status, "text/html", "<h1>nginx</h1>").await;
        error(&mut client, "x", code).await;
    }
    node.logged("a request to the site's backend failed").await;
    ping(&mut client, &mut site).await;
    node.logged("the site's backend answers again").await;
}

#[tokio::test]
async fn an_answer_without_end_takes_little_memory() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &[]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    ping(&mut client, &mut site).await;
    let before = memory(node.id());
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 1073741824\r\n\r\n\"",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n\r\n\"",
    ] {
        let mut asked = act(&mut client, &mut site, "big", json!([])).await;
        asked.stream.write_all(head.as_bytes()).await.unwrap();
        let mut written = 0_u64;
        // The node closes the connection once the answer is too large.
        while asked.stream.write_all(&[b'a'; 65_536]).await.is_ok() {
            written += 65_536;
            assert!(written < 1 << 30, "the node reads on");
        }
        let text = error(&mut client, "big", 502).await;
        assert!(text.contains("larger than 1048576 bytes"), "{text}");
    }
    assert!(memory(node.id()) < before + (64 << 20), "the node keeps what it reads");
    ping(&mut client, &mut site).await;
}

/// Returns the memory of a process, in bytes.
fn memory(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn an_answer_that_is_no_http_or_ends_too_early_is_an_error() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &[]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    for (bytes, code) in [
        ("SSH-2.0-OpenSSH_9.9\r\n", 502),
        ("HTTP/1.1 OK\r\n\r\n", 502),
        (&*format!("{head}content-length: 100\r\n\r\n{{\"reply\": 1"), 502),
        (&*format!("{head}transfer-encoding: chunked\r\n\r\n5\r\n{{\"rep\r\n"), 502),
        (&*format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\nrubbish\r\n"), 502),
        (&*format!("{head}content-length: nine\r\n\r\n{{}}"), 502),
        // No answer at all, and a part of its head.
        ("", 504),
        ("HTTP/1.1 200 OK\r\ncontent-", 504),
    ] {
        let mut asked = act(&mut client, &mut site, "x", json!([])).await;
        asked.stream.write_all(bytes.as_bytes()).await.unwrap();
        drop(asked);
        error(&mut client, "x", code).await;
        // It is sent once only.
        assert_eq!(site.waiting(), 0, "{bytes}");
        ping(&mut client, &mut site).await;
    }
}

#[tokio::test]
async fn answers_in_unusual_forms_are_read() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &[]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    let body = r#"{"reply": "done"}"#;
    let whole = |head: &str| format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\n{body}");
    for bytes in [
        whole("content-length: 17"),
        whole("Content-Type: application/json; charset=utf-8\r\nConnection: close"),
        format!(
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{}",
            whole("content-length: 17")
        ),
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\n{\"re\r\nd\r\nply\": \"done\"}\r\n0\r\nx: y\r\n\r\n"
            .to_owned(),
        format!("HTTP/1.0 200 OK\r\n\r\n{body}"),
        whole("content-length: 20").replace("{\"reply", "\u{feff}{\"reply"),
    ] {
        let mut asked = act(&mut client, &mut site, "x", json!([])).await;
        asked.stream.write_all(bytes.as_bytes()).await.unwrap();
        asked.stream.shutdown().await.unwrap();
        client.expect("x", json!(["done"])).await;
    }
}

#[tokio::test]
async fn a_second_answer_does_not_count() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &[]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    let answer = |text: &str| {
        let body = json!({ "reply": text }).to_string();
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len())
    };
    let asked = act(&mut client, &mut site, "x", json!([])).await;
    asked.raw(&(answer("first") + &answer("forged"))).await;
    client.expect("x", json!(["first"])).await;
    ping(&mut client, &mut site).await;
}

#[tokio::test]
async fn connections_are_used_again_and_one_that_died_meanwhile_fails_no_action() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--no-backend-disconnect"]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    for _ in 0..10 {
        ping(&mut client, &mut site).await;
    }
    let used = site.connections();
    // A pause of a second makes one more.
    assert!(used < 10, "{used} connections for ten requests");
    // The site closes the connection after its answer, without having said so.
    for _ in 0..20 {
        let mut asked = act(&mut client, &mut site, "x", json!([])).await;
        asked.stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 14\r\n\r\n{\"reply\": \"a\"}").await.unwrap();
        asked.stream.shutdown().await.unwrap();
        let mut rest = Vec::new();
        // The node has closed it as well, so the next action does not go there.
        soon(asked.stream.read_to_end(&mut rest)).await.unwrap();
        client.expect("x", json!(["a"])).await;
    }
}
