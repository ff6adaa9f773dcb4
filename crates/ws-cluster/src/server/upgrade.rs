//! Lets clients in: refusals before the upgrade, the client's identity, and the socket after the upgrade.

use std::{net::IpAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header, request::Parts};
use http_body_util::Full;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::{rt::TokioIo, server::conn::auto};
use tokio::net::TcpStream;

use super::{
    Cause, Server,
    http::answer,
    routes::remote_address,
    socket::{HttpStream, Socket},
    websocket::{deflate, protocol, switching},
};
use crate::{
    CloseCode,
    auth::{AuthenticationError, Handshake, Identity, InquiryReason},
    clock::now,
    connection::{self, ATTEMPTS, Accepted, Application},
    hub::{Client, Membership, Refusal, Stale, resume::ResumeRequest},
    log_limit::Excerpt,
    stats::HandshakeOutcome,
    ws::deflate::Deflate,
};

/// The header of a test connection.
const TEST: &str = "ws-cluster-test";

impl Server {
    /// Answers a client's upgrade request in any application on hyper 1, including axum 0.8. Serves the client when the
    /// application has sent the answer.
    ///
    /// The client's address comes from the request's extensions: [`RemoteAddress`](crate::RemoteAddress), or
    /// `ConnectInfo<SocketAddr>` with the feature `axum`. Without an address, the limits for each address do not apply,
    /// and `X-Forwarded-For` is ignored.
    ///
    /// Of the subprotocols that the client offers, the server selects `ws-cluster.v1`, or else the first that does not
    /// begin with `bearer.`. A subprotocol `bearer.TOKEN` carries a [token](crate::Handshake::bearer_token).
    ///
    /// With the feature `deflate`, the server accepts the extension `permessage-deflate` if the client offers it,
    /// unless [`ConnectionConfig::compression`](crate::ConnectionConfig::compression) is off.
    ///
    /// The server refuses a request with 400, 405 or 426 if it is not a WebSocket handshake, with 403 if its `Origin`
    /// may not connect, with 429 if there are too many connections from its address, with 431 if its head is too large,
    /// and with 503 if the node has too many connections or is not ready, or if the authenticator cannot answer. A
    /// client without a valid session becomes a guest. If guests are not welcome, it is told so on the WebSocket,
    /// because a browser does not show the status of a refused upgrade.
    ///
    /// A program that watches the node can send the header `ws-cluster-test`, with any value. Its connection is
    /// upgraded within the same limits and closed at once, and neither the authenticator nor a handler learns of it. So
    /// a database or a site that hangs does not make the node look dead.
    pub async fn upgrade<B>(&self, mut request: Request<B>) -> Response<Full<Bytes>> {
        let mut switching = match switching(&request) {
            Ok(switching) => switching,
            // A browser does not show the answer to an upgrade. So the browser client asks for `Retry-After` with a
            // plain request.
            Err(refusal) => match self.hub().admission().rate.wait(now()) {
                Some(wait) if refusal.status() == StatusCode::UPGRADE_REQUIRED => return too_fast(wait),
                _ => {
                    self.count(HandshakeOutcome::Malformed);
                    return *refusal;
                }
            },
        };
        if let Some(protocol) = protocol(request.headers()) {
            switching.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
        }
        let config = &self.config().connection;
        let negotiated = config.compression.then(|| deflate(request.headers(), config.compression_min_size)).flatten();
        let deflate = negotiated.map(|(deflate, agreed)| {
            switching.headers_mut().insert(header::SEC_WEBSOCKET_EXTENSIONS, agreed);
            deflate
        });
        if !self.status().ready {
            self.count(HandshakeOutcome::NotReady);
            return busy("this node is not ready");
        }
        let upgrade = hyper::upgrade::on(&mut request);
        let (parts, _) = request.into_parts();
        match self.accept(&parts, deflate).await {
            Ok(accepted) => {
                self.count(HandshakeOutcome::Accepted);
                tokio::spawn(serve_upgraded(self.clone(), accepted, upgrade));
                switching
            }
            Err(refusal) => *refusal,
        }
    }

    pub(super) fn count(&self, outcome: HandshakeOutcome) {
        self.hub().stats().metered.note(|counts| counts.handshakes[outcome as usize].add(1));
    }

    /// Returns the answer to a client beyond a limit.
    fn refuse(&self, refusal: Refusal, ip: Option<IpAddr>) -> Response<Full<Bytes>> {
        let limits = self.live();
        self.count(match refusal {
            Refusal::Address => HandshakeOutcome::Address,
            Refusal::Node => HandshakeOutcome::Node,
            Refusal::ShuttingDown => HandshakeOutcome::NotReady,
        });
        let why = match refusal {
            Refusal::Address => {
                let limit = limits.connections_per_ip;
                format!("too many connections from this address (limit {limit}: connections_per_ip)")
            }
            Refusal::Node => format!("too many connections (limit {}: connections)", limits.connections),
            Refusal::ShuttingDown => return busy("this node shuts down"),
        };
        if let Some(line) = self.0.logs.due(Cause::Connections(refusal), now()) {
            let address = ip.map(tracing::field::display);
            tracing::warn!(address, left_out = line.left_out, "a client is refused: {why}");
        }
        match refusal {
            Refusal::Address => answer(StatusCode::TOO_MANY_REQUESTS, &why),
            _ => busy(&why),
        }
    }

