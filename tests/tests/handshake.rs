//! The upgrade of a request to a WebSocket, the pages that may send it, and other answers: by a server of its own, and
//! nested in an application under a prefix.

use std::{net::SocketAddr, sync::Arc};
use tests::message;

use async_trait::async_trait;
use serde_json::json;
use tests::{
    client::{Client, soon},
    nodes::{KEY, config},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use ws_cluster::{
    AuthenticationError, Authenticator, Credentials, Handshake, Identity, MemoryPool, Pool, Publisher, Server,
    ServerBuilder, Target,
};

const UPGRADE: &str = "connection: Upgrade\r\nupgrade: websocket\r\n";
const VERSION: &str = "sec-websocket-version: 13\r\n";
const WEBSOCKET_KEY: &str = "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// An authenticator by token, which checks origins as if the token came in a cookie.
struct Tokens;

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        _credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        Ok(handshake.bearer_token().map(Identity::user))
    }
}

async fn serve(set: impl FnOnce(ServerBuilder) -> ServerBuilder) -> (Server, SocketAddr) {
    let server = set(Server::builder(MemoryPool::default()).authenticator(Tokens)).start().await.unwrap();
    soon(server.wait_ready()).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(std::future::pending()).await });
    (server, address)
}

/// Sends a request of these lines. Returns the status and head of the answer, and the body if the connection ends.
async fn ask(address: SocketAddr, line: &str, headers: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{line}\r\nhost: site.example\r\n{headers}\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let byte = soon(stream.read_u8()).await.expect("a whole head");
        answer.push(byte);
    }
    let head = String::from_utf8(answer).unwrap().to_ascii_lowercase();
    (head[9..12].parse().unwrap(), head)
}

#[tokio::test]
async fn an_upgrade_is_agreed_to_however_its_headers_are_written() {
    let (_server, address) = serve(|builder| builder).await;
    for upgrade in [
        UPGRADE,
        "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n",
        "CONNECTION: keep-alive\r\nConnection: upgrade\r\nUPGRADE: WebSocket\r\n",
        "Connection:\tkeep-alive,\tUpgrade\t\r\nUpgrade:\twebsocket\r\n",
        "Connection: Upgrade\r\nUpgrade: websocket, foo\r\n",
        "Connection: Upgrade\r\nUpgrade: foo\r\nUpgrade: websocket\r\n",
    ] {
        for path in ["/WebSockets", "/_cluster/v1"] {
            let headers = format!("{upgrade}{VERSION}{WEBSOCKET_KEY}");
            let (status, head) = ask(address, &format!("GET {path} HTTP/1.1"), &headers).await;
            assert_eq!(status, 101, "{headers}");
            assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        }
    }
    let headers = format!("{UPGRADE}{WEBSOCKET_KEY}sec-websocket-version: 8, 13\r\n");
    assert_eq!(ask(address, "GET /WebSockets HTTP/1.1", &headers).await.0, 101);
}

#[tokio::test]
async fn a_malformed_handshake_gets_a_status_with_the_reason() {
    let (_server, address) = serve(|builder| builder).await;
    for (line, headers, status) in [
        ("GET /WebSockets HTTP/1.0", format!("{UPGRADE}{VERSION}{WEBSOCKET_KEY}"), 426),
        ("GET /WebSockets HTTP/1.1", format!("connection: keep-alive\r\n{VERSION}{WEBSOCKET_KEY}"), 426),
        ("GET /WebSockets HTTP/1.1", format!("{UPGRADE}{WEBSOCKET_KEY}sec-websocket-version: 8\r\n"), 426),
        ("GET /WebSockets HTTP/1.1", format!("{UPGRADE}{VERSION}"), 400),
        ("GET /WebSockets HTTP/1.1", format!("{UPGRADE}{VERSION}{WEBSOCKET_KEY}{WEBSOCKET_KEY}"), 400),
        ("GET /WebSockets HTTP/1.1", format!("{UPGRADE}{VERSION}{WEBSOCKET_KEY}content-length: 2\r\n"), 400),
        ("GET /WebSockets HTTP/1.1", format!("{UPGRADE}{VERSION}{WEBSOCKET_KEY}transfer-encoding: chunked\r\n"), 400),
        ("HEAD /WebSockets HTTP/1.1", format!("{UPGRADE}{VERSION}{WEBSOCKET_KEY}"), 405),
    ] {
        let (answered, head) = ask(address, line, &headers).await;
        assert_eq!(answered, status, "{line}\n{headers}");
        if status == 426 {
            assert!(head.contains("sec-websocket-version: 13"), "{head}");
        }
    }
}

