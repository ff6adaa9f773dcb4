//! A server behind each kind of stream. The fan-out writes to a socket itself; to the others, only the connection's task
//! writes.

use std::{
    convert::Infallible,
    future::pending,
    io,
    net::SocketAddr,
    pin::Pin,
    task::{Context, Poll, ready},
};

use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf, duplex},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::client::TlsStream;
use ws_cluster::{Server, TlsCertificate};

use crate::tls::Certificate;

/// The kinds of streams.
pub const STREAMS: [&str; 3] = ["a socket", "a pipe", "TLS"];

/// TLS whose client shuts its side down without saying so in TLS (`close_notify`), as several clients do.
pub const UNANNOUNCED: &str = "TLS without its end";

/// Capacity of the stream that is no socket, in either direction. It is small, so that most writes are short.
const PIPE: usize = 4 * 1024;

/// A client's end of a stream.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A server and the addresses at which it is served.
pub struct Served {
    /// The server.
    pub server: Server,
    /// The address of its TCP socket.
    pub address: SocketAddr,
    /// The address at which it speaks TLS, with this certificate.
    tls: SocketAddr,
    certificate: Certificate,
}

impl Served {
    /// Serves a server over TCP and over TLS.
    pub async fn start(server: Server) -> Self {
        let (listener, address) = listen().await;
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(pending()).await });

        let (certificate, files) = (Certificate::new(), tempfile::tempdir().expect("a directory"));
        let (chain, key) = (files.path().join("cert.pem"), files.path().join("key.pem"));
        std::fs::write(&chain, &certificate.pem).expect("written");
        std::fs::write(&key, &certificate.key).expect("written");
        let served = TlsCertificate::from_pem_files(&chain, &key).expect("a certificate with its key");
        let (listener, tls) = listen().await;
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener).with_tls(served).await });
        Self { server, address, tls, certificate }
    }

    /// Opens a stream of a kind.
    pub async fn stream(&self, over: &str) -> Box<dyn Stream> {
        match over {
            "a socket" => {
                let stream = TcpStream::connect(self.address).await.expect("a connection");
                stream.set_nodelay(true).expect("a socket option");
                Box::new(stream)
            }
            "TLS" => Box::new(self.tls().await),
            UNANNOUNCED => Box::new(Unannounced(self.tls().await)),
            _ => self.pipe(),
        }
    }

    async fn tls(&self) -> TlsStream<TcpStream> {
        self.certificate.connect(self.tls, &[]).await.expect("a connection")
    }

    /// Opens a stream under an application's own HTTP server.
    fn pipe(&self) -> Box<dyn Stream> {
        let (client, stream) = duplex(PIPE);
        let server = self.server.clone();
        let service = service_fn(move |request: http::Request<Incoming>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.handle(request).await) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades());
        Box::new(client)
    }
}

/// A TLS connection whose shutdown is that of the TCP socket beneath.
struct Unannounced(TlsStream<TcpStream>);

impl AsyncRead for Unannounced {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Unannounced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.0).poll_flush(cx))?;
        Pin::new(self.0.get_mut().0).poll_shutdown(cx)
    }
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("an address");
    (listener, address)
}
