//! Requests to the site's own HTTP servers. Connections are kept and used again. Redirects are not followed, since they
//! would lead a server inside of the site's network to wherever an answer says.

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};

/// Time after which a connection that is not used is closed. Servers close theirs after two seconds and more, and a
/// request that is sent just then is lost.
const IDLE_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// A client for `http:` and `https:` URLs, with the system's certificates. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct HttpClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

/// Why there is no answer that can be used. The text is the reason, for the log.
#[derive(Debug)]
pub(crate) enum HttpError {
    /// There is no connection, so nothing was sent.
    Unreachable(String),
    /// The connection was lost before an answer came. The request may have been carried out.
    Lost(String),
    /// What came is no answer of HTTP, ends too early, or is too large.
    Malformed(String),
}

impl HttpClient {
    /// # Errors
    /// The system has no certificates.
    pub(crate) fn new() -> std::io::Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        let connector = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider)?;
        let connector = connector.https_or_http().enable_http1().build();
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_idle_timeout(IDLE_TIMEOUT).pool_timer(TokioTimer::new());
        Ok(Self(builder.build(connector)))
    }

    /// Returns the body of the answer 200 to a GET, of at most `limit` bytes. The caller limits the time.
    ///
    /// # Errors
    /// The reason, for the log.
    #[cfg(feature = "jwt")]
    pub(crate) async fn get(&self, url: &str, limit: usize) -> Result<Bytes, String> {
        let request = Request::get(url).body(Full::default()).map_err(|error| error.to_string())?;
        let answer = self.send(request, limit).await.map_err(|error| error.to_string())?;
        match answer.status() {
            http::StatusCode::OK => Ok(answer.into_body()),
            status => Err(format!("the answer is {status}")),
        }
    }

    /// Sends a request, and returns the answer. Only the answer 200 has its body, of at most `limit` bytes. The caller
    /// limits the time.
    ///
    /// A request is sent again only if the connection ended before anything of it was written.
    pub(crate) async fn send(&self, request: Request<Full<Bytes>>, limit: usize) -> Result<Response<Bytes>, HttpError> {
        let answer = self.0.request(request).await.map_err(|error| match error.is_connect() {
            true => HttpError::Unreachable(reasons(&error)),
            false => lost_or_malformed(&error),
        })?;
        read(answer, limit).await
    }
}

/// Sends a request on a Unix socket, on a connection of its own. Like [`HttpClient::send`].
#[cfg(all(unix, feature = "backend"))]
pub(crate) async fn send_over_unix(
    socket: &std::path::Path,
    request: Request<Full<Bytes>>,
    limit: usize,
) -> Result<Response<Bytes>, HttpError> {
    let stream = tokio::net::UnixStream::connect(socket).await;
    let stream = stream.map_err(|error| HttpError::Unreachable(format!("{}: {error}", socket.display())))?;
    let io = hyper_util::rt::TokioIo::new(stream);
    let handshake = hyper::client::conn::http1::handshake(io).await;
    let (mut sender, connection) = handshake.map_err(|error| HttpError::Unreachable(reasons(&error)))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|error| lost_or_malformed(&error))?;
        read(answer, limit).await
    };
    // The connection is driven here, so that it ends with the request if the caller gives it up.
    let mut exchange = std::pin::pin!(exchange);
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        // The bytes read before the error are kept.
        _ = connection => exchange.await,
    }
}

async fn read(answer: Response<Incoming>, limit: usize) -> Result<Response<Bytes>, HttpError> {
    let (parts, body) = answer.into_parts();
    if parts.status != http::StatusCode::OK {
        return Ok(Response::from_parts(parts, Bytes::new()));
    }
    let body = Limited::new(body, limit).collect().await.map_err(|error| {
        HttpError::Malformed(match error.is::<LengthLimitError>() {
            true => format!("the answer is larger than {limit} bytes"),
            false => format!("the answer ends too early or is malformed: {}", reasons(&*error)),
        })
    })?;
    Ok(Response::from_parts(parts, body.to_bytes()))
}

/// Tells a connection that ended without an answer from an answer that cannot be read.
fn lost_or_malformed(error: &(dyn std::error::Error + 'static)) -> HttpError {
    let mut next = Some(error);
    while let Some(cause) = next {
        if cause.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_parse) {
            return HttpError::Malformed(format!("the answer is no HTTP: {}", reasons(error)));
        }
        next = cause.source();
    }
    HttpError::Lost(reasons(error))
}

impl std::fmt::Display for HttpError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (Self::Unreachable(why) | Self::Lost(why) | Self::Malformed(why)) = self;
        f.write_str(why)
    }
}

/// Returns an error with its causes, which say more than the error itself.
fn reasons(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
