//! Calling the application: its handlers and its authenticator, with their panics caught, their time watched and
//! their errors answered. What is called runs beside the socket, as a future of the connection's task.

use std::{
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant, SystemTime},
};

use futures_util::FutureExt;
use serde_json::Value;

use super::Client;
use crate::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Details, Request, Server,
    auth::{Credentials, Handshake, Identity},
    hub::Moment,
};

/// A future that a connection waits for beside its socket.
pub(super) type Call<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a client's message led to.
pub(super) enum Done {
    /// A handler has ended.
    Handled,
    /// The authenticator was asked, for the how-many-eth time about these credentials.
    Authenticated { answer: Answer, credentials: Vec<Value>, attempt: u32 },
}

/// What the authenticator is asked about a client, beside its handshake.
#[derive(Clone, Copy)]
pub(crate) enum Question<'a> {
    /// Who it is, by its handshake alone.
    Handshake,
    /// Who it is, by these credentials.
    Credentials(&'a [Value]),
    /// Whether its session goes on.
    Again,
}

impl<'a> Question<'a> {
    /// The question that a message with these details puts.
    pub(crate) fn of(details: &'a [Value]) -> Self {
        if details.is_empty() { Self::Handshake } else { Self::Credentials(details) }
    }
}

/// The authenticator's answer, and when it was asked.
pub(crate) struct Answer {
    pub(crate) identity: Result<Option<Identity>, AuthenticationError>,
    pub(crate) asked: Moment,
}

/// Runs a handler to its end, and answers its error.
pub(super) fn handle(
    server: &Server,
    client: &Arc<Client>,
    handler: Arc<dyn ActionHandler>,
    action: String,
    details: Details,
) -> Call<Done> {
    let (server, client) = (server.clone(), client.clone());
    Box::pin(async move {
        let (user, session) = {
            let membership = client.membership();
            (membership.user.clone(), membership.session.clone())
        };
        let handled = AssertUnwindSafe(async {
            let request = Request {
                server: &server,
                client: &client,
                user: user.as_deref(),
                session: session.as_deref(),
                action: &action,
                details: &details,
            };
            handler.handle(request).await
        })
        .catch_unwind();
        let error = match watched(handled, &action, server.config().connection.blocking_warning).await {
            Ok(Ok(())) => return Done::Handled,
            Ok(Err(error)) => error,
            Err(panic) => {
                tracing::error!(action, panic = panic_text(&*panic), "a handler panicked");
                ActionError::internal("Internal Server Error")
            }
        };
        client.send_error(&action, error.code, &error.text);
        Done::Handled
    })
}

/// Asks the authenticator, within the time limit of the handshake. A client waits its turn among those of its address.
pub(crate) async fn ask(server: &Server, handshake: &Handshake, question: Question<'_>) -> Answer {
    let config = &server.config().connection;
    let deadline = tokio::time::Instant::now() + config.handshake_timeout;
    let turn = server.hub().look_ups().turn(handshake.remote_ip(), config.look_ups_per_ip);
    let Ok(_turn) = tokio::time::timeout_at(deadline, turn).await else {
        let busy = "too many look-ups for this address".into();
        return Answer { identity: Err(AuthenticationError::Unavailable(busy)), asked: server.hub().closes().now() };
    };
    // Read before the question is put: a close that comes later wins against its answer.
    let asked = server.hub().closes().now();
    let identity = authenticate(server.authenticator(), handshake, question, deadline).await;
    Answer { identity, asked }
}

async fn authenticate(
    authenticator: &dyn Authenticator,
    handshake: &Handshake,
    question: Question<'_>,
    deadline: tokio::time::Instant,
) -> Result<Option<Identity>, AuthenticationError> {
    let asked = AssertUnwindSafe(async {
        match question {
            Question::Handshake => authenticator.authenticate(handshake, None).await,
            Question::Credentials(details) => authenticator.authenticate(handshake, Some(Credentials(details))).await,
            Question::Again => authenticator.recheck(handshake).await,
        }
    })
    .catch_unwind();
    let answer = match tokio::time::timeout_at(deadline, asked).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => {
            Err(AuthenticationError::Misconfigured(format!("the authenticator panicked: {}", panic_text(&*panic))))
        }
        Err(elapsed) => Err(AuthenticationError::Unavailable(Box::new(elapsed))),
    };
    match answer {
        // A session that has run out is none.
        Ok(Some(identity)) if identity.expires.is_some_and(|expires| expires <= SystemTime::now()) => Ok(None),
        Err(error) => {
            tracing::error!(error = &error as &dyn std::error::Error, "nobody can say who a client is");
            Err(error)
        }
        answer => answer,
    }
}

/// Polls `handler`, and says in the log when a poll held its thread for longer than `limit`.
async fn watched<F: Future>(handler: F, action: &str, limit: Duration) -> F::Output {
    let mut handler = pin!(handler);
    std::future::poll_fn(|cx| {
        let start = Instant::now();
        let polled: Poll<F::Output> = handler.as_mut().poll(cx);
        let held = start.elapsed();
        if held > limit {
            tracing::warn!(action, ?held, "a handler held its thread; what blocks belongs into spawn_blocking");
        }
        polled
    })
    .await
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
