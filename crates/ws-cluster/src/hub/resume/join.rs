//! The steps of a client that comes back: its membership is restored, and it is sent what it missed.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::coop::consume_budget,
    time::{Instant, timeout},
};

use super::{
    MAX_UNDER_LOCK, ReplayTurn, ResumeRequest, Resumption, StateSealer, catch_up, history::Missing,
    join_phase::Joining, reseal_interval, unix_time,
};
use crate::{CloseCode, hub::Client, message::position::Position, stats::ResumeOutcome};

/// Time for a client to read what it missed. After that the connection is closed, so that other clients get their turn.
/// The client continues from its position on its next connection.
const REPLAY_TIME: Duration = Duration::from_secs(30);

/// Time after which a client that takes nothing of its replay is closed.
const REPLAY_STALL: Duration = Duration::from_secs(3);

/// Time that a turn may wait for room in all. Then the client gives it back, because all clients of one address might wait
/// for it. That the socket takes something meanwhile changes nothing: its buffers also grow for a client that reads
/// nothing.
const TURN_STALL: Duration = Duration::from_millis(500);

/// Bytes of a replay that count as one unit of a task's work, compressed and plain. Tokio lets a task do
/// [`MAX_UNITS`] units before the other tasks of its thread run: 32 KiB that are compressed, or 512 KiB that are not.
/// Either takes some hundred microseconds.
const COMPRESSED_PER_UNIT: usize = 256;
const PLAIN_PER_UNIT: usize = 4 * 1024;
const MAX_UNITS: usize = 128;

/// Age, in seconds, from which a page's position is too old. A page connects soon after it is rendered.
const PAGE_AGE: u64 = 120;

/// Bytes that came since a page was rendered and do not count towards the limit of its address. The page itself is larger.
const PAGE_SIZE: usize = 16 * 1024;

/// The reason in the close frame of such a client.
const SLOW: &str = "reads what it missed too slowly";

/// The result of a step of the join.
pub(crate) enum Step {
    /// The client is what it was before. Next the application is asked about it, and then the replay follows.
    Admitted(Admitted),
    /// The client gets what all clients get, or is closed.
    Over,
}

/// The point at which a client begins on this connection.
pub(crate) struct Admitted {
    from: StartingPoint,
    heartbeat: u16,
}

/// Why messages are replayed.
#[derive(Clone, Copy)]
enum Replay {
    /// They came while the application was asked about a new client.
    Asked,
    /// They came between the rendering of a new client's page and its connection.
    Page,
    /// The client missed them.
    Missed,
}

enum StartingPoint {
    /// The end of the order when the client joins.
    New,
    /// The end of the order when the client came. The client also gets what the application publishes while it is
    /// asked.
    Now(Position),
    /// Where the order stood when the client's page was rendered.
    Page(Position),
    /// After the last message that the client has seen.
    Position(Position),
    /// The client cannot continue, with the reason.
    Reset(&'static str),
}

/// Makes a client what it was before, if its resume token proves that. `asks_application`: the application is asked
/// whether the client may join.
pub(super) async fn admit(
    resumption: Arc<Resumption>,
    client: Arc<Client>,
    asked: ResumeRequest,
    asks_application: bool,
) -> Step {
    let from = if let Some(now) = asked.now {
        client.begin_behind(now.seq);
        StartingPoint::Now(now)
    } else if !asked.position.is_empty() {
        match prove(&resumption, &client, &asked).await {
            Ok(position) => {
                resumption.revoke(&client);
                StartingPoint::Position(position)
            }
            Err(why) => StartingPoint::Reset(why),
        }
    } else if StateSealer::is_page(&asked.state) {
        match begin_at_page(&resumption, &client, &asked.state).await {
            Ok(position) => StartingPoint::Page(position),
            Err(why) => StartingPoint::Reset(why),
        }
    } else if asks_application {
        let now = resumption.hub.position();
        client.begin_behind(now.seq);
        StartingPoint::Now(now)
    } else {
        StartingPoint::New
    };
    Step::Admitted(Admitted { from, heartbeat: asked.heartbeat })
}

/// Verifies a client's position and resume token. Anyone can make up a position, but only this cluster seals tokens.
async fn prove(resumption: &Resumption, client: &Arc<Client>, asked: &ResumeRequest) -> Result<Position, &'static str> {
    let (hub, config) = (&resumption.hub, &resumption.config);
    let position = asked.position.parse().map_err(|_| "the position is not of this cluster")?;
    if asked.state.is_empty() {
        return Err("the resume token is missing, or would have been too large");
    }
    let (user, session) = {
        let membership = client.membership();
        (membership.user.clone(), membership.session.clone())
    };
    let state = resumption.sealer.open(user.as_deref(), session.as_deref(), &asked.state);
    let state = state.map_err(|_| "the resume token is not valid for this user and session")?;
    let valid = config.log.age + reseal_interval(&config.log);
    if unix_time().saturating_sub(state.time) > valid.as_secs() {
        return Err("the resume token is too old");
    }
    hub.reach_seal(&state.at, config.connection.resume_timeout).await?;
    hub.resume(client, state)?;
    Ok(position)
}

