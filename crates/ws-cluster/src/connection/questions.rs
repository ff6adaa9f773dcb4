//! Questions to the application's authenticator, with panics caught, a time limit, and a log of outages.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    time::SystemTime,
};

use futures_util::FutureExt;
use serde_json::Value;

use super::{Context, panic_text};
use crate::{
    ConnectionId,
    auth::{AuthenticationError, Authenticator, Credentials, Handshake, Identity, Inquiry, InquiryReason, Revoked},
    clock::now,
    hub::Moment,
    log_limit::{Outage, OutageLine},
    message::close::Subject,
    stats::{LookUpOutcome, Stopwatch},
};

/// Returns the reason for the question that a message with these details asks.
pub(super) fn reason(details: &[Value]) -> InquiryReason<'_> {
    if details.is_empty() { InquiryReason::Handshake } else { InquiryReason::Credentials(Credentials(details)) }
}

/// The authenticator's answer, and the moment at which it was asked.
pub(crate) struct Answer {
    pub(crate) identity: Result<Option<Identity>, AuthenticationError>,
    pub(crate) asked_at: Moment,
}

impl Answer {
    /// Refuses a client without a question.
    pub(crate) fn refusal(context: &Context) -> Self {
        Self { identity: Err(AuthenticationError::Refused), asked_at: context.hub.closes().now() }
    }
}

/// Asks the authenticator, within the time limit of the handshake. The client waits for a turn among those of its
/// address.
pub(crate) async fn ask(
    context: &Context,
    handshake: &Handshake,
    connection: ConnectionId,
    reason: InquiryReason<'_>,
) -> Answer {
    let config = &context.config.connection;
    let deadline = tokio::time::Instant::now() + config.handshake_timeout;
    let turn = context.look_ups.turn(handshake.remote_ip(), config.look_ups_per_ip);
    let Ok(_turn) = tokio::time::timeout_at(deadline, turn).await else {
        let busy = "too many look-ups for this address".into();
        return Answer { identity: Err(AuthenticationError::Unavailable(busy)), asked_at: context.hub.closes().now() };
    };
    // Read before the question, so that a later close takes precedence over the answer.
    let asked_at = context.hub.closes().now();
    let stopwatch = Stopwatch::start();
    let identity = authenticate(context, Inquiry { handshake, connection, reason }, deadline).await;
    let outcome = match &identity {
        Ok(Some(identity)) if identity.user.is_some() => LookUpOutcome::User,
        Ok(_) => LookUpOutcome::Guest,
        Err(AuthenticationError::Refused) => LookUpOutcome::Refused,
        Err(_) => LookUpOutcome::Failed,
    };
    context.hub.stats().metered.note(|counts| counts.look_ups[outcome as usize].observe(stopwatch.elapsed()));
    Answer { identity, asked_at }
}

async fn authenticate(
    context: &Context,
    inquiry: Inquiry<'_>,
    deadline: tokio::time::Instant,
) -> Result<Option<Identity>, AuthenticationError> {
    let authenticator = &context.authenticator;
    let asked = AssertUnwindSafe(async { authenticator.identify(inquiry).await }).catch_unwind();
    let answered = tokio::time::timeout_at(deadline, asked).await;
    let answered_itself = matches!(answered, Ok(Ok(_)));
    let answer = match answered {
        Ok(Ok(answer)) => answer,
        Ok(Err(panic)) => {
            Err(AuthenticationError::Misconfigured(format!("the authenticator panicked: {}", panic_text(&*panic))))
        }
        Err(elapsed) => Err(AuthenticationError::Unavailable(Box::new(elapsed))),
    };
    // The authenticator may have logged its own failures.
    let failure = answer.as_ref().err().filter(|error| !matches!(error, AuthenticationError::Refused));
    if !failure.is_some_and(AuthenticationError::is_short) {
        log_outage(&context.outage, failure, answered_itself && authenticator.logs_failures());
    }
    match answer {
        // A session that has run out does not count.
        Ok(Some(identity)) if identity.expires.is_some_and(|expires| expires <= SystemTime::now()) => Ok(None),
        answer => answer,
    }
}

/// Logs that the authenticator cannot answer, and later that it can again.
fn log_outage(outage: &Outage, failure: Option<&AuthenticationError>, logged: bool) {
    match failure {
        Some(_) if logged => {}
        Some(error) => {
            if let Some(OutageLine::Failing { failures }) = outage.failed(now()) {
                let error = error as &dyn std::error::Error;
                tracing::error!(error, failures_before = failures, "clients cannot be authenticated");
            }
        }
        None => {
            if let Some(OutageLine::Over { failures, lasted }) = outage.succeeded(now()) {
                tracing::info!(failures, ?lasted, "clients can be authenticated again");
            }
        }
    }
}

/// Tells the authenticator whose connections are closed or refreshed. It is the application's code and runs in the
/// cluster's task, so a panic is caught here.
pub(crate) fn forget(authenticator: &dyn Authenticator, subject: &Subject) {
    // If the command excepts a session, that session is included, which only costs a look-up.
    let revoked = match subject {
        Subject::Session(id) => Revoked::Session(id),
        Subject::User { id, .. } => Revoked::User(id),
        // Others of its user and session stay.
        Subject::Connection(_) => return,
    };
    let result = catch_unwind(AssertUnwindSafe(|| authenticator.forget(revoked)));
    if result.is_err() {
        tracing::error!("the authenticator's `forget` panicked: it may let a closed session in again");
    }
}
