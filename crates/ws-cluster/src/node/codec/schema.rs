//! The schema of a link. A tag is never given another meaning; removed fields keep their tags, and added fields are
//! optional.

use bytes::Bytes;
use prost::{Message, Oneof};

/// The dialler's first message.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Greeting {
    #[prost(uint32, tag = "1")]
    pub(crate) oldest: u32,
    #[prost(uint32, tag = "2")]
    pub(crate) newest: u32,
    #[prost(string, tag = "3")]
    pub(crate) cluster: String,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) node: Bytes,
    #[prost(uint32, tag = "5")]
    pub(crate) role: u32,
    #[prost(bytes = "bytes", tag = "6")]
    pub(crate) nonce: Bytes,
}

/// The acceptor's answer. `refusal` gives the reason if the acceptor refuses the link.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Welcome {
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) node: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    pub(crate) nonce: Bytes,
    #[prost(string, tag = "4")]
    pub(crate) refusal: String,
}

/// The proof that the sender has the key. The dialler sends its proof first.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Proof {
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) mac: Bytes,
    #[prost(string, tag = "2")]
    pub(crate) refusal: String,
}

/// A publisher's request.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Publish {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) content: Bytes,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(crate) key: Option<Bytes>,
    /// Asks the node that gets it to shut down. The content is empty then, which an earlier version refuses.
    #[prost(bool, tag = "4")]
    pub(crate) drain: bool,
}

/// The answer to a request: 0 for accepted, otherwise the error.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Outcome {
    #[prost(uint64, tag = "1")]
    pub(crate) id: u64,
    #[prost(uint32, tag = "2")]
    pub(crate) error: u32,
    #[prost(string, tag = "3")]
    pub(crate) text: String,
}

/// The frames and notes that are sent together. An empty packet is a heartbeat.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Packet {
    #[prost(message, repeated, tag = "1")]
    pub(super) frames: Vec<Frame>,
    #[prost(message, repeated, tag = "2")]
    pub(super) notes: Vec<Note>,
}

/// What a node tells others outside of the log. Versions before notes skip it.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Note {
    /// The node that wrote it.
    #[prost(bytes = "bytes", tag = "1")]
    pub(crate) origin: Bytes,
    /// The node that it is for; empty if it is for all.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) to: Bytes,
    /// True if it comes from another node than its origin. It is passed on no further.
    #[prost(bool, tag = "3")]
    pub(crate) relayed: bool,
    #[prost(bytes = "bytes", tag = "4")]
    pub(crate) content: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Frame {
    #[prost(uint64, tag = "1")]
    pub(super) term: u64,
    #[prost(oneof = "Body", tags = "2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12")]
    pub(super) body: Option<Body>,
}

#[derive(Clone, PartialEq, Oneof)]
pub(super) enum Body {
    #[prost(message, tag = "2")]
    Term(Term),
    #[prost(bool, tag = "3")]
    Promise(bool),
    #[prost(message, tag = "4")]
    Join(Join),
    #[prost(uint64, tag = "5")]
    Fetch(u64),
    #[prost(message, tag = "6")]
    Tail(Tail),
    #[prost(message, tag = "7")]
    Welcome(Admission),
    #[prost(message, tag = "8")]
    Append(Append),
    #[prost(uint64, tag = "9")]
    Ack(u64),
    #[prost(bool, tag = "10")]
    Joined(bool),
    #[prost(message, tag = "11")]
    Propose(Propose),
    /// Versions before it skip it, and acknowledge at once.
    #[prost(bool, tag = "12")]
    Defer(bool),
}

/// The sender's term. `master` is empty if there is no master.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Term {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) master: Bytes,
    #[prost(string, tag = "2")]
    pub(super) address: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Join {
    #[prost(uint64, tag = "1")]
    pub(super) attempt: u64,
    #[prost(uint64, tag = "2")]
    pub(super) base: u64,
    #[prost(uint64, tag = "3")]
    pub(super) last: u64,
    #[prost(uint64, tag = "4")]
    pub(super) last_term: u64,
    #[prost(message, repeated, tag = "5")]
    pub(super) lineage: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Tail {
    #[prost(message, optional, tag = "1")]
    pub(super) snapshot: Option<Snapshot>,
    #[prost(message, repeated, tag = "2")]
    pub(super) spans: Vec<Span>,
    #[prost(message, repeated, tag = "3")]
    pub(super) entries: Vec<Entry>,
    #[prost(bool, tag = "4")]
    pub(super) done: bool,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Admission {
    #[prost(uint64, tag = "1")]
    pub(super) attempt: u64,
    #[prost(uint64, tag = "2")]
    pub(super) agreed: u64,
    #[prost(message, optional, tag = "3")]
    pub(super) snapshot: Option<Snapshot>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Append {
    #[prost(message, repeated, tag = "1")]
    pub(super) spans: Vec<Span>,
    #[prost(message, repeated, tag = "2")]
    pub(super) entries: Vec<Entry>,
    #[prost(uint64, tag = "3")]
    pub(super) held_by_all: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Propose {
    #[prost(message, repeated, tag = "1")]
    pub(super) proposals: Vec<Proposal>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Span {
    #[prost(uint64, tag = "1")]
    pub(super) term: u64,
    #[prost(bytes = "bytes", tag = "2")]
    pub(super) master: Bytes,
    #[prost(uint64, tag = "3")]
    pub(super) first: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct PublishId {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) origin: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) counter: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Proposal {
    #[prost(message, optional, tag = "1")]
    pub(super) publish: Option<PublishId>,
    #[prost(bytes = "bytes", optional, tag = "3")]
    pub(super) key: Option<Bytes>,
    #[prost(bytes = "bytes", optional, tag = "4")]
    pub(super) content: Option<Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Entry {
    #[prost(uint64, tag = "1")]
    pub(super) term: u64,
    #[prost(uint64, tag = "2")]
    pub(super) seq: u64,
    #[prost(message, optional, tag = "3")]
    pub(super) proposal: Option<Proposal>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Snapshot {
    #[prost(uint64, tag = "1")]
    pub(super) base: u64,
    #[prost(message, repeated, tag = "2")]
    pub(super) spans: Vec<Span>,
    #[prost(message, repeated, tag = "3")]
    pub(super) marks: Vec<PublishId>,
    #[prost(message, repeated, tag = "4")]
    pub(super) keys: Vec<Key>,
    #[prost(uint64, tag = "5")]
    pub(super) forgotten: u64,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Key {
    #[prost(bytes = "bytes", tag = "1")]
    pub(super) key: Bytes,
    #[prost(uint64, tag = "2")]
    pub(super) seq: u64,
}
