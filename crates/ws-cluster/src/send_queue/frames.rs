//! The frames that wait for one client: their order, the limit on their bytes, and for how long the socket has taken
//! none. Pure except for the clock.

use std::sync::{Arc, OnceLock};

use bytes::{Buf, Bytes, BytesMut};
use thin_vec::ThinVec;
use tokio::time::Instant;

use super::{
    end::End,
    run::{Run, SharedFrame},
};
use crate::{CloseCode, ws::frame};

/// Maximum size of one joined write, in bytes. A larger write would save no system calls, because a socket takes about
/// this much at a time.
pub(crate) const MAX_JOINED: usize = 64 * 1024;

/// Number of times that the limit may wait while the socket takes bytes or has had no chance to take any. A burst says
/// nothing about how fast the client reads.
pub(super) const BURST: usize = 8;

/// Maximum number of bytes that may wait in a burst, whatever the limit is. A close frame behind them still leaves their
/// number within 32 bits.
const MAX_BURST: usize = 2 * 1024 * 1024 * 1024;

/// The unit of the times below, in milliseconds.
const TICK: u128 = 50;

/// Ticks for which the socket has to take nothing before a client over its limit counts as too slow.
const STALL: u8 = 20;

/// Maximum number of ticks that count between two attempts to write to a stalled socket. A longer time may mean that
/// this process stood still, which says nothing about the client.
const MAX_GAP: u8 = 5;

/// The frames that wait, in the order in which they came. Byte counts have 32 bits, and the flags of the socket and the
/// sleeper are in this struct too, because each connection has one. The fields are laid out as they are written here:
/// what each delivery looks at is in front, so that it is in one line of the processor's cache.
#[derive(Default)]
#[repr(C)]
pub(super) struct Frames {
    /// What fan-outs have added. It is present only if `frames` is empty.
    run: Option<Arc<Run>>,
    /// Bytes that the socket has not taken, including those that the connection's task has taken from the queue.
    waiting: u32,
    /// True if a close frame is the last of `frames` or has been taken already.
    sealed: bool,
    /// True if the socket failed. The task finds out why.
    pub(super) failed: bool,
    /// True if the socket takes nothing more. The task waits for it.
    pub(super) blocked: bool,
    /// True if a fan-out has listed the client and will write what waits.
    pub(super) listed: bool,
    /// No deque: frames leave in the order in which they came, but mostly all of them at once. A thin vector takes one
    /// word of each connection instead of three.
    frames: ThinVec<Bytes>,
    /// Maximum number of bytes that may wait for a socket that takes none. An empty queue takes a frame of any size.
    /// Once the queue is sealed, this field holds how the connection ended ([`End::pack`]).
    limit: u32,
    /// The tick in which a stall was last noted or shortened; 0 if the socket has taken everything that it was given.
    refused_at: u8,
    /// Number of ticks for which the socket has taken nothing.
    stalled: u8,
    /// True if a part of the first one is written. It may be several frames that were joined.
    partly_written: bool,
    /// True if the connection's timer has fired.
    pub(super) timer_fired: bool,
}

