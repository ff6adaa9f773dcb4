//! A TCP socket with two writers: the fan-out writes first, and the connection's task writes what is left.

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
    /// The buffer in which frames are joined for a write. There is one for each thread instead of one for each
    /// connection.
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The socket of one client, under the lock of its queue. If it is `None`, the task writes to a stream of its own.
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

    /// Registers `waker` to be woken once there is something to read. Returns false if there is something already, or
    /// no socket.
    pub(super) fn wakes_when_readable(&self, waker: &Waker) -> bool {
        let Some(socket) = &self.0 else { return false };
        // Tokio's cooperative budget is off here: if it ran out, the poll would wake the connection at once.
        let readable = pin!(unconstrained(std::future::poll_fn(|cx| socket.poll_read_ready(cx))));
        readable.poll(&mut Context::from_waker(waker)).is_pending()
    }

    /// Writes what the socket takes. Returns true if nothing is left.
    pub(super) fn write(&self, frames: &mut Frames) -> io::Result<bool> {
        if frames.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let Some(socket) = &self.0 else { return Ok(frames.is_empty()) };
        // A client that reads slowly frees a part of the socket's buffer that Tokio does not tell of. So a socket that
        // was refused some time ago is tried, before its client counts as stalled.
        let (asks_tokio, mut took) = (frames.was_just_refused(), false);
        while !frames.is_empty() {
            let written = match frames.first() {
                [] => break,
                [one] => send(socket, one, asks_tokio),
                several => JOINED.with_borrow_mut(|joined| {
                    joined.clear();
                    several.iter().for_each(|frame| joined.extend_from_slice(frame));
                    send(socket, joined, asks_tokio)
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
                    frames.note_refusal(took);
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    frames.failed = true;
                    return Err(error);
                }
            }
        }
        frames.blocked = false;
        frames.end_stall();
        frames.shrink();
        Ok(true)
    }
}

/// Writes. If `asks_tokio` is true, the socket is tried only if Tokio reports room. That saves a system call, but Tokio
/// reports room only once a third of the buffer is free. If the socket took everything the last time, Tokio is not asked,
/// because its answer is in memory that no delivery needs otherwise.
fn send(socket: &TcpStream, bytes: &[u8], asks_tokio: bool) -> io::Result<usize> {
    if asks_tokio {
        return socket.try_write(bytes);
    }
    match send_now(socket, bytes) {
        // Tokio has to see the refusal, so that it wakes the task once the socket takes more.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.try_write(bytes),
        sent => sent,
    }
}

/// Writes without asking Tokio.
#[cfg(target_os = "linux")]
pub(super) fn send_now(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(socket, bytes, rustix::net::SendFlags::NOSIGNAL)?)
}

/// Writes. Only Linux is known to tell Tokio late that a socket takes something.
#[cfg(not(target_os = "linux"))]
pub(super) fn send_now(socket: &TcpStream, bytes: &[u8]) -> io::Result<usize> {
    socket.try_write(bytes)
}
