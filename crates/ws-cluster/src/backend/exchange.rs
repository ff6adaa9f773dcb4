//! One request to the site and its answer: within the limits, signed, and with what the breaker learns from it.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

use super::{
    breaker::{Breaker, Change, Pass, Sign},
    failure::Failure,
    signature::SigningKey,
    turns::{Lane, NoTurn, Turns},
};
use crate::{
    clock::now,
    http_client::{HttpClient, HttpError},
    log_limit::{Excerpt, LogLimits, Outage, OutageLine},
    message::command::Why,
    stats::{BackendEvent, BackendOutcome, BackendStats},
};

/// Maximum size of an answer, in bytes.
const ANSWER_SIZE: usize = 1024 * 1024;

/// Maximum length of the reason why an answer cannot be used, in characters.
const REASON_LENGTH: usize = 256;

/// Time after which a request that its caller gives up counts as one without an answer.
const LATE: Duration = Duration::from_secs(3);

/// The software that asks, as the site sees it.
const USER_AGENT: &str = concat!("ws-cluster/", env!("CARGO_PKG_VERSION"));

/// The place of the site's code.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// An `http:` or `https:` URL.
    Url { client: HttpClient, url: String },
    /// A Unix socket, and the path and query to ask for.
    #[cfg_attr(not(unix), expect(dead_code, reason = "there are no such sockets"))]
    Unix { socket: PathBuf, path: String },
}

/// Sends requests to the site.
#[derive(Debug)]
pub(super) struct Exchange {
    pub(super) place: Place,
    pub(super) key: SigningKey,
    pub(super) turns: Turns,
    pub(super) timeout: Duration,
    pub(super) stats: Arc<BackendStats>,
    /// A synchronous lock, held for a comparison.
    pub(super) breaker: Mutex<Breaker>,
    /// The state of the site, for the log.
    pub(super) outage: Outage,
    pub(super) logs: LogLimits<Cause>,
}

/// Causes of log lines that clients can cause as often as they like.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    /// Too many requests wait.
    Queue,
    /// The breaker has opened.
    Breaker,
    /// The answer about a client cannot be used.
    Identity,
    /// The answer to an action cannot be used.
    Malformed(String),
    /// The site was not told of the end of a connection.
    Event,
}

/// The answer of the site, whose status says nothing about proxies.
#[derive(Debug)]
pub(super) struct Answer(Response<Bytes>);

impl Answer {
    pub(super) fn status(&self) -> StatusCode {
        self.0.status()
    }

    /// Returns true if the site refuses the client.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
    }

    /// Returns the JSON of the answer, or `None` if it has none (204).
    ///
    /// # Errors
    /// The reason if the answer has another status or type.
    pub(super) fn json(&self) -> Result<Option<&[u8]>, Why> {
        match self.status() {
            StatusCode::NO_CONTENT => Ok(None),
            StatusCode::OK => match self.content_type() {
                Some(content_type) if !is_json(&content_type) => {
                    Err(format!("the answer is {content_type:.80}, and not application/json"))
                }
                _ => Ok(Some(self.0.body())),
            },
            status if status.is_redirection() => Err(format!("the answer is {status}, and redirects are not followed")),
            status => Err(format!("the answer is {status}")),
        }
    }

    fn content_type(&self) -> Option<String> {
        let value = self.0.headers().get(header::CONTENT_TYPE)?;
        Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
    }
}

/// Returns true for `application/json` and types that end in `+json`, with any parameters.
fn is_json(content_type: &str) -> bool {
    let media = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    media == "application/json" || media.starts_with("application/") && media.ends_with("+json")
}

