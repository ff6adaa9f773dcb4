//! The settings of a server.

use std::sync::Arc;

use bytes::Bytes;

use super::{ActionHandler, IntoHandler, Layer, States};
#[cfg(feature = "metrics")]
use crate::stats::BackendStats;
use crate::{
    Authenticator, Config, Dialect, GuestsOnly, Pool, RawMessage,
    auth::{Origin, TrustedProxies},
    connection::{AUTHENTICATION, DISCONNECTION, Raw},
    outbox::{IntoOutbox, Outbox},
};

/// The actions that are the server's own.
pub(super) const OWN_ACTIONS: [&str; 2] = [AUTHENTICATION, DISCONNECTION];

/// The settings of a server, made by [`Server::builder`](crate::Server::builder). A method that sets a value replaces
/// the earlier one; a method that adds a value keeps the earlier ones.
#[must_use = "a server runs from `start` on"]
pub struct ServerBuilder {
    pub(super) pool: Arc<dyn Pool>,
    pub(super) authenticator: Arc<dyn Authenticator>,
    pub(super) actions: Vec<(String, Arc<dyn ActionHandler>)>,
    pub(super) fallback: Option<Arc<dyn ActionHandler>>,
    pub(super) layers: Vec<(String, Arc<dyn Layer>)>,
    pub(super) states: States,
    pub(super) raw: Option<Raw>,
    pub(super) guests: bool,
    pub(super) dialect: Dialect,
    pub(super) path: String,
    pub(super) prefix: String,
    pub(super) address: Option<String>,
    pub(super) cluster: String,
    pub(super) keys: Vec<Vec<u8>>,
    pub(super) allowed_origins: Vec<Origin>,
    pub(super) own_origin: bool,
    pub(super) trusted_proxies: TrustedProxies,
    pub(super) publish_key: Option<String>,
    pub(super) pages: Vec<(String, Bytes)>,
    pub(super) outbox: Option<Arc<dyn Outbox>>,
    #[cfg(feature = "metrics")]
    pub(super) backend_stats: Arc<BackendStats>,
    pub(super) config: Config,
}

impl ServerBuilder {
    pub(super) fn new(pool: Arc<dyn Pool>) -> Self {
        Self {
            pool,
            authenticator: Arc::new(GuestsOnly),
            actions: Vec::new(),
            fallback: None,
            layers: Vec::new(),
            states: States::new(),
            raw: None,
            guests: true,
            dialect: Dialect::Object,
            path: "/WebSockets".to_owned(),
            prefix: String::new(),
            address: None,
            cluster: "default".to_owned(),
            keys: Vec::new(),
            allowed_origins: Vec::new(),
            own_origin: true,
            trusted_proxies: TrustedProxies::default(),
            publish_key: None,
            pages: Vec::new(),
            outbox: None,
            #[cfg(feature = "metrics")]
            backend_stats: Arc::default(),
            config: Config::default(),
        }
    }

    /// Sets the authenticator, which finds the user of a connection. Default: [`GuestsOnly`].
    pub fn authenticator(mut self, authenticator: impl Authenticator) -> Self {
        self.authenticator = Arc::new(authenticator);
        self
    }

    /// Adds the handler of an action: an async function ([`IntoHandler`]) or an [`ActionHandler`].
    ///
    /// The name has 1 to 255 bytes. It must not begin with `Server/` or `Presence/` (which is reserved for later) or
    /// end in `:error`, and can have only one handler. The server itself calls `Client/authentication` and
    /// `Client/disconnection` ([`on_connect`](Self::on_connect), [`on_disconnect`](Self::on_disconnect)).
    /// [`start`](Self::start) refuses other names that begin with `Client/`.
    pub fn action<M>(mut self, name: impl Into<String>, handler: impl IntoHandler<M>) -> Self {
        self.actions.push((name.into(), Arc::new(handler.into_handler())));
        self
    }

    /// Sets the handler of all actions that have no handler of their own. Without a fallback they are answered with
    /// `[404, "Not Found"]`.
    pub fn fallback<M>(mut self, handler: impl IntoHandler<M>) -> Self {
        self.fallback = Some(Arc::new(handler.into_handler()));
        self
    }

