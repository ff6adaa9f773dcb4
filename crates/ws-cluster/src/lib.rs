//! A clustered WebSocket server to embed in an application. It sends messages to the users of a site in all of their
//! tabs, on whichever node a tab is connected. Several nodes form a cluster through the MySQL or MariaDB database that
//! the site already has. The cluster needs no broker and no sticky sessions.
//!
//! # Hello
//!
//! A client sends `{"action": "hello", "details": ["world"]}`, and every tab of its user, on every node, gets the same
//! message back. The program is complete; with [`MemoryPool`] it is a cluster of one node.
//!
//! ```
//! use ws_cluster::{ActionError, Identity, MemoryPool, Request, Server, SessionCookie, shutdown_signal};
//!
//! async fn hello(request: Request) -> Result<(), ActionError> {
//!     if request.details().is_empty() {
//!         return Err(ActionError::bad_request("No hello message:("));
//!     }
//!     request.reply_to_user(request.details()).await
//! }
//!
//! #[tokio::main]
//! async fn main() -> Result<(), Box<dyn std::error::Error>> {
//!     // Believes the cookie. A site looks it up in its sessions.
//!     let users = SessionCookie::new("user", async |name| Ok(Some(Identity::user(name))));
//!     let server = Server::builder(MemoryPool::default()).authenticator(users).action("hello", hello).start().await?;
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
//!     println!("http://{}", listener.local_addr()?);
//!     # let shutdown_signal = || async {};
//!     server.serve(listener).with_graceful_shutdown(shutdown_signal()).await?;
//!     Ok(())
//! }
//! ```
//!
//! A page of the same host loads the browser client from `/ws-cluster.js` and runs this:
//!
//! ```js
//! new WsCluster().on("hello", (text) => console.log(text)).send("hello", ["world"]);
//! ```
//!
//! # The parts
//!
//! - A [`Server`] is a handle on one node of a cluster, and cheap to clone. It serves a [listener of its
//!   own](Server::serve), or is mounted in an axum or hyper application by [`Server::handle`] or [`Server::upgrade`]
//!   (feature `axum`: `Server::routes`). [`ServerBuilder`] has the settings, and [`Config`] the intervals and limits.
//! - The nodes find each other in a [`Pool`] and agree on a master there. The master relays every message. There are
//!   three pools: `MySqlPool` for nodes on many hosts, `SqlitePool` for processes on one host, [`MemoryPool`] for a
//!   single process. Nodes of a shared pool need an [address](ServerBuilder::address) and a [key](ServerBuilder::key).
//! - An [`Authenticator`] finds the user of a connection. `SessionTable` reads the sessions that a site keeps in MySQL,
//!   [`SessionCookie`] passes a cookie to a function of yours, and [`GuestsOnly`] makes every client a guest.
//! - An async function handles an [action](ServerBuilder::action) of clients. The server makes its arguments from the
//!   [`Request`] ([`FromRequest`]) and sends its return value to the client ([`IntoHandler`]). A [`Layer`] is code that
//!   runs around handlers.
//! - A [`Message`] is published to a [`Target`]: all, users, groups, a session, a connection, or a property.
//!   [`Server::publish`] publishes in the process of a node, and a [`Publisher`] in any other process. With a [publish
//!   key](ServerBuilder::publish_key), a site in any language publishes over HTTP.
//! - A row in the table of an [outbox](ServerBuilder::outbox) is published when its transaction commits.
//! - A [`Client`] is for programs, as the browser client is for pages. It keeps a connection to a cluster, and sends
//!   and receives messages.
//!
//! # Handlers that block
//!
//! A handler shares its thread with thousands of connections. Move long computations and blocking calls to a thread of
//! their own. If a handler blocks its thread for more than 100 ms, the server logs a warning.
//!
//! ```
//! # use ws_cluster::{ActionError, Details};
//! # fn render(text: &str) -> String { text.to_owned() }
//! async fn preview(Details(text): Details<String>) -> Result<String, ActionError> {
//!     let rendered = tokio::task::spawn_blocking(move || render(&text)).await;
//!     rendered.map_err(|_| ActionError::internal("The text could not be rendered"))
//! }
//! ```
//!
//! # axum
//!
//! With the feature `axum`, `Server::routes` is a router for clients and nodes, and `Server::health_routes` has
//! `/health` and `/ready`. `into_make_service_with_connect_info` tells the server the addresses of its clients.
//!
//! ```no_run
//! # #[cfg(feature = "axum")]
//! # #[tokio::main]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use ws_cluster::{MemoryPool, Server, shutdown_signal};
//!
//! let server = Server::builder(MemoryPool::default()).start().await?;
//! let app = axum::Router::new().merge(server.routes()).merge(server.health_routes());
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
//! axum::serve(listener, app.into_make_service_with_connect_info::<std::net::SocketAddr>())
//!     .with_graceful_shutdown(shutdown_signal())
//!     .await?;
//! server.shutdown().await;
//! # Ok(()) }
//! # #[cfg(not(feature = "axum"))]
//! # fn main() {}
//! ```
//!
//! # Tokens
//!
//! A program sends its token as `Authorization: Bearer TOKEN`, and a browser as the subprotocol `bearer.TOKEN` or in
//! `Client/authentication`. With the feature `jwt`, `JwtAuthenticator` checks JSON Web Tokens. For tokens of another
//! kind, implement [`Authenticator`]:
//!
//! ```
//! use ws_cluster::{AuthenticationError, Authenticator, Credentials, Handshake, Identity, async_trait};
//!
//! struct ByToken;
//!
//! # fn verify(token: &str) -> Option<String> { token.strip_prefix("token of ").map(str::to_owned) }
//! #[async_trait]
//! impl Authenticator for ByToken {
//!     async fn authenticate(
//!         &self,
//!         handshake: &Handshake,
//!         _credentials: Option<Credentials<'_>>,
//!     ) -> Result<Option<Identity>, AuthenticationError> {
//!         Ok(handshake.bearer_token().and_then(verify).map(Identity::user))
//!     }
//!
//!     fn uses_cookies(&self) -> bool {
//!         false // Pages of any origin may connect, because they have to know the token.
//!     }
//! }
//! ```
//!
//! # Testing
//!
//! With the feature `testing`, a test calls a handler without sockets, and `testing::Cluster` starts several nodes in
//! one process.
//!
//! ```
//! # #[cfg(feature = "testing")]
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() {
//! use ws_cluster::{Details, testing};
//!
//! let sum = async |Details((a, b)): Details<(i64, i64)>| a + b;
//! let outcome = testing::request("sum", (1, 2)).user("ann").call(sum).await;
//! assert_eq!(outcome.reply()[0], 3);
//! # }
//! # #[cfg(not(feature = "testing"))]
//! # fn main() {}
//! ```
//!
//! # Guarantees
//!
//! - A publish returns `Ok` when the message is accepted: two nodes hold it, or the only node of the cluster does. Each
//!   error says whether the message may still be delivered ([`PublishError`]).
//! - Messages are delivered in the same order on all nodes. If the master is lost, another node takes over. Each node
//!   then sends its own messages that it has not seen in the order to the new master. No message is delivered twice.
//! - A client that comes back to any node while the log still has what it missed (5 minutes by default) gets it.
//!   Otherwise it is told `reset`. The browser client and [`Client`] come back by themselves.
//! - While the database is down, the cluster goes on relaying messages, but the master cannot change and no node can
//!   start.
//! - A client's message may ask for an answer: a request gets exactly one ([`Request::request_id`]), unless its
//!   connection is lost.
//! - Messages of [`Request::reply`], to a [`Target::connection`], and from clients are delivered at most once, and are
//!   not repeated after a loss.
//! - A message is lost if every node that holds it is lost, or if all nodes restart at once.
//!
//! | limit | default | |
//! |---|---|---|
//! | message of a client | 64 KiB | [`message_size`](ConnectionConfig::message_size) |
//! | messages of a client, on average | 100 a second | [`messages_per_second`](ConnectionConfig::messages_per_second) |
//! | messages of a client, at once | 500 | [`message_burst`](ConnectionConfig::message_burst) |
//! | `Client/authentication` of a client | 5, then one in 5 s | [`authentication_burst`](ConnectionConfig::authentication_burst) |
//! | send queue of a slow client | 1 MiB | [`queue_size`](ConnectionConfig::queue_size) |
//! | connections of an address | 1,000 | [`connections_per_ip`](ConnectionConfig::connections_per_ip) |
//! | connections of a node | 100,000, or what the descriptors allow | [`connections`](ConnectionConfig::connections) |
//! | sockets of a node, before the upgrade and after | what the descriptors allow | [`sockets`](HttpConfig::sockets) |
//! | sockets of an address before the upgrade | 1,000 | [`sockets_per_ip`](HttpConfig::sockets_per_ip) |
//! | head of a request | 16 KiB | [`request_head_size`](HttpConfig::request_head_size) |
//! | links that have not proved the key | at most 128; 8 of an address | [`greetings`](LinkConfig::greetings) |
//! | size of a publish | 1 MiB | fixed |
//! | publishes that wait for a master | 16 MiB | [`pending_size`](ClusterConfig::pending_size) |
//! | log, for clients that come back | 5 minutes, 64 MiB, 1,000,000 messages | [`LogConfig`] |
//! | replayed to a client that comes back | 10,000 messages | [`replay_count`](ConnectionConfig::replay_count) |
//! | replayed to an address | 256 MiB a minute | [`replay_bytes_per_minute`](ConnectionConfig::replay_bytes_per_minute) |
//! | wait of a publish | 5 s | [`publish_timeout`](ClusterConfig::publish_timeout) |
//!
//! The [`CloseCode`] of a connection says if its client connects again.
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `mysql` | yes | `MySqlPool` and `SessionTable` (mysql_async) |
//! | `sqlite` | no | `SqlitePool` (rusqlite, with SQLite built in) |
//! | `sqlite-system` | no | the same as `sqlite` with the SQLite that the program or the system links |
//! | `mysql-tls` | no | TLS to MySQL and MariaDB ([`MySqlPool::connect`](pool::MySqlPool::connect) has the options) |
//! | `axum` | no | `Server::routes` as an `axum::Router` |
//! | `tls` | no | `wss://` addresses for nodes and clients, and [`Serve::with_tls`] for listeners (rustls) |
//! | `deflate` | no | compression (`permessage-deflate`) for clients that offer it; [`ConnectionConfig::compression`] turns it off |
//! | `jwt` | no | `JwtAuthenticator`: clients that bring a JSON Web Token (jsonwebtoken) |
//! | `http-client` | no | the keys of `JwtAuthenticator` from a URL |
//! | `backend` | no | `Backend`: the site's own code behind a URL says who clients are and handles actions |
//! | `metrics` | no | `metrics`: what a server counts, through the facade of the crate `metrics` |
//! | `testing` | no | `testing`, a test kit: handlers without sockets, clusters in one process |
//!
//! The library logs with `tracing`. No line contains a key, a password or a cookie.
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
mod auth;
#[cfg(feature = "backend")]
mod backend;
mod clock;
mod config;
mod connection;
mod descriptors;
mod error;
#[cfg(test)]
mod fuzz;
#[cfg(any(feature = "backend", all(feature = "http-client", feature = "jwt")))]
mod http_client;
mod hub;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod io;
mod log_limit;
mod message;
#[cfg(feature = "metrics")]
pub mod metrics;
#[cfg(feature = "mysql")]
mod mysql;
mod node;
pub mod outbox;
pub mod pool;
mod publisher;
mod random;
mod report;
mod secret;
mod send_queue;
mod server;
#[cfg(feature = "sqlite-system")]
mod sqlite;
mod stats;
#[cfg(feature = "testing")]
pub mod testing;
mod ws;

pub use async_trait::async_trait;
pub use auth::{
    AuthenticationError, Authenticator, AuthenticatorChain, Credentials, GuestsOnly, Handshake, Identity, Inquiry,
    InquiryReason, Origin, ParseOriginError, ParseProxiesError, Revoked, SessionCookie, TrustedProxies,
};
#[cfg(feature = "jwt")]
pub use auth::{JwtAuthenticator, JwtError};
#[cfg(feature = "mysql")]
pub use auth::{SessionTable, SessionTableError};
#[cfg(feature = "backend")]
pub use backend::{Backend, BackendBuilder, BackendError};
pub use config::{Config, ConnectionConfig, HttpConfig, LinkConfig};
pub use error::{PublishError, ServeError, StartError};
pub use message::{
    Close, ConnectionId, Dialect, GroupChange, Message, ParseConnectionIdError, ParseDialectError, ParseTargetError,
    RequestId, Target,
};
#[cfg(feature = "mysql")]
pub use pool::MySqlPool;
#[cfg(feature = "sqlite-system")]
pub use pool::SqlitePool;
pub use pool::{IntoPool, MemoryPool, Pool, PoolError};
pub use publisher::{ConnectError, Publisher, PublisherBuilder};
pub use report::{
    ConnectionList, ConnectionQuery, ConnectionReport, FollowerReport, LinkReport, NodeReport, NodeRole, Relay,
};
pub use secret::KeyError;
pub use server::{
    ActionHandler, Data, Details, Disconnection, FromRequest, IntoHandler, Layer, Layered, LiveSettings, Next,
    RemoteAddress, Request, Serve, Server, ServerBuilder, Session, State, User, WithGuests, shutdown_signal,
};
#[cfg(feature = "tls")]
pub use server::{TlsCertificate, TlsError};
pub use ws::RawMessage;
/// The client for programs in Rust: the crate `ws-cluster-client`.
pub use ws_cluster_client as client;
pub use ws_cluster_client::{ActionError, Client, CloseCode, ParseDetailsError, RawDetails};
pub use ws_cluster_core::{ClusterConfig, Degraded, LogConfig, NodeId, NodeStatus, ParseNodeIdError, Status, Term};

#[cfg(test)]
mod tests {
    /// Returns the features that a page lists in its table, as lines `| `NAME` | DEFAULT | .. |`.
    fn listed(page: &str) -> Vec<(String, bool)> {
        let lines = page.lines().map(|line| line.trim_start_matches("//! "));
        let rows = lines.filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
        let rows = rows.filter_map(|(name, rest)| match rest.split_once(" | ")?.0 {
            "yes" => Some((name.to_owned(), true)),
            "no" => Some((name.to_owned(), false)),
            _ => None,
        });
        let mut features: Vec<_> = rows.collect();
        features.sort();
        features
    }

    #[test]
    fn the_tables_of_features_name_all_of_them() {
        let (_, manifest) = include_str!("../Cargo.toml").split_once("[features]").unwrap();
        let (manifest, _) = manifest.split_once("\n[").unwrap();
        let lines = manifest.lines().filter_map(|line| line.split_once(" = "));
        let (default, others): (Vec<_>, Vec<_>) = lines.partition(|(name, _)| *name == "default");
        let is_default = |name| default[0].1.contains(&format!("{name:?}"));
        let features = others.into_iter().filter(|(name, _)| *name != "internals");
        let mut features: Vec<_> = features.map(|(name, _)| (name.to_owned(), is_default(name))).collect();
        features.sort();
        assert_eq!(listed(include_str!("lib.rs")), features);
        assert_eq!(listed(include_str!("../../../docs/rust.md")), features);
    }
}
