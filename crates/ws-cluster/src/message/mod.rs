//! Messages: whom they are for, what they carry, what may be published, and how clients, sites and log entries
//! encode them. Pure.

pub(crate) mod client;
pub(crate) mod close;
pub(crate) mod command;
pub(crate) mod content;
pub(crate) mod groups;
pub(crate) mod position;
pub(crate) mod publish;
pub(crate) mod request_id;
pub(crate) mod target;

pub use client::{Dialect, ParseDialectError};
pub use close::Close;
pub use groups::GroupChange;
pub use publish::Message;
pub use request_id::RequestId;
pub use target::{ConnectionId, ParseConnectionIdError, ParseTargetError, Target};
