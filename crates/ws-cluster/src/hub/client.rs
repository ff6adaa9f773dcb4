//! One connected client as the rest of the node sees it: its id, its membership and its send queue.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::Wake,
};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use serde_json::Value;

use super::{
    Hub, Membership,
    fan_out::SharedMessages,
    resume::{ResumeState, StateSealer, unix_time},
};
use crate::{
    CloseCode, RawDetails,
    auth::Handshake,
    clock::now,
    log_limit::LogLimits,
    message::{
        client::{Dialect, MessageForm, OutgoingMessage, beginning, encode, position},
        position::Position,
        request_id::RequestId,
        target::ConnectionId,
    },
    send_queue::{SendQueue, SharedFrame},
    ws::{
        deflate::{Deflate, compress},
        frame::payload,
    },
};
use ws_cluster_core::Seq;

/// The client speaks the array form. The server's setting counts until the client's first message decides.
const ARRAY: u8 = 1;
/// The client asked for its position.
const TRACKS: u8 = 2;

/// Size of the smallest message that is compressed for a replay, in bytes. Compressing takes 10 to 30 us even for small
/// messages, and a replay of 10,000 of them to each of many clients would take minutes. A message below this size fits
/// into two packets anyway.
const MIN_COMPRESSED_REPLAY: usize = 2 * 1024;

/// The hub does not deliver to the client yet.
const ARRIVING: u8 = 0;
/// The hub delivers to the client.
const JOINED: u8 = 1;
/// The hub has forgotten the client.
const FORGOTTEN: u8 = 2;

/// The shared half of a connection, with its send queue. The connection's task owns the other half, which reads and
/// answers.
///
/// The fields are laid out as they are written here. A fan-out looks at those up to the beginning of the queue, which
/// fit into one line of the processor's cache together with the counts of the `Arc`.
#[repr(C)]
pub(crate) struct Client {
    /// The client's entry number: clients are numbered in the order in which the hub began to deliver to them.
    entered: AtomicU64,
    /// The sequence number up to which the client knows that it has got everything, if it tracks its position.
    /// Deliveries write it, one at a time.
    known_seq: AtomicU64,
    /// The form of the messages that the client gets: [`ARRAY`] and [`TRACKS`].
    form: AtomicU8,
    /// Present if the client gets large messages compressed.
    deflate: Option<Deflate>,
    /// [`ARRIVING`], [`JOINED`] or [`FORGOTTEN`]. Written under the hub's lock. One byte, because the size of a
    /// client counts.
    phase: AtomicU8,
    /// True if the authenticator has to be asked again.
    refresh: AtomicBool,
    /// When the client connected, in seconds since 1970.
    connected_at: u32,
    pub(crate) queue: SendQueue,
    pub(crate) id: ConnectionId,
    pub(crate) handshake: Handshake,
    /// The sequence number after which this connection's deliveries begin.
    began: AtomicU64,
    /// Changes go through the hub, so that its index agrees. A synchronous lock, held for a look-up and never across an
    /// await. If the hub's lock is needed as well, it is taken first.
    membership: RwLock<Membership>,
}

impl Client {
    /// Returns a client that is not known to the hub yet. `tracks`: the client asked for its position.
    pub(crate) fn new(id: ConnectionId, handshake: Handshake, queue_size: usize, tracks: bool) -> Self {
        let queue = SendQueue::new(queue_size);
        let connected_at = unix_time() as u32;
        let (refresh, known_seq, began, entered, membership) = Default::default();
        Self {
            id,
            handshake,
            queue,
            form: AtomicU8::new(if tracks { TRACKS } else { 0 }),
            deflate: None,
            connected_at,
            phase: AtomicU8::new(ARRIVING),
            refresh,
            known_seq,
            began,
            entered,
            membership,
        }
    }

    /// Sets what was negotiated about compression.
    pub(crate) fn with_deflate(self, deflate: Option<Deflate>) -> Self {
        Self { deflate, ..self }
    }

    /// Returns what was negotiated about compression.
    pub(crate) fn deflate(&self) -> Option<Deflate> {
        self.deflate
    }

    /// Returns the id under which handlers and targets know the client: the one that it had before it came back, if
    /// any.
    pub(crate) fn known_as(&self) -> ConnectionId {
        self.known_as_in(&self.membership())
    }

    fn known_as_in(&self, membership: &Membership) -> ConnectionId {
        membership.former().unwrap_or(self.id)
    }

