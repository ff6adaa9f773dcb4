//! The circuit breaker: while the backend does not answer, requests fail at once instead of waiting for their time
//! limit, except for a probe from time to time. Pure: the time is an argument.
//!
//! A client can choose actions that the site answers late or with an error, and send many of them at once. So the
//! breaker does not count failures alone: it opens if the site has answered no other request for as long as a request
//! may take.

use std::time::{Duration, Instant};

/// Number of requests in a row without an answer after which the breaker may open.
const FAILURES: u32 = 5;
/// Longest time for which the requests in a row have to last.
const LONGEST_SILENCE: Duration = Duration::from_secs(5);
/// Time from the opening to the first probe. It doubles with each probe that fails, up to the longest. A probe that is
/// still under way after this time is joined by another one, since it may be slow for a reason of its own.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The state of the breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Counts how often the breaker opened and closed. The outcome of a request that began before the last time does not
    /// count.
    generation: u64,
    /// Counts the answers. A failed request does not count if there was an answer since it began.
    answers: u64,
    /// Time for which the requests in a row have to last.
    silence: Duration,
}

#[derive(Debug)]
enum State {
    /// Requests pass. `failures`: how many in a row had no answer. `since`: the earliest beginning of one of them.
    Closed { failures: u32, since: Option<Instant> },
    /// No request passes before this time, and then one.
    Open { until: Instant, pause: Duration },
    /// A probe is under way. The next one passes at `next`.
    Probing { next: Instant, pause: Duration },
}

impl State {
    const CLOSED: Self = Self::Closed { failures: 0, since: None };
}

/// The permission of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    generation: u64,
    /// The number of answers at its beginning, and the time of that.
    answers: u64,
    began: Instant,
}

/// What a request says about the backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sign {
    /// It answered, whatever the answer is.
    Alive,
    /// It did not answer.
    Dead,
    /// The request was given up before either was known.
    Unknown,
}

/// A change of which the log tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Opened,
    Closed,
}

impl Breaker {
    /// Returns a closed breaker for requests with this time limit.
    pub(super) fn new(timeout: Duration) -> Self {
        Self { state: State::CLOSED, generation: 0, answers: 0, silence: timeout.min(LONGEST_SILENCE) }
    }