impl Exchange {
    /// Sends an event, and returns what `read` makes of the answer. `id` identifies the event when it is sent again.
    /// `action`: the action that it is about, for the log.
    pub(super) async fn ask<T>(
        &self,
        event: BackendEvent,
        action: Option<&str>,
        id: &str,
        body: impl FnOnce() -> Vec<u8>,
        read: impl FnOnce(&Answer) -> Result<T, Why>,
    ) -> Result<T, Failure> {
        let read = match self.send(event, action, id, body).await {
            Ok(answer) => {
                let outcome = if answer.is_refusal() { BackendOutcome::Refused } else { BackendOutcome::Answered };
                // The reason may quote the answer, and the client gets it.
                let shortened = |why: Why| Failure::Malformed(why.chars().take(REASON_LENGTH).collect());
                read(&answer).map(|read| (read, outcome)).map_err(shortened)
            }
            Err(failure) => Err(failure),
        };
        let outcome = read.as_ref().map_or_else(Failure::outcome, |(_, outcome)| *outcome);
        self.stats.note(event, outcome);
        read.map(|(read, _)| read)
    }

    async fn send(
        &self,
        event: BackendEvent,
        action: Option<&str>,
        id: &str,
        body: impl FnOnce() -> Vec<u8>,
    ) -> Result<Answer, Failure> {
        if !self.breaker.lock().would_pass(now()) {
            return Err(Failure::BreakerOpen);
        }
        let lane = match event {
            BackendEvent::Connect | BackendEvent::Refresh => Lane::Identity,
            BackendEvent::Action => Lane::Action,
            BackendEvent::Disconnect => Lane::Event,
        };
        let turn = self.turns.take(lane, self.timeout, &self.stats.waiting).await;
        let _turn = turn.map_err(|no_turn| self.no_turn(no_turn))?;
        // It may have opened meanwhile.
        let passing = Passing::enter(self).ok_or(Failure::BreakerOpen)?;
        let _running = self.stats.running.enter();
        let began = Instant::now();
        let answered = match self.request(id, body()) {
            Ok(request) => timeout(self.timeout, self.place.send(request)).await,
            Err(why) => Ok(Err(HttpError::Malformed(why))),
        };
        self.stats.note_duration(event, began.elapsed());
        let answered = match answered {
            Ok(Ok(answer)) => Failure::of_status(answer.status()).map_or(Ok(Answer(answer)), Err),
            Ok(Err(error)) => Err(Failure::from(error)),
            Err(_) => Err(Failure::TimedOut),
        };
        passing.leave((event, action), answered.as_ref().err());
        answered
    }

    fn request(&self, id: &str, body: Vec<u8>) -> Result<Request<Full<Bytes>>, String> {
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let signature = self.key.sign(id, timestamp, &body);
        let request = match &self.place {
            Place::Url { url, .. } => Request::post(url),
            Place::Unix { path, .. } => Request::post(path).header(header::HOST, "localhost"),
        };
        let request = request
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, USER_AGENT)
            .header("webhook-id", id)
            .header("webhook-timestamp", timestamp)
            .header("webhook-signature", signature);
        request.body(Full::new(body.into())).map_err(|error| error.to_string())
    }

    fn no_turn(&self, no_turn: NoTurn) -> Failure {
        let why = match no_turn {
            NoTurn::Full => "too many requests wait for it",
            NoTurn::TooLate => "the requests before it took too long",
        };
        if let Some(line) = self.logs.due(Cause::Queue, now()) {
            let left_out = line.left_out;
            tracing::warn!(left_out, "a request does not reach the site's backend: {why}");
        }
        Failure::QueueFull(why)
    }

    fn note(&self, pass: Pass, (event, action): (BackendEvent, Option<&str>), failure: Option<&Failure>) {
        let sign = failure.map_or(Sign::Alive, Failure::sign);
        let (change, is_open) = {
            let mut breaker = self.breaker.lock();
            (breaker.leave(pass, sign, now()), breaker.is_open())
        };
        self.stats.open.set(u64::from(is_open));
        let line = match sign {
            Sign::Alive => self.outage.succeeded(now()),
            Sign::Dead => self.outage.failed(now()),
            Sign::Unknown => None,
        };
        match line {
            Some(OutageLine::Failing { failures }) => {
                let (why, limit) = (failure.map(tracing::field::display), self.timeout);
                let (event, action) =
                    (BackendEvent::LABELS[event as usize], action.map(|action| tracing::field::debug(Excerpt(action))));
                tracing::warn!(
                    event,
                    action,
                    why,
                    ?limit,
                    failures_before = failures,
                    "a request to the site's backend failed"
                );
            }
            Some(OutageLine::Over { failures, lasted }) => {
                tracing::info!(failures, ?lasted, "the site's backend answers again");
            }
            None => {}
        }
        match change {
            Some(Change::Opened) => {
                if let Some(line) = self.logs.due(Cause::Breaker, now()) {
                    let (why, left_out) = (failure.map(tracing::field::display), line.left_out);
                    tracing::error!(
                        why,
                        left_out,
                        "the site's backend does not answer: requests fail at once, except for probes"
                    );
                }
            }
            Some(Change::Closed) => tracing::debug!("requests to the site's backend are sent again"),
            None => {}
        }
    }
}

