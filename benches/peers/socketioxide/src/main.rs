//! A broadcast server on socketioxide: every client gets what is posted to /publish as the event "message".

use axum::{
    Router,
    extract::{Query, State},
    http::StatusCode,
    routing::post,
    serve::ListenerExt,
};
use serde::Deserialize;
use socketioxide::{SocketIo, TransportType};
use tokio::net::TcpListener;

/// The allocator of the other Rust servers.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

#[derive(Deserialize)]
struct Publish {
    #[serde(default = "once")]
    count: usize,
}

fn once() -> usize {
    1
}

// Only one core is measured.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(port) = std::env::args().nth(1) else {
        return Err("usage: bench-peer-socketioxide PORT".into());
    };
    let (layer, io) = SocketIo::builder()
        .transports([TransportType::Websocket])
        // The default of 128 packets refuses longer bursts.
        .max_buffer_size(4096)
        .build_layer();
    io.ns("/", async || {});

    let app = Router::new().route("/publish", post(publish)).with_state(io).layer(layer);
    let listener = TcpListener::bind(("127.0.0.1", port.parse()?)).await?.tap_io(|stream| {
        // It would only be slower without.
        let _ = stream.set_nodelay(true);
    });
    axum::serve(listener, app).await?;
    Ok(())
}

async fn publish(
    Query(Publish { count }): Query<Publish>,
    State(io): State<SocketIo>,
    body: String,
) -> Result<StatusCode, StatusCode> {
    for _ in 0..count {
        io.emit("message", &body).await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    }
    Ok(StatusCode::NO_CONTENT)
}
