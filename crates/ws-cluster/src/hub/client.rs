//! One connected client as the rest of the node sees it: who it is, and where to put what it is to get.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Wake,
};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use serde_json::Value;

use super::{
    Hub, Membership,
    resume::{ResumeState, StateSealer, unix_time},
};
use crate::{
    RawDetails,
    auth::Handshake,
    clock::now,
    close::CloseCode,
    log_limit::LogLimits,
    message::{
        client::{Dialect, Form, Outgoing, beginning, encode, position},
        position::Position,
        target::ConnectionId,
    },
    send_queue::SendQueue,
};
use ws_cluster_core::Seq;

/// A connection's shared half, with what waits for its client; the other half reads, and answers.
pub(crate) struct Client {
    pub(crate) id: ConnectionId,
    pub(crate) handshake: Handshake,
    pub(crate) queue: SendQueue,
    /// As the server is set, until the client's first message decides; read by whoever delivers.
    array: AtomicBool,
    /// It asked for its position.
    tracks: bool,
    /// Whether the hub delivers to it. Written under the hub's lock.
    registered: AtomicBool,
    /// The hub has forgotten it.
    forgotten: AtomicBool,
    /// The authenticator is to be asked again.
    refresh: AtomicBool,
    /// The place up to which it knows that it has got everything, where it tracks its position. Written by whoever
    /// delivers, which is one at a time.
    told: AtomicU64,
    /// The place behind which it began on this connection.
    began: AtomicU64,
    /// Its entry number: the order in which clients came to be delivered to.
    entered: AtomicU64,
    /// Changed through the hub only, so that its index agrees. A synchronous lock, taken for a look-up and never
    /// across an await; the hub's own lock comes first where both are held.
    membership: RwLock<Membership>,
}

impl Client {
    /// `tracks`: it asked for its position.
    pub(crate) fn new(id: ConnectionId, handshake: Handshake, queue_size: usize, tracks: bool) -> Self {
        let queue = SendQueue::new(queue_size);
        let (array, registered, forgotten, refresh, told, began, entered, membership) = Default::default();
        Self {
            id,
            handshake,
            queue,
            array,
            tracks,
            registered,
            forgotten,
            refresh,
            told,
            began,
            entered,
            membership,
        }
    }

    /// The id under which handlers and targets know it.
    pub(crate) fn known_as(&self) -> ConnectionId {
        self.known_as_in(&self.membership())
    }

    fn known_as_in(&self, membership: &Membership) -> ConnectionId {
        membership.former().unwrap_or(self.id)
    }

