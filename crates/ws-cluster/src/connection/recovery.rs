//! The beginning of a connection that keeps its position: from what its client brings along (`?resume=`, `&state=`, `&heartbeat=`)
//! to the moment in which it gets what everybody gets.

use std::{ops::RangeInclusive, sync::Arc, time::Duration};

use tokio::time::{Instant, timeout};

use super::{Client, call::Call, client::unix_time};
use ws_cluster_core::LogConfig;

use crate::{
    CloseCode, Server,
    auth::Handshake,
    history::Missing,
    hub::{self, AT_ONCE, Turn},
    message::{client::Incoming, position::Position},
};

/// Time for a client to read what it missed. Past it the connection is closed, and the client goes on from where it
/// has come on its next one: it must not keep others from their turn.
const REPLAY_TIME: Duration = Duration::from_secs(30);

/// A client that takes nothing of what it missed for so long is closed,
const REPLAY_STALL: Duration = Duration::from_secs(3);

/// and gives its turn to others after so long: those of one address may all wait for such clients.
const TURN_STALL: Duration = Duration::from_millis(500);

/// What it is told.
const SLOW: &str = "reads what it missed too slowly";

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
    /// It becomes what it was, and is sent what it missed. Nothing is read meanwhile.
    Recovering(Box<Recovering>),
    /// In between, the application is asked whether it may be here. Nothing is read meanwhile.
    Greeting(Box<Recovering>),
    /// The application refused it.
    Refused,
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
    pub(super) call: Call<Step>,
    /// Where it begins, while the application is asked.
    pub(super) back: Option<Back>,
    /// The application knows of it.
    pub(super) announced: bool,
    /// The client waits for the answer to its `Client/authentication`.
    pub(super) confirm: bool,
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
            Some(asked) if decided => Self::recovering(server, client, asked, false),
            Some(asked) => Self::Undecided(Box::new(Undecided { until, asked })),
        }
    }

    pub(super) fn recovering(server: &Server, client: &Arc<Client>, asked: Asked, confirm: bool) -> Self {
        let call = Box::pin(admit(server.clone(), client.clone(), asked));
        Self::Recovering(Box::new(Recovering { call, back: None, announced: false, confirm, deferred: None }))
    }

    /// Returns true if the application knows of the client, or had nothing to say to it.
    pub(super) fn is_announced(&self) -> bool {
        match self {
            Self::Here => true,
            Self::Recovering(recovering) => recovering.announced,
            _ => false,
        }
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
            Self::Recovering(_) | Self::Greeting(_) | Self::Refused | Self::Here => None,
        }
    }
}

/// How far a client that comes back has come.
pub(super) enum Step {
    /// It is what it was before. The application is asked about it, and then what it missed is replayed.
    Back(Back),
    /// It gets what everybody gets, or is closed.
    Over,
}

/// Where a client begins on this connection.
pub(super) struct Back {
    from: From,
    heartbeat: u16,
}

enum From {
    /// Where the order is when the client joins the rest.
    New,
    /// Where it was when the client came: what the application publishes while it is asked is for the client as well.
    Now(Position),
    /// Behind what the client has seen.
    Position(Position),
    /// It cannot go on, and why.
    Reset(&'static str),
}

/// Makes a client what it was before, if what it brings along proves that.
async fn admit(server: Server, client: Arc<Client>, asked: Asked) -> Step {
    let from = if !asked.position.is_empty() {
        match prove(&server, &client, &asked).await {
            Ok(position) => {
                server.revoke(&client);
                From::Position(position)
            }
            Err(why) => From::Reset(why),
        }
    } else if server.greets(&client) {
        let now = server.hub().position();
        client.begin_behind(now.seq);
        From::Now(now)
    } else {
        From::New
    };
    Step::Back(Back { from, heartbeat: asked.heartbeat })
}

/// Anybody can make up a position. What a client was, and since when, is what this cluster sealed.
async fn prove(server: &Server, client: &Arc<Client>, asked: &Asked) -> Result<Position, &'static str> {
    let (hub, config) = (server.hub(), server.config());
    let position = asked.position.parse().map_err(|_| "its position is not this cluster's")?;
    if asked.state.is_empty() {
        return Err("what belongs to its connection is missing, or was too large to be kept");
    }
    let (user, session) = {
        let membership = client.membership();
        (membership.user.clone(), membership.session.clone())
    };
    let state = server.seals().open(user.as_deref(), session.as_deref(), &asked.state);
    let state = state.map_err(|_| "what belongs to its connection is another user's or session's")?;
    let valid = config.log.age + reseal_interval(&config.log);
    if unix_time().saturating_sub(state.time) > valid.as_secs() {
        return Err("too much time has passed since");
    }
    hub.reach_seal(&state.at, config.connection.resume_timeout).await?;
    hub.resume(client, state)?;
    Ok(position)
}

