//! The deadlines of a connection: heartbeat, rate, the end of its session, and the limits on its join and its close.
//! Deadlines that need not be exact use the hub's coarse timers, so that an idle connection has no timer of its own.

use std::{task::Context, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    Application,
    closing::Phase,
    rate_limit::Rate,
    task::{Connection, FirstMessage, ReadAhead},
    transport::Transport,
};
use crate::{
    CloseCode,
    hub::resume::{JoinPhase, reseal_interval},
    ws::frame,
};

/// Time without a message after which a connection is quiet. It is short beside the ping interval, and long beside the
/// cost of a new task.
const QUIET_AFTER: Duration = Duration::from_secs(2);

impl<T: Transport, A: Application> Connection<T, A> {
    pub(super) fn rate(&self) -> Rate {
        let config = self.config();
        Rate::per_second(config.messages_per_second, config.message_burst)
    }

    /// Returns the rate for pings. They count as messages, but more of them are allowed at once, because they are
    /// answered while messages wait.
    pub(super) fn ping_rate(&self) -> Rate {
        let rate = self.rate();
        Rate { burst: rate.burst.saturating_mul(2), ..rate }
    }

    /// Handles what is due and registers the next deadline. Returns true if something was due.
    pub(super) fn poll_time(&mut self, cx: &mut Context<'_>) -> bool {
        let client = self.handle.client();
        if let Some(at) = self.timer_at()
            && let Some(timer) = self.context().hub.timers().set(client.id.local, at, self.timer)
        {
            self.timer = timer;
        }
        let Some(at) = self.deadline() else {
            self.sleep = None;
            return false;
        };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        // The time is checked first: a client that floods uses up Tokio's cooperative budget, and then the timer would
        // not report it.
        let due = at <= Instant::now() || sleep.as_mut().poll(cx).is_ready();
        if due {
            self.sleep = None;
            self.on_time();
        }
        due
    }

    /// Returns the next deadline that has to be met exactly.
    fn deadline(&self) -> Option<Instant> {
        if let Phase::Closing(closing) = &self.phase {
            return Some(closing.until);
        }
        let paused = self.paused.then(|| self.limiter.next(self.rate()));
        let held = (self.read_ahead == ReadAhead::Held).then(|| self.limiter.next(self.ping_rate()));
        // A running authentication postpones it.
        let join_phase = self.join_phase.until().filter(|_| self.work.is_none());
        paused.into_iter().chain(held).chain(join_phase).min()
    }

    /// Returns the next deadline that may be met late.
    fn timer_at(&self) -> Option<Instant> {
        if let Phase::Closing(_) = self.phase {
            return None;
        }
        let expiry = self.expiry.as_ref().filter(|expiry| expiry.recheck.is_none()).and_then(|expiry| expiry.at);
        let silence = self.is_reading().then(|| self.silent_at());
        let quiet = (!self.quiet).then(|| self.quiet_at());
        let heartbeat = (self.heartbeat_tick > 0).then(|| self.context().hub.timers().at(self.heartbeat_tick));
        silence.into_iter().chain(expiry).chain(quiet).chain(heartbeat).min()
    }

    /// Schedules the next heartbeat, which also brings a new resume token if one is due.
    pub(super) fn schedule_heartbeat(&mut self) {
        self.heartbeat_tick = match self.heartbeat_interval() {
            Some(every) => self.context().hub.timers().tick(Instant::now() + every),
            None => 0,
        };
    }

    fn heartbeat_interval(&self) -> Option<Duration> {
        // A little sooner than the client asked for, since the timers are coarse.
        let asked = (self.heartbeat > 0).then(|| Duration::from_secs(self.heartbeat.into()) * 9 / 10);
        asked.or_else(|| self.client().tracks().then(|| reseal_interval(&self.context().config.log)))
    }

    /// Sends a heartbeat, and a new resume token if one is due.
    fn send_heartbeat(&mut self) {
        let Some(every) = self.heartbeat_interval() else { return self.heartbeat_tick = 0 };
        self.beats = self.beats.saturating_add(1);
        // The counter is limited. For a log that is kept for days, the token is renewed when the counter is full.
        let due = self.beats == u8::MAX || every * u32::from(self.beats) >= reseal_interval(&self.context().config.log);
        if due {
            self.beats = 0;
        }
        self.context().hub.send_position(self.client(), due.then_some(&self.resumption().sealer));
        self.schedule_heartbeat();
    }

    fn quiet_at(&self) -> Instant {
        self.last_activity + QUIET_AFTER.min(self.config().ping_interval)
    }

    fn silent_at(&self) -> Instant {
        self.last_activity + if self.pinged { self.config().ping_timeout } else { self.config().ping_interval }
    }

    /// Handles every deadline that has passed.
    pub(super) fn on_time(&mut self) {
        if let Phase::Closing(_) = self.phase {
            return;
        }
        let now = Instant::now();
        if self.quiet_at() <= now {
            self.quiet = true;
            if self.first_message == FirstMessage::Soon {
                self.first_message = FirstMessage::Late;
            }
        }
        if self.read_ahead == ReadAhead::Held && self.limiter.next(self.ping_rate()) <= now {
            self.read_ahead = ReadAhead::Reads;
        }
        if self.paused && self.limiter.next(self.rate()) <= now {
            self.paused = false;
            self.note_activity();
        }
        if self.is_reading() && self.silent_at() <= now {
            if self.pinged {
                self.client().queue.close(CloseCode::Silent, "no answer to a ping");
            } else {
                (self.last_activity, self.pinged) = (now, true);
                self.client().queue.push(frame::ping());
            }
        }
        if self.heartbeat_tick > 0 && self.context().hub.timers().at(self.heartbeat_tick) <= now {
            self.send_heartbeat();
        }
        let refresh = self.client().take_refresh();
        if refresh || self.expiry.as_ref().and_then(|expiry| expiry.at).is_some_and(|at| at <= now) {
            self.recheck();
        }
        match &self.join_phase {
            JoinPhase::Unauthenticated(unauthenticated) if unauthenticated.until <= now && self.work.is_none() => {
                self.too_late()
            }
            JoinPhase::Undecided(undecided) if undecided.until <= now && self.work.is_none() => self.join(None),
            _ => {}
        }
    }
}
