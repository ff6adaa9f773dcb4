//! Echoes WebSocket messages as they come, text and binary, on the very connections that actions run on: for protocol
//! conformance suites (`tests/autobahn/run`), and to measure the connections alone.
//!
//! ```text
//! cargo run --release -p examples --bin echo -- 127.0.0.1:9001
//! ```
//!
//! Clients connect to `ws://127.0.0.1:9001/WebSockets` and get back what they send, up to 64 MiB at a time.

use std::error::Error;

use tokio::net::TcpListener;
use ws_cluster::{Config, MemoryPool, Server, shutdown_signal};

/// Conformance suites send messages of 16 MiB.
const MESSAGE_SIZE: usize = 64 * 1024 * 1024;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    println!("http://{}", listener.local_addr()?);
    let mut config = Config::default();
    config.connection.message_size = MESSAGE_SIZE;
    config.connection.queue_size = MESSAGE_SIZE;
    config.connection.messages_per_second = 1_000_000;
    config.connection.message_burst = 1_000_000;
    let server = Server::builder(MemoryPool::default()).raw(Some).config(config).start().await?;
    server.serve(listener).with_graceful_shutdown(shutdown_signal()).await?;
    Ok(())
}
