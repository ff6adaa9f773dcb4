//! Keys that are published as a JSON Web Key Set and change from time to time.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

use super::keys::{self, Key};

/// Age of a set after which it is read again. The earlier keys serve meanwhile.
const REFRESH_INTERVAL: Duration = Duration::from_secs(300);
/// Shortest time between two reads. A token whose key is unknown causes a read, and anyone can make such tokens up.
const MIN_INTERVAL: Duration = Duration::from_secs(10);
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
    /// Start of the last read, and the end of it that others wait for.
    read_at: Option<Instant>,
    running: Option<watch::Receiver<bool>>,
    /// The reason why the last read failed.
    failure: Option<String>,
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

    /// Returns the keys that may have signed a token with this `kid`. It reads the set if that is due, and waits for
    /// the read only if no key fits.
    ///
    /// # Errors
    /// The reason if no key fits and the set cannot be read.
    pub(super) async fn candidates(&self, id: Option<&str>) -> Result<Vec<Key>, String> {
        let now = Instant::now();
        let found = self.fitting(id);
        let running = {
            let mut state = self.0.state.lock();
            let limit = if found.is_empty() { MIN_INTERVAL } else { REFRESH_INTERVAL };
            let is_due = state.read_at.is_none_or(|read_at| now.saturating_duration_since(read_at) >= limit);
            if is_due && state.running.is_none() {
                state.read_at = Some(now);
                state.running = Some(self.begin());
            }
            state.running.clone()
        };
        if !found.is_empty() {
            return Ok(found);
        }
        if let Some(mut running) = running {
            // An error means that the reader is gone, as at the end of the runtime.
            let _ = running.wait_for(|is_over| *is_over).await;
        }
        let found = self.fitting(id);
        match self.0.state.lock().failure.clone() {
            Some(why) if found.is_empty() => Err(format!("the keys at {} cannot be read: {why}", self.0.name)),
            _ => Ok(found),
        }
    }

    fn fitting(&self, id: Option<&str>) -> Vec<Key> {
        let keys = self.0.state.lock().keys.clone();
        // A token without `kid` may be signed by any of the keys.
        let fits = |key: &&Key| id.is_none() || key.id.is_none() || key.id.as_deref() == id;
        keys.iter().filter(fits).cloned().collect()
    }

    /// Starts to read the set. The receiver tells when that is over.
    fn begin(&self) -> watch::Receiver<bool> {
        let (over, receiver) = watch::channel(false);
        let set = self.clone();
        tokio::spawn(async move {
            let read = tokio::time::timeout(READ_TIMEOUT, (set.0.read)()).await;
            let read = read.unwrap_or_else(|_| Err(format!("no answer within {READ_TIMEOUT:?}")));
            set.finish(read.and_then(|text| keys::set(&text)));
            over.send_replace(true);
        });
        receiver
    }

    fn finish(&self, read: Result<Vec<Key>, String>) {
        let mut state = self.0.state.lock();
        state.running = None;
        let failed_before = state.failure.is_some();
        match read {
            Ok(keys) => {
                let count = keys.len();
                (state.keys, state.failure) = (Arc::new(keys), None);
                drop(state);
                if failed_before {
                    tracing::info!(source = self.0.name, count, "the keys of tokens can be read again");
                }
            }
            Err(why) => {
                state.failure = Some(why.clone());
                drop(state);
                if !failed_before {
                    tracing::error!(source = self.0.name, why, "the keys of tokens cannot be read; those before stay");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

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

    fn ids(keys: Result<Vec<Key>, String>) -> Vec<Option<String>> {
        keys.expect("keys").into_iter().map(|key| key.id).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn unknown_keys_cause_one_read_in_ten_seconds() {
        let (set, reads) = counted(|| Ok(SET.into()));
        assert_eq!(ids(set.candidates(Some("a")).await), [Some("a".to_owned())]);
        for number in 0..100 {
            assert!(ids(set.candidates(Some(&number.to_string())).await).is_empty());
        }
        assert_eq!(reads.load(Ordering::Relaxed), 1);
        tokio::time::advance(MIN_INTERVAL).await;
        let unknown = futures_util::future::join_all((0..100).map(|_| set.candidates(Some("c")))).await;
        assert!(unknown.into_iter().all(|keys| keys.expect("keys").is_empty()));
        assert_eq!(reads.load(Ordering::Relaxed), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_set_serves_while_it_is_read_again() {
        let gate = Arc::new(Notify::new());
        let (reads, waiting) = (Arc::new(AtomicUsize::new(0)), gate.clone());
        let count = reads.clone();
        let set = KeySet::new("the test".into(), move || {
            let (first, gate) = (count.fetch_add(1, Ordering::Relaxed) == 0, waiting.clone());
            Box::pin(async move {
                if !first {
                    gate.notified().await;
                }
                Ok(SET.into())
            })
        });
        set.candidates(Some("a")).await.expect("keys");
        tokio::time::advance(REFRESH_INTERVAL).await;
        assert_eq!(ids(set.candidates(Some("a")).await), [Some("a".to_owned())]);
        tokio::task::yield_now().await;
        assert_eq!(reads.load(Ordering::Relaxed), 2);
        gate.notify_one();
    }

    #[tokio::test(start_paused = true)]
    async fn a_read_that_hangs_or_fails_is_an_error_only_without_a_fitting_key() {
        let set = KeySet::new("the test".into(), || Box::pin(std::future::pending()));
        let why = set.candidates(None).await.err().expect("an error");
        assert!(why.contains("no answer within 5s"), "{why}");

        let good = Arc::new(AtomicUsize::new(1));
        let is_good = good.clone();
        let (set, _) = counted(move || match is_good.load(Ordering::Relaxed) {
            1 => Ok(SET.into()),
            _ => Err("the host is gone".into()),
        });
        set.candidates(Some("a")).await.expect("keys");
        good.store(0, Ordering::Relaxed);
        tokio::time::advance(2 * REFRESH_INTERVAL).await;
        assert!(set.candidates(Some("c")).await.is_err_and(|why| why.contains("the host is gone")));
        assert_eq!(ids(set.candidates(Some("a")).await), [Some("a".to_owned())]);
    }

    #[tokio::test]
    async fn what_is_not_a_set_of_keys_is_named() {
        for (text, says) in [
            ("", "it is not JSON"),
            ("[]", "has no array"),
            (r#"{"keys": 7}"#, "has no array"),
            (r#"{"keys": []}"#, "it is empty"),
            (r#"{"keys": [{"kty": "oct", "k": "c2VjcmV0"}]}"#, "it is a secret"),
        ] {
            let (set, _) = counted(move || Ok(text.into()));
            let why = set.candidates(None).await.err().expect("an error");
            assert!(why.contains(says), "{text}: {why}");
        }
    }
}
