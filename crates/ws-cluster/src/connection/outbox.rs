//! What waits for one client: shared frames in order, bounded in bytes, ended by at most one close frame. Over a TCP
//! socket whoever delivers writes it as well; only what the socket does not take is left to the connection's task.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io,
    pin::{Pin, pin},
    sync::OnceLock,
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, Bytes, BytesMut};
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    task::unconstrained,
    time::Instant,
};

use super::{task::Connection, transport::Tcp};
use crate::{CloseCode, ws::frame};

/// Most bytes that are joined for one write. More would not save system calls: a socket takes about as much.
const JOIN: usize = 64 * 1024;

/// How many times the limit may wait while the socket takes bytes or had no chance to take any yet: what comes at once
/// says nothing about the client.
const BURST: usize = 8;

/// The unit of the times below, in milliseconds.
const TICK: u128 = 50;

/// How long the socket takes nothing before a client over its limit reads too slowly, in ticks.
const STALL: u8 = 20;

/// Most of the time between two looks at a stalled socket that counts, in ticks: if this process stood still, the time
/// says nothing about the client.
const LOOK: u8 = 5;

thread_local! {
    /// Where frames are joined for a write to a socket: one for each thread, not for each connection.
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The frames that one client's socket has not taken yet.
///
/// The hub adds from the cluster's task, handlers push from anywhere; the socket is written to by the hub's passes and
/// by the connection's own task. A synchronous lock, held for a few instructions or one system call that does not wait,
/// and never across an await. When it is full the connection is closed; when it is sealed, what is pushed is dropped.
pub(crate) struct Outbox(Mutex<State>);

/// Numbers of bytes in 32 bits: there are as many of these as there are connections.
#[derive(Default)]
struct State {
    /// First come, first out; but mostly all of them at once.
    frames: Vec<Bytes>,
    /// Where whoever delivers may write. Without one the task writes.
    socket: Option<TcpStream>,
    sleeper: Sleeper,
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
    /// The socket takes nothing more: the task waits for it.
    blocked: bool,
    /// A pass has noted the client, to write what waits.
    noted: bool,
    /// The socket failed. The task finds out.
    failed: bool,
    /// A part of the first frame is written.
    begun: bool,
    /// Its alarm went off.
    rung: bool,
}

/// How a connection ended: what its first close frame says, of whichever side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) code: u16,
    pub(crate) reason: Box<str>,
}

/// The reasons that this program gives, in their order of use. There is no room for them in each connection.
static REASONS: Mutex<Vec<Box<str>>> = Mutex::new(Vec::new());

/// More reasons than this program has. Beyond, a reason reads as none.
const MOST_REASONS: usize = 256;

impl End {
    /// Without a close frame.
    const LOST: u32 = 1006;

    /// In 32 bits. A reason that a client or an application made up would be kept for ever, so it is left out.
    fn pack(code: u16, reason: &'static str) -> u32 {
        let mut reasons = REASONS.lock();
        let known = reasons.iter().position(|known| **known == *reason).or_else(|| {
            let new = !reason.is_empty() && reasons.len() < MOST_REASONS;
            new.then(|| {
                reasons.push(reason.into());
                reasons.len() - 1
            })
        });
        u32::from(code) | (known.map_or(0, |place| place as u32 + 1) << 16)
    }

    fn unpack(packed: u32) -> Self {
        let place = (packed >> 16).checked_sub(1);
        let reason = place.and_then(|place| REASONS.lock().get(place as usize).cloned());
        Self { code: packed as u16, reason: reason.unwrap_or_default() }
    }

    /// What a close frame that is formatted says. It is short, so its payload begins with the third byte.
    pub(super) fn of(close: &[u8]) -> Self {
        match close.get(2..) {
            Some([high, low, reason @ ..]) => {
                let reason = String::from_utf8_lossy(reason).into_owned().into();
                Self { code: u16::from_be_bytes([*high, *low]), reason }
            }
            _ => Self { code: 1005, reason: Box::default() },
        }
    }
}

/// Who is woken when there is something to do that is not the hub's.
enum Sleeper {
    /// The connection's task, which sleeps.
    Task(Waker),
    /// The connection, which is parked without a task; nobody where its task is awake.
    Parked(Option<Box<Connection<Tcp>>>),
}

impl Outbox {
    /// With the most bytes that may wait; a limit above 2 GiB counts as that.
    pub(crate) fn new(limit: usize) -> Self {
        let limit = limit.min(i32::MAX as usize) as u32;
        Self(Mutex::new(State { limit, ..State::default() }))
    }

    /// Lets whoever delivers write to the socket.
    pub(super) fn attach(&self, socket: TcpStream) {
        self.0.lock().socket = Some(socket);
    }

