//! Makes a server from its settings, and refuses settings that cannot work.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::mpsc;
use url::Url;
use ws_cluster_client::ACTION_SIZE;

use super::{
    ActionHandler, IntoHandler, Layer, Server, Shared, States,
    action::Stack,
    live::LiveSettings,
    reports::{self, Reports},
    socket::Gate,
};
use crate::{
    Authenticator, Config, Dialect, GuestsOnly, NodeId, Pool, RawMessage, StartError,
    auth::{Origin, TrustedProxies},
    connection::{self, AUTHENTICATION, Context, DISCONNECTION, Raw},
    hub::{
        Hub,
        resume::{Resumption, StateSealer},
    },
    log_limit::LogLimits,
    node::{self, link::PATH as LINK},
    outbox::{self, IntoOutbox, Outbox},
    secret,
    stats::{HandlerTimes, Metered},
};

/// Longest address, in bytes; the pool's column.
const ADDRESS_SIZE: usize = 255;

/// The actions that are the server's own.
pub(super) const OWN_ACTIONS: [&str; 2] = [AUTHENTICATION, DISCONNECTION];

/// The settings of a server, made by [`Server::builder`]. A method that sets a value replaces the earlier one; a method
/// that adds a value keeps the earlier ones.
#[must_use = "a server runs from `start` on"]
pub struct ServerBuilder {
    pool: Arc<dyn Pool>,
    authenticator: Arc<dyn Authenticator>,
    actions: Vec<(String, Arc<dyn ActionHandler>)>,
    fallback: Option<Arc<dyn ActionHandler>>,
    layers: Vec<(String, Arc<dyn Layer>)>,
    states: States,
    raw: Option<Raw>,
    guests: bool,
    dialect: Dialect,
    path: String,
    prefix: String,
    address: Option<String>,
    cluster: String,
    keys: Vec<Vec<u8>>,
    allowed_origins: Vec<Origin>,
    own_origin: bool,
    trusted_proxies: TrustedProxies,
    publish_key: Option<String>,
    pages: Vec<(String, Bytes)>,
    outbox: Option<Arc<dyn Outbox>>,
    config: Config,
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
    /// The name has 1 to 255 bytes. It must not begin with `Server/` or end in `:error`, and can have only one handler.
    /// The server itself calls `Client/authentication` and `Client/disconnection` ([`on_connect`](Self::on_connect),
    /// [`on_disconnect`](Self::on_disconnect)). [`start`](Self::start) refuses other names that begin with `Client/`.
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

    /// Sets the handler that is called when a client has been authenticated, before it gets any message. An error refuses
    /// the connection. It is the handler of `Client/authentication` ([`ActionHandler`] has the details).
    pub fn on_connect<M>(self, handler: impl IntoHandler<M>) -> Self {
        self.action(AUTHENTICATION, handler)
    }

    /// Sets the handler that is called when a connection is gone; [`Disconnection`](crate::Disconnection) tells why. It is
    /// the handler of `Client/disconnection`.
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
    /// authenticator takes credentials [in-band](Authenticator::in_band), it happens when the client has not sent them
    /// within the handshake's time.
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
    /// paths ([`Server::handle`]). Default: `/WebSockets`.
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

    /// Sets the key that opens `POST /_publish`, `/_groups`, `/_close` and `/_refresh`, and `GET /_position` and
    /// `/_openapi.json`. A request presents it as `Authorization: Bearer KEY`. It must be long and random, because nothing else keeps others from publishing.
    /// White space around it does not count; [`start`](Self::start) refuses control characters in it. Default: these
    /// paths are closed.
    ///
    /// `/_publish` takes `{"action": .., "details": .., "to": .., "except": .., "key": ..}` in UTF-8; only `action` and
    /// `to` are required. `to` is the text form of a [`Target`](crate::Target), or one of `{"users": [ID, ..]}`,
    /// `{"user": ID}`, `{"groups": [NAME, ..]}`, `{"group": NAME}`, `{"session": ID}`, `{"connection": ID}` and
    /// `{"property": {"name": .., "value": ..}}`, in which ids may have commas. An id is text or a whole number.
    /// `except` is `{"connection": ID}` or `{"user": ID}`, and `key` an idempotency key. `"volatile": true` makes the
    /// message [volatile](crate::Message::volatile). The body may also be an array of up to 1,000 such messages
    /// ([`Server::publish_all`]), which is answered by 200 and an array with `{"status": .., "error": ..}` for each.
    ///
    /// `/_groups` takes `{"user": ..}`, `{"session": ..}` or `{"connection": ..}` with `"join": [NAME, ..]`,
    /// `"leave": [NAME, ..]` or both ([`Server::change_groups`]).
    /// `/_close` takes `{"session": ..}`, `{"user": ..}` or `{"connection": ..}`. With a user, `"except_session": ..`
    /// excludes one session. With `"reconnect": true` the clients may connect again at once ([`Close`](crate::Close)).
    /// `/_refresh` takes `{"session": ..}` or `{"user": ..}` ([`Server::refresh_user`]). `/_position` returns
    /// `{"position": ..}` ([`Server::position`]), and `/_openapi.json` describes all of this.
    ///
    /// The answer is 204 when the message or order is accepted; 400 if it is malformed, 401 without the key, 413 over 1
    /// MiB (escape sequences count as the characters that they stand for), 415 for a `Content-Encoding`, 503 if too
    /// much waits or the node shuts down, and 504 if the outcome is unknown. The body says why.
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

