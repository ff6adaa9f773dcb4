//! An embeddable, clustered WebSocket server: live messages to the users of a site, whichever server their browsers
//! are connected to, in however many tabs. Several servers form a cluster with nothing but the MySQL or MariaDB that
//! the site has already: no broker, no sticky sessions.
//!
//! # Hello
//!
//! A client sends `{"action": "hello", "details": ["world"]}`, and every tab of its user, on every server, gets the
//! same back. The program is whole; [`MemoryPool`] makes it a cluster of one.
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
//! In a page of the same host, with the browser client that the server serves at `/ws-cluster.js`:
//!
//! ```js
//! new WsCluster().on("hello", (text) => console.log(text)).send("hello", ["world"]);
//! ```
//!
//! # The parts
//!
//! - A [`Server`] is one node of a cluster, and a cheap handle on it. It serves a [listener of its own](Server::serve), or
//!   is mounted in an axum or hyper application by [`Server::handle`] or [`Server::upgrade`] (feature `axum`:
//!   `Server::routes`). [`ServerBuilder`] has its settings, [`Config`] its intervals and limits.
//! - In a [`Pool`] the nodes find each other and agree on the master, through which every message is relayed: `MySqlPool`
//!   for nodes on many hosts, `SqlitePool` for processes on one host, [`MemoryPool`] for a single process. Nodes of a
//!   shared pool need an [address](ServerBuilder::address) and a [key](ServerBuilder::key).
//! - An [`Authenticator`] tells who a connection is: `SessionTable` by the sessions that a site keeps in MySQL,
//!   [`SessionCookie`] by a look-up in Rust. [`GuestsOnly`] knows no users.
//! - An async function handles an [action](ServerBuilder::action) of clients. Its arguments are made from the
//!   [`Request`] ([`FromRequest`]), and what it returns answers the client ([`IntoHandler`]). A [`Layer`] is code around
//!   handlers.
//! - A [`Message`] is published to a [`Target`]: all, users, groups, a session, a connection, or a property.
//!   [`Server::publish`] publishes from anywhere in a server's process, and a [`Publisher`] from any other process. With a
//!   [publish key](ServerBuilder::publish_key), a site's pages publish over HTTP.
//! - A [`Client`] does for programs what the browser client does for pages: it keeps a connection to a cluster, and sends
//!   and receives messages.
//!
//! # Handlers that block
//!
//! A handler shares its thread with thousands of connections. Move long computations and blocking calls to a thread of
//! their own. If a handler holds its thread for longer than 100 ms, the log warns.
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
//! # What holds
//!
//! - A publish returns `Ok` once the message is accepted: two nodes hold it, or one where it is alone. Each error says
//!   whether it may still be delivered ([`PublishError`]).
//! - Messages are delivered in one order on all nodes. When the master is lost, another takes over, and each node
//!   publishes again what it has not seen in order; nothing is delivered twice for it.
//! - A client that comes back within the log's reach, to any node, gets what it missed, or is told `reset`. Both the
//!   browser client and [`Client`] do it by themselves.
//! - While the database is down, the cluster goes on relaying; only the master cannot change.
//! - At most once, and not repeated after a loss: [`Request::reply`], [`Target::connection`], and what clients send.
//! - Not survived: the loss of every node that holds a message, and a restart of all nodes at once.
//!
//! | limit | default | |
//! |---|---|---|
//! | message of a client | 64 KiB | [`message_size`](ConnectionConfig::message_size) |
//! | messages of a client, on average | 100 a second | [`messages_per_second`](ConnectionConfig::messages_per_second) |
//! | messages of a client, at once | 500 | [`message_burst`](ConnectionConfig::message_burst) |
//! | `Client/authentication` of a client | 5, then one in 5 s | [`authentication_burst`](ConnectionConfig::authentication_burst) |
//! | waiting for a slow client | 1 MiB | [`queue_size`](ConnectionConfig::queue_size) |
//! | connections of an address | 1,000 | [`connections_per_ip`](ConnectionConfig::connections_per_ip) |
//! | connections of a node | 100,000, or what the descriptors allow | [`connections`](ConnectionConfig::connections) |
//! | sockets of a node, before the upgrade and after | what the descriptors allow | [`sockets`](HttpConfig::sockets) |
//! | sockets of an address before the upgrade | 1,000 | [`sockets_per_ip`](HttpConfig::sockets_per_ip) |
//! | head of a request | 16 KiB | [`request_head_size`](HttpConfig::request_head_size) |
//! | links that have not proved the key | 128, 8 of an address | [`greetings`](LinkConfig::greetings) |
//! | publish | 1 MiB | fixed |
//! | waiting for a master | 16 MiB | [`pending_size`](ClusterConfig::pending_size) |
//! | kept for who was away | 64 MiB, 5 minutes | [`LogConfig`] |
//! | replayed to a client that comes back | 10,000 messages | [`replay_count`](ConnectionConfig::replay_count) |
//! | replayed to an address | 256 MiB a minute | [`replay_bytes_per_minute`](ConnectionConfig::replay_bytes_per_minute) |
//! | wait of a publish | 5 s | [`publish_timeout`](ClusterConfig::publish_timeout) |
//!
//! How a connection ends says whether its client comes again: [`CloseCode`].
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
//! | `tls` | no | `wss://` addresses of nodes, and for clients (rustls) |
//! | `testing` | no | `testing`, a test kit: handlers without sockets, clusters in one process |
//!
//! What it logs goes through `tracing`, and holds no key, password or cookie.
#![warn(missing_docs)]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod address;
mod auth;
mod clock;
mod close;
mod config;
mod connection;
mod descriptors;
mod error;
#[cfg(test)]
mod fuzz;
mod hub;
#[cfg(feature = "internals")]
#[doc(hidden)]
pub mod internals;
mod io;
mod log_limit;
mod message;
#[cfg(feature = "mysql")]
mod mysql;
mod node;
pub mod pool;
mod publisher;
mod random;
mod secret;
mod send_queue;
mod server;
#[cfg(feature = "testing")]
pub mod testing;
mod ws;

pub use async_trait::async_trait;
pub use auth::{
    AuthenticationError, Authenticator, Credentials, GuestsOnly, Handshake, Identity, Origin, ParseOriginError,
    ParseProxiesError, Revoked, SessionCookie, TrustedProxies,
};
#[cfg(feature = "mysql")]
pub use auth::{SessionTable, SessionTableError};
pub use close::Close;
pub use config::{Config, ConnectionConfig, HttpConfig, LinkConfig};
pub use error::{PublishError, ServeError, StartError};
pub use message::{
    ConnectionId, Dialect, Message, ParseConnectionIdError, ParseDialectError, ParseTargetError, Target,
};
#[cfg(feature = "mysql")]
pub use pool::MySqlPool;
#[cfg(feature = "sqlite-system")]
pub use pool::SqlitePool;
pub use pool::{IntoPool, MemoryPool, Pool, PoolError};
pub use publisher::{ConnectError, Publisher, PublisherBuilder};
pub use server::{
    ActionHandler, Data, Details, Disconnection, FromRequest, IntoHandler, Layer, Layered, Next, RemoteAddress,
    Request, Serve, Server, ServerBuilder, Session, State, User, WithGuests, shutdown_signal,
};
pub use ws::RawMessage;
/// The client of a cluster, a crate of its own.
pub use ws_cluster_client as client;
pub use ws_cluster_client::{ActionError, Client, CloseCode, ParseDetailsError, RawDetails};
pub use ws_cluster_core::{ClusterConfig, Degraded, LogConfig, NodeId, NodeStatus, Status, Term};
