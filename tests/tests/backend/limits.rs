//! Sites that are slow or down: what clients are told, and what goes on meanwhile.

use std::{collections::BTreeMap, time::Duration};

use serde_json::json;
use tests::{
    WsServer,
    client::{Client, soon},
    publish::{Message, PUBLISH_KEY, publish},
    site::{Asked, Site},
};

use crate::{act, error, node, ping};

#[tokio::test]
async fn an_action_without_an_answer_has_an_unknown_outcome() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--backend-timeout", "2s"]).await;
    let mut client = Client::connect(node.address(), &[]).await;
    let asked = act(&mut client, &mut site, "x", json!([])).await;
    error(&mut client, "x", 504).await;
    // An answer that is late does not count.
    asked.json(json!({"reply": "late", "publish": [{"action": "late", "to": "all"}]})).await;
    ping(&mut client, &mut site).await;
    // One slow action is no sign that the site is down. The log names it, and the limit.
    let log = node.logged("a request to the site's backend failed").await;
    let line = log.lines().find(|line| line.contains("a request to the site's backend failed")).expect("a line");
    assert!(line.contains("WARN") && line.contains("action=\"x\"") && line.contains("limit=2s"), "{line}");
    // Neither does one whose body never ends.
    let mut asked = act(&mut client, &mut site, "x", json!([])).await;
    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    tokio::io::AsyncWriteExt::write_all(&mut asked.stream, head).await.unwrap();
    error(&mut client, "x", 504).await;
    ping(&mut client, &mut site).await;
    let log = node.end().await;
    assert!(!log.contains("ERROR"), "{log}");
}

#[tokio::test]
async fn a_site_that_cannot_be_reached_is_known_to_have_done_nothing() {
    let state = tempfile::tempdir().unwrap();
    // A port that is taken, and that nothing listens on.
    let taken = tokio::net::TcpSocket::new_v4().unwrap();
    taken.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let url = format!("http://{}/", taken.local_addr().unwrap());
    let key = tests::site::BACKEND_KEY;
    let arguments = ["--pool", "memory:", "--backend", &url, "--backend-key", key, "--backend-timeout", "200ms"];
    let node = WsServer::start(state.path(), &arguments).await;
    node.ready().await;
    let mut client = Client::connect(node.address(), &[]).await;
    let opened = node.logged("the site's backend does not answer");
    let fails = async {
        loop {
            client.send("x", json!([])).await;
            error(&mut client, "x", 503).await;
        }
    };
    tokio::select! {
        _ = opened => {}
        () = fails => {}
    }
    let log = node.end().await;
    let lines = |text: &str| log.lines().filter(|line| line.contains(text)).count();
    assert_eq!(lines("a request to the site's backend failed"), 1, "{log}");
    let opened = log.lines().find(|line| line.contains("the site's backend does not answer")).expect("a line");
    assert!(opened.contains("ERROR") && lines("the site's backend does not answer") == 1, "{log}");
}

#[tokio::test]
async fn actions_that_are_slow_do_not_keep_those_of_others_from_the_site() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--backend-timeout", "4s"]).await;
    let mut other = Client::connect(node.address(), &[]).await;
    let (mut guests, mut hanging) = (Vec::new(), Vec::new());
    for _ in 0..6 {
        let mut guest = Client::connect(node.address(), &[]).await;
        hanging.push(act(&mut guest, &mut site, "slow", json!([])).await);
        guests.push(guest);
    }
    ping(&mut other, &mut site).await;
    for guest in &mut guests {
        error(guest, "slow", 504).await;
    }
    ping(&mut other, &mut site).await;
}

#[tokio::test]
async fn actions_that_always_fail_do_not_keep_those_of_others_from_the_site() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let node = node(state.path(), &site, &["--backend-timeout", "1s"]).await;
    let (mut guest, mut other) =
        (Client::connect(node.address(), &[]).await, Client::connect(node.address(), &[]).await);
    let fail = async |guest: &mut Client, site: &mut Site| {
        let asked = act(guest, site, "x", json!([])).await;
        asked.answer("503 Service Unavailable", "text/plain", "later").await;
        error(guest, "x", 503).await;
    };
    fail(&mut guest, &mut site).await;
    // The breaker opens for failures that last for a time limit, which passes here.
    let hanging = act(&mut guest, &mut site, "slow", json!([])).await;
    error(&mut guest, "slow", 504).await;
    drop(hanging);
    for _ in 0..8 {
        ping(&mut other, &mut site).await;
        fail(&mut guest, &mut site).await;
    }
    ping(&mut other, &mut site).await;
}

/// Sends an action of each client, and sorts the errors by their codes as they come.
async fn errors(clients: &mut [Client], action: &str) -> BTreeMap<u64, usize> {
    for client in clients.iter_mut() {
        client.send(action, json!([])).await;
    }
    let mut codes = BTreeMap::new();
    for client in clients {
        let mut message = client.json().await;
        while message["action"] == "news" {
            message = client.json().await;
        }
        assert_eq!(message["action"], format!("{action}:error"));
        *codes.entry(message["details"][0].as_u64().expect("a code")).or_default() += 1;
    }
    codes
}

