//! The steps that the micro-benchmarks measure. This is no part of the API, and all of it may change at any time.

use std::time::Instant;

use bytes::Bytes;

use crate::{
    Config, Identity, NodeId, Target,
    hub::{Member, Membership},
    message::{
        client::{MessageForm, OutgoingMessage, parse},
        content::Content,
        target::ConnectionId,
    },
    ws,
};
use ws_cluster_core::{Entry, Log, LogPosition, Proposal, PublishId};

const NODE: NodeId = NodeId::from_bytes([7; 16]);

/// Decodes one frame of a client. Returns the size of its message in bytes, if it is a text.
pub fn decode(frame: &mut [u8]) -> Option<usize> {
    ws::decoded(frame)
}

/// Parses a client's message. Returns the number of its arguments, if it is a message.
pub fn arguments(text: &str) -> Option<usize> {
    parse(text).ok().map(|incoming| incoming.details.len())
}

/// Encodes a message with its position as a frame. Returns the frame's size.
pub fn encode(action: &str, details: &[u8]) -> usize {
    let log_position = LogPosition { term: 1, master: NODE, seq: 1_000_000 };
    OutgoingMessage::new(action, details).at(log_position.into()).frame(MessageForm::Positioned, None).len()
}

/// Encodes the content of a relayed message, and decodes it again.
pub fn relay(target: &Target, action: &str, details: &Bytes) -> bool {
    let content = Content::Message {
        target: target.clone(),
        action: action.to_owned(),
        details: details.clone(),
        volatile: false,
    };
    Content::decode(content.encode()).is_ok()
}

/// Connections for targets to match: user `uN` in the group `gN/100`.
pub struct Connections(Vec<Membership>);

impl Connections {
    /// Returns `count` connections.
    pub fn new(count: usize) -> Self {
        let identity = |number: usize| Identity::user(format!("u{number}")).groups([format!("g{}", number / 100)]);
        Self((0..count).map(|number| Membership::of(identity(number))).collect())
    }

    /// Returns the number of connections that a target means. It checks each of them.
    pub fn meant(&self, target: &Target) -> usize {
        let member = |(local, own)| Member(ConnectionId { node: NODE, local }, own);
        (0..).zip(&self.0).map(member).filter(|member| target.matches(member)).count()
    }
}

/// A log that is appended to.
pub struct Appended {
    log: Log,
    now: Instant,
}

impl Default for Appended {
    fn default() -> Self {
        Self { log: Log::new(Config::default().log), now: Instant::now() }
    }
}

impl Appended {
    /// Appends an entry and trims the log to its limits.
    pub fn append(&mut self, content: Bytes) {
        let seq = self.log.last() + 1;
        let publish = PublishId { origin: NODE, counter: seq };
        let proposal = Proposal { id: publish, key: None, content: Some(content) };
        self.log.append(self.now, Entry { term: 1, seq, proposal }, NODE);
        self.log.trim(self.now, self.log.surplus(self.now));
    }
}
