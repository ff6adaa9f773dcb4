//! What waits for one client: shared frames in order, bounded in bytes, ended by at most one close frame. Over a TCP
//! socket whoever delivers writes it as well; only what the socket does not take is left to the connection's task.

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

mod end;
mod frames;
mod sleeper;
mod socket;

pub(crate) use end::End;
pub(crate) use sleeper::Parked;

/// The frames that one client's socket has not taken yet.
///
/// The hub adds from the cluster's task, handlers push from anywhere; the socket is written to by the hub's fan-out and
/// by the connection's own task. A synchronous lock, held for a few instructions or one system call that does not wait,
/// and never across an await. When it is full the connection is closed; when it is sealed, what is pushed is dropped.
pub(crate) struct SendQueue(Mutex<State>);

#[derive(Default)]
struct State {
    frames: Frames,
    /// Where whoever delivers may write.
    socket: SharedSocket,
    sleeper: Sleeper,
}

impl SendQueue {
    /// With the most bytes that may wait; a limit above 2 GiB counts as that.
    pub(crate) fn new(limit: usize) -> Self {
        Self(Mutex::new(State { frames: Frames::new(limit), ..State::default() }))
    }

    /// Lets whoever delivers write to the socket.
    pub(crate) fn attach(&self, socket: TcpStream) {
        self.0.lock().socket = SharedSocket::new(socket);
    }

    /// Reads from the socket that was attached.
    pub(crate) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.0.lock().socket.poll_read(cx, buffer)
    }

    /// Writes what waits to the socket that was attached. Ready where nothing is left.
    pub(crate) fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        state.frames.blocked = false;
        while !state.write()? {
            ready!(state.socket.poll_write_ready(cx))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the client that nothing more comes.
    pub(crate) fn poll_shut_down(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.lock().socket.poll_shut_down(cx)
    }

    /// Adds a frame, to be written by the connection's task. Closes the connection as too slow if the frame does not fit
    /// and the socket takes nothing.
    pub(crate) fn push(&self, frame: Bytes) {
        let mut state = self.0.lock();
        state.add(frame);
        wake(state);
    }

    /// Adds a frame that is written at the end of a fan-out. Returns true if the fan-out has to note the client for that.
    pub(crate) fn add(&self, frame: Bytes) -> bool {
        let mut state = self.0.lock();
        state.add(frame);
        let new = !std::mem::replace(&mut state.frames.noted, true);
        if state.frames.is_sealed() {
            // It ends, and that is its own affair.
            wake(state);
        }
        new
    }

    /// Writes what the fan-outs added, as far as the socket takes it; the rest is the task's.
    pub(crate) fn write(&self) {
        let mut state = self.0.lock();
        state.frames.noted = false;
        if state.frames.blocked && !state.frames.failed {
            return;
        }
        let written = state.write();
        // A connection that ends is the task's as well.
        if !matches!(written, Ok(true)) || state.frames.is_sealed() {
            wake(state);
        }
    }

    /// Adds the close frame, the last one. The first close counts.
    pub(crate) fn close(&self, code: CloseCode, reason: &'static str) {
        let mut state = self.0.lock();
        if !state.frames.is_sealed() {
            state.frames.seal(frame::close(code, reason), reason);
            wake(state);
        }
    }

    /// The same after a last message, which is sent even where it takes what waits before it.
    pub(crate) fn close_after(&self, last: Bytes, code: CloseCode, reason: &'static str) {
        let mut state = self.0.lock();
        if state.frames.is_sealed() {
            return;
        }
        let State { frames, socket, .. } = &mut *state;
        frames.close_after(last, frame::close(code, reason), reason, |frames| drop(socket.write(frames)));
        wake(state);
    }

    /// Adds a close frame that is formatted already, whose reason the caller keeps.
    pub(crate) fn seal(&self, close: Bytes) {
        let mut state = self.0.lock();
        if !state.frames.is_sealed() {
            state.frames.seal(close, "");
            wake(state);
        }
    }

    /// Takes nothing more: the socket is done with. What was in here, with the socket, is the caller's to drop.
    pub(crate) fn abandon(&self) -> Self {
        let abandoned = State { frames: Frames::abandoned(), ..State::default() };
        Self(Mutex::new(std::mem::replace(&mut *self.0.lock(), abandoned)))
    }

    /// How the connection ended, if it has: one without a close frame is lost.
    pub(crate) fn end(&self) -> End {
        self.0.lock().frames.end()
    }

    /// Whether a close frame was added.
    pub(crate) fn is_sealed(&self) -> bool {
        self.0.lock().frames.is_sealed()
    }

    /// Whether the socket, or the task, has taken everything.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.lock().frames.is_empty()
    }

    /// What to write next: one frame as it is shared, or several joined. Empty where nothing waits. It counts as
    /// waiting until [`written`](Self::written).
    pub(crate) fn take(&self) -> Bytes {
        self.0.lock().frames.take()
    }

    /// The stream took the first `size` bytes of `taken`.
    pub(crate) fn written(&self, taken: &mut Bytes, size: usize) {
        taken.advance(size);
        self.0.lock().frames.took(size);
    }

    /// Bytes that the socket has not taken yet.
    pub(crate) fn waiting(&self) -> usize {
        self.0.lock().frames.waiting()
    }

    /// The stream takes nothing more for now.
    pub(crate) fn refused(&self) {
        self.0.lock().frames.refuses(false);
    }

    /// Returns true if a frame of this size leaves half of the room to others, or has all of it, or is dropped anyway.
    pub(crate) fn has_room(&self, size: usize) -> bool {
        self.fits(size) || self.0.lock().frames.waiting() == 0
    }

    /// Returns true if frames of this size together leave half of the room to others, or are dropped anyway.
    pub(crate) fn fits(&self, size: usize) -> bool {
        self.0.lock().frames.leaves_half(size)
    }

    /// Resolves once the queue [has room](Self::has_room). For the connection's own task only, which asks again whenever
    /// the socket took something.
    pub(crate) async fn until_room(&self, size: usize) {
        poll_fn(|_| if self.has_room(size) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Wakes the task, since a time has come.
    pub(crate) fn ring(&self) {
        let mut state = self.0.lock();
        state.frames.rung = true;
        wake(state);
    }

    /// Wakes the connection, since its socket has something to read.
    pub(crate) fn wake(&self) {
        wake(self.0.lock());
    }

    /// The task is awake: nobody has to wake it. Whether its timer went off.
    pub(crate) fn awake(&self) -> bool {
        let mut state = self.0.lock();
        state.sleeper = Sleeper::default();
        std::mem::take(&mut state.frames.rung)
    }

    /// The task goes to sleep until it is woken, unless there is something to do. `writes`: it waits for the socket to
    /// take more; `closes`: it knows of the seal.
    pub(crate) fn sleep(&self, cx: &mut Context<'_>, writes: bool, closes: bool) -> bool {
        let mut state = self.0.lock();
        let frames = &state.frames;
        if !writes && !frames.is_empty() || frames.rung || frames.failed || frames.is_sealed() && !closes {
            return false;
        }
        state.sleeper = Sleeper::Task(cx.waker().clone());
        true
    }

    /// Parks a connection until it is woken, by `waker` if its socket has something to read. Gives the connection back if
    /// there is something to do.
    pub(crate) fn park<C: Parked + 'static>(&self, connection: Box<C>, waker: &Waker) -> Option<Box<C>> {
        let mut state = self.0.lock();
        let frames = &state.frames;
        let busy = !frames.is_empty() || frames.rung || frames.failed || frames.is_sealed();
        if busy || !state.socket.wakes_when_readable(waker) {
            return Some(connection);
        }
        state.sleeper = Sleeper::parked(connection);
        None
    }

    #[cfg(test)]
    pub(crate) fn is_parked(&self) -> bool {
        self.0.lock().sleeper.is_parked()
    }
}

