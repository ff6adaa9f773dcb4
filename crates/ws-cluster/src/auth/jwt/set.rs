//! Keys that are published as a JSON Web Key Set and change from time to time.

use std::{fs, panic::AssertUnwindSafe, path::PathBuf, sync::Arc, time::Duration};

use futures_util::{FutureExt, future::BoxFuture};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until, timeout},
};

use super::{
    super::{BoxError, NotYet},
    keys::{self, Key, MAX_KEYS, Set},
};

/// Age of a set after which it is read again. The earlier keys serve meanwhile.
const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
/// Shortest time between two reads. A token whose key is unknown causes a read, and anyone can make such tokens up.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
/// Longest wait for the time of the next read. A token that comes earlier is not judged.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time for one read.
const READ_TIMEOUT: Duration = Duration::from_secs(5);

/// Reads the text of a set.
type Read = dyn Fn() -> BoxFuture<'static, Result<Vec<u8>, String>> + Send + Sync;

/// A set of keys that is read when it is needed, and again when it is old.
#[derive(Clone)]
pub(super) struct KeySet(Arc<Shared>);

struct Shared {
    read: Box<Read>,
    /// The source, for the log.
    name: String,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    keys: Arc<Vec<Key>>,
    /// Number of usable keys beyond the limit.
    left_out: usize,
    /// Number of reads that have begun, and the number of the last one that has ended. One runs at a time.
    begun: u64,
    ended: u64,
    /// Start of the last read, and the end of it that others wait for.
    read_at: Option<Instant>,
    running: Option<watch::Receiver<bool>>,
    /// The reason why the last read brought no keys.
    failure: Option<String>,
}

/// The keys of a set at one moment.
pub(super) struct Known {
    keys: Arc<Vec<Key>>,
    /// Number of reads that had begun, and the number of the last one that had ended.
    begun: u64,
    ended: u64,
}

impl Known {
    /// Returns the keys that may have signed a token with this `kid`.
    pub(super) fn candidates(&self, id: Option<&str>) -> impl Iterator<Item = &Key> {
        // A token without `kid` may be signed by any of the keys.
        self.keys.iter().filter(move |key| id.is_none() || key.id.is_none() || key.id.as_deref() == id)
    }
}

impl KeySet {
    /// Returns the set that `read` reads. `name` says where it comes from.
    pub(super) fn new(
        name: String,
        read: impl Fn() -> BoxFuture<'static, Result<Vec<u8>, String>> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(Shared { read: Box::new(read), name, state: Mutex::default() }))
    }

    /// Returns the set in a file.
    pub(super) fn file(path: PathBuf) -> Self {
        let name = path.display().to_string();
        Self::new(name, move || {
            let path = path.clone();
            Box::pin(async move {
                let read = tokio::task::spawn_blocking(move || fs::read(path)).await;
                read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
            })
        })
    }

    /// Returns the present keys. If the set is old, a read begins, and the present keys serve meanwhile.
    pub(super) fn known(&self) -> Known {
        let now = Instant::now();
        let mut state = self.0.state.lock();
        let known = state.known();
        if state.running.is_none() && state.next_read(REFRESH_INTERVAL).is_none_or(|due| due <= now) {
            self.begin(&mut state, now);
        }
        known
    }

    /// Returns newer keys than `present`, for a token that none of those verifies. It begins a read if that is due, and
    /// waits for it. `first` are the keys that were known when the token came. Returns `None` if `present` is from a read
    /// that began after that: no key of the set has signed the token.
    ///
    /// # Errors
    /// The reason if the set cannot be read now.
    pub(super) async fn newer(&self, present: &Known, first: &Known) -> Result<Option<Known>, BoxError> {
        loop {
            let wait = {
                let now = Instant::now();
                let mut state = self.0.state.lock();
                if state.ended != present.ended {
                    return Ok(Some(state.known()));
                }
                if state.ended > first.begun {
                    return state.failure.as_ref().map_or(Ok(None), |why| Err(self.unreadable(why).into()));
                }
                match (state.running.clone(), state.next_read(MIN_INTERVAL)) {
                    (Some(running), _) => Wait::For(running),
                    (None, Some(due)) if due > now + PATIENCE => {
                        return Err(match &state.failure {
                            Some(why) => self.unreadable(why).into(),
                            None => NotYet(format!("the keys at {} were read a few seconds ago", self.0.name)).into(),
                        });
                    }
                    (None, Some(due)) if due > now => Wait::Until(due),
                    (None, _) => Wait::For(self.begin(&mut state, now)),
                }
            };
            match wait {
                Wait::Until(due) => sleep_until(due).await,
                Wait::For(mut running) => {
                    // The reader is gone at the end of the runtime.
                    if running.wait_for(|is_over| *is_over).await.is_err() {
                        return Err(self.unreadable("the node ends").into());
                    }
                }
            }
        }
    }

