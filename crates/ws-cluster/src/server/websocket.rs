//! The opening handshake of WebSockets as a server sees it (RFC 6455, section 4.2): what is missing in a request, and
//! the answer that agrees. Header values that are lists may stand on several lines and have white space and any case
//! (RFC 9110, section 5.6.1).

use bytes::Bytes;
use data_encoding::BASE64;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::Full;
use tungstenite::handshake::derive_accept_key;

use super::{http::answer, routes::UPGRADES};
use crate::ws::deflate::{self, Deflate};

/// The subprotocol that the clients of this project speak.
const PROTOCOL: &str = "ws-cluster.v1";

/// Prefix of a subprotocol that carries a [token](crate::Handshake::bearer_token). The server never selects one,
/// because it would send the token back.
const TOKEN: &str = "bearer.";

/// The answer that agrees to an upgrade, or the one that says what is missing.
pub(super) fn switching<B>(request: &Request<B>) -> Result<Response<Full<Bytes>>, Box<Response<Full<Bytes>>>> {
    let headers = request.headers();
    if request.method() != Method::GET {
        let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "only GET begins a WebSocket");
        response.headers_mut().insert(header::ALLOW, const { value(UPGRADES) });
        return Err(response.into());
    }
    if request.version() < Version::HTTP_11 {
        return Err(upgrade_required("a WebSocket needs HTTP/1.1; nginx needs `proxy_http_version 1.1`"));
    }
    if !list(headers, &header::CONNECTION).any(|option| option.eq_ignore_ascii_case(b"upgrade")) {
        return Err(upgrade_required(
            "a WebSocket needs the header `Connection: Upgrade`, which proxies must set again",
        ));
    }
    if !list(headers, &header::UPGRADE).any(|protocol| protocol.eq_ignore_ascii_case(b"websocket")) {
        return Err(upgrade_required(
            "a WebSocket needs the header `Upgrade: websocket`, which proxies must set again",
        ));
    }
    if !list(headers, &header::SEC_WEBSOCKET_VERSION).any(|version| version == b"13") {
        return Err(upgrade_required("a WebSocket needs the header `Sec-WebSocket-Version: 13`"));
    }
    // Its bytes would be taken for the client's first frames.
    if headers.contains_key(header::TRANSFER_ENCODING)
        || list(headers, &header::CONTENT_LENGTH).any(|size| size != b"0")
    {
        return Err(answer(StatusCode::BAD_REQUEST, "a request that begins a WebSocket has no body").into());
    }
    let mut keys = headers.get_all(header::SEC_WEBSOCKET_KEY).iter().map(|key| key.as_bytes().trim_ascii());
    let key = match (keys.next(), keys.next()) {
        (Some(key), None) if BASE64.decode(key).is_ok_and(|key| key.len() == 16) => key,
        (None, _) => return Err(answer(StatusCode::BAD_REQUEST, "the header `Sec-WebSocket-Key` is missing").into()),
        _ => {
            let why = "the header `Sec-WebSocket-Key` has to come once, with 16 bytes in base64";
            return Err(answer(StatusCode::BAD_REQUEST, why).into());
        }
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let accept = HeaderValue::from_str(&derive_accept_key(key)).expect("base64");
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, const { value("Upgrade") });
    headers.insert(header::UPGRADE, const { value("websocket") });
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    Ok(response)
}

/// Returns the subprotocol to answer with: the project's own if it is offered. Otherwise the first without a token: a
/// browser fails the connection if the server selects none.
pub(super) fn protocol(headers: &HeaderMap) -> Option<HeaderValue> {
    let is_token =
        |protocol: &[u8]| protocol.get(..TOKEN.len()).is_some_and(|start| start.eq_ignore_ascii_case(TOKEN.as_bytes()));
    let offered = || list(headers, &header::SEC_WEBSOCKET_PROTOCOL).filter(|protocol| !is_token(protocol));
    let selected = offered().find(|protocol| *protocol == PROTOCOL.as_bytes()).or_else(|| offered().next())?;
    HeaderValue::from_bytes(selected).ok()
}

/// What is negotiated about compression, and the header to answer with. `min_size`: messages below it are sent plain.
pub(super) fn deflate(headers: &HeaderMap, min_size: usize) -> Option<(Deflate, HeaderValue)> {
    let lines = headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS).iter().map(HeaderValue::as_bytes);
    let (deflate, answer) = deflate::answer(lines, min_size)?;
    Some((deflate, HeaderValue::try_from(answer).ok()?))
}

/// The elements of a list, which may stand on several lines; empty ones are left out.
fn list<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(name)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|element| !element.is_empty())
}

fn upgrade_required(why: &str) -> Box<Response<Full<Bytes>>> {
    let mut response = answer(StatusCode::UPGRADE_REQUIRED, why);
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, const { value("Upgrade") });
    headers.insert(header::UPGRADE, const { value("websocket") });
    headers.insert(header::SEC_WEBSOCKET_VERSION, const { value("13") });
    response.into()
}

