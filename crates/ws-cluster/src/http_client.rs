//! Requests to the site's own HTTP servers. Connections are kept and used again. Redirects are not followed, since they
//! would lead a server inside of the site's network to wherever an answer says.

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};

/// A client for `http:` and `https:` URLs, with the system's certificates. Cheap to clone; clones share connections.
#[derive(Clone, Debug)]
pub(crate) struct HttpClient(Client<HttpsConnector<HttpConnector>, Full<Bytes>>);

impl HttpClient {
    /// # Errors
    /// The system has no certificates.
    pub(crate) fn new() -> std::io::Result<Self> {
        let provider = rustls::crypto::ring::default_provider();
        let connector = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider)?;
        let connector = connector.https_or_http().enable_http1().build();
        Ok(Self(Client::builder(TokioExecutor::new()).build(connector)))
    }

    /// Returns the body of the answer 200 to a GET, of at most `limit` bytes. The caller limits the time.
    ///
    /// # Errors
    /// The reason, for the log.
    pub(crate) async fn get(&self, url: &str, limit: usize) -> Result<Bytes, String> {
        let request = Request::get(url).body(Full::default()).map_err(|error| error.to_string())?;
        let answer = self.0.request(request).await.map_err(|error| reasons(&error))?;
        if answer.status() != StatusCode::OK {
            return Err(format!("the answer is {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), limit).collect().await;
        Ok(body.map_err(|error| reasons(&*error))?.to_bytes())
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
