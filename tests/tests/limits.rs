//! The limits on what strangers can use up: sockets, memory, links that are greeted, lines of the log.

use std::{
    io::{self, Write},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tests::message;

use async_trait::async_trait;
use http::StatusCode;
use parking_lot::Mutex;
use rustix::process::Signal;
use serde_json::{Value, json};
use tests::{
    WsServer,
    client::{Client, soon},
    nodes::{KEY, Nodes, config},
    program,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Config, Credentials, Handshake, Identity,
    MemoryPool, Publisher, Request, Server, ServerBuilder, Target, TrustedProxies,
};

/// Starts a server on a port of its own, with these settings.
async fn serve(set: impl FnOnce(ServerBuilder) -> ServerBuilder) -> (Server, SocketAddr) {
    let server = set(Server::builder(MemoryPool::default())).start().await.unwrap();
    server.wait_ready().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(std::future::pending()).await });
    (server, address)
}

fn limits(set: impl FnOnce(&mut Config)) -> Config {
    let mut config = Config::default();
    set(&mut config);
    config
}

/// Sends bytes on a socket of their own, and reads until its end. A reset after the answer loses nothing.
async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    soon(async {
        // The server need not read all of it.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8(answer).unwrap()
    })
    .await
}

fn get(path: &str, headers: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nhost: site\r\nconnection: close\r\n{headers}\r\n").into_bytes()
}

fn upgrade(path: &str, headers: &str) -> Vec<u8> {
    format!(
        "GET {path} HTTP/1.1\r\nhost: site\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n{headers}\r\n"
    )
    .into_bytes()
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("nothing")
}

/// Returns a socket that was accepted and answered once, so that the server has counted it.
async fn idle(address: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"HEAD /health HTTP/1.1\r\nhost: site\r\n\r\n").await.unwrap();
    soon(stream.read_u8()).await.unwrap();
    stream
}

#[tokio::test]
async fn a_head_that_is_too_large_is_refused() {
    let (_server, address) = serve(|builder| builder).await;
    for path in ["/health", "/WebSockets", "/_cluster/v1", "/nowhere"] {
        for headers in [
            format!("x-one: {}\r\n", "x".repeat(17 * 1024)),
            format!("cookie: {}\r\n", "\u{ff}".repeat(200 * 1024)),
            (0..90).map(|number| format!("x-{number}: {}\r\n", "x".repeat(4_200))).collect(),
            (0..200).map(|number| format!("x-{number}: x\r\n")).collect(),
        ] {
            let answer = exchange(address, &upgrade(path, &headers)).await;
            assert_eq!(status(&answer), "431", "{path}: {answer:.200}");
        }
    }
    let answer = exchange(address, &get("/health", &format!("x-one: {}\r\n", "x".repeat(15 * 1024)))).await;
    assert_eq!(status(&answer), "200");
    let long = exchange(address, &get(&format!("/{}", "x".repeat(17 * 1024)), "")).await;
    assert_eq!(status(&long), "431");
}

#[tokio::test]
async fn the_limit_on_heads_holds_under_another_http_server() {
    let server = Server::builder(MemoryPool::default())
        .config(limits(|config| config.http.request_head_size = 2 * 1024))
        .start()
        .await
        .unwrap();
    server.wait_ready().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = server.routes::<()>().into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, app).await });
    let large = "x".repeat(3 * 1024);
    assert_eq!(
        Client::try_connect(address, "/WebSockets", &[("cookie", &large)]).await.err(),
        Some(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE)
    );
    assert!(Client::try_connect(address, "/WebSockets", &[("cookie", "small")]).await.is_ok());
}

/// A handler that answers which of some headers the handshake still has.
struct Kept;

#[async_trait]
impl ActionHandler for Kept {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        let names = ["cookie", "user-agent", "x-junk", "x-asked", "x-named"];
        let kept = names.into_iter().filter(|name| request.handshake().header(name).is_some());
        request.reply(kept.collect::<Vec<_>>())?;
        Ok(())
    }

    fn guests(&self) -> bool {
        true
    }
}

