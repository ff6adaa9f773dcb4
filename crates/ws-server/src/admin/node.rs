//! Answers questions that only a node can answer: about its cluster and its settings, and commands to its cluster.

use http::{Method, Request, StatusCode};
use http_body_util::Empty;
use serde::Deserialize;
use serde_json::{Value, json};
use url::form_urlencoded;
use ws_cluster::{Close, ConnectionQuery, Message, PublishError, RawDetails, Server, Target, TrustedProxies};

use super::{Answer, Question, answer};
use crate::{config::Shown, metrics};

/// A node that answers.
pub(crate) struct Node {
    server: Server,
    /// The settings in effect, for people.
    settings: Shown,
}

/// A message to publish.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Publish {
    action: String,
    #[serde(default)]
    details: RawDetails,
    to: String,
}

/// The connections to close.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Closed {
    user: Option<String>,
    session: Option<String>,
    connection: Option<String>,
}

type Refusal = Box<Answer>;

impl Node {
    pub(crate) fn new(server: Server, settings: Shown) -> Self {
        Self { server, settings }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.server.status().ready
    }

    pub(super) fn trusted_proxies(&self) -> TrustedProxies {
        self.server.live_settings().trusted_proxies
    }

    /// Answers a question. The sender is allowed to ask it.
    pub(super) async fn answer(&self, question: Question) -> Answer {
        let Question { method, path, body } = question;
        let (path, query) = path.split_once('?').unwrap_or((&path, ""));
        let answered = match (path, method == Method::POST) {
            ("/health" | "/ready", false) => Ok(self.watched(path).await),
            ("/metrics", false) => Ok(answer::document(metrics::FORMAT, metrics::render())),
            ("/admin/api/cluster", false) => Ok(answer::json(StatusCode::OK, &self.cluster())),
            ("/admin/api/connections", false) => self.connections(query).await,
            ("/admin/api/config", false) => {
                Ok(answer::json(StatusCode::OK, &json!({ "settings": self.settings.rows() })))
            }
            ("/admin/api/publish", true) => self.publish(&body).await,
            ("/admin/api/close", true) => self.close(&body).await,
            _ => Err(answer::text(StatusCode::NOT_FOUND, "not found").into()),
        };
        answered.unwrap_or_else(|refusal| *refusal)
    }

    /// Returns the answer that the node gives at its own port.
    async fn watched(&self, path: &str) -> Answer {
        match Request::get(path).body(Empty::<bytes::Bytes>::new()) {
            Ok(request) => self.server.handle(request).await,
            Err(error) => answer::text(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        }
    }

    fn cluster(&self) -> Value {
        json!({ "own": self.server.node_id().to_string(), "nodes": self.server.cluster_report() })
    }

    async fn connections(&self, query: &str) -> Result<Answer, Refusal> {
        let query = connection_query(query).map_err(bad)?;
        let found = self.server.list_connections(query).await;
        Ok(answer::json(StatusCode::OK, &json!(found)))
    }

    async fn publish(&self, body: &[u8]) -> Result<Answer, Refusal> {
        let Publish { action, details, to } = answer::parse(body)?;
        let target: Target = to.parse().map_err(|why| bad(format!("to: {why}")))?;
        done(self.server.publish(Message::raw(action, details).to(target)).await)
    }

    async fn close(&self, body: &[u8]) -> Result<Answer, Refusal> {
        done(self.server.close(which(answer::parse(body)?)?).await)
    }
}

/// Returns the connections to close.
fn which(closed: Closed) -> Result<Close, Refusal> {
    match closed {
        Closed { user: Some(user), session: None, connection: None } if !user.is_empty() => Ok(Close::user(user)),
        Closed { user: None, session: Some(session), connection: None } if !session.is_empty() => {
            Ok(Close::session(session))
        }
        Closed { user: None, session: None, connection: Some(connection) } => {
            Ok(Close::connection(connection.parse().map_err(|why| bad(format!("connection: {why}")))?))
        }
        _ => {
            let why = r#"say which connections: {"user": ID}, {"session": ID} or {"connection": ID}"#;
            Err(bad(why.to_owned()))
        }
    }
}

/// Reads a search for connections. Forms send empty values, which count as left out.
fn connection_query(query: &str) -> Result<ConnectionQuery, String> {
    let mut read = ConnectionQuery::default();
    for (name, value) in form_urlencoded::parse(query.as_bytes()).filter(|(_, value)| !value.trim().is_empty()) {
        let value = value.trim();
        match &*name {
            "user" => read.user = Some(value.to_owned()),
            "session" => read.session = Some(value.to_owned()),
            "group" => read.group = Some(value.to_owned()),
            "address" => {
                let address = value.parse().map_err(|_| format!("address: {value} is no IP address"))?;
                read.address = Some(address);
            }
            "limit" => {
                let limit = value.parse().ok().filter(|limit| (1..=1_000).contains(limit));
                read.limit = limit.ok_or("limit: give a number from 1 to 1000")?;
            }
            _ => return Err(format!("unknown member `{name}`: use user, session, group, address and limit")),
        }
    }
    Ok(read)
}

fn bad(why: String) -> Refusal {
    answer::error(StatusCode::BAD_REQUEST, &why).into()
}

/// Makes the answer to a command to the cluster.
fn done(outcome: Result<(), PublishError>) -> Result<Answer, Refusal> {
    match outcome {
        Ok(()) => Ok(answer::json(StatusCode::OK, &json!({ "accepted": true }))),
        Err(error) => {
            let status = StatusCode::from_u16(error.status_code()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            Err(answer::error(status, &error.to_string()).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_id_closes_nothing() {
        let which = |body: &str| which(serde_json::from_str(body).unwrap());
        for wrong in [r#"{"user": ""}"#, r#"{"session": ""}"#, r#"{"connection": ""}"#, "{}"] {
            assert_eq!(which(wrong).err().map(|refusal| refusal.status()), Some(StatusCode::BAD_REQUEST), "{wrong}");
        }
        assert!(which(r#"{"user": "ann"}"#).is_ok());
    }

    #[test]
    fn a_search_takes_what_forms_send() {
        let query = connection_query("user=a%26b&session=&group=room%2F1&address=%3A%3A1&limit=20").unwrap();
        assert_eq!((query.user.as_deref(), query.session, query.group.as_deref()), (Some("a&b"), None, Some("room/1")));
        assert_eq!((query.address.unwrap().to_string(), query.limit), ("::1".to_owned(), 20));
        for (wrong, says) in [
            ("limit=0", "limit"),
            ("limit=x", "limit"),
            ("limit=1001", "limit"),
            ("address=localhost", "address"),
            ("name=ann", "unknown member `name`"),
        ] {
            assert!(connection_query(wrong).unwrap_err().starts_with(says), "{wrong}");
        }
    }
}
