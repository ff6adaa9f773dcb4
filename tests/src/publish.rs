//! Publishes as a site does: over HTTP, at one node after another until one accepts.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

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
    let body = body.to_string();
    let request = format!(
        "POST /_publish HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\nauthorization: Bearer {PUBLISH_KEY}\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let exchange = async {
        let mut stream = match TcpStream::connect(address).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return Err(Refusal::NotThere),
            other => other.map_err(broken)?,
        };
        stream.set_nodelay(true).map_err(broken)?;
        stream.write_all(request.as_bytes()).await.map_err(broken)?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.map_err(broken)?;
        Ok(answer)
    };
    let answer = timeout(limit, exchange).await.map_err(|_| Refusal::Unclear("no answer in time".into()))??;
    let status = answer.get(9..12).and_then(|status| status.parse::<u16>().ok());
    match status {
        Some(200..=299) => Ok(()),
        // Not possible now, or unknown.
        Some(status @ (500..=599 | 429)) => Err(Refusal::Unclear(status.to_string())),
        Some(_) => Err(Refusal::Wrong(answer)),
        None => Err(Refusal::Unclear("the connection broke off".into())),
    }
}

fn broken(error: io::Error) -> Refusal {
    Refusal::Unclear(error.kind().to_string())
}
