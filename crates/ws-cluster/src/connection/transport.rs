//! The narrow way between a connection and its bytes. A TCP socket is written to by whoever delivers; any other stream
//! (TLS, a socket inside another framework) by the connection's task alone. Beside that the two behave alike.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::ReadBuf;

use super::{Application, task::Connection};
use crate::{io::Stream, send_queue::SendQueue};

/// What one client's bytes come and go through.
pub(super) trait Transport: Sized + Send + Unpin + 'static {
    /// Whether its connections can be parked.
    const PARKS: bool = false;

    /// Parks a connection; gives it back where that cannot be, or where there is something to do after all.
    fn park<A: Application>(connection: Box<Connection<Self, A>>) -> Option<Box<Connection<Self, A>>> {
        Some(connection)
    }

    /// Reads what came; nothing where the client sends no more.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>, queue: &SendQueue) -> Poll<io::Result<()>>;

    /// Writes what waits. Ready where nothing is left.
    fn poll_write(&mut self, cx: &mut Context<'_>, queue: &SendQueue) -> Poll<io::Result<()>>;

    /// Tells the client that nothing more comes. May be asked again.
    fn poll_shut_down(&mut self, cx: &mut Context<'_>, queue: &SendQueue) -> Poll<io::Result<()>>;
}

/// A TCP socket, which the queue has.
pub(super) struct Tcp;

impl Transport for Tcp {
    const PARKS: bool = true;

    fn park<A: Application>(connection: Box<Connection<Self, A>>) -> Option<Box<Connection<Self, A>>> {
        connection.park()
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>, queue: &SendQueue) -> Poll<io::Result<()>> {
        queue.poll_read(cx, buffer)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, queue: &SendQueue) -> Poll<io::Result<()>> {
        queue.poll_write(cx)
    }

    fn poll_shut_down(&mut self, cx: &mut Context<'_>, queue: &SendQueue) -> Poll<io::Result<()>> {
        queue.poll_shut_down(cx)
    }
}

/// Any other stream.
pub(super) struct Other<S> {
    stream: S,
    /// Taken from the queue, not yet by the stream.
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
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>, _: &SendQueue) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, queue: &SendQueue) -> Poll<io::Result<()>> {
        loop {
            if self.writing.is_empty() {
                self.writing = queue.take();
            }
            if self.writing.is_empty() {
                break;
            }
            self.flushed = false;
            let Poll::Ready(written) = Pin::new(&mut self.stream).poll_write(cx, &self.writing) else {
                queue.refused();
                return Poll::Pending;
            };
            match written? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                size => queue.written(&mut self.writing, size),
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

    fn poll_shut_down(&mut self, cx: &mut Context<'_>, _: &SendQueue) -> Poll<io::Result<()>> {
        if !self.shut {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.shut = true;
        }
        Poll::Ready(Ok(()))
    }
}