    /// Sets the handler that is called when a client has been authenticated, before it gets any message. An error
    /// refuses the connection. It is the handler of `Client/authentication` ([`ActionHandler`] has the details).
    pub fn on_connect<M>(self, handler: impl IntoHandler<M>) -> Self {
        self.action(AUTHENTICATION, handler)
    }

    /// Sets the handler that is called when a connection is gone; [`Disconnection`](crate::Disconnection) tells why. It
    /// is the handler of `Client/disconnection`.
    ///
    /// It is about one connection, not about the client. A client that [resumes](crate::Request::connection) keeps its
    /// id, and the node may notice only then, up to 45 s later, that its earlier connection is gone. So the id may be
    /// connected when the handler is called: [`resumed`](crate::Disconnection::resumed) is true if it is on this node,
    /// but on another node it cannot be seen. What the handler releases for an id, the client must be able to take again, as
    /// with a time limit that its actions renew.
    pub fn on_disconnect<M>(self, handler: impl IntoHandler<M>) -> Self {
        self.action(DISCONNECTION, handler)
    }

    /// Adds a value that handlers can take as [`State<T>`](crate::State), one for each type. Wrap what is expensive to
    /// clone in an [`Arc`].
    pub fn state<T: Clone + Send + Sync + 'static>(mut self, state: T) -> Self {
        self.states.insert(state);
        self
    }

    /// Adds a layer around the handlers of all actions, the fallback included. The layer that is added first is the
    /// outermost. The server's own actions (`Client/..`) have no layers.
    pub fn layer(self, layer: impl Layer) -> Self {
        self.layer_prefix("", layer)
    }

    /// Adds a layer around the handlers of the actions whose names begin with `prefix`.
    pub fn layer_prefix(mut self, prefix: impl Into<String>, layer: impl Layer) -> Self {
        self.layers.push((prefix.into(), Arc::new(layer)));
        self
    }

    /// Sets a function that answers every WebSocket message, text or binary, instead of the [`ActionHandler`]s. It is
    /// for conformance suites and for measurements of the connections themselves. Published messages still reach the
    /// clients.
    pub fn raw(mut self, answer: impl Fn(RawMessage) -> Option<RawMessage> + Send + Sync + 'static) -> Self {
        self.raw = Some(Arc::new(answer));
        self
    }

    /// Sets whether guests, that is clients without a user, may stay. Default: true. Guests get the messages to all,
    /// and may call the handlers that are open to them.
    ///
    /// If false, a client that the upgrade request does not authenticate is told
    /// `Client/authentication:error [403, "Forbidden"]` and closed with 4401. This happens at once. If the
    /// authenticator takes credentials [in-band](Authenticator::in_band), it happens when the client sends wrong ones
    /// or says that it has none. If the client has not sent them within the handshake's time, it is closed with 4002,
    /// and comes again.
    pub fn guests(mut self, welcome: bool) -> Self {
        self.guests = welcome;
        self
    }

    /// Sets the dialect of messages to clients that have not sent a message yet, for sites whose clients all speak the
    /// array dialect. Clients that resume (`?resume=`) speak the object dialect. Default: [`Dialect::Object`].
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.dialect = dialect;
        self
    }

    /// Sets the path at which clients connect. It has letters, digits and `/-._~`, and is none of the server's own
    /// paths ([`Server::handle`](crate::Server::handle)). Default: `/WebSockets`.
    pub fn path(mut self, path: impl Into<String>) -> Self {
        self.path = path.into();
        self
    }

    /// Sets the prefix of all paths, such as `/app`, for an application that passes requests on without removing the
    /// prefix. Frameworks usually remove it (axum's `nest` does); then do not set it here. The [address](Self::address)
    /// needs the prefix in both cases. Default: none.
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Sets the address at which the other nodes reach this node: `ws://HOST:PORT`, or `wss://HOST:PORT` (feature
    /// `tls`), at most 255 bytes. Each node has an address of its own. Other nodes connect to `ADDRESS/_cluster/v1`, so
    /// the address of a server that is nested under a prefix has the prefix: `ws://10.0.0.1:8080/app`.
    ///
    /// A pool that other processes can share needs the address. A [`MemoryPool`](crate::MemoryPool) needs it only if it
    /// has several nodes.
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.address = Some(address.into());
        self
    }

    /// Sets the cluster's name, which distinguishes clusters that share a pool: 1 to 64 bytes of ASCII. Default:
    /// `default`.
    pub fn cluster(mut self, name: impl Into<String>) -> Self {
        self.cluster = name.into();
        self
    }

    /// Adds a key of at least 32 bytes, which the nodes of the cluster prove to each other. A pool that other processes
    /// can share needs one. White space around a key that is text does not count; [`start`](Self::start) refuses
    /// control characters in it.
    ///
    /// A node presents its first key and accepts all of its keys. To change a key without a pause, add the new one on
    /// all nodes, then make it the first on all nodes, then remove the old one.
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.keys.push(key.into());
        self
    }

    /// Sets the origins, besides the server's own host, whose pages may connect if the authenticator [uses
    /// cookies](Authenticator::uses_cookies). `https://*.example.org` means all subdomains. Default: none.
    pub fn allowed_origins(mut self, origins: impl IntoIterator<Item = Origin>) -> Self {
        self.allowed_origins = origins.into_iter().collect();
        self
    }

    /// Sets whether pages of the server's own host may connect without being in the [allowed
    /// origins](Self::allowed_origins). The own host is the host and port of the `Host` header, with the scheme that a
    /// trusted proxy reports (`X-Forwarded-Proto`), or with any scheme if none does. If false, there must be an allowed
    /// origin. Default: true.
    pub fn own_origin(mut self, allowed: bool) -> Self {
        self.own_origin = allowed;
        self
    }

    /// Sets the proxies whose `X-Forwarded-For` and `X-Forwarded-Proto` (or `Forwarded`) the server believes. Default:
    /// proxies on the same machine.
    pub fn trusted_proxies(mut self, proxies: TrustedProxies) -> Self {
        self.trusted_proxies = proxies;
        self
    }

    /// Sets the key that opens publishing over HTTP: `POST /_publish`, `/_groups`, `/_close` and `/_refresh`, and `GET
    /// /_position` and `/_openapi.json`, which describes all of them, as does `docs/site.md`. It must be long and
    /// random, because nothing else keeps others from publishing; without a key these paths are closed. A request presents it
    /// as `Authorization: Bearer KEY`. White space around it does not count, and [`start`](Self::start) refuses control
    /// characters in it.
    pub fn publish_key(mut self, key: impl Into<String>) -> Self {
        self.publish_key = Some(key.into());
        self
    }

    /// Adds an HTML page in UTF-8, which the server sends to anyone at `path`, for example `/`. The path must not be
    /// one of the server's own. This is for a program that has a page or two and no web server.
    pub fn page(mut self, path: impl Into<String>, html: impl Into<Bytes>) -> Self {
        self.pages.push((path.into(), html.into()));
        self
    }

    /// Sets the outbox: an [`Outbox`], or an `Arc<dyn Outbox>`. The cluster publishes each row of its table once the
    /// row's transaction has committed, exactly once, and removes the row. All nodes of the cluster need the same one;
    /// the master polls it. Default: none.
    ///
    /// A row has an action, details in JSON, and a target in the text form of a [`Target`](crate::Target) or in the
    /// JSON that `POST /_publish` takes. Limits are those of [`Server::publish`](crate::Server::publish). A row that is
    /// malformed, or whose action begins with `Server/`, `Client/` or `Presence/`, is moved to a second table with the
    /// reason.
    ///
    /// ```
    /// # async fn f() -> Result<(), Box<dyn std::error::Error>> {
    /// # #[cfg(feature = "mysql")] {
    /// use ws_cluster::{MySqlPool, Server, outbox::MySqlOutbox};
    ///
    /// let url = "mysql://site:password@127.0.0.1:3306/site";
    /// let builder = Server::builder(MySqlPool::connect(url).await?).outbox(MySqlOutbox::connect(url)?);
    /// # }
    /// # Ok(()) }
    /// ```
    pub fn outbox(mut self, outbox: impl IntoOutbox) -> Self {
        self.outbox = Some(outbox.into_outbox());
        self
    }

    /// Sets the counts of a backend, which the server records with its own.
    #[cfg(all(feature = "backend", feature = "metrics"))]
    pub(crate) fn backend_stats(mut self, stats: Arc<BackendStats>) -> Self {
        self.backend_stats = stats;
        self
    }

    /// Sets the intervals and limits.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }
}
