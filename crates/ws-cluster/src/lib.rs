//! An embeddable, clustered WebSocket server.
#![warn(missing_docs)]

mod action;
mod auth;
mod close;
mod cluster;
mod config;
mod connection;
mod driver;
mod error;
mod hub;
mod link;
pub mod pool;
mod publish;
mod publisher;
mod server;
mod target;
mod wire;

pub use action::{ActionError, ActionHandler, Request};
pub use auth::{
    AuthenticationError, Authenticator, Credentials, GuestsOnly, Handshake, Identity, Origin, ParseOriginError,
    ParseProxiesError, SessionCookie, TrustedProxies,
};
#[cfg(feature = "mysql")]
pub use auth::{SessionTable, SessionTableError};
pub use close::CloseCode;
pub use cluster::{NodeId, Term};
pub use config::{ClusterConfig, Config, ConnectionConfig, LogConfig};
pub use driver::{NodeStatus, Status};
pub use error::{PublishError, StartError};
#[cfg(feature = "mysql")]
pub use pool::MySqlPool;
#[cfg(feature = "sqlite")]
pub use pool::SqlitePool;
pub use pool::{MemoryPool, Pool, PoolError};
pub use publisher::{ConnectError, Publisher};
pub use server::{IntoPool, RemoteAddress, Server, ServerBuilder};
pub use target::{ConnectionId, ParseTargetError, Target};
