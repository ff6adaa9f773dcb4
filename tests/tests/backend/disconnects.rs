//! What the site is told of connections that have ended.

use std::fs;

use serde_json::json;
use tests::{
    client::{Client, soon},
    site::{Asked, Site},
};

use crate::{act, node, ping};

#[tokio::test]
async fn the_site_is_told_how_a_connection_ended_and_again_if_it_does_not_answer() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &[]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    let asked = act(&mut client, &mut site, "x", json!([])).await;
    let id = asked.json["connection"].clone();
    asked.json(json!({"join": ["page/7"], "properties": {"page": 7}, "reply": "done"})).await;
    client.expect("x", json!(["done"])).await;
    soon(client.0.close(None)).await.unwrap();
    let asked = site.asked_for("disconnect").await;
    let expected = json!({
        "event": "disconnect", "code": 1005, "reason": "", "resumed": false, "connection": id, "user": null,
        "session": null, "groups": ["page/7"], "properties": {"page": 7},
    });
    assert_eq!(asked.json, expected);
    // The same event again, until the site answers.
    let event = asked.header("webhook-id").map(str::to_owned);
    asked.answer("500 Internal Server Error", "text/html", "").await;
    let again = site.asked_for("disconnect").await;
    assert_eq!(again.header("webhook-id").map(str::to_owned), event);
    again.answer("200 OK", "text/plain", "thanks").await;

    // A client that vanishes.
    drop(Client::connect(node.address(), &[]).await);
    let asked = site.asked_for("disconnect").await;
    assert_eq!(asked.json["code"], 1006);
    asked.nothing().await;
}

#[tokio::test]
async fn a_node_that_shuts_down_tells_the_site_of_its_connections() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let mut node = node(state.path(), &site, &[]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    ping(&mut client, &mut site).await;
    node.terminate();
    assert_eq!(client.closed().await.0, 1012);
    let asked = site.asked_for("disconnect").await;
    assert_eq!(asked.json["code"], 1012);
    asked.nothing().await;
    assert!(node.wait().await.success());
}

#[tokio::test]
async fn a_node_that_shuts_down_tells_a_site_again_that_was_not_there() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let mut node = node(state.path(), &site, &[]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    ping(&mut client, &mut site).await;
    node.terminate();
    assert_eq!(client.closed().await.0, 1012);
    let unavailable = async |asked: Asked| asked.answer("503 Service Unavailable", "text/plain", "later").await;
    unavailable(site.asked_for("disconnect").await).await;
    site.asked_for("disconnect").await.nothing().await;
    assert!(node.wait().await.success());
}

#[tokio::test]
async fn a_node_that_shuts_down_counts_the_ends_of_connections_that_it_could_not_tell() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let file = state.path().join("ws.toml");
    fs::write(&file, "[cluster]\nshutdown_timeout = \"3s\"\n").unwrap();
    let mut node = node(state.path(), &site, &["--config", file.to_str().unwrap()]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    ping(&mut client, &mut site).await;
    node.terminate();
    assert_eq!(client.closed().await.0, 1012);
    // The third attempt would come 3 s after the second one.
    for _ in 0..2 {
        let asked = site.asked_for("disconnect").await;
        asked.answer("503 Service Unavailable", "text/plain", "later").await;
    }
    assert!(node.wait().await.success());
    let log = node.whole_log().await;
    let line = log.lines().find(|line| line.contains("does not wait any longer to tell the site")).expect("a line");
    assert!(line.contains("WARN") && line.contains("count=1"), "{line}");
}

#[tokio::test]
async fn without_these_events_the_site_is_not_told() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let mut node = node(state.path(), &site, &["--no-backend-disconnect"]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    ping(&mut client, &mut site).await;
    node.terminate();
    assert!(node.wait().await.success());
    assert_eq!(site.waiting(), 0);
}