impl State {
    fn add(&mut self, frame: Bytes) {
        let Self { frames, socket, .. } = self;
        // A failure is the task's to find out.
        frames.add(frame, |frames| drop(socket.write(frames)));
    }

    /// Writes what the socket takes. Returns true if nothing is left.
    fn write(&mut self) -> io::Result<bool> {
        self.socket.write(&mut self.frames)
    }
}

/// Wakes whoever sleeps; beyond the lock, since a connection that is woken while its runtime ends is dropped on the spot.
fn wake(mut state: MutexGuard<'_, State>) {
    let sleeper = std::mem::take(&mut state.sleeper);
    drop(state);
    sleeper.wake();
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncReadExt, time::advance};

    use super::{
        frames::{BURST, JOIN},
        *,
    };

    #[test]
    fn what_waits_is_joined_in_order() {
        let queue = SendQueue::new(100);
        assert!(queue.take().is_empty());
        queue.push(Bytes::from_static(b"one "));
        queue.push(Bytes::from_static(b"two "));
        queue.push(Bytes::from_static(b"three"));
        assert_eq!(queue.take(), "one two three");
        assert!(queue.take().is_empty());
    }

    #[test]
    fn one_frame_is_not_copied() {
        let queue = SendQueue::new(100);
        let frame = Bytes::from(vec![b'x'; 10]);
        queue.push(frame.clone());
        assert_eq!(queue.take().as_ptr(), frame.as_ptr());
    }

    #[test]
    fn a_large_frame_is_not_joined() {
        let queue = SendQueue::new(1024 * 1024);
        queue.push(Bytes::from_static(b"small"));
        queue.push(vec![b'x'; JOIN].into());
        assert_eq!(queue.take(), "small");
        assert_eq!(queue.take().len(), JOIN);
    }

    #[test]
    fn past_the_limit_only_the_close_frame_is_left() {
        let queue = SendQueue::new(10);
        queue.push(Bytes::from_static(b"12345678"));
        let mut taken = queue.take();
        queue.written(&mut taken, 6);
        queue.push(Bytes::from_static(b"12345678"));
        assert!(!queue.is_sealed());
        queue.push(vec![b'9'; 71].into());
        assert!(queue.is_sealed());
        assert_eq!(queue.take(), frame::close(CloseCode::TooSlow, "reads too slowly"));
        queue.push(Bytes::from_static(b"more"));
        assert!(queue.take().is_empty());
    }

    #[test]
    fn an_empty_queue_takes_a_frame_of_any_size() {
        let queue = SendQueue::new(10);
        queue.push(vec![0; 1000].into());
        assert!(!queue.is_sealed());
        queue.push(vec![0; 1].into());
        assert!(queue.is_sealed());
    }

    #[test]
    fn what_comes_at_once_is_bounded_but_no_sign_of_a_slow_client() {
        let queue = SendQueue::new(10);
        for _ in 0..BURST {
            queue.push(vec![0; 10].into());
            assert!(!queue.is_sealed(), "the socket had no chance yet");
        }
        queue.push(vec![0; 1].into());
        assert!(queue.is_sealed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_slow_once_its_socket_takes_nothing_for_a_second() {
        let queue = SendQueue::new(10);
        queue.push(vec![0; 10].into());
        let mut taken = queue.take();
        queue.refused();
        for _ in 0..10 {
            // It takes a little now and then.
            advance(Duration::from_millis(900)).await;
            queue.written(&mut taken, 1);
            queue.refused();
            queue.push(vec![0; 1].into());
            assert!(!queue.is_sealed());
        }
        // The process stood still: that is no fault of the client's.
        advance(Duration::from_secs(5)).await;
        queue.push(vec![0; 1].into());
        assert!(!queue.is_sealed());
        for _ in 0..10 {
            advance(Duration::from_millis(100)).await;
            queue.push(vec![0; 1].into());
        }
        assert!(queue.is_sealed());
    }

    #[test]
    fn a_last_message_takes_nothing_of_a_burst_along() {
        let queue = SendQueue::new(10);
        queue.push(vec![b'x'; 30].into());
        queue.close_after(Bytes::from_static(b"last"), CloseCode::Normal, "");
        let taken = queue.take();
        assert!(taken.len() > 34 && taken[..30] == [b'x'; 30] && taken[30..34] == *b"last");
    }

    #[tokio::test]
    async fn the_socket_is_written_to_before_a_client_counts_as_slow() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut near, queue) = (near.unwrap(), SendQueue::new(10));
        queue.attach(far.unwrap().0);
        for _ in 0..100 {
            queue.add(vec![b'x'; 10].into());
        }
        assert!(!queue.is_sealed());
        queue.write();
        let mut came = vec![0; 1000];
        near.read_exact(&mut came).await.unwrap();
        assert_eq!(came, [b'x'; 1000]);
        assert!(queue.is_empty());
    }

    #[test]
    fn the_end_is_what_the_first_close_frame_says() {
        let end = |code, reason: &str| End { code, reason: reason.into() };
        let queue = SendQueue::new(100);
        assert_eq!(queue.abandon().end(), end(1006, ""));
        let queue = SendQueue::new(100);
        queue.close(CloseCode::Expired, "grüße");
        queue.close(CloseCode::Restart, "");
        assert_eq!(queue.abandon().end(), end(4003, "grüße"));
        for (answer, said) in [(&b"\x88\x00"[..], end(1005, "")), (b"\x88\x02\x03\xe9", end(1001, ""))] {
            let queue = SendQueue::new(100);
            queue.seal(Bytes::from_static(answer));
            assert_eq!(queue.end(), said);
        }
        // The reason of a client is not kept here.
        let queue = SendQueue::new(100);
        queue.seal(Bytes::from_static(b"\x88\x05\x03\xe9bye"));
        assert_eq!(queue.end(), end(1001, ""));
        assert_eq!(End::of(b"\x88\x05\x03\xe9bye"), end(1001, "bye"));
    }

    #[test]
    fn the_first_close_counts() {
        let queue = SendQueue::new(100);
        queue.close_after(Bytes::from_static(b"last"), CloseCode::Normal, "");
        queue.close(CloseCode::Restart, "");
        queue.push(Bytes::from_static(b"more"));
        assert_eq!(&queue.take()[..], b"last\x88\x02\x03\xe8");
    }
}
