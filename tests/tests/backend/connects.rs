//! Clients whose identity the site's own code tells.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::StatusCode;
use serde_json::{Value, json};
use tests::{client::Client, http_client, publish::PUBLISH_KEY, site::Site};

use crate::{act, node};

/// A time in seconds since 1970.
fn from_now(seconds: u64) -> u64 {
    (SystemTime::now() + Duration::from_secs(seconds)).duration_since(UNIX_EPOCH).unwrap().as_secs()
}

/// Asks who a client is whose handshake said it.
async fn who(client: &mut Client) -> Value {
    client.send("Client/authentication", json!([])).await;
    client.authenticated().await
}

/// Connects a client while the site answers this.
async fn connect(node: &tests::WsServer, site: &mut Site, cookie: &str, answer: Value) -> Client {
    let headers = [("cookie", cookie)];
    let (client, ()) = tokio::join!(Client::connect(node.address(), &headers), async {
        site.asked_for("connect").await.json(answer).await;
    });
    client
}

#[tokio::test]
async fn the_site_says_who_a_client_is() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--backend-connect", "--no-backend-disconnect"]).await;
    let headers = [
        ("cookie", "laravel_session=eyJpdiI6"),
        ("authorization", "Basic eA=="),
        ("user-agent", "Firefox"),
        ("accept-language", "de"),
        ("x-secret", "no"),
    ];
    let connecting = Client::try_connect(node.address(), "/WebSockets?page=7&resume=", &headers);
    let answering = async {
        let asked = site.asked_for("connect").await;
        assert!(asked.json["connection"].is_string());
        assert_eq!(asked.json["query"], json!({"page": "7"}));
        let expected = json!({
            "cookie": "laravel_session=eyJpdiI6", "authorization": "Basic eA==", "user-agent": "Firefox",
            "accept-language": "de",
        });
        assert_eq!(asked.json["headers"], expected);
        assert_eq!((&asked.json["remote_addr"], asked.json.get("credentials")), (&json!("127.0.0.1"), None));
        let answer = json!({
            "user": 7, "session": "s", "expires": from_now(600), "groups": ["editors"], "properties": {"page": 7},
            "unknown": 1,
        });
        asked.json(answer).await;
    };
    let (client, ()) = tokio::join!(connecting, answering);
    let mut client = client.expect("no refusal");
    assert_eq!(client.json().await["action"], "Server/position");
    let facts = who(&mut client).await;
    assert_eq!(facts["user"], "7");
    assert!(facts["expires_in"].as_u64().is_some_and(|seconds| (500..=600).contains(&seconds)), "{facts}");
    let asked = act(&mut client, &mut site, "x", json!([])).await;
    let told = ["user", "session", "groups", "properties"].map(|name| asked.json[name].clone());
    assert_eq!(told, [json!("7"), json!("s"), json!(["editors"]), json!({"page": 7})]);
}

#[tokio::test]
async fn the_site_may_make_a_client_a_guest_or_refuse_it() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--backend-connect", "--no-backend-disconnect"]).await;
    let mut guest = connect(&node, &mut site, "a=1", json!({})).await;
    let asked = act(&mut guest, &mut site, "x", json!([])).await;
    assert_eq!(asked.json["user"], Value::Null);
    asked.nothing().await;
    for status in ["401 Unauthorized", "403 Forbidden"] {
        let (mut client, ()) = tokio::join!(Client::connect(node.address(), &[]), async {
            site.asked_for("connect").await.answer(status, "text/html", "<p>No</p>").await;
        });
        client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
        assert_eq!(client.closed().await.0, 4401, "{status}");
    }
}

#[tokio::test]
async fn credentials_in_a_message_go_to_the_site() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--backend-connect", "--no-backend-disconnect"]).await;
    let mut client = connect(&node, &mut site, "a=1", json!({})).await;
    client.send("Client/authentication", json!(["ann", {"password": "open sesame"}])).await;
    let asked = site.asked_for("connect").await;
    assert_eq!(asked.json["credentials"], json!(["ann", {"password": "open sesame"}]));
    asked.json(json!({"user": "ann"})).await;
    assert_eq!(client.authenticated().await["user"], "ann");
    // Other credentials change nothing, and wrong ones neither.
    for answer in [json!({"user": "bob"}), json!({})] {
        client.send("Client/authentication", json!(["bob"])).await;
        site.asked_for("connect").await.json(answer).await;
        client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    }
    client.send("Client/authentication", json!(["bob"])).await;
    site.asked_for("connect").await.answer("403 Forbidden", "text/plain", "no").await;
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    assert_eq!(who(&mut client).await["user"], "ann");

    let mut stranger = connect(&node, &mut site, "a=1", json!({})).await;
    stranger.send("Client/authentication", json!(["wrong"])).await;
    site.asked_for("connect").await.answer("401 Unauthorized", "text/plain", "no").await;
    stranger.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    assert_eq!(stranger.closed().await.0, 4401);
}

