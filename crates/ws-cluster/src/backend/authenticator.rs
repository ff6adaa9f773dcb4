//! The site as the authenticator.

use async_trait::async_trait;

use super::{
    Backend, answer,
    event::{Connect, Refresh},
    event_id,
    exchange::{Answer, Cause},
    failure::Failure,
    handler::encode,
};
use crate::{
    AuthenticationError, Authenticator, Credentials, Handshake, Identity, Inquiry, InquiryReason, clock::now,
    message::command::Why, stats::BackendEvent,
};

#[async_trait]
impl Authenticator for Backend {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let details = credentials.map(|credentials| credentials.details());
        self.who(BackendEvent::Connect, encode(&Connect::new(None, handshake, details))).await
    }

    async fn identify(&self, inquiry: Inquiry<'_>) -> Result<Option<Identity>, AuthenticationError> {
        let (handshake, connection) = (inquiry.handshake, Some(inquiry.connection.to_string()));
        match inquiry.reason {
            InquiryReason::Handshake => {
                self.who(BackendEvent::Connect, encode(&Connect::new(connection, handshake, None))).await
            }
            InquiryReason::Credentials(credentials) => {
                let connect = Connect::new(connection, handshake, Some(credentials.details()));
                self.who(BackendEvent::Connect, encode(&connect)).await
            }
            InquiryReason::Recheck { user, session } => {
                let refresh = Refresh::new(connection, handshake, user, session);
                self.who(BackendEvent::Refresh, encode(&refresh)).await
            }
        }
    }

    fn in_band(&self) -> bool {
        true
    }

    fn logs_failures(&self) -> bool {
        true
    }
}

impl Backend {
    /// Asks who a client is. `None` in the answer means that the site refuses the client.
    async fn who(&self, event: BackendEvent, body: Vec<u8>) -> Result<Option<Identity>, AuthenticationError> {
        let id = event_id();
        let ask = || self.0.exchange.ask(event, None, &id, || body.clone(), identity);
        let asked = match ask().await {
            // A question may be asked twice.
            Err(Failure::Lost(_)) => ask().await,
            asked => asked,
        };
        match asked {
            Ok(Some(identity)) => Ok(Some(identity)),
            Ok(None) => Err(AuthenticationError::Refused),
            Err(Failure::Malformed(why)) => {
                if let Some(line) = self.0.exchange.logs.due(Cause::Identity, now()) {
                    let left_out = line.left_out;
                    tracing::error!(why, left_out, "the site's answer about a client cannot be used");
                }
                Err(AuthenticationError::Misconfigured(format!("the site's backend answered wrongly: {why}")))
            }
            Err(failure) => Err(AuthenticationError::Unavailable(failure.into())),
        }
    }
}

/// Reads the answer about a client.
fn identity(answer: &Answer) -> Result<Option<Identity>, Why> {
    if answer.is_refusal() {
        return Ok(None);
    }
    match answer.json()? {
        Some(json) => answer::identity(json).map(Some),
        None => Ok(Some(Identity::guest())),
    }
}
