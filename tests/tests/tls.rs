//! A node that serves TLS itself: its clients, its certificate while it runs, and what it refuses.

use std::{
    fs,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{
    WsServer,
    client::{eventually, soon},
    http_client,
    tls::{Certificate, HOST},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_tungstenite::{client_async, tungstenite::Message};

const PUBLISH_KEY: &str = "a key with which the site publishes";

/// A directory with the files of a certificate, which is also the state of the nodes.
struct Files(TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::Builder::new().prefix("ws-server-").tempdir().expect("a temporary directory"));
        files.renew();
        files
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).to_str().expect("text").to_owned()
    }

    /// Writes a new certificate with its key, and returns it.
    fn renew(&self) -> Certificate {
        let certificate = Certificate::new();
        write(&self.path("key.pem"), &certificate.key);
        write(&self.path("cert.pem"), &certificate.pem);
        certificate
    }

    fn flags(&self) -> [String; 4] {
        ["--tls-cert".to_owned(), self.path("cert.pem"), "--tls-key".to_owned(), self.path("key.pem")]
    }

    async fn node(&self, more: &[&str]) -> WsServer {
        let mut command = WsServer::command(self.0.path());
        command.args(["run", "--listen", "127.0.0.1:0", "--publish-key", PUBLISH_KEY]).args(self.flags());
        command.args(more);
        WsServer::spawn(command).await
    }
}

/// Exchanges a file at once, as tools that renew certificates do.
fn write(path: &str, text: &str) {
    let new = format!("{path}.new");
    fs::write(&new, text).expect("written");
    fs::rename(&new, path).expect("renamed");
}

/// Returns the answer to a request over TLS.
async fn get(address: SocketAddr, certificate: &Certificate, path: &str, origin: &str) -> String {
    let mut stream = certificate.connect(address, &[]).await.expect("TLS");
    let upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
                   sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==";
    let request = format!("GET {path} HTTP/1.1\r\nhost: {HOST}\r\norigin: {origin}\r\n{upgrade}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.expect("sent");
    let mut answer = vec![0; 12];
    soon(stream.read_exact(&mut answer)).await.expect("an answer");
    String::from_utf8(answer).expect("text")
}

/// Returns true if the node serves this certificate.
async fn serves(node: &WsServer, certificate: &Certificate) -> bool {
    certificate.connect(node.address(), &[]).await.is_ok()
}

#[tokio::test]
async fn clients_get_their_messages_over_tls() {
    let files = Files::new();
    let certificate = files.renew();
    let node = files.node(&["--demo"]).await;
    node.ready().await;
    let stream = certificate.connect(node.address(), &[&b"h2"[..], b"http/1.1"]).await.expect("TLS");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]), "no WebSockets over HTTP/2");
    let request = format!("wss://{HOST}/WebSockets?user=ann");
    let (mut socket, _) = soon(client_async(request, stream)).await.expect("a WebSocket");
    // A message of many TLS records, there and back.
    let long = "ä".repeat(30_000);
    socket.send(Message::text(json!({ "action": "say", "details": [long] }).to_string())).await.expect("sent");
    loop {
        let message = soon(socket.next()).await.expect("a message").expect("no error");
        let message: Value = serde_json::from_str(message.to_text().expect("text")).expect("JSON");
        if message["action"] == "said" {
            assert!(message["details"].to_string().contains(&long));
            break;
        }
    }
    socket.close(None).await.expect("closed");
    while soon(socket.next()).await.is_some_and(|message| message.is_ok()) {}
}

#[tokio::test]
async fn the_origin_of_a_page_has_to_be_https() {
    let files = Files::new();
    let certificate = files.renew();
    // Origins count if credentials come in cookies.
    let secret = "a secret of the site of 32 bytes or more";
    let node = files.node(&["--jwt-secret", secret, "--jwt-cookie", "token"]).await;
    node.ready().await;
    let answer = |origin: &'static str| get(node.address(), &certificate, "/WebSockets", origin);
    assert_eq!(answer("https://node.test").await, "HTTP/1.1 101");
    assert_eq!(answer("http://node.test").await, "HTTP/1.1 403");
}