    /// Accepts a client, or returns the refusal.
    async fn accept(&self, parts: &Parts, deflate: Option<Deflate>) -> Result<Accepted, Box<Response<Full<Bytes>>>> {
        let limit = self.config().http.request_head_size;
        if head_size(parts) > limit {
            self.count(HandshakeOutcome::Malformed);
            let why = format!("the head of the request is too large (limit {limit} bytes: http.request_head_size)");
            return Err(answer(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &why).into());
        }
        let live = self.live();
        let mut handshake = Handshake::new(parts, remote_address(&parts.extensions), &live.trusted_proxies);
        if self.authenticator().uses_cookies() && !handshake.may_connect(&live.allowed_origins, live.own_origin) {
            if let Some(line) = self.0.logs.due(Cause::Origin, now()) {
                tracing::warn!(
                    origin = handshake.origin().map(|origin| tracing::field::debug(Excerpt(origin))),
                    host = handshake.host().map(|host| tracing::field::debug(Excerpt(host))),
                    scheme = handshake.scheme(),
                    left_out = line.left_out,
                    "a page of a foreign origin is refused"
                );
            }
            self.count(HandshakeOutcome::Origin);
            return Err(answer(StatusCode::FORBIDDEN, "this origin may not connect").into());
        }
        let limits = &self.config().connection;
        let resume = ResumeRequest::take(&mut handshake);
        let slot = self
            .hub()
            .admission()
            .admit(handshake.remote_ip(), live.connections_per_ip, live.connections)
            .map_err(|refusal| self.refuse(refusal, handshake.remote_ip()))?;
        if let Err(wait) = self.hub().admission().rate.admit(live.accept_rate, now()) {
            if let Some(line) = self.0.logs.due(Cause::AcceptRate, now()) {
                let (limit, left_out) = (live.accept_rate, line.left_out);
                tracing::warn!(limit, left_out, "more clients come per second than this node takes (accept_rate)");
            }
            self.count(HandshakeOutcome::Rate);
            return Err(too_fast(wait).into());
        }
        tracing::debug!(address = ?handshake.remote_ip(), "a client's handshake begins");
        let id = self.hub().next_id();
        let is_test = handshake.header(TEST).is_some();
        let mut answer = match is_test {
            true => connection::Answer::refusal(self.context()),
            false => connection::ask(self.context(), &handshake, id, InquiryReason::Handshake).await,
        };
        handshake.keep(&self.authenticator().headers());
        let client = Arc::new(Client::new(id, handshake, limits.queue_size, resume.is_some()).with_deflate(deflate));
        if resume.is_none() {
            client.set_dialect(self.0.dialect);
        }
        let mut slot = Some(slot);
        let mut attempt = 1;
        let (handle, validity, may_join, refused) = loop {
            let (identity, refused) = match answer.identity {
                Ok(identity) => (identity.unwrap_or_default(), false),
                // A browser does not show the status of a refused upgrade, so the client is told on the WebSocket.
                Err(AuthenticationError::Refused) => (Identity::default(), true),
                Err(_) => {
                    self.count(HandshakeOutcome::LookUp);
                    return Err(busy("sessions cannot be looked up").into());
                }
            };
            let validity = identity.validity();
            let may_join = !refused && (identity.user.is_some() || self.context().guests);
            // The hub knows the client before there is a socket, so that no command to close a session is missed in
            // between.
            match self.hub().arrive(client.clone(), Membership::of(identity), &mut slot, answer.asked_at) {
                Ok(handle) => break (handle, validity, may_join, refused),
                // An answer from before a close or a refresh does not count.
                Err(Stale) if attempt < ATTEMPTS => {
                    attempt += 1;
                    let asking = connection::ask(self.context(), &client.handshake, id, InquiryReason::Handshake);
                    answer = asking.await;
                }
                Err(Stale) => {
                    self.count(HandshakeOutcome::LookUp);
                    return Err(busy("sessions change too fast to be looked up").into());
                }
            }
        };
        let resume = match resume {
            // The client gets no messages before the application agrees.
            None if may_join && connection::asks_application(self, &client) => {
                Some(ResumeRequest::untracked(self.hub().position()))
            }
            None if may_join => {
                self.hub().begin_delivery(&client);
                None
            }
            resume => resume,
        };
        if is_test {
            client.queue.close(CloseCode::Normal, "a test connection");
        }
        if !self.status().ready {
            // The node is no longer ready and has closed its clients. This client was not among them.
            client.queue.close(CloseCode::TryAgainLater, "this node is not ready");
        }
        Ok(Accepted { handle, validity, may_join, refused, asked: resume })
    }
}

