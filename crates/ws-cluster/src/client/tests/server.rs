//! A client at a server of this process, over streams in memory and on virtual time.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use http::Request;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{DuplexStream, duplex},
    time::Instant,
};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

use super::{
    super::{
        Client, Event, Events,
        task::{Dial, config},
    },
    ROOM,
};
use crate::{AuthenticationError, Authenticator, Credentials, Handshake, Identity, MemoryPool, Server};

/// How long a token is good for.
const GOOD_FOR: Duration = Duration::from_secs(600);

/// Connections to this server.
struct Direct(Server);

impl Dial for Direct {
    type Stream = DuplexStream;

    async fn dial(&self, request: Request<()>) -> tungstenite::Result<WebSocketStream<DuplexStream>> {
        let (near, far) = duplex(ROOM);
        let server = self.0.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| async { Ok::<_, Infallible>(server.upgrade(request).await) });
            http1::Builder::new().serve_connection(TokioIo::new(far), answer).with_upgrades().await
        });
        Ok(client_async_with_config(request, near, Some(config())).await?.0)
    }
}

/// Takes the name of a user as a token.
struct Tokens;

#[async_trait]
impl Authenticator for Tokens {
    async fn authenticate(
        &self,
        _: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let user = credentials.as_ref().and_then(|credentials| credentials.details().first()?.as_str());
        Ok(user.map(|user| Identity::user(user).expires(SystemTime::now() + GOOD_FOR)))
    }

    fn in_band(&self) -> bool {
        true
    }
}

/// A client whose token is for `ann`, and from the second on for this user.
async fn client(second: &'static str) -> (Client, Events) {
    let server = Server::builder(MemoryPool::default()).authenticator(Tokens).start().await.unwrap();
    server.wait_ready().await;
    let asked = AtomicU64::new(0);
    Client::builder(["ws://a/"])
        .credentials_with(move || {
            let user = if asked.fetch_add(1, Ordering::Relaxed) == 0 { "ann" } else { second };
            async move { Ok(user.into()) }
        })
        .connect_by(Direct(server))
        .unwrap()
}

/// The next answer to `Client/authentication`. Nothing is closed before it.
async fn answer(events: &mut Events) -> Value {
    loop {
        match events.next().await.expect("an event") {
            Event::Message(message) if message.action.starts_with("Client/authentication") => {
                return json!([message.action, message.details]);
            }
            Event::Closed { code, reason, .. } => panic!("{code} {reason}"),
            _ => {}
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_outlives_its_tokens() {
    let (client, mut events) = client("ann").await;
    answer(&mut events).await;
    let id = client.connection_id().expect("the server says it");
    let start = Instant::now();
    while start.elapsed() < 10 * GOOD_FOR {
        let answer = answer(&mut events).await;
        assert_eq!(answer[0], "Client/authentication");
        let left = answer[1][1]["expires_in"].as_u64().unwrap();
        assert!((595..=600).contains(&left), "{left}");
        assert_eq!((client.connection_id(), client.user()), (Some(id.clone()), Some("ann".into())));
    }
}

#[tokio::test(start_paused = true)]
async fn a_token_of_another_user_changes_nothing_and_the_expiry_brings_a_new_connection() {
    let (client, mut events) = client("bob").await;
    answer(&mut events).await;
    assert_eq!(answer(&mut events).await, json!(["Client/authentication:error", [403, "Forbidden"]]));
    assert_eq!(client.user(), Some("ann".into()));
    loop {
        if let Event::Closed { retry_in, .. } = events.next().await.expect("an event") {
            assert!(retry_in.is_some(), "it comes again");
            break;
        }
    }
    answer(&mut events).await;
    assert_eq!(client.user(), Some("bob".into()));
}
