//! What the site is told and asked: the JSON of the events. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, value::RawValue};

use crate::{Handshake, RawDetails, RequestId};

/// The headers that are passed on, besides the authorization. Others may be meant for the proxies only.
const HEADERS: [(&str, &str); 4] =
    [("cookie", "; "), ("origin", ", "), ("user-agent", ", "), ("accept-language", ", ")];

/// A client connects, or sends credentials.
#[derive(Serialize)]
pub(super) struct Connect<'a> {
    event: &'static str,
    connection: Option<String>,
    #[serde(flatten)]
    from: FromHandshake<'a>,
    /// The details of `Client/authentication`.
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials: Option<&'a [Value]>,
}

/// The identity of an open connection ends.
#[derive(Serialize)]
pub(super) struct Refresh<'a> {
    event: &'static str,
    connection: Option<String>,
    user: Option<&'a str>,
    session: Option<&'a str>,
    #[serde(flatten)]
    from: FromHandshake<'a>,
}

/// What is passed on of a handshake.
#[derive(Serialize)]
struct FromHandshake<'a> {
    remote_addr: Option<String>,
    headers: BTreeMap<&'static str, String>,
    query: BTreeMap<String, String>,
    language: Option<&'a str>,
}

/// An action of a client.
#[derive(Serialize)]
pub(super) struct Action<'a> {
    pub(super) event: &'static str,
    pub(super) action: &'a str,
    pub(super) details: &'a RawValue,
    pub(super) connection: String,
    pub(super) user: Option<&'a str>,
    pub(super) session: Option<&'a str>,
    pub(super) groups: BTreeSet<String>,
    pub(super) properties: BTreeMap<String, Value>,
    pub(super) language: Option<&'a str>,
    pub(super) remote_addr: Option<String>,
    /// The id of the message, if the client waits for an answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) request: Option<&'a RequestId>,
}

/// The end of a connection.
#[derive(Serialize)]
pub(super) struct Disconnect<'a> {
    pub(super) event: &'static str,
    pub(super) code: u16,
    pub(super) reason: String,
    /// The client is connected under the same id on this node.
    pub(super) resumed: bool,
    pub(super) connection: String,
    pub(super) user: Option<&'a str>,
    pub(super) session: Option<&'a str>,
    pub(super) groups: BTreeSet<String>,
    pub(super) properties: BTreeMap<String, Value>,
}

impl<'a> Connect<'a> {
    pub(super) fn new(connection: Option<String>, handshake: &'a Handshake, credentials: Option<&'a [Value]>) -> Self {
        Self { event: "connect", connection, from: FromHandshake::new(handshake), credentials }
    }
}

impl<'a> Refresh<'a> {
    pub(super) fn new(
        connection: Option<String>,
        handshake: &'a Handshake,
        user: Option<&'a str>,
        session: Option<&'a str>,
    ) -> Self {
        Self { event: "refresh", connection, user, session, from: FromHandshake::new(handshake) }
    }
}

impl<'a> FromHandshake<'a> {
    fn new(handshake: &'a Handshake) -> Self {
        let mut headers = BTreeMap::new();
        for (name, separator) in HEADERS {
            let values: Vec<&str> = handshake.headers(name).collect();
            if !values.is_empty() {
                headers.insert(name, values.join(separator));
            }
        }
        // A browser can send a token in a subprotocol only.
        let authorization = handshake.header("authorization").map(str::to_owned);
        let token = || handshake.bearer_token().map(|token| format!("Bearer {token}"));
        if let Some(authorization) = authorization.or_else(token) {
            headers.insert("authorization", authorization);
        }
        let mut query = BTreeMap::new();
        for (name, value) in handshake.query_pairs() {
            query.entry(name.into_owned()).or_insert_with(|| value.into_owned());
        }
        Self { remote_addr: remote_addr(handshake), headers, query, language: handshake.language() }
    }
}

/// Returns the client's address as text.
pub(super) fn remote_addr(handshake: &Handshake) -> Option<String> {
    handshake.remote_ip().map(|ip| ip.to_string())
}

/// Returns details as JSON that serde passes on as it is.
pub(super) fn raw(details: &RawDetails) -> &RawValue {
    // Details are JSON: nothing else can be made.
    serde_json::from_str(details.as_str()).unwrap_or(RawValue::NULL)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::TrustedProxies;

    fn handshake(path: &str, headers: &[(&str, &str)]) -> Handshake {
        let request =
            headers.iter().fold(http::Request::get(path), |request, (name, value)| request.header(*name, *value));
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Handshake::new(&parts, Some("192.0.2.7:5000".parse().unwrap()), &TrustedProxies::none())
    }

    #[test]
    fn a_connect_has_some_headers_and_the_query() {
        let handshake = handshake(
            "/WebSockets?page=7&q=a%20b&page=8",
            &[
                ("cookie", "a=1"),
                ("cookie", "b=2"),
                ("origin", "https://example.org"),
                ("user-agent", "Firefox"),
                ("accept-language", "de-CH, en;q=0.5"),
                ("x-secret", "no"),
                ("host", "example.org"),
                ("sec-websocket-protocol", "ws-cluster.v1, bearer.token"),
            ],
        );
        let credentials = [json!("user"), json!(7)];
        let event = serde_json::to_value(Connect::new(Some("id".into()), &handshake, Some(&credentials))).unwrap();
        let expected = json!({
            "event": "connect",
            "connection": "id",
            "remote_addr": "192.0.2.7",
            "headers": {
                "cookie": "a=1; b=2",
                "authorization": "Bearer token",
                "origin": "https://example.org",
                "user-agent": "Firefox",
                "accept-language": "de-CH, en;q=0.5",
            },
            "query": {"page": "7", "q": "a b"},
            "language": "de-CH",
            "credentials": ["user", 7],
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn a_refresh_has_what_the_site_said_before() {
        let handshake = handshake("/", &[("authorization", "Basic eA==")]);
        let event = serde_json::to_value(Refresh::new(Some("id".into()), &handshake, Some("ann"), None)).unwrap();
        let expected = json!({
            "event": "refresh", "connection": "id", "user": "ann", "session": null, "remote_addr": "192.0.2.7",
            "headers": {"authorization": "Basic eA=="}, "query": {}, "language": null,
        });
        assert_eq!(event, expected);
    }

    #[test]
    fn the_details_of_an_action_are_the_bytes_of_the_client() {
        let details: RawDetails = r#"[18446744073709551616, 1.0,{"z":1, "a":"\u00e9","z":1e400}]"#.parse().unwrap();
        let action = Action {
            event: "action",
            action: "a\"b",
            details: raw(&details),
            connection: "id".into(),
            user: None,
            session: None,
            groups: BTreeSet::from(["page/7".to_owned()]),
            properties: BTreeMap::from([("page".to_owned(), json!(7.5))]),
            language: Some("de"),
            remote_addr: None,
            request: None,
        };
        let expected = format!(
            r#"{{"event":"action","action":"a\"b","details":{details},"connection":"id","user":null,"session":null,"groups":["page/7"],"properties":{{"page":7.5}},"language":"de","remote_addr":null}}"#
        );
        assert_eq!(serde_json::to_string(&action).unwrap(), expected);
    }
}