    pub(crate) fn membership(&self) -> RwLockReadGuard<'_, Membership> {
        self.membership.read()
    }

    /// Returns the lock itself, for the hub.
    pub(crate) fn membership_lock(&self) -> &RwLock<Membership> {
        &self.membership
    }

    pub(crate) fn set_dialect(&self, dialect: Dialect) {
        match dialect {
            Dialect::Array => self.form.fetch_or(ARRAY, Ordering::Relaxed),
            Dialect::Object => self.form.fetch_and(!ARRAY, Ordering::Relaxed),
        };
    }

    /// Returns true if the client asked for its position, and so may resume on another connection.
    pub(crate) fn keeps_position(&self) -> bool {
        self.form.load(Ordering::Relaxed) & TRACKS > 0
    }

    /// Returns true if the client is told its position: it asked for that, and speaks the form that has a position.
    pub(crate) fn tracks(&self) -> bool {
        self.form.load(Ordering::Relaxed) == TRACKS
    }

    fn form(&self) -> MessageForm {
        match self.form.load(Ordering::Relaxed) {
            0 => MessageForm::Object,
            TRACKS => MessageForm::Positioned,
            _ => MessageForm::Array,
        }
    }

    /// Queues a message in a frame that clients share.
    pub(crate) fn deliver(&self, message: &OutgoingMessage<'_>) {
        self.push(message, self.deflate);
    }

    /// Queues a message that this client missed. It is compressed only if it is large: no other client shares the
    /// result. Returns the number of bytes that were compressed.
    pub(super) fn replay(&self, message: &OutgoingMessage<'_>) -> usize {
        let size = payload(&message.frame(self.form(), None)).len();
        let deflate = self.deflate.filter(|deflate| size >= MIN_COMPRESSED_REPLAY && deflate.takes(size));
        self.push(message, deflate);
        deflate.map_or(0, |_| size)
    }

    /// Queues a message that this client missed, plain.
    pub(super) fn replay_plain(&self, message: &OutgoingMessage<'_>) {
        self.push(message, None);
    }

    fn push(&self, message: &OutgoingMessage<'_>, deflate: Option<Deflate>) {
        self.note_position(message.seq());
        self.queue.push(message.frame(self.form(), deflate));
    }

    /// Queues a frame for this client alone.
    pub(crate) fn send_frame(&self, frame: Bytes) {
        let takes = |deflate: Deflate| deflate.takes(payload(&frame).len());
        let compressed = self.deflate.filter(|deflate| takes(*deflate)).and_then(|_| compress(&frame));
        self.queue.push(compressed.unwrap_or(frame));
    }

    /// Queues a message like [`deliver`](Self::deliver), but for a fan-out to write when it ends. Returns true if the
    /// fan-out has to list the client for that.
    pub(super) fn add(&self, message: &mut SharedMessages<'_>) -> bool {
        self.note_position(message.seq());
        self.queue.add(message.frame(self.form(), self.deflate))
    }

    /// Notes the sequence number of a message that the client gets.
    fn note_position(&self, seq: Option<Seq>) {
        if let Some(seq) = seq.filter(|_| self.keeps_position()) {
            self.known_seq.store(seq, Ordering::Relaxed);
        }
    }

    /// Returns the sequence number up to which the client knows that it has got everything.
    pub(crate) fn known_seq(&self) -> Seq {
        self.known_seq.load(Ordering::Relaxed)
    }

    /// Returns when the client connected, in seconds since 1970.
    pub(super) fn connected_at(&self) -> u64 {
        self.connected_at.into()
    }

    /// Returns the client's entry number among the clients of this node.
    pub(crate) fn entered(&self) -> u64 {
        self.entered.load(Ordering::Relaxed)
    }

    /// Makes the hub deliver to the client from now on.
    pub(crate) fn enter(&self, number: u64) {
        self.entered.store(number, Ordering::Relaxed);
        self.phase.store(JOINED, Ordering::Relaxed);
    }

    /// Makes the hub forget the client. Returns true if the hub delivered to it.
    pub(crate) fn leave(&self) -> bool {
        self.phase.swap(FORGOTTEN, Ordering::Relaxed) == JOINED
    }

    /// Returns true if the hub has forgotten the client.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == FORGOTTEN
    }

    /// Returns true if the hub delivers to the client.
    pub(crate) fn is_joined(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == JOINED
    }

    /// Makes the connection's task ask the authenticator again at once.
    pub(crate) fn refresh(&self) {
        self.refresh.store(true, Ordering::Relaxed);
        self.queue.wake_for_timer();
    }

    /// Returns true if the authenticator has to be asked again. The caller then asks it.
    pub(crate) fn take_refresh(&self) -> bool {
        self.refresh.load(Ordering::Relaxed) && self.refresh.swap(false, Ordering::Relaxed)
    }

    /// Returns the sequence number after which this connection's deliveries begin.
    pub(crate) fn began(&self) -> Seq {
        self.began.load(Ordering::Relaxed)
    }

    /// Excludes everything up to `seq` from replays to this client.
    pub(crate) fn begin_behind(&self, seq: Seq) {
        self.began.store(seq, Ordering::Relaxed);
    }

    /// Tells the client where it begins on this connection, its resume token, and the longest interval between two
    /// messages in seconds (0 if the client did not ask for one).
    pub(crate) fn begin(&self, details: &[Value], at: Position, state: &str, heartbeat: u16) {
        if self.tracks() {
            self.queue.push(beginning(details, at, state, heartbeat));
            self.known_seq.store(at.seq, Ordering::Relaxed);
        }
    }

    /// Tells the client its position in a frame that clients share, for a fan-out to write when it ends. Returns true
    /// if the fan-out has to list the client for that.
    pub(crate) fn add_position(&self, frame: &mut SharedFrame, seq: Seq) -> bool {
        self.tracks() && {
            self.known_seq.store(seq, Ordering::Relaxed);
            self.queue.add(frame)
        }
    }

    /// Tells the client that the server is alive, and its position and resume token if it tracks its position.
    pub(crate) fn send_now(&self, at: Option<Position>, state: Option<&str>) {
        let now = ["now".into()];
        if !self.tracks() {
            return self.send("Server/position", &now);
        }
        self.queue.push(position(&now, at, state));
        at.iter().for_each(|at| self.known_seq.store(at.seq, Ordering::Relaxed));
    }

    /// Sends the client a new resume token if its token is outdated. The position is left out: a message that is being
    /// delivered may have an earlier one.
    pub(crate) fn send_new_token(&self, hub: &Hub, sealer: &StateSealer) {
        if !self.membership().is_token_outdated() || !self.is_joined() || !self.tracks() {
            return;
        }
        let sealed = {
            let mut membership = self.membership.write();
            membership.note_token_sent();
            self.seal(&membership, hub.position(), sealer)
        };
        self.queue.push(position(&["now".into()], None, Some(&sealed)));
    }

    /// Returns the client's resume token, sealed by a node that has delivered up to `at`. The caller reads `at` after it
    /// has locked the membership. Otherwise a site command could be applied a second time, after a later change by a
    /// handler.
    pub(crate) fn seal(&self, membership: &Membership, at: Position, sealer: &StateSealer) -> String {
        let state = ResumeState {
            id: self.known_as_in(membership),
            changes: membership.changes(),
            version: membership.version(),
            began: self.began(),
            since: membership.valid_since(),
            given: membership.given_now().short(),
            at,
            time: unix_time(),
        };
        let sealed = sealer.seal(membership.user.as_deref(), membership.session.as_deref(), &state);
        if sealed.is_empty() {
            // One limit for the whole process: the line says that an application gives its clients too many groups and
            // properties.
            static LOGS: LazyLock<LogLimits<()>> = LazyLock::new(LogLimits::default);
            let Some(line) = LOGS.due((), now()) else { return sealed };
            let (connection, left_out) = (self.known_as_in(membership), line.left_out);
            let text = "groups and properties are too large for a resume token: the next resume is a reset";
            tracing::warn!(%connection, left_out, "{text}");
        }
        sealed
    }

    /// Sends a message to this client alone. `id`: the request that it answers.
    pub(crate) fn send_details(&self, action: &str, details: &RawDetails, id: Option<&RequestId>) {
        self.deliver(&OutgoingMessage::new(action, details.as_str().as_bytes()).answers(id));
    }

    /// Sends a message of the server's own to this client alone.
    pub(crate) fn send(&self, action: &str, details: &[Value]) {
        self.answer(action, details, None);
    }

    /// Sends a message of the server's own that may answer a request.
    pub(crate) fn answer(&self, action: &str, details: &[Value], id: Option<&RequestId>) {
        self.deliver(&OutgoingMessage::new(action, &encode(details)).answers(id));
    }

    /// Answers an action with an error.
    pub(crate) fn send_error(&self, action: &str, code: u16, text: &str, id: Option<&RequestId>) {
        self.answer(&format!("{action}:error"), &[code.into(), text.into()], id);
    }

    /// Sends a last message, which may answer a request and says that the server closes, and closes the connection.
    pub(crate) fn close_after(
        &self,
        action: &str,
        details: &[Value],
        id: Option<&RequestId>,
        code: CloseCode,
        reason: &'static str,
    ) {
        let details = encode(details);
        let last = OutgoingMessage::new(action, &details).answers(id).closes(code);
        self.queue.close_after(last.frame(self.form(), self.deflate), code, reason);
    }

    /// Closes with `Server/close` and 1000, so that the client stays away.
    pub(crate) fn dismiss(&self, reason: &'static str) {
        let last = OutgoingMessage::new("Server/close", b"[]").frame(self.form(), self.deflate);
        self.queue.close_after(last, CloseCode::Normal, reason);
    }
}

/// The waker of a parked connection. If it is used after the connection has left the parking, it wakes the task, which
/// finds nothing to do.
impl Wake for Client {
    fn wake(self: Arc<Self>) {
        self.queue.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.queue.wake();
    }
}
