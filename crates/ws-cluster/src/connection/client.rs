//! One connected client as the rest of the node sees it: who it is, and where to put what it is to get.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bytes::Bytes;
use parking_lot::{RwLock, RwLockReadGuard};
use serde_json::Value;

use super::outbox::Outbox;
use crate::{
    auth::{Handshake, Identity},
    close::CloseCode,
    target::{Candidate, ConnectionId},
    wire::client::{Dialect, Outgoing, encode},
};

/// A connection's shared half; the other one is the task that owns its socket.
pub(crate) struct Client {
    pub(crate) id: ConnectionId,
    pub(crate) handshake: Handshake,
    pub(crate) outbox: Outbox,
    /// Set once, by the client's first message; read by whoever delivers.
    array: AtomicBool,
    /// Changed through the hub only, so that its index agrees. A synchronous lock, taken for a look-up and never
    /// across an await; the hub's own lock comes first where both are held.
    membership: RwLock<Membership>,
}

/// Who a client is, as targets see it.
#[derive(Clone, Default)]
pub(crate) struct Membership {
    pub(crate) user: Option<Arc<str>>,
    pub(crate) session: Option<Arc<str>>,
    pub(crate) groups: BTreeSet<Arc<str>>,
    pub(crate) properties: BTreeMap<Arc<str>, Value>,
    /// Whether the hub delivers to it.
    pub(crate) registered: bool,
}

impl Client {
    pub(crate) fn new(id: ConnectionId, handshake: Handshake, queue_size: usize) -> Self {
        let outbox = Outbox::new(queue_size);
        Self { id, handshake, outbox, array: AtomicBool::new(false), membership: RwLock::default() }
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

    fn frame(&self, message: &Outgoing<'_>) -> Bytes {
        message.frame(if self.array.load(Ordering::Relaxed) { Dialect::Array } else { Dialect::Object })
    }

    /// Sends a message that others may share.
    pub(crate) fn deliver(&self, message: &Outgoing<'_>) {
        self.outbox.push(self.frame(message));
    }

    /// Sends a message to this client alone.
    pub(crate) fn send(&self, action: &str, details: &[Value]) {
        self.deliver(&Outgoing::new(action, &encode(details)));
    }

    /// Answers an action with an error.
    pub(crate) fn send_error(&self, action: &str, code: u16, text: &str) {
        self.send(&format!("{action}:error"), &[code.into(), text.into()]);
    }

    /// Sends a last message and closes.
    pub(crate) fn close_after(&self, action: &str, details: &[Value], code: CloseCode, reason: &str) {
        let last = self.frame(&Outgoing::new(action, &encode(details)));
        self.outbox.close_after(last, code, reason);
    }

    /// Closes so that the client stays away: `Server/close` and 1000.
    pub(crate) fn dismiss(&self, reason: &str) {
        self.close_after("Server/close", &[], CloseCode::Normal, reason);
    }
}

impl Membership {
    pub(crate) fn of(identity: Identity) -> Self {
        Self {
            user: identity.user.map(Into::into),
            session: identity.session.map(Into::into),
            groups: identity.groups.into_iter().map(Into::into).collect(),
            properties: identity.properties.into_iter().map(|(name, value)| (name.into(), value)).collect(),
            registered: false,
        }
    }
}

/// A property as targets compare it: a string as it is, anything else as compact JSON.
pub(crate) fn property_text(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => text.into(),
        other => other.to_string().into(),
    }
}

/// A client with its membership, for [`Target::matches`](crate::Target).
pub(crate) struct Member<'a>(pub(crate) ConnectionId, pub(crate) &'a Membership);

impl Candidate for Member<'_> {
    fn id(&self) -> ConnectionId {
        self.0
    }

    fn user(&self) -> Option<&str> {
        self.1.user.as_deref()
    }

    fn session(&self) -> Option<&str> {
        self.1.session.as_deref()
    }

    fn in_group(&self, name: &str) -> bool {
        self.1.groups.contains(name)
    }

    fn property_is(&self, name: &str, value: &str) -> bool {
        self.1.properties.get(name).is_some_and(|own| property_text(own) == value)
    }
}