struct Asking;

#[async_trait]
impl Authenticator for Asking {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        _credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        Ok(handshake.header("X-Asked").map(Identity::user))
    }

    fn headers(&self) -> Vec<&str> {
        vec!["X-Named"]
    }
}

#[tokio::test]
async fn a_connection_keeps_only_headers_that_may_be_asked_for() {
    let (_server, address) = serve(|builder| builder.authenticator(Asking).action("kept", Kept)).await;
    let headers = [("cookie", "a=b"), ("user-agent", "ua"), ("x-junk", "junk"), ("x-asked", "ann"), ("x-named", "7")];
    let mut client = Client::connect(address, &headers).await;
    client.send("kept", json!([])).await;
    client.expect("kept", json!(["cookie", "user-agent", "x-asked", "x-named"])).await;
}

#[tokio::test]
async fn a_client_that_reads_no_answer_loses_its_socket() {
    let config = limits(|config| config.http.write_timeout = Duration::from_millis(100));
    let (_server, address) = serve(|builder| builder.config(config)).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    soon(async {
        // Until the server has closed the socket. Before that, the write waits for room.
        while stream.write_all(b"GET /ws-cluster.js HTTP/1.1\r\nhost: site\r\n\r\n").await.is_ok() {}
    })
    .await;
    assert_eq!(status(&exchange(address, &get("/health", "")).await), "200");
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_its_whole_answer() {
    let config = limits(|config| config.http.write_timeout = Duration::from_secs(5));
    let page = "x".repeat(8 * 1024 * 1024);
    let (_server, address) = serve(|builder| builder.config(config).page("/page", page)).await;
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&get("/page", "")).await.unwrap();
    let mut size = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match soon(stream.read(&mut buffer)).await.unwrap() {
            0 => break,
            read => size += read,
        }
        tokio::task::yield_now().await;
    }
    assert!(size > 8 * 1024 * 1024, "{size}");
}

#[tokio::test]
async fn sockets_beyond_the_limit_are_refused_but_the_node_can_be_watched() {
    let config = limits(|config| config.http.sockets = 4);
    let (_server, address) = serve(|builder| builder.config(config).publish_key("a key")).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(idle(address).await);
    }
    // A connection that was upgraded counts too.
    let mut client = Client::connect(address, &[]).await;
    for path in ["/ws-cluster.js", "/WebSockets", "/nowhere"] {
        let answer = exchange(address, &upgrade(path, "")).await;
        assert_eq!(status(&answer), "503", "{path}");
        assert!(answer.to_lowercase().contains("retry-after"), "{answer}");
        assert!(answer.contains("(limit 4: http.sockets)"), "{answer}");
    }
    assert_eq!(status(&exchange(address, &get("/health", "")).await), "200");
    assert_eq!(status(&exchange(address, &get("/ready", "")).await), "200");
    assert_eq!(status(&exchange(address, &get("/_publish", "")).await), "405");
    client.send("nothing", Value::Null).await;
    client.expect("nothing:error", json!([404, "Not Found"])).await;
    drop(held);
    soon(async { while status(&exchange(address, &get("/ws-cluster.js", "")).await) != "200" {} }).await;
}

#[tokio::test]
async fn sockets_of_one_address_are_limited_unless_it_is_a_proxy() {
    let config = limits(|config| config.http.sockets_per_ip = 3);
    let (_server, address) =
        serve(|builder| builder.config(config.clone()).trusted_proxies(TrustedProxies::none())).await;
    // Upgraded connections count under another limit.
    let _clients = [Client::connect(address, &[]).await, Client::connect(address, &[]).await];
    let held = [idle(address).await, idle(address).await, idle(address).await];
    let answer = exchange(address, &get("/health", "")).await;
    assert_eq!(status(&answer), "429");
    assert!(answer.contains("(limit 3: http.sockets_per_ip)"), "{answer}");
    drop(held);
    soon(async { while status(&exchange(address, &get("/health", "")).await) != "200" {} }).await;

    let (_server, address) = serve(|builder| builder.config(config)).await;
    let _held = [idle(address).await, idle(address).await, idle(address).await];
    assert_eq!(status(&exchange(address, &get("/health", "")).await), "200");
}

