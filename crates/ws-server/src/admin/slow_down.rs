//! Limits how fast keys may be tried. Pure: time is an argument.

use std::{
    collections::HashMap,
    net::IpAddr,
    time::{Duration, Instant},
};

/// Number of wrong keys of an address that cause no pause.
const FREE: u32 = 3;
/// The pause after one more wrong key. It doubles with each further one.
const FIRST: Duration = Duration::from_secs(1);
/// The longest pause.
const LONGEST: Duration = Duration::from_secs(60);
/// Time after its last key at which an address is forgotten.
const MEMORY: Duration = Duration::from_secs(15 * 60);
/// Maximum number of addresses that are remembered.
const ADDRESSES: usize = 1_000;
/// Number of wrong keys of all addresses together that cause no pause.
const BURST: u32 = 60;
/// The time after which one more is allowed.
const INTERVAL: Duration = Duration::from_secs(1);
/// Keys per second that are compared although their addresses must wait. So the right key works even if others who
/// share the address send wrong ones. This is too slow to guess a key of 16 bytes.
const LOOKS: u32 = 10;
/// Keys per second of this machine's processes. They have no pause, because all of them share one address.
const LOCAL_LOOKS: u32 = 1_000;
/// Time between two lines of the log about wrong keys.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

/// The recent wrong keys.
#[derive(Debug, Default)]
pub(super) struct SlowDown {
    by_address: HashMap<IpAddr, Failures>,
    /// The wrong keys of all addresses. Each interval forgives one.
    total: u32,
    /// When the last one was forgiven.
    forgiven_at: Option<Instant>,
    looks: Looks<LOOKS>,
    local_looks: Looks<LOCAL_LOOKS>,
    /// When a wrong key was last logged.
    logged_at: Option<Instant>,
    /// The number of wrong keys since then, which were not logged.
    left_out: u64,
}

/// Limits the number of comparisons in a second.
#[derive(Debug, Default)]
struct Looks<const LIMIT: u32> {
    second: Option<Instant>,
    taken: u32,
}

impl<const LIMIT: u32> Looks<LIMIT> {
    /// Counts one comparison. Returns false if the second has none left.
    fn take(&mut self, now: Instant) -> bool {
        if self.second.is_none_or(|begin| now.saturating_duration_since(begin) >= Duration::from_secs(1)) {
            (self.second, self.taken) = (Some(now), 0);
        }
        let is_left = self.taken < LIMIT;
        self.taken += u32::from(is_left);
        is_left
    }
}

#[derive(Debug)]
struct Failures {
    count: u32,
    /// When the last key arrived.
    last: Instant,
    /// True if the right key arrived from this address lately.
    is_known: bool,
}

impl Failures {
    /// Returns the time from which the next key is compared.
    fn until(&self) -> Instant {
        let pause = match self.count.checked_sub(FREE + 1) {
            None => Duration::ZERO,
            Some(doublings) => (FIRST * 2_u32.pow(doublings.min(8))).min(LONGEST),
        };
        self.last + pause
    }
}

impl SlowDown {
    /// Returns how long an address must wait before its next key is compared. The total limit does not apply to
    /// loopback and known addresses.
    pub(super) fn wait(&mut self, address: IpAddr, now: Instant) -> Option<Duration> {
        if address.is_loopback() {
            return (!self.local_looks.take(now)).then_some(INTERVAL);
        }
        let failures = self.by_address.get(&address);
        let own = failures.map(|failures| failures.until().saturating_duration_since(now));
        let is_known = failures.is_some_and(|failures| failures.is_known);
        let all = self.total(now) >= BURST && !is_known;
        let wait = own.unwrap_or_default().max(if all { INTERVAL } else { Duration::ZERO });
        (!wait.is_zero()).then_some(wait)
    }

    /// Returns true if a key is compared although its address must wait. If it is wrong, it is not counted.
    pub(super) fn look(&mut self, address: IpAddr, now: Instant) -> bool {
        !address.is_loopback() && self.looks.take(now)
    }

    /// Returns `None` if a wrong key must not be logged now. Otherwise returns how many were not logged before it.
    pub(super) fn log(&mut self, now: Instant) -> Option<u64> {
        if self.logged_at.is_some_and(|last| now.saturating_duration_since(last) < LOG_INTERVAL) {
            self.left_out += 1;
            return None;
        }
        self.logged_at = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }

    /// Notes a wrong key.
    pub(super) fn fail(&mut self, address: IpAddr, now: Instant) {
        if address.is_loopback() {
            return;
        }
        self.total = self.total(now) + 1;
        let failures = self.entry(address, now);
        failures.count = failures.count.saturating_add(1);
    }

    /// Notes the right key.
    pub(super) fn succeed(&mut self, address: IpAddr, now: Instant) {
        if address.is_loopback() {
            return;
        }
        let failures = self.entry(address, now);
        (failures.count, failures.is_known) = (0, true);
    }

