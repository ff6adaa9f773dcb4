//! Limits replays: few run at a time, one user or address may have a part of them, and one address may get a number of
//! bytes per minute. A reconnect costs a client some hundred bytes, and costs this node much more.

use std::{collections::HashMap, net::IpAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};

use crate::{ConnectionConfig, address, hub::Client};

/// One user or one address may have one turn in this many.
const SHARE_DIVISOR: usize = 4;

/// The time over which the bytes for one address are counted.
const MINUTE: Duration = Duration::from_secs(60);

/// Number of counted addresses above which outdated ones are removed.
const MAX_COUNTED: usize = 1024;

pub(crate) struct Replays {
    all: Arc<Semaphore>,
    share: usize,
    /// The turns of the users and addresses that have or wait for one. A synchronous lock, held for a few instructions.
    shares: Mutex<HashMap<Sharer, Arc<Semaphore>>>,
    bytes_per_minute: u64,
    /// For each address, the time at which its bytes would have been sent at the average rate. A synchronous lock, held
    /// for a few instructions.
    bytes: Mutex<HashMap<IpAddr, Instant>>,
}

/// The clients that share turns.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Sharer {
    Address(IpAddr),
    User(Arc<str>),
    Session(Arc<str>),
}

/// A turn, which is given back when dropped.
pub(crate) struct ReplayTurn {
    replays: Arc<Replays>,
    keys: Vec<Sharer>,
    permits: Vec<OwnedSemaphorePermit>,
}

impl Replays {
    pub(crate) fn new(config: &ConnectionConfig) -> Self {
        Self {
            all: Arc::new(Semaphore::new(config.replays.min(Semaphore::MAX_PERMITS))),
            share: config.replays.div_ceil(SHARE_DIVISOR).min(Semaphore::MAX_PERMITS),
            shares: Mutex::default(),
            bytes_per_minute: config.replay_bytes_per_minute as u64,
            bytes: Mutex::default(),
        }
    }

    /// Waits for a turn. It waits for the shares of the client's address and user first, so that other clients do not
    /// wait for these.
    pub(crate) async fn turn(self: &Arc<Self>, client: &Client) -> ReplayTurn {
        let mut keys: Vec<_> =
            client.handshake.remote_ip().map(address::counted).map(Sharer::Address).into_iter().collect();
        {
            let membership = client.membership();
            let session = membership.session.clone().map(Sharer::Session);
            keys.extend(membership.user.clone().map(Sharer::User).or(session));
        }
        self.turn_of(keys).await
    }

    async fn turn_of(self: &Arc<Self>, keys: Vec<Sharer>) -> ReplayTurn {
        // Created first, so that a caller that gives up waiting leaves nothing behind.
        let mut turn = ReplayTurn { replays: self.clone(), keys: Vec::new(), permits: Vec::new() };
        for key in keys {
            let share =
                self.shares.lock().entry(key.clone()).or_insert_with(|| Semaphore::new(self.share).into()).clone();
            turn.keys.push(key);
            // The semaphore is never closed.
            turn.permits.extend(share.acquire_owned().await);
        }
        turn.permits.extend(self.all.clone().acquire_owned().await);
        turn
    }

    /// Fails if too many bytes were sent to an address lately.
    pub(crate) fn check(&self, ip: Option<IpAddr>) -> Result<(), &'static str> {
        let due = ip.and_then(|ip| self.bytes.lock().get(&address::counted(ip)).copied());
        match due.is_some_and(|due| due >= Instant::now() + MINUTE) {
            true => Err("too much was replayed to its address lately"),
            false => Ok(()),
        }
    }

    /// Counts bytes that are sent to an address. They are counted as they are sent, because a client that does not read
    /// has not got them.
    pub(crate) fn count(&self, ip: Option<IpAddr>, size: usize) {
        let Some(ip) = ip.map(address::counted) else { return };
        let now = Instant::now();
        let mut bytes = self.bytes.lock();
        if bytes.len() >= MAX_COUNTED && !bytes.contains_key(&ip) {
            bytes.retain(|_, due| *due > now);
        }
        let due = bytes.entry(ip).or_insert(now);
        let nanos = u128::from(size as u64) * MINUTE.as_nanos() / u128::from(self.bytes_per_minute);
        // The cap of one day only prevents an overflow.
        let lasts = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)).min(MINUTE * 1440);
        *due = (*due).max(now) + lasts;
    }
}

impl Drop for ReplayTurn {
    fn drop(&mut self) {
        self.permits.clear();
        let mut shares = self.replays.shares.lock();
        for key in &self.keys {
            // The share is not in use and can be removed.
            if shares.get(key).is_some_and(|share| Arc::strong_count(share) == 1) {
                shares.remove(key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn replays() -> Arc<Replays> {
        let config = ConnectionConfig { replays: 8, replay_bytes_per_minute: 600, ..ConnectionConfig::default() };
        Arc::new(Replays::new(&config))
    }

    fn address(last: u8) -> Sharer {
        Sharer::Address(IpAddr::from([10, 0, 0, last]))
    }

    #[tokio::test]
    async fn one_address_or_user_has_a_quarter_of_the_turns() {
        let replays = replays();
        let user = |name: &str| Sharer::User(name.into());
        let one = replays.turn_of(vec![address(1), user("ann")]).await;
        let _two = replays.turn_of(vec![address(1), user("bob")]).await;
        // Hundreds of waiting clients keep no other client from a turn.
        let mut waiting: Vec<_> = (0..300).map(|_| Box::pin(replays.turn_of(vec![address(1), user("ann")]))).collect();
        assert!(waiting.iter_mut().all(|turn| turn.now_or_never().is_none()));
        let _three = replays.turn_of(vec![address(2), user("ann")]).await;
        assert!(replays.turn_of(vec![address(3), user("ann")]).now_or_never().is_none(), "from wherever it comes");
        assert!(replays.turn_of(vec![address(3), user("carl")]).now_or_never().is_some());
        drop(one);
        assert!(waiting[0].as_mut().now_or_never().is_some());
        drop(waiting);
        drop((_two, _three));
        assert!(replays.shares.lock().is_empty());
        assert_eq!(replays.all.available_permits(), 8);
    }

    #[tokio::test(start_paused = true)]
    async fn the_bytes_per_minute_of_an_address_are_limited() {
        let replays = replays();
        let ip = |last| Some(IpAddr::from([10, 0, 0, last]));
        replays.count(ip(1), 400);
        assert_eq!(replays.check(ip(1)), Ok(()));
        replays.count(ip(1), 200);
        assert!(replays.check(ip(1)).is_err());
        assert_eq!(replays.check(ip(2)), Ok(()), "another address");
        replays.count(None, 6000);
        assert_eq!(replays.check(None), Ok(()), "none that is known");
        tokio::time::advance(Duration::from_secs(10)).await;
        assert_eq!(replays.check(ip(1)), Ok(()));
        replays.count(ip(1), 100);
        assert!(replays.check(ip(1)).is_err());
        replays.count(ip(3), usize::MAX);
        assert!(replays.check(ip(3)).is_err());
    }
}