    /// Reads from the socket that was attached.
    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match &mut self.0.lock().socket {
            Some(socket) => Pin::new(socket).poll_read(cx, buffer),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Writes what waits to the socket that was attached. Ready where nothing is left.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.0.lock();
        state.blocked = false;
        while !state.write()? {
            match &state.socket {
                Some(socket) => ready!(socket.poll_write_ready(cx))?,
                None => return Poll::Pending,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Tells the client that nothing more comes.
    pub(super) fn poll_shut_down(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.0.lock().socket {
            Some(socket) => Pin::new(socket).poll_shutdown(cx),
            None => Poll::Ready(Ok(())),
        }
    }

    /// Adds a frame, to be written by the connection's task. Closes the connection as too slow if the frame does not fit
    /// and the socket takes nothing.
    pub(crate) fn push(&self, frame: Bytes) {
        let mut state = self.0.lock();
        state.add(frame);
        wake(state);
    }

    /// Adds a frame that is written at the end of a pass. Whether the pass has to note the client for that.
    pub(crate) fn add(&self, frame: Bytes) -> bool {
        let mut state = self.0.lock();
        state.add(frame);
        let new = !std::mem::replace(&mut state.noted, true);
        if state.sealed {
            // It ends, and that is its own affair.
            wake(state);
        }
        new
    }

    /// Writes what the passes added, as far as the socket takes it; the rest is the task's.
    pub(crate) fn write(&self) {
        let mut state = self.0.lock();
        state.noted = false;
        if state.blocked && !state.failed {
            return;
        }
        let written = state.write();
        // A connection that ends is the task's as well.
        if !matches!(written, Ok(true)) || state.sealed {
            wake(state);
        }
    }

    /// Adds the close frame, the last one. The first close counts.
    pub(crate) fn close(&self, code: CloseCode, reason: &'static str) {
        let mut state = self.0.lock();
        if !state.sealed {
            state.seal(frame::close(code, reason), reason);
            wake(state);
        }
    }

    /// The same after a last message, which is sent even where it takes what waits before it.
    pub(crate) fn close_after(&self, last: Bytes, code: CloseCode, reason: &'static str) {
        let mut state = self.0.lock();
        if state.sealed {
            return;
        }
        if !state.makes_room(last.len()) {
            state.drop_frames();
        }
        state.push(last);
        state.seal(frame::close(code, reason), reason);
        wake(state);
    }

    /// Adds a close frame that is formatted already, whose reason the caller keeps.
    pub(super) fn seal(&self, close: Bytes) {
        let mut state = self.0.lock();
        if !state.sealed {
            state.seal(close, "");
            wake(state);
        }
    }

    /// Takes nothing more: the socket is done with. What was in here, with the socket, is the caller's to drop.
    pub(crate) fn abandon(&self) -> Self {
        let abandoned = State { sealed: true, limit: End::LOST, ..State::default() };
        Self(Mutex::new(std::mem::replace(&mut *self.0.lock(), abandoned)))
    }

    /// How the connection ended, if it has: one without a close frame is lost.
    pub(super) fn end(&self) -> End {
        let state = self.0.lock();
        End::unpack(if state.sealed { state.limit } else { End::LOST })
    }

    /// Whether a close frame was added.
    pub(crate) fn is_sealed(&self) -> bool {
        self.0.lock().sealed
    }

    /// Whether the socket, or the task, has taken everything.
    pub(super) fn is_empty(&self) -> bool {
        self.0.lock().frames.is_empty()
    }

    /// What to write next: one frame as it is shared, or several joined. Empty where nothing waits. It counts as
    /// waiting until [`written`](Self::written).
    pub(crate) fn take(&self) -> Bytes {
        let mut state = self.0.lock();
        let taken = match joinable(&state.frames) {
            0 => Bytes::new(),
            1 => state.frames.remove(0),
            count => {
                let mut joined = BytesMut::with_capacity(JOIN.min(state.waiting as usize));
                state.frames.drain(..count).for_each(|frame| joined.extend_from_slice(&frame));
                joined.freeze()
            }
        };
        state.shrink();
        taken
    }

    /// The stream took the first `size` bytes of `taken`.
    pub(super) fn written(&self, taken: &mut Bytes, size: usize) {
        taken.advance(size);
        let mut state = self.0.lock();
        state.waiting -= size as u32;
        state.takes();
    }

    /// Bytes that the socket has not taken yet.
    pub(super) fn waiting(&self) -> usize {
        self.0.lock().waiting as usize
    }

    /// The stream takes nothing more for now.
    pub(super) fn refused(&self) {
        self.0.lock().refuses(false);
    }

    /// Returns true if a frame of this size leaves half of the room to others, or has all of it, or is dropped anyway.
    pub(crate) fn has_room(&self, size: usize) -> bool {
        self.fits(size) || self.0.lock().waiting == 0
    }

    /// Returns true if frames of this size together leave half of the room to others, or are dropped anyway.
    pub(crate) fn fits(&self, size: usize) -> bool {
        let state = self.0.lock();
        state.sealed || state.waiting as usize + size <= state.limit as usize / 2
    }

    /// Resolves once the outbox [has room](Self::has_room). For the connection's own task only, which asks again whenever
    /// the socket took something.
    pub(super) async fn until_room(&self, size: usize) {
        poll_fn(|_| if self.has_room(size) { Poll::Ready(()) } else { Poll::Pending }).await;
    }

    /// Wakes the task, since a time has come.
    pub(crate) fn ring(&self) {
        let mut state = self.0.lock();
        state.rung = true;
        wake(state);
    }

    /// Wakes the connection, since its socket has something to read.
    pub(super) fn wake(&self) {
        wake(self.0.lock());
    }

    /// The task is awake: nobody has to wake it. Whether its alarm went off.
    pub(super) fn awake(&self) -> bool {
        let mut state = self.0.lock();
        state.sleeper = Sleeper::default();
        std::mem::take(&mut state.rung)
    }

    /// The task goes to sleep until it is woken, unless there is something to do. `writes`: it waits for the socket to
    /// take more; `closes`: it knows of the seal.
    pub(super) fn sleep(&self, cx: &mut Context<'_>, writes: bool, closes: bool) -> bool {
        let mut state = self.0.lock();
        if !writes && !state.frames.is_empty() || state.rung || state.failed || state.sealed && !closes {
            return false;
        }
        state.sleeper = Sleeper::Task(cx.waker().clone());
        true
    }

    /// Parks a connection until it is woken, by `waker` where its socket has something to read; gives it back where there
    /// is something to do.
    pub(super) fn park(&self, connection: Box<Connection<Tcp>>, waker: &Waker) -> Option<Box<Connection<Tcp>>> {
        let mut state = self.0.lock();
        let busy = !state.frames.is_empty() || state.rung || state.failed || state.sealed;
        let Some(socket) = state.socket.as_ref().filter(|_| !busy) else { return Some(connection) };
        // Out of turn: it must not wake itself here.
        let readable = pin!(unconstrained(poll_fn(|cx| socket.poll_read_ready(cx))));
        if readable.poll(&mut Context::from_waker(waker)).is_ready() {
            return Some(connection);
        }
        state.sleeper = Sleeper::Parked(Some(connection));
        None
    }

    #[cfg(test)]
    pub(super) fn is_parked(&self) -> bool {
        matches!(self.0.lock().sleeper, Sleeper::Parked(Some(_)))
    }
}

impl State {
    fn add(&mut self, frame: Bytes) {
        if self.sealed || self.failed {
            return;
        }
        if self.makes_room(frame.len()) {
            self.push(frame);
        } else {
            // It cannot be told what it misses, and it could not read it: only the close frame is left to send.
            self.drop_frames();
            let reason = "reads too slowly";
            self.seal(frame::close(CloseCode::TooSlow, reason), reason);
        }
    }

    /// Returns true if so many bytes more may wait, after the socket was given what waits where that is too much.
    fn makes_room(&mut self, size: usize) -> bool {
        if self.waiting == 0 || self.fits(size) {
            return true;
        }
        // A failure is the task's to find out.
        let _ = self.write();
        if self.waiting == 0 || self.fits(size) {
            return true;
        }
        if self.refused > 0 {
            self.refuses(false);
        }
        self.stalled < STALL && self.waiting as usize + size <= self.limit as usize * BURST
    }

    /// The socket took bytes.
    fn takes(&mut self) {
        (self.refused, self.stalled) = (0, 0);
    }

    /// The socket takes nothing more. `took`: it took some bytes before.
    fn refuses(&mut self, took: bool) {
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

    fn seal(&mut self, close: Bytes, reason: &'static str) {
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

    /// Writes what the socket takes. Whether nothing is left.
    fn write(&mut self) -> io::Result<bool> {
        if self.failed {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        let Some(socket) = &self.socket else { return Ok(self.frames.is_empty()) };
        let mut took = false;
        while let Some(first) = self.frames.first() {
            let written = match joinable(&self.frames) {
                ..=1 => socket.try_write(first),
                count => JOINED.with_borrow_mut(|joined| {
                    joined.clear();
                    self.frames[..count].iter().for_each(|frame| joined.extend_from_slice(frame));
                    socket.try_write(joined)
                }),
            };
            match written {
                Ok(0) => {
                    self.failed = true;
                    return Err(io::ErrorKind::WriteZero.into());
                }
                Ok(size) => {
                    self.waiting -= size as u32;
                    self.begun = advance(&mut self.frames, size);
                    took = true;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.blocked = true;
                    self.refuses(took);
                    return Ok(false);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    self.failed = true;
                    return Err(error);
                }
            }
        }
        self.takes();
        self.shrink();
        Ok(true)
    }

    /// Gives back the room that frames needed: an idle connection does without.
    fn shrink(&mut self) {
        if self.frames.is_empty() {
            self.frames = Vec::new();
        }
    }
}

impl Default for Sleeper {
    fn default() -> Self {
        Self::Parked(None)
    }
}

/// Wakes whoever sleeps; beyond the lock, since a connection that is woken while its runtime ends is dropped on the spot.
fn wake(mut state: MutexGuard<'_, State>) {
    let sleeper = std::mem::take(&mut state.sleeper);
    drop(state);
    match sleeper {
        Sleeper::Task(task) => task.wake(),
        Sleeper::Parked(connection) => connection.into_iter().for_each(|connection| connection.unpark()),
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

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::{io::AsyncReadExt, time::advance};

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
        outbox.push(vec![b'9'; 71].into());
        assert!(outbox.is_sealed());
        assert_eq!(outbox.take(), frame::close(CloseCode::TooSlow, "reads too slowly"));
        outbox.push(Bytes::from_static(b"more"));
        assert!(outbox.take().is_empty());
    }

    #[test]
    fn an_empty_queue_takes_a_frame_of_any_size() {
        let outbox = Outbox::new(10);
        outbox.push(vec![0; 1000].into());
        assert!(!outbox.is_sealed());
        outbox.push(vec![0; 1].into());
        assert!(outbox.is_sealed());
    }

    #[test]
    fn what_comes_at_once_is_bounded_but_no_sign_of_a_slow_client() {
        let outbox = Outbox::new(10);
        for _ in 0..BURST {
            outbox.push(vec![0; 10].into());
            assert!(!outbox.is_sealed(), "the socket had no chance yet");
        }
        outbox.push(vec![0; 1].into());
        assert!(outbox.is_sealed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_is_slow_once_its_socket_takes_nothing_for_a_second() {
        let outbox = Outbox::new(10);
        outbox.push(vec![0; 10].into());
        let mut taken = outbox.take();
        outbox.refused();
        for _ in 0..10 {
            // It takes a little now and then.
            advance(Duration::from_millis(900)).await;
            outbox.written(&mut taken, 1);
            outbox.refused();
            outbox.push(vec![0; 1].into());
            assert!(!outbox.is_sealed());
        }
        // The process stood still: that is no fault of the client's.
        advance(Duration::from_secs(5)).await;
        outbox.push(vec![0; 1].into());
        assert!(!outbox.is_sealed());
        for _ in 0..10 {
            advance(Duration::from_millis(100)).await;
            outbox.push(vec![0; 1].into());
        }
        assert!(outbox.is_sealed());
    }

    #[test]
    fn a_last_message_takes_nothing_of_a_burst_along() {
        let outbox = Outbox::new(10);
        outbox.push(vec![b'x'; 30].into());
        outbox.close_after(Bytes::from_static(b"last"), CloseCode::Normal, "");
        let taken = outbox.take();
        assert!(taken.len() > 34 && taken[..30] == [b'x'; 30] && taken[30..34] == *b"last");
    }

    #[tokio::test]
    async fn the_socket_is_written_to_before_a_client_counts_as_slow() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (near, far) = tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
        let (mut near, outbox) = (near.unwrap(), Outbox::new(10));
        outbox.attach(far.unwrap().0);
        for _ in 0..100 {
            outbox.add(vec![b'x'; 10].into());
        }
        assert!(!outbox.is_sealed());
        outbox.write();
        let mut came = vec![0; 1000];
        near.read_exact(&mut came).await.unwrap();
        assert_eq!(came, [b'x'; 1000]);
        assert!(outbox.is_empty());
    }

    #[test]
    fn the_end_is_what_the_first_close_frame_says() {
        let end = |code, reason: &str| End { code, reason: reason.into() };
        let outbox = Outbox::new(100);
        assert_eq!(outbox.abandon().end(), end(1006, ""));
        let outbox = Outbox::new(100);
        outbox.close(CloseCode::Expired, "grüße");
        outbox.close(CloseCode::Restart, "");
        assert_eq!(outbox.abandon().end(), end(4003, "grüße"));
        for (answer, said) in [(&b"\x88\x00"[..], end(1005, "")), (b"\x88\x02\x03\xe9", end(1001, ""))] {
            let outbox = Outbox::new(100);
            outbox.seal(Bytes::from_static(answer));
            assert_eq!(outbox.end(), said);
        }
        // The reason of a client is not kept here.
        let outbox = Outbox::new(100);
        outbox.seal(Bytes::from_static(b"\x88\x05\x03\xe9bye"));
        assert_eq!(outbox.end(), end(1001, ""));
        assert_eq!(End::of(b"\x88\x05\x03\xe9bye"), end(1001, "bye"));
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
