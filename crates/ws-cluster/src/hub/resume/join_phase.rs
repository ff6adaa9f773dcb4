//! The phases of a client from its upgrade until it gets what all clients get.

use std::{pin::Pin, sync::Arc};

use tokio::time::Instant;

use super::{ResumeRequest, Resumption, Step, join::Admitted};
use crate::{
    hub::Client,
    message::{client::Incoming, request_id::AwaitedAnswer},
};

/// The phase of a client's join. Small, since nearly all connections are in the last phase.
pub(crate) enum JoinPhase {
    /// The client is a guest on a server without guests, and has some time to authenticate.
    Unauthenticated(Box<Unauthenticated>),
    /// The client tracks its position and may authenticate with its first message. The server waits for that, because
    /// it decides what the client missed.
    Undecided(Box<Undecided>),
    /// The client becomes what it was before, and is sent what it missed. Its messages are not read meanwhile. A client
    /// that does not track its position is in this phase if the application is asked about it.
    Resuming(Box<Resuming>),
    /// The application is asked whether the client may join. Its messages are not read meanwhile.
    Announcing(Box<Resuming>),
    /// The application refused the client.
    Refused,
    /// The client gets what all clients get.
    Joined,
}

/// The facts that decide in which phase a client begins.
#[derive(Clone, Copy)]
pub(crate) struct Arriving {
    /// The client may join as who it is. Otherwise it has to authenticate first.
    pub(crate) may_join: bool,
    /// The client may authenticate with a message.
    pub(crate) in_band: bool,
    /// The application is asked whether the client may join.
    pub(crate) asks_application: bool,
}

/// A future that runs one step of the join.
pub(crate) type Joining = Pin<Box<dyn Future<Output = Step> + Send>>;

pub(crate) struct Unauthenticated {
    pub(crate) until: Instant,
    pub(crate) asked: Option<ResumeRequest>,
}

pub(crate) struct Undecided {
    pub(crate) until: Instant,
    pub(crate) asked: ResumeRequest,
}

pub(crate) struct Resuming {
    pub(crate) call: Joining,
    /// The point at which the client begins, while the application is asked.
    pub(crate) back: Option<Admitted>,
    /// True if the application knows of the client.
    pub(crate) announced: bool,
    /// The answer to its `Client/authentication`, if the client waits for one.
    pub(crate) confirm: Option<AwaitedAnswer>,
    /// A message that came before the client had joined. It is handled afterwards.
    pub(crate) deferred: Option<Incoming>,
}

impl JoinPhase {
    /// Returns the phase in which a client begins.
    pub(crate) fn new(
        resumption: &Arc<Resumption>,
        client: &Arc<Client>,
        asked: Option<ResumeRequest>,
        Arriving { may_join, in_band, asks_application }: Arriving,
    ) -> Self {
        let until = Instant::now() + resumption.config.connection.handshake_timeout;
        let decided = client.membership().user.is_some() || !in_band;
        match asked {
            asked if !may_join => Self::Unauthenticated(Box::new(Unauthenticated { until, asked })),
            None => Self::Joined,
            Some(asked) if decided => Self::resuming(resumption, client, asked, None, asks_application),
            Some(asked) => Self::Undecided(Box::new(Undecided { until, asked })),
        }
    }

    pub(crate) fn resuming(
        resumption: &Arc<Resumption>,
        client: &Arc<Client>,
        asked: ResumeRequest,
        confirm: Option<AwaitedAnswer>,
        asks_application: bool,
    ) -> Self {
        let call = resumption.admit(client, asked, asks_application);
        Self::Resuming(Box::new(Resuming { call, back: None, announced: false, confirm, deferred: None }))
    }

    /// Returns true if the application has accepted the client, or was not asked about it.
    pub(crate) fn is_announced(&self) -> bool {
        match self {
            Self::Joined => true,
            Self::Resuming(resuming) => resuming.announced,
            _ => false,
        }
    }

    pub(crate) fn is_joined(&self) -> bool {
        matches!(self, Self::Joined)
    }

    pub(crate) fn is_resuming(&self) -> bool {
        matches!(self, Self::Resuming(_))
    }

    /// Returns the time until which the client has to authenticate.
    pub(crate) fn until(&self) -> Option<Instant> {
        match self {
            Self::Unauthenticated(unauthenticated) => Some(unauthenticated.until),
            Self::Undecided(undecided) => Some(undecided.until),
            Self::Resuming(_) | Self::Announcing(_) | Self::Refused | Self::Joined => None,
        }
    }
}
