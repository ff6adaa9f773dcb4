//! A TCP socket that several write to: whoever delivers, on the spot, and the connection's task what is left.

use std::{
    cell::RefCell,
    io,
    pin::{Pin, pin},
    task::{Context, Poll, Waker},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::unconstrained,
};

use super::frames::Frames;

thread_local! {
    /// Where frames are joined for a write to a socket: one for each thread, not for each connection.
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The socket of one client, under the lock of its queue. Without one the task writes, to a stream of its own.
#[derive(Default)]
pub(super) struct SharedSocket(Option<TcpStream>);

impl SharedSocket {
    pub(super) fn new(socket: TcpStream) -> Self {
        Self(Some(socket))
    }

    pub(super) fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Some(socket) => Pin::new(socket).poll_read(cx, buffer),
            None => Poll::Ready(Ok(())),
        }
    }

    pub(super) fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &self.0 {
            Some(socket) => socket.poll_write_ready(cx),
            None => Poll::Pending,
        }
    }

    pub(super) fn poll_shut_down(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0 {
            Some(socket) => Pin::new(socket).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Lets `waker` be woken once there is something to read. Returns false if there is already, or no socket.
    pub(super) fn wakes_when_readable(&self, waker: &Waker) -> bool {
        let Some(socket) = &self.0 else { return false };
        // Out of turn: it must not wake itself here.
        let readable = pin!(unconstrained(std::future::poll_fn(|cx| socket.poll_read_ready(cx))));
        readable.poll(&mut Context::from_waker(waker)).is_pending()
    }

    /// Writes what the socket takes. Returns true if nothing is left.
    pub(super) fn write(&self, frames: &mut Frames) -> io::Result<bool> {
        if frames.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let Some(socket) = &self.0 else { return Ok(frames.is_empty()) };
        let mut took = false;
        while !frames.is_empty() {
            let written = match frames.first() {
                [] => break,
                [one] => socket.try_write(one),
                several => JOINED.with_borrow_mut(|joined| {
                    joined.clear();
                    several.iter().for_each(|frame| joined.extend_from_slice(frame));
                    socket.try_write(joined)
                }),
            };
            match written {
                Ok(0) => {
                    frames.failed = true;
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Ok(size) => {
                    frames.advance(size);
                    took = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    frames.blocked = true;
                    frames.refuses(took);
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    frames.failed = true;
                    return Err(error);
                }
            }
        }
        frames.takes();
        frames.shrink();
        Ok(true)
    }
}
