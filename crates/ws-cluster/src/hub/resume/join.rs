//! How a client that comes back gets to where all are: it becomes what it was, and is sent what it missed.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    AT_ONCE, ResumeRequest, Resumption, Turn, history::Missing, join_phase::Joining, owed, reseal_interval, unix_time,
};
use crate::{CloseCode, hub::Client, message::position::Position};

/// Time for a client to read what it missed. Past it the connection is closed, and the client goes on from where it
/// has come on its next one: it must not keep others from their turn.
const REPLAY_TIME: Duration = Duration::from_secs(30);

/// A client that takes nothing of what it missed for so long is closed,
const REPLAY_STALL: Duration = Duration::from_secs(3);

/// and gives its turn to others after so long: those of one address may all wait for such clients.
const TURN_STALL: Duration = Duration::from_millis(500);

/// What it is told.
const SLOW: &str = "reads what it missed too slowly";

/// How far a client that comes back has come.
pub(crate) enum Step {
    /// It is what it was before. The application is asked about it, and then what it missed is replayed.
    Admitted(Admitted),
    /// It gets what everybody gets, or is closed.
    Over,
}

/// Where a client begins on this connection.
pub(crate) struct Admitted {
    from: StartingPoint,
    heartbeat: u16,
}

enum StartingPoint {
    /// Where the order is when the client joins the rest.
    New,
    /// Where it was when the client came: what the application publishes while it is asked is for the client as well.
    Now(Position),
    /// Behind what the client has seen.
    Position(Position),
    /// It cannot go on, and why.
    Reset(&'static str),
}

/// Makes a client what it was before, if what it brings along proves that. `greets`: the application is asked whether it
/// may be here.
pub(super) async fn admit(
    resumption: Arc<Resumption>,
    client: Arc<Client>,
    asked: ResumeRequest,
    greets: bool,
) -> Step {
    let from = if !asked.position.is_empty() {
        match prove(&resumption, &client, &asked).await {
            Ok(position) => {
                resumption.revoke(&client);
                StartingPoint::Position(position)
            }
            Err(why) => StartingPoint::Reset(why),
        }
    } else if greets {
        let now = resumption.hub.position();
        client.begin_behind(now.seq);
        StartingPoint::Now(now)
    } else {
        StartingPoint::New
    };
    Step::Admitted(Admitted { from, heartbeat: asked.heartbeat })
}

/// Anybody can make up a position. What a client was, and since when, is what this cluster sealed.
async fn prove(resumption: &Resumption, client: &Arc<Client>, asked: &ResumeRequest) -> Result<Position, &'static str> {
    let (hub, config) = (&resumption.hub, &resumption.config);
    let position = asked.position.parse().map_err(|_| "its position is not this cluster's")?;
    if asked.state.is_empty() {
        return Err("what belongs to its connection is missing, or was too large to be kept");
    }
    let (user, session) = {
        let membership = client.membership();
        (membership.user.clone(), membership.session.clone())
    };
    let state = resumption.sealer.open(user.as_deref(), session.as_deref(), &asked.state);
    let state = state.map_err(|_| "what belongs to its connection is another user's or session's")?;
    let valid = config.log.age + reseal_interval(&config.log);
    if unix_time().saturating_sub(state.time) > valid.as_secs() {
        return Err("too much time has passed since");
    }
    hub.reach_seal(&state.at, config.connection.resume_timeout).await?;
    hub.resume(client, state)?;
    Ok(position)
}

/// Tells the client where it is, sends it what it missed, and lets it have what comes from then on.
pub(super) fn replay(resumption: Arc<Resumption>, client: Arc<Client>, admitted: Admitted) -> Joining {
    Box::pin(async move {
        let Admitted { from, heartbeat } = admitted;
        if client.queue.is_sealed() {
            return Step::Over;
        }
        let first = match from {
            StartingPoint::New => Some(vec!["new".into()]),
            StartingPoint::Now(position) => {
                let replayed = try_replay(&resumption, &client, &position, true, heartbeat).await;
                replayed.err().map(|why| vec!["reset".into(), why.into()])
            }
            StartingPoint::Position(position) => {
                let replayed = try_replay(&resumption, &client, &position, false, heartbeat).await;
                replayed.err().map(|why| vec!["reset".into(), why.into()])
            }
            StartingPoint::Reset(why) => Some(vec!["reset".into(), why.into()]),
        };
        if let Some(first) = first {
            resumption.hub.begin(&client, &first, &resumption.sealer, heartbeat);
        }
        Step::Over
    })
}

/// `new`: the client begins at this position.
async fn try_replay(
    resumption: &Resumption,
    client: &Arc<Client>,
    position: &Position,
    new: bool,
    heartbeat: u16,
) -> Result<(), &'static str> {
    let (hub, config) = (&resumption.hub, &resumption.config.connection);
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
            turn = take_turn(resumption, client).await;
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
        resumption.replays.check(ip)?;
    }
    let state = {
        let at = hub.position();
        let mut membership = client.membership_lock().write();
        membership.take_untold();
        client.seal(&membership, at, &resumption.sealer)
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
                        client.queue.close(CloseCode::TooSlow, SLOW);
                        return Ok(());
                    }
                    turn = take_turn(resumption, client).await;
                    if turn.is_none() {
                        return Ok(());
                    }
                    missed = hub.missed(client, sent, epoch, config.replay_count)?;
                    continue 'missed;
                }
                resumption.replays.count(ip, content.size());
                owed::replay(client, *place, content);
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
            client.queue.close(CloseCode::TooSlow, SLOW);
            Ok(())
        }
    }
}

/// Waits for a turn. `None` if there was none in time: the client is closed, and comes again.
async fn take_turn(resumption: &Resumption, client: &Client) -> Option<Turn> {
    let turn = timeout(resumption.config.connection.resume_timeout, resumption.replays.turn(client)).await;
    if turn.is_err() {
        client.queue.close(CloseCode::TryAgainLater, "too many clients come back at once");
    }
    turn.ok()
}

/// Waits until there is room for a frame of this size; false if the client takes nothing for as long as `stall`.
async fn has_room(client: &Client, size: usize, stall: Duration) -> bool {
    loop {
        let before = client.queue.waiting();
        if timeout(stall, client.queue.until_room(size)).await.is_ok() {
            return true;
        }
        if client.queue.waiting() >= before {
            return false;
        }
    }
}
