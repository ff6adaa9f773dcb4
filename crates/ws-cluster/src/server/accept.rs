//! Serves the sockets of a listener: HTTP on each of them, until its end or its upgrade.

use std::{convert::Infallible, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full as Body;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};

use super::{
    Cause, RemoteAddress, Server,
    http::answer,
    routes,
    serve::Encryption,
    socket::{Full, HttpStream, Slot, is_local},
    upgrade,
};
use crate::{ServeError, auth::Encrypted, clock::now, stats::HandshakeOutcome};

/// An accepted socket.
struct Accepted {
    stream: TcpStream,
    place: Slot,
    /// The limit that the socket exceeds.
    full: Option<Full>,
    peer: RemoteAddress,
    encryption: Encryption,
}

/// Pause after a failed accept. The usual cause is a lack of file descriptors, which ends only when other sockets
/// close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Time for the head of a request on a socket beyond a limit, and for reading the answer.
const BEYOND_TIMEOUT: Duration = Duration::from_secs(2);

impl Server {
    /// Accepts on a listener until `shutdown` resolves, the node cannot go on, or the server shuts down for any other
    /// reason. Then waits for the shutdown.
    pub(super) async fn accept_all(
        &self,
        listener: TcpListener,
        encryption: Encryption,
        shutdown: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        // A watch channel, because each connection reads it once, and the sender can wait until all connections have
        // dropped it.
        let (closing, _) = watch::channel(());
        let mut end = std::pin::pin!(async {
            // In this order: a failure also shuts the server down, and the caller's signal may have work of its own
            // after a request to drain.
            tokio::select! {
                biased;
                failure = self.failed() => Err(failure),
                () = shutdown => Ok(()),
                () = self.drain_requested() => Ok(()),
                () = self.shutdown_begun() => Ok(()),
            }
        });
        let outcome = loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                outcome = &mut end => break outcome,
            };
            match accepted {
                Ok((stream, peer)) => self.take_in(stream, RemoteAddress(peer), &encryption, &closing),
                Err(error) => {
                    if let Some(line) = self.0.logs.due(Cause::Accept, now()) {
                        let left_out = line.left_out;
                        tracing::error!(%error, left_out, "a connection could not be accepted");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(ACCEPT_PAUSE) => {}
                        outcome = &mut end => break outcome,
                    }
                }
            }
        };
        drop(listener);
        closing.send_replace(());
        self.shutdown().await;
        let limit = self.config().cluster.shutdown_timeout;
        if tokio::time::timeout(limit, closing.closed()).await.is_err() {
            tracing::warn!("HTTP requests are still running at the end of the shutdown");
        }
        outcome
    }

    /// Serves an accepted socket if the limits leave room for it, or closes it.
    fn take_in(&self, stream: TcpStream, peer: RemoteAddress, encryption: &Encryption, closing: &watch::Sender<()>) {
        // All clients behind a proxy come from its address.
        let ip = Some(peer.0.ip()).filter(|ip| !self.live().trusted_proxies.contains(*ip));
        let (place, full) = self.0.gate.admit(ip, self.hub().admission().open());
        if let Some(full) = full
            && let Some(line) = self.0.logs.due(Cause::Sockets(full), now())
        {
            let (left_out, why) = (line.left_out, self.too_many_sockets(full));
            tracing::warn!(peer = %peer.0, left_out, "a socket is refused: {why}");
        }
        if let Some(place) = place {
            let accepted = Accepted { stream, place, full, peer, encryption: encryption.clone() };
            tokio::spawn(self.clone().serve_connection(accepted, closing.subscribe()));
        }
    }

    fn too_many_sockets(&self, full: Full) -> String {
        let http = &self.config().http;
        match full {
            Full::Total => format!("too many connections (limit {}: http.sockets)", http.sockets),
            Full::Address => {
                format!("too many connections from this address (limit {}: http.sockets_per_ip)", http.sockets_per_ip)
            }
        }
    }

    /// Serves HTTP on one accepted socket until its end or its upgrade.
    async fn serve_connection(self, accepted: Accepted, mut closing: watch::Receiver<()>) {
        let Accepted { stream, place, full, peer, encryption } = accepted;
        // Messages are small and wanted at once. A failure costs latency only.
        let _ = stream.set_nodelay(true);
        let is_local = is_local(peer.0.ip(), stream.local_addr().ok().map(|address| address.ip()));
        let config = self.config();
        let (head_size, head, write) = match full {
            None => (config.http.request_head_size, config.connection.handshake_timeout, config.http.write_timeout),
            Some(_) => (config.http.request_head_size, BEYOND_TIMEOUT, BEYOND_TIMEOUT),
        };
        let begun = tokio::select! {
            begun = encryption.begin(stream, head) => begun,
            _ = closing.changed() => return,
        };
        let socket = match begun {
            Ok(Some(socket)) => socket,
            Ok(None) => return,
            Err(error) => {
                self.count(HandshakeOutcome::Tls);
                if let Some(line) = self.0.logs.due(Cause::Tls, now()) {
                    let left_out = line.left_out;
                    tracing::warn!(peer = %peer.0, %error, left_out, "a TLS handshake failed");
                }
                return;
            }
        };
        let lacks_tls = encryption.is_on() && !socket.is_encrypted() && !is_local;
        let encrypted = socket.is_encrypted().then_some(Encrypted);
        let service = service_fn(move |mut request: Request<Incoming>| {
            let server = self.clone();
            request.extensions_mut().insert(peer);
            encrypted.map(|encrypted| request.extensions_mut().insert(encrypted));
            async move {
                Ok::<_, Infallible>(match lacks_tls && !server.is_link(request.uri().path()) {
                    true => answer(StatusCode::BAD_REQUEST, "this port takes TLS: use https:// or wss://"),
                    false => server.answer(request, full).await,
                })
            }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(head)
            .max_header_size(head_size)
            // The minimum that hyper accepts.
            .max_buf_size(head_size.max(8 * 1024))
            .keep_alive(full.is_none())
            .serve_connection(TokioIo::new(HttpStream::new(socket, place, write)), service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let served = tokio::select! {
            served = connection.as_mut() => served,
            // After the shutdown begins, the connection takes no further request.
            _ = closing.changed() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = served {
            tracing::debug!(%error, "an HTTP connection failed");
        }
    }

    /// Answers a request on a socket of `serve`. On a socket beyond the limits, it answers only requests that the node
    /// needs.
    async fn answer(&self, request: Request<Incoming>, full: Option<Full>) -> Response<Body<Bytes>> {
        match full {
            Some(Full::Address) => {
                return answer(StatusCode::TOO_MANY_REQUESTS, &self.too_many_sockets(Full::Address));
            }
            Some(Full::Total) if !self.own_path(request.uri().path()).is_some_and(routes::is_vital) => {
                return upgrade::busy(&self.too_many_sockets(Full::Total));
            }
            _ => {}
        }
        let mut response = self.handle(request).await;
        let upgraded = response.status() == StatusCode::SWITCHING_PROTOCOLS;
        if !upgraded && self.0.gate.is_crowded(self.hub().admission().open()) {
            // Others need the socket more than a next request that may never come.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}