#[tokio::test]
async fn a_site_that_hangs_opens_the_breaker_and_delays_nobody_else() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let arguments =
        ["--backend-timeout", "3s", "--backend-queue", "20", "--no-backend-disconnect", "--publish-key", PUBLISH_KEY];
    let node = node(state.path(), &site, &arguments).await;
    let mut clients = Vec::new();
    for _ in 0..100 {
        clients.push(Client::connect(node.address(), &[]).await);
    }
    let mut reader = Client::connect(node.address(), &[]).await;
    let (codes, ()) = tokio::join!(errors(&mut clients, "x"), async {
        // Messages pass while the site hangs.
        let message = Message { action: "news", details: &json!([1]), to: "all", key: None };
        publish(node.address(), message, Duration::from_secs(20)).await.expect("accepted");
        reader.expect("news", json!([1])).await;
    });
    // 40 are under way, 20 wait, and the rest is refused at once. The breaker opens at the fifth time-out, so that at
    // most five of those that wait are sent as well.
    let (refused, unknown) = (codes[&503], codes[&504]);
    assert!((40..=45).contains(&unknown) && refused + unknown == 100, "{codes:?}");
    let mut hanging: Vec<Asked> = Vec::new();
    for _ in 0..unknown {
        hanging.push(site.asked().await);
    }
    assert_eq!(site.waiting(), 0);
    // Now they fail at once, but for the probe, and the first answer ends that.
    site.answers(|event| json!({"reply": event["details"]}));
    let mut client = clients.pop().expect("a client");
    let recovered = async {
        loop {
            client.send("x", json!(["again"])).await;
            let message = client.json().await;
            match message["action"].as_str() {
                Some("x") => return message,
                Some("news") => {}
                _ => assert_eq!(message["details"][0], 503, "{message}"),
            }
        }
    };
    assert_eq!(soon(recovered).await["details"], json!(["again"]));
    node.logged("the site's backend answers again").await;
}

#[tokio::test]
async fn clients_that_connect_leave_requests_for_actions() {
    let (state, mut site) = (tempfile::tempdir().unwrap(), Site::start().await);
    let arguments = ["--backend-connect", "--backend-concurrency", "4", "--backend-timeout", "20s"];
    let node = node(state.path(), &site, &arguments).await;
    let (mut client, ()) = tokio::join!(Client::connect(node.address(), &[]), async {
        site.asked_for("connect").await.json(json!({"user": "ann"})).await;
    });
    // More clients than the node asks about at the same time.
    let address = node.address();
    let connecting: Vec<_> =
        (0..10).map(|_| tokio::spawn(async move { Client::connect(address, &[]).await })).collect();
    let mut hanging = Vec::new();
    for _ in 0..2 {
        hanging.push(site.asked_for("connect").await);
    }
    ping(&mut client, &mut site).await;
    assert_eq!(site.waiting(), 0);
    for asked in hanging {
        asked.json(json!({})).await;
    }
    site.answers(|_| json!({}));
    for client in connecting {
        soon(client).await.unwrap();
    }
}

#[tokio::test]
async fn the_flags_of_a_backend_are_checked() {
    let state = tempfile::tempdir().unwrap();
    let key = tests::site::BACKEND_KEY;
    for (arguments, says) in [
        (&["--backend", "http://127.0.0.1/"][..], "--backend needs --backend-key"),
        (&["--backend-key", key], "a backend needs its URL"),
        (&["--backend-connect"], "a backend needs its URL"),
        (&["--backend-actions", "vote"], "a backend needs its URL"),
        (&["--backend", "127.0.0.1:80", "--backend-key", key], "--backend: malformed URL"),
        (&["--backend", "http://127.0.0.1/", "--backend-key", "short"], "--backend-key: a key has at least 24 bytes"),
        (&["--backend", "http://127.0.0.1/", "--backend-key", "another-one"], "placeholder"),
        (&["--backend", "http://127.0.0.1/", "--backend-key", key, "--backend-actions", "a,,b"], "empty item"),
        (&["--backend", "http://127.0.0.1/", "--backend-key", key, "--backend-timeout", "0"], "--backend-timeout"),
    ] {
        let output = WsServer::run(state.path(), &[&["config", "--check"], arguments].concat()).await;
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {text}");
        assert!(text.contains(says), "{arguments:?}: {text}");
    }
    let shown = ["config", "--backend", "http://127.0.0.1/?token=secret", "--backend-key", key];
    let output = WsServer::run(state.path(), &shown).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("backend = \"http://127.0.0.1/?(hidden)\""), "{text}");
    assert!(text.contains("backend_concurrency = 64") && !text.contains(key), "{text}");
    // With the users of the demo there are no others.
    let demo =
        ["--demo", "--pool", "memory:", "--backend", "http://127.0.0.1/", "--backend-key", key, "--backend-connect"];
    let output = WsServer::run(state.path(), &demo).await;
    assert_eq!(output.status.code(), Some(2));
}
