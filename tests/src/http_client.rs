//! HTTP as a client speaks it: one request on each connection.

use std::{
    io::{self, ErrorKind},
    net::SocketAddr,
};

use http::StatusCode;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// What a server answers.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: StatusCode,
    /// The status line and the headers.
    pub head: String,
    /// The body.
    pub text: String,
}

impl Answer {
    /// Returns the first header of this name.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        headers.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }
}

/// Sends a request on a connection of its own and returns the answer.
///
/// # Errors
/// No connection, the server does not take the whole body, or what it answers is no text or not HTTP.
pub async fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: impl AsRef<[u8]>,
) -> io::Result<Answer> {
    let body = body.as_ref();
    let size = body.len().to_string();
    let all = [&[("connection", "close"), ("content-length", &size)], headers].concat();
    let mut request = head(address, method, path, &all).into_bytes();
    request.extend(body);
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(&request).await?;
    answer(stream).await
}

/// Writes the head of a request on a connection of its own. The rest is the caller's.
///
/// # Errors
/// No connection.
pub async fn begin(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    stream.write_all(head(address, method, path, headers).as_bytes()).await?;
    Ok(stream)
}

/// Reads an answer, which ends with its connection.
///
/// # Errors
/// The connection breaks, or what came is no text or not HTTP.
pub async fn answer(mut stream: impl AsyncRead + Unpin) -> io::Result<Answer> {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let parsed = answer.split_once("\r\n\r\n").and_then(|(head, text)| {
        let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
        Some(Answer { status, head: head.to_owned(), text: text.to_owned() })
    });
    parsed.ok_or_else(|| io::Error::new(ErrorKind::UnexpectedEof, format!("not an answer: {answer:?}")))
}

fn head(address: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\n{headers}\r\n")
}