const fn value(text: &'static str) -> HeaderValue {
    HeaderValue::from_static(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("sec-websocket-version", "13");
    const CONNECTION: (&str, &str) = ("connection", "Upgrade");
    const UPGRADE: (&str, &str) = ("upgrade", "websocket");

    fn status(request: http::request::Builder, headers: &[(&str, &str)]) -> u16 {
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        match switching(&request.body(()).unwrap()) {
            Ok(response) => {
                assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
                response.status().as_u16()
            }
            Err(response) => response.status().as_u16(),
        }
    }

    #[test]
    fn lists_may_have_more_in_them_any_case_and_several_lines() {
        let connections: [&[&str]; 7] = [
            &["Upgrade"],
            &["upgrade"],
            &["keep-alive, Upgrade"],
            &["keep-alive,\tUPGRADE\t"],
            &["keep-alive", "Upgrade"],
            &[", Upgrade ,"],
            &["Upgrade, Upgrade"],
        ];
        for lines in connections {
            let headers: Vec<_> =
                lines.iter().map(|line| ("connection", *line)).chain([UPGRADE, VERSION, KEY]).collect();
            assert_eq!(status(Request::get("/"), &headers), 101, "{lines:?}");
        }
        for lines in [&["websocket, foo"] as &[&str], &["h2c", "WebSocket"], &["\twebsocket "]] {
            let headers: Vec<_> =
                lines.iter().map(|line| ("upgrade", *line)).chain([CONNECTION, VERSION, KEY]).collect();
            assert_eq!(status(Request::get("/"), &headers), 101, "{lines:?}");
        }
        for version in ["13, 8", "8,13", " 13\t"] {
            let headers = [CONNECTION, UPGRADE, ("sec-websocket-version", version), KEY];
            assert_eq!(status(Request::get("/"), &headers), 101, "{version:?}");
        }
    }

    #[test]
    fn what_is_no_handshake_is_refused() {
        let whole = [CONNECTION, UPGRADE, VERSION, KEY];
        assert_eq!(status(Request::post("/"), &whole), 405);
        assert_eq!(status(Request::head("/"), &whole), 405);
        assert_eq!(status(Request::get("/").version(Version::HTTP_10), &whole), 426);
        for connection in ["", "keep-alive", "close", "upgraded", "keep-alive Upgrade", "Upgrade;x"] {
            assert_eq!(status(Request::get("/"), &[("connection", connection), UPGRADE, VERSION, KEY]), 426);
        }
        for upgrade in ["", "h2c", "websockets", "websocket/13", "web socket"] {
            assert_eq!(status(Request::get("/"), &[CONNECTION, ("upgrade", upgrade), VERSION, KEY]), 426);
        }
        for version in ["", "8", "130", "1, 3"] {
            let headers = [CONNECTION, UPGRADE, ("sec-websocket-version", version), KEY];
            assert_eq!(status(Request::get("/"), &headers), 426);
        }
        for key in ["", "x", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZTE="] {
            let headers = [CONNECTION, UPGRADE, VERSION, ("sec-websocket-key", key)];
            assert_eq!(status(Request::get("/"), &headers), 400);
        }
        assert_eq!(status(Request::get("/"), &[CONNECTION, UPGRADE, VERSION]), 400);
        assert_eq!(status(Request::get("/"), &[CONNECTION, UPGRADE, VERSION, KEY, KEY]), 400);
        for body in [("content-length", "5"), ("transfer-encoding", "chunked"), ("content-length", "0, 5")] {
            assert_eq!(status(Request::get("/"), &[CONNECTION, UPGRADE, VERSION, KEY, body]), 400);
        }
        assert_eq!(status(Request::get("/"), &[CONNECTION, UPGRADE, VERSION, KEY, ("content-length", "0")]), 101);
    }

    #[test]
    fn an_offered_subprotocol_is_selected_and_a_token_never() {
        let selected = |lines: &[&str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("sec-websocket-protocol", HeaderValue::from_str(line).unwrap());
            }
            protocol(&headers).map(|protocol| protocol.to_str().unwrap().to_owned())
        };
        let own = Some("ws-cluster.v1".to_owned());
        assert_eq!(selected(&["ws-cluster.v1"]), own);
        assert_eq!(selected(&["json, ws-cluster.v1"]), own);
        assert_eq!(selected(&["json", "\tws-cluster.v1 "]), own);
        assert_eq!(selected(&["bearer.abc, ws-cluster.v1"]), own);
        assert_eq!(selected(&["json, xml"]), Some("json".into()));
        assert_eq!(selected(&["bearer.abc, json"]), Some("json".into()));
        assert_eq!(selected(&["Bearer.abc"]), None);
        assert_eq!(selected(&["bearer.", ""]), None);
        assert_eq!(selected(&[]), None);
    }
}
