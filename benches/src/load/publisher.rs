//! The connections on which the load generator publishes, as a site would: one, or several at once.

use std::{
    io::{ErrorKind, Read, Write},
    net::SocketAddr,
    time::Duration,
};

use benches::Result;
use memchr::memmem;
use mio::{Interest, Token, net::TcpStream};

use super::{FIRST_PUBLISHER, Generator};

/// A connection on which publishes are written.
pub(super) struct Publisher {
    stream: TcpStream,
    heads: Heads,
}

/// Counts the ends of response heads in a stream, however the stream is cut.
#[derive(Debug, Default)]
struct Heads {
    /// Number of bytes of an end that have come.
    matched: usize,
}

impl Heads {
    fn count(&mut self, bytes: &[u8]) -> usize {
        const END: &[u8; 4] = b"\r\n\r\n";
        let mut ends = 0;
        for byte in bytes {
            self.matched = match *byte == END[self.matched] {
                true => self.matched + 1,
                false => usize::from(*byte == b'\r'),
            };
            if self.matched == END.len() {
                (ends, self.matched) = (ends + 1, 0);
            }
        }
        ends
    }
}

/// Returns the status line of an answer that refuses a request.
fn refusal(answer: &[u8]) -> Option<String> {
    let status = answer.strip_prefix(b"HTTP/1.1 ")?;
    let line = answer.split(|byte| *byte == b'\r').next()?;
    (!status.starts_with(b"2")).then(|| String::from_utf8_lossy(line).into_owned())
}

impl Generator {
    /// Opens new connections for the publishes of an order, since a server may close a connection that is idle for long.
    pub(super) fn introduce(&mut self, address: SocketAddr, introduction: &str, connections: usize) -> Result<()> {
        self.publishers.clear();
        self.publish_to = Some(address);
        self.publishers.resize_with(connections, || None);
        (0..connections).try_for_each(|number| self.open_publisher(number))?;
        if introduction.is_empty() { Ok(()) } else { self.publish(introduction) }
    }

    fn open_publisher(&mut self, number: usize) -> Result<()> {
        let stream = std::net::TcpStream::connect(self.publish_to.ok_or("nowhere to publish")?)?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        let mut stream = TcpStream::from_std(stream);
        self.poll.registry().register(&mut stream, Token(FIRST_PUBLISHER + number), Interest::READABLE)?;
        self.publishers[number] = Some(Publisher { stream, heads: Heads::default() });
        Ok(())
    }

    /// Writes a publish on each connection.
    pub(super) fn publish(&mut self, bytes: &str) -> Result<()> {
        for number in 0..self.publishers.len() {
            // A server may close the connection after an answer.
            if self.publishers[number].is_none() {
                self.open_publisher(number)?;
            }
            let mut bytes = bytes.as_bytes();
            while !bytes.is_empty() {
                let publisher = self.publishers[number].as_mut().ok_or("a connection for publishes was closed")?;
                match publisher.stream.write(bytes) {
                    Ok(size) => bytes = &bytes[size..],
                    // The server takes the rest once its answers are read.
                    Err(error) if error.kind() == ErrorKind::WouldBlock => drop(self.turn(Some(Duration::ZERO))?),
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }

    /// Reads the answers to publishes. Only their number matters, and whether one refuses the publish.
    pub(super) fn drain_publisher(&mut self, number: usize) -> Result<()> {
        loop {
            // An event may be older than the connections.
            let Some(Some(publisher)) = self.publishers.get_mut(number) else { return Ok(()) };
            match publisher.stream.read(&mut self.buffer) {
                Ok(0) => {
                    self.publishers[number] = None;
                    return Ok(());
                }
                Ok(size) => {
                    let answer = &self.buffer[..size];
                    let answers = publisher.heads.count(answer);
                    self.tally.answers += answers;
                    let since = self.tally.ticks.last().map(|tick| tick.elapsed().as_nanos() as u64);
                    self.tally.acceptances.extend(since.into_iter().cycle().take(answers));
                    if let Some(refusal) = refusal(answer) {
                        self.tally.trouble.get_or_insert(format!("a publish was refused: {refusal}"));
                    }
                    if let (Some(publish), 1..) = (&self.flood, answers) {
                        publisher.stream.write_all(publish.as_bytes())?;
                    }
                    // NATS checks that its publishers are alive.
                    if memmem::find(answer, b"PING\r\n").is_some() {
                        publisher.stream.write_all(b"PONG\r\n")?;
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_however_they_are_cut() {
        let answers = b"HTTP/1.1 204 No Content\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n\r\rx\r\r\n\r\n";
        for step in [1, 2, 3, 5, 100] {
            let mut heads = Heads::default();
            let count: usize = answers.chunks(step).map(|part| heads.count(part)).sum();
            assert_eq!(count, 3, "in steps of {step}");
        }
    }

    #[test]
    fn an_answer_that_refuses_is_told_from_one_that_accepts() {
        assert_eq!(refusal(b"HTTP/1.1 204 No Content\r\n\r\n"), None);
        assert_eq!(refusal(b"INFO {}\r\n"), None);
        assert_eq!(refusal(b"HTTP/1.1 401 Unauthorized\r\nA: b\r\n").as_deref(), Some("HTTP/1.1 401 Unauthorized"));
    }
}
