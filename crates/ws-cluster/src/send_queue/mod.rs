//! The send queue of one client: shared frames in order, with a limit in bytes, and at most one close frame at the end.
//! Over TCP the fan-out writes to the socket as well, so the connection's task only writes what the socket did not
//! take.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes};
use parking_lot::{Mutex, MutexGuard};
use tokio::{io::ReadBuf, net::TcpStream};

use self::{frames::Frames, sleeper::Sleeper, socket::SharedSocket};
use crate::{CloseCode, ws::frame};

#[cfg(feature = "tls")]
mod eager;
mod end;
mod frames;
mod run;
mod sleeper;
mod socket;
#[cfg(test)]
mod tests;

#[cfg(feature = "tls")]
pub(crate) use eager::EagerSocket;
pub(crate) use end::End;
pub(crate) use frames::MAX_JOINED;
pub(crate) use run::SharedFrame;
pub(crate) use sleeper::Parked;

/// The frames that one client's socket has not taken yet.
///
/// The hub adds frames from the cluster's task, and handlers push frames from any task. The hub's fan-out and the
/// connection's own task write to the socket. The synchronous lock is held for a few instructions or for one system
/// call that does not wait, and never across an await. A queue that is full closes the connection. A queue that is
/// sealed drops what is pushed.
pub(crate) struct SendQueue(Mutex<QueueState>);

#[derive(Default)]
#[repr(C)]
struct QueueState {
    frames: Frames,
    /// The socket, if the fan-out may write to it.
    socket: SharedSocket,
    sleeper: Sleeper,
}

