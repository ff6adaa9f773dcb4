//! Limits the requests that are under way at the same time, and those that wait.
//!
//! Each kind of request has a limit of its own below the whole, so that a quarter of the turns is left for actions
//! however many clients connect, and the other way around. The end of a connection is the least urgent event, and gets
//! an eighth at most.

use std::time::Duration;

use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::timeout,
};

use crate::stats::{Entered, Level};

/// The kinds of requests that have turns of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// Questions about who a client is.
    Identity,
    Action,
    /// Events that nobody waits for.
    Event,
}

/// The turns of a node.
#[derive(Debug)]
pub(super) struct Turns {
    all: Semaphore,
    lanes: [Semaphore; 3],
    /// Number of requests of each kind that wait.
    waiting: [Level; 3],
    /// Maximum number of requests of a kind that wait.
    queue: usize,
}

/// A turn, until it is dropped.
#[derive(Debug)]
pub(super) struct Turn<'a>(#[expect(dead_code, reason = "held for its drop")] [SemaphorePermit<'a>; 2]);

/// Why a request gets no turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NoTurn {
    /// Too many wait.
    Full,
    /// It has waited for too long.
    TooLate,
}

impl Turns {
    pub(super) fn new(concurrency: usize, queue: usize) -> Self {
        let [identity, action, event] = limits(concurrency);
        let lanes = [Semaphore::new(identity), Semaphore::new(action), Semaphore::new(event)];
        Self { all: Semaphore::new(concurrency), lanes, waiting: Default::default(), queue }
    }

    /// Waits for a turn, for at most this time.
    pub(super) async fn take(&self, lane: Lane, limit: Duration, counted: &Level) -> Result<Turn<'_>, NoTurn> {
        let waiting = &self.waiting[lane as usize];
        if let Some(turn) = self.try_take(lane) {
            return Ok(turn);
        }
        if waiting.get() >= self.queue as u64 {
            return Err(NoTurn::Full);
        }
        let _waits: [Entered<'_>; 2] = [waiting.enter(), counted.enter()];
        let turn = async {
            // The turns of the kind first, so that those who wait for all are few and none waits for its kind.
            let own = self.lanes[lane as usize].acquire().await;
            let all = self.all.acquire().await;
            own.ok().zip(all.ok()).map(|(own, all)| Turn([own, all]))
        };
        // The semaphores are never closed.
        timeout(limit, turn).await.ok().flatten().ok_or(NoTurn::TooLate)
    }

    /// Takes a turn if one is free. Those who wait are first: a semaphore gives its permits to them.
    fn try_take(&self, lane: Lane) -> Option<Turn<'_>> {
        let own = self.lanes[lane as usize].try_acquire().ok()?;
        Some(Turn([own, self.all.try_acquire().ok()?]))
    }
}

/// Returns the limit of each kind.
fn limits(concurrency: usize) -> [usize; 3] {
    let event = (concurrency / 8).max(1);
    let most = concurrency.saturating_sub(concurrency / 4 + event).max(1);
    [most, most, event]
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    const SHORT: Duration = Duration::from_secs(5);

    #[test]
    fn no_kind_takes_the_turns_of_the_others() {
        assert_eq!(limits(64), [40, 40, 8]);
        for concurrency in 4..200 {
            let [identity, action, event] = limits(concurrency);
            assert!(identity + event < concurrency && action + event < concurrency, "{concurrency}");
        }
        for concurrency in 1..4 {
            assert!(limits(concurrency).into_iter().all(|limit| (1..=concurrency).contains(&limit)), "{concurrency}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_connect_leave_turns_for_actions() {
        let (turns, counted) = (Turns::new(64, 100), Level::default());
        let take = |lane| turns.take(lane, SHORT, &counted).now_or_never();
        let mut identities: Vec<_> = (0..40).map(|_| take(Lane::Identity).expect("a turn")).collect();
        assert!(take(Lane::Identity).is_none(), "the next one waits");
        let events: Vec<_> = (0..8).map(|_| take(Lane::Event).expect("a turn")).collect();
        let actions: Vec<_> = (0..16).map(|_| take(Lane::Action).expect("a turn")).collect();
        assert!(take(Lane::Action).is_none());
        identities.pop();
        assert!(take(Lane::Action).is_some());
        drop((identities, events, actions));
        assert!((0..40).map(|_| take(Lane::Action)).all(|turn| turn.is_some()));
        assert_eq!(counted.get(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_wait_and_only_so_long() {
        let (turns, counted) = (Turns::new(8, 2), Level::default());
        let take = || turns.take(Lane::Action, SHORT, &counted);
        let running: Vec<_> = (0..limits(8)[1]).map(|_| take().now_or_never().expect("a turn")).collect();
        let (mut first, mut second) = (Box::pin(take()), Box::pin(take()));
        assert!(first.as_mut().now_or_never().is_none() && second.as_mut().now_or_never().is_none());
        assert_eq!(counted.get(), 2);
        assert_eq!(take().await.unwrap_err(), NoTurn::Full);
        // One that is given up makes room.
        drop(first);
        assert_eq!(counted.get(), 1);
        assert_eq!(take().await.unwrap_err(), NoTurn::TooLate);
        assert_eq!(second.await.unwrap_err(), NoTurn::TooLate);
        let mut third = Box::pin(take());
        assert!(third.as_mut().now_or_never().is_none());
        drop(running);
        assert!(third.await.is_ok());
        assert_eq!(counted.get(), 0);
    }
}
