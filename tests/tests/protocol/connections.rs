//! Connections: how they end, what holds them back, and their limits. Frames are the subject of `conformance`.

use std::{future::IntoFuture, net::SocketAddr, time::Duration};

use async_trait::async_trait;
use futures_util::StreamExt;
use http::StatusCode;
use serde_json::json;
use tests::{
    client::{Client, soon},
    message,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_tungstenite::tungstenite::Message;
use ws_cluster::{AuthenticationError, Authenticator, Config, Credentials, Handshake, Identity, Target};

use super::App;

#[tokio::test]
async fn a_frame_that_is_no_message_closes_the_connection() {
    let mut config = Config::default();
    config.connection.message_size = 1000;
    let app = App::with(|builder| builder.config(config)).await;
    for (message, code) in [
        (Message::text("hello"), 4400),
        (Message::text("{}"), 4400),
        (Message::text("[1]"), 4400),
        (Message::text(r#"{"action":7}"#), 4400),
        (Message::text(r#"{"action":""}"#), 4400),
        (Message::text(format!(r#"["{}"]"#, "x".repeat(256))), 4400),
        (Message::binary(r#"["echo"]"#), 4400),
        (Message::text("x".repeat(1001)), 1009),
        (Message::text("x".repeat(100_000)), 1009),
    ] {
        let mut client = app.guest().await;
        let shown = format!("{message:?}");
        client.message(message).await;
        let (came, reason) = client.closed().await;
        assert_eq!(came, code, "{shown:.80}");
        assert!(!reason.is_empty(), "{shown:.80}");
    }
}

#[tokio::test]
async fn a_clients_close_is_answered_and_ends_the_socket() {
    let mut app = App::start().await;
    let mut client = app.guest().await;
    client.send("echo", json!([1])).await;
    soon(client.0.close(None)).await.unwrap();
    client.expect("echo", json!([1])).await;
    assert!(matches!(client.message_in().await, Message::Close(None)));
    assert!(soon(client.0.next()).await.is_none());
    assert_eq!(app.told().await, "Client/disconnection guest ");
}

#[tokio::test]
async fn a_slow_handler_holds_back_its_own_connection_only() {
    let mut app = App::start().await;
    let (mut slow, mut quick) = (app.guest().await, app.guest().await);
    slow.send("wait", json!([1])).await;
    for number in 0..100 {
        slow.send("echo", json!([number])).await;
    }
    assert_eq!(app.told().await, "waiting");
    quick.send("echo", json!(["quick"])).await;
    quick.expect("echo", json!(["quick"])).await;
    // A published message is sent while the handler runs.
    app.server.publish(message("news", (), Target::all())).await.unwrap();
    slow.expect("news", json!([])).await;
    app.gate.add_permits(1);
    slow.expect("wait", json!([1])).await;
    for number in 0..100 {
        slow.expect("echo", json!([number])).await;
    }
}

#[tokio::test]
async fn a_close_reaches_a_client_whose_handler_runs() {
    let mut app = App::start().await;
    let mut client = app.user("ann").await;
    client.send("wait", json!([])).await;
    assert_eq!(app.told().await, "Client/authentication ann users");
    assert_eq!(app.told().await, "waiting");
    app.server.close_user("ann").await.unwrap();
    client.expect("Server/close", json!([])).await;
    assert_eq!(client.closed().await.0, 1000);
    app.gate.add_permits(1);
    assert_eq!(app.told().await, "waited");
    assert_eq!(app.told().await, "Client/disconnection ann users");
}

#[tokio::test]
async fn a_handler_runs_to_its_end_when_its_client_leaves() {
    let mut app = App::start().await;
    let mut client = app.guest().await;
    client.send("wait", json!([])).await;
    assert_eq!(app.told().await, "waiting");
    drop(client);
    app.gate.add_permits(1);
    assert_eq!(app.told().await, "waited");
    assert_eq!(app.told().await, "Client/disconnection guest ");
}

#[tokio::test]
async fn a_handler_that_holds_its_thread_is_named_in_the_log() {
    // Everything of this test runs on its own thread, on which this subscriber listens.
    let (tell, mut lines) = mpsc::unbounded_channel();
    let subscriber = tracing_subscriber::fmt().with_writer(move || Lines(tell.clone())).finish();
    let _listening = tracing::subscriber::set_default(subscriber);
    let mut config = Config::default();
    config.connection.blocking_warning = Duration::from_millis(10);
    let app = App::with(|builder| builder.config(config)).await;
    let mut client = app.guest().await;
    client.send("block", json!([])).await;
    client.expect("block", json!([])).await;
    let line = soon(async {
        loop {
            let line: String = lines.recv().await.unwrap();
            if line.contains("held its thread") {
                break line;
            }
        }
    })
    .await;
    assert!(line.contains("WARN") && line.contains("\"block\""), "{line}");
}

/// Passes each line of the log to the test.
struct Lines(mpsc::UnboundedSender<String>);

impl std::io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.send(String::from_utf8_lossy(line).into_owned()).ok();
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_delays_no_other_client() {
    let mut config = Config::default();
    config.connection.queue_size = 1024 * 1024;
    let app = App::with(|builder| builder.config(config)).await;
    let (mut slow, mut quick) = (app.guest().await, app.guest().await);
    // More than the buffers of two sockets take.
    let large = "x".repeat(512 * 1024);
    for number in 0..64 {
        app.server.publish(message("large", json!([number, large]), Target::all())).await.unwrap();
        assert_eq!(quick.json().await["details"][0], number);
    }
    let mut seen = 0;
    let code = loop {
        match slow.message_in().await {
            Message::Text(_) => seen += 1,
            Message::Close(Some(frame)) => break u16::from(frame.code),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code, 4000);
    assert!(seen < 64);
}

#[tokio::test]
async fn a_client_that_sends_too_fast_is_read_more_slowly() {
    let mut config = Config::default();
    config.connection.messages_per_second = 100;
    config.connection.message_burst = 3;
    let app = App::with(|builder| builder.config(config)).await;
    let mut client = app.guest().await;
    for number in 0..20 {
        client.send("echo", json!([number])).await;
    }
    for number in 0..20 {
        client.expect("echo", json!([number])).await;
    }
}

/// The bytes of an upgrade request as a guest.
const UPGRADE: &str = "GET /WebSockets HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// Returns a socket after its upgrade.
async fn upgraded(address: SocketAddr, sent: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(sent).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

#[tokio::test]
async fn a_silent_client_is_pinged_and_then_closed() {
    let mut config = Config::default();
    config.connection.ping_interval = Duration::from_millis(20);
    config.connection.ping_timeout = Duration::from_secs(3);
    let app = App::with(|builder| builder.config(config)).await;
    let mut stream = upgraded(app.address, UPGRADE.as_bytes()).await;
    let mut ping = [0; 2];
    soon(stream.read_exact(&mut ping)).await.unwrap();
    assert_eq!(ping, [0x89, 0]);
    // Any bytes count as an answer.
    stream.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.unwrap();
    soon(stream.read_exact(&mut ping)).await.unwrap();
    assert_eq!(ping, [0x89, 0]);
    let mut close = [0; 4];
    soon(stream.read_exact(&mut close)).await.unwrap();
    assert_eq!((close[0], u16::from_be_bytes([close[2], close[3]])), (0x88, 4001));
}

#[tokio::test]
async fn limits_and_foreign_pages_are_refused_before_the_upgrade() {
    let mut config = Config::default();
    config.connection.connections_per_ip = 1;
    config.connection.connections = 2;
    let mut app = App::with(|builder| builder.config(config)).await;
    let address = app.address;
    let connect = async |ip| {
        Client::try_connect(address, "/WebSockets", &[("x-forwarded-for", ip)]).await.map_err(|s| s.as_u16())
    };
    let first = connect("1.1.1.1").await.unwrap();
    assert_eq!(connect("1.1.1.1").await.err(), Some(429));
    let _second = connect("2.2.2.2").await.unwrap();
    assert_eq!(connect("3.3.3.3").await.err(), Some(503));
    drop(first);
    // The slot is free once the connection is completely over, a moment after its handler.
    assert_eq!(app.told().await, "Client/disconnection guest ");
    soon(async {
        while connect("1.1.1.1").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let app = App::with(|builder| {
        let session = |_| async { Ok(None) };
        builder
            .authenticator(ws_cluster::SessionCookie::new("sid", session))
            .allowed_origins(["https://app.example".parse().unwrap()])
    })
    .await;
    for (origin, status) in [("https://evil.example", Some(StatusCode::FORBIDDEN)), ("https://app.example", None)] {
        let tried = Client::try_connect(app.address, "/WebSockets", &[("origin", origin)]).await;
        assert_eq!(tried.err(), status, "{origin}");
    }
}

#[tokio::test]
async fn a_shutdown_ends_every_listener() {
    let app = App::start().await;
    let mut client = app.guest().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let other = app.server.serve(listener).with_graceful_shutdown(std::future::ready(()));
    // The signal of one listener ends both.
    soon(other.into_future()).await.unwrap();
    assert_eq!(client.closed().await.0, 1012);
    soon(app.task).await.unwrap().unwrap();

    // So does a call of the application, also before the listener is served.
    let app = App::start().await;
    soon(app.server.shutdown()).await;
    soon(app.task).await.unwrap().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    soon(app.server.serve(listener).into_future()).await.unwrap();
}

#[tokio::test]
async fn a_test_connection_is_closed_at_once_and_nobody_learns_of_it() {
    let mut app = App::with(|builder| builder.authenticator(Unasked)).await;
    let mut test = Client::connect(app.address, &[("ws-cluster-test", "1")]).await;
    let (code, reason) = test.closed().await;
    assert_eq!((code, &*reason), (1000, "a test connection"));
    drop(test);
    soon(app.server.shutdown()).await;
    assert!(app.told.try_recv().is_err(), "no handler was called");
}

/// An authenticator that does not answer, and must not be asked.
struct Unasked;

#[async_trait]
impl Authenticator for Unasked {
    async fn authenticate(
        &self,
        _: &Handshake,
        _: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        std::future::pending().await
    }
}

#[tokio::test]
async fn a_shutdown_waits_for_handlers_and_sends_clients_elsewhere() {
    let mut app = App::start().await;
    let mut client = app.guest().await;
    client.send("wait", json!([])).await;
    assert_eq!(app.told().await, "waiting");
    app.stop.send(()).unwrap();
    assert_eq!(client.closed().await.0, 1012);
    assert!(!app.task.is_finished());
    app.gate.add_permits(1);
    soon(app.task).await.unwrap().unwrap();
    assert_eq!(app.told.recv().await.unwrap(), "waited");
    assert_eq!(app.told.recv().await.unwrap(), "Client/disconnection guest ");
    assert!(TcpStream::connect(app.address).await.is_err());
    assert!(app.server.publish(message("x", (), Target::all())).await.is_err());
}