/// Verifies the token of a client's page, and makes the client one that began at its position.
async fn begin_at_page(resumption: &Resumption, client: &Arc<Client>, token: &str) -> Result<Position, &'static str> {
    let Resumption { hub, sealer, config, .. } = resumption;
    let (position, time) = sealer.open_page(token).map_err(|_| "the position of the page is not of this cluster")?;
    if unix_time().saturating_sub(time) > PAGE_AGE {
        return Err("the position of the page is too old");
    }
    hub.reach_seal(&position, config.connection.resume_timeout).await?;
    hub.begin_at(client, &position);
    Ok(position)
}

/// Tells the client its position, sends it what it missed, and adds it to the deliveries.
pub(super) fn replay(resumption: Arc<Resumption>, client: Arc<Client>, admitted: Admitted) -> Joining {
    Box::pin(async move {
        let Admitted { from, heartbeat } = admitted;
        if client.queue.is_sealed() {
            return Step::Over;
        }
        let mut outcome = ResumeOutcome::New;
        let first = match from {
            StartingPoint::New => Some(vec!["new".into()]),
            StartingPoint::Now(position) => {
                let replayed = try_replay(&resumption, &client, &position, Replay::Asked, heartbeat).await;
                replayed.err().map(|why| vec!["reset".into(), why.into()])
            }
            StartingPoint::Page(position) => {
                let replayed = try_replay(&resumption, &client, &position, Replay::Page, heartbeat).await;
                replayed.err().map(|why| vec!["reset".into(), why.into()])
            }
            StartingPoint::Position(position) => {
                outcome = ResumeOutcome::Recovered;
                let replayed = try_replay(&resumption, &client, &position, Replay::Missed, heartbeat).await;
                replayed.err().map(|why| vec!["reset".into(), why.into()])
            }
            StartingPoint::Reset(why) => Some(vec!["reset".into(), why.into()]),
        };
        if first.as_ref().is_some_and(|first| first[0] == "reset") {
            outcome = ResumeOutcome::Reset;
        } else if client.queue.is_sealed() {
            outcome = ResumeOutcome::Closed;
        }
        if client.keeps_position() {
            resumption.hub.stats().metered.note(|counts| counts.resumes[outcome as usize].add(1));
        }
        if let Some(first) = first {
            resumption.hub.begin(&client, &first, &resumption.sealer, heartbeat);
        }
        Step::Over
    })
}