#[tokio::test]
async fn every_route_refuses_other_methods_with_what_it_answers_to_options() {
    let (_server, address) = serve(|builder| builder.publish_key("a publish key of the tests").page("/", "page")).await;
    let routes = [
        ("/WebSockets", "get, options"),
        ("/_cluster/v1", "get, options"),
        ("/_publish", "post, options"),
        ("/_groups", "post, options"),
        ("/_close", "post, options"),
        ("/_refresh", "post, options"),
        ("/_position", "get, head, options"),
        ("/_openapi.json", "get, head, options"),
        ("/ws-cluster.js", "get, head, options"),
        ("/health", "get, head, options"),
        ("/ready", "get, head, options"),
        ("/", "get, head, options"),
    ];
    for (path, allowed) in routes {
        let allow = format!("allow: {allowed}\r\n");
        let (status, head) = ask(address, &format!("OPTIONS {path} HTTP/1.1"), "").await;
        assert!(status == 204 && head.contains(&allow), "{path}: {head}");
        for method in ["GET", "HEAD", "POST", "DELETE"] {
            let (status, head) = ask(address, &format!("{method} {path} HTTP/1.1"), "").await;
            let refused = !allowed.split(", ").any(|one| one.eq_ignore_ascii_case(method));
            assert_eq!(status == 405, refused, "{method} {path}: {head}");
            assert!(!refused || head.contains(&allow), "{method} {path}: {head}");
        }
    }
}

#[tokio::test]
async fn health_and_the_script_answer_head_and_options() {
    let (_server, address) = serve(|builder| builder.publish_key("a publish key of the tests").page("/", "page")).await;
    for path in ["/health", "/ready", "/ws-cluster.js", "/"] {
        let (status, head) = ask(address, &format!("HEAD {path} HTTP/1.1"), "").await;
        assert_eq!(status, 200, "{path}");
        assert!(head.contains("content-length: "), "{head}");
        let (status, head) = ask(address, &format!("OPTIONS {path} HTTP/1.1"), "").await;
        assert_eq!(status, 204, "{path}");
        assert!(head.contains("allow: get, head, options"), "{head}");
        let (status, head) = ask(address, &format!("DELETE {path} HTTP/1.1"), "").await;
        assert_eq!(status, 405, "{path}");
        assert!(head.contains("allow: get, head, options"), "{head}");
    }
    assert_eq!(ask(address, "OPTIONS /elsewhere HTTP/1.1", "").await.0, 404);
    let (_server, address) = serve(|builder| builder).await;
    assert_eq!(ask(address, "OPTIONS /_publish HTTP/1.1", "").await.0, 404, "closed without a key");
}

#[tokio::test]
async fn an_offered_subprotocol_is_selected_and_one_may_carry_a_token() {
    let (server, address) = serve(|builder| builder).await;
    // Browsers check this too: one subprotocol is selected, and it was offered.
    for offered in ["json", "ws-cluster.v1", "xml, json"] {
        Client::connect(address, &[("sec-websocket-protocol", offered)]).await;
    }
    let mut ann = Client::connect(address, &[("sec-websocket-protocol", "ws-cluster.v1, bearer.ann")]).await;
    server.publish(message("said", json!(["to ann"]), Target::user("ann"))).await.expect("accepted");
    ann.expect("said", json!(["to ann"])).await;
    for offered in ["bearer.secret, ws-cluster.v1", "bearer.secret, json", "bearer.secret"] {
        let headers = format!("{UPGRADE}{VERSION}{WEBSOCKET_KEY}sec-websocket-protocol: {offered}\r\n");
        let (status, head) = ask(address, "GET /WebSockets HTTP/1.1", &headers).await;
        assert_eq!(status, 101);
        assert!(!head.contains("secret"), "{head}");
    }
}

/// Returns the status of a page's upgrade.
async fn page(address: SocketAddr, origin: &str, headers: &str) -> u16 {
    let headers = format!("{UPGRADE}{VERSION}{WEBSOCKET_KEY}origin: {origin}\r\n{headers}");
    ask(address, "GET /WebSockets HTTP/1.1", &headers).await.0
}

#[tokio::test]
async fn a_page_of_the_other_scheme_is_refused_if_a_trusted_proxy_tells_the_scheme() {
    let (_server, address) = serve(|builder| builder).await;
    for origin in ["http://site.example", "https://site.example"] {
        assert_eq!(page(address, origin, "").await, 101, "the scheme is unknown");
    }
    for told in ["x-forwarded-proto: https\r\n", "forwarded: for=192.0.2.7;proto=https\r\n"] {
        assert_eq!(page(address, "https://site.example", told).await, 101);
        assert_eq!(page(address, "http://site.example", told).await, 403);
    }
    assert_eq!(page(address, "https://site.example", "x-forwarded-proto: http\r\n").await, 403);
    let (_server, address) = serve(|builder| builder.trusted_proxies("192.0.2.7".parse().unwrap())).await;
    assert_eq!(page(address, "http://site.example", "x-forwarded-proto: https\r\n").await, 101, "a stranger says so");
}

#[tokio::test]
async fn a_list_of_origins_may_have_wildcards_and_be_all_there_is() {
    let origins = || ["https://*.site.example".parse().unwrap()];
    let (_server, address) = serve(|builder| builder.allowed_origins(origins())).await;
    for (origin, status) in [
        ("https://site.example", 101),
        ("https://a.site.example", 101),
        ("https://b.a.site.example", 101),
        ("http://a.site.example", 403),
        ("https://a.site.example:8443", 403),
        ("https://evilsite.example", 403),
        ("https://*.site.example", 403),
        ("*", 403),
        ("null", 403),
    ] {
        assert_eq!(page(address, origin, "").await, status, "{origin}");
    }
    let (_server, address) = serve(|builder| builder.allowed_origins(origins()).own_origin(false)).await;
    assert_eq!(page(address, "https://site.example", "").await, 403);
    assert_eq!(page(address, "https://a.site.example", "").await, 101);
}

