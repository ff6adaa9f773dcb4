//! Calling the application: its handlers and its authenticator, with their panics caught, their time watched and
//! their errors answered. What is called runs beside the socket, as a future of the connection's task.

use std::{
    panic::AssertUnwindSafe,
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Instant, SystemTime},
};

use futures_util::FutureExt;
use serde_json::Value;

use super::{Client, standing::AUTHENTICATION};
use crate::{
    ActionError, ActionHandler, AuthenticationError, Details, Request, Server,
    auth::{Credentials, Handshake, Identity},
    clock::now,
    hub::Moment,
    log_limit::{Excerpt, Outage, OutageLine},
    server::Fault,
};

/// A future that a connection waits for beside its socket.
pub(super) type Call<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// What a client's message led to.
pub(super) enum Done {
    /// A handler has ended.
    Handled,
    /// The handler of `Client/authentication` has ended, with an error if it refuses the client. `confirm`: the client
    /// waits for an answer.
    Greeted { refusal: Option<ActionError>, confirm: bool },
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
        if let Err(error) = run(&server, &client, &*handler, &action, &details).await {
            client.send_error(&action, error.code, &error.text);
        }
        Done::Handled
    })
}

/// Asks the application, by its handler of `Client/authentication`, whether a user may be here.
pub(super) fn greet(
    server: &Server,
    client: &Arc<Client>,
    handler: Arc<dyn ActionHandler>,
    confirm: bool,
) -> Call<Done> {
    let (server, client) = (server.clone(), client.clone());
    Box::pin(async move {
        let refusal = run(&server, &client, &*handler, AUTHENTICATION, &Details::default()).await.err();
        Done::Greeted { refusal, confirm }
    })
}

async fn run(
    server: &Server,
    client: &Arc<Client>,
    handler: &dyn ActionHandler,
    action: &str,
    details: &Details,
) -> Result<(), ActionError> {
    let (user, session) = {
        let membership = client.membership();
        (membership.user.clone(), membership.session.clone())
    };
    let (user, session) = (user.as_deref(), session.as_deref());
    let handled =
        AssertUnwindSafe(async { handler.handle(Request { server, client, user, session, action, details }).await })
            .catch_unwind();
    watched(handled, action, server).await.unwrap_or_else(|panic| {
        if let Some(line) = server.handler_logs().due((Fault::Panic, shortened(action)), now()) {
            let (action, panic) = (Excerpt(action), panic_text(&*panic));
            tracing::error!(?action, panic, left_out = line.left_out, "a handler panicked");
        }
        Err(ActionError::internal("Internal Server Error"))
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
    let identity = authenticate(server, handshake, question, deadline).await;
    Answer { identity, asked }
}

async fn authenticate(
    server: &Server,
    handshake: &Handshake,
    question: Question<'_>,
    deadline: tokio::time::Instant,
) -> Result<Option<Identity>, AuthenticationError> {
    let authenticator = server.authenticator();
    let asked = AssertUnwindSafe(async {
        match question {
            Question::Handshake => authenticator.authenticate(handshake, None).await,
            Question::Credentials(details) => authenticator.authenticate(handshake, Some(Credentials(details))).await,
            Question::Again => authenticator.recheck(handshake).await,
        }
    })
    .catch_unwind();
    let answered = tokio::time::timeout_at(deadline, asked).await;
    let said = matches!(answered, Ok(Ok(_)));
    let answer = match answered {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => {
            Err(AuthenticationError::Misconfigured(format!("the authenticator panicked: {}", panic_text(&*panic))))
        }
        Err(elapsed) => Err(AuthenticationError::Unavailable(Box::new(elapsed))),
    };
    // What the authenticator said itself, it may have logged itself.
    note(server.asking(), answer.as_ref().err(), said && authenticator.logs_failures());
    match answer {
        // A session that has run out is none.
        Ok(Some(identity)) if identity.expires.is_some_and(|expires| expires <= SystemTime::now()) => Ok(None),
        answer => answer,
    }
}

/// Logs that the authenticator cannot answer, and that it can again.
fn note(asking: &Outage, failure: Option<&AuthenticationError>, logged: bool) {
    match failure {
        Some(_) if logged => {}
        Some(error) => {
            if let Some(OutageLine::Failing { failures }) = asking.failed(now()) {
                let error = error as &dyn std::error::Error;
                tracing::error!(error, failures_before = failures, "clients cannot be authenticated");
            }
        }
        None => {
            if let Some(OutageLine::Over { failures, lasted }) = asking.succeeded(now()) {
                tracing::info!(failures, ?lasted, "clients can be authenticated again");
            }
        }
    }
}

/// Polls `handler`, and says in the log when a poll held its thread for longer than the limit.
async fn watched<F: Future>(handler: F, action: &str, server: &Server) -> F::Output {
    let limit = server.config().connection.blocking_warning;
    let mut handler = pin!(handler);
    std::future::poll_fn(|cx| {
        let start = Instant::now();
        let polled: Poll<F::Output> = handler.as_mut().poll(cx);
        let held = start.elapsed();
        if held > limit
            && let Some(line) = server.handler_logs().due((Fault::Blocking, shortened(action)), now())
        {
            let (action, left_out) = (Excerpt(action), line.left_out);
            tracing::warn!(
                ?action,
                ?held,
                left_out,
                "a handler held its thread; what blocks belongs into spawn_blocking"
            );
        }
        polled
    })
    .await
}

/// An action as the cause of a log line: a fallback handles those that clients invent, of any size.
fn shortened(action: &str) -> String {
    action.chars().take(32).collect()
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}
