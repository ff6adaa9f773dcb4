//! The number of file descriptors that the process may have, and the default limits on sockets that follow from it.

/// The default limits that follow from the number of descriptors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Budget {
    /// Maximum number of accepted sockets.
    pub(crate) sockets: usize,
    /// Maximum number of WebSocket connections among them, so that some sockets are left for plain HTTP.
    pub(crate) connections: usize,
    /// Maximum number of links that are greeted at once.
    pub(crate) greetings: usize,
}

/// Number of descriptors that a node keeps for itself at least: the runtime, the listener, the log, the pool, links,
/// and the few requests that are answered beyond the limit on sockets.
const RESERVE: usize = 64;

/// Default maximum number of connections if nothing else limits them: about 100 MB of memory when they are idle.
const CONNECTIONS: usize = 100_000;

impl Budget {
    /// Returns the limits for the process's present soft limit.
    pub(crate) fn now() -> Self {
        Self::of(limit())
    }

    fn of(limit: usize) -> Self {
        let reserve = (limit / 8).clamp(RESERVE, 512);
        let sockets = limit.saturating_sub(reserve).max(limit / 4).clamp(1, CONNECTIONS + CONNECTIONS / 8);
        Self { sockets, connections: (sockets - sockets / 9).min(CONNECTIONS), greetings: (reserve / 4).clamp(16, 128) }
    }
}

/// Returns the soft limit, which may be unlimited.
fn limit() -> usize {
    #[cfg(unix)]
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    #[cfg(not(unix))]
    let limit = None::<u64>;
    limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_on_descriptors_leaves_a_reserve() {
        assert_eq!(Budget::of(128), Budget { sockets: 64, connections: 57, greetings: 16 });
        assert_eq!(Budget::of(1_024), Budget { sockets: 896, connections: 797, greetings: 32 });
        assert_eq!(Budget::of(1 << 20), Budget { sockets: 112_500, connections: 100_000, greetings: 128 });
        assert_eq!(Budget::of(usize::MAX).connections, 100_000);
        for limit in 0..2_000 {
            let budget = Budget::of(limit);
            assert!(budget.connections >= 1 && budget.connections <= budget.sockets, "{limit}: {budget:?}");
        }
    }
}