    /// Returns the entry of an address. If there are too many, the oldest entry without the right key is removed.
    fn entry(&mut self, address: IpAddr, now: Instant) -> &mut Failures {
        self.by_address.retain(|_, failures| now.saturating_duration_since(failures.last) < MEMORY);
        if self.by_address.len() >= ADDRESSES && !self.by_address.contains_key(&address) {
            let all = self.by_address.iter();
            let oldest = all.min_by_key(|(_, failures)| (failures.is_known, failures.last));
            oldest.map(|(address, _)| *address).map(|oldest| self.by_address.remove(&oldest));
        }
        let failures = self.by_address.entry(address).or_insert(Failures { count: 0, last: now, is_known: false });
        failures.last = now;
        failures
    }

    /// Returns the number of wrong keys of all addresses that are not forgiven yet.
    fn total(&mut self, now: Instant) -> u32 {
        let since = *self.forgiven_at.get_or_insert(now);
        let intervals = now.saturating_duration_since(since).as_secs() / INTERVAL.as_secs();
        self.forgiven_at = Some(since + INTERVAL * u32::try_from(intervals).unwrap_or(u32::MAX));
        self.total = self.total.saturating_sub(u32::try_from(intervals).unwrap_or(u32::MAX));
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    #[test]
    fn wrong_keys_of_an_address_make_it_wait_longer_each_time() {
        let (mut slow, mut now) = (SlowDown::default(), Instant::now());
        for _ in 0..FREE {
            slow.fail(address(1), now);
            assert_eq!(slow.wait(address(1), now), None);
        }
        for seconds in [1, 2, 4, 8, 16, 32, 60, 60] {
            slow.fail(address(1), now);
            assert_eq!(slow.wait(address(1), now), Some(Duration::from_secs(seconds)));
            assert_eq!(slow.wait(address(2), now), None, "another address");
            now += Duration::from_secs(seconds);
            assert_eq!(slow.wait(address(1), now), None);
        }
        slow.succeed(address(1), now);
        slow.fail(address(1), now);
        assert_eq!(slow.wait(address(1), now), None);
    }

    #[test]
    fn an_address_is_forgotten_after_a_while() {
        let (mut slow, now) = (SlowDown::default(), Instant::now());
        (0..10).for_each(|_| slow.fail(address(1), now));
        let later = now + MEMORY;
        slow.fail(address(2), later);
        assert_eq!(slow.by_address.len(), 1);
    }

    #[test]
    fn many_addresses_take_bounded_memory_and_share_a_limit() {
        let (mut slow, now) = (SlowDown::default(), Instant::now());
        for number in 0..2 * u32::try_from(ADDRESSES).unwrap() {
            slow.fail(address(number), now);
        }
        assert_eq!(slow.by_address.len(), ADDRESSES);
        assert_eq!(slow.wait(address(9_999), now), Some(INTERVAL), "the limit of all");
        assert_eq!(slow.wait(IpAddr::from([127, 0, 0, 1]), now), None, "this machine");
        slow.succeed(address(8_888), now);
        (0..ADDRESSES as u32).for_each(|number| slow.fail(address(10_000 + number), now));
        assert_eq!(slow.wait(address(8_888), now), None, "it had the key");
        let later = now + INTERVAL * 3 * u32::try_from(ADDRESSES).unwrap();
        assert_eq!(slow.wait(address(9_999), later), None);
    }
    #[test]
    fn a_pause_leaves_a_few_looks_for_the_right_key() {
        let (mut slow, now) = (SlowDown::default(), Instant::now());
        assert_eq!((0..1_000).filter(|_| slow.look(address(1), now)).count(), LOOKS as usize);
        assert!(slow.look(address(1), now + Duration::from_secs(1)));
    }

    #[test]
    fn wrong_keys_of_this_machine_keep_out_nobody() {
        let (mut slow, now) = (SlowDown::default(), Instant::now());
        let local = IpAddr::from([127, 0, 0, 1]);
        for _ in 0..10 * LOCAL_LOOKS {
            if slow.wait(local, now).is_none() {
                slow.fail(local, now);
            }
        }
        assert_eq!(slow.wait(address(1), now), None, "other machines");
        assert_eq!(slow.wait(local, now), Some(INTERVAL));
        assert_eq!(slow.wait(local, now + Duration::from_secs(1)), None, "no pause grows");
    }

    #[test]
    fn wrong_keys_are_logged_once_a_minute() {
        let (mut slow, now) = (SlowDown::default(), Instant::now());
        assert_eq!(slow.log(now), Some(0));
        assert!((0..1_000).all(|_| slow.log(now).is_none()));
        assert_eq!(slow.log(now + LOG_INTERVAL), Some(1_000));
    }
}
