//! Calls the application's handlers: their panics are caught, and a log line tells if one holds its thread.

use std::{panic::AssertUnwindSafe, pin::pin, sync::Arc, task::Poll, time::Instant};

use futures_util::FutureExt;
use tracing::Instrument;

use super::{ActionHandler, Request, Server, action};
use crate::{
    ActionError, RawDetails,
    clock::now,
    connection::{Application, Context, FORBIDDEN, Raw, panic_text},
    hub::Client,
    log_limit::Excerpt,
    message::request_id::AwaitedAnswer,
    stats::Stopwatch,
};

/// What an action's handler did wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Fault {
    Panic,
    Blocking,
}

impl Application for Server {
    fn context(&self) -> &Context {
        &self.0.connections
    }

    fn handles(&self, action: &str) -> bool {
        self.0.actions.contains_key(action)
    }

    fn dispatch(
        &self,
        client: &Arc<Client>,
        action: &str,
        details: RawDetails,
        awaited: AwaitedAnswer,
    ) -> Result<impl Future<Output = Result<(), ActionError>> + Send + use<>, ActionError> {
        let handler = self.0.actions.get(action).or(self.0.fallback.as_ref());
        let handler = handler.ok_or_else(|| ActionError::not_found("Not Found"))?.clone();
        if client.membership().user.is_none() && !handler.guests() {
            return Err(ActionError::forbidden(FORBIDDEN));
        }
        let (server, client, action) = (self.clone(), client.clone(), action.to_owned());
        Ok(async move { run(&server, &client, &*handler, &action, &details, awaited).await })
    }

    fn raw(&self) -> Option<&Raw> {
        self.0.raw.as_ref()
    }
}

async fn run(
    server: &Server,
    client: &Arc<Client>,
    handler: &dyn ActionHandler,
    action: &str,
    details: &RawDetails,
    awaited: AwaitedAnswer,
) -> Result<(), ActionError> {
    let (user, session) = {
        let membership = client.membership();
        (membership.user.clone(), membership.session.clone())
    };
    let span =
        tracing::debug_span!("action", action = ?Excerpt(action), connection = %client.id, user = user.as_deref());
    let request = Request::new(action::Context {
        server: server.clone(),
        client: client.clone(),
        user,
        session,
        action: action.to_owned(),
        details: details.clone(),
        awaited,
    });
    // A handler may panic while it makes its future as well.
    let handled = AssertUnwindSafe(async { handler.handle(request.clone()).await }).catch_unwind();
    let handled = handled.instrument(span);
    let stopwatch = Stopwatch::start();
    let handled = watched(handled, action, server).await;
    server.0.handler_times.note(|times| times.of(action).observe(stopwatch.elapsed()));
    let handled = handled.unwrap_or_else(|panic| {
        server.hub().stats().metered.note(|counts| counts.handler_panics.add(1));
        if let Some(line) = server.0.handler_logs.due((Fault::Panic, shortened(action)), now()) {
            let (action, panic) = (Excerpt(action), panic_text(&*panic));
            tracing::error!(?action, panic, left_out = line.left_out, "a handler panicked");
        }
        Err(ActionError::internal("Internal Server Error"))
    });
    if handled.is_ok() {
        request.finish();
    }
    handled
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
            && let Some(line) = server.0.handler_logs.due((Fault::Blocking, shortened(action)), now())
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