#[tokio::test]
async fn a_refused_client_is_told_the_limit() {
    let config = limits(|config| {
        config.connection.connections_per_ip = 1;
        config.connection.connections = 2;
    });
    let (_server, address) = serve(|builder| builder.config(config)).await;
    let _first = Client::connect(address, &[("x-forwarded-for", "2001:db8::1")]).await;
    let same = exchange(address, &upgrade("/WebSockets", "x-forwarded-for: 2001:db8::ffff:2\r\n")).await;
    assert_eq!(status(&same), "429");
    assert!(same.contains("too many connections from this address (limit 1: connections_per_ip)"), "{same}");
    let _second = Client::connect(address, &[("x-forwarded-for", "2001:db8:0:1::1")]).await;
    let full = exchange(address, &upgrade("/WebSockets", "x-forwarded-for: 192.0.2.1\r\n")).await;
    assert_eq!(status(&full), "503");
    assert!(full.contains("too many connections (limit 2: connections)"), "{full}");
}

/// Returns a socket of a stranger at the links' path, upgraded, which sends nothing.
async fn silent(address: SocketAddr, headers: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&upgrade("/_cluster/v1", headers)).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    stream
}

#[tokio::test]
async fn strangers_at_the_links_path_keep_no_publisher_and_no_node_out() {
    let mut config = config();
    config.links.greetings = 8;
    config.links.greeting_timeout = Duration::from_secs(600);
    let mut nodes = Nodes::with(1, Arc::new(MemoryPool::default()), config).await;
    let mut strangers = Vec::new();
    for number in 0..64 {
        let from = format!("x-forwarded-for: 203.0.113.{}\r\n", number % 16);
        strangers.push(silent(nodes[0].address, if number % 2 == 0 { "" } else { &from }).await);
    }
    let publisher = Publisher::connect(nodes.pool(), KEY).await.expect("a place for a publisher");
    publisher.publish(message("news", json!([1]), Target::all())).await.expect("accepted");
    nodes.add().await;
    nodes.settled().await;
    // The first one was dropped for others.
    assert_eq!(soon(strangers[0].read(&mut [0; 64])).await.unwrap_or(0), 0);
}

#[tokio::test]
async fn a_silent_link_is_given_up_soon() {
    let mut config = config();
    config.links.greeting_timeout = Duration::from_millis(100);
    let nodes = Nodes::with(1, Arc::new(MemoryPool::default()), config).await;
    let mut stranger = silent(nodes[0].address, "").await;
    assert_eq!(soon(stranger.read(&mut [0; 64])).await.unwrap_or(0), 0);
}

/// The log of this thread.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Log {
    fn listen() -> (Self, tracing::subscriber::DefaultGuard) {
        // If there is only one subscriber, a line that another thread reaches first is disabled everywhere.
        static ANOTHER: LazyLock<tracing::Dispatch> =
            LazyLock::new(|| tracing::Dispatch::new(tracing_subscriber::fmt().with_writer(io::sink).finish()));
        LazyLock::force(&ANOTHER);
        let log = Self::default();
        let writer = log.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        (log, tracing::subscriber::set_default(subscriber))
    }

    fn lines(&self, with: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        text.lines().filter(|line| line.contains(with)).map(str::to_owned).collect()
    }
}

/// An authenticator that fails on demand.
struct Failing(Arc<AtomicBool>);

#[async_trait]
impl Authenticator for Failing {
    async fn authenticate(
        &self,
        _handshake: &Handshake,
        _credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        match self.0.load(Ordering::Relaxed) {
            true => Err(AuthenticationError::Unavailable("the store is down".into())),
            false => Ok(None),
        }
    }
}