/// Replays what came after a position.
async fn try_replay(
    resumption: &Resumption,
    client: &Arc<Client>,
    position: &Position,
    replay: Replay,
    heartbeat: u16,
) -> Result<(), &'static str> {
    let (hub, config) = (&resumption.hub, &resumption.config.connection);
    let ip = client.handshake.remote_ip();
    let mut epoch = hub.reach(position, config.resume_timeout).await?;
    // The token says when the connection began. A position that is older does not count.
    let after = position.seq.max(client.began());
    client.begin_behind(after);
    let mut turn = None;
    let few = MAX_UNDER_LOCK.min(config.replay_count);
    let mut missed = match hub.missed(client, after, epoch, few) {
        Err(Missing::TooMany) => {
            // Deliveries to the client have not begun, so it misses nothing while it waits.
            turn = take_turn(resumption, client).await;
            if turn.is_none() {
                return Ok(());
            }
            // The wait may have been long, so the position is checked again.
            epoch = hub.reach(position, Duration::ZERO).await?;
            hub.missed(client, after, epoch, config.replay_count)
        }
        missed => missed,
    }
    .map_err(Missing::why)?;
    let limited = match replay {
        // It would have got that as well if it had joined at once.
        Replay::Asked => false,
        // After a reset, a page loads again. If it missed little meanwhile, it is not told reset again.
        Replay::Page => missed.messages.iter().map(|(_, content)| content.size()).sum::<usize>() > PAGE_SIZE,
        Replay::Missed => true,
    };
    if !missed.messages.is_empty() && limited {
        resumption.replays.check(ip)?;
    }
    if client.keeps_position() {
        let state = {
            let mut membership = client.membership_lock().write();
            membership.note_token_sent();
            client.seal(&membership, hub.position(), &resumption.sealer)
        };
        let first = match replay {
            Replay::Asked | Replay::Page => vec!["new".into()],
            Replay::Missed => vec!["recovered".into(), missed.messages.len().into()],
        };
        client.begin(&first, *position, &state, heartbeat);
    }
    let sending = async {
        let (mut sent, mut left) = (after, TURN_STALL);
        'missed: loop {
            for (log_position, content) in &missed.messages {
                let size = content.size();
                let start = Instant::now();
                let has_room = timeout(left, client.queue.until_room(size)).await.is_ok();
                left = left.saturating_sub(start.elapsed());
                if !has_room {
                    // While the client does not read, other clients get its turn and the memory of its replay.
                    missed.messages = Vec::new();
                    turn = None;
                    if !until_room(client, size, REPLAY_STALL - TURN_STALL).await {
                        client.queue.close(CloseCode::TooSlow, SLOW);
                        return Ok(());
                    }
                    turn = take_turn(resumption, client).await;
                    if turn.is_none() {
                        return Ok(());
                    }
                    left = TURN_STALL;
                    missed = hub.missed(client, sent, epoch, config.replay_count)?;
                    continue 'missed;
                }
                if limited {
                    resumption.replays.count(ip, size);
                }
                let compressed = catch_up::replay(client, *log_position, content);
                yield_after(size, compressed).await;
                hub.stats().metered.note(|counts| counts.replayed.add(1));
                sent = log_position.seq;
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

/// Lets the other tasks of this thread run if the replay has done much since they last ran. `size`: the size of a
/// message that was queued. `compressed`: the number of bytes that were compressed for it.
async fn yield_after(size: usize, compressed: usize) {
    let units = 1 + compressed / COMPRESSED_PER_UNIT + size / PLAIN_PER_UNIT;
    // A yield would end at once, because the connection's task polls its replay again after it has written.
    for _ in 0..units.min(MAX_UNITS) {
        consume_budget().await;
    }
}

/// Waits for a turn. If there is none in time, it closes the client, which will try again, and returns `None`.
async fn take_turn(resumption: &Resumption, client: &Client) -> Option<ReplayTurn> {
    let turn = timeout(resumption.config.connection.resume_timeout, resumption.replays.turn(client)).await;
    if turn.is_err() {
        client.queue.close(CloseCode::TryAgainLater, "too many clients come back at once");
    }
    turn.ok()
}

/// Waits until the send queue has room for a frame of this size. Returns false if the client takes nothing for `stall`.
async fn until_room(client: &Client, size: usize, stall: Duration) -> bool {
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