    fn unreadable(&self, why: &str) -> String {
        format!("the keys at {} cannot be read: {why}", self.0.name)
    }

    /// Starts to read the set. The receiver tells when that is over.
    fn begin(&self, state: &mut State, now: Instant) -> watch::Receiver<bool> {
        let (over, receiver) = watch::channel(false);
        state.begun += 1;
        (state.read_at, state.running) = (Some(now), Some(receiver.clone()));
        let set = self.clone();
        tokio::spawn(async move {
            // The application's code may panic.
            let read = AssertUnwindSafe(async { (set.0.read)().await }).catch_unwind();
            let read = match timeout(READ_TIMEOUT, read).await {
                Ok(read) => read.unwrap_or_else(|_| Err("the read panicked".to_owned())),
                Err(_) => Err(format!("no answer within {READ_TIMEOUT:?}")),
            };
            set.finish(read.and_then(|text| keys::set(&text)));
            over.send_replace(true);
        });
        receiver
    }

    fn finish(&self, read: Result<Set, String>) {
        let mut state = self.0.state.lock();
        let is_first = state.ended == 0;
        (state.running, state.ended) = (None, state.begun);
        let failed_before = state.failure.is_some();
        let source = &self.0.name;
        let Set { keys, left_out, unusable } = match read {
            Ok(set) => set,
            Err(why) => {
                state.failure = Some(why.clone());
                drop(state);
                if !failed_before {
                    tracing::error!(source, why, "the keys of tokens cannot be read; those before stay");
                }
                return;
            }
        };
        let count = keys.len();
        let had_keys = !std::mem::replace(&mut state.keys, Arc::new(keys)).is_empty();
        let left_out_before = std::mem::replace(&mut state.left_out, left_out);
        state.failure = unusable.clone();
        drop(state);
        if let Some(why) = unusable {
            if had_keys || !failed_before {
                tracing::error!(source, why, "no key of the set can be used; those before do not count any more");
            }
            return;
        }
        if failed_before {
            tracing::info!(source, count, "the keys of tokens can be read again");
        }
        if count == 0 && (had_keys || is_first) {
            tracing::warn!(source, "the set of keys is empty: no token of its keys is valid");
        }
        if left_out > 0 && left_out != left_out_before {
            tracing::warn!(source, limit = MAX_KEYS, left_out, "the set has too many keys: the last are not used");
        }
    }
}

impl State {
    fn known(&self) -> Known {
        Known { keys: self.keys.clone(), begun: self.begun, ended: self.ended }
    }

    /// Returns the time of the next read, if reads are this far apart. `None` is at once.
    fn next_read(&self, interval: Duration) -> Option<Instant> {
        self.read_at.map(|read_at| read_at + interval)
    }
}

/// What a token waits for.
enum Wait {
    Until(Instant),
    For(watch::Receiver<bool>),
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::{sync::Notify, time::advance};

    use super::*;

