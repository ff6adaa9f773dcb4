//! Mounted in an axum application that has routes of its own, one of which publishes.
//!
//! ```text
//! cargo run -p examples --bin axum
//! ```
//!
//! Open http://127.0.0.1:8080/ in a browser or several, then run
//!
//! ```text
//! curl -d "It works" http://127.0.0.1:8080/news
//! ```
//!
//! and see the news appear on every page.

use std::{error::Error, net::SocketAddr};

use axum::{
    Router,
    extract::State,
    http::StatusCode,
    response::Html,
    routing::{get, post},
};
use tokio::net::TcpListener;
use ws_cluster::{MemoryPool, Message, PublishError, Server, shutdown_signal};

const PAGE: &str = r#"<!doctype html>
<title>News</title>
<h1>News</h1>
<script src="/ws-cluster.js"></script>
<script>
  new WsCluster().on("news", (text) => document.body.append(text, document.createElement("br")));
</script>
"#;

async fn publish_news(State(server): State<Server>, text: String) -> Result<&'static str, (StatusCode, String)> {
    let refused = |error: PublishError| {
        let status = StatusCode::from_u16(error.status_code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, format!("{error}\n"))
    };
    let message = Message::new("news", text).map_err(refused)?;
    server.publish(message).await.map_err(refused)?;
    Ok("accepted\n")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    println!("http://{}", listener.local_addr()?);

    let server = Server::builder(MemoryPool::default()).start().await?;
    let app = Router::new()
        .route("/", get(Html(PAGE)))
        .route("/news", post(publish_news))
        .with_state(server.clone())
        // Clients at `/WebSockets`, the browser client at `/ws-cluster.js`, other nodes at `/_cluster/v1`.
        .merge(server.routes());
    axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>())
        .with_graceful_shutdown(shutdown_signal())
        .await?;
    server.shutdown().await;
    Ok(())
}
