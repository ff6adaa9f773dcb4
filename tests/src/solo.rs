//! One server on a port of its own, for tests that need no cluster, and requests to it as bytes.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};
use ws_cluster::{Server, ServerBuilder};

use crate::client::{Client, soon};

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
        let size = body.len().to_string();
        let mut all = vec![("connection", "close"), ("content-length", &size)];
        all.extend(headers);
        let mut stream = self.head(path, &all).await;
        soon(stream.write_all(body)).await.expect("the body is taken");
        answer(stream).await
    }

    /// Begins a `POST` by writing its head. The caller writes the body.
    pub async fn head(&self, path: &str, headers: &[(&str, &str)]) -> TcpStream {
        let mut head = format!("POST {path} HTTP/1.1\r\nhost: {}\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        let mut stream = TcpStream::connect(self.address).await.expect("it listens");
        stream.write_all(head.as_bytes()).await.expect("the head is taken");
        stream
    }
}

/// Reads the rest of a server's answer. Returns the status and the text.
///
/// # Panics
/// Panics if the server does not answer.
pub async fn answer(mut stream: TcpStream) -> (u16, String) {
    let mut answer = String::new();
    soon(stream.read_to_string(&mut answer)).await.expect("an answer");
    let status = answer.get(9..12).and_then(|status| status.parse().ok()).expect("a status line");
    let (_, text) = answer.split_once("\r\n\r\n").expect("an end of the head");
    (status, text.to_owned())
}
