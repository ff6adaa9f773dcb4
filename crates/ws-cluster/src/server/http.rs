//! What a site posts: messages, and commands about connections.

use bytes::{Buf, BufMut, Bytes};
use hmac::{Hmac, KeyInit, Mac};
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use serde_json::{Value, json};
use sha2::Sha256;

use super::{Server, routes::POSTS};
use crate::{
    Close, PublishError,
    message::{
        command::{self, BATCH, Members, Publish, Why},
        publish::PUBLISH_SIZE,
    },
};

/// Largest body: a publish of the full size may have each byte escaped as `\u00XX`, and the rest of the command needs
/// some. It is the limit of a whole batch as well.
const BODY_SIZE: usize = 6 * PUBLISH_SIZE + 64 * 1024;

/// Most of a body that is read although it is refused. Ordinary clients write all of their request before they read the
/// answer. If the server closed during the write, the client would lose the answer.
const DISCARD_SIZE: usize = 32 * 1024 * 1024;

/// The key that publishing over HTTP asks for, kept as a keyed hash: comparing hashes under a random key takes the
/// same time whatever was presented. Not in `Debug`.
pub(super) struct PublishKey {
    secret: [u8; 32],
    hash: [u8; 32],
}

impl std::fmt::Debug for PublishKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PublishKey")
    }
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

/// Reads which connections to close, and how to close them.
fn close(body: &[u8]) -> Result<Close, Why> {
    let known = ["session", "user", "connection", "except_session", "reconnect"];
    let mut members = Members::of_body(command::value(body)?)?.known(&known)?;
    let except = members.optional("except_session").map(|session| session.id()).transpose()?;
    let reconnect = members.optional("reconnect").map(|reconnect| reconnect.flag()).transpose()?;
    let named = (members.take("session"), members.take("user"), members.take("connection"));
    let close = match (named, except) {
        ((Some(session), None, None), None) => Close::session(session.id()?),
        ((None, Some(user), None), None) => Close::user(user.id()?),
        ((None, Some(user), None), Some(except)) => Close::user(user.id()?).except_session(except),
        ((None, None, Some(connection)), None) => Close::connection(connection.connection()?),
        ((Some(_), None, None) | (None, None, Some(_)), Some(_)) => {
            return Err("`except_session` goes with `user`: a session has no other one".to_owned());
        }
        _ => {
            let text = r#"say whose connections: {"session": ID}, {"user": ID} or {"connection": ID}"#;
            return Err(text.to_owned());
        }
    };
    Ok(if reconnect == Some(true) { close.reconnect() } else { close })
}

