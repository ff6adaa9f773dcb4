//! Actions that the site's own code handles: what it is asked, and what its answers do.

use std::{fs, process::Command};

use serde_json::json;
use tests::{
    client::Client,
    site::{BACKEND_KEY, Site},
};
use tokio::net::UnixListener;

use crate::{act, error, node, ping};

#[tokio::test]
async fn an_action_comes_with_who_sent_it_and_its_answer_takes_effect_in_order() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--no-backend-disconnect"]).await;
    let headers = [("accept-language", "de-CH, en;q=0.5"), ("x-forwarded-for", "192.0.2.7")];
    let mut client = Client::connect(node.address(), &headers).await;

    // The bytes of the details pass as they are.
    let details = r#"[18446744073709551616, 1.0,{"z":1, "a":"\u00e9"}]"#;
    client.text(&format!(r#"{{"action": "comment/add", "details": {details}}}"#)).await;
    let asked = site.asked_for("action").await;
    assert!(asked.text.contains(&format!("\"details\":{details},")), "{}", asked.text);
    assert!(asked.head.starts_with("POST /ws.php HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!(asked.header("content-type"), Some("application/json"));
    let id = asked.json["connection"].as_str().expect("an id").to_owned();
    let mut expected = json!({
        "event": "action", "action": "comment/add", "connection": id, "user": null, "session": null, "groups": [],
        "properties": {}, "language": "de-CH", "remote_addr": "192.0.2.7",
    });
    expected["details"] = asked.json["details"].clone();
    assert_eq!(asked.json, expected);
    // The publish reaches the group that the same answer makes the client join.
    let answer = json!({
        "properties": {"page": 7, "none": null},
        "join": ["page/7", "page/8"],
        "leave": ["page/8"],
        "publish": [
            {"action": "comment/new", "details": {"id": 9}, "to": "group:page/7"},
            {"action": "not/mine", "to": "group:page/8"},
            {"action": "not/mine", "to": "all", "except": {"connection": id}},
            {"action": "page/new", "to": {"property": {"name": "page", "value": 7}}},
        ],
        "reply": [true, {"id": 9}],
        "unknown": [],
    });
    asked.json(answer).await;
    client.expect("comment/new", json!([{"id": 9}])).await;
    client.expect("page/new", json!([])).await;
    client.expect("comment/add", json!([true, {"id": 9}])).await;

    let asked = act(&mut client, &mut site, "more", json!([])).await;
    assert_eq!((&asked.json["groups"], &asked.json["properties"]), (&json!(["page/7"]), &json!({"page": 7})));
    // An error comes after what else the answer asks for.
    let refused = json!({"publish": [{"action": "seen", "to": "all"}], "error": [409, "It is taken"]});
    asked.json(refused).await;
    client.expect("seen", json!([])).await;
    assert_eq!(error(&mut client, "more", 409).await, "It is taken");
    // 204 asks for nothing.
    act(&mut client, &mut site, "quiet", json!([])).await.nothing().await;
    ping(&mut client, &mut site).await;
}

#[tokio::test]
async fn a_client_that_waits_for_an_answer_gets_one() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--backend-timeout", "3s"]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    for (id, answer, expected) in [
        (json!(7), json!({"reply": [1]}), json!({"action": "x", "details": [1], "id": 7})),
        (json!("a"), json!({}), json!({"action": "x", "details": [], "id": "a"})),
        (json!(8), json!({"error": [409, "no"]}), json!({"action": "x:error", "details": [409, "no"], "id": 8})),
    ] {
        client.text(&json!({"action": "x", "id": id}).to_string()).await;
        let asked = site.asked_for("action").await;
        assert_eq!(asked.json["request"], id);
        asked.json(answer).await;
        assert_eq!(client.json().await, expected);
    }
    client.text(r#"{"action": "x", "id": 9}"#).await;
    let _hanging = site.asked_for("action").await;
    let answer = client.json().await;
    assert_eq!((&answer["id"], &answer["details"][0]), (&json!(9), &json!(504)));
}

#[tokio::test]
async fn a_request_is_signed_as_other_implementations_verify_it() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &[]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    let asked = act(&mut client, &mut site, "sign", json!(["é"])).await;
    let [id, timestamp, signature] =
        ["webhook-id", "webhook-timestamp", "webhook-signature"].map(|name| asked.header(name).expect(name).to_owned());
    let message = state.path().join("message");
    fs::write(&message, format!("{id}.{timestamp}.{}", asked.text)).unwrap();
    let script = "import base64, hmac, sys; print('v1,' + base64.b64encode(hmac.new(sys.argv[1].encode(), \
                  open(sys.argv[2], 'rb').read(), 'sha256').digest()).decode())";
    let run = Command::new("python3").args(["-c", script, BACKEND_KEY]).arg(&message).output().expect("Python");
    assert_eq!(String::from_utf8_lossy(&run.stdout).trim(), signature);
    asked.nothing().await;
    let second = act(&mut client, &mut site, "sign", json!([])).await;
    assert_ne!(second.header("webhook-id"), Some(&*id));
}

#[tokio::test]
async fn only_the_actions_that_match_go_to_the_site() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--backend-actions", "comment/*,ping", "--backend-actions", "vote"]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    for action in ["hello", "comment", "votes", "Client/join"] {
        client.send(action, json!([])).await;
        assert_eq!(error(&mut client, action, 404).await, "Not Found");
    }
    for action in ["vote", "comment/add"] {
        act(&mut client, &mut site, action, json!([])).await.json(json!({"reply": [1]})).await;
        client.expect(action, json!([1])).await;
    }
    ping(&mut client, &mut site).await;
}

#[tokio::test]
async fn the_actions_of_a_connection_keep_their_order_and_others_go_ahead() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &[]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    for number in 0..3 {
        client.send("slow", json!([number])).await;
    }
    let first = site.asked_for("action").await;
    let mut other = Client::connect(node.address(), &[]).await;
    ping(&mut other, &mut site).await;
    assert_eq!((&first.json["details"], site.waiting()), (&json!([0]), 0));
    first.nothing().await;
    for number in 1..3 {
        let asked = site.asked_for("action").await;
        assert_eq!(asked.json["details"], json!([number]));
        asked.nothing().await;
    }
}

#[tokio::test]
async fn a_site_may_listen_on_a_unix_socket() {
    let (state, site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let path = state.path().join("site.sock");
    let listener = UnixListener::bind(&path).unwrap();
    // The site of the tests speaks TCP.
    let address = site.url().trim_start_matches("http://").trim_end_matches("/ws.php").to_owned();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = tokio::net::TcpStream::connect(&address).await.unwrap();
            tokio::spawn(async move { tokio::io::copy_bidirectional(&mut near, &mut far).await });
        }
    });
    let mut site = site;
    let place = format!("unix:{}:/live/ws.php", path.display());
    let arguments = ["--pool", "memory:", "--backend", &place, "--backend-key", BACKEND_KEY, "--no-backend-disconnect"];
    let node = tests::WsServer::start(state.path(), &arguments).await;
    node.ready().await;
    let mut client = Client::connect(node.address(), &[]).await;
    let asked = act(&mut client, &mut site, "hello", json!([])).await;
    assert!(asked.head.starts_with("POST /live/ws.php HTTP/1.1\r\n"), "{}", asked.head);
    assert_eq!(asked.header("host"), Some("localhost"));
    asked.json(json!({"reply": "hi"})).await;
    client.expect("hello", json!(["hi"])).await;
    ping(&mut client, &mut site).await;
    // A socket that is gone.
    fs::remove_file(&path).unwrap();
    client.send("hello", json!([])).await;
    error(&mut client, "hello", 503).await;
}
