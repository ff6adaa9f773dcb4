//! The harness of the tests under `tests/`: what they start, and wait for, outside their own process.

pub mod browser;
pub mod client;
pub mod faults;
pub mod forwarder;
pub mod galera;
pub mod history;
pub mod log;
mod mariadb;
pub mod nodes;
pub mod processes;
mod programs;
pub mod proxy;
pub mod publish;
pub mod random;
mod server;
pub mod solo;
pub mod tamper;
pub mod world;

pub use mariadb::MariaDb;
pub use programs::program;
pub use server::WsServer;

/// Makes a message of details that are JSON.
///
/// # Panics
/// If they are not.
pub fn message(
    action: impl Into<String>,
    details: impl serde::Serialize,
    target: ws_cluster::Target,
) -> ws_cluster::Message {
    ws_cluster::Message::new(action, details).expect("the details are JSON").to(target)
}
