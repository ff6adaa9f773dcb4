//! What waits for one client: frames in order, how many bytes may wait, and how long the socket has taken none. Pure but
//! for the clock.

use std::sync::OnceLock;

use bytes::{Buf, Bytes, BytesMut};
use tokio::time::Instant;

use super::end::End;
use crate::{CloseCode, ws::frame};

/// Most bytes that are joined for one write. More would not save system calls: a socket takes about as much.
pub(super) const JOIN: usize = 64 * 1024;

/// How many times the limit may wait while the socket takes bytes or had no chance to take any yet: what comes at once
/// says nothing about the client.
pub(super) const BURST: usize = 8;

/// The unit of the times below, in milliseconds.
const TICK: u128 = 50;

/// How long the socket takes nothing before a client over its limit reads too slowly, in ticks.
const STALL: u8 = 20;

/// Most of the time between two looks at a stalled socket that counts, in ticks: if this process stood still, the time
/// says nothing about the client.
const LOOK: u8 = 5;

/// The frames that wait, in the order in which they came. Numbers of bytes have 32 bits, and what the socket and the
/// sleeper note is kept here as well: there are as many of these as there are connections.
#[derive(Default)]
pub(super) struct Frames {
    /// First come, first out; but mostly all of them at once.
    frames: Vec<Bytes>,
    /// Most bytes that may wait for a socket that takes none. A frame that finds nothing waiting is taken whatever its
    /// size. Once sealed, how the connection ended ([`End::pack`]).
    limit: u32,
    /// Bytes that the socket has not taken, those in the task's hands included.
    waiting: u32,
    /// The tick in which the socket was last seen to take nothing more; 0 if it took everything.
    refused: u8,
    /// For how many ticks the socket has taken nothing.
    stalled: u8,
    /// A close frame is the last of `frames`, or has been taken already.
    sealed: bool,
    /// A part of the first frame is written.
    begun: bool,
    /// The socket takes nothing more: the task waits for it.
    pub(super) blocked: bool,
    /// The socket failed. The task finds out.
    pub(super) failed: bool,
    /// A fan-out has noted the client, to write what waits.
    pub(super) noted: bool,
    /// Its timer went off.
    pub(super) rung: bool,
}

impl Frames {
    /// Returns a queue with the most bytes that may wait; a limit above 2 GiB counts as that.
    pub(super) fn new(limit: usize) -> Self {
        Self { limit: limit.min(i32::MAX as usize) as u32, ..Self::default() }
    }

    /// Returns a queue that takes nothing, of a connection that ended without a close frame.
    pub(super) fn abandoned() -> Self {
        Self { sealed: true, limit: End::LOST, ..Self::default() }
    }

    /// Returns how the connection ended, if it has: one without a close frame is lost.
    pub(super) fn end(&self) -> End {
        End::unpack(if self.sealed { self.limit } else { End::LOST })
    }

    pub(super) fn is_sealed(&self) -> bool {
        self.sealed
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Returns the number of bytes that the socket has not taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.waiting as usize
    }

    /// Returns true if frames of this size together leave half of the room to others, or are dropped anyway.
    pub(super) fn leaves_half(&self, size: usize) -> bool {
        self.sealed || self.waiting as usize + size <= self.limit as usize / 2
    }

    /// Adds a frame. If it does not fit and the socket, which `write` gives what waits, takes nothing, the connection is
    /// closed as too slow.
    pub(super) fn add(&mut self, frame: Bytes, write: impl FnOnce(&mut Self)) {
        if self.sealed || self.failed {
            return;
        }
        if self.makes_room(frame.len(), write) {
            self.push(frame);
        } else {
            // It cannot be told what it misses, and it could not read it: only the close frame is left to send.
            self.drop_frames();
            let reason = "reads too slowly";
            self.seal(frame::close(CloseCode::TooSlow, reason), reason);
        }
    }

    /// Adds a last message and the close frame. The message is sent even if it takes the place of what waits before it.
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

