//! A test kit (feature `testing`): handlers without sockets, clusters in one process, and the contracts of a
//! [`Pool`](crate::Pool) and an [`Outbox`](crate::outbox::Outbox) for those who implement one.
//!
//! ```
//! use serde_json::json;
//! use ws_cluster::{ActionError, Details, Message, Request, Target, testing};
//!
//! async fn card_move(request: Request, Details((card, column)): Details<(u64, String)>) -> Result<u64, ActionError> {
//!     if column.is_empty() {
//!         return Err(ActionError::bad_request("Which column?"));
//!     }
//!     request.publish(Message::new("card/moved", (card, column))?.to(Target::group("board"))).await?;
//!     Ok(card)
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! let outcome = testing::request("card/move", json!([7, "done"])).user("ann").call(card_move).await;
//! assert_eq!(outcome.reply(), json!([7]));
//! assert_eq!(outcome.published()[0].target(), &Target::group("board"));
//!
//! let outcome = testing::request("card/move", json!([7, ""])).user("ann").call(card_move).await;
//! assert_eq!(outcome.error().unwrap().code, 400);
//! # }
//! ```

#[doc(hidden)]
pub mod behaviours;
pub mod outbox;
#[doc(hidden)]
pub mod outbox_behaviours;
pub mod pool;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use serde::Serialize;
use serde_json::Value;
use tokio::{net::TcpListener, sync::oneshot};

use crate::{
    ActionError, Handshake, Identity, IntoHandler, MemoryPool, Message, RawDetails, Server, ServerBuilder,
    TrustedProxies,
    connection::Application,
    hub::{Client, Membership},
    server::Recorder,
    ws,
};

/// Makes a request of a guest for [`RequestBuilder::call`].
///
/// # Panics
/// If the details cannot be written as JSON.
pub fn request(action: impl Into<String>, details: impl Serialize) -> RequestBuilder {
    let details = RawDetails::from_serialize(&details).expect("the details are JSON");
    RequestBuilder {
        action: action.into(),
        details,
        identity: Identity::guest(),
        http: http::Request::new(()),
        builder: Server::builder(MemoryPool::default()),
    }
}

/// A request in the making.
#[must_use = "`call` calls the handler"]
pub struct RequestBuilder {
    action: String,
    details: RawDetails,
    identity: Identity,
    http: http::Request<()>,
    builder: ServerBuilder,
}

impl RequestBuilder {
    /// Sets the user.
    pub fn user(self, id: impl Into<String>) -> Self {
        self.identity(Identity::user(id))
    }

    /// Sets who the connection is, with its session, groups and properties.
    pub fn identity(mut self, identity: Identity) -> Self {
        self.identity = identity;
        self
    }

    /// Sets the HTTP request with which the client connected: its path, query and headers.
    pub fn handshake(mut self, request: http::Request<()>) -> Self {
        self.http = request;
        self
    }

    /// Adds a value that handlers take as [`State<T>`](crate::State).
    pub fn state<T: Clone + Send + Sync + 'static>(mut self, state: T) -> Self {
        self.builder = self.builder.state(state);
        self
    }

    /// Calls a handler and returns what came of it. The handler runs on a server of its own, which is alone in its
    /// cluster: what it publishes is accepted, and goes to nobody but the connection that asks.
    ///
    /// # Panics
    /// If the handler takes a state that was not given.
    pub async fn call<M>(self, handler: impl IntoHandler<M>) -> Outcome {
        let Self { action, details, identity, http, builder } = self;
        let recorder = Recorder::default();
        let server =
            builder.state(recorder.clone()).fallback(handler).start().await.expect("the handler's states are given");
        server.wait_ready().await;
        let handshake = Handshake::new(&http.into_parts().0, None, &TrustedProxies::none());
        let hub = server.hub();
        let client = Arc::new(Client::new(hub.next_id(), handshake, usize::MAX / 4, false));
        let mut slot = hub.admission().admit(None, 1, usize::MAX).ok();
        let handle = hub.arrive(client.clone(), Membership::of(identity), &mut slot, hub.closes().now());
        let Ok(handle) = handle else { unreachable!("no close was ordered") };
        let error = match server.dispatch(&client, &action, details, Default::default()) {
            Ok(handled) => handled.await.err(),
            Err(refused) => Some(refused),
        };
        let groups = client.membership().groups.iter().map(|group| String::from(&**group)).collect();
        let properties =
            client.membership().properties().map(|(name, value)| (name.to_string(), value.clone())).collect();
        let sent = ws::frame::texts(&client.queue.take());
        let replies = sent.iter().filter_map(|text| {
            let message: Value = serde_json::from_str(text).ok()?;
            (message["action"] == action).then(|| message["details"].clone())
        });
        let replies = replies.collect();
        drop(handle);
        let published = recorder.take();
        server.shutdown().await;
        Outcome { error, replies, published, groups, properties }
    }
}

