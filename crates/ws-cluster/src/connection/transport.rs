//! The transport of a connection's bytes. The fan-out and the task both write to a TCP socket. Only the connection's
//! task writes to any other stream (TLS, a socket inside another framework). Otherwise the two behave alike, except that
//! a slow reader on another framework's stream counts as stalled until Tokio reports room.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use tokio::io::ReadBuf;

use super::{Application, task::Connection};
use crate::{io::Stream, send_queue::SendQueue};

/// The bytes of one client, in both directions.
pub(super) trait Transport: Sized + Send + Unpin + 'static {
    /// True if the connections can be parked.
    const PARKS: bool = false;

    /// Parks a connection. Returns it if it cannot be parked or has something to do.
    fn park<A: Application>(connection: Box<Connection<Self, A>>) -> Option<Box<Connection<Self, A>>> {
        Some(connection)
    }

    /// Reads what came. Reads nothing if the client sends no more.
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>, queue: &SendQueue) -> Poll<io::Result<()>>;

    /// Writes what waits. Ready if nothing is left.
    fn poll_write(&mut self, cx: &mut Context<'_>, queue: &SendQueue) -> Poll<io::Result<()>>;

    /// Shuts down the writing side. It may be called again.
    fn poll_shut_down(&mut self, cx: &mut Context<'_>, queue: &SendQueue) -> Poll<io::Result<()>>;
}

/// A TCP socket, which lies in the send queue.
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
pub(super) struct OtherStream<S> {
    stream: S,
    /// Bytes that the queue has given out and the stream has not taken.
    writing: Bytes,
    flushed: bool,
    shut: bool,
}

impl<S: Stream> OtherStream<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, writing: Bytes::new(), flushed: true, shut: false }
    }
}

impl<S: Stream> Transport for OtherStream<S> {
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>, _: &SendQueue) -> Poll<io::Result<()>> {
        match ready!(Pin::new(&mut self.stream).poll_read(cx, buffer)) {
            // A TLS client has ended TCP without a `close_notify`. This is the end of the stream, as on plain TCP. A
            // message that was cut off cannot be mistaken for a whole one, because each frame has its length.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Poll::Ready(Ok(())),
            read => Poll::Ready(read),
        }
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
                queue.note_refusal();
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
            // Frees the last frame, which clients share.
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