impl SendQueue {
    /// Returns a queue in which at most `limit` bytes may wait. A limit above 2 GiB counts as 2 GiB.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Mutex::new(QueueState { frames: Frames::new(limit), ..QueueState::default() }))
    }

    /// Lets the fan-out write to the socket.
    pub(crate) fn attach(&self, socket: TcpStream) {
        self.0.lock().socket = SharedSocket::new(socket);
    }

    /// Reads from the attached socket.
    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.lock().socket.poll_read(cx, buffer)
    }

    /// Writes what waits to the attached socket. Ready if nothing is left.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        while !state.write()? {
            ready!(state.socket.poll_write_ready(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Shuts down the writing half of the socket.
    pub(crate) fn poll_shut_down(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().socket.poll_shut_down(cx)
    }

    /// Adds a frame for the connection's task to write. Closes the connection as too slow if the frame does not fit and
    /// the socket takes nothing.
    pub(crate) fn push(&self, frame: Bytes) {
        let mut state = self.0.lock();
        state.add(frame);
        wake(state);
    }

    /// Adds a frame for a fan-out to write when it ends. Returns true if the fan-out has to list the client for that.
    pub(crate) fn add(&self, frame: &mut SharedFrame) -> bool {
        let mut state = self.0.lock();
        let QueueState { frames, socket, .. } = &mut *state;
        let was_blocked = frames.blocked;
        // The connection's task handles a failure.
        frames.add_shared(frame, |frames| drop(socket.write(frames)));
        let new = !std::mem::replace(&mut frames.listed, true);
        // The connection's task ends the connection, or waits until the socket takes more: the fan-out leaves a socket
        // alone that takes nothing.
        if frames.is_sealed() || frames.failed || frames.blocked && !was_blocked {
            wake(state);
        }
        new
    }

    /// Writes the frames of the fan-outs, as far as the socket takes them. The connection's task writes the rest.
    pub(crate) fn write(&self) {
        let mut state = self.0.lock();
        state.frames.listed = false;
        if state.frames.blocked && !state.frames.failed {
            return;
        }
        let written = state.write();
        // The connection's task also ends the connection.
        if !matches!(written, Ok(true)) || state.frames.is_sealed() {
            wake(state);
        }
    }

    /// Adds the close frame, which is the last frame. Only the first close counts.
    pub(crate) fn close(&self, code: CloseCode, reason: &'static str) {
        let mut state = self.0.lock();
        if !state.frames.is_sealed() {
            state.frames.seal(frame::close(code, reason), reason);
            wake(state);
        }
    }

    /// Adds a last message and the close frame. If the message does not fit, it takes the place of the frames before
    /// it.
    pub(crate) fn close_after(&self, last: Bytes, code: CloseCode, reason: &'static str) {
        let mut state = self.0.lock();
        if state.frames.is_sealed() {
            return;
        }
        let QueueState { frames, socket, .. } = &mut *state;
        frames.close_after(last, frame::close(code, reason), reason, |frames| drop(socket.write(frames)));
        wake(state);
    }

    /// Adds an encoded close frame. The queue does not keep its reason; the caller does.
    pub(crate) fn seal(&self, close: Bytes) {
        let mut state = self.0.lock();
        if !state.frames.is_sealed() {
            state.frames.seal(close, "");
            wake(state);
        }
    }

    /// Makes the queue take nothing more and returns what was in it, including the socket, for the caller to drop.
    pub(crate) fn abandon(&self) -> Self {
        let abandoned = QueueState { frames: Frames::abandoned(), ..QueueState::default() };
        Self(Mutex::new(std::mem::replace(&mut *self.0.lock(), abandoned)))
    }

    /// Returns how the connection ended. Without a close frame it counts as lost.
    pub(crate) fn end(&self) -> End {
        self.0.lock().frames.end()
    }

    /// Returns true if a close frame was added.
    pub(crate) fn is_sealed(&self) -> bool {
        self.0.lock().frames.is_sealed()
    }

    /// Returns true if the socket or the task has taken everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().frames.is_empty()
    }

    /// Returns true if the client keeps up: the stream has taken everything that it was given. What waits then has not
    /// been written yet.
    pub(crate) fn keeps_up(&self) -> bool {
        self.0.lock().frames.keeps_up()
    }

    /// Returns what to write next: one shared frame, or several joined, or nothing if the queue is empty. The bytes
    /// count as waiting until [`written`](Self::written).
    pub(crate) fn take(&self) -> Bytes {
        self.0.lock().frames.take()
    }

    /// Notes that the stream took the first `size` bytes of `taken`, and removes them from it.
    pub(crate) fn written(&self, taken: &mut Bytes, size: usize) {
        taken.advance(size);
        self.0.lock().frames.took(size);
    }

    /// Returns the number of bytes that the socket has not taken yet.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().frames.waiting()
    }

    /// Notes that the stream takes nothing more for now.
    pub(crate) fn note_refusal(&self) {
        self.0.lock().frames.note_refusal(false);
    }

    /// Returns true if a frame of this size fits into half of the queue, if the queue is empty, or if the frame would
    /// be dropped anyway.
    pub(crate) fn has_room(&self, size: usize) -> bool {
        self.fits(size) || self.0.lock().frames.waiting() == 0
    }

    /// Returns true if `size` more bytes leave half of the queue to other frames, or would be dropped anyway.
    pub(crate) fn fits(&self, size: usize) -> bool {
        self.0.lock().frames.leaves_half(size)
    }

    /// Resolves once the queue [has room](Self::has_room). It registers no waker: only the connection's own task may
    /// await it, because that task polls again whenever the socket has taken something.
    pub(crate) async fn until_room(&self, size: usize) {
        poll_fn(|_| if self.has_room(size) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Wakes the connection for its timer.
    pub(crate) fn wake_for_timer(&self) {
        let mut state = self.0.lock();
        state.frames.timer_fired = true;
        wake(state);
    }

    /// Wakes the connection, because its socket has something to read.
    pub(crate) fn wake(&self) {
        wake(self.0.lock());
    }

    /// Notes that the task is awake and needs no wake-up. Returns true if its timer has fired.
    pub(crate) fn note_awake(&self) -> bool {
        let mut state = self.0.lock();
        state.sleeper = Sleeper::default();
        std::mem::take(&mut state.frames.timer_fired)
    }

    /// Notes the task's waker, unless there is something to do. Returns true if the task may sleep. `writes`: the task
    /// waits for the socket to take more. `closes`: it knows that the queue is sealed.
    pub(crate) fn sleep(&self, cx: &mut Context<'_>, writes: bool, closes: bool) -> bool {
        let mut state = self.0.lock();
        let frames = &state.frames;
        if !writes && !frames.is_empty() || frames.timer_fired || frames.failed || frames.is_sealed() && !closes {
            return false;
        }
        state.sleeper = Sleeper::Task(cx.waker().clone());
        true
    }

    /// Parks a connection until something wakes it. `waker` wakes it if its socket has something to read. Returns the
    /// connection if there is something to do.
    pub(crate) fn park<C: Parked + 'static>(&self, connection: Box<C>, waker: &Waker) -> Option<Box<C>> {
        let mut state = self.0.lock();
        let frames = &state.frames;
        let busy = !frames.is_empty() || frames.timer_fired || frames.failed || frames.is_sealed();
        if busy || !state.socket.wakes_when_readable(waker) {
            return Some(connection);
        }
        state.sleeper = Sleeper::parked(connection);
        None
    }

    /// Returns true if a fan-out has yet to write.
    #[cfg(test)]
    pub(crate) fn is_listed(&self) -> bool {
        self.0.lock().frames.listed
    }

    #[cfg(test)]
    pub(crate) fn is_parked(&self) -> bool {
        self.0.lock().sleeper.is_parked()
    }
}

impl QueueState {
    fn add(&mut self, frame: Bytes) {
        let Self { frames, socket, .. } = self;
        // The connection's task handles a failure.
        frames.add(frame, |frames| drop(socket.write(frames)));
    }

    /// Writes what the socket takes. Returns true if nothing is left.
    fn write(&mut self) -> io::Result<bool> {
        self.socket.write(&mut self.frames)
    }
}

/// Wakes the task or the parked connection. The lock is released first: if the runtime is ending, a connection that is
/// woken is dropped here.
fn wake(mut state: MutexGuard<'_, QueueState>) {
    let sleeper = std::mem::take(&mut state.sleeper);
    drop(state);
    sleeper.wake();
}
