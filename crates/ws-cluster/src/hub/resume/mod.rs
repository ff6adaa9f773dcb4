//! Clients that come back.

pub(crate) mod seal;
