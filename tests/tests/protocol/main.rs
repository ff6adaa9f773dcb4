//! What a client sees of one server, over real sockets.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use async_trait::async_trait;
use serde_json::{Value, json};
use tests::{
    client::{Client, soon},
    http_client, message,
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
};
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Credentials, Handshake, Identity, MemoryPool,
    Request, ServeError, Server, ServerBuilder, Target,
};

mod connections;
mod identity;
mod messages;
mod routes;

/// A server on a port of its own.
struct App {
    server: Server,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
    /// The reports of handlers to the test.
    told: mpsc::UnboundedReceiver<String>,
    /// Lets `wait` continue.
    gate: Arc<Semaphore>,
}

impl App {
    async fn start() -> Self {
        Self::with(|builder| builder).await
    }

    async fn with(set: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let act = Act { tell, gate: gate.clone() };
        let names = [
            "echo",
            "hello",
            "wait",
            "panic",
            "fail",
            "shape",
            "room",
            "block",
            "Client/authentication",
            "Client/disconnection",
        ];
        let builder = Server::builder(MemoryPool::default()).authenticator(Sessions);
        let builder = names.iter().fold(builder, |builder, name| match *name {
            "hello" => builder.action(*name, act.clone()),
            name => builder.action(name, Guests(act.clone())),
        });
        let server = set(builder).start().await.unwrap();
        server.wait_ready().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = server.clone();
        let task =
            tokio::spawn(
                async move { serving.serve(listener).with_graceful_shutdown(async { drop(stopped.await) }).await },
            );
        Self { server, address, stop, task, told, gate }
    }

    async fn guest(&self) -> Client {
        Client::connect(self.address, &[]).await
    }

    async fn user(&self, name: &str) -> Client {
        let mut client = Client::connect(self.address, &[("x-user", name)]).await;
        // The handler of `Client/authentication` has run when its connection answers.
        client.send("echo", json!(["up"])).await;
        client.expect("echo", json!(["up"])).await;
        client
    }

    async fn told(&mut self) -> String {
        soon(self.told.recv()).await.unwrap()
    }

    /// Sends one HTTP request. Returns the status and the body.
    async fn http(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, String) {
        let answer = soon(http_client::request(self.address, method, path, headers, body)).await.unwrap();
        (answer.status.as_u16(), answer.text)
    }
}

#[derive(Clone)]
struct Act {
    tell: mpsc::UnboundedSender<String>,
    gate: Arc<Semaphore>,
}

#[async_trait]
impl ActionHandler for Act {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        match request.action() {
            "echo" => request.reply(request.details())?,
            "hello" if request.details().is_empty() => return Err(ActionError::bad_request("No hello message:(")),
            "hello" => request.reply_to_user(request.details()).await?,
            "wait" => {
                self.tell.send("waiting".into()).ok();
                self.gate.acquire().await.unwrap().forget();
                request.reply(request.details())?;
                self.tell.send("waited".into()).ok();
            }
            "panic" => panic!("as told"),
            "block" => {
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(20) {
                    std::hint::spin_loop();
                }
                request.reply(())?;
            }
            "fail" => return Err(ActionError::conflict("no")),
            "shape" => {
                let (number, text): (u8, String) = request.parse()?;
                request.reply(format!("{number}{text}"))?;
            }
            "room" => {
                let (verb, name): (&str, &str) = request.parse()?;
                match verb {
                    "join" => drop(request.join(name)),
                    "leave" => drop(request.leave(name)),
                    "colour" => request.set_property("colour", name)?,
                    "others" => {
                        let others = Target::group(name).except_connection(request.connection());
                        request.publish(message("others", json!([]), others)).await?;
                    }
                    _ => return Err(ActionError::not_found("no such verb")),
                }
                let groups: Vec<String> = request.groups().into_iter().collect();
                request.reply(json!([groups, request.property("colour")]))?;
            }
            action => {
                let groups: Vec<String> = request.groups().into_iter().collect();
                let user = request.user().unwrap_or("guest");
                self.tell.send(format!("{action} {user} {}", groups.join(","))).ok();
            }
        }
        Ok(())
    }
}

struct Guests(Act);

#[async_trait]
impl ActionHandler for Guests {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        self.0.handle(request).await
    }

    fn guests(&self) -> bool {
        true
    }
}

/// An authenticator: `x-user: NAME` is a session, `x-expires: MILLISECONDS` its remaining time, and credentials are
/// `["secret", NAME]`.
struct Sessions;

#[async_trait]
impl Authenticator for Sessions {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let down = || AuthenticationError::Unavailable("down".into());
        match (credentials.map(|credentials| credentials.details().to_vec()), handshake.header("x-user")) {
            (Some(details), _) => match &details[..] {
                [Value::String(secret), Value::String(user)] if secret == "secret" => {
                    Ok(Some(Identity::user(user).session(format!("session of {user}"))))
                }
                [Value::String(down_now)] if down_now == "down" => Err(down()),
                _ => Ok(None),
            },
            (None, Some("down")) => Err(down()),
            (None, Some(user)) => {
                let mut identity =
                    Identity::user(user).session(format!("session of {user}")).groups(["users"]).property("colour", 7);
                if let Some(left) = handshake.header("x-expires") {
                    let at = match user {
                        "renewed" => SystemTime::now() + Duration::from_millis(left.parse().unwrap()),
                        _ => SystemTime::UNIX_EPOCH + Duration::from_millis(left.parse().unwrap()),
                    };
                    identity = identity.expires(at);
                }
                Ok(Some(identity))
            }
            (None, None) => Ok(None),
        }
    }

    fn uses_cookies(&self) -> bool {
        false
    }
}
