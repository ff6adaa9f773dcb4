//! The site as the handler of actions, and of the ends of connections.

use std::time::Duration;

use async_trait::async_trait;
use tokio::{sync::watch, time::sleep};

use super::{
    Backend, answer,
    answer::Effects,
    event::{self, Action, Disconnect},
    event_id,
    exchange::Cause,
    failure::Failure,
};
use crate::{
    ActionError, ActionHandler, Request, clock::now, connection::DISCONNECTION, log_limit::Excerpt, stats::BackendEvent,
};

/// The pauses after which the end of a connection is sent again. Together with the time limits they last about as long
/// as a site needs to restart.
const PAUSES: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(3)];
/// Maximum number of ends of connections whose delivery is under way. The memory of a site that is down stays bounded.
const EVENTS: u64 = 10_000;

#[async_trait]
impl ActionHandler for Backend {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        if request.action() == DISCONNECTION {
            self.tell_end(&request).await;
            return Ok(());
        }
        if !self.0.actions.matches(request.action()) {
            return Err(ActionError::not_found("Not Found"));
        }
        match self.ask(&request).await {
            Ok(effects) => apply(&request, effects).await,
            Err(failure) => Err(failure.error()),
        }
    }

    /// The site decides for guests as well: it is told that there is no user.
    fn guests(&self) -> bool {
        true
    }
}

impl Backend {
    /// Sends an action.
    async fn ask(&self, request: &Request) -> Result<Effects, Failure> {
        let body = || {
            let action = Action {
                event: "action",
                action: request.action(),
                details: event::raw(request.details()),
                connection: request.connection().to_string(),
                user: request.user(),
                session: request.session(),
                groups: request.groups(),
                properties: request.properties(),
                language: request.handshake().language(),
                remote_addr: event::remote_addr(request.handshake()),
                request: request.request_id(),
            };
            encode(&action)
        };
        let read = |answer: &super::exchange::Answer| match answer.json()? {
            Some(json) => answer::effects(json),
            None => Ok(Effects::default()),
        };
        let asked = self.0.exchange.ask(BackendEvent::Action, Some(request.action()), &event_id(), body, read).await;
        if let Err(Failure::Malformed(why)) = &asked {
            // A different mistake is logged at once.
            let cause = Cause::Malformed(request.action().chars().take(32).chain(why.chars().take(64)).collect());
            if let Some(line) = self.0.exchange.logs.due(cause, now()) {
                let (action, left_out) = (Excerpt(request.action()), line.left_out);
                tracing::error!(?action, why, left_out, "the site's answer to an action cannot be used");
            }
        }
        asked
    }

    /// Tells the site that a connection has ended. The connection keeps its place for the first attempt only, and a
    /// shutdown waits for the others.
    async fn tell_end(&self, request: &Request) {
        if self.0.events.get() >= EVENTS {
            return self.log_lost_event("too many such events wait");
        }
        let body = encode(&Disconnect {
            event: "disconnect",
            code: request.close_code().unwrap_or_default(),
            reason: request.close_reason().unwrap_or_default(),
            resumed: request.has_resumed().unwrap_or_default(),
            connection: request.connection().to_string(),
            user: request.user(),
            session: request.session(),
            groups: request.groups(),
            properties: request.properties(),
        });
        let id = event_id();
        let _entered = self.0.events.enter();
        if self.send_event(&id, &body).await.is_err() {
            tokio::spawn(self.clone().send_event_again(id, body, request.server().delay_shutdown()));
        }
    }

    async fn send_event_again(self, id: String, body: Vec<u8>, _delays_shutdown: watch::Receiver<()>) {
        let _entered = self.0.events.enter();
        let mut failure = None;
        for pause in PAUSES {
            sleep(pause).await;
            match self.send_event(&id, &body).await {
                Ok(()) => return,
                Err(failed) => failure = Some(failed),
            }
        }
        failure.iter().for_each(|failure| self.log_lost_event(&failure.to_string()));
    }

    async fn send_event(&self, id: &str, body: &[u8]) -> Result<(), Failure> {
        let read = |answer: &super::exchange::Answer| match answer.status() {
            status if status.is_success() => Ok(()),
            status => Err(format!("the answer is {status}")),
        };
        self.0.exchange.ask(BackendEvent::Disconnect, None, id, || body.to_vec(), read).await
    }

    fn log_lost_event(&self, why: &str) {
        if let Some(line) = self.0.exchange.logs.due(Cause::Event, now()) {
            let left_out = line.left_out;
            tracing::warn!(why, left_out, "the site is not told of the end of a connection");
        }
    }
}

/// Lets an answer take effect, in this order: properties, joins and leaves, publishes, and the reply or the error.
async fn apply(request: &Request, effects: Effects) -> Result<(), ActionError> {
    let Effects { properties, join, leave, publish, reply } = effects;
    request.change(properties, &join, &leave);
    if !publish.is_empty() {
        request.publish_all(publish).await.into_iter().collect::<Result<(), _>>()?;
    }
    match reply {
        Some(Ok(details)) => request.reply(&details),
        Some(Err(error)) => Err(error),
        None => Ok(()),
    }
}

/// Returns an event as JSON.
pub(super) fn encode(event: &impl serde::Serialize) -> Vec<u8> {
    // Text, numbers and JSON can always be encoded.
    serde_json::to_vec(event).unwrap_or_default()
}
