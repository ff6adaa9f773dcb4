//! Makes answers over HTTP, and reads bodies.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::Answer;

/// Time limit for a body to arrive.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) fn document(content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

/// Makes an answer of a line of text.
pub(super) fn text(status: StatusCode, text: &str) -> Answer {
    let mut answer = document("text/plain; charset=utf-8", format!("{text}\n"));
    *answer.status_mut() = status;
    answer
}

pub(super) fn json(status: StatusCode, value: &Value) -> Answer {
    let mut answer = document("application/json", value.to_string());
    *answer.status_mut() = status;
    answer
}

/// Makes the answer of a refusal or a failure, for people.
pub(super) fn error(status: StatusCode, why: &str) -> Answer {
    json(status, &json!({ "error": why }))
}

/// Sets a header, unless its value is not valid in a header.
pub(super) fn set(answer: &mut Answer, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        answer.headers_mut().insert(name, value);
    }
}

/// Reads a body of at most this size.
pub(super) async fn read(body: Incoming, limit: usize) -> Result<Bytes, Box<Answer>> {
    match tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, limit).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(why)) if why.is::<LengthLimitError>() => Err(error(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("the body is too large: it may have at most {limit} bytes"),
        )
        .into()),
        Ok(Err(_)) => Err(error(StatusCode::BAD_REQUEST, "the body broke off").into()),
        Err(_) => Err(error(StatusCode::REQUEST_TIMEOUT, "the body did not come in time").into()),
    }
}

/// Reads JSON, or returns an answer that says what is wrong with it.
pub(super) fn parse<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, Box<Answer>> {
    serde_json::from_slice(body)
        .map_err(|why| error(StatusCode::BAD_REQUEST, &format!("the body is not what is expected here: {why}")).into())
}
