//! The harness of the tests under `tests/`: the programs and servers that they start outside their own process.

pub mod browser;
pub mod client;
pub mod deflate;
pub mod faults;
pub mod forwarder;
pub mod galera;
pub mod history;
pub mod http_client;
pub mod log;
mod mariadb;
pub mod nodes;
pub mod openapi;
pub mod outbox;
pub mod processes;
mod programs;
pub mod proxy;
pub mod publish;
pub mod random;
mod server;
pub mod site;
pub mod solo;
pub mod streams;
pub mod tamper;
pub mod tls;
pub mod world;

pub use mariadb::{MariaDb, free_port};
pub use programs::{compile, program};
pub use server::WsServer;

/// Makes a message with details that are JSON.
///
/// # Panics
/// Panics if the details are not JSON.
pub fn message(
    action: impl Into<String>,
    details: impl serde::Serialize,
    target: ws_cluster::Target,
) -> ws_cluster::Message {
    ws_cluster::Message::new(action, details).expect("the details are JSON").to(target)
}
