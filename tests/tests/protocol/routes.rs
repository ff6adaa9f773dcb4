//! HTTP: paths, the publish key, a server that is mounted in an application, and settings.

use std::net::SocketAddr;

use async_trait::async_trait;
use serde_json::json;
use tests::{
    client::{Client, soon},
    http_client,
};
use tokio::net::TcpListener;
use ws_cluster::{ActionError, ActionHandler, Config, MemoryPool, Request, Server, ServerBuilder, StartError};

use super::App;

#[tokio::test]
async fn http_answers_by_path() {
    let app = App::start().await;
    let cases: [(_, _, &[_], _); 11] = [
        ("GET", "/WebSockets", &[], 426),
        ("POST", "/WebSockets", &[], 405),
        ("GET", "/_cluster/v1", &[], 426),
        ("GET", "/health", &[], 200),
        ("POST", "/health", &[], 405),
        ("GET", "/ready", &[], 200),
        ("GET", "/ws-cluster.js", &[], 200),
        ("HEAD", "/ws-cluster.js", &[], 200),
        ("GET", "/", &[], 404),
        ("POST", "/_publish", &[("authorization", "Bearer x")], 404),
        ("POST", "/_close", &[], 404),
    ];
    for (method, path, headers, status) in cases {
        assert_eq!(app.http(method, path, headers, "").await.0, status, "{method} {path}");
    }
    // `connection: close` comes before it, and a list of values may follow.
    let headers = [
        ("connection", "upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "12"),
        ("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA=="),
    ];
    assert_eq!(app.http("GET", "/WebSockets", &headers, "").await.0, 426);
}

#[tokio::test]
async fn the_publish_key_opens_publishing_and_closing() {
    let app = App::with(|builder| builder.publish_key("a key of this test")).await;
    let mut ann = app.user("7").await;
    let key = &[("authorization", "Bearer a key of this test")];
    let publish = r#"{"action":"news","details":{"a":1},"to":"user:7","key":"once"}"#;
    assert_eq!(app.http("POST", "/_publish", key, publish).await.0, 204);
    ann.expect("news", json!([{"a": 1}])).await;
    let large = json!({"action": "x", "to": "all", "details": "x".repeat(1024 * 1024)}).to_string();
    let larger = json!({"action": "x", "to": "all", "details": "x".repeat(3 * 1024 * 1024)}).to_string();
    let cases: [(_, _, &[_], _, _); 17] = [
        ("POST", "/_publish", &[], publish, 401),
        ("POST", "/_publish", &[("authorization", "Bearer wrong")], publish, 401),
        ("POST", "/_publish", &[("authorization", "Basic a key of this test")], publish, 401),
        ("GET", "/_publish", key, publish, 405),
        ("POST", "/_publish", key, "", 400),
        ("POST", "/_publish", key, "[]", 400),
        ("POST", "/_publish", key, r#"{"action":"x"}"#, 400),
        ("POST", "/_publish", key, r#"{"action":"","to":"all"}"#, 400),
        ("POST", "/_publish", key, r#"{"action":"x","to":"everyone"}"#, 400),
        ("POST", "/_publish", key, r#"{"action":"x","to":"all","too":1}"#, 400),
        ("POST", "/_publish", key, &large, 413),
        ("POST", "/_publish", key, &larger, 413),
        ("POST", "/_close", &[], r#"{"user":7}"#, 401),
        ("POST", "/_close", key, r#"{"users":7}"#, 400),
        ("POST", "/_close", key, r#"{"user":7,"session":8}"#, 400),
        ("POST", "/_close", key, r#"{"session":"none"}"#, 204),
        ("POST", "/_close", key, r#"{"user":7}"#, 204),
    ];
    for (method, path, headers, body, status) in cases {
        let (came, text) = app.http(method, path, headers, body).await;
        assert_eq!(came, status, "{method} {path} {headers:?} {body:.80}: {text}");
    }
    ann.expect("Server/close", json!([])).await;
    assert_eq!(ann.closed().await.0, 1000);
}

#[tokio::test]
async fn an_axum_app_mounts_it() {
    let app = App::start().await;
    let server = app.server.clone();
    let upgrade = move |request: axum::extract::Request| {
        let server = server.clone();
        async move { server.upgrade(request).await }
    };
    let router = axum::Router::new().route("/own", axum::routing::any(upgrade)).merge(app.server.routes());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    for path in ["/own", "/WebSockets"] {
        let mut client = Client::try_connect(address, path, &[]).await.unwrap();
        client.send("echo", json!([path])).await;
        client.expect("echo", json!([path])).await;
    }
    // A publish key that is set later opens the paths of the site.
    let publish = async || {
        let headers = [("authorization", "Bearer a key that is set while the server runs")];
        let body = r#"{"action":"news","to":"all"}"#;
        soon(http_client::request(address, "POST", "/_publish", &headers, body)).await.unwrap().status.as_u16()
    };
    assert_eq!(publish().await, 404);
    app.server.change_settings(|live| live.set_publish_key(Some("a key that is set while the server runs")).unwrap());
    assert_eq!(publish().await, 204);
}

#[tokio::test]
async fn settings_that_cannot_work_are_named() {
    let refused =
        async |set: fn(ServerBuilder) -> ServerBuilder, word: &str| match set(Server::builder(MemoryPool::default()))
            .start()
            .await
        {
            Err(error) => assert!(error.to_string().contains(word), "{error}"),
            Ok(_) => panic!("{word}: it started"),
        };
    struct Nothing;
    #[async_trait]
    impl ActionHandler for Nothing {
        async fn handle(&self, _: Request) -> Result<(), ActionError> {
            Ok(())
        }
    }
    refused(|builder| builder.path("ws"), "\"ws\"").await;
    refused(|builder| builder.path("/_publish"), "taken").await;
    refused(|builder| builder.address("http://host:1"), "ws://HOST:PORT").await;
    refused(|builder| builder.address("ws://host:1/path?query"), "ws://HOST:PORT").await;
    refused(|builder| builder.cluster(""), "name").await;
    refused(|builder| builder.key("short"), "32 bytes").await;
    refused(|builder| builder.publish_key(""), "publish key").await;
    refused(|builder| builder.action("Server/x", Nothing), "Server/x").await;
    refused(|builder| builder.action("x:error", Nothing), ":error").await;
    refused(|builder| builder.action("Presence/x", Nothing), "reserved for later").await;
    for unknown in ["Client/disconnected", "Client/", "Client/Authentication", "Client/authentication "] {
        let set = async |name: &str| Server::builder(MemoryPool::default()).action(name, Nothing).start().await;
        let Err(StartError::ReservedAction { action, reason }) = set(unknown).await else { panic!("{unknown}") };
        assert_eq!(action, unknown);
        for word in [unknown, "Client/authentication", "Client/disconnection"] {
            assert!(reason.contains(word), "{reason}");
        }
    }
    refused(|builder| builder.action("x", Nothing).action("x", Nothing), "two handlers").await;
    let zero = |builder: ServerBuilder| {
        let mut config = Config::default();
        config.connection.messages_per_second = 0;
        builder.config(config)
    };
    refused(zero, "messages_per_second").await;
}