#[tokio::test]
async fn processes_on_the_same_host_need_no_tls() {
    let files = Files::new();
    let node = files.node(&[]).await;
    node.ready().await;
    let key = format!("Bearer {PUBLISH_KEY}");
    let body = r#"{"action": "news", "to": "all"}"#;
    let answer = http_client::request(node.address(), "POST", "/_publish", &[("authorization", &key)], body).await;
    assert_eq!(answer.expect("an answer").status, 204);
    // Nodes link, and a second one joins.
    let second = files.node(&[]).await;
    second.ready().await;
    let output = WsServer::run(files.0.path(), &["send", "news", "--to", "all"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn a_certificate_that_is_renewed_is_used_without_a_restart() {
    let files = Files::new();
    let old = files.renew();
    let node = files.node(&[]).await;
    assert!(serves(&node, &old).await);
    let open = old.connect(node.address(), &[]).await.expect("TLS");
    let new = files.renew();
    node.logged("new connections get the certificate that was read again").await;
    assert!(serves(&node, &new).await && !serves(&node, &old).await);
    drop(open);

    // One that cannot be used changes nothing. SIGHUP reads it as well.
    write(&files.path("cert.pem"), "no certificate");
    node.signal(rustix::process::Signal::HUP);
    node.logged("the certificate is not read again, and the old one stays in use").await;
    assert!(serves(&node, &new).await);
    let newer = files.renew();
    node.logged_lines(2, |line| line.contains("certificate that was read again")).await;
    assert!(serves(&node, &newer).await);
}

#[tokio::test]
async fn an_operator_learns_of_clients_that_do_not_trust_the_certificate() {
    let files = Files::new();
    let certificate = files.renew();
    let node = files.node(&["--admin", "127.0.0.1:0", "--metrics-open"]).await;
    // A check of the port, without TLS, is no handshake.
    drop(TcpStream::connect(node.address()).await.expect("it listens"));
    assert!(!serves(&node, &Certificate::new()).await);
    let log = node.logged("a TLS handshake failed").await;
    let line = log.lines().find(|line| line.contains("a TLS handshake failed")).expect("a line");
    assert!(line.contains("WARN") && line.contains("alert"), "{line}");
    assert!(serves(&node, &certificate).await);
    // The node records its counts from time to time.
    let page = node.admin_address().await;
    eventually(async || {
        let metrics = http_client::request(page, "GET", "/metrics", &[], "").await.expect("an answer").text;
        metrics.contains("ws_cluster_handshakes_total{outcome=\"tls_failed\"} 1\n").then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_operator_is_warned_of_a_certificate_that_ends_soon() {
    let files = Files::new();
    let key = rcgen::KeyPair::generate().expect("a key");
    let end_within = |days: u64| {
        let mut params = rcgen::CertificateParams::new([HOST.to_owned()]).expect("a name");
        params.not_after = (SystemTime::now() + Duration::from_secs(days * 24 * 60 * 60)).into();
        write(&files.path("key.pem"), &key.serialize_pem());
        write(&files.path("cert.pem"), &params.self_signed(&key).expect("a certificate").pem());
    };
    end_within(3);
    let node = files.node(&[]).await;
    let log = node.logged("the certificate in use ends soon").await;
    assert!(log.contains("days=2"), "{log}");
    // After its renewal there is nothing to tell.
    end_within(30);
    node.logged("certificate that was read again").await;
    end_within(0);
    node.logged("the certificate in use has ended").await;
}

#[tokio::test]
async fn a_supervisor_finds_its_node_behind_tls() {
    let files = Files::new();
    let certificate = files.renew();
    let mut command = WsServer::command(files.0.path());
    command.args(["supervise", "--listen", "127.0.0.1:0", "--check-interval", "100ms"]).args(files.flags());
    let node = WsServer::spawn(command).await;
    node.ready().await;
    assert!(serves(&node, &certificate).await);
    node.terminate();
}

#[tokio::test]
async fn what_is_wrong_with_a_certificate_is_said_in_one_line() {
    let files = Files::new();
    let other = Certificate::new().key;
    let dir = |name: &str, text: &str| {
        write(&files.path(name), text);
        files.path(name)
    };
    let (cert, key) = (files.path("cert.pem"), files.path("key.pem"));
    let encrypted = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIGj\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let cut = "-----BEGIN CERTIFICATE-----\nMIGj\n";
    for (given_cert, given_key, why) in [
        (Some("/nowhere/cert.pem".to_owned()), Some(key.clone()), "cannot be read"),
        (Some(cert.clone()), Some("/nowhere/key.pem".to_owned()), "cannot be read"),
        (Some(key.clone()), Some(key.clone()), "has no certificate in PEM"),
        (Some(cert.clone()), Some(cert.clone()), "has no private key in PEM"),
        (Some(dir("empty", "")), Some(key.clone()), "has no certificate in PEM"),
        (Some(dir("cut", cut)), Some(key.clone()), "is not PEM: a section has no end"),
        (Some(cert.clone()), Some(dir("encrypted", encrypted)), "has a passphrase: remove it"),
        (Some(cert.clone()), Some(dir("other", &other)), "cannot be used"),
        (Some(cert.clone()), None, "--tls-cert needs --tls-key FILE"),
        (None, Some(key.clone()), "--tls-key needs --tls-cert FILE"),
    ] {
        for command in [&["run", "--listen", "127.0.0.1:0"][..], &["config", "--check"]] {
            let mut flags: Vec<&str> = command.to_vec();
            given_cert.iter().for_each(|path| flags.extend(["--tls-cert", path]));
            given_key.iter().for_each(|path| flags.extend(["--tls-key", path]));
            let output = WsServer::run(files.0.path(), &flags).await;
            let errors = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{flags:?}: {errors}");
            let last = errors.lines().last().expect("a line");
            assert!(last.starts_with("error: ") && last.contains(why), "{flags:?}: {errors}");
        }
    }
}

#[tokio::test]
async fn hostile_bytes_end_their_own_connection_alone() {
    let files = Files::new();
    let certificate = files.renew();
    let node = files.node(&[]).await;
    node.ready().await;
    // A TLS record that is no handshake, a record without an end, and one that claims 64 KiB.
    for bytes in [&b"\x16\x03\x01\x00\x05hello"[..], b"\x16\x03\x01\x02\x00\x01", b"\x16\x03\x01\xff\xff"] {
        let mut stream = TcpStream::connect(node.address()).await.expect("it listens");
        stream.write_all(bytes).await.expect("sent");
        stream.shutdown().await.expect("shut");
        // It ends with an alert, or by itself.
        let _ = soon(stream.read_to_end(&mut Vec::new())).await;
    }
    assert_eq!(get(node.address(), &certificate, "/WebSockets", "https://node.test").await, "HTTP/1.1 101");
}
