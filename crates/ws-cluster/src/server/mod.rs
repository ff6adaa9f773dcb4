//! The handle on a server: serving and shutting down. `builder` makes it, `publishing` sends into the cluster,
//! `routes` and `http` answer HTTP, and `upgrade` lets clients in.

use std::{collections::HashMap, convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::RwLock;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use crate::{
    Authenticator, Config, Dialect, IntoPool, NodeId, ServeError, Status,
    auth::Encrypted,
    clock::now,
    connection::{Context, Raw},
    hub::{Hub, resume::Resumption},
    log_limit::LogLimits,
    node::Cluster,
    outbox::Trouble,
    stats::{HandlerTimes, Metered},
};

mod action;
mod builder;
mod handlers;
mod http;
mod live;
mod publishing;
mod reports;
mod routes;
mod serve;
mod socket;
#[cfg(feature = "tls")]
mod tls;
mod upgrade;
mod websocket;

pub use action::{
    ActionHandler, Data, Details, Disconnection, FromRequest, IntoHandler, Layer, Layered, Next, Request, Session,
    State, User, WithGuests,
};
pub use builder::ServerBuilder;
pub use live::LiveSettings;
#[cfg(feature = "testing")]
pub(crate) use publishing::Recorder;
pub use routes::RemoteAddress;
pub use serve::{Serve, shutdown_signal};
#[cfg(feature = "tls")]
pub use tls::{TlsCertificate, TlsError};

use handlers::Fault;
use reports::Reports;
use serve::Encryption;
use socket::{Full, Gate, HttpStream, Slot, is_local};

/// An accepted socket.
struct Accepted {
    stream: TcpStream,
    place: Slot,
    /// The limit that the socket exceeds.
    full: Option<Full>,
    peer: RemoteAddress,
    encryption: Encryption,
}

/// Pause after a failed accept. The usual cause is a lack of file descriptors, which ends only when other sockets
/// close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time for the head of a request on a socket beyond a limit, and for reading the answer.
const BEYOND_TIMEOUT: Duration = Duration::from_secs(2);

/// Causes of log lines that clients can cause as often as they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// A socket could not be accepted.
    Accept,
    /// A socket is beyond a limit.
    Sockets(Full),
    /// A connection is beyond a limit.
    Connections(crate::hub::Refusal),
    /// More clients come per second than the node takes.
    AcceptRate,
    /// A page of a foreign origin.
    Origin,
}

/// A handle on a running server, which is one node of a cluster. Clones are cheap and are the same server: keep them in
/// handlers and in the rest of the application to publish from.
#[derive(Clone)]
pub struct Server(Arc<Shared>);

struct Shared {
    connections: Context,
    cluster: Cluster,
    reports: Reports,
    /// What is wrong with the outbox, if the node has one.
    outbox: Option<Arc<Trouble>>,
    handler_times: Metered<HandlerTimes>,
    actions: HashMap<String, Arc<dyn ActionHandler>>,
    fallback: Option<Arc<dyn ActionHandler>>,
    /// Values that handlers share.
    states: States,
    raw: Option<Raw>,
    dialect: Dialect,
    path: String,
    /// The prefix of all paths; empty if there is none.
    prefix: String,
    /// What can change while the server runs. A synchronous lock, held while the pointer is copied.
    live: RwLock<Arc<LiveSettings>>,
    /// HTML by path.
    pages: HashMap<String, Bytes>,
    /// Counts the sockets that `serve` accepts.
    gate: Gate,
    /// Limits the log lines that clients can cause.
    logs: LogLimits<Cause>,
    /// Limits of log lines by action. They are apart from `logs`, because a fallback handles actions that clients
    /// invent, which would displace the other causes.
    handler_logs: LogLimits<(Fault, String)>,
}

/// Values that handlers share, one of each type.
pub(crate) type States = ::http::Extensions;

impl Server {
    /// Returns the settings of a server whose cluster shares `pool`: a [`Pool`](crate::Pool), or an `Arc<dyn Pool>`.
    pub fn builder(pool: impl IntoPool) -> ServerBuilder {
        ServerBuilder::new(pool.into_pool())
    }

    /// Serves clients, links and HTTP ([`handle`](Self::handle)) on a listener. It ends when the returned future is
    /// dropped, when its [signal](Serve::with_graceful_shutdown) resolves, or when the node cannot go on.
    ///
    /// Errors of single connections and a lack of file descriptors are logged, and do not end it.
    ///
    /// # Errors
    /// [`ServeError`] if the node cannot go on. The server has been shut down by then.
    ///
    /// ```no_run
    /// # async fn f(server: ws_cluster::Server) -> Result<(), Box<dyn std::error::Error>> {
    /// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
    /// server.serve(listener).with_graceful_shutdown(ws_cluster::shutdown_signal()).await?;
    /// # Ok(()) }
    /// ```
    pub fn serve(&self, listener: TcpListener) -> Serve {
        Serve::new(self.clone(), listener)
    }

