//! Publishing as a site does: over HTTP, to one node after the other until one accepts.

use std::{io, net::SocketAddr, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// The key that opens `/_publish` on all nodes here.
pub const PUBLISH_KEY: &str = "a key to publish";

/// Why a node did not accept.
#[derive(Debug)]
pub enum Refusal {
    /// Nothing listens there: it did not get the message.
    NotThere,
    /// It says no, in this way, and will say so again.
    Wrong(String),
    /// It gave no answer in time, the connection broke, or it knows no more: the message may be delivered or not.
    Unclear(String),
}

/// What is published.
#[derive(Clone, Copy, Debug)]
pub struct Message<'a> {
    /// Its action.
    pub action: &'a str,
    /// Its details.
    pub details: &'a Value,
    /// The target as text.
    pub to: &'a str,
    /// The idempotency key, which lets it be tried again elsewhere.
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
        // Not now, or not known.
        Some(status @ (500..=599 | 429)) => Err(Refusal::Unclear(status.to_string())),
        Some(_) => Err(Refusal::Wrong(answer)),
        None => Err(Refusal::Unclear("the connection broke off".into())),
    }
}

fn broken(error: io::Error) -> Refusal {
    Refusal::Unclear(error.kind().to_string())
}
