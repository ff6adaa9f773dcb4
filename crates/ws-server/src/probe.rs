//! A test connection: a WebSocket that the node closes at once, and then a question about the node's health. Neither
//! depends on the authenticator or the site, so a node is not taken for dead because one of them hangs.

use std::{
    io::{Error, ErrorKind},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

/// Maximum number of bytes of an answer that are read.
const ANSWER_SIZE: usize = 16 * 1024;
/// The end of the head of an answer.
const END: &[u8] = b"\r\n\r\n";
/// A close frame with the code 1000.
const CLOSE: [u8; 8] = [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xe8];

/// Connects as a client does, waits for the node's close frame, and then asks for its health. A refusal with a reason also
/// counts as an answer, because a node that is full or starts is alive.
///
/// # Errors
/// Says in a few words why the node counts as dead.
pub(crate) async fn test_connection(bound: SocketAddr, path: &str, limit: Duration) -> Result<(), String> {
    let address = reachable(bound);
    let test = async {
        connect(address, path).await.map_err(|error| format!("a test connection failed: {error}"))?;
        let answer = get(address, "/health").await.map_err(|error| format!("/health failed: {error}"))?;
        match status(&answer) {
            Some(200) => Ok(()),
            _ => Err(answer.rsplit("\r\n").next().unwrap_or_default().trim().to_owned()),
        }
    };
    timeout(limit, test).await.unwrap_or_else(|_| Err(format!("a test connection got no answer in {limit:?}")))
}

async fn connect(address: SocketAddr, path: &str) -> Result<(), Error> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
         sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nws-cluster-test: 1\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    while !answer.windows(END.len()).any(|window| window == END) && answer.len() < ANSWER_SIZE {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
    }
    if status(&String::from_utf8_lossy(&answer)) != Some(101) {
        return Ok(());
    }
    let is_answered = !answer.ends_with(END);
    if !is_answered && stream.read_buf(&mut answer).await? == 0 {
        return Err(ErrorKind::UnexpectedEof.into());
    }
    // The connection's task has answered, so the end of the connection does not matter.
    let _ = stream.write_all(&CLOSE).await;
    Ok(())
}

async fn get(address: SocketAddr, path: &str) -> Result<String, Error> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nhost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(ANSWER_SIZE as u64).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn status(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()
}

/// Returns an address at which this machine reaches the listener: loopback if it listens at all addresses.
pub(crate) fn reachable(bound: SocketAddr) -> SocketAddr {
    let ip = match bound.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    SocketAddr::new(ip, bound.port())
}