    /// Sets the outbox: an [`Outbox`], or an `Arc<dyn Outbox>`. The cluster publishes each row of its table once the row's
    /// transaction has committed, exactly once, and removes the row. All nodes of the cluster need the same one; the
    /// master polls it. Default: none.
    ///
    /// A row has an action, details in JSON, and a target in the text form of a [`Target`](crate::Target) or in the JSON
    /// of [`publish_key`](Self::publish_key). Limits are those of [`Server::publish`]. A row that is malformed, or whose
    /// action begins with `Server/`, `Client/` or `Presence/`, is moved to a second table with the reason.
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

    /// Sets the intervals and limits.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Checks the settings and starts the node, which joins or founds the cluster in the background. [`Server::serve`],
    /// [`Server::upgrade`] and [`Server::handle`] then accept clients. Call this in the Tokio runtime that is to run
    /// the connections.
    ///
    /// # Errors
    /// [`StartError::Config`] and [`StartError::Pool`] if a setting or the pool cannot work. A database that does not
    /// answer is no error: the node tries again until it answers, and refuses clients with 503 meanwhile.
    pub async fn start(self) -> Result<Server, StartError> {
        self.config.check()?;
        check_path(&self.path)?;
        check_prefix(&self.prefix)?;
        if !self.own_origin && self.allowed_origins.is_empty() {
            return Err(config("no page may connect: allow the origins of those that may"));
        }
        let address = self.address.as_deref().map(check_address).transpose()?;
        if !(1..=64).contains(&self.cluster.len()) || !self.cluster.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(config(format!("the cluster's name {:?} is not 1 to 64 bytes of ASCII", self.cluster)));
        }
        let refused = |error: secret::KeyError| config(error.to_string());
        let keys = self.keys.into_iter().map(secret::cluster_key).collect::<Result<Vec<_>, _>>().map_err(refused)?;
        let mut live = LiveSettings::new(&self.config);
        live.set_publish_key(self.publish_key.as_deref())?;
        (live.allowed_origins, live.own_origin) = (self.allowed_origins, self.own_origin);
        live.trusted_proxies = self.trusted_proxies;
        let mut pages = HashMap::new();
        for (path, html) in self.pages {
            check_path(&path)?;
            if path == self.path || pages.insert(path.clone(), html).is_some() {
                return Err(config(format!("the path {path:?} is used twice")));
            }
        }
        let mut actions: HashMap<String, Arc<dyn ActionHandler>> = HashMap::new();
        for (name, handler) in self.actions {
            check_action(&name)?;
            if actions.contains_key(&name) {
                return Err(config(format!("the action {name:?} has two handlers")));
            }
            actions.insert(name, handler);
        }
        for (name, handler) in actions
            .iter()
            .map(|(name, handler)| (&**name, handler))
            .chain(self.fallback.iter().map(|handler| ("fallback", handler)))
        {
            if let Some(state) = handler.missing_state(&self.states) {
                return Err(config(format!(
                    "the handler of {name:?} takes State<{state}>, which the server lacks: give it to ServerBuilder::state"
                )));
            }
        }
        let layers: Arc<[_]> = self.layers.into();
        let layered = |handler: Arc<dyn ActionHandler>| -> Arc<dyn ActionHandler> {
            if layers.is_empty() { handler } else { Arc::new(Stack { layers: layers.clone(), handler }) }
        };
        let around = |(name, handler): (String, _)| {
            let handler = if OWN_ACTIONS.contains(&&*name) { handler } else { layered(handler) };
            (name, handler)
        };
        let handler_times = Metered::new(|| HandlerTimes::new(actions.keys()));
        let actions = actions.into_iter().map(around).collect();
        let fallback = self.fallback.map(layered);

