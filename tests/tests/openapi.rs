//! The OpenAPI description says what the server does: its examples work, and each of its statuses is answered.

use std::{
    collections::BTreeSet,
    sync::{Arc, Barrier},
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::future::join_all;
use http::Request;
use http_body_util::Full;
use serde_json::Value;
use tests::{
    client::{Client, soon},
    http_client,
    nodes::{self, Nodes},
    openapi::{Answered, DESCRIPTION, check, documented},
    solo::Solo,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use ws_cluster::{
    AuthenticationError, Authenticator, Config, Credentials, Degraded, Handshake, Identity, MemoryPool, Revoked,
    Server, TrustedProxies,
};

const KEY: (&str, &str) = ("authorization", "Bearer key");
const ORDERS: [&str; 4] = ["/_publish", "/_groups", "/_close", "/_refresh"];
const FOR_THE_SITE: [&str; 6] = ["/_publish", "/_groups", "/_close", "/_refresh", "/_position", "/_openapi.json"];

fn server() -> ws_cluster::ServerBuilder {
    Server::builder(MemoryPool::default()).publish_key("key")
}

/// The examples of an operation's body.
fn examples(path: &str) -> impl Iterator<Item = &'static Value> {
    let content = &DESCRIPTION["paths"][path]["post"]["requestBody"]["content"];
    let examples = content["application/json"]["examples"].as_object().expect("examples");
    examples.values().map(|example| &example["value"])
}

fn one_example(path: &str) -> String {
    examples(path).find(|example| example.is_object()).expect("an example").to_string()
}

/// An operation without a body, or with one that is fine.
fn operations() -> Vec<(String, String, String)> {
    let paths = DESCRIPTION["paths"].as_object().expect("paths");
    let operations =
        paths.iter().flat_map(|(path, item)| item.as_object().expect("an item").keys().map(move |m| (m, path)));
    operations
        .map(|(method, path)| {
            let body = if method == "post" { one_example(path) } else { String::new() };
            (method.to_uppercase(), path.clone(), body)
        })
        .collect()
}

fn is_for_the_site(path: &str) -> bool {
    FOR_THE_SITE.contains(&path)
}

/// The answers that came.
#[derive(Default)]
struct Answers(BTreeSet<Answered>);

impl Answers {
    fn note(&mut self, method: &str, path: &str, status: u16) {
        check(method, path, status);
        self.0.insert((method.to_lowercase(), path.to_owned(), status));
    }

    async fn ask(
        &mut self,
        address: std::net::SocketAddr,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> u16 {
        let answer = soon(http_client::request(address, method, path, headers, body)).await.expect("an answer");
        let status = answer.status.as_u16();
        self.note(method, path, status);
        status
    }

    /// Asks in the process, without a socket.
    async fn handle(&mut self, server: &Server, method: &str, path: &str, body: &str) -> u16 {
        let request = Request::builder().method(method).uri(path).header(KEY.0, KEY.1);
        let request = request.body(Full::<Bytes>::from(body.to_owned())).expect("a request");
        let status = soon(server.handle(request)).await.status().as_u16();
        self.note(method, path, status);
        status
    }
}

#[tokio::test]
async fn the_description_is_served_with_the_key() {
    let solo = Solo::start(server()).await;
    let get = async |headers: &[(&str, &str)]| {
        soon(http_client::request(solo.address, "GET", "/_openapi.json", headers, "")).await.expect("an answer")
    };
    let answer = get(&[KEY]).await;
    assert_eq!((answer.status.as_u16(), answer.header("content-type")), (200, Some("application/json")));
    assert_eq!(serde_json::from_str::<Value>(&answer.text).expect("JSON"), *DESCRIPTION);
    assert_eq!(get(&[]).await.status, 401);
}

#[tokio::test]
async fn the_examples_of_the_description_work() {
    let solo = Solo::start(server()).await;
    for path in ORDERS {
        for example in examples(path) {
            let (status, text) = solo.post(path, &[KEY], example.to_string().as_bytes()).await;
            assert_eq!(status, if example.is_array() { 200 } else { 204 }, "{path} {example}: {text}");
            if example.is_array() {
                let outcomes: Value = serde_json::from_str(&text).expect("JSON");
                let documented = &DESCRIPTION["paths"][path]["post"]["responses"]["200"]["content"];
                let documented = &documented["application/json"]["examples"]["outcomes"]["value"];
                assert_eq!(outcomes[0], documented[0]);
                assert_eq!(outcomes[1]["status"], documented[1]["status"]);
                let why = outcomes[1]["error"].as_str().expect("a reason");
                assert!(why.starts_with(documented[1]["error"].as_str().expect("a reason")), "{why}");
            }
        }
    }
}

/// An authenticator that holds the cluster's task while it is told of a close.
struct Holding(Arc<Barrier>);

#[async_trait]
impl Authenticator for Holding {
    async fn authenticate(
        &self,
        _: &Handshake,
        _: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        Ok(None)
    }

    fn forget(&self, _: Revoked<'_>) {
        self.0.wait();
        self.0.wait();
    }
}

/// Opens a socket and waits until the server has accepted it.
async fn held(address: std::net::SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.expect("a connection");
    stream.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("written");
    let mut head = [0; 12];
    soon(stream.read_exact(&mut head)).await.expect("an answer");
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn each_status_of_the_description_is_answered() {
    let mut answers = Answers::default();
    let solo = Solo::start(server()).await;
    for (method, path, body) in operations() {
        let status = answers.ask(solo.address, &method, &path, &[KEY], body.as_bytes()).await;
        assert!(status < 400 || path == "/_cluster/v1" && status == 426, "{method} {path}: {status}");
        if is_for_the_site(&path) && method != "OPTIONS" {
            assert_eq!(answers.ask(solo.address, &method, &path, &[], body.as_bytes()).await, 401);
        }
    }
    let large = vec![b' '; 7 * 1024 * 1024];
    for path in ORDERS {
        answers.ask(solo.address, "POST", path, &[KEY], b"{").await;
        answers.ask(solo.address, "POST", path, &[KEY, ("content-encoding", "gzip")], b"{}").await;
        answers.ask(solo.address, "POST", path, &[KEY], &large).await;
    }
    answers.ask(solo.address, "POST", "/_publish", &[KEY], br#"[{"action":"x","to":"all"}]"#).await;
    let upgrade = [("connection", "upgrade"), ("upgrade", "websocket"), ("sec-websocket-version", "13")];
    let mut link = upgrade.to_vec();
    link.push(("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="));
    for headers in [upgrade.to_vec(), link] {
        let mut stream = http_client::begin(solo.address, "GET", "/_cluster/v1", &headers).await.expect("a connection");
        let mut head = [0; 12];
        soon(stream.read_exact(&mut head)).await.expect("an answer");
        let status = std::str::from_utf8(&head[9..]).expect("text").parse().expect("a status");
        answers.note("GET", "/_cluster/v1", status);
    }

    // Without a key.
    let closed = Solo::start(Server::builder(MemoryPool::default())).await;
    for (method, path, body) in operations().into_iter().filter(|(_, path, _)| is_for_the_site(path)) {
        assert_eq!(answers.ask(closed.address, &method, &path, &[KEY], body.as_bytes()).await, 404);
    }

    // A body that does not come.
    let mut config = Config::default();
    config.connection.handshake_timeout = Duration::from_millis(200);
    let impatient = Solo::start(server().config(config)).await;
    for path in ORDERS {
        let headers = [KEY, ("content-length", "10"), ("connection", "close")];
        let answer = soon(http_client::answer(impatient.head(path, &headers).await)).await.expect("an answer");
        answers.note("POST", path, answer.status.as_u16());
    }

    // Too many connections.
    let mut config = Config::default();
    config.http.sockets_per_ip = 1;
    let crowded = Solo::start(server().config(config).trusted_proxies(TrustedProxies::none())).await;
    let _held = held(crowded.address).await;
    for (method, path, body) in operations() {
        assert_eq!(answers.ask(crowded.address, &method, &path, &[KEY], body.as_bytes()).await, 429);
    }
    let mut config = Config::default();
    config.http.sockets = 1;
    let full = Solo::start(server().config(config)).await;
    let _client = Client::connect(full.address, &[]).await;
    for path in ["/ws-cluster.js", "/_openapi.json"] {
        for method in ["GET", "HEAD"] {
            assert_eq!(answers.ask(full.address, method, path, &[KEY], b"").await, 503);
        }
    }

    // A node that shuts down.
    let leaving = server().start().await.expect("settings that work");
    leaving.wait_ready().await;
    leaving.shutdown().await;
    for (method, path, body) in operations() {
        let needs_the_cluster = path == "/ready" || is_for_the_site(&path) && path != "/_openapi.json";
        if method != "OPTIONS" && needs_the_cluster {
            assert_eq!(answers.handle(&leaving, &method, &path, &body).await, 503, "{method} {path}");
        }
    }

    // A node that accepts nothing.
    let mut config = nodes::config();
    config.cluster.publish_timeout = Duration::from_millis(300);
    let nodes = Nodes::with(2, Arc::new(MemoryPool::default()), config).await;
    let master = nodes.master();
    nodes[master].server.change_settings(|live| live.set_publish_key(Some("key")).expect("a key"));
    nodes.cut_from_pool(0);
    nodes.cut_from_pool(1);
    nodes.cut(0, 1);
    nodes[master].until(|status| status.degraded == Some(Degraded::Isolated)).await;
    for path in ORDERS {
        let body = one_example(path);
        let status = answers.ask(nodes[master].address, "POST", path, &[KEY], body.as_bytes()).await;
        assert_eq!(status, 504, "{path}");
    }

    // A node whose task hangs.
    let barrier = Arc::new(Barrier::new(2));
    let hanging = server().authenticator(Holding(barrier.clone())).start().await.expect("settings that work");
    hanging.wait_ready().await;
    let closing = tokio::spawn({
        let hanging = hanging.clone();
        async move { hanging.close_user("ann").await }
    });
    let waiting = barrier.clone();
    tokio::task::spawn_blocking(move || waiting.wait()).await.expect("no panic");
    let asked = ["GET", "HEAD"].map(|method| {
        let request = Request::builder().method(method).uri("/health").body(Full::<Bytes>::default());
        let hanging = &hanging;
        async move { (method, hanging.handle(request.expect("a request")).await.status().as_u16()) }
    });
    for (method, status) in soon(join_all(asked)).await {
        answers.note(method, "/health", status);
    }
    tokio::task::spawn_blocking(move || barrier.wait()).await.expect("no panic");
    soon(closing).await.expect("no panic").expect("accepted");

    let missing: Vec<_> = documented().difference(&answers.0).cloned().collect();
    assert!(missing.is_empty(), "documented and not answered here: {missing:?}");
}
