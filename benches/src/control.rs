//! The control port of the servers of this crate: HTTP/1.1, kept alive and pipelined, in one form for all of them.
//! `POST /publish?count=16` with a text as its body publishes that text sixteen times at once.

use crate::Result;

/// The answer to a request that was carried out.
pub const DONE: &[u8] = b"HTTP/1.1 204 No Content\r\n\r\n";

/// Maximum number of header lines, which is more than any client of the benches sends.
const HEADERS: usize = 32;

/// A request: a path, parameters and a text.
#[derive(Debug, PartialEq, Eq)]
pub struct Request {
    path: String,
    parameters: String,
    /// The body.
    pub text: String,
}

impl Request {
    /// Returns the path, such as `/publish`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns a parameter by its name. It is not decoded, since no parameter needs that.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// Returns a number by its name, or 1 if it is left out.
    #[must_use]
    pub fn number(&self, name: &str) -> usize {
        self.parameter(name).and_then(|text| text.parse().ok()).unwrap_or(1)
    }
}

/// Parses the requests of a connection.
#[derive(Debug, Default)]
pub struct Requests {
    buffer: Vec<u8>,
}

impl Requests {
    /// Adds bytes that were read.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Returns the next complete request.
    ///
    /// # Errors
    /// Fails if the bytes are no HTTP.
    pub fn next_request(&mut self) -> Result<Option<Request>> {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS];
        let mut head = httparse::Request::new(&mut headers);
        let httparse::Status::Complete(start) = head.parse(&self.buffer)? else { return Ok(None) };
        let size = head
            .headers
            .iter()
            .find(|header| header.name.eq_ignore_ascii_case("content-length"))
            .and_then(|header| std::str::from_utf8(header.value).ok()?.parse().ok())
            .unwrap_or(0);
        let Some(body) = self.buffer.get(start..start + size) else { return Ok(None) };
        let (path, parameters) = head.path.unwrap_or("/").split_once('?').unwrap_or((head.path.unwrap_or("/"), ""));
        let request = Request {
            path: path.to_owned(),
            parameters: parameters.to_owned(),
            text: String::from_utf8_lossy(body).into_owned(),
        };
        self.buffer.drain(..start + size);
        Ok(Some(request))
    }
}

/// Returns the bytes of a request.
#[must_use]
pub fn request(target: &str, text: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {}\r\n\r\n{text}", text.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_come_out_whole_and_in_order() {
        let sent = request("/publish?count=16&to=group:g1", "hello") + &request("/publish", "");
        let mut requests = Requests::default();
        let mut seen = Vec::new();
        for byte in sent.bytes() {
            requests.push(&[byte]);
            seen.extend(requests.next_request().unwrap());
        }
        let [first, second] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!((first.path(), first.text.as_str(), first.number("count")), ("/publish", "hello", 16));
        assert_eq!(first.parameter("to"), Some("group:g1"));
        assert_eq!((second.text.as_str(), second.number("count"), second.parameter("to")), ("", 1, None));
    }
}
