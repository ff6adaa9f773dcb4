//! What waits for one client: shared frames in order, bounded in bytes, ended by at most one close frame.

use std::collections::VecDeque;

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::frame;
use crate::CloseCode;

/// Most bytes that are joined for one write. More would not save system calls: a socket takes about as much.
const JOIN: usize = 64 * 1024;

/// Most frames that an idle connection keeps room for: what a queue makes at its first.
const IDLE: usize = 4;

/// The frames that one client's socket has not taken yet.
///
/// The hub pushes from the cluster's task, handlers push from anywhere, and the connection's own task takes. A
/// synchronous lock, since each holds it for a few instructions and none across an await. When it is full the
/// connection is closed; when it is sealed, what is pushed is dropped.
pub(crate) struct Outbox {
    /// Most bytes that may wait. A frame that finds nothing waiting is taken whatever its size.
    limit: usize,
    state: Mutex<State>,
    /// Wakes the connection's task. It keeps one permit, so no wake is lost while the task is busy.
    changed: Notify,
    /// Wakes who waits for room: one at a time, the client's recovery.
    written: Notify,
}

#[derive(Default)]
struct State {
    frames: VecDeque<Bytes>,
    /// Bytes that the socket has not taken, those in the writer's hands included.
    waiting: usize,
    /// A close frame is the last of `frames`, or has been taken already.
    sealed: bool,
}

impl Outbox {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, state: Mutex::default(), changed: Notify::new(), written: Notify::new() }
    }

    /// Adds a frame; closes the connection as too slow where it does not fit.
    pub(crate) fn push(&self, frame: Bytes) {
        let mut state = self.state.lock();
        if state.sealed {
            return;
        }
        if state.waiting > 0 && state.waiting + frame.len() > self.limit {
            // It cannot be told what it misses, and it could not read it: only the close frame is left to send.
            state.drop_frames();
            state.seal(frame::close(CloseCode::TooSlow, "reads too slowly"));
        } else {
            state.push(frame);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Adds the close frame, the last one. The first close counts.
    pub(crate) fn close(&self, code: CloseCode, reason: &str) {
        self.seal(frame::close(code, reason));
    }

    /// The same after a last message, which is sent even where it takes what waits before it.
    pub(crate) fn close_after(&self, last: Bytes, code: CloseCode, reason: &str) {
        let mut state = self.state.lock();
        if state.sealed {
            return;
        }
        if state.waiting + last.len() > self.limit {
            state.drop_frames();
        }
        state.push(last);
        state.seal(frame::close(code, reason));
        drop(state);
        self.changed.notify_one();
    }

    /// Adds a close frame that is formatted already.
    pub(super) fn seal(&self, close: Bytes) {
        let mut state = self.state.lock();
        if !state.sealed {
            state.seal(close);
            drop(state);
            self.changed.notify_one();
        }
    }

    /// Drops what waits and takes nothing more: the socket is gone.
    pub(super) fn abandon(&self) {
        let mut state = self.state.lock();
        state.drop_frames();
        state.sealed = true;
    }

    /// Whether a close frame was added.
    pub(crate) fn is_sealed(&self) -> bool {
        self.state.lock().sealed
    }

    /// Whether the writer has taken everything.
    pub(super) fn is_empty(&self) -> bool {
        self.state.lock().frames.is_empty()
    }

    /// Resolves when something was added since the last time.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What to write next: one frame as it is shared, or several joined. Empty where nothing waits. It counts as
    /// waiting until [`written`](Self::written).
    pub(crate) fn take(&self) -> Bytes {
        let mut state = self.state.lock();
        let Some(first) = state.frames.pop_front() else { return Bytes::new() };
        let fits = |size: usize, next: &Bytes| size + next.len() <= JOIN;
        if !state.frames.front().is_some_and(|next| fits(first.len(), next)) {
            return first;
        }
        let mut joined = BytesMut::with_capacity(state.waiting.min(JOIN));
        joined.extend_from_slice(&first);
        while let Some(next) = state.frames.pop_front_if(|next| fits(joined.len(), next)) {
            joined.extend_from_slice(&next);
        }
        if state.frames.is_empty() && state.frames.capacity() > IDLE {
            state.frames = VecDeque::new();
        }
        joined.freeze()
    }

    /// The socket took the first `size` bytes of `taken`.
    pub(super) fn written(&self, taken: &mut Bytes, size: usize) {
        taken.advance(size);
        self.state.lock().waiting -= size;
        self.written.notify_one();
    }

    /// Resolves once a frame of this size leaves half of the room to others, or has it all, or is dropped anyway.
    pub(super) async fn has_room(&self, size: usize) {
        loop {
            {
                let state = self.state.lock();
                if state.sealed || state.waiting == 0 || state.waiting + size <= self.limit / 2 {
                    return;
                }
            }
            self.written.notified().await;
        }
    }
}

impl State {
    fn push(&mut self, frame: Bytes) {
        self.waiting += frame.len();
        self.frames.push_back(frame);
    }

    fn seal(&mut self, close: Bytes) {
        self.push(close);
        self.sealed = true;
    }

    fn drop_frames(&mut self) {
        self.waiting -= self.frames.iter().map(Bytes::len).sum::<usize>();
        self.frames = VecDeque::new();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_joined_in_order() {
        let outbox = Outbox::new(100);
        assert!(outbox.take().is_empty());
        outbox.push(Bytes::from_static(b"one "));
        outbox.push(Bytes::from_static(b"two "));
        outbox.push(Bytes::from_static(b"three"));
        assert_eq!(outbox.take(), "one two three");
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn one_frame_is_not_copied() {
        let outbox = Outbox::new(100);
        let frame = Bytes::from(vec![b'x'; 10]);
        outbox.push(frame.clone());
        assert_eq!(outbox.take().as_ptr(), frame.as_ptr());
    }

    #[test]
    fn a_large_frame_is_not_joined() {
        let outbox = Outbox::new(1024 * 1024);
        outbox.push(Bytes::from_static(b"small"));
        outbox.push(vec![b'x'; JOIN].into());
        assert_eq!(outbox.take(), "small");
        assert_eq!(outbox.take().len(), JOIN);
    }

    #[test]
    fn past_the_limit_only_the_close_frame_is_left() {
        let outbox = Outbox::new(10);
        outbox.push(Bytes::from_static(b"12345678"));
        let mut taken = outbox.take();
        outbox.written(&mut taken, 6);
        outbox.push(Bytes::from_static(b"12345678"));
        assert!(!outbox.is_sealed());
        outbox.push(Bytes::from_static(b"9"));
        assert!(outbox.is_sealed());
        assert_eq!(outbox.take(), frame::close(CloseCode::TooSlow, "reads too slowly"));
        outbox.push(Bytes::from_static(b"more"));
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn an_empty_queue_takes_a_frame_of_any_size() {
        let outbox = Outbox::new(10);
        outbox.push(vec![0; 100].into());
        assert!(!outbox.is_sealed());
        outbox.push(vec![0; 1].into());
        assert!(outbox.is_sealed());
    }

    #[test]
    fn the_first_close_counts() {
        let outbox = Outbox::new(100);
        outbox.close_after(Bytes::from_static(b"last"), CloseCode::Normal, "");
        outbox.close(CloseCode::Restart, "");
        outbox.push(Bytes::from_static(b"more"));
        assert_eq!(&outbox.take()[..], b"last\x88\x02\x03\xe8");
    }
}