    /// Returns true if requests fail at once, except for a probe.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// Returns true if a request that asks now would pass.
    pub(super) fn would_pass(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until: next, .. } | State::Probing { next, .. } => next <= now,
        }
    }

    /// Lets a request pass, or returns `None`.
    pub(super) fn enter(&mut self, now: Instant) -> Option<Pass> {
        if !self.would_pass(now) {
            return None;
        }
        let next = now + FIRST_PAUSE;
        match self.state {
            State::Closed { .. } => {}
            // The earlier probes still count.
            State::Open { pause, .. } | State::Probing { pause, .. } => self.state = State::Probing { next, pause },
        }
        Some(Pass { generation: self.generation, answers: self.answers, began: now })
    }

    /// Notes how a request ended.
    pub(super) fn leave(&mut self, pass: Pass, sign: Sign, now: Instant) -> Option<Change> {
        if pass.generation != self.generation {
            return None;
        }
        match (&mut self.state, sign) {
            (State::Closed { .. }, Sign::Unknown) | (State::Open { .. }, Sign::Dead | Sign::Unknown) => None,
            (state @ State::Closed { .. }, Sign::Alive) => {
                *state = State::CLOSED;
                self.answers += 1;
                None
            }
            // Only this request is slow, or goes wrong.
            (State::Closed { .. }, Sign::Dead) if pass.answers != self.answers => None,
            (State::Closed { failures, since }, Sign::Dead) => {
                *failures = failures.saturating_add(1);
                let first = since.map_or(pass.began, |since| since.min(pass.began));
                *since = Some(first);
                if *failures < FAILURES || now.saturating_duration_since(first) < self.silence {
                    return None;
                }
                self.change(State::Open { until: now + FIRST_PAUSE, pause: FIRST_PAUSE });
                Some(Change::Opened)
            }
            // A probe may be answered after another one has failed.
            (State::Open { .. } | State::Probing { .. }, Sign::Alive) => {
                self.change(State::CLOSED);
                Some(Change::Closed)
            }
            (State::Probing { pause, .. }, Sign::Dead) => {
                let pause = (*pause * 2).min(LONGEST_PAUSE);
                self.state = State::Open { until: now + pause, pause };
                None
            }
            // The next request is the probe.
            (State::Probing { pause, .. }, Sign::Unknown) => {
                self.state = State::Open { until: now, pause: *pause };
                None
            }
        }
    }

    fn change(&mut self, state: State) {
        self.state = state;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    const TIMEOUT: Duration = Duration::from_millis(200);

    fn breaker() -> Breaker {
        Breaker::new(TIMEOUT)
    }

    fn request(breaker: &mut Breaker, sign: Sign, began: Instant, ended: Instant) -> Option<Change> {
        let pass = breaker.enter(began).expect("a closed breaker");
        breaker.leave(pass, sign, ended)
    }

    /// Lets requests that began together time out until the breaker opens. Returns the time of that.
    fn open(breaker: &mut Breaker, now: Instant) -> Instant {
        let passes: Vec<Pass> = (0..FAILURES).map(|_| breaker.enter(now).expect("a closed breaker")).collect();
        for (index, pass) in passes.into_iter().enumerate() {
            let change = breaker.leave(pass, Sign::Dead, now + TIMEOUT);
            assert_eq!(change, (index + 1 == FAILURES as usize).then_some(Change::Opened));
        }
        now + TIMEOUT
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let (mut breaker, now) = (breaker(), Instant::now());
        for _ in 0..10 {
            for _ in 0..FAILURES - 1 {
                assert_eq!(request(&mut breaker, Sign::Dead, now, now + TIMEOUT), None);
            }
            // A request that is given up says nothing.
            assert_eq!(request(&mut breaker, Sign::Unknown, now, now + TIMEOUT), None);
            assert_eq!(request(&mut breaker, Sign::Alive, now, now), None);
        }
        let now = open(&mut breaker, now);
        assert!(breaker.is_open() && breaker.enter(now).is_none());
    }

    #[test]
    fn slow_requests_of_one_client_do_not_open_it_while_others_are_answered() {
        let (mut breaker, start) = (breaker(), Instant::now());
        let slow: Vec<Pass> = (0..2 * FAILURES).filter_map(|_| breaker.enter(start)).collect();
        assert_eq!(request(&mut breaker, Sign::Alive, start, start), None);
        for pass in slow {
            assert_eq!(breaker.leave(pass, Sign::Dead, start + TIMEOUT), None);
        }
        // Without such an answer it opens.
        open(&mut breaker, start);
    }

    #[test]
    fn quick_errors_of_one_client_do_not_open_it_before_others_had_the_time_for_an_answer() {
        let (mut breaker, start) = (breaker(), Instant::now());
        let mut now = start;
        // Errors come every millisecond, and an answer in a quarter of the time limit.
        for number in 0..2_000 {
            let sign = if number % 50 == 49 { Sign::Alive } else { Sign::Dead };
            assert_eq!(request(&mut breaker, sign, now, now), None);
            now += Duration::from_millis(1);
        }
        // A site that has only errors is down.
        let since = now;
        while request(&mut breaker, Sign::Dead, now, now).is_none() {
            now += Duration::from_millis(1);
        }
        assert_eq!(now - since, TIMEOUT);
    }

    #[test]
    fn the_requests_in_a_row_have_to_last_for_five_seconds_at_most() {
        let (mut breaker, start) = (Breaker::new(Duration::from_secs(60)), Instant::now());
        for _ in 0..FAILURES {
            assert_eq!(request(&mut breaker, Sign::Dead, start, start), None);
        }
        let now = after(start, 5);
        assert_eq!(request(&mut breaker, Sign::Dead, now, now), Some(Change::Opened));
    }

    #[test]
    fn a_slow_probe_is_joined_by_another_and_the_first_answer_closes_it() {
        let (mut breaker, start) = (breaker(), Instant::now());
        let now = after(open(&mut breaker, start), 1);
        let slow = breaker.enter(now).expect("a probe");
        assert!(breaker.enter(now + FIRST_PAUSE - TIMEOUT).is_none());
        let now = now + FIRST_PAUSE;
        let quick = breaker.enter(now).expect("another probe");
        assert!(breaker.enter(now).is_none());
        assert_eq!(breaker.leave(quick, Sign::Alive, now), Some(Change::Closed));
        assert_eq!(breaker.leave(slow, Sign::Dead, after(now, 4)), None);
        assert!(!breaker.is_open());
    }

    #[test]
    fn the_answer_of_a_slow_probe_closes_it_after_a_quicker_one_failed() {
        for sign in [Sign::Dead, Sign::Unknown] {
            let (mut breaker, start) = (breaker(), Instant::now());
            let now = after(open(&mut breaker, start), 1);
            let slow = breaker.enter(now).expect("a probe");
            let now = now + FIRST_PAUSE;
            let quick = breaker.enter(now).expect("another probe");
            assert_eq!(breaker.leave(quick, sign, now), None);
            assert_eq!(breaker.leave(slow, Sign::Alive, after(now, 1)), Some(Change::Closed));
            assert!(!breaker.is_open());
        }
    }

    #[test]
    fn one_probe_passes_after_a_pause_that_grows() {
        let (mut breaker, start) = (breaker(), Instant::now());
        let mut now = open(&mut breaker, start);
        for pause in [1, 2, 4, 5, 5] {
            assert!(breaker.enter(now + Duration::from_secs(pause) - Duration::from_millis(1)).is_none());
            now += Duration::from_secs(pause);
            let probe = breaker.enter(now).expect("a probe");
            assert!(breaker.enter(now).is_none() && breaker.is_open(), "one probe");
            assert_eq!(breaker.leave(probe, Sign::Dead, now), None);
        }
        let now = after(now, 5);
        let probe = breaker.enter(now).expect("a probe");
        assert_eq!(breaker.leave(probe, Sign::Alive, now), Some(Change::Closed));
        assert!(!breaker.is_open() && breaker.enter(now).is_some());
        // It begins with the first pause again.
        let now = open(&mut breaker, now);
        assert!(!breaker.would_pass(now) && breaker.would_pass(after(now, 1)));
    }

    #[test]
    fn a_probe_that_is_given_up_leaves_its_place_to_the_next_request() {
        let (mut breaker, start) = (breaker(), Instant::now());
        let now = after(open(&mut breaker, start), 1);
        let probe = breaker.enter(now).expect("a probe");
        assert_eq!(breaker.leave(probe, Sign::Unknown, now), None);
        let probe = breaker.enter(now).expect("the next one");
        assert_eq!(breaker.leave(probe, Sign::Alive, now), Some(Change::Closed));
    }

    #[test]
    fn requests_from_before_a_change_do_not_count() {
        let (mut breaker, start) = (breaker(), Instant::now());
        let early: Vec<Pass> = (0..64).filter_map(|_| breaker.enter(start)).collect();
        let now = open(&mut breaker, start);
        assert_eq!(breaker.leave(early[0], Sign::Alive, now), None);
        assert!(breaker.is_open());
        let now = after(now, 1);
        let probe = breaker.enter(now).expect("a probe");
        breaker.leave(probe, Sign::Alive, now);
        for pass in early {
            assert_eq!(breaker.leave(pass, Sign::Dead, now), None);
        }
        assert!(!breaker.is_open());
    }
}