/// Returns the approximate size of a request's head, in bytes.
fn head_size(parts: &Parts) -> usize {
    let headers = parts.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    let target = parts.uri.path_and_query().map_or(0, |target| target.as_str().len());
    target + headers.sum::<usize>()
}

/// Returns a 503 with `Retry-After`.
pub(super) fn busy(why: &str) -> Response<Full<Bytes>> {
    let mut response = answer(StatusCode::SERVICE_UNAVAILABLE, why);
    response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from_static("1"));
    response
}

/// Returns a 503 for a client that should wait this long before it connects again.
fn too_fast(wait: Duration) -> Response<Full<Bytes>> {
    let mut response = answer(StatusCode::SERVICE_UNAVAILABLE, "too many clients come at once: come again later");
    // Whole seconds, at least one. The clients add some jitter.
    let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
    response.headers_mut().insert(header::RETRY_AFTER, http::HeaderValue::from(seconds.max(1)));
    response
}

/// Takes the socket out of the HTTP server and serves the client. The socket is a TCP socket under this crate's `serve`
/// and `axum::serve`, and may be any stream under other servers.
async fn serve_upgraded(server: Server, accepted: Accepted, upgrade: OnUpgrade) {
    let upgraded = match upgrade.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "an upgrade did not come about"),
    };
    // A separate task frees the memory of the upgrade.
    let runtime = server.context().runtime.clone();
    match socket(upgraded) {
        Ok((Socket::Tcp(stream), leftover)) => {
            runtime.spawn(connection::serve_tcp(server, accepted, stream, &leftover));
        }
        #[cfg(feature = "tls")]
        Ok((Socket::Tls(stream), leftover)) => {
            runtime.spawn(connection::serve(server, accepted, stream, &leftover));
        }
        Err(upgraded) => {
            runtime.spawn(connection::serve(server, accepted, TokioIo::new(upgraded), &[]));
        }
    }
}

/// Returns the socket under an upgrade, and the bytes that were read from it already. Turns off the delay of a TCP
/// socket, which `axum::serve` leaves on.
pub(super) fn socket(upgraded: Upgraded) -> Result<(Socket, Bytes), Upgraded> {
    let (stream, leftover) = match upgraded.downcast::<TokioIo<HttpStream>>() {
        Ok(parts) => match parts.io.into_inner().into_socket() {
            // `serve` has turned off its delay.
            Some(socket) => return Ok((socket, parts.read_buf)),
            None => unreachable!("an upgrade is the only one that takes the socket out"),
        },
        Err(upgraded) => match upgraded.downcast::<TokioIo<TcpStream>>() {
            Ok(parts) => (parts.io.into_inner(), parts.read_buf),
            Err(upgraded) => auto::upgrade::downcast::<TokioIo<TcpStream>>(upgraded)
                .map(|parts| (parts.io.into_inner(), parts.read_buf))?,
        },
    };
    // Messages are small and wanted at once. A failure costs latency only.
    let _ = stream.set_nodelay(true);
    Ok((Socket::Tcp(stream), leftover))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use hyper::{body::Incoming, service::service_fn};
    use hyper_util::rt::TokioExecutor;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::mpsc,
    };

    use super::*;

    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: site\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

    /// Returns true if Nagle's algorithm is off on the socket after an upgrade, under hyper or under hyper-util's
    /// server, which `axum::serve` uses.
    async fn has_no_delay(by_axum: bool) -> bool {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let (accepted, _) = listener.accept().await.unwrap();
        assert!(!accepted.nodelay().unwrap());
        let (tell, mut told) = mpsc::unbounded_channel();
        let service = service_fn(move |mut request: Request<Incoming>| {
            let (upgrade, tell) = (hyper::upgrade::on(&mut request), tell.clone());
            tokio::spawn(async move {
                let Ok((Socket::Tcp(stream), _)) = socket(upgrade.await.unwrap()) else { panic!("no TCP socket") };
                tell.send(stream.nodelay().unwrap()).unwrap();
            });
            let response = Response::builder()
                .status(StatusCode::SWITCHING_PROTOCOLS)
                .header(header::CONNECTION, "upgrade")
                .header(header::UPGRADE, "websocket");
            async move { Ok::<_, Infallible>(response.body(Full::<Bytes>::default()).unwrap()) }
        });
        let io = TokioIo::new(accepted);
        tokio::spawn(async move {
            if by_axum {
                let _ = auto::Builder::new(TokioExecutor::new()).serve_connection_with_upgrades(io, service).await;
            } else {
                let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).with_upgrades().await;
            }
        });
        client.write_all(REQUEST).await.unwrap();
        client.read_u8().await.unwrap();
        told.recv().await.unwrap()
    }

    #[tokio::test]
    async fn an_upgraded_socket_has_no_delay_whoever_accepted_it() {
        assert!(has_no_delay(false).await);
        assert!(has_no_delay(true).await);
    }
}