impl Place {
    async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, HttpError> {
        match self {
            Self::Url { client, .. } => client.send(request, ANSWER_SIZE).await,
            #[cfg(unix)]
            Self::Unix { socket, .. } => crate::http_client::send_over_unix(socket, request, ANSWER_SIZE).await,
            #[cfg(not(unix))]
            Self::Unix { .. } => Err(HttpError::Unreachable("there are no Unix sockets here".to_owned())),
        }
    }
}

/// A request that has passed the breaker. If it is dropped, it was given up.
struct Passing<'a> {
    exchange: &'a Exchange,
    pass: Option<Pass>,
    since: std::time::Instant,
}

impl<'a> Passing<'a> {
    fn enter(exchange: &'a Exchange) -> Option<Self> {
        let since = now();
        let pass = exchange.breaker.lock().enter(since)?;
        Some(Self { exchange, pass: Some(pass), since })
    }

    /// Notes how the request ended.
    fn leave(mut self, about: (BackendEvent, Option<&str>), failure: Option<&Failure>) {
        if let Some(pass) = self.pass.take() {
            self.exchange.note(pass, about, failure);
        }
    }
}

impl Drop for Passing<'_> {
    fn drop(&mut self) {
        if let Some(pass) = self.pass.take() {
            let now = now();
            // The caller's own time limit may be shorter than that of the exchange.
            let is_late = now.saturating_duration_since(self.since) >= LATE;
            self.exchange.breaker.lock().leave(pass, if is_late { Sign::Dead } else { Sign::Unknown }, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_with_a_body_is_json() {
        let answer = |status: u16, content_type: Option<&str>| {
            let mut response = Response::builder().status(status);
            if let Some(content_type) = content_type {
                response = response.header("content-type", content_type);
            }
            Answer(response.body(Bytes::from_static(b"{}")).unwrap())
        };
        for content_type in
            [None, Some("application/json"), Some("Application/JSON; charset=utf-8"), Some("application/problem+json")]
        {
            assert_eq!(answer(200, content_type).json(), Ok(Some(&b"{}"[..])), "{content_type:?}");
        }
        assert_eq!(answer(204, Some("text/html")).json(), Ok(None));
        for (status, content_type, says) in [
            (200, Some("text/html; charset=UTF-8"), "the answer is text/html; charset=UTF-8, and not application/json"),
            (200, Some("application/javascript"), "not application/json"),
            (200, Some(""), "not application/json"),
            (302, None, "the answer is 302 Found, and redirects are not followed"),
            (201, Some("application/json"), "the answer is 201 Created"),
            (403, Some("application/json"), "the answer is 403 Forbidden"),
            (500, Some("text/html"), "the answer is 500 Internal Server Error"),
        ] {
            let why = answer(status, content_type).json().unwrap_err();
            assert!(why.contains(says), "{status}: {why}");
        }
    }
}
