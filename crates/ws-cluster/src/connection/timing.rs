//! What time brings to a connection: heartbeat, rate, the end of its session, and the limits of its beginning and its
//! end. What need not be exact is left to the hub's timers, so that an idle connection has no timer.

use std::{task::Context, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    Application,
    rate_limit::Rate,
    task::{Ahead, Connection, Phase},
    transport::Transport,
};
use crate::{
    CloseCode,
    hub::resume::{JoinPhase, reseal_interval},
    ws::frame,
};

/// Heard for the last time so long ago, a connection that got messages is quiet again: little beside the time between two
/// heartbeats, and much beside what it costs to get a task again.
const QUIET: Duration = Duration::from_secs(2);

impl<T: Transport, A: Application> Connection<T, A> {
    pub(super) fn rate(&self) -> Rate {
        let config = self.config();
        Rate::per_second(config.messages_per_second, config.message_burst)
    }

    /// Pings count as messages, but may be some more: they are answered while messages wait.
    pub(super) fn ping_rate(&self) -> Rate {
        let rate = self.rate();
        Rate { burst: rate.burst.saturating_mul(2), ..rate }
    }

    /// Waits for the next time at which something is due; whether one has come, and what is due is done.
    pub(super) fn poll_time(&mut self, cx: &mut Context<'_>) -> bool {
        let client = self.registration.client();
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
        // Looked at first: a client that floods uses up the turn in which the timer would say so.
        let due = at <= Instant::now() || sleep.as_mut().poll(cx).is_ready();
        if due {
            self.sleep = None;
            self.on_time();
        }
        due
    }

    /// The next time that has to be met.
    fn deadline(&self) -> Option<Instant> {
        if let Phase::Closing(closing) = &self.phase {
            return Some(closing.until);
        }
        let paused = self.paused.then(|| self.limiter.next(self.rate()));
        let held = (self.ahead == Ahead::Held).then(|| self.limiter.next(self.ping_rate()));
        // An authentication that is under way is waited for.
        let join_phase = self.join_phase.until().filter(|_| self.work.is_none());
        paused.into_iter().chain(held).chain(join_phase).min()
    }

    /// The next time at which the connection wants to be woken, sooner or later.
    fn timer_at(&self) -> Option<Instant> {
        if let Phase::Closing(_) = self.phase {
            return None;
        }
        let expiry = self.expiry.as_ref().filter(|expiry| expiry.recheck.is_none()).and_then(|expiry| expiry.at);
        let silence = self.is_reading().then(|| self.silent_at());
        let quiet = (!self.quiet).then(|| self.quiet_at());
        let word = (self.word > 0).then(|| self.context().hub.timers().at(self.word));
        silence.into_iter().chain(expiry).chain(quiet).chain(word).min()
    }

    /// Notes when the client has to hear something next, be it that the server lives or what it is to carry.
    pub(super) fn expect_word(&mut self) {
        self.word = match self.word_interval() {
            Some(every) => self.context().hub.timers().tick(Instant::now() + every),
            None => 0,
        };
    }

    fn word_interval(&self) -> Option<Duration> {
        // A little sooner than it asked for, since timers are late.
        let asked = (self.heartbeat > 0).then(|| Duration::from_secs(self.heartbeat.into()) * 9 / 10);
        asked.or_else(|| self.client().tracks().then(|| reseal_interval(&self.context().config.log)))
    }

    /// Says what the client has to hear.
    fn say_word(&mut self) {
        let Some(every) = self.word_interval() else { return self.word = 0 };
        self.beats = self.beats.saturating_add(1);
        // Of a log that is kept for days, it is not counted that long.
        let due = self.beats == u8::MAX || every * u32::from(self.beats) >= reseal_interval(&self.context().config.log);
        if due {
            self.beats = 0;
        }
        self.context().hub.tell_position(self.client(), due.then_some(&self.resumption().sealer));
        self.expect_word();
    }

    fn quiet_at(&self) -> Instant {
        self.since + QUIET.min(self.config().ping_interval)
    }

    fn silent_at(&self) -> Instant {
        self.since + if self.pinged { self.config().ping_timeout } else { self.config().ping_interval }
    }

    /// Does what is due.
    pub(super) fn on_time(&mut self) {
        if let Phase::Closing(_) = self.phase {
            return;
        }
        let now = Instant::now();
        self.quiet |= self.quiet_at() <= now;
        if self.ahead == Ahead::Held && self.limiter.next(self.ping_rate()) <= now {
            self.ahead = Ahead::Reads;
        }
        if self.paused && self.limiter.next(self.rate()) <= now {
            self.paused = false;
            self.hear();
        }
        if self.is_reading() && self.silent_at() <= now {
            if self.pinged {
                self.client().queue.close(CloseCode::Silent, "no answer to a ping");
            } else {
                (self.since, self.pinged) = (now, true);
                self.client().queue.push(frame::ping());
            }
        }
        if self.word > 0 && self.context().hub.timers().at(self.word) <= now {
            self.say_word();
        }
        let refresh = self.client().take_refresh();
        if refresh || self.expiry.as_ref().and_then(|expiry| expiry.at).is_some_and(|at| at <= now) {
            self.ask_again();
        }
        match &self.join_phase {
            JoinPhase::Unwelcome(unwelcome) if unwelcome.until <= now && self.work.is_none() => self.forbid(),
            JoinPhase::Undecided(undecided) if undecided.until <= now && self.work.is_none() => self.recover(),
            _ => {}
        }
    }
}