        let node = NodeId::from_bytes(random()?);
        let authenticator = self.authenticator.clone();
        let hub = Arc::new(Hub::new(node, &self.config, move |subject| connection::forget(&*authenticator, subject)));
        // Without a key there is no other node, and none of its clients outlives it.
        let sealing = if keys.is_empty() { vec![random::<32>()?.to_vec()] } else { keys.clone() };
        let sealer = StateSealer::new(&self.cluster, &sealing);
        let settings = node::Settings {
            node,
            cluster: self.cluster,
            address,
            keys,
            config: self.config.clone(),
            pool: self.pool,
            stats: hub.stats().clone(),
        };
        let (sender, told) = mpsc::channel(reports::MAX_TOLD);
        let cluster = node::start(settings, hub.clone(), sender).await?;
        let outbox = self.outbox.map(|outbox| {
            let trouble = Arc::new(outbox::Trouble::default());
            tokio::spawn(outbox::run(outbox, cluster.submitter(), hub.stats().clone(), trouble.clone()));
            trouble
        });
        let resumption = Resumption::new(hub, cluster.clone(), sealer, self.config.clone());
        let shared = Arc::new(Shared {
            reports: Reports::new(cluster.teller()),
            outbox,
            handler_times,
            gate: Gate::new(&self.config.http),
            logs: LogLimits::default(),
            handler_logs: LogLimits::default(),
            connections: Context::new(self.config, self.authenticator, resumption, self.guests),
            cluster,
            actions,
            fallback,
            states: self.states,
            raw: self.raw,
            dialect: self.dialect,
            path: self.path,
            prefix: self.prefix,
            live: RwLock::new(Arc::new(live)),
            pages,
        });
        tokio::spawn(reports::run(Arc::downgrade(&shared), told));
        Ok(Server(shared))
    }
}

impl Config {
    /// Checks that the settings can work. [`ServerBuilder::start`] does so itself.
    ///
    /// # Errors
    /// [`StartError::Config`], which says what to give instead.
    pub fn check(&self) -> Result<(), StartError> {
        self.find_mistake().map_err(config)
    }
}

fn config(text: impl Into<String>) -> StartError {
    StartError::Config { reason: text.into() }
}

pub(super) fn random<const N: usize>() -> Result<[u8; N], StartError> {
    crate::random::bytes().map_err(|error| config(format!("the system has no random numbers: {error}")))
}

fn is_plain(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte))
}

fn check_path(path: &str) -> Result<(), StartError> {
    if !is_plain(path) {
        return Err(config(format!("the path {path:?} is not a plain one, like /WebSockets")));
    }
    if super::routes::is_reserved(path) {
        return Err(config(format!("the path {path:?} is taken by the server itself")));
    }
    Ok(())
}

fn check_prefix(prefix: &str) -> Result<(), StartError> {
    if prefix.is_empty() || is_plain(prefix) && !prefix.ends_with('/') && !prefix.contains("//") {
        return Ok(());
    }
    Err(config(format!("the prefix {prefix:?} is not a plain path without a slash at its end, like /app")))
}

fn check_address(address: &str) -> Result<String, StartError> {
    let malformed = || {
        config(format!(
            "the address {address:?} is not ws://HOST:PORT or wss://HOST:PORT, with the prefix behind it if there is one, \
             like ws://10.0.0.1:8080/app"
        ))
    };
    let url = Url::parse(address).map_err(|_| malformed())?;
    let bare =
        url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    if url.scheme() == "wss" && !cfg!(feature = "tls") {
        return Err(config(format!("the address {address:?} needs the feature `tls`, which this program lacks")));
    }
    if !matches!(url.scheme(), "ws" | "wss") || !url.has_host() || url.port() == Some(0) || !bare {
        return Err(malformed());
    }
    let prefix = url.path().trim_end_matches('/');
    if prefix.ends_with(LINK) {
        return Err(config(format!(
            "the address {address:?} ends in {LINK}, which is added when it is dialled: leave it out"
        )));
    }
    if !prefix.is_empty() && (!is_plain(prefix) || prefix.contains("//")) {
        return Err(malformed());
    }
    let address = url.as_str().trim_end_matches('/').to_owned();
    if address.len() > ADDRESS_SIZE || !address.is_ascii() {
        return Err(config(format!("the address {address:?} is longer than {ADDRESS_SIZE} bytes")));
    }
    Ok(address)
}

fn check_action(name: &str) -> Result<(), StartError> {
    if !(1..=ACTION_SIZE).contains(&name.len()) {
        return Err(config(format!("the action {name:?} has not 1 to {ACTION_SIZE} bytes")));
    }
    if name.starts_with("Client/") && !OWN_ACTIONS.contains(&name) {
        let [authentication, disconnection] = OWN_ACTIONS;
        return Err(config(format!(
            "there is no action {name:?}: of those that begin with Client/ there are {authentication} and {disconnection}"
        )));
    }
    if name.starts_with("Server/") || name.ends_with(":error") {
        return Err(config(format!(
            "the action {name:?} can never come: clients must not send what begins with Server/ or ends in :error"
        )));
    }
    Ok(())
}
