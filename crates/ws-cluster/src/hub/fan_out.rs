//! One round of writes to many clients. Messages that are delivered together leave in one write for each client,
//! directly to its socket.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{runtime::Handle, task::yield_now};

use crate::{
    hub::Client,
    message::client::{MessageForm, OutgoingMessage},
    send_queue::SharedFrame,
    stats::{Stats, Stopwatch},
    ws::{deflate::Deflate, frame},
};
use ws_cluster_core::Seq;

/// Maximum number of clients that the cluster's task itself writes to. A larger round would keep the task from its
/// other work.
const MAX_INLINE: usize = 64;

/// Number of clients that one task writes to, and number of writes after which it yields: some hundred microseconds of
/// system calls.
const CHUNK: usize = 1024;
const YIELD_AFTER: usize = 64;

/// Maximum number of times that a round to many clients lets all other tasks run before it begins. A busy runtime comes
/// back to a task that yields only after some hundred microseconds, so the time is limited as well.
const MAX_YIELDS: usize = 128;

/// Returns the maximum time for which a round waits: a microsecond for each client. That is about a quarter of the time
/// that the writes take, and enough to queue dozens of messages for the clients.
fn max_wait(clients: usize) -> Duration {
    Duration::from_micros(clients.clamp(500, 10_000) as u64)
}

/// Number of clients for which a round yields once more although the other tasks have delivered nothing, and the
/// maximum number of such yields. Each takes about a microsecond if the runtime is idle, far less than the writes to
/// these clients. Another processor may need several of them to read the next request.
const CLIENTS_PER_YIELD: usize = 128;
const MAX_IDLE_YIELDS: usize = 16;

/// If nothing was delivered for this time, a round begins after `MIN_IDLE_YIELDS` yields. A busy runtime takes longer
/// than this for a few yields, and has then run all of its tasks; another processor has had time for several requests.
const MAX_QUIET: Duration = Duration::from_micros(100);
const MIN_IDLE_YIELDS: usize = 2;

/// Notes how long a round took when the last of its tasks drops it.
struct Timer {
    stats: Arc<Stats>,
    stopwatch: Stopwatch,
}

impl Timer {
    fn start(stats: Arc<Stats>) -> Self {
        Self { stats, stopwatch: Stopwatch::start() }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.stats.metered.note(|counts| counts.fan_outs.observe(self.stopwatch.elapsed()));
    }
}

/// Messages for many clients, with their frames in each form that some of these clients get.
pub(super) struct SharedMessages<'a> {
    messages: &'a [OutgoingMessage<'a>],
    /// Number of bytes that may still be compressed.
    budget: &'a mut usize,
    /// The frames, which differ. A broadcast has as many as there are different results, whatever clients negotiate.
    frames: Vec<Shared>,
    /// The kinds of clients that get the same frames as a kind that came before, with the index of these frames. Mostly
    /// empty.
    same: Vec<(Kind, usize)>,
    /// Number of bytes that all clients together get.
    pub(super) bytes: u64,
    /// Number of messages that clients get compressed.
    pub(super) compressed: u64,
}

/// What decides which frames a client gets.
type Kind = (MessageForm, Option<Deflate>);

/// The frames of the messages for a kind of clients, joined.
struct Shared {
    /// The first kind of clients that got these frames.
    kind: Kind,
    /// The frames before they were joined.
    parts: Vec<Bytes>,
    frame: SharedFrame,
    /// Number of compressed messages.
    compressed: u64,
}

impl<'a> SharedMessages<'a> {
    /// At most `budget` bytes are compressed; what is compressed is subtracted from it.
    pub(super) fn new(messages: &'a [OutgoingMessage<'a>], budget: &'a mut usize) -> Self {
        Self { messages, budget, frames: Vec::new(), same: Vec::new(), bytes: 0, compressed: 0 }
    }

    /// Returns the sequence number of the last message in the cluster's order, if it has one.
    pub(super) fn seq(&self) -> Option<Seq> {
        self.messages.last()?.seq()
    }

    /// Returns the frames for one more client.
    pub(super) fn frame(&mut self, form: MessageForm, deflate: Option<Deflate>) -> &mut SharedFrame {
        let kind = (form, deflate);
        let known = self.frames.iter().position(|shared| shared.kind == kind);
        let known = known.or_else(|| self.same.iter().find(|(same, _)| *same == kind).map(|(_, index)| *index));
        let index = known.unwrap_or_else(|| self.add(kind));
        let Shared { frame, compressed, .. } = &mut self.frames[index];
        self.bytes += frame.size() as u64;
        self.compressed += *compressed;
        frame
    }

    /// Adds a kind of clients. Returns the index of its frames, which another kind may get as well.
    fn add(&mut self, kind: Kind) -> usize {
        let (form, deflate) = kind;
        let messages = self.messages.iter();
        let parts: Vec<_> = messages.map(|message| message.frame_within(form, deflate, self.budget)).collect();
        match self.frames.iter().position(|shared| shared.has(&parts)) {
            Some(index) => {
                self.same.push((kind, index));
                index
            }
            None => {
                self.frames.push(Shared::new(kind, parts));
                self.frames.len() - 1
            }
        }
    }
}

impl Shared {
    fn new(kind: Kind, parts: Vec<Bytes>) -> Self {
        let compressed = parts.iter().filter(|frame| frame::is_compressed(frame)).count() as u64;
        let joined = if let [frame] = &parts[..] { frame.clone() } else { parts.concat().into() };
        Self { kind, parts, frame: SharedFrame::new(joined), compressed }
    }

    /// Returns true if these are the same frames: each message has each of its frames once.
    fn has(&self, parts: &[Bytes]) -> bool {
        self.parts.iter().zip(parts).all(|(own, other)| own.as_ptr() == other.as_ptr())
    }
}

