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

mod end;
mod frames;
mod run;
mod sleeper;
mod socket;

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

    /// Returns true if nothing waits, apart from what fan-outs have queued and not written yet: the socket has taken
    /// everything that it was given.
    pub(crate) fn has_nothing_left(&self) -> bool {
        self.0.lock().frames.has_nothing_left()
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncReadExt, time::advance};

    use super::{frames::BURST, *};

    fn shared(frame: &[u8]) -> SharedFrame {
        SharedFrame::new(Bytes::copy_from_slice(frame))
    }

    #[test]
    fn waiting_frames_are_joined_in_order() {
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
    fn frames_that_clients_share_are_joined_once_for_all_of_them() {
        let queues: Vec<_> = (0..3).map(|_| SendQueue::new(100)).collect();
        let mut frames: Vec<_> = [&b"one "[..], b"two ", b"three"].into_iter().map(shared).collect();
        for frame in &mut frames {
            queues.iter().for_each(|queue| _ = queue.add(frame));
        }
        let taken: Vec<_> = queues.iter().map(SendQueue::take).collect();
        assert_eq!(taken[0], "one two three");
        assert!(taken.iter().all(|bytes| bytes.as_ptr() == taken[0].as_ptr()));
        assert!(queues.iter().all(SendQueue::is_empty));
    }

    #[test]
    fn clients_that_got_different_frames_before_get_their_own() {
        let (first, second) = (SendQueue::new(100), SendQueue::new(100));
        first.add(&mut shared(b"a"));
        second.push(Bytes::from_static(b"b"));
        let mut both = shared(b"c");
        first.add(&mut both);
        second.add(&mut both);
        assert_eq!((first.take(), second.take()), (Bytes::from_static(b"ac"), Bytes::from_static(b"bc")));
        // Nothing is shared beyond the number of runs that a frame remembers.
        let mut last = shared(b"z");
        for number in 0..20 {
            let queue = SendQueue::new(100);
            queue.add(&mut shared(&[number]));
            queue.add(&mut last);
            assert_eq!(queue.take(), [number, b'z'][..]);
        }
    }

    #[test]
    fn what_is_pushed_comes_after_what_fan_outs_have_added() {
        let queue = SendQueue::new(100);
        queue.add(&mut shared(b"first "));
        queue.push(Bytes::from_static(b"second "));
        queue.add(&mut shared(b"third"));
        queue.close(CloseCode::Normal, "");
        assert_eq!(&queue.take()[..], b"first second third\x88\x02\x03\xe8");
    }

    #[tokio::test]
    async fn a_socket_that_takes_a_part_of_shared_frames_gets_the_rest_later() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut near, queue) = (near.unwrap(), SendQueue::new(64 * 1024 * 1024));
        queue.attach(far.unwrap().0);
        let mut sent = Vec::new();
        while queue.is_empty() {
            let frames: Vec<Vec<u8>> = (0..4_u8).map(|number| vec![number; 9_999]).collect();
            for frame in &frames {
                sent.extend_from_slice(frame);
                queue.add(&mut shared(frame));
            }
            queue.write();
        }
        queue.add(&mut shared(b"end"));
        sent.extend_from_slice(b"end");
        let mut came = vec![0; sent.len()];
        let write = poll_fn(|cx| queue.poll_write(cx));
        let (read, written) = tokio::join!(near.read_exact(&mut came), write);
        assert!(read.is_ok() && written.is_ok() && came == sent);
        assert_eq!(queue.waiting(), 0);
    }

    #[test]
    fn a_large_frame_is_not_joined() {
        let queue = SendQueue::new(1024 * 1024);
        queue.push(Bytes::from_static(b"small"));
        queue.push(vec![b'x'; MAX_JOINED].into());
        assert_eq!(queue.take(), "small");
        assert_eq!(queue.take().len(), MAX_JOINED);
    }

    #[test]
    fn beyond_the_limit_only_the_close_frame_is_left() {
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
    fn what_a_fan_out_has_not_written_yet_is_not_left() {
        let queue = SendQueue::new(100);
        assert!(queue.has_nothing_left());
        queue.add(&mut shared(b"one"));
        queue.add(&mut shared(b"two"));
        assert!(queue.has_nothing_left());
        // Without a socket, the connection's task writes.
        queue.write();
        assert!(!queue.has_nothing_left());
        let mut taken = queue.take();
        queue.written(&mut taken, 2);
        queue.note_refusal();
        queue.add(&mut shared(b"three"));
        assert!(!queue.has_nothing_left());
        queue.written(&mut taken, 4);
        let mut taken = queue.take();
        queue.written(&mut taken, 5);
        assert!(queue.has_nothing_left());
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
    fn a_burst_is_bounded_but_is_no_sign_of_a_slow_client() {
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
        queue.note_refusal();
        for _ in 0..10 {
            // The socket takes a little now and then.
            advance(Duration::from_millis(900)).await;
            queue.written(&mut taken, 1);
            queue.note_refusal();
            queue.push(vec![0; 1].into());
            assert!(!queue.is_sealed());
        }
        // This process stood still, which says nothing about the client.
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
    fn a_last_message_does_not_remove_a_burst() {
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
            queue.add(&mut shared(&[b'x'; 10]));
        }
        assert!(!queue.is_sealed());
        queue.write();
        let mut came = vec![0; 1000];
        near.read_exact(&mut came).await.unwrap();
        assert_eq!(came, [b'x'; 1000]);
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn a_task_that_sleeps_is_woken_if_the_socket_refuses_what_a_fan_out_adds() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut near, queue) = (near.unwrap(), std::sync::Arc::new(SendQueue::new(4_000_000)));
        queue.attach(far.unwrap().0);
        let task = tokio::spawn({
            let queue = queue.clone();
            async move {
                poll_fn(|cx| if queue.sleep(cx, false, false) { Poll::Pending } else { Poll::Ready(()) }).await;
                poll_fn(|cx| queue.poll_write(cx)).await
            }
        });
        // The task sleeps now.
        tokio::task::yield_now().await;
        let (mut added, mut frame) = (0, shared(&[b'x'; 1_000_000]));
        while !queue.0.lock().frames.blocked {
            queue.add(&mut frame);
            added += 1_000_000;
        }
        queue.write();
        let mut came = vec![0; added];
        near.read_exact(&mut came).await.unwrap();
        task.await.unwrap().unwrap();
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
        // A client's reason is not kept.
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
