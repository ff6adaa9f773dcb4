//! The harness of the tests under `tests/`: what they start, and wait for, outside their own process.

pub mod client;
mod mariadb;
mod server;

pub use mariadb::MariaDb;
pub use server::WsServer;
