//! The narrow way between a connection and its bytes. A TCP socket is written to by whoever delivers; any other stream
//! (TLS, a socket inside another framework) by the connection's task alone. Beside that the two behave alike.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::ReadBuf;

use super::{outbox::Outbox, task::Connection};
use crate::io::Stream;

/// What one client's bytes come and go through.
pub(super) trait Transport: Sized + Send + Unpin + 'static {
    /// Whether its connections can be parked.
    const PARKS: bool = false;

    /// Parks a connection; gives it back where that cannot be, or where there is something to do after all.
    fn park(connection: Box<Connection<Self>>) -> Option<Box<Connection<Self>>> {
        Some(connection)
    }

    /// Reads what came; nothing where the client sends no more.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>, outbox: &Outbox) -> Poll<io::Result<()>>;

    /// Writes what waits. Ready where nothing is left.
    fn poll_write(&mut self, cx: &mut Context<'_>, outbox: &Outbox) -> Poll<io::Result<()>>;

    /// Tells the client that nothing more comes. May be asked again.
    fn poll_shut_down(&mut self, cx: &mut Context<'_>, outbox: &Outbox) -> Poll<io::Result<()>>;
}

/// A TCP socket, which the outbox has.
pub(super) struct Tcp;

impl Transport for Tcp {
    const PARKS: bool = true;

    fn park(connection: Box<Connection<Self>>) -> Option<Box<Connection<Self>>> {
        connection.park()
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>, outbox: &Outbox) -> Poll<io::Result<()>> {
        outbox.poll_read(cx, buffer)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, outbox: &Outbox) -> Poll<io::Result<()>> {
        outbox.poll_write(cx)
    }

    fn poll_shut_down(&mut self, cx: &mut Context<'_>, outbox: &Outbox) -> Poll<io::Result<()>> {
        outbox.poll_shut_down(cx)
    }
}

/// Any other stream.
pub(super) struct Other<S> {
    stream: S,
    /// Taken from the outbox, not yet by the stream.
    writing: Bytes,
    flushed: bool,
    shut: bool,
}

impl<S: Stream> Other<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, writing: Bytes::new(), flushed: true, shut: false }
    }
}

impl<S: Stream> Transport for Other<S> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>, _: &Outbox) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, outbox: &Outbox) -> Poll<io::Result<()>> {
        loop {
            if self.writing.is_empty() {
                self.writing = outbox.take();
            }
            if self.writing.is_empty() {
                break;
            }
            self.flushed = false;
            let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, &self.writing) else {
                outbox.refused();
                return Poll::Pending;
            };
            match written? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                size => outbox.written(&mut self.writing, size),
            }
        }
        if !self.flushed {
            ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
            self.flushed = true;
            // The last frame goes back to those who share it.
            self.writing = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shut_down(&mut self, cx: &mut Context<'_>, _: &Outbox) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}