impl std::fmt::Debug for RequestBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RequestBuilder").field("action", &self.action).finish_non_exhaustive()
    }
}

/// What a handler did.
#[derive(Clone, Debug)]
pub struct Outcome {
    error: Option<ActionError>,
    replies: Vec<Value>,
    published: Vec<Message>,
    groups: BTreeSet<String>,
    properties: BTreeMap<String, Value>,
}

impl Outcome {
    /// Returns the error with which the client is answered.
    pub fn error(&self) -> Option<&ActionError> {
        self.error.as_ref()
    }

    /// Returns the details of the one answer that the connection got.
    ///
    /// # Panics
    /// If the handler failed, or answered not once.
    #[track_caller]
    pub fn reply(&self) -> Value {
        assert_eq!(self.error, None, "the handler failed");
        match &*self.replies {
            [reply] => reply.clone(),
            replies => panic!("{} answers instead of one: {replies:?}", replies.len()),
        }
    }

    /// Returns the details of all answers that the connection got.
    pub fn replies(&self) -> &[Value] {
        &self.replies
    }

    /// Returns the messages that the handler published, also by [`reply_to_user`](crate::Request::reply_to_user).
    pub fn published(&self) -> &[Message] {
        &self.published
    }

    /// Returns the groups of the connection after the call.
    pub fn groups(&self) -> &BTreeSet<String> {
        &self.groups
    }

    /// Returns the properties of the connection after the call.
    pub fn properties(&self) -> &BTreeMap<String, Value> {
        &self.properties
    }
}

/// Several nodes of one cluster in this process, each on a port of 127.0.0.1. They end when this is dropped.
///
/// ```
/// use ws_cluster::{Client, Message, client::Event, testing::Cluster};
///
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let cluster = Cluster::start(3, |builder| builder).await;
/// let (_client, mut events) = Client::builder([cluster.url(1)]).connect()?;
/// while !matches!(events.next().await, Some(Event::New)) {}
/// cluster.node(2).publish(Message::new("news", "from another node")?).await?;
/// while !matches!(events.next().await, Some(Event::Message(message)) if message.action == "news") {}
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Cluster {
    nodes: Vec<Node>,
}

#[derive(Debug)]
struct Node {
    server: Server,
    address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Cluster {
    /// Starts `count` nodes, each with the settings that `configure` adds, and waits until all are members.
    ///
    /// # Panics
    /// If a setting cannot work, or no port is free.
    pub async fn start(count: usize, configure: impl Fn(ServerBuilder) -> ServerBuilder) -> Self {
        let pool = MemoryPool::default();
        let mut nodes = Vec::new();
        for _ in 0..count {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port is free");
            let address = listener.local_addr().expect("the socket is bound");
            let builder = Server::builder(pool.clone()).address(format!("ws://{address}")).key([b'k'; 32]);
            let server = configure(builder).start().await.expect("the settings work");
            let (stop, stopped) = oneshot::channel::<()>();
            let serve = server.serve(listener).with_graceful_shutdown(async { drop(stopped.await) });
            tokio::spawn(async move { serve.await });
            nodes.push(Node { server, address, _stop: stop });
        }
        for node in &nodes {
            let mut status = node.server.subscribe_status();
            let joined = status
                .wait_for(|status| status.ready && status.nodes.iter().filter(|node| node.member).count() == count);
            joined.await.expect("the server lives");
        }
        Self { nodes }
    }

    /// Returns the node with this number, counted from 0.
    ///
    /// # Panics
    /// If there is none.
    pub fn node(&self, number: usize) -> &Server {
        &self.nodes[number].server
    }

    /// Returns where clients connect to the node with this number.
    ///
    /// # Panics
    /// If there is none.
    pub fn url(&self, number: usize) -> String {
        format!("ws://{}/WebSockets", self.nodes[number].address)
    }
}
