//! What time brings to a connection: heartbeat, pace, the end of its session, and the limits of its beginning and its
//! end. What need not be exact is left to the hub's alarms, so that an idle connection has no timer.

use std::{task::Context, time::Duration};

use tokio::time::{Instant, sleep_until};

use super::{
    pace::Rate,
    recovery::{Arrival, reseal_interval},
    task::{Ahead, Connection, Phase},
    transport::Transport,
};
use crate::{close::CloseCode, ws::frame};

/// Heard for the last time so long ago, a connection that got messages is quiet again: little beside the time between two
/// heartbeats, and much beside what it costs to get a task again.
const QUIET: Duration = Duration::from_secs(2);

impl<T: Transport> Connection<T> {
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
        if let Some(at) = self.alarm_at()
            && let Some(alarm) = self.server.hub().alarms().set(client.id.local, at, self.alarm)
        {
            self.alarm = alarm;
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
        let paused = self.paused.then(|| self.pace.next(self.rate()));
        let held = (self.ahead == Ahead::Held).then(|| self.pace.next(self.ping_rate()));
        // An authentication that is under way is waited for.
        let arrival = self.arrival.until().filter(|_| self.work.is_none());
        paused.into_iter().chain(held).chain(arrival).min()
    }

    /// The next time at which the connection wants to be woken, sooner or later.
    fn alarm_at(&self) -> Option<Instant> {
        if let Phase::Closing(_) = self.phase {
            return None;
        }
        let expiry = self.expiry.as_ref().filter(|expiry| expiry.recheck.is_none()).and_then(|expiry| expiry.at);
        let silence = self.is_reading().then(|| self.silent_at());
        let quiet = (!self.quiet).then(|| self.quiet_at());
        let word = (self.word > 0).then(|| self.server.hub().alarms().at(self.word));
        silence.into_iter().chain(expiry).chain(quiet).chain(word).min()
    }

    /// Notes when the client has to hear something next, be it that the server lives or what it is to carry.
    pub(super) fn expect_word(&mut self) {
        self.word = match self.word_interval() {
            Some(every) => self.server.hub().alarms().tick(Instant::now() + every),
            None => 0,
        };
    }

    fn word_interval(&self) -> Option<Duration> {
        // A little sooner than it asked for, since alarms are late.
        let asked = (self.heartbeat > 0).then(|| Duration::from_secs(self.heartbeat.into()) * 9 / 10);
        asked.or_else(|| self.client().tracks().then(|| reseal_interval(&self.server.config().log)))
    }

    /// Says what the client has to hear.
    fn say_word(&mut self) {
        let Some(every) = self.word_interval() else { return self.word = 0 };
        self.beats = self.beats.saturating_add(1);
        // Of a log that is kept for days, it is not counted that long.
        let due = self.beats == u8::MAX || every * u32::from(self.beats) >= reseal_interval(&self.server.config().log);
        if due {
            self.beats = 0;
        }
        self.server.hub().tell_position(self.client(), due.then(|| self.server.seals()));
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
        if self.ahead == Ahead::Held && self.pace.next(self.ping_rate()) <= now {
            self.ahead = Ahead::Reads;
        }
        if self.paused && self.pace.next(self.rate()) <= now {
            self.paused = false;
            self.hear();
        }
        if self.is_reading() && self.silent_at() <= now {
            if self.pinged {
                self.client().outbox.close(CloseCode::Silent, "no answer to a ping");
            } else {
                (self.since, self.pinged) = (now, true);
                self.client().outbox.push(frame::ping());
            }
        }
        if self.word > 0 && self.server.hub().alarms().at(self.word) <= now {
            self.say_word();
        }
        let refresh = self.client().take_refresh();
        if refresh || self.expiry.as_ref().and_then(|expiry| expiry.at).is_some_and(|at| at <= now) {
            self.ask_again();
        }
        match &self.arrival {
            Arrival::Unwelcome(unwelcome) if unwelcome.until <= now && self.work.is_none() => self.forbid(),
            Arrival::Undecided(undecided) if undecided.until <= now && self.work.is_none() => self.recover(),
            _ => {}
        }
    }
}
