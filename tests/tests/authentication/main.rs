//! Who a client is, over real sockets: closes and refreshes that come while its session is looked up, credentials on an
//! open connection, rechecks, and what a client may cost its authenticator.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tests::{
    client::{Client, soon},
    http_client, message,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, watch},
};
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Credentials, Handshake, Identity, MemoryPool,
    Request, Server, ServerBuilder, Target,
};

mod closes;
mod credentials;
mod handlers;
mod refreshes;

const PUBLISH_KEY: &str = "a key to publish";

/// A site's sessions, by the token in `x-session` or in the credentials. It reads at once and answers as soon as a test
/// allows it.
#[derive(Clone)]
struct Site(Arc<Sessions>);

struct Sessions {
    identities: Mutex<HashMap<String, Identity>>,
    asked: watch::Sender<usize>,
    answers: Semaphore,
    down: AtomicBool,
    in_band: AtomicBool,
    recheck: Option<Duration>,
}

/// More answers than any test needs.
const ALL: usize = 100_000;

impl Site {
    fn new(recheck: Option<Duration>) -> Self {
        Self(Arc::new(Sessions {
            identities: Mutex::default(),
            asked: watch::Sender::new(0),
            answers: Semaphore::new(ALL),
            down: AtomicBool::new(false),
            in_band: AtomicBool::new(false),
            recheck,
        }))
    }

    fn set(&self, token: &str, identity: Identity) {
        self.0.identities.lock().insert(token.into(), identity);
    }

    fn remove(&self, token: &str) {
        self.0.identities.lock().remove(token);
    }

    /// Holds all answers from now on.
    fn hold(&self) {
        self.0.answers.forget_permits(ALL);
    }

    fn release(&self) {
        self.0.answers.add_permits(ALL);
    }

    /// Waits until it was asked `count` times.
    async fn asked(&self, count: usize) {
        soon(self.0.asked.subscribe().wait_for(|asked| *asked >= count)).await.unwrap();
    }

    fn count(&self) -> usize {
        *self.0.asked.borrow()
    }
}

#[async_trait]
impl Authenticator for Site {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let token = match credentials.map(|credentials| credentials.details()) {
            Some([Value::String(token)]) => Some(token.clone()),
            Some(_) => None,
            None => handshake.header("x-session").map(str::to_owned),
        };
        let identity = token.and_then(|token| self.0.identities.lock().get(&token).cloned());
        let down = self.0.down.load(Ordering::Relaxed);
        self.0.asked.send_modify(|asked| *asked += 1);
        self.0.answers.acquire().await.unwrap().forget();
        if down { Err(AuthenticationError::Unavailable("down".into())) } else { Ok(identity) }
    }

    fn uses_cookies(&self) -> bool {
        false
    }

    fn in_band(&self) -> bool {
        self.0.in_band.load(Ordering::Relaxed)
    }

    fn recheck_interval(&self) -> Option<Duration> {
        self.0.recheck
    }
}

/// A handler: `echo` answers, `join` and `leave` change groups, and `set NAME VALUE` sets a property.
struct Act;

#[async_trait]
impl ActionHandler for Act {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        match request.action() {
            "join" => drop(request.join(request.detail(0)?)),
            "leave" => drop(request.leave(request.detail(0)?)),
            "set" => request.set_property(request.detail(0)?, request.detail::<Value>(1)?)?,
            _ => {}
        }
        let groups: Vec<String> = request.groups().into_iter().collect();
        request.reply(json!([groups, request.property("colour"), request.session()]))?;
        Ok(())
    }

    fn guests(&self) -> bool {
        true
    }
}

struct App {
    server: Server,
    address: SocketAddr,
    site: Site,
}

impl App {
    async fn start() -> Self {
        Self::with(None, |builder| builder).await
    }

    async fn with(recheck: Option<Duration>, set: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        let site = Site::new(recheck);
        site.set("a", Identity::user("ann").session("a").groups(["editors"]).property("colour", "red"));
        site.set("b", Identity::user("ann").session("b"));
        site.set("c", Identity::user("bob").session("c"));
        let builder = Server::builder(MemoryPool::default()).authenticator(site.clone()).publish_key(PUBLISH_KEY);
        let builder =
            ["state", "join", "leave", "set"].iter().fold(builder, |builder, name| builder.action(*name, Act));
        let server = set(builder).start().await.unwrap();
        server.wait_ready().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(std::future::pending()).await });
        Self { server, address, site }
    }

    async fn connect(&self, token: &str) -> Client {
        Client::connect(self.address, &[("x-session", token)]).await
    }

    /// Waits until everything that was published before is delivered.
    async fn delivered(&self) {
        let mut witness = Client::connect(self.address, &[]).await;
        witness.send("state", json!([])).await;
        witness.json().await;
        self.server.publish(message("delivered", (), Target::all())).await.unwrap();
        while witness.json().await["action"] != "delivered" {}
    }

    /// Posts JSON with the publish key. Returns the status and the body.
    async fn post(&self, path: &str, body: Value) -> (u16, String) {
        let authorization = format!("Bearer {PUBLISH_KEY}");
        let headers = [("authorization", authorization.as_str())];
        let answer = soon(http_client::request(self.address, "POST", path, &headers, body.to_string())).await.unwrap();
        (answer.status.as_u16(), answer.text.trim().to_owned())
    }
}

/// Returns the user that a client is told to be; `None` for a guest.
async fn user_of(client: &mut Client) -> Option<String> {
    client.send("Client/authentication", json!([])).await;
    loop {
        let message = client.json().await;
        match message["action"].as_str().unwrap() {
            "Client/authentication" => return message["details"][1]["user"].as_str().map(str::to_owned),
            "Client/authentication:error" => {
                assert_eq!(message["details"], json!([403, "Forbidden"]));
                return None;
            }
            _ => {}
        }
    }
}

/// Returns groups, colour and session, as handlers see them.
async fn state_of(client: &mut Client) -> Value {
    client.send("state", json!([])).await;
    loop {
        let message = client.json().await;
        if message["action"] == "state" {
            return message["details"].clone();
        }
    }
}

async fn dismissed(client: &mut Client) {
    loop {
        let message = client.json().await;
        if message["action"] == "Server/close" {
            break;
        }
        assert_eq!(message["action"], "delivered");
    }
    assert_eq!(client.closed().await.0, 1000);
}
