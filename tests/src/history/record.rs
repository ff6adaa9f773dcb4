//! One line of a history, as JSON.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// An event of a publisher or a client. Times (`t`) are microseconds on one clock that all records of a run share. The
/// records of one client, and of one publisher, are in their order. Records of different ones may be in any order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Record<'a> {
    /// A publisher begins to publish its next message. It publishes one after the other.
    Begun {
        /// The time.
        t: u64,
        /// The publisher.
        #[serde(borrow)]
        by: Cow<'a, str>,
        /// The message's number, which grows.
        number: u64,
        /// The target: `all`, `registered` or `user:ID`.
        #[serde(borrow)]
        to: Cow<'a, str>,
    },
    /// A node gets the message. Without this record the node is unknown.
    Tried {
        /// The time.
        t: u64,
        /// The publisher.
        #[serde(borrow)]
        by: Cow<'a, str>,
        /// The message's number.
        number: u64,
        /// The process. A node that is started again has another name.
        #[serde(borrow)]
        node: Cow<'a, str>,
    },
    /// The publish is accepted.
    Accepted {
        /// The time.
        t: u64,
        /// The publisher.
        #[serde(borrow)]
        by: Cow<'a, str>,
        /// The message's number.
        number: u64,
    },
    /// The publish is not accepted. The message may be delivered or not.
    Refused {
        /// The time.
        t: u64,
        /// The publisher.
        #[serde(borrow)]
        by: Cow<'a, str>,
        /// The message's number.
        number: u64,
        /// The cause.
        #[serde(borrow)]
        why: Cow<'a, str>,
    },
    /// The identity of a client, before its other records.
    Client {
        /// The client.
        #[serde(borrow)]
        client: Cow<'a, str>,
        /// The client's user, or `None` for a guest.
        user: Option<Cow<'a, str>>,
    },
    /// A client's connection is open.
    Open {
        /// The time.
        t: u64,
        /// The client.
        #[serde(borrow)]
        client: Cow<'a, str>,
        /// The process to which it is connected.
        #[serde(borrow)]
        node: Cow<'a, str>,
    },
    /// A client is told its position.
    Position {
        /// The time.
        t: u64,
        /// The client.
        #[serde(borrow)]
        client: Cow<'a, str>,
        /// The kind of the position.
        kind: Kind,
        /// For `recovered`: the number of missed messages that follow.
        #[serde(default)]
        count: u64,
        /// For `reset`: the reason.
        #[serde(borrow, default)]
        why: Cow<'a, str>,
    },
    /// A client gets a message.
    Message {
        /// The time.
        t: u64,
        /// The client.
        #[serde(borrow)]
        client: Cow<'a, str>,
        /// The message's publisher.
        #[serde(borrow)]
        by: Cow<'a, str>,
        /// The message's number.
        number: u64,
        /// The message's log position, opaque, if the client is told.
        #[serde(skip_serializing_if = "Option::is_none")]
        at: Option<Cow<'a, str>>,
    },
    /// A client's connection is lost.
    Closed {
        /// The time.
        t: u64,
        /// The client.
        #[serde(borrow)]
        client: Cow<'a, str>,
        /// The code of the WebSocket.
        code: u16,
        /// The reason.
        #[serde(borrow)]
        reason: Cow<'a, str>,
    },
    /// A fault of the cluster, for people who read the history.
    Fault {
        /// The time.
        t: u64,
        /// The fault.
        #[serde(borrow)]
        what: Cow<'a, str>,
    },
}

/// The kind of a position that a client is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The client begins.
    New,
    /// The client resumes without a loss.
    Recovered,
    /// The client begins again: messages may have been missed, or come twice.
    Reset,
}
