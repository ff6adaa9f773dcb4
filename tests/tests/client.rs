//! The Rust client at a server of this process: over streams in memory and on virtual time, and once over the network.

use std::{
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{io::duplex, net::TcpListener, sync::oneshot, time::Instant};
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Client, Credentials, Handshake, Identity,
    MemoryPool, Request, Server, SessionCookie,
    client::{Event, Events},
};

/// Number of bytes that are under way between the two.
const ROOM: usize = 16 * 1024;

/// Time for which a token is valid.
const GOOD_FOR: Duration = Duration::from_secs(600);

/// An authenticator that takes the name of a user as a token.
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

/// Returns a client whose first token is for `ann`, and whose further tokens are for `second`.
async fn client(second: &'static str) -> (Client, Events) {
    let server = Server::builder(MemoryPool::default()).authenticator(Tokens).start().await.unwrap();
    server.wait_ready().await;
    let asked = AtomicU64::new(0);
    Client::builder(["ws://a/"])
        .credentials_with(move || {
            let user = if asked.fetch_add(1, Ordering::Relaxed) == 0 { "ann" } else { second };
            async move { Ok(user) }
        })
        .connect_over(move |_| {
            let (near, far) = duplex(ROOM);
            let server = server.clone();
            tokio::spawn(async move {
                let answer = service_fn(|request| async { Ok::<_, Infallible>(server.upgrade(request).await) });
                http1::Builder::new().serve_connection(TokioIo::new(far), answer).with_upgrades().await
            });
            async { Ok(near) }
        })
        .unwrap()
}

/// Returns the next answer to `Client/authentication`. The connection is not closed before it.
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

#[tokio::test]
async fn it_speaks_with_a_server_over_the_network() {
    struct Hello;

    #[async_trait]
    impl ActionHandler for Hello {
        async fn handle(&self, request: Request) -> Result<(), ActionError> {
            request.reply_to_user(request.details()).await
        }
    }

    let look_up = |name: String| async { Ok(Some(Identity::user(name))) };
    let server = Server::builder(MemoryPool::default())
        .authenticator(SessionCookie::new("user", look_up))
        .action("hello", Hello)
        .start()
        .await
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = server.clone();
    let serving =
        tokio::spawn(
            async move { serving.serve(listener).with_graceful_shutdown(async { drop(stopped.await) }).await },
        );
    server.wait_ready().await;
    let builder = Client::builder([format!("http://{address}/WebSockets")]).cookie("user=ann");
    let (client, mut events) = builder.connect().unwrap();
    client.send("hello", json!(["world"])).unwrap();
    let hello = loop {
        match events.next().await.unwrap() {
            Event::Message(message) if message.action == "hello" => break message,
            Event::Closed { reason, .. } => panic!("{reason}"),
            _ => {}
        }
    };
    assert_eq!(hello.parse::<(String,)>().unwrap().0, "world");
    // A client that is closed by its user's name stays away.
    server.close_user("ann").await.unwrap();
    loop {
        if let Event::Closed { code, retry_in, .. } = events.next().await.unwrap() {
            assert_eq!((code, retry_in), (1000, None));
            break;
        }
    }
    drop(stop);
    serving.await.unwrap().unwrap();
}