/// Reads the connections to authenticate again.
fn refresh(body: &[u8]) -> Result<Whose, Why> {
    let mut members = Members::of_body(command::value(body)?)?.known(&["session", "user"])?;
    match (members.take("session"), members.take("user")) {
        (Some(session), None) => Ok(Whose::Session(session.id()?)),
        (None, Some(user)) => Ok(Whose::User(user.id()?)),
        _ => Err(r#"say whose connections: {"session": ID} or {"user": ID}"#.to_owned()),
    }
}

/// The session or user that a command names.
enum Whose {
    Session(String),
    User(String),
}

type Refusal = Box<Response<Full<Bytes>>>;

impl Server {
    pub(super) async fn publish_request<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.command(request, Publish::read).await {
            Ok(Publish::One(message)) => outcome(self.publish(message).await),
            Ok(Publish::Batch(messages)) => {
                let messages = messages.into_iter().map(|read| read.map_err(PublishError::invalid));
                outcomes(&self.publish_each(messages).await)
            }
            Ok(Publish::TooMany(count)) => {
                let text = format!("{count} messages in one batch: post at most {BATCH} at a time");
                answer(StatusCode::PAYLOAD_TOO_LARGE, &text)
            }
            Err(refusal) => *refusal,
        }
    }

    pub(super) async fn groups_request<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.command(request, command::groups).await {
            Ok(change) => outcome(self.change_groups(change).await),
            Err(refusal) => *refusal,
        }
    }

    pub(super) fn position_request(&self, headers: &HeaderMap) -> Response<Full<Bytes>> {
        if let Err(refusal) = self.check_key(headers) {
            return *refusal;
        }
        match self.position() {
            Some(position) => {
                let mut response = json_document(&json!({ "position": position }));
                response.headers_mut().insert(header::CACHE_CONTROL, http::HeaderValue::from_static("no-store"));
                response
            }
            None => answer(StatusCode::SERVICE_UNAVAILABLE, "this node is not ready: ask another one"),
        }
    }

    pub(super) async fn close_request<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.command(request, close).await {
            Ok(close) => outcome(self.close(close).await),
            Err(refusal) => *refusal,
        }
    }

    pub(super) async fn refresh_request<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match self.command(request, refresh).await {
            Ok(Whose::Session(id)) => outcome(self.refresh_session(&id).await),
            Ok(Whose::User(id)) => outcome(self.refresh_user(&id).await),
            Err(refusal) => *refusal,
        }
    }

    /// What `read` makes of the body of a `POST` with the right key.
    async fn command<T, B>(&self, request: Request<B>, read: impl FnOnce(&[u8]) -> Result<T, Why>) -> Result<T, Refusal>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let (head, body) = request.into_parts();
        let limit = self.config().connection.handshake_timeout;
        if let Err(refusal) = self.check_head(&head) {
            // A client with `Expect` waits for permission before it sends the body.
            if !head.headers.contains_key(header::EXPECT) {
                // The refusal does not depend on the body.
                let _ = tokio::time::timeout(limit, receive(body, 0)).await;
            }
            return Err(refusal);
        }
        let body = match tokio::time::timeout(limit, receive(body, BODY_SIZE)).await {
            Ok(Ok(Some(body))) => body,
            Ok(Ok(None)) => return Err(too_large()),
            Ok(Err(_)) => return Err(answer(StatusCode::BAD_REQUEST, "the body broke off").into()),
            Err(_) => return Err(answer(StatusCode::REQUEST_TIMEOUT, "the body did not come in time").into()),
        };
        read(&body).map_err(|why| answer(StatusCode::BAD_REQUEST, &why).into())
    }

    /// What can be said before the body comes.
    fn check_head(&self, head: &Parts) -> Result<(), Refusal> {
        if head.method != Method::POST {
            return Err(refuse(StatusCode::METHOD_NOT_ALLOWED, "only POST", (header::ALLOW, POSTS)));
        }
        self.check_key(&head.headers)?;
        let encodings = head.headers.get_all(header::CONTENT_ENCODING).into_iter();
        let mut encodings =
            encodings.flat_map(|value| value.as_bytes().split(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        if !encodings.all(|encoding| encoding.is_empty() || encoding.eq_ignore_ascii_case(b"identity")) {
            let text = "a body with a Content-Encoding is not taken: send it as it is";
            return Err(refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, text, (header::ACCEPT_ENCODING, "identity")));
        }
        let size = head.headers.get(header::CONTENT_LENGTH).and_then(|size| size.to_str().ok()?.parse::<u64>().ok());
        if size.is_some_and(|size| size > BODY_SIZE as u64) {
            return Err(too_large());
        }
        Ok(())
    }

    /// Checks the publish key of a request.
    pub(super) fn check_key(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        let presented = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.to_str().ok()?.split_once(' '))
            .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
            .map(|(_, key)| key.trim());
        let live = self.live();
        let known = live.publish_key.as_ref().zip(presented).is_some_and(|(key, presented)| key.matches(presented));
        if !known {
            let text = "the publish key is missing or wrong";
            return Err(refuse(StatusCode::UNAUTHORIZED, text, (header::WWW_AUTHENTICATE, "Bearer")));
        }
        Ok(())
    }
}

fn too_large() -> Refusal {
    let text = format!("more than 1 MiB to publish, or a batch of more than {BODY_SIZE} bytes");
    answer(StatusCode::PAYLOAD_TOO_LARGE, &text).into()
}

fn refuse(status: StatusCode, text: &str, (name, value): (HeaderName, &'static str)) -> Refusal {
    let mut response = answer(status, text);
    response.headers_mut().insert(name, http::HeaderValue::from_static(value));
    response.into()
}

/// Reads a body; `None` if it has more than `limit` bytes. Those are read all the same, up to a bound.
async fn receive<B: Body>(body: B, limit: usize) -> Result<Option<Vec<u8>>, B::Error> {
    let mut body = std::pin::pin!(body);
    let (mut received, mut size) = (Vec::new(), 0_usize);
    while let Some(frame) = body.frame().await.transpose()? {
        let Ok(data) = frame.into_data() else { continue };
        size += data.remaining();
        if size <= limit {
            received.put(data);
            continue;
        }
        received = Vec::new();
        if size > DISCARD_SIZE {
            break;
        }
    }
    Ok((size <= limit).then_some(received))
}

fn outcome(published: Result<(), PublishError>) -> Response<Full<Bytes>> {
    match published {
        Ok(()) => {
            let mut response = Response::default();
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        Err(error) => {
            let status = StatusCode::from_u16(error.status_code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            answer(status, &error.to_string())
        }
    }
}

/// The outcome of each message of a batch.
fn outcomes(published: &[Result<(), PublishError>]) -> Response<Full<Bytes>> {
    let outcome = |published: &Result<(), PublishError>| match published {
        Ok(()) => json!({ "status": StatusCode::NO_CONTENT.as_u16() }),
        Err(error) => json!({ "status": error.status_code(), "error": error.to_string() }),
    };
    json_document(&published.iter().map(outcome).collect())
}

fn json_document(value: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(value.to_string().into()));
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// A line of text.
pub(super) fn answer(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(format!("{text}\n").into()));
    *response.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