#[tokio::test]
async fn an_identity_that_ends_is_asked_about_again() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let arguments = ["--backend-connect", "--no-backend-disconnect", "--publish-key", PUBLISH_KEY];
    let node = node(state.path(), &site, &arguments).await;
    let ann = json!({"user": "ann", "session": "s", "groups": ["old"], "expires": from_now(5)});
    let mut client = connect(&node, &mut site, "session=s", ann).await;
    let asked = site.asked_for("refresh").await;
    let told = ["user", "session"].map(|name| asked.json[name].clone());
    assert_eq!((told, &asked.json["headers"]["cookie"]), ([json!("ann"), json!("s")], &json!("session=s")));
    asked.json(json!({"user": "ann", "session": "s", "groups": ["new"]})).await;
    // It takes effect beside the actions of the client.
    let mut asked = act(&mut client, &mut site, "x", json!([])).await;
    while asked.json["groups"] == json!(["old"]) {
        asked.nothing().await;
        asked = act(&mut client, &mut site, "x", json!([])).await;
    }
    assert_eq!(asked.json["groups"], json!(["new"]));
    asked.nothing().await;
    // The site may ask for it at any time. One that ends the session, or refuses, closes the connection for a while.
    let headers = [("authorization", &*format!("Bearer {PUBLISH_KEY}"))];
    let (status, _) = node.http("POST", "/_refresh", &headers, r#"{"user": "ann"}"#).await;
    assert_eq!(status, StatusCode::NO_CONTENT);
    site.asked_for("refresh").await.answer("401 Unauthorized", "text/plain", "no").await;
    assert_eq!(client.closed().await.0, 4003);
}

#[tokio::test]
async fn while_the_site_is_down_clients_wait_and_open_connections_stay() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let arguments = ["--backend-connect", "--no-backend-disconnect", "--publish-key", PUBLISH_KEY];
    let node = node(state.path(), &site, &arguments).await;
    let ann = json!({"user": "ann", "expires": from_now(600)});
    let mut client = connect(&node, &mut site, "session=s", ann).await;
    // Not asked, but for a while: the answers are of no use.
    for (status, content_type, body) in [
        ("503 Service Unavailable", "text/html", "<p>Maintenance</p>"),
        ("500 Internal Server Error", "text/html", "<p>Oops</p>"),
        ("302 Found", "text/html", ""),
        ("200 OK", "text/html", "<form>Log in</form>"),
        ("200 OK", "application/json", r#"{"user": "ann", "expires": 3600}"#),
    ] {
        let upgrade = [("connection", "upgrade, close"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
        let upgrade = [&upgrade[..], &[("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")]].concat();
        let refused = async {
            let stream = http_client::begin(node.address(), "GET", "/WebSockets", &upgrade).await.unwrap();
            http_client::answer(stream).await.unwrap()
        };
        let (refused, ()) = tokio::join!(refused, async {
            site.asked_for("connect").await.answer(status, content_type, body).await;
        });
        assert_eq!((refused.status, refused.header("retry-after")), (StatusCode::SERVICE_UNAVAILABLE, Some("1")));
    }
    // The first reason is in the log.
    let log = node.logged("the site's answer about a client cannot be used").await;
    assert!(log.contains("the answer is 500 Internal Server Error"), "{log}");
    let headers = [("authorization", &*format!("Bearer {PUBLISH_KEY}"))];
    node.http("POST", "/_refresh", &headers, r#"{"user": "ann"}"#).await;
    site.asked_for("refresh").await.answer("503 Service Unavailable", "text/html", "").await;
    assert_eq!(who(&mut client).await["user"], "ann");
}

#[tokio::test]
async fn a_question_whose_connection_is_lost_is_asked_again_with_its_id() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--backend-connect", "--no-backend-disconnect"]).await;
    let (mut client, ()) = tokio::join!(Client::connect(node.address(), &[]), async {
        let lost = site.asked_for("connect").await;
        let id = lost.header("webhook-id").map(str::to_owned);
        drop(lost);
        let again = site.asked_for("connect").await;
        assert_eq!(again.header("webhook-id").map(str::to_owned), id);
        again.json(json!({"user": "ann"})).await;
    });
    assert_eq!(who(&mut client).await["user"], "ann");
}