    /// Returns true if so many bytes more may wait, after the socket was given what waits if that is too much.
    fn makes_room(&mut self, size: usize, write: impl FnOnce(&mut Self)) -> bool {
        if self.waiting == 0 || self.fits(size) {
            return true;
        }
        write(self);
        if self.waiting == 0 || self.fits(size) {
            return true;
        }
        if self.refused > 0 {
            self.refuses(false);
        }
        self.stalled < STALL && self.waiting as usize + size <= self.limit as usize * BURST
    }

    /// The socket took bytes.
    pub(super) fn takes(&mut self) {
        (self.refused, self.stalled) = (0, 0);
    }

    /// The socket takes nothing more. `took`: it took some bytes before.
    pub(super) fn refuses(&mut self, took: bool) {
        let now = tick();
        if !took && self.refused > 0 {
            self.stalled = self.stalled.saturating_add(now.wrapping_sub(self.refused).min(LOOK));
        } else {
            self.stalled = 0;
        }
        self.refused = now;
    }

    /// Whether so many bytes more may wait.
    fn fits(&self, size: usize) -> bool {
        self.waiting as usize + size <= self.limit as usize
    }

    fn push(&mut self, frame: Bytes) {
        // No message is nearly as long.
        self.waiting += frame.len() as u32;
        self.frames.push(frame);
    }

    pub(super) fn seal(&mut self, close: Bytes, reason: &'static str) {
        self.limit = End::pack(End::of(&close).code, reason);
        self.push(close);
        self.sealed = true;
    }

    /// Drops what waits, but for the rest of a frame that the client has seen the beginning of.
    fn drop_frames(&mut self) {
        let dropped = self.frames.drain(usize::from(self.begun)..);
        self.waiting -= dropped.map(|frame| frame.len() as u32).sum::<u32>();
        self.frames.shrink_to_fit();
    }

    /// Returns what to write next: one frame as it is shared, or several joined. Empty if nothing waits. It counts as
    /// waiting until [`took`](Self::took).
    pub(super) fn take(&mut self) -> Bytes {
        let taken = match joinable(&self.frames) {
            0 => Bytes::new(),
            1 => self.frames.remove(0),
            count => {
                let mut joined = BytesMut::with_capacity(JOIN.min(self.waiting as usize));
                self.frames.drain(..count).for_each(|frame| joined.extend_from_slice(&frame));
                joined.freeze()
            }
        };
        self.shrink();
        taken
    }

    /// The stream took `size` bytes of what was [taken](Self::take).
    pub(super) fn took(&mut self, size: usize) {
        self.waiting -= size as u32;
        self.takes();
    }

    /// Returns the first frames, as many as are worth being joined for one write.
    pub(super) fn first(&self) -> &[Bytes] {
        &self.frames[..joinable(&self.frames)]
    }

    /// The socket took the first `size` bytes of [`first`](Self::first).
    pub(super) fn advance(&mut self, size: usize) {
        self.waiting -= size as u32;
        self.begun = advance(&mut self.frames, size);
    }

    /// Gives back the room that frames needed: an idle connection does without.
    pub(super) fn shrink(&mut self) {
        if self.frames.is_empty() {
            self.frames = Vec::new();
        }
    }
}

/// The number of the present tick, never 0. They begin anew after some seconds, which makes a stall seem shorter at
/// most.
fn tick() -> u8 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = START.get_or_init(Instant::now);
    ((start.elapsed().as_millis() / TICK) as u8).max(1)
}

/// How many of the first frames are worth being joined for one write.
fn joinable(frames: &[Bytes]) -> usize {
    let mut size = 0;
    let fits = |frame: &&Bytes| {
        size += frame.len();
        size <= JOIN
    };
    frames.iter().take_while(fits).count().max(frames.len().min(1))
}

/// Drops the first `size` bytes. Whether a part of a frame was among them.
fn advance(frames: &mut Vec<Bytes>, mut size: usize) -> bool {
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
