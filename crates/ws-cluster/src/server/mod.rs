//! The handle on a server. `builder` has its settings, which `check` checks, and `start` starts it. `accept` serves the
//! sockets of a listener, `shutdown` ends the server, `publishing` sends into the cluster, `routes` and `http` answer
//! HTTP, and `upgrade` lets clients in.

use std::{collections::HashMap, sync::Arc, time::Duration};

use bytes::Bytes;
use parking_lot::{Mutex, RwLock};
use tokio::{net::TcpListener, sync::watch};

use crate::{
    Authenticator, Config, Dialect, IntoPool, NodeId, Status,
    connection::{Context, Raw},
    hub::{Hub, resume::Resumption},
    log_limit::LogLimits,
    node::Cluster,
    outbox::Trouble,
    stats::{HandlerTimes, Metered},
};

mod accept;
mod action;
mod builder;
mod check;
mod handlers;
mod http;
mod live;
mod publishing;
mod reports;
mod routes;
mod serve;
mod shutdown;
mod socket;
mod start;
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
use socket::{Full, Gate};

/// Causes of log lines that clients can cause as often as they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Cause {
    /// A socket could not be accepted.
    Accept,
    /// A socket is beyond a limit.
    Sockets(Full),
    /// The TLS handshake of a socket failed.
    Tls,
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
    /// What the site's backend counts, if the server has one.
    #[cfg(feature = "metrics")]
    backend_stats: Arc<crate::stats::BackendStats>,
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
    /// What can change while the server runs. A synchronous lock, held while the pointer is copied or replaced.
    live: RwLock<Arc<LiveSettings>>,
    /// Held while an application changes `live`, so that no change gets lost.
    changing: Mutex<()>,
    /// HTML by path.
    pages: HashMap<String, Bytes>,
    /// Counts the sockets that `serve` accepts.
    gate: Gate,
    /// True from the beginning of the shutdown on.
    shutting_down: watch::Sender<bool>,
    /// Its receivers are held by tasks that the shutdown waits for.
    unfinished: watch::Sender<()>,
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
    /// dropped, when its [signal](Serve::with_graceful_shutdown) resolves, when the server [shuts
    /// down](Self::shutdown) for any other reason, or when the node cannot go on.
    ///
    /// Errors of single connections and a lack of file descriptors are logged, and do not end it.
    ///
    /// # Errors
    /// [`ServeError`](crate::ServeError) if the node cannot go on. The server has been shut down by then.
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
    pub fn connection_count(&self) -> usize {
        self.hub().admission().open()
    }

    /// Waits until this node accepts clients, which may be after [`start`](crate::ServerBuilder::start) has returned.
    /// It also waits while the node has no master, for example because the pool's database does not answer. It waits for
    /// ever if the node has [shut down](Self::shutdown) or [cannot go on](Self::failed).
    pub async fn wait_ready(&self) {
        self.0.cluster.ready().await;
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
