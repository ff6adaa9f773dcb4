//! A TCP socket under TLS. Only the connection's task writes to it.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};

use super::socket::send_now;

/// Time between two attempts to write to a socket of which Tokio says that it takes nothing. A client counts as stalled
/// after a longer time.
const RETRY_INTERVAL: Duration = Duration::from_millis(50);

/// A TCP socket that is also tried if Tokio says that it takes nothing: Tokio does not tell if a client that reads slowly
/// has freed a part of the socket's buffer.
#[derive(Debug)]
pub(crate) struct EagerSocket {
    socket: TcpStream,
    /// The time of the last attempt.
    tried: Instant,
}

impl EagerSocket {
    pub(crate) fn new(socket: TcpStream) -> Self {
        Self { socket, tried: Instant::now() }
    }

    /// Writes although Tokio says that the socket takes nothing, unless that was tried a moment ago.
    fn try_again(&mut self, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let now = Instant::now();
        if now.duration_since(self.tried) < RETRY_INTERVAL {
            return Poll::Pending;
        }
        self.tried = now;
        match send_now(&self.socket, bytes) {
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {
                Poll::Pending
            }
            sent => Poll::Ready(sent),
        }
    }
}

impl AsyncRead for EagerSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buffer)
    }
}

impl AsyncWrite for EagerSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        if written.is_pending() { self.try_again(bytes) } else { written }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        match slices.iter().find(|slice| !slice.is_empty()) {
            Some(first) if written.is_pending() => self.try_again(first),
            _ => written,
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