#[tokio::test]
async fn an_authenticator_that_fails_is_logged_when_it_begins_and_when_it_is_over() {
    let (log, _listening) = Log::listen();
    let fails = Arc::new(AtomicBool::new(true));
    let (_server, address) = serve(|builder| builder.authenticator(Failing(fails.clone()))).await;
    for _ in 0..30 {
        let refused = Client::try_connect(address, "/WebSockets", &[]).await.err();
        assert_eq!(refused, Some(StatusCode::SERVICE_UNAVAILABLE));
    }
    fails.store(false, Ordering::Relaxed);
    for _ in 0..3 {
        Client::connect(address, &[]).await;
    }
    let began = log.lines("ERROR");
    assert_eq!(began.len(), 1, "{began:?}");
    assert!(began[0].contains("clients cannot be authenticated") && began[0].contains("the store is down"));
    let over = log.lines("clients can be authenticated again");
    assert_eq!(over.len(), 1, "{over:?}");
    assert!(over[0].contains("failures=30"), "{over:?}");
}

/// An authenticator that panics.
struct Panics;

#[async_trait]
impl ActionHandler for Panics {
    async fn handle(&self, _request: Request) -> Result<(), ActionError> {
        panic!("out of order")
    }

    fn guests(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn strangers_cannot_flood_the_log() {
    let (log, _listening) = Log::listen();
    let config = limits(|config| config.connection.connections_per_ip = 1);
    let (_server, address) =
        serve(|builder| builder.config(config).authenticator(Failing(Arc::default())).fallback(Panics)).await;
    let foreign = format!("https://{}.example", "x".repeat(8_000));
    for _ in 0..20 {
        let refused = Client::try_connect(address, "/WebSockets", &[("origin", &foreign)]).await.err();
        assert_eq!(refused, Some(StatusCode::FORBIDDEN));
    }
    let mut client = Client::connect(address, &[]).await;
    for number in 0..200 {
        let action = format!("{number}\n{}", "x".repeat(200));
        client.send(&action, Value::Null).await;
        client.expect(&format!("{action}:error"), json!([500, "Internal Server Error"])).await;
    }
    for _ in 0..20 {
        let refused = Client::try_connect(address, "/WebSockets", &[]).await.err();
        assert_eq!(refused, Some(StatusCode::TOO_MANY_REQUESTS));
    }
    for _ in 0..20 {
        let mut link = silent(address, "").await;
        link.write_all(b"no frame at all").await.unwrap();
        let _ = soon(link.read_to_end(&mut Vec::new())).await;
    }
    let [origins, panics, refusals, links] =
        ["foreign origin", "a handler panicked", "connections_per_ip", "a link was refused"]
            .map(|text| log.lines(text));
    assert_eq!(origins.len(), 1, "{origins:?}");
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    assert_eq!(links.len(), 1, "{links:?}");
    assert!(links[0].contains("from=127.0.0.1:"), "{links:?}");
    assert!((1..=65).contains(&panics.len()), "{}", panics.len());
    let lines = log.lines("");
    assert!(lines.iter().all(|line| line.len() < 600), "{lines:?}");
    assert!(lines.len() < 90, "{lines:?}");
}

/// Starts `ws-server` as a shell does after `before`.
async fn after(before: &str, state: &std::path::Path) -> WsServer {
    let mut command = WsServer::command(state);
    let started = command.as_std().get_program().to_owned();
    assert_eq!(started, program("ws-server"));
    let mut shell = tokio::process::Command::new("sh");
    shell.arg("-c").arg(format!("{before}; exec {} run --listen 127.0.0.1:0", started.display()));
    for (name, value) in command.as_std().get_envs() {
        match value {
            Some(value) => shell.env(name, value),
            None => shell.env_remove(name),
        };
    }
    shell.kill_on_drop(true).stdin(std::process::Stdio::null());
    command = shell;
    WsServer::spawn(command).await
}

#[tokio::test]
async fn a_node_with_few_descriptors_is_watched_while_strangers_take_all_they_can_get() {
    let state = tempfile::tempdir().unwrap();
    let node = after("ulimit -n 128", state.path()).await;
    node.ready().await;
    let mut strangers = Vec::new();
    for _ in 0..130 {
        let mut stream = TcpStream::connect(node.address()).await.unwrap();
        // As much as the socket takes, of a request that is never read.
        for _ in 0..100 {
            stream.writable().await.unwrap();
            if stream.try_write(b"GET /ws-cluster.js HTTP/1.1\r\nhost: site\r\n\r\n").is_err() {
                break;
            }
        }
        let _ = stream.flush().await;
        strangers.push(stream);
    }
    // At once, or after those beyond the limit have had their two seconds.
    soon(async { while status(&exchange(node.address(), &get("/health", "")).await) != "200" {} }).await;
    assert!(std::fs::read_dir(format!("/proc/{}/fd", node.id())).unwrap().count() < 128);
    let log = node.end().await;
    assert!(!log.contains("could not be accepted"), "{log}");
}

#[tokio::test]
async fn the_binary_raises_its_limit_on_descriptors_and_closes_those_that_it_inherits() {
    let state = tempfile::tempdir().unwrap();
    let inherited = state.path().join("inherited");
    std::fs::write(&inherited, "").unwrap();
    let before = format!("ulimit -Sn 200; ulimit -Hn 512; exec 9<{} 7<&9", inherited.display());
    let node = after(&before, state.path()).await;
    node.ready().await;
    let of_process = format!("/proc/{}", node.id());
    let limits = std::fs::read_to_string(format!("{of_process}/limits")).unwrap();
    let files = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(files.split_whitespace().nth(3), Some("512"), "{files}");
    let open = std::fs::read_dir(format!("{of_process}/fd")).unwrap();
    let mut targets = open.filter_map(|entry| std::fs::read_link(entry.unwrap().path()).ok());
    assert!(!targets.any(|target| target == inherited));
}

#[tokio::test]
async fn a_hangup_does_not_end_the_binary() {
    let state = tempfile::tempdir().unwrap();
    let node = after(":", state.path()).await;
    node.signal(Signal::HUP);
    node.logged("SIGHUP").await;
    assert_eq!(node.http("GET", "/health", &[], "").await.0, StatusCode::OK);
}

#[tokio::test]
async fn clients_beyond_the_accept_rate_are_told_when_to_come_again() {
    let (_server, address) = serve(|builder| builder.config(limits(|config| config.connection.accept_rate = 1))).await;
    let mut refused = Vec::new();
    for _ in 0..200 {
        // A client that is taken keeps its socket: its answer has no end.
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(&upgrade("/WebSockets", "")).await.unwrap();
        let mut answer = vec![0; 1024];
        let count = soon(stream.read(&mut answer)).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..count]).into_owned();
        if status(&answer) == "503" {
            refused.push(answer);
            // Each refusal makes the next ones wait for a second more, so a busy machine does not catch up below.
            if refused.len() == 10 {
                break;
            }
            continue;
        }
        assert_eq!(status(&answer), "101");
    }
    let after = |answer: &str| {
        let line = answer.lines().find_map(|line| line.strip_prefix("retry-after: ")).expect("a time");
        line.parse::<u64>().unwrap()
    };
    assert_eq!(refused.len(), 10, "two hundred clients take less than two hundred seconds");
    for refused in &refused {
        assert!((1..=30).contains(&after(refused)), "{refused}");
    }
    // What a browser's client asks after that.
    let asked = exchange(address, &get("/WebSockets", "")).await;
    assert!(status(&asked) == "503" && (1..=30).contains(&after(&asked)), "{asked}");
    assert_eq!(status(&exchange(address, &get("/health", "")).await), "200");
}
