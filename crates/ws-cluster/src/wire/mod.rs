//! The encodings, and nothing else: the JSON that clients see and that a site posts, what goes between nodes, and what
//! an entry carries.
//! Nobody else knows any of them.

pub(crate) mod client;
pub(crate) mod content;
pub(crate) mod link;
pub(crate) mod order;
pub(crate) mod position;
pub(crate) mod state;