    /// Accepts on a listener until `shutdown` resolves, and shuts down.
    async fn accept_all(
        &self,
        listener: TcpListener,
        encryption: Encryption,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        // A watch channel, because each connection reads it once, and the sender can wait until all connections have
        // dropped it.
        let (closing, _) = watch::channel(());
        let mut shutdown = std::pin::pin!(shutdown);
        let mut drain_requested = std::pin::pin!(self.drain_requested());
        let mut failure = std::pin::pin!(self.0.cluster.failure());
        let outcome = loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = &mut shutdown => break Ok(()),
                () = &mut drain_requested => break Ok(()),
                failure = &mut failure => break Err(failure.into()),
            };
            match accepted {
                Ok((stream, peer)) => self.take_in(stream, RemoteAddress(peer), &encryption, &closing),
                Err(error) => {
                    if let Some(line) = self.0.logs.due(Cause::Accept, now()) {
                        let left_out = line.left_out;
                        tracing::error!(%error, left_out, "a connection could not be accepted");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                        () = &mut shutdown => break Ok(()),
                    }
                }
            }
        };
        drop(listener);
        closing.send_replace(());
        self.shutdown().await;
        let limit = self.config().cluster.shutdown_timeout;
        if tokio::time::timeout(limit, closing.closed()).await.is_err() {
            tracing::warn!("HTTP requests are still running at the end of the shutdown");
        }
        outcome
    }

    /// Serves an accepted socket if the limits leave room for it, or closes it.
    fn take_in(&self, stream: TcpStream, peer: RemoteAddress, encryption: &Encryption, closing: &watch::Sender<()>) {
        // All clients behind a proxy come from its address.
        let ip = Some(peer.0.ip()).filter(|ip| !self.live().trusted_proxies.contains(*ip));
        let (place, full) = self.0.gate.admit(ip, self.hub().admission().open());
        if let Some(full) = full
            && let Some(line) = self.0.logs.due(Cause::Sockets(full), now())
        {
            let (left_out, why) = (line.left_out, self.too_many_sockets(full));
            tracing::warn!(peer = %peer.0, left_out, "a socket is refused: {why}");
        }
        if let Some(place) = place {
            let accepted = Accepted { stream, place, full, peer, encryption: encryption.clone() };
            tokio::spawn(self.clone().serve_connection(accepted, closing.subscribe()));
        }
    }

    fn too_many_sockets(&self, full: Full) -> String {
        let http = &self.config().http;
        match full {
            Full::Total => format!("too many connections (limit {}: http.sockets)", http.sockets),
            Full::Address => {
                format!("too many connections from this address (limit {}: http.sockets_per_ip)", http.sockets_per_ip)
            }
        }
    }

    /// Serves HTTP on one accepted socket until its end or its upgrade.
    async fn serve_connection(self, accepted: Accepted, mut closing: watch::Receiver<()>) {
        let Accepted { stream, place, full, peer, encryption } = accepted;
        // Messages are small and wanted at once. A failure costs latency only.
        let _ = stream.set_nodelay(true);
        let is_local = is_local(peer.0.ip(), stream.local_addr().ok().map(|address| address.ip()));
        let config = self.config();
        let (head_size, head, write) = match full {
            None => (config.http.request_head_size, config.connection.handshake_timeout, config.http.write_timeout),
            Some(_) => (config.http.request_head_size, BEYOND_TIMEOUT, BEYOND_TIMEOUT),
        };
        let begun = tokio::select! {
            begun = encryption.begin(stream, head) => begun,
            _ = closing.changed() => return,
        };
        let socket = match begun {
            Ok(socket) => socket,
            Err(error) => return tracing::debug!(peer = %peer.0, %error, "a TLS handshake failed"),
        };
        let lacks_tls = encryption.is_on() && !socket.is_encrypted() && !is_local;
        let encrypted = socket.is_encrypted().then_some(Encrypted);
        let service = service_fn(move |mut request: ::http::Request<hyper::body::Incoming>| {
            let server = self.clone();
            request.extensions_mut().insert(peer);
            encrypted.map(|encrypted| request.extensions_mut().insert(encrypted));
            async move {
                Ok::<_, Infallible>(match lacks_tls && !server.is_link(request.uri().path()) {
                    true => {
                        http::answer(::http::StatusCode::BAD_REQUEST, "this port takes TLS: use https:// or wss://")
                    }
                    false => server.answer(request, full).await,
                })
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .max_header_size(head_size)
            // The minimum that hyper accepts.
            .max_buf_size(head_size.max(8 * 1024))
            .keep_alive(full.is_none())
            .serve_connection(TokioIo::new(HttpStream::new(socket, place, write)), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            // There is no further request if the value changed or the sender is gone.
            _ = closing.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "an HTTP connection failed");
        }
    }

    /// Answers a request on a socket of `serve`. On a socket beyond the limits, it answers only requests that the node
    /// needs.
    async fn answer(
        &self,
        request: ::http::Request<hyper::body::Incoming>,
        full: Option<Full>,
    ) -> ::http::Response<http_body_util::Full<Bytes>> {
        match full {
            Some(Full::Address) => {
                return http::answer(::http::StatusCode::TOO_MANY_REQUESTS, &self.too_many_sockets(Full::Address));
            }
            Some(Full::Total) if !self.own_path(request.uri().path()).is_some_and(routes::is_vital) => {
                return upgrade::busy(&self.too_many_sockets(Full::Total));
            }
            _ => {}
        }
        let mut response = self.handle(request).await;
        let upgraded = response.status() == ::http::StatusCode::SWITCHING_PROTOCOLS;
        if !upgraded && self.0.gate.is_crowded(self.hub().admission().open()) {
            // Others need the socket more than a next request that may never come.
            response.headers_mut().insert(::http::header::CONNECTION, ::http::HeaderValue::from_static("close"));
        }
        response
    }

    /// Shuts the server down. [`serve`](Self::serve) does this itself; an application that does not use it calls this
    /// method.
    ///
    /// The node is not ready from now on. It closes the clients with 1012 evenly over
    /// [`drain`](crate::ConnectionConfig::drain), and they connect to another node. It waits for running handlers,
    /// including those of `Client/disconnection`, for at most
    /// [`shutdown_timeout`](crate::ClusterConfig::shutdown_timeout), and accepts what they publish. Then it leaves the
    /// cluster, for at most as long again, and publishes nothing more.
    pub async fn shutdown(&self) {
        let (limit, drain) = (self.config().cluster.shutdown_timeout, self.live().drain);
        self.hub().admission().stop();
        let leaving = async {
            self.0.cluster.drain().await;
            self.hub().close_evenly(drain).await;
            self.hub().close();
            self.hub().admission().drained(limit).await
        };
        if !tokio::time::timeout(drain + limit, leaving).await.unwrap_or(false) {
            tracing::warn!(
                open = self.hub().admission().open(),
                "connections or their handlers are still there; they outlive the hand-over"
            );
        }
        if tokio::time::timeout(limit, self.0.cluster.shut_down()).await.is_err() {
            tracing::warn!("the hand-over took too long; the cluster notices the loss of this node by itself");
        }
    }

    /// Resolves once somebody with the cluster's key has asked this node to shut down: `ws-server drain`, or
    /// [`Publisher::drain_node`](crate::Publisher::drain_node). [`serve`](Self::serve) shuts the server down then.
    /// An application with a listener of its own waits for this and calls [`shutdown`](Self::shutdown).
    pub async fn drain_requested(&self) {
        self.0.cluster.drain_requested().await;
    }

    /// Returns the value of this type that was given to [`ServerBuilder::state`].
    pub fn state<T: Clone + Send + Sync + 'static>(&self) -> Option<T> {
        self.0.states.get().cloned()
    }

    /// Returns the id of this node. Each start draws a new random id.
    pub fn node_id(&self) -> NodeId {
        self.hub().node()
    }

    /// Returns the present state of this node in its cluster.
    pub fn status(&self) -> Status {
        self.0.cluster.status().borrow().clone()
    }

    /// Returns a receiver that is notified of each change of [`status`](Self::status). It has the latest value only, so
    /// a short change may be missed.
    pub fn subscribe_status(&self) -> watch::Receiver<Status> {
        self.0.cluster.status()
    }

    /// Waits until the node's task has handled everything that came before this call. Returns false if the task is gone
    /// or does not answer within `limit`. Then the node hangs and has to be started again. `GET /health` makes the same
    /// check.
    pub async fn responds(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.0.cluster.probe()).await.unwrap_or(false)
    }

    /// Returns the number of clients that are connected to this node or whose handlers still run.
    pub fn connections(&self) -> usize {
        self.hub().admission().open()
    }

    /// Waits until this node cannot go on, and returns why: another node has its address
    /// ([`ServeError::AddressTaken`]), or its cluster's task panicked ([`ServeError::Stopped`]). From then on the node
    /// is not ready. [`serve`](Self::serve) ends with this error by itself. An application with a listener of its own
    /// awaits this beside the listener.
    pub async fn failed(&self) -> ServeError {
        self.0.cluster.failure().await.into()
    }

    /// Waits until this node accepts clients, which may be after [`start`](crate::ServerBuilder::start) has returned.
    /// It also waits while the node has no master, for example because the pool's database does not answer.
    pub async fn wait_ready(&self) {
        // The sender ends after the last handle on the server, which this is one of.
        let _ = self.0.cluster.status().wait_for(|status| status.ready).await;
    }

    pub(crate) fn config(&self) -> &Config {
        &self.0.connections.config
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.0.connections.hub
    }

    pub(crate) fn resumption(&self) -> &Resumption {
        &self.0.connections.resumption
    }

    fn authenticator(&self) -> &dyn Authenticator {
        &*self.0.connections.authenticator
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("status", &self.status()).finish_non_exhaustive()
    }
}