    pub(crate) fn membership(&self) -> RwLockReadGuard<'_, Membership> {
        self.membership.read()
    }

    /// For the hub.
    pub(crate) fn membership_lock(&self) -> &RwLock<Membership> {
        &self.membership
    }

    pub(crate) fn speak(&self, dialect: Dialect) {
        self.array.store(dialect == Dialect::Array, Ordering::Relaxed);
    }

    /// Whether it asked for its position, and so may carry what it is to another connection.
    pub(crate) fn keeps_position(&self) -> bool {
        self.tracks
    }

    /// Whether it is told its position: it asked, and speaks the form that has one.
    pub(crate) fn tracks(&self) -> bool {
        self.tracks && !self.array.load(Ordering::Relaxed)
    }

    fn frame(&self, message: &Outgoing<'_>) -> Bytes {
        let array = self.array.load(Ordering::Relaxed);
        message.frame(match (array, self.tracks) {
            (true, _) => Form::Array,
            (false, true) => Form::Positioned,
            (false, false) => Form::Object,
        })
    }

    /// Sends a message that others may share.
    pub(crate) fn deliver(&self, message: &Outgoing<'_>) {
        self.note(message);
        self.queue.push(self.frame(message));
    }

    /// The same, written at the end of a fan-out. Returns true if the fan-out has to note the client for that.
    pub(crate) fn add(&self, message: &Outgoing<'_>) -> bool {
        self.note(message);
        self.queue.add(self.frame(message))
    }

    /// Notes how far it has come with a message.
    fn note(&self, message: &Outgoing<'_>) {
        if let Some(seq) = message.seq().filter(|_| self.tracks) {
            self.told.store(seq, Ordering::Relaxed);
        }
    }

    /// The place up to which it knows that it has got everything.
    pub(crate) fn told(&self) -> Seq {
        self.told.load(Ordering::Relaxed)
    }

    /// Its entry number among the clients of this node.
    pub(crate) fn entered(&self) -> u64 {
        self.entered.load(Ordering::Relaxed)
    }

    /// It is delivered to from now on.
    pub(crate) fn enter(&self, number: u64) {
        self.entered.store(number, Ordering::Relaxed);
        self.registered.store(true, Ordering::Relaxed);
    }

    /// The hub forgets it, and delivers to it no more. Whether it did.
    pub(crate) fn leave(&self) -> bool {
        self.forgotten.store(true, Ordering::Relaxed);
        self.registered.swap(false, Ordering::Relaxed)
    }

    /// Whether the hub has forgotten it.
    pub(crate) fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Relaxed)
    }

    /// Whether the hub delivers to it.
    pub(crate) fn is_registered(&self) -> bool {
        self.registered.load(Ordering::Relaxed)
    }

    /// Lets its task ask the authenticator again, at once.
    pub(crate) fn refresh(&self) {
        self.refresh.store(true, Ordering::Relaxed);
        self.queue.ring();
    }

    /// Returns true if the authenticator is to be asked again. It is asked by the caller then.
    pub(crate) fn take_refresh(&self) -> bool {
        self.refresh.load(Ordering::Relaxed) && self.refresh.swap(false, Ordering::Relaxed)
    }

    /// The place behind which it began on this connection.
    pub(crate) fn began(&self) -> Seq {
        self.began.load(Ordering::Relaxed)
    }

    /// Nothing that is not behind this place is replayed to it from now on.
    pub(crate) fn begin_behind(&self, seq: Seq) {
        self.began.store(seq, Ordering::Relaxed);
    }

    /// Tells it where it begins on this connection, what it is to carry, and how often it hears something at least, in
    /// seconds (0 if it did not ask).
    pub(crate) fn begin(&self, details: &[Value], at: Position, state: &str, heartbeat: u16) {
        if self.tracks() {
            self.queue.push(beginning(details, at, state, heartbeat));
            self.told.store(at.seq, Ordering::Relaxed);
        }
    }

    /// Tells it where it is, in a frame that others share, at the end of a fan-out. Returns true if the fan-out has to note the
    /// client for that.
    pub(crate) fn tell(&self, frame: &Bytes, seq: Seq) -> bool {
        self.tracks() && {
            self.told.store(seq, Ordering::Relaxed);
            self.queue.add(frame.clone())
        }
    }

    /// Tells it that the server lives, with its position and what it is to carry, if it keeps one.
    pub(crate) fn tell_now(&self, at: Option<Position>, state: Option<&str>) {
        let now = ["now".into()];
        if !self.tracks() {
            return self.send("Server/position", &now);
        }
        self.queue.push(position(&now, at, state));
        at.iter().for_each(|at| self.told.store(at.seq, Ordering::Relaxed));
    }

    /// Tells it what to carry from now on, where that changed. Its position stays: what is delivered meanwhile may be
    /// behind this.
    pub(crate) fn tell_changes(&self, hub: &Hub, sealer: &StateSealer) {
        if !self.membership().is_untold() || !self.is_registered() || !self.tracks() {
            return;
        }
        let sealed = {
            let at = hub.position();
            let mut membership = self.membership.write();
            membership.take_untold();
            self.seal(&membership, at, sealer)
        };
        self.queue.push(position(&["now".into()], None, Some(&sealed)));
    }

    /// What it is to carry, sealed by a node that has come as far as `at`.
    pub(crate) fn seal(&self, membership: &Membership, at: Position, sealer: &StateSealer) -> String {
        let state = ResumeState {
            id: self.known_as_in(membership),
            changes: membership.changes(),
            version: membership.version(),
            began: self.began(),
            since: membership.since(),
            given: membership.given_now().short(),
            at,
            time: unix_time(),
        };
        let sealed = sealer.seal(membership.user.as_deref(), membership.session.as_deref(), &state);
        if sealed.is_empty() {
            // Of the process: it says that an application makes too much of its clients, whichever they are.
            static LOGS: LazyLock<LogLimits<()>> = LazyLock::new(LogLimits::default);
            let Some(line) = LOGS.due((), now()) else { return sealed };
            let (connection, left_out) = (self.known_as_in(membership), line.left_out);
            tracing::warn!(%connection, left_out, "its groups and properties are too large to be carried; its return is a reset");
        }
        sealed
    }

    /// Sends a message to this client alone.
    pub(crate) fn send_details(&self, action: &str, details: &RawDetails) {
        self.deliver(&Outgoing::new(action, details.as_str().as_bytes()));
    }

    /// The same with details of the server's own.
    pub(crate) fn send(&self, action: &str, details: &[Value]) {
        self.deliver(&Outgoing::new(action, &encode(details)));
    }

    /// Answers an action with an error.
    pub(crate) fn send_error(&self, action: &str, code: u16, text: &str) {
        self.send(&format!("{action}:error"), &[code.into(), text.into()]);
    }

    /// Sends a last message and closes.
    pub(crate) fn close_after(&self, action: &str, details: &[Value], code: CloseCode, reason: &'static str) {
        let last = self.frame(&Outgoing::new(action, &encode(details)));
        self.queue.close_after(last, code, reason);
    }

    /// Closes so that the client stays away: `Server/close` and 1000.
    pub(crate) fn dismiss(&self, reason: &'static str) {
        self.close_after("Server/close", &[], CloseCode::Normal, reason);
    }
}

/// The waker of a parked connection. One that is left over from then wakes the task, which finds nothing to do.
impl Wake for Client {
    fn wake(self: Arc<Self>) {
        self.queue.wake();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.queue.wake();
    }
}
