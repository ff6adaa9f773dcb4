//! One server on a port of its own, for tests that need no cluster, and requests to it as bytes.

use std::net::SocketAddr;

use tokio::{
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use ws_cluster::{Server, ServerBuilder};

use crate::{
    client::{Client, soon},
    http_client, openapi,
};

/// A server that runs until it is dropped.
pub struct Solo {
    /// The server itself.
    pub server: Server,
    /// The address for clients.
    pub address: SocketAddr,
    _stop: oneshot::Sender<()>,
}

impl Solo {
    /// Starts a server, and waits until it takes clients.
    pub async fn start(builder: ServerBuilder) -> Self {
        let server = builder.start().await.expect("settings that work");
        server.wait_ready().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let (stop, stopped) = oneshot::channel();
        let serving = server.clone();
        tokio::spawn(
            async move { serving.serve(listener).with_graceful_shutdown(async { drop(stopped.await) }).await },
        );
        Self { server, address, _stop: stop }
    }

    /// Connects a client without a session.
    pub async fn guest(&self) -> Client {
        Client::connect(self.address, &[]).await
    }

    /// Posts bytes like a client that reads the answer after all bytes are written. Returns the status and the text.
    ///
    /// # Panics
    /// Panics if the server does not take all bytes, or does not answer.
    pub async fn post(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        let answer = soon(http_client::request(self.address, "POST", path, headers, body)).await.expect("an answer");
        openapi::check("POST", path, answer.status.as_u16());
        (answer.status.as_u16(), answer.text)
    }

    /// Begins a `POST` by writing its head. The caller writes the body.
    pub async fn head(&self, path: &str, headers: &[(&str, &str)]) -> TcpStream {
        http_client::begin(self.address, "POST", path, headers).await.expect("the head is taken")
    }
}
