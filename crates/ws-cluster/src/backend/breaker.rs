//! The circuit breaker: while the backend does not answer, requests fail at once instead of waiting for their time
//! limit, except for one probe from time to time. Pure: the time is an argument.

use std::time::{Duration, Instant};

/// Number of requests in a row without an answer after which the breaker opens.
const FAILURES: u32 = 5;
/// Time from the opening to the first probe. It doubles with each probe that fails, up to the longest.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The state of the breaker.
#[derive(Debug)]
pub(super) struct Breaker {
    state: State,
    /// Counts the changes of the state. The outcome of a request that began before the last change does not count.
    generation: u64,
}

#[derive(Debug)]
enum State {
    /// Requests pass. `failures`: how many in a row had no answer.
    Closed { failures: u32 },
    /// No request passes before this time, and then one.
    Open { until: Instant, pause: Duration },
    /// The probe is under way.
    Probing { pause: Duration },
}

/// The permission of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Pass {
    generation: u64,
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
    pub(super) fn new() -> Self {
        Self { state: State::Closed { failures: 0 }, generation: 0 }
    }

    /// Returns true if requests fail at once, except for a probe.
    pub(super) fn is_open(&self) -> bool {
        !matches!(self.state, State::Closed { .. })
    }

    /// Returns true if a request that asks now would pass.
    pub(super) fn would_pass(&self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until, .. } => until <= now,
            State::Probing { .. } => false,
        }
    }

    /// Lets a request pass, or returns `None`.
    pub(super) fn enter(&mut self, now: Instant) -> Option<Pass> {
        if !self.would_pass(now) {
            return None;
        }
        if let State::Open { pause, .. } = self.state {
            self.change(State::Probing { pause });
        }
        Some(Pass { generation: self.generation })
    }

    /// Notes how a request ended.
    pub(super) fn leave(&mut self, pass: Pass, sign: Sign, now: Instant) -> Option<Change> {
        if pass.generation != self.generation {
            return None;
        }
        match (&mut self.state, sign) {
            (State::Closed { .. }, Sign::Unknown) | (State::Open { .. }, _) => None,
            (State::Closed { failures }, Sign::Alive) => {
                *failures = 0;
                None
            }
            (State::Closed { failures }, Sign::Dead) => {
                *failures += 1;
                if *failures < FAILURES {
                    return None;
                }
                self.change(State::Open { until: now + FIRST_PAUSE, pause: FIRST_PAUSE });
                Some(Change::Opened)
            }
            (State::Probing { .. }, Sign::Alive) => {
                self.change(State::Closed { failures: 0 });
                Some(Change::Closed)
            }
            (State::Probing { pause }, Sign::Dead) => {
                let pause = (*pause * 2).min(LONGEST_PAUSE);
                self.change(State::Open { until: now + pause, pause });
                None
            }
            // The next request is the probe.
            (State::Probing { pause }, Sign::Unknown) => {
                let pause = *pause;
                self.change(State::Open { until: now, pause });
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

    /// Lets requests fail until the breaker opens.
    fn open(breaker: &mut Breaker, now: Instant) {
        for left in (0..FAILURES).rev() {
            let pass = breaker.enter(now).expect("a closed breaker");
            let change = breaker.leave(pass, Sign::Dead, now);
            assert_eq!(change, (left == 0).then_some(Change::Opened));
        }
    }

    #[test]
    fn it_opens_after_failures_in_a_row_only() {
        let (mut breaker, now) = (Breaker::new(), Instant::now());
        for _ in 0..10 {
            for _ in 0..FAILURES - 1 {
                let pass = breaker.enter(now).unwrap();
                assert_eq!(breaker.leave(pass, Sign::Dead, now), None);
            }
            // A request that is given up says nothing.
            let pass = breaker.enter(now).unwrap();
            assert_eq!(breaker.leave(pass, Sign::Unknown, now), None);
            let pass = breaker.enter(now).unwrap();
            assert_eq!(breaker.leave(pass, Sign::Alive, now), None);
        }
        open(&mut breaker, now);
        assert!(breaker.is_open() && breaker.enter(now).is_none());
    }

    #[test]
    fn one_probe_passes_after_a_pause_that_grows() {
        let (mut breaker, start) = (Breaker::new(), Instant::now());
        open(&mut breaker, start);
        let mut now = start;
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
        open(&mut breaker, now);
        assert!(breaker.would_pass(after(now, 1)));
    }

    #[test]
    fn a_probe_that_is_given_up_leaves_its_place_to_the_next_request() {
        let (mut breaker, start) = (Breaker::new(), Instant::now());
        open(&mut breaker, start);
        let now = after(start, 1);
        let probe = breaker.enter(now).expect("a probe");
        assert_eq!(breaker.leave(probe, Sign::Unknown, now), None);
        let probe = breaker.enter(now).expect("the next one");
        assert_eq!(breaker.leave(probe, Sign::Alive, now), Some(Change::Closed));
    }

    #[test]
    fn requests_from_before_a_change_do_not_count() {
        let (mut breaker, start) = (Breaker::new(), Instant::now());
        let early: Vec<Pass> = (0..64).filter_map(|_| breaker.enter(start)).collect();
        open(&mut breaker, start);
        assert_eq!(breaker.leave(early[0], Sign::Alive, start), None);
        assert!(breaker.is_open());
        let now = after(start, 1);
        let probe = breaker.enter(now).expect("a probe");
        breaker.leave(probe, Sign::Alive, now);
        for pass in early {
            assert_eq!(breaker.leave(pass, Sign::Dead, now), None);
        }
        assert!(!breaker.is_open());
    }
}
