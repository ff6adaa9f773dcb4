//! `ws-server` with users whom the site names in JSON Web Tokens.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::StatusCode;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, get_current_timestamp};
use serde_json::{Value, json};
use tests::{WsServer, client::Client};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    time::timeout,
};
use ws_cluster::client::Event;

const SECRET: &str = "a secret of the tests of thirty-two bytes or more";
const OTHER: &str = "the secret before it, of thirty-two bytes or more";

fn token(user: &str, seconds: u64) -> String {
    signed(&json!({"sub": user, "exp": get_current_timestamp() + seconds}), SECRET)
}

fn signed(claims: &Value, secret: &str) -> String {
    encode(&Header::new(Algorithm::HS256), claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
}

async fn node(state: &Path, arguments: &[&str]) -> WsServer {
    let node = WsServer::start(state, &[&["--pool", "memory:"], arguments].concat()).await;
    node.ready().await;
    node
}

/// Asks who a client is whose handshake said it.
async fn who(client: &mut Client) -> Value {
    client.send("Client/authentication", json!([])).await;
    client.authenticated().await
}

#[tokio::test]
async fn a_token_names_the_user_wherever_it_comes() {
    let state = tempfile::tempdir().unwrap();
    let secrets = ["--jwt-secret", SECRET, "--jwt-secret", OTHER];
    let node = node(state.path(), &[&secrets[..], &["--jwt-cookie", "token", "--no-guests"]].concat()).await;
    let ann = token("ann", 60);
    for (name, value) in [
        ("authorization", format!("Bearer {ann}")),
        ("sec-websocket-protocol", format!("ws-cluster.v1, bearer.{ann}")),
        ("cookie", format!("token={ann}")),
        // The key before, during a rotation.
        (
            "authorization",
            format!("Bearer {}", signed(&json!({"sub": "ann", "exp": get_current_timestamp() + 60}), OTHER)),
        ),
    ] {
        let mut client = Client::connect(node.address(), &[(name, &value)]).await;
        assert_eq!(who(&mut client).await["user"], "ann", "{name}");
    }
    // In a message; a token in the URL does not count.
    let mut client = Client::connect_to(node.address(), &format!("/WebSockets?token={ann}")).await;
    client.send("Client/authentication", json!([ann])).await;
    let answer = client.authenticated().await;
    assert_eq!(answer["user"], "ann");
    assert!(answer["expires_in"].as_u64().is_some_and(|seconds| seconds <= 60), "{answer}");

    for wrong in ["rubbish", &ann[..ann.len() - 1], &signed(&json!({"sub": "ann"}), SECRET)] {
        let mut client = Client::connect(node.address(), &[]).await;
        client.send("Client/authentication", json!([wrong])).await;
        client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
        assert_eq!(client.closed().await.0, 4401);
    }
}

#[tokio::test]
async fn a_token_is_renewed_in_place_and_one_that_is_not_ends_its_connection() {
    let state = tempfile::tempdir().unwrap();
    let node = node(state.path(), &["--jwt-secret", SECRET]).await;
    let asked = Arc::new(AtomicUsize::new(0));
    let count = asked.clone();
    let builder = ws_cluster::Client::builder([format!("ws://{}/WebSockets", node.address())]);
    let builder = builder.credentials_with(move || {
        count.fetch_add(1, Ordering::Relaxed);
        async { Ok(token("ann", 12)) }
    });
    let (client, mut events) = builder.connect().unwrap();
    let mut left = Client::connect(node.address(), &[("authorization", &format!("Bearer {}", token("bob", 6)))]).await;
    assert_eq!(who(&mut left).await["user"], "bob");
    // A token that is not renewed ends its connection, in the range that comes again.
    assert_eq!(left.closed().await.0, 4003);
    // At the third question the first token is over.
    let renewed = async {
        while asked.load(Ordering::Relaxed) < 3 {
            let event = events.next().await.expect("an open client");
            assert!(!matches!(event, Event::Closed { .. } | Event::Reset(_)), "{event:?}");
        }
    };
    timeout(Duration::from_secs(60), renewed).await.expect("renewals in time");
    client.close();
}

#[tokio::test]
async fn a_connection_ends_with_its_last_token_and_not_before() {
    let state = tempfile::tempdir().unwrap();
    let node = node(state.path(), &["--jwt-secret", SECRET, "--no-guests"]).await;
    let mut clients = Vec::new();
    for number in 0..8 {
        let mut client = Client::connect(node.address(), &[]).await;
        // Every second client renews its token on the open connection.
        let mut end = UNIX_EPOCH;
        for seconds in if number % 2 == 0 { &[4, 12][..] } else { &[4] } {
            end = SystemTime::now() + Duration::from_secs(*seconds);
            let claims = json!({"sub": "ann", "exp": end.duration_since(UNIX_EPOCH).unwrap().as_secs_f64()});
            client.send("Client/authentication", json!([signed(&claims, SECRET)])).await;
            assert_eq!(client.authenticated().await["user"], "ann");
        }
        clients.push((client, end));
    }
    let ended = async |(client, end): &mut (Client, SystemTime)| {
        assert_eq!(client.closed().await.0, 4003);
        assert!(SystemTime::now() >= *end, "closed before the end of its token");
    };
    for left in clients.iter_mut().skip(1).step_by(2) {
        ended(left).await;
    }
    for renewed in clients.iter_mut().step_by(2) {
        assert_eq!(who(&mut renewed.0).await["user"], "ann");
    }
    for renewed in clients.iter_mut().step_by(2) {
        ended(renewed).await;
    }
}

/// The key of RFC 8037, appendix A.
const PRIVATE: &str = "-----BEGIN PRIVATE KEY-----\n\
    MC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n\
    -----END PRIVATE KEY-----\n";
const PUBLIC: &str = "-----BEGIN PUBLIC KEY-----\n\
    MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n\
    -----END PUBLIC KEY-----\n";
const SET: &str = r#"{"keys": [
    {"kty": "OKP", "crv": "Ed25519", "kid": "key-1", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}
]}"#;