impl Frames {
    /// Returns a queue in which at most `limit` bytes may wait. A limit above 2 GiB counts as 2 GiB.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.min(i32::MAX as usize) as u32, ..Self::default() }
    }

    /// Returns a queue that takes nothing, for a connection that ended without a close frame.
    pub(super) fn abandoned() -> Self {
        Self { sealed: true, limit: End::LOST, ..Self::default() }
    }

    /// Returns how the connection ended. Without a close frame it counts as lost.
    pub(super) fn end(&self) -> End {
        End::unpack(if self.sealed { self.limit } else { End::LOST })
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.run.is_none() && self.frames.is_empty()
    }

    /// Returns true if the socket has taken everything that it was given. What waits then has not been written yet.
    pub(super) fn keeps_up(&self) -> bool {
        self.refused_at == 0
    }

    /// Returns the number of bytes that the socket has not taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting as usize
    }

    /// Returns true if `size` more bytes leave half of the queue to other frames, or would be dropped anyway.
    pub(super) fn leaves_half(&self, size: usize) -> bool {
        self.sealed || self.waiting as usize + size <= self.limit as usize / 2
    }

    /// Adds a frame. If the frame does not fit, `write` gives the socket what waits. If the socket takes nothing, the
    /// connection is closed as too slow.
    pub(super) fn add(&mut self, frame: Bytes, write: impl FnOnce(&mut Self)) {
        if self.sealed || self.failed {
            return;
        }
        if self.makes_room(frame.len(), write) {
            self.push(frame);
        } else {
            // The client could not read a message about what it misses, so only the close frame is left to send.
            self.drop_frames();
            let reason = "reads too slowly";
            self.seal(frame::close(CloseCode::TooSlow, reason), reason);
        }
    }

    /// Adds a frame that a fan-out gives to many clients. Otherwise like [`add`](Self::add).
    pub(super) fn add_shared(&mut self, frame: &mut SharedFrame, write: impl FnOnce(&mut Self)) {
        let size = frame.frame().len();
        let is_open = !self.sealed && !self.failed;
        if is_open
            && self.frames.is_empty()
            && (self.waiting == 0 || self.fits(size))
            && let Some(run) = frame.run(self.run.as_ref())
        {
            self.run = Some(run);
            self.waiting += size as u32;
        } else {
            self.add(frame.frame().clone(), write);
        }
    }

    /// Adds a last message and the close frame. If the message does not fit, it takes the place of the frames before
    /// it.
    pub(super) fn close_after(
        &mut self,
        last: Bytes,
        close: Bytes,
        reason: &'static str,
        write: impl FnOnce(&mut Self),
    ) {
        if !self.makes_room(last.len(), write) {
            self.drop_frames();
        }
        self.push(last);
        self.seal(close, reason);
    }

    /// Returns true if `size` more bytes may wait. If they are too many, `write` gives the socket what waits first.
    fn makes_room(&mut self, size: usize, write: impl FnOnce(&mut Self)) -> bool {
        if self.waiting == 0 || self.fits(size) {
            return true;
        }
        write(self);
        if self.waiting == 0 || self.fits(size) {
            return true;
        }
        if self.refused_at > 0 {
            self.note_refusal(false);
        }
        self.stalled < STALL
            && self.waiting as usize + size <= (self.limit as usize).saturating_mul(BURST).min(MAX_BURST)
    }

    /// Ends a stall, because the socket took bytes.
    pub(super) fn end_stall(&mut self) {
        (self.refused_at, self.stalled) = (0, 0);
    }

    /// Notes that the socket takes nothing more. `took`: it took some bytes before that.
    pub(super) fn note_refusal(&mut self, took: bool) {
        let now = tick();
        if !took && self.refused_at > 0 {
            self.stalled = self.stalled.saturating_add(now.wrapping_sub(self.refused_at).min(MAX_GAP));
        } else {
            self.stalled = 0;
        }
        self.refused_at = now;
    }

    /// Returns true if the socket took nothing more in this tick, so that it is not worth a system call. Tokio may know
    /// that the socket takes something again.
    pub(super) fn was_just_refused(&self) -> bool {
        self.blocked && self.refused_at == tick()
    }

    /// Returns true if `size` more bytes may wait.
    fn fits(&self, size: usize) -> bool {
        self.waiting as usize + size <= self.limit as usize
    }

    fn push(&mut self, frame: Bytes) {
        // The cast loses nothing: every frame is far shorter than 4 GiB. Neither does the sum: a frame is added to an
        // empty queue or within a burst, and the last message and the close frame are short.
        self.waiting += frame.len() as u32;
        self.end_run();
        self.frames.push(frame);
    }

    /// Puts what fan-outs have added before the next frame.
    fn end_run(&mut self) {
        self.frames.extend(self.run.take().map(|run| run.joined().clone()));
    }

    pub(super) fn seal(&mut self, close: Bytes, reason: &'static str) {
        self.limit = End::pack(End::of(&close).code, reason);
        self.push(close);
        self.sealed = true;
    }

    /// Drops the frames that wait, except for the rest of what is partly written.
    fn drop_frames(&mut self) {
        self.end_run();
        let dropped = self.frames.drain(usize::from(self.partly_written)..);
        self.waiting -= dropped.map(|frame| frame.len() as u32).sum::<u32>();
        self.frames.shrink_to_fit();
    }

    /// Returns what to write next: one shared frame, or several joined, or nothing if the queue is empty. The bytes
    /// count as waiting until [`took`](Self::took).
    pub(super) fn take(&mut self) -> Bytes {
        self.end_run();
        let taken = match joinable(&self.frames) {
            0 => Bytes::new(),
            1 => self.frames.remove(0),
            count => {
                let mut joined = BytesMut::with_capacity(MAX_JOINED.min(self.waiting as usize));
                self.frames.drain(..count).for_each(|frame| joined.extend_from_slice(&frame));
                joined.freeze()
            }
        };
        self.shrink();
        taken
    }

    /// Notes that the stream took `size` bytes of what [`take`](Self::take) returned.
    pub(super) fn took(&mut self, size: usize) {
        self.waiting -= size as u32;
        if self.waiting == 0 {
            self.end_stall();
        } else if self.refused_at > 0 {
            // Something still waits, so the client does not keep up yet. The stall begins anew.
            (self.refused_at, self.stalled) = (tick(), 0);
        }
    }

    /// Returns the first frames, as many as are joined for one write.
    pub(super) fn first(&self) -> &[Bytes] {
        match &self.run {
            Some(run) => std::slice::from_ref(run.joined()),
            None => &self.frames[..joinable(&self.frames)],
        }
    }

    /// Removes the first `size` bytes of [`first`](Self::first), which the socket took.
    pub(super) fn advance(&mut self, size: usize) {
        self.waiting -= size as u32;
        match self.run.take() {
            Some(run) if run.size() == size => {}
            Some(run) => {
                self.frames.push(run.joined().slice(size..));
                self.partly_written = true;
            }
            None => self.partly_written = advance(&mut self.frames, size),
        }
    }

    /// Frees the memory of the empty vector, so that an idle connection has none.
    pub(super) fn shrink(&mut self) {
        if self.frames.is_empty() {
            self.frames = ThinVec::new();
        }
    }
}

/// Returns the number of the present tick, which is never 0. The numbers repeat after some seconds. At worst a stall
/// then seems shorter.
fn tick() -> u8 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    ((start.elapsed().as_millis() / TICK) as u8).max(1)
}

/// Returns how many of the first frames are joined for one write.
fn joinable(frames: &[Bytes]) -> usize {
    let mut size = 0;
    let fits = |frame: &&Bytes| {
        size += frame.len();
        size <= MAX_JOINED
    };
    frames.iter().take_while(fits).count().max(frames.len().min(1))
}

/// Drops the first `size` bytes. Returns true if they end inside a frame.
fn advance(frames: &mut ThinVec<Bytes>, mut size: usize) -> bool {
    let fits = |frame: &&Bytes| {
        let whole = frame.len() <= size;
        size -= if whole { frame.len() } else { 0 };
        whole
    };
    let whole = frames.iter().take_while(fits).count();
    frames.drain(..whole);
    frames.first_mut().into_iter().for_each(|first| first.advance(size));
    size > 0
}