#[tokio::test]
async fn settings_that_cannot_work_are_refused_with_a_hint() {
    let refused = async |set: &dyn Fn(ServerBuilder) -> ServerBuilder| {
        let builder = set(Server::builder(MemoryPool::default()).key(KEY));
        match builder.start().await {
            Err(error) => error.to_string(),
            Ok(_) => panic!("it started"),
        }
    };
    assert!(refused(&|builder| builder.own_origin(false)).await.contains("allow the origins"));
    for address in [
        "ws://10.0.0.1:8080/app/_cluster/v1",
        "ws://10.0.0.1:8080/a b",
        "ws://10.0.0.1:8080/app//x",
        "ws://10.0.0.1:8080/app?x",
        "ws://10.0.0.1:8080/app#x",
        "ws://10.0.0.1:8080/*",
        "ws://user@10.0.0.1:8080/app",
        "http://10.0.0.1:8080/app",
        "10.0.0.1:8080/app",
    ] {
        let why = refused(&|builder| builder.address(address)).await;
        assert!(
            why.contains(address) && (why.contains("ws://10.0.0.1:8080/app") || why.contains("leave it out")),
            "{why}"
        );
    }
    for prefix in ["app", "/app/", "/", "/a//b", "/a b", "/{app}"] {
        let why = refused(&|builder| builder.prefix(prefix)).await;
        assert!(why.contains("like /app"), "{why}");
    }
}

/// Starts a node in an axum application, under `/app`.
async fn nested(pool: &Arc<dyn Pool>) -> (Server, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let builder = Server::builder(pool.clone()).key(KEY).config(config()).address(format!("ws://{address}/app/"));
    let server = builder.start().await.unwrap();
    let router = axum::Router::new()
        .nest("/app", server.routes().merge(server.health_routes()))
        .route("/health", axum::routing::get("the application's own"));
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    (server, address)
}

#[tokio::test]
async fn nodes_that_are_nested_under_a_prefix_find_each_other() {
    let pool: Arc<dyn Pool> = Arc::new(MemoryPool::default());
    let (first, at) = nested(&pool).await;
    let (second, other) = nested(&pool).await;
    for server in [&first, &second] {
        let mut status = server.subscribe_status();
        let both = status.wait_for(|status| status.nodes.iter().filter(|node| node.member).count() == 2);
        soon(both).await.expect("the server lives");
        soon(server.wait_ready()).await;
    }
    let mut client = Client::try_connect(other, "/app/WebSockets", &[]).await.expect("no refusal");
    first.publish(message("said", json!(["from the other node"]), Target::all())).await.expect("accepted");
    client.expect("said", json!(["from the other node"])).await;
    let publisher = Publisher::connect(pool, KEY).await.expect("a node answers");
    publisher.publish(message("said", json!(["from outside"]), Target::all())).await.expect("accepted");
    client.expect("said", json!(["from outside"])).await;
    for (line, status) in [
        ("GET /app/ws-cluster.js HTTP/1.1", 200),
        ("GET /app/health HTTP/1.1", 200),
        ("OPTIONS /app/ready HTTP/1.1", 204),
        ("GET /health HTTP/1.1", 200),
        ("GET /ready HTTP/1.1", 404),
        ("GET /WebSockets HTTP/1.1", 404),
    ] {
        assert_eq!(ask(at, line, "").await.0, status, "{line}");
    }
}

#[tokio::test]
async fn the_routes_answer_health_and_ready_on_request_only() {
    for (on_request, status) in [(false, 404), (true, 200)] {
        let server = Server::builder(MemoryPool::default()).start().await.unwrap();
        soon(server.wait_ready()).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router: axum::Router =
            if on_request { server.routes().merge(server.health_routes()) } else { server.routes() };
        tokio::spawn(async move { axum::serve(listener, router).await });
        for path in ["/health", "/ready"] {
            assert_eq!(ask(address, &format!("GET {path} HTTP/1.1"), "").await.0, status, "{path}");
        }
    }
}

#[tokio::test]
async fn a_prefix_that_a_proxy_keeps_is_configured_at_the_server() {
    let (server, address) = serve(|builder| builder.prefix("/app")).await;
    let mut client = Client::try_connect(address, "/app/WebSockets", &[]).await.expect("no refusal");
    server.publish(message("said", json!(["here"]), Target::all())).await.expect("accepted");
    client.expect("said", json!(["here"])).await;
    for (path, status) in [
        ("/app/ready", 200),
        ("/app/ws-cluster.js", 200),
        ("/ready", 404),
        ("/application/ready", 404),
        ("/app", 404),
        ("/WebSockets", 404),
    ] {
        assert_eq!(ask(address, &format!("GET {path} HTTP/1.1"), "").await.0, status, "{path}");
    }
}