/// Serves one answer after the other at a URL, and hangs after the last. Counts the requests.
async fn serve(answers: Vec<String>) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys.json", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let asked = count.clone();
    tokio::spawn(async move {
        let mut open = Vec::new();
        let mut answers = answers.into_iter();
        while let Ok((mut stream, _)) = listener.accept().await {
            asked.fetch_add(1, Ordering::Relaxed);
            let _ = stream.read(&mut [0; 4096]).await;
            match answers.next() {
                Some(answer) => drop(stream.write_all(answer.as_bytes()).await),
                None => open.push(stream),
            }
        }
    });
    (url, count)
}

fn by_key(id: &str) -> String {
    let mut header = Header::new(Algorithm::EdDSA);
    header.kid = Some(id.to_owned());
    let claims = json!({"sub": "ann", "exp": get_current_timestamp() + 60});
    encode(&header, &claims, &EncodingKey::from_ed_pem(PRIVATE.as_bytes()).unwrap()).unwrap()
}

#[tokio::test]
async fn the_keys_at_a_url_are_read_once_and_a_key_that_is_made_up_does_not_read_them_at_once() {
    let state = tempfile::tempdir().unwrap();
    let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{SET}", SET.len());
    let (url, asked) = serve(vec![answer]).await;
    let node = node(state.path(), &["--jwt-jwks", &url]).await;
    for _ in 0..3 {
        let bearer = format!("Bearer {}", by_key("key-1"));
        let mut client = Client::connect(node.address(), &[("authorization", &bearer)]).await;
        assert_eq!(who(&mut client).await["user"], "ann");
    }
    // A key that is made up is no reason to read the set again at once. It may be new, so the client may try again.
    let mut client = Client::connect(node.address(), &[]).await;
    client.send("Client/authentication", json!([by_key("key-2")])).await;
    client.expect("Client/authentication:error", json!([503, "Service Unavailable"])).await;
    assert_eq!(client.closed().await.0, 4002);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // The others sign in as before.
    let bearer = format!("Bearer {}", by_key("key-1"));
    let mut client = Client::connect(node.address(), &[("authorization", &bearer)]).await;
    assert_eq!(who(&mut client).await["user"], "ann");
}

#[tokio::test]
async fn while_no_keys_can_be_read_clients_with_a_token_are_told_to_come_again() {
    let state = tempfile::tempdir().unwrap();
    let large = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{}", " ".repeat(300_000));
    let elsewhere = "HTTP/1.1 302 Found\r\nlocation: /other\r\ncontent-length: 0\r\n\r\n".to_owned();
    let html = "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n<html>".to_owned();
    for (answer, says) in [(large, "larger than 262144 bytes"), (elsewhere, "302 Found"), (html, "it is not JSON")] {
        let (url, _) = serve(vec![answer]).await;
        let node = node(state.path(), &["--jwt-jwks", &url, "--no-guests"]).await;
        let bearer = format!("Bearer {}", by_key("key-1"));
        let refused = Client::try_connect(node.address(), "/WebSockets", &[("authorization", &bearer)]).await;
        assert_eq!(refused.err(), Some(StatusCode::SERVICE_UNAVAILABLE), "{says}");
        node.logged(says).await;
        // If the upgrade request has no token, nothing has to be known of keys yet. The token may come in a message.
        let mut client = Client::connect(node.address(), &[]).await;
        client.send("Client/authentication", json!([by_key("key-1")])).await;
        client.expect("Client/authentication:error", json!([503, "Service Unavailable"])).await;
        assert_eq!(client.closed().await.0, 4002, "{says}");
    }
}

#[tokio::test]
async fn flags_that_cannot_verify_a_token_are_mistakes() {
    let state = tempfile::tempdir().unwrap();
    let private = state.path().join("private.pem");
    fs::write(&private, PRIVATE).unwrap();
    let private = private.to_str().unwrap();
    let pem = format!("--jwt-secret={PUBLIC}");
    for (arguments, says) in [
        (&["--jwt-secret", "short"][..], "--jwt-secret: a secret for tokens has at least 32 bytes"),
        (&["--jwt-public-key", "/nowhere.pem"], "--jwt-public-key /nowhere.pem: it cannot be read"),
        (&["--jwt-public-key", private], "it is a private key"),
        (&[&*pem], "--jwt-secret: a secret for tokens is random text"),
        (&["--jwt-jwks", "/nowhere.json"], "/nowhere.json is neither a file nor an http(s) URL"),
        (&["--jwt-issuer", "https://a.example"], "tokens need a key"),
        (&["--jwt-cookie", "token"], "tokens need a key"),
        (&["--jwt-secret", SECRET, "--demo"], "--demo has users of its own"),
    ] {
        let arguments = [&["run", "--pool", "memory:", "--listen", "127.0.0.1:0"], arguments].concat();
        let output = WsServer::run(state.path(), &arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{errors}");
        let line = errors.lines().last().unwrap_or_default();
        assert!(line.starts_with("error: ") && line.contains(says), "{arguments:?}: {errors}");
        assert!(!errors.contains(SECRET), "a secret is logged");
    }
}