/// The clients that the next round writes to, each of them once.
#[derive(Default)]
pub(super) struct FanOut {
    clients: Vec<Arc<Client>>,
    /// Number of times that something was ever queued for a client.
    visits: u64,
    /// True if a task has been started that writes to the clients.
    is_due: bool,
}

impl FanOut {
    /// Queues messages for a client.
    pub(super) fn add(&mut self, client: &Arc<Client>, messages: &mut SharedMessages<'_>) {
        let new = client.add(messages);
        self.note(client, new);
    }

    /// Queues a client's position, in a frame that clients share.
    pub(super) fn add_position(&mut self, client: &Arc<Client>, frame: &mut SharedFrame, seq: Seq) {
        let new = client.add_position(frame, seq);
        self.note(client, new);
    }

    fn note(&mut self, client: &Arc<Client>, new: bool) {
        self.visits += 1;
        if new {
            self.clients.push(client.clone());
        }
    }

    /// Writes to a few clients at once, and to many in tasks of the server's runtime, in parallel if there are several
    /// processors. Messages that are delivered meanwhile join those that still wait.
    pub(super) fn write(fan_out: &Arc<Mutex<Self>>, runtime: Option<&Handle>, stats: &Arc<Stats>) {
        let mut next = fan_out.lock();
        if next.clients.is_empty() {
            return;
        }
        match runtime {
            Some(runtime) if next.clients.len() > MAX_INLINE => {
                if !std::mem::replace(&mut next.is_due, true) {
                    runtime.spawn(write_to_many(fan_out.clone(), stats.clone()));
                }
            }
            _ => {
                let _timer = Timer::start(stats.clone());
                let clients = std::mem::take(&mut next.clients);
                // The lock is released first, because writing takes a system call for each client.
                drop(next);
                clients.iter().for_each(|client| client.queue.write());
            }
        }
    }
}

/// Writes to all clients of the next round. First it lets the other tasks run as long as they deliver something: messages
/// that came together are to leave together.
async fn write_to_many(fan_out: Arc<Mutex<FanOut>>, stats: Arc<Stats>) {
    let start = Instant::now();
    let (mut visits, mut clients, mut idle, mut delivered) = (0, 0, 0, start);
    for _ in 0..MAX_YIELDS {
        // If the lock is taken, something is being delivered.
        let (next, now) = (fan_out.try_lock().map(|next| (next.visits, next.clients.len())), Instant::now());
        match next.is_some_and(|(next, _)| next == visits) {
            true => idle += 1,
            false => (idle, delivered) = (0, now),
        }
        (visits, clients) = next.unwrap_or((visits, clients));
        let is_idle = idle > (clients / CLIENTS_PER_YIELD).min(MAX_IDLE_YIELDS);
        let is_quiet = idle >= MIN_IDLE_YIELDS && now.duration_since(delivered) > MAX_QUIET;
        if is_idle || is_quiet || now.duration_since(start) > max_wait(clients) {
            break;
        }
        yield_now().await;
    }
    let mut clients = {
        let mut next = fan_out.lock();
        next.is_due = false;
        std::mem::take(&mut next.clients).into_iter()
    };
    let timer = Arc::new(Timer::start(stats));
    while clients.len() > CHUNK {
        let chunk: Vec<_> = clients.by_ref().take(CHUNK).collect();
        tokio::spawn(write_to(chunk.into_iter(), timer.clone()));
    }
    write_to(clients, timer).await;
}

async fn write_to(mut clients: std::vec::IntoIter<Arc<Client>>, _timer: Arc<Timer>) {
    while clients.len() > 0 {
        // Each client is dropped while the processor still has its memory at hand.
        clients.by_ref().take(YIELD_AFTER).for_each(|client| client.queue.write());
        yield_now().await;
    }
}

#[cfg(all(test, feature = "deflate"))]
mod tests {
    use super::*;
    use crate::{
        message::position::Position,
        ws::deflate::{MAX_TOGETHER, answer},
    };

    #[test]
    fn clients_that_get_the_same_frames_share_them_whatever_they_negotiated() {
        let windows = (8..=15).map(|bits| format!("permessage-deflate; server_max_window_bits={bits}"));
        let negotiated = windows.map(|offer| answer([offer.as_bytes()], 256).map(|(deflate, _)| deflate));
        let kinds: Vec<_> = std::iter::once(None).chain(negotiated).collect();
        let text = |size: usize| format!("[\"{}\"]", "x".repeat(size));
        let (small, large, larger) = (text(10), text(300), text(5_000));
        let forms = [MessageForm::Object, MessageForm::Array, MessageForm::Positioned];
        for (details, results) in [
            (&[&small][..], 1),
            (&[&large], 2),
            (&[&large, &small], 2),
            // Windows of 512 bytes to 4 KiB take only one of them.
            (&[&large, &larger], 3),
        ] {
            let messages: Vec<_> = details
                .iter()
                .map(|details| OutgoingMessage::new("a", details.as_bytes()).at(Position::START))
                .collect();
            let mut budget = MAX_TOGETHER;
            let mut shared = SharedMessages::new(&messages, &mut budget);
            for form in forms {
                for deflate in kinds.iter().chain(&kinds) {
                    let expected: Vec<_> = messages.iter().map(|message| message.frame(form, *deflate)).collect();
                    assert_eq!(shared.frame(form, *deflate).size(), expected.concat().len());
                }
            }
            assert_eq!(shared.frames.len(), forms.len() * results, "{} messages", details.len());
            assert_eq!(shared.frames.len() + shared.same.len(), forms.len() * kinds.len());
        }
    }
}
