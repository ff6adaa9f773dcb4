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
    ActionError, ActionHandler, AuthenticationError, Authenticator, Request, Server,
    auth::{Credentials, Handshake, Identity},
};

/// A future that a connection waits for beside its socket.
pub(super) type Call<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a client's message led to.
pub(super) enum Done {
    /// A handler has ended.
    Handled,
    /// The authenticator was asked.
    Authenticated(Result<Option<Identity>, AuthenticationError>, /* with credentials */ bool),
}

/// Runs a handler to its end, and answers its error.
pub(super) fn handle(
    server: &Server,
    client: &Arc<Client>,
    handler: Arc<dyn ActionHandler>,
    action: String,
    details: Vec<Value>,
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

/// Asks the authenticator, within the time limit.
pub(crate) async fn authenticate(
    authenticator: &dyn Authenticator,
    handshake: &Handshake,
    credentials: &[Value],
    limit: Duration,
) -> Result<Option<Identity>, AuthenticationError> {
    let credentials = (!credentials.is_empty()).then_some(Credentials(credentials));
    let asked = AssertUnwindSafe(async { authenticator.authenticate(handshake, credentials).await }).catch_unwind();
    let answer = match tokio::time::timeout(limit, asked).await {
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
