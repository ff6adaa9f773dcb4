//! Publishes as a site does: over HTTP, at one node after another until one accepts.

use std::{io::ErrorKind, net::SocketAddr, time::Duration};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::http_client::{self, Answer};

/// The key that opens `/_publish` on all nodes of the tests.
pub const PUBLISH_KEY: &str = "a key to publish";

/// The reason why a node did not accept.
#[derive(Debug)]
pub enum Refusal {
    /// No process listens there, so the node did not get the message.
    NotThere,
    /// The node refuses with this answer, and would refuse again.
    Wrong(String),
    /// The node gave no answer in time, the connection broke, or the outcome is unknown. The message may be delivered
    /// or not.
    Unclear(String),
}

/// A message to publish.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// The action.
    pub action: &'a str,
    /// The details.
    pub details: &'a Value,
    /// The target as text.
    pub to: &'a str,
    /// The idempotency key, with which the publish can be repeated at another node.
    pub key: Option<&'a str>,
}

/// Publishes at one node, once.
pub async fn publish(address: SocketAddr, message: Message<'_>, limit: Duration) -> Result<(), Refusal> {
    let Message { action, details, to, key } = message;
    let mut body = json!({ "action": action, "details": details, "to": to });
    if let Some(key) = key {
        body["key"] = key.into();
    }
    let authorization = format!("Bearer {PUBLISH_KEY}");
    let headers = [("authorization", authorization.as_str())];
    let exchange = http_client::request(address, "POST", "/_publish", &headers, body.to_string());
    let answer = timeout(limit, exchange).await.map_err(|_| Refusal::Unclear("no answer in time".into()))?;
    match answer {
        Ok(Answer { status, .. }) if status.is_success() => Ok(()),
        // Not now, or not known.
        Ok(Answer { status, .. }) if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => {
            Err(Refusal::Unclear(status.as_u16().to_string()))
        }
        Ok(Answer { head, text, .. }) => Err(Refusal::Wrong(format!("{head}\n{text}"))),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Err(Refusal::NotThere),
        Err(error) => Err(Refusal::Unclear(error.kind().to_string())),
    }
}
