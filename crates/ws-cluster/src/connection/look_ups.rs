//! Limits the number of clients of one address about which the authenticator is asked at the same time.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Weak},
};

use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::address;

/// The addresses whose clients the authenticator is being asked about.
#[derive(Default)]
pub(crate) struct LookUps(Mutex<HashMap<IpAddr, Weak<Semaphore>>>);

/// A turn. When it is dropped, the next client of the address gets one.
pub(crate) struct LookUpTurn<'a> {
    look_ups: &'a LookUps,
    ip: IpAddr,
    permit: Option<OwnedSemaphorePermit>,
    turns: Option<Arc<Semaphore>>,
}

impl LookUps {
    /// Waits for a turn among the clients of an address, of which `limit` have one at the same time. Returns `None` at
    /// once if the address is unknown.
    pub(crate) async fn turn(&self, ip: Option<IpAddr>, limit: usize) -> Option<LookUpTurn<'_>> {
        let ip = address::counted(ip?);
        let turns = {
            let mut addresses = self.0.lock();
            let known = addresses.get(&ip).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let turns = Arc::new(Semaphore::new(limit.min(Semaphore::MAX_PERMITS)));
                addresses.insert(ip, Arc::downgrade(&turns));
                turns
            })
        };
        // Created before the wait, so that the address is also forgotten if the wait is cancelled.
        let mut turn = LookUpTurn { look_ups: self, ip, permit: None, turns: Some(turns.clone()) };
        // The semaphore is never closed.
        turn.permit = turns.acquire_owned().await.ok();
        Some(turn)
    }
}

impl Drop for LookUpTurn<'_> {
    fn drop(&mut self) {
        self.permit = None;
        let mut addresses = self.look_ups.0.lock();
        // The last turn forgets the address. The lock prevents that another client takes the semaphore meanwhile.
        self.turns = None;
        if addresses.get(&self.ip).is_some_and(|turns| turns.strong_count() == 0) {
            addresses.remove(&self.ip);
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[test]
    fn clients_of_one_address_wait_their_turn_and_leave_nothing() {
        let look_ups = LookUps::default();
        let [one, other] = [1, 2].map(|number| Some(IpAddr::from([127, 0, 0, number])));
        let first = look_ups.turn(one, 2).now_or_never().unwrap();
        let _second = look_ups.turn(one, 2).now_or_never().unwrap();
        assert!(look_ups.turn(one, 2).now_or_never().is_none());
        assert!(look_ups.turn(other, 2).now_or_never().is_some());
        assert!(look_ups.turn(None, 2).now_or_never().is_some_and(|turn| turn.is_none()));
        drop(first);
        let third = look_ups.turn(one, 2).now_or_never().unwrap();
        drop((third, _second));
        assert!(look_ups.0.lock().is_empty());
    }
}