/// How often a client is given anew what it carries, which is valid for as long as the log's age, and for this time beside,
/// so that it can be away for as long.
pub(super) fn reseal_interval(log: &LogConfig) -> Duration {
    log.age / 4
}

/// Tells the client where it is, sends it what it missed, and lets it have what comes from then on.
pub(super) fn replay(server: Server, client: Arc<Client>, back: Back) -> Call<Step> {
    Box::pin(async move {
        let Back { from, heartbeat } = back;
        if client.outbox.is_sealed() {
            return Step::Over;
        }
        let first = match from {
            From::New => Some(vec!["new".into()]),
            From::Now(position) => {
                let replayed = try_replay(&server, &client, &position, true, heartbeat).await;
                replayed.err().map(|why| vec!["reset".into(), why.into()])
            }
            From::Position(position) => {
                let replayed = try_replay(&server, &client, &position, false, heartbeat).await;
                replayed.err().map(|why| vec!["reset".into(), why.into()])
            }
            From::Reset(why) => Some(vec!["reset".into(), why.into()]),
        };
        if let Some(first) = first {
            server.hub().begin(&client, &first, server.seals(), heartbeat);
        }
        Step::Over
    })
}

/// `new`: the client begins at this position.
async fn try_replay(
    server: &Server,
    client: &Arc<Client>,
    position: &Position,
    new: bool,
    heartbeat: u16,
) -> Result<(), &'static str> {
    let (hub, config) = (server.hub(), &server.config().connection);
    let ip = client.handshake.remote_ip();
    let mut epoch = hub.reach(position, config.resume_timeout).await?;
    // However old the position says that it is.
    let after = position.seq.max(client.began());
    client.begin_behind(after);
    let mut turn = None;
    let few = AT_ONCE.min(config.replay_count);
    let mut missed = match hub.missed(client, after, epoch, few) {
        Err(Missing::TooMany) => {
            // Whoever waits here gets nothing yet, and so misses nothing.
            turn = take_turn(server, client).await;
            if turn.is_none() {
                return Ok(());
            }
            // Once more, for the wait may have been long.
            epoch = hub.reach(position, Duration::ZERO).await?;
            hub.missed(client, after, epoch, config.replay_count)
        }
        missed => missed,
    }
    .map_err(Missing::why)?;
    if !missed.messages.is_empty() {
        server.replays().check(ip)?;
    }
    let state = {
        let at = hub.position();
        let mut membership = client.membership_lock().write();
        membership.take_untold();
        client.seal(&membership, at, server.seals())
    };
    let first = match new {
        true => vec!["new".into()],
        false => vec!["recovered".into(), missed.messages.len().into()],
    };
    client.begin(&first, *position, &state, heartbeat);
    let sending = async {
        let mut sent = after;
        'missed: loop {
            for (place, content) in &missed.messages {
                if !has_room(client, content.size(), TURN_STALL).await {
                    // Others have their turn, and the room that this takes, while it does not read.
                    let size = content.size();
                    missed.messages = Vec::new();
                    turn = None;
                    if !has_room(client, size, REPLAY_STALL - TURN_STALL).await {
                        client.outbox.close(CloseCode::TooSlow, SLOW);
                        return Ok(());
                    }
                    turn = take_turn(server, client).await;
                    if turn.is_none() {
                        return Ok(());
                    }
                    missed = hub.missed(client, sent, epoch, config.replay_count)?;
                    continue 'missed;
                }
                server.replays().count(ip, content.size());
                hub::replay(client, *place, content);
                sent = place.seq;
            }
            sent = missed.until;
            if hub.catch_up(client, sent, epoch)? {
                return Ok(());
            }
            missed = hub.missed(client, sent, epoch, config.replay_count)?;
        }
    };
    match timeout(REPLAY_TIME, sending).await {
        Ok(sent) => sent.map_err(Missing::why),
        Err(_) => {
            client.outbox.close(CloseCode::TooSlow, SLOW);
            Ok(())
        }
    }
}

/// Waits for a turn. `None` if there was none in time: the client is closed, and comes again.
async fn take_turn(server: &Server, client: &Client) -> Option<Turn> {
    let turn = timeout(server.config().connection.resume_timeout, server.replays().turn(client)).await;
    if turn.is_err() {
        client.outbox.close(CloseCode::TryAgainLater, "too many clients come back at once");
    }
    turn.ok()
}

/// Waits until there is room for a frame of this size; false if the client takes nothing for as long as `stall`.
async fn has_room(client: &Client, size: usize, stall: Duration) -> bool {
    loop {
        let before = client.outbox.waiting();
        if timeout(stall, client.outbox.until_room(size)).await.is_ok() {
            return true;
        }
        if client.outbox.waiting() >= before {
            return false;
        }
    }
}
