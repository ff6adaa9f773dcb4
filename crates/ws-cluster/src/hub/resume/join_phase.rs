//! How far a client is with getting what is delivered, from its upgrade to the moment in which it gets what all get.

use std::{pin::Pin, sync::Arc};

use tokio::time::Instant;

use super::{ResumeRequest, Resumption, Step, join::Admitted};
use crate::{hub::Client, message::client::Incoming};

/// How far a client is with getting what is delivered. Small, since nearly all connections are here.
pub(crate) enum JoinPhase {
    /// A guest where guests are not welcome: it has a time to authenticate.
    Unwelcome(Box<Unwelcome>),
    /// It keeps its position and may authenticate with its first message, which decides what it missed: until then it
    /// is waited for.
    Undecided(Box<Undecided>),
    /// It becomes what it was, and is sent what it missed. Nothing is read meanwhile.
    Recovering(Box<Recovering>),
    /// In between, the application is asked whether it may be here. Nothing is read meanwhile.
    Greeting(Box<Recovering>),
    /// The application refused it.
    Refused,
    Here,
}

/// What decides where a client begins.
#[derive(Clone, Copy)]
pub(crate) struct Arriving {
    /// It may be here as who it is; otherwise it has to authenticate first.
    pub(crate) welcome: bool,
    /// It may authenticate by a message.
    pub(crate) in_band: bool,
    /// The application is asked whether it may be here.
    pub(crate) greets: bool,
}

/// A future that brings a client a step further.
pub(crate) type Joining = Pin<Box<dyn Future<Output = Step> + Send>>;

pub(crate) struct Unwelcome {
    pub(crate) until: Instant,
    pub(crate) asked: Option<ResumeRequest>,
}

pub(crate) struct Undecided {
    pub(crate) until: Instant,
    pub(crate) asked: ResumeRequest,
}

pub(crate) struct Recovering {
    pub(crate) call: Joining,
    /// Where it begins, while the application is asked.
    pub(crate) back: Option<Admitted>,
    /// The application knows of it.
    pub(crate) announced: bool,
    /// The client waits for the answer to its `Client/authentication`.
    pub(crate) confirm: bool,
    /// A message that came before its client was here, to be handled once it is.
    pub(crate) deferred: Option<Incoming>,
}

impl JoinPhase {
    /// Returns where a client begins. `welcome`: it may be here as who it is. `in_band`: it may authenticate by a message.
    /// `greets`: the application is asked whether it may be here.
    pub(crate) fn new(
        resumption: &Arc<Resumption>,
        client: &Arc<Client>,
        asked: Option<ResumeRequest>,
        Arriving { welcome, in_band, greets }: Arriving,
    ) -> Self {
        let until = Instant::now() + resumption.config.connection.handshake_timeout;
        let decided = client.membership().user.is_some() || !in_band;
        match asked {
            asked if !welcome => Self::Unwelcome(Box::new(Unwelcome { until, asked })),
            None => Self::Here,
            Some(asked) if decided => Self::recovering(resumption, client, asked, false, greets),
            Some(asked) => Self::Undecided(Box::new(Undecided { until, asked })),
        }
    }

    pub(crate) fn recovering(
        resumption: &Arc<Resumption>,
        client: &Arc<Client>,
        asked: ResumeRequest,
        confirm: bool,
        greets: bool,
    ) -> Self {
        let call = resumption.admit(client, asked, greets);
        Self::Recovering(Box::new(Recovering { call, back: None, announced: false, confirm, deferred: None }))
    }

    /// Returns true if the application knows of the client, or had nothing to say to it.
    pub(crate) fn is_announced(&self) -> bool {
        match self {
            Self::Here => true,
            Self::Recovering(recovering) => recovering.announced,
            _ => false,
        }
    }

    pub(crate) fn is_here(&self) -> bool {
        matches!(self, Self::Here)
    }

    pub(crate) fn is_recovering(&self) -> bool {
        matches!(self, Self::Recovering(_))
    }

    /// Until when the client has to decide.
    pub(crate) fn until(&self) -> Option<Instant> {
        match self {
            Self::Unwelcome(unwelcome) => Some(unwelcome.until),
            Self::Undecided(undecided) => Some(undecided.until),
            Self::Recovering(_) | Self::Greeting(_) | Self::Refused | Self::Here => None,
        }
    }
}
