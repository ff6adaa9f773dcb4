//! Serving a listener: what `Server::serve` returns, and how it ends.

use std::{
    future::{IntoFuture, Pending, pending},
    pin::Pin,
};

use tokio::net::TcpListener;

use super::Server;
use crate::error::ServeError;

/// A server on a listener. Await it to serve; it ends if the node cannot go on.
///
/// Made by [`Server::serve`].
#[must_use = "a server serves only while this is awaited"]
pub struct Serve<F = Pending<()>> {
    server: Server,
    listener: TcpListener,
    signal: F,
}

impl Serve {
    pub(super) fn new(server: Server, listener: TcpListener) -> Self {
        Self { server, listener, signal: pending() }
    }

    /// Stops accepting when `signal` resolves, and then [shuts the server down](Server::shutdown).
    ///
    /// A server can serve several listeners at once; the first whose signal resolves shuts all of it down.
    /// [`shutdown_signal`] is a signal for most programs.
    pub fn with_graceful_shutdown<F: Future<Output = ()> + Send + 'static>(self, signal: F) -> Serve<F> {
        Serve { server: self.server, listener: self.listener, signal }
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
        Box::pin(async move { self.server.accept_all(self.listener, self.signal).await })
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
