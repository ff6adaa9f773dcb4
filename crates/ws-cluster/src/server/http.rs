//! Publishing, closing and refreshing over HTTP, for the site's own pages.

use bytes::Bytes;
use hmac::{Hmac, KeyInit, Mac};
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Body;
use serde::{Deserialize, de::DeserializeOwned};
use sha2::Sha256;

use super::Server;
use crate::publish::PUBLISH_SIZE;
use crate::{Close, Details, PublishError, Target};

/// Largest body: a publish of the full size, each byte of it escaped as `\u00XX`, would be more, but those are
/// hardly texts.
const BODY_SIZE: usize = 2 * PUBLISH_SIZE;

/// The key that publishing over HTTP asks for, kept as a keyed hash: comparing hashes under a random key takes the
/// same time whatever was presented. Not in `Debug`.
pub(super) struct PublishKey {
    secret: [u8; 32],
    hash: [u8; 32],
}

impl PublishKey {
    /// `secret` is random.
    pub(super) fn new(key: &str, secret: [u8; 32]) -> Self {
        Self { secret, hash: hash(&secret, key).finalize().into_bytes().into() }
    }

    fn matches(&self, presented: &str) -> bool {
        hash(&self.secret, presented).verify_slice(&self.hash).is_ok()
    }
}

fn hash(secret: &[u8; 32], text: &str) -> Hmac<Sha256> {
    // HMAC takes keys of any length.
    let mut hash = Hmac::<Sha256>::new_from_slice(secret).expect("a key of 32 bytes");
    hash.update(text.as_bytes());
    hash
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Publish {
    action: String,
    #[serde(default)]
    details: Details,
    to: String,
    key: Option<String>,
}

/// Whose connections to close, and how. Either `session` or `user`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CloseOrder {
    session: Option<Id>,
    user: Option<Id>,
    except_session: Option<Id>,
    #[serde(default)]
    reconnect: bool,
}

/// About whose connections to ask again. Either `session` or `user`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RefreshOrder {
    session: Option<Id>,
    user: Option<Id>,
}

impl CloseOrder {
    fn close(self) -> Result<Close, &'static str> {
        let close = match (self.session, self.user, self.except_session) {
            (Some(_), None, Some(_)) => return Err("except_session goes with user: a session has no other one"),
            (Some(id), None, None) => Close::session(id.text()),
            (None, Some(id), None) => Close::user(id.text()),
            (None, Some(id), Some(except)) => Close::user(id.text()).except_session(except.text()),
            (None, None, _) | (Some(_), Some(_), _) => return Err(WHOSE),
        };
        Ok(if self.reconnect { close.reconnect() } else { close })
    }
}

/// An order names nobody, or both a session and a user.
const WHOSE: &str = r#"say whose connections: {"session": ID} or {"user": ID}"#;

/// An id is text; a number means its decimal text.
#[derive(Deserialize)]
#[serde(untagged)]
enum Id {
    Text(String),
    Number(serde_json::Number),
}

impl Id {
    fn text(self) -> String {
        match self {
            Self::Text(text) => text,
            Self::Number(number) => number.to_string(),
        }
    }
}

type Refusal = Box<Response<Full<Bytes>>>;

impl Server {
    pub(super) async fn publish_request<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let publish: Publish = match self.order(request).await {
            Ok(publish) => publish,
            Err(refusal) => return *refusal,
        };
        match publish.to.parse::<Target>() {
            Ok(target) => {
                let Publish { action, details, key, .. } = publish;
                outcome(self.publish_message(&action, details, target, key.as_deref()).await)
            }
            Err(error) => answer(StatusCode::BAD_REQUEST, &error.to_string()),
        }
    }

    pub(super) async fn close_request<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let order: CloseOrder = match self.order(request).await {
            Ok(order) => order,
            Err(refusal) => return *refusal,
        };
        match order.close() {
            Ok(close) => outcome(self.close(close).await),
            Err(why) => answer(StatusCode::BAD_REQUEST, why),
        }
    }

    pub(super) async fn refresh_request<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.order(request).await {
            Ok(RefreshOrder { session: Some(id), user: None }) => outcome(self.refresh_session(&id.text()).await),
            Ok(RefreshOrder { session: None, user: Some(id) }) => outcome(self.refresh_user(&id.text()).await),
            Ok(_) => answer(StatusCode::BAD_REQUEST, WHOSE),
            Err(refusal) => *refusal,
        }
    }

    /// The JSON of a `POST` with the right key.
    async fn order<T, B>(&self, request: Request<B>) -> Result<T, Refusal>
    where
        T: DeserializeOwned,
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        if request.method() != Method::POST {
            let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "only POST");
            response.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static("POST"));
            return Err(response.into());
        }
        let presented = request
            .headers()
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim());
        let known = self.0.publish_key.as_ref().zip(presented).is_some_and(|(key, presented)| key.matches(presented));
        if !known {
            let mut response = answer(StatusCode::UNAUTHORIZED, "the publish key is missing or wrong");
            response.headers_mut().insert(header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
            return Err(response.into());
        }
        let body = std::pin::pin!(request.into_body());
        let body = Limited::new(body, BODY_SIZE).collect();
        let body = match tokio::time::timeout(self.config().connection.handshake_timeout, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(error)) if error.is::<LengthLimitError>() => {
                return Err(answer(StatusCode::PAYLOAD_TOO_LARGE, "more than 1 MiB to publish").into());
            }
            Ok(Err(_)) => return Err(answer(StatusCode::BAD_REQUEST, "the body broke off").into()),
            Err(_) => return Err(answer(StatusCode::REQUEST_TIMEOUT, "the body did not come in time").into()),
        };
        serde_json::from_slice(&body).map_err(|error| answer(StatusCode::BAD_REQUEST, &error.to_string()).into())
    }
}

fn outcome(published: Result<(), PublishError>) -> Response<Full<Bytes>> {
    match published {
        Ok(()) => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Err(error) => {
            let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            answer(status, &error.to_string())
        }
    }
}

/// A line of text.
pub(super) fn answer(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(format!("{text}\n").into()));
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
