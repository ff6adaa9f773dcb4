//! Serving a listener: what `Server::serve` returns, and how it ends.

use std::{
    future::{IntoFuture, Pending, pending},
    io,
    pin::Pin,
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream};

#[cfg(feature = "tls")]
use super::TlsCertificate;
use super::{Server, socket::Socket};
use crate::error::ServeError;

/// A server on a listener. Await it to serve; it ends if the node cannot go on.
///
/// Made by [`Server::serve`].
#[must_use = "a server serves only while this is awaited"]
pub struct Serve<F = Pending<()>> {
    server: Server,
    listener: TcpListener,
    encryption: Encryption,
    signal: F,
}

/// How the sockets of a listener are encrypted.
#[derive(Clone, Debug, Default)]
pub(super) struct Encryption {
    #[cfg(feature = "tls")]
    certificate: Option<TlsCertificate>,
}

impl Encryption {
    /// Returns true if clients have to use TLS.
    pub(super) fn is_on(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.certificate.is_some();
        #[cfg(not(feature = "tls"))]
        return false;
    }

    /// Begins an accepted connection within the time limit. Returns `None` if the peer sends nothing.
    ///
    /// # Errors
    /// The TLS handshake fails.
    pub(super) async fn begin(&self, stream: TcpStream, limit: Duration) -> io::Result<Option<Socket>> {
        #[cfg(feature = "tls")]
        if let Some(certificate) = &self.certificate {
            return certificate.accept(stream, limit).await;
        }
        let _ = limit;
        Ok(Some(Socket::Tcp(stream)))
    }
}

impl Serve {
    pub(super) fn new(server: Server, listener: TcpListener) -> Self {
        Self { server, listener, encryption: Encryption::default(), signal: pending() }
    }

    /// Stops accepting when `signal` resolves, and then [shuts the server down](Server::shutdown).
    ///
    /// A server can serve several listeners at once. The first whose signal resolves shuts all of it down, and the
    /// others end with it. [`shutdown_signal`] is a signal for most programs.
    pub fn with_graceful_shutdown<F: Future<Output = ()> + Send + 'static>(self, signal: F) -> Serve<F> {
        let Self { server, listener, encryption, .. } = self;
        Serve { server, listener, encryption, signal }
    }
}

#[cfg(feature = "tls")]
impl<F> Serve<F> {
    /// Serves TLS with this certificate: clients connect with `wss://` and `https://`.
    ///
    /// Links of other nodes, and processes on this host, may still connect without TLS. Links prove the cluster's key
    /// and authenticate each packet, but only TLS hides what they carry: give nodes in foreign networks an
    /// [address](crate::ServerBuilder::address) that begins with `wss://`. All other requests without TLS get 400.
    pub fn with_tls(mut self, certificate: TlsCertificate) -> Self {
        self.encryption.certificate = Some(certificate);
        self
    }
}

impl<F> std::fmt::Debug for Serve<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Serve").field("listener", &self.listener).finish_non_exhaustive()
    }
}

impl<F: Future<Output = ()> + Send + 'static> IntoFuture for Serve<F> {
    type Output = Result<(), ServeError>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { self.server.accept_all(self.listener, self.encryption, self.signal).await })
    }
}

/// Waits for Ctrl-C or, on Unix, SIGTERM.
///
/// ```no_run
/// # async fn f(server: ws_cluster::Server) -> Result<(), Box<dyn std::error::Error>> {
/// let listener = tokio::net::TcpListener::bind("127.0.0.1:8080").await?;
/// server.serve(listener).with_graceful_shutdown(ws_cluster::shutdown_signal()).await?;
/// # Ok(()) }
/// ```
///
/// If the process cannot listen to a signal, the failure is logged and that signal is left alone.
pub async fn shutdown_signal() {
    let interrupted = async {
        if let Err(error) = tokio::signal::ctrl_c().await {
            tracing::error!(%error, "the process cannot listen to Ctrl-C");
            pending::<()>().await;
        }
    };
    #[cfg(unix)]
    let terminated = async {
        match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(error) => {
                tracing::error!(%error, "the process cannot listen to SIGTERM");
                pending::<()>().await;
            }
        }
    };
    #[cfg(not(unix))]
    let terminated = pending::<()>();
    tokio::select! {
        () = interrupted => {}
        () = terminated => {}
    }
}