    const SET: &str = r#"{"keys": [
        {"kty": "OKP", "crv": "Ed25519", "kid": "a", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},
        {"kty": "oct", "kid": "b", "k": "c2VjcmV0"}, {"kty": "new"}, 7
    ]}"#;

    /// A set whose reads are counted, and end with what `answer` says.
    fn counted(answer: impl Fn() -> Result<Vec<u8>, String> + Send + Sync + 'static) -> (KeySet, Arc<AtomicUsize>) {
        let reads = Arc::new(AtomicUsize::new(0));
        let count = reads.clone();
        let set = KeySet::new("the test".into(), move || {
            count.fetch_add(1, Ordering::Relaxed);
            let answer = answer();
            Box::pin(async move { answer })
        });
        (set, reads)
    }

    /// Looks for a key until one is found or it is known that there is none.
    async fn find(set: &KeySet, id: &str) -> Result<bool, String> {
        let first = set.known();
        let mut found = first.candidates(Some(id)).next().is_some();
        let mut newer = None;
        while !found {
            match set.newer(newer.as_ref().unwrap_or(&first), &first).await.map_err(|why| why.to_string())? {
                Some(known) => {
                    found = known.candidates(Some(id)).next().is_some();
                    newer = Some(known);
                }
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_keys_cause_one_read_in_ten_seconds_and_wait_for_it_if_it_is_near() {
        let (set, reads) = counted(|| Ok(SET.into()));
        assert_eq!(find(&set, "a").await, Ok(true));
        for number in 0..100 {
            // Nothing is known of the token: its key may have been published since the read.
            let why = find(&set, &number.to_string()).await.expect_err("an error");
            assert!(why.contains("a few seconds ago"), "{why}");
            assert_eq!(find(&set, "a").await, Ok(true), "the other tokens count");
        }
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        advance(MIN_INTERVAL - PATIENCE).await;
        let unknown = futures_util::future::join_all((0..100).map(|_| find(&set, "c"))).await;
        assert!(unknown.into_iter().all(|found| found == Ok(false)));
        assert_eq!(reads.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_was_published_after_the_last_read_is_found_at_the_next() {
        let published = Arc::new(AtomicUsize::new(0));
        let count = published.clone();
        let (set, _) = counted(move || match count.load(Ordering::Relaxed) {
            0 => Ok(SET.into()),
            _ => Ok(SET.replace(r#""a""#, r#""c""#).into()),
        });
        assert_eq!(find(&set, "a").await, Ok(true));
        published.store(1, Ordering::Relaxed);
        assert!(find(&set, "c").await.is_err());
        advance(MIN_INTERVAL).await;
        assert_eq!(find(&set, "c").await, Ok(true));
    }

    /// A set whose reads after the first wait for the second value.
    fn gated(later: &'static str) -> (KeySet, Arc<Notify>, Arc<AtomicUsize>) {
        let gate = Arc::new(Notify::new());
        let (reads, waiting) = (Arc::new(AtomicUsize::new(0)), gate.clone());
        let count = reads.clone();
        let set = KeySet::new("the test".into(), move || {
            let (first, gate) = (count.fetch_add(1, Ordering::Relaxed) == 0, waiting.clone());
            Box::pin(async move {
                if first {
                    return Ok(SET.into());
                }
                gate.notified().await;
                Ok(later.into())
            })
        });
        (set, gate, reads)
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_set_serves_while_it_is_read_again() {
        let (set, gate, reads) = gated(SET);
        assert_eq!(find(&set, "a").await, Ok(true));
        advance(REFRESH_INTERVAL).await;
        assert_eq!(find(&set, "a").await, Ok(true));
        tokio::task::yield_now().await;
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        gate.notify_one();
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_began_before_a_token_came_does_not_refuse_the_token() {
        let (set, gate, _) = gated(SET);
        assert_eq!(find(&set, "a").await, Ok(true));
        advance(REFRESH_INTERVAL).await;
        let early = set.known();
        assert_eq!(early.candidates(Some("c")).count(), 0);
        let late = tokio::spawn({
            let set = set.clone();
            async move { find(&set, "c").await }
        });
        tokio::task::yield_now().await;
        gate.notify_one();
        assert!(late.await.unwrap().is_err(), "the key may have been published during the read");
        let newer = set.newer(&early, &early).await.unwrap().expect("keys of a later read");
        assert_eq!(newer.candidates(Some("c")).count(), 0);
        assert!(set.newer(&newer, &early).await.unwrap().is_none(), "the read began after this token came");
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_fails_or_panics_is_an_error_only_without_a_fitting_key() {
        let set = KeySet::new("the test".into(), || Box::pin(std::future::pending()));
        let why = find(&set, "a").await.expect_err("an error");
        assert!(why.contains("no answer within 5s"), "{why}");

        let good = Arc::new(AtomicUsize::new(1));
        let is_good = good.clone();
        let (set, _) = counted(move || match is_good.load(Ordering::Relaxed) {
            0 => Err("the host is gone".into()),
            1 => Ok(SET.into()),
            _ => panic!("for a test"),
        });
        assert_eq!(find(&set, "a").await, Ok(true));
        for (state, says) in [(0, "the host is gone"), (2, "the read panicked")] {
            good.store(state, Ordering::Relaxed);
            advance(2 * REFRESH_INTERVAL).await;
            let why = find(&set, "c").await.expect_err("an error");
            assert!(why.contains(says), "{why}");
            assert_eq!(find(&set, "a").await, Ok(true));
        }
        good.store(1, Ordering::Relaxed);
        advance(MIN_INTERVAL).await;
        assert_eq!(find(&set, "c").await, Ok(false), "it is read again");
    }

    #[tokio::test(start_paused = true)]
    async fn a_set_without_keys_revokes_those_before() {
        for (text, answer) in
            [(r#"{"keys": []}"#, Ok(false)), (r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#, Err("it is a secret"))]
        {
            let (set, gate, _) = gated(text);
            assert_eq!(find(&set, "a").await, Ok(true));
            advance(REFRESH_INTERVAL).await;
            gate.notify_one();
            assert_eq!(find(&set, "a").await, Ok(true), "the read has begun");
            advance(MIN_INTERVAL).await;
            gate.notify_one();
            match (find(&set, "a").await, answer) {
                (Err(why), Err(says)) => assert!(why.contains(says), "{why}"),
                (found, answer) => assert_eq!(found, answer.map_err(str::to_owned), "{text}"),
            }
        }
    }

    #[tokio::test]
    async fn what_is_not_a_set_of_keys_is_named() {
        for (text, says) in [
            ("", "it is not JSON"),
            ("[]", "has no array"),
            (r#"{"keys": 7}"#, "has no array"),
            (r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#, "it is a secret"),
        ] {
            let (set, _) = counted(move || Ok(text.into()));
            let why = find(&set, "a").await.expect_err("an error");
            assert!(why.contains(says), "{text}: {why}");
        }
    }
}
