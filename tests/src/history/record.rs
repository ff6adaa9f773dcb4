//! One line of a history, as JSON.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

/// Something that a publisher or a client went through. Times (`t`) are microseconds on one clock that all records of
/// a run share. The records of one client, and of one publisher, stand in their order; otherwise any order will do.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Record<'a> {
    /// A publisher begins to publish its next message. It publishes one after the other.
    Begun {
        /// When.
        t: u64,
        /// The publisher.
        #[serde(borrow)]
        by: Cow<'a, str>,
        /// The message's number, which grows.
        number: u64,
        /// Whom it is for: `all`, `registered` or `user:ID`.
        #[serde(borrow)]
        to: Cow<'a, str>,
    },
    /// A node gets it. Without this record nobody knows which.
    Tried {
        /// When.
        t: u64,
        /// The publisher.
        #[serde(borrow)]
        by: Cow<'a, str>,
        /// The message's number.
        number: u64,
        /// The process: a node that is started again has another name.
        #[serde(borrow)]
        node: Cow<'a, str>,
    },
    /// The publish is accepted.
    Accepted {
        /// When.
        t: u64,
        /// The publisher.
        #[serde(borrow)]
        by: Cow<'a, str>,
        /// The message's number.
        number: u64,
    },
    /// The publish is not accepted: it may be delivered or not.
    Refused {
        /// When.
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
    /// Who a client is; before anything else of it.
    Client {
        /// The client.
        #[serde(borrow)]
        client: Cow<'a, str>,
        /// Its user; none for a guest.
        user: Option<Cow<'a, str>>,
    },
    /// A client's connection is open.
    Open {
        /// When.
        t: u64,
        /// The client.
        #[serde(borrow)]
        client: Cow<'a, str>,
        /// The process that it is connected to.
        #[serde(borrow)]
        node: Cow<'a, str>,
    },
    /// A client is told where it is in the order.
    Position {
        /// When.
        t: u64,
        /// The client.
        #[serde(borrow)]
        client: Cow<'a, str>,
        /// What it is told.
        kind: Kind,
        /// For `recovered`: how many messages of the meantime follow.
        #[serde(default)]
        count: u64,
        /// For `reset`: why.
        #[serde(borrow, default)]
        why: Cow<'a, str>,
    },
    /// A client gets a message.
    Message {
        /// When.
        t: u64,
        /// The client.
        #[serde(borrow)]
        client: Cow<'a, str>,
        /// The message's publisher.
        #[serde(borrow)]
        by: Cow<'a, str>,
        /// The message's number.
        number: u64,
        /// Its place in the order, opaque, where the client is told.
        #[serde(skip_serializing_if = "Option::is_none")]
        at: Option<Cow<'a, str>>,
    },
    /// A client's connection is lost.
    Closed {
        /// When.
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
    /// What was done to the cluster, for people who read the history.
    Fault {
        /// When.
        t: u64,
        /// What.
        #[serde(borrow)]
        what: Cow<'a, str>,
    },
}

/// What a client is told of its position.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// It begins.
    New,
    /// It goes on where it was.
    Recovered,
    /// It begins anew: something may have been missed, or come twice.
    Reset,
}
