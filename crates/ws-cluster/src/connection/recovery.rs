//! The beginning of a connection that keeps its position: from what its client brings along (`?resume=`, `&state=`, `&heartbeat=`)
//! to the moment in which it gets what everybody gets.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{Client, call::Call};
use crate::{
    CloseCode, Server,
    auth::Handshake,
    history::Missing,
    hub::{AT_ONCE, replay},
    wire::{client::Incoming, position::Position},
};

/// Time for a client to read what it missed. Past it the connection is closed, and the client goes on from where it
/// has come on its next one: it must not keep others from their turn.
const REPLAY_TIME: Duration = Duration::from_secs(30);

/// What a client brings along. Not in `Debug`: with it goes who the client is.
pub(crate) struct Asked {
    /// Empty where it begins.
    position: String,
    state: String,
    /// In seconds; how often it wants to hear something at least. 0 if it does not say.
    heartbeat: u16,
}

/// The heartbeats that a client may ask for, in seconds.
const HEARTBEATS: RangeInclusive<u64> = 5..=300;

impl Asked {
    /// Takes it out of the request, where nobody else needs it: `None` from a client that keeps no position.
    pub(crate) fn take(handshake: &mut Handshake) -> Option<Self> {
        // An application may have a parameter `state` of its own where nothing is resumed.
        let [position] = handshake.take_query(["resume"]);
        let position = position?;
        let [state, heartbeat] = handshake.take_query(["state", "heartbeat"]);
        let heartbeat = heartbeat.and_then(|seconds| seconds.parse().ok()).map_or(0, |seconds: u64| {
            // In range, so it fits.
            seconds.clamp(*HEARTBEATS.start(), *HEARTBEATS.end()) as u16
        });
        Some(Self { position, state: state.unwrap_or_default(), heartbeat })
    }

    /// How often the client wants to hear something at least, in seconds; 0 if it does not say.
    pub(super) fn heartbeat(&self) -> u16 {
        self.heartbeat
    }
}

/// How far a client is with getting what is delivered. Small, since nearly all connections are here.
pub(super) enum Arrival {
    /// A guest where guests are not welcome: it has a time to authenticate.
    Unwelcome(Box<Unwelcome>),
    /// It keeps its position and may authenticate with its first message, which decides what it missed: until then it
    /// is waited for.
    Undecided(Box<Undecided>),
    /// It is sent what it missed. Nothing is read meanwhile.
    Recovering(Box<Recovering>),
    /// It was closed before it was here.
    Over,
    Here,
}

pub(super) struct Unwelcome {
    pub(super) until: Instant,
    pub(super) asked: Option<Asked>,
}

pub(super) struct Undecided {
    pub(super) until: Instant,
    pub(super) asked: Asked,
}

pub(super) struct Recovering {
    pub(super) call: Call<()>,
    /// A message that came before its client was here, to be handled once it is.
    pub(super) deferred: Option<Incoming>,
}

impl Arrival {
    pub(super) fn new(server: &Server, client: &Arc<Client>, welcome: bool, asked: Option<Asked>) -> Self {
        let until = Instant::now() + server.config().connection.handshake_timeout;
        let decided = client.membership().user.is_some() || !server.authenticator().in_band();
        match asked {
            asked if !welcome => Self::Unwelcome(Box::new(Unwelcome { until, asked })),
            None => Self::Here,
            Some(asked) if decided => Self::recovering(server, client, asked),
            Some(asked) => Self::Undecided(Box::new(Undecided { until, asked })),
        }
    }

    pub(super) fn recovering(server: &Server, client: &Arc<Client>, asked: Asked) -> Self {
        let call = Box::pin(recover(server.clone(), client.clone(), asked));
        Self::Recovering(Box::new(Recovering { call, deferred: None }))
    }

    pub(super) fn is_here(&self) -> bool {
        matches!(self, Self::Here)
    }

    pub(super) fn is_recovering(&self) -> bool {
        matches!(self, Self::Recovering(_))
    }

    /// Until when the client has to decide.
    pub(super) fn until(&self) -> Option<Instant> {
        match self {
            Self::Unwelcome(unwelcome) => Some(unwelcome.until),
            Self::Undecided(undecided) => Some(undecided.until),
            Self::Recovering(_) | Self::Over | Self::Here => None,
        }
    }
}

/// Tells the client where it is, sends it what it missed, and lets it have what comes from then on.
async fn recover(server: Server, client: Arc<Client>, asked: Asked) {
    if asked.position.is_empty() {
        return server.hub().begin(&client, &["new".into()], server.seals(), asked.heartbeat);
    }
    if let Err(why) = resume(&server, &client, &asked).await {
        server.hub().begin(&client, &["reset".into(), why.into()], server.seals(), asked.heartbeat);
    }
}

async fn resume(server: &Server, client: &Arc<Client>, asked: &Asked) -> Result<(), &'static str> {
    let (hub, config) = (server.hub(), &server.config().connection);
    let position: Position = asked.position.parse().map_err(|_| "its position is not this cluster's")?;
    if asked.state.is_empty() {
        return Err("what belongs to its connection is missing, or was too large to be kept");
    }
    let (user, session) = {
        let membership = client.membership();
        (membership.user.clone(), membership.session.clone())
    };
    let state = server.seals().open(user.as_deref(), session.as_deref(), &asked.state);
    let state = state.map_err(|_| "what belongs to its connection is another user's or session's")?;
    // From here on its groups and properties are as they were, whatever becomes of the position.
    hub.change(client, |membership| membership.resume(state));

    let mut epoch = hub.reach(&position, config.resume_timeout).await?;
    let mut turn = None;
    let few = AT_ONCE.min(config.replay_count);
    let mut missed = match hub.missed(client, position.seq, epoch, few) {
        Err(Missing::TooMany) => {
            // Whoever waits here gets nothing yet, and so misses nothing.
            let Ok(place) = timeout(config.resume_timeout, server.replays().acquire()).await else {
                client.outbox.close(CloseCode::TryAgainLater, "too many clients come back at once");
                return Ok(());
            };
            turn = Some(place);
            // Once more, for the wait may have been long.
            epoch = hub.reach(&position, Duration::ZERO).await?;
            hub.missed(client, position.seq, epoch, config.replay_count)
        }
        missed => missed,
    }
    .map_err(Missing::why)?;
    let state = client.seal(&client.membership(), server.seals());
    client.begin(&["recovered".into(), missed.messages.len().into()], position, &state, asked.heartbeat);
    let sending = async {
        loop {
            for (place, content) in &missed.messages {
                client.outbox.until_room(content.size()).await;
                replay(client, *place, content);
            }
            if hub.catch_up(client, missed.until, epoch)? {
                return Ok(());
            }
            missed = hub.missed(client, missed.until, epoch, config.replay_count)?;
        }
    };
    let sent = timeout(REPLAY_TIME, sending).await;
    drop(turn);
    match sent {
        Ok(sent) => sent.map_err(Missing::why),
        Err(_) => {
            client.outbox.close(CloseCode::TooSlow, "reads what it missed too slowly");
            Ok(())
        }
    }
}
