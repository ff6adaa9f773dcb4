//! Caches valid sessions for a short while, and unknown ones for a shorter while. Callers that ask for the same session
//! at the same time share one query, so that the clients of a whole site that come back at once do not overrun the
//! database. It works with any store.
//!
//! A cache of another crate (moka) does not fit: an answer counts from the time of its question, a close also has to keep
//! out the answers that are still under way, and unknown sessions are only remembered after several misses.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    net::IpAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    FutureExt,
    future::{BoxFuture, Shared},
};
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::time::Instant;

use super::health::Health;
use crate::auth::{AuthenticationError, Identity, Revoked};
use crate::mysql::plain;

/// A session that ends sooner than this is looked up again. The question may come because the session ends, from a
/// clock that is a little ahead.
const EXPIRY_MARGIN: Duration = Duration::from_secs(5);

/// Number of times in a row that a session has to be unknown before that is cached. A smaller number would hide a login
/// from a page that asked just before.
const MISSES: u32 = 3;

/// Time for which an unknown session is cached, and so the time between two queries for it.
const MISS_TIME: Duration = Duration::from_secs(2);

/// Time without a question after which a session may be unknown [`MISSES`] times again.
const MISS_MEMORY: Duration = Duration::from_secs(10);

/// A question to a store. `ip` and `agent` are set only if its queries use them.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct SessionQuestion {
    pub(super) session: String,
    pub(super) ip: Option<IpAddr>,
    pub(super) agent: Option<String>,
}

/// A digest of a question. It is short whatever a client sends, and it reveals no session id.
type Key = [u8; 32];

impl SessionQuestion {
    fn key(&self) -> Key {
        let ip = self.ip.map(|ip| ip.to_string());
        let parts = [Some(self.session.as_str()), ip.as_deref(), self.agent.as_deref()];
        let mut digest = Sha256::new();
        for part in parts {
            // The lengths separate the parts. An absent part differs from an empty one.
            digest.update(part.map_or(u64::MAX, |part| part.len() as u64).to_le_bytes());
            digest.update(part.unwrap_or_default());
        }
        digest.finalize().into()
    }
}

/// The reason why a store could not answer: an [`AuthenticationError`] that several callers can share.
#[derive(Clone, Debug)]
pub(super) enum StoreFailure {
    Unavailable(Arc<Outage>),
    Misconfigured(String),
}

/// The reason why a store does not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Outage {
    #[error("no answer within {0:?}")]
    TimedOut(Duration),
    #[error("{}", plain(.0))]
    Database(#[source] mysql_async::Error),
    #[error("the question was dropped")]
    Dropped(#[source] tokio::task::JoinError),
}

impl From<Outage> for StoreFailure {
    fn from(outage: Outage) -> Self {
        Self::Unavailable(Arc::new(outage))
    }
}

impl From<StoreFailure> for AuthenticationError {
    fn from(failure: StoreFailure) -> Self {
        match failure {
            StoreFailure::Unavailable(outage) => Self::Unavailable(Box::new(outage)),
            StoreFailure::Misconfigured(fault) => Self::Misconfigured(fault),
        }
    }
}

/// The identity of a session, or `None` if there is no such session.
pub(super) type Answer = Result<Option<Identity>, StoreFailure>;

/// A store of sessions: the site's MySQL, or the double in the tests.
pub(super) trait Store: Clone + Send + Sync + 'static {
    /// Looks a session up, in bounded time. The session may have run out.
    fn look_up(&self, question: &SessionQuestion) -> impl Future<Output = Answer> + Send;
}

/// A store with a cache. A login is noticed at once: an unknown session is cached only if it is asked for again and
/// again.
#[derive(Clone)]
pub(super) struct Cached<S> {
    pub(super) store: S,
    /// Time for which an answer counts, from the moment of the question.
    pub(super) time: Duration,
    /// Maximum number of cached sessions. The oldest are dropped.
    pub(super) size: usize,
    health: Arc<Health>,
    /// A synchronous lock, held for a few look-ups in maps and never across an await.
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Memory {
    known: HashMap<Key, CachedSession>,
    /// The keys of `known` by the time of their questions, the oldest first. It may name sessions that were replaced or
    /// forgotten since.
    order: VecDeque<(Instant, Key)>,
    /// Sessions that were unknown lately.
    unknown: HashMap<Key, Miss>,
    /// The keys of `unknown` by the time of their questions, the oldest first. It may name sessions that were replaced
    /// or forgotten since.
    misses: VecDeque<(Instant, Key)>,
    /// Questions that the store has not answered yet. There are at most as many as callers.
    pending: HashMap<Key, PendingQuestion>,
    /// Number of calls to forget. An answer to a question from before such a call is not cached, and later callers do
    /// not share it.
    forgotten: u64,
}

struct Miss {
    count: u32,
    at: Instant,
}

struct PendingQuestion {
    answer: Shared<BoxFuture<'static, Answer>>,
    at: Instant,
    /// The value of [`Memory::forgotten`] at the time of the question.
    forgotten: u64,
}

struct CachedSession {
    identity: Identity,
    at: Instant,
}

impl<S: Store> Cached<S> {
    pub(super) fn new(store: S, time: Duration, size: usize) -> Self {
        Self { store, time, size, health: Arc::default(), memory: Arc::default() }
    }

    /// Returns the identity of a session that has not run out, from the cache or the store.
    pub(super) async fn look_up(&self, question: SessionQuestion) -> Answer {
        let time = self.time;
        self.look_up_within(question, time).await
    }

    /// Returns the identity like [`look_up`](Self::look_up), from an answer that is not older than `age`.
    pub(super) async fn look_up_within(&self, question: SessionQuestion, age: Duration) -> Answer {
        let key = question.key();
        let answer = {
            let mut memory = self.memory.lock();
            if let Some(identity) = memory.recall(&key, age.min(self.time)) {
                return Ok(Some(identity));
            }
            if memory.is_unknown(&key) {
                return Ok(None);
            }
            let forgotten = memory.forgotten;
            match memory.pending.get(&key) {
                // An answered question that is still here belongs to a task that panicked. A question from before a
                // close may be answered with what was true before the close.
                Some(asked) if asked.answer.peek().is_none() && asked.forgotten == forgotten => asked.answer.clone(),
                _ => {
                    let at = Instant::now();
                    // The question runs in a task of its own, so that it outlives its first caller, and no query is
                    // dropped half-way.
                    let task = tokio::spawn(self.clone().ask(key, question, at, forgotten));
                    let answer = async { task.await.unwrap_or_else(|error| Err(Outage::Dropped(error).into())) };
                    let answer = answer.boxed().shared();
                    memory.pending.insert(key, PendingQuestion { answer: answer.clone(), at, forgotten });
                    answer
                }
            }
        };
        answer.await
    }

    /// Forgets the sessions whose connections were closed, and all unknown sessions.
    pub(super) fn forget(&self, closed: Revoked<'_>) {
        let mut memory = self.memory.lock();
        memory.forgotten += 1;
        memory.known.retain(|_, known| !closed.is(&known.identity));
        memory.unknown.clear();
        memory.misses.clear();
    }

    async fn ask(self, key: Key, question: SessionQuestion, at: Instant, forgotten: u64) -> Answer {
        let answer = self.store.look_up(&question).await;
        self.health.observe(&answer);
        let answer = answer.map(|identity| {
            let ended = identity.as_ref().is_some_and(|identity| ends_within(identity, Duration::ZERO));
            match (&identity, ended) {
                (None, _) => tracing::debug!("the session table does not know a session"),
                (Some(_), true) => tracing::debug!("a session has run out"),
                (Some(_), false) => {}
            }
            identity.filter(|_| !ended)
        });
        let mut memory = self.memory.lock();
        // A later question may have replaced this one.
        if memory.pending.get(&key).is_some_and(|asked| (asked.forgotten, asked.at) == (forgotten, at)) {
            memory.pending.remove(&key);
        }
        match &answer {
            Ok(_) if memory.forgotten != forgotten => {}
            Ok(Some(identity)) => {
                memory.unknown.remove(&key);
                memory.remember(key, CachedSession { identity: identity.clone(), at }, self.time, self.size);
            }
            Ok(None) => {
                memory.known.remove(&key);
                memory.miss(key, at, self.size);
            }
            Err(_) => {}
        }
        answer
    }
}

impl Memory {
    fn recall(&self, key: &Key, time: Duration) -> Option<Identity> {
        let known = self.known.get(key)?;
        (known.at.elapsed() < time && !ends_within(&known.identity, EXPIRY_MARGIN)).then(|| known.identity.clone())
    }

    /// Returns true if the session was unknown so often, and so lately, that the store is not asked.
    fn is_unknown(&self, key: &Key) -> bool {
        self.unknown.get(key).is_some_and(|miss| miss.count >= MISSES && miss.at.elapsed() < MISS_TIME)
    }

    fn miss(&mut self, key: Key, at: Instant, size: usize) {
        let before = self.unknown.get(&key).filter(|miss| miss.at.elapsed() < MISS_MEMORY);
        let count = before.map_or(0, |miss| miss.count).saturating_add(1);
        self.unknown.insert(key, Miss { count, at });
        self.misses.push_back((at, key));
        while let Some(&(at, key)) = self.misses.front() {
            if self.misses.len() <= size && at.elapsed() < MISS_MEMORY {
                break;
            }
            self.misses.pop_front();
            if self.unknown.get(&key).is_some_and(|miss| miss.at == at) {
                self.unknown.remove(&key);
            }
        }
    }

    fn remember(&mut self, key: Key, known: CachedSession, time: Duration, size: usize) {
        let at = known.at;
        self.known.insert(key, known);
        self.order.push_back((at, key));
        while let Some(&(at, key)) = self.order.front() {
            if self.order.len() <= size && at.elapsed() < time {
                break;
            }
            self.order.pop_front();
            if self.known.get(&key).is_some_and(|known| known.at == at) {
                self.known.remove(&key);
            }
        }
    }
}

fn ends_within(identity: &Identity, margin: Duration) -> bool {
    identity.expires.is_some_and(|at| at <= SystemTime::now() + margin)
}

#[cfg(test)]
mod tests {
    use futures_util::future::join_all;
    use tokio::sync::Semaphore;

    use super::*;

    /// A store that gives the same answer to each question, one for each permit.
    #[derive(Clone)]
    struct Double {
        asked: Arc<Mutex<Vec<String>>>,
        answer: Arc<Mutex<Answer>>,
        permits: Arc<Semaphore>,
    }

    impl Store for Double {
        async fn look_up(&self, question: &SessionQuestion) -> Answer {
            self.asked.lock().push(question.session.clone());
            self.permits.acquire().await.expect("the semaphore is never closed").forget();
            self.answer.lock().clone()
        }
    }

    const TIME: Duration = Duration::from_secs(30);

    fn cached(answer: Answer) -> Cached<Double> {
        let permits = Arc::new(Semaphore::new(1_000));
        let store = Double { asked: Arc::default(), answer: Arc::new(Mutex::new(answer)), permits };
        Cached::new(store, TIME, 3)
    }

    fn question(session: &str) -> SessionQuestion {
        SessionQuestion { session: session.into(), ip: None, agent: None }
    }

    fn in_seconds(seconds: f64) -> SystemTime {
        SystemTime::now() + Duration::from_secs_f64(seconds)
    }

    impl Cached<Double> {
        async fn user_of(&self, session: &str) -> Option<String> {
            self.look_up(question(session)).await.unwrap().and_then(|identity| identity.user)
        }

        fn count(&self) -> usize {
            self.store.asked.lock().len()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_valid_session_is_remembered_for_a_while() {
        let cached = cached(Ok(Some(Identity::user("7").expires(in_seconds(3_600.0)))));
        assert_eq!(cached.user_of("a").await.as_deref(), Some("7"));
        tokio::time::advance(TIME - Duration::from_millis(1)).await;
        assert_eq!(cached.user_of("a").await.as_deref(), Some("7"));
        assert_eq!(cached.count(), 1);
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(cached.user_of("a").await.as_deref(), Some("7"));
        assert_eq!(cached.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_was_closed_is_asked_for_again() {
        let cached = cached(Ok(Some(Identity::user("7").session("a"))));
        cached.user_of("a").await;
        cached.forget(Revoked::Session("b"));
        cached.user_of("a").await;
        assert_eq!(cached.count(), 1);
        for closed in [Revoked::Session("a"), Revoked::User("7")] {
            cached.forget(closed);
            let before = cached.count();
            cached.user_of("a").await;
            assert_eq!(cached.count(), before + 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_from_before_the_close_is_not_remembered() {
        let cached = cached(Ok(Some(Identity::user("7").session("a"))));
        cached.store.permits.forget_permits(1_000);
        let asking = tokio::spawn({
            let cached = cached.clone();
            async move { cached.user_of("a").await }
        });
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        assert_eq!(cached.count(), 1);
        cached.forget(Revoked::Session("a"));
        cached.store.permits.add_permits(2);
        assert_eq!(asking.await.ok().flatten().as_deref(), Some("7"));
        cached.user_of("a").await;
        assert_eq!(cached.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_question_from_before_a_close_is_not_shared() {
        let cached = cached(Ok(Some(Identity::user("7").session("a"))));
        cached.store.permits.forget_permits(1_000);
        let ask = || {
            let cached = cached.clone();
            tokio::spawn(async move { cached.user_of("a").await })
        };
        let before = [ask(), ask()];
        while cached.count() < 1 {
            tokio::task::yield_now().await;
        }
        cached.forget(Revoked::Session("another"));
        *cached.store.answer.lock() = Ok(None);
        let after = [ask(), ask()];
        while cached.count() < 2 {
            tokio::task::yield_now().await;
        }
        // The first question ends. Later callers still share the second.
        *cached.store.answer.lock() = Ok(Some(Identity::user("7")));
        cached.store.permits.add_permits(1);
        for asking in before {
            assert_eq!(asking.await.unwrap().as_deref(), Some("7"));
        }
        let late = ask();
        tokio::task::yield_now().await;
        tokio::task::yield_now().await;
        *cached.store.answer.lock() = Ok(None);
        cached.store.permits.add_permits(1);
        for asking in after.into_iter().chain([late]) {
            assert_eq!(asking.await.unwrap(), None);
        }
        assert_eq!(cached.count(), 2);
        assert!(cached.memory.lock().pending.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_unknown_again_and_again_is_asked_for_once_in_two_seconds() {
        let cached = cached(Ok(None));
        for _ in 0..1_000 {
            assert_eq!(cached.user_of("a").await, None);
        }
        assert_eq!(cached.count(), 3);
        tokio::time::advance(MISS_TIME).await;
        for _ in 0..1_000 {
            cached.user_of("a").await;
        }
        assert_eq!(cached.count(), 4);
        // The application's refresh after a login clears it.
        cached.forget(Revoked::Session("a"));
        *cached.store.answer.lock() = Ok(Some(Identity::user("7")));
        assert_eq!(cached.user_of("a").await.as_deref(), Some("7"));
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_unknown_sessions_are_cached_as_known_ones() {
        let cached = cached(Ok(None));
        for number in 0..100 {
            cached.user_of(&number.to_string()).await;
        }
        let memory = cached.memory.lock();
        assert_eq!((memory.unknown.len(), memory.misses.len()), (3, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_fresh_answer_is_asked_for_if_the_cached_one_is_too_old() {
        let cached = cached(Ok(Some(Identity::user("7"))));
        cached.user_of("a").await;
        tokio::time::advance(Duration::from_secs(10)).await;
        cached.look_up_within(question("a"), Duration::from_secs(11)).await.unwrap();
        assert_eq!(cached.count(), 1);
        cached.look_up_within(question("a"), Duration::from_secs(10)).await.unwrap();
        assert_eq!(cached.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_login_counts_at_once() {
        let cached = cached(Ok(None));
        assert_eq!(cached.user_of("a").await, None);
        *cached.store.answer.lock() = Ok(Some(Identity::user("7")));
        assert_eq!(cached.user_of("a").await.as_deref(), Some("7"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_ends_is_asked_for_again() {
        let cached = cached(Ok(Some(Identity::user("7").expires(in_seconds(4.5)))));
        assert_eq!(cached.user_of("a").await.as_deref(), Some("7"));
        *cached.store.answer.lock() = Ok(Some(Identity::user("7").expires(in_seconds(60.0))));
        assert_eq!(cached.user_of("a").await.as_deref(), Some("7"));
        assert_eq!(cached.count(), 2);
        assert_eq!(cached.user_of("a").await.as_deref(), Some("7"));
        assert_eq!(cached.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_that_has_run_out_is_none() {
        let cached = cached(Ok(Some(Identity::user("7").expires(in_seconds(0.0)))));
        assert_eq!(cached.user_of("a").await, None);
        assert_eq!(cached.user_of("a").await, None);
        assert_eq!(cached.count(), 2);
    }

    #[tokio::test(start_paused = true)]
    async fn callers_with_the_same_question_share_one_query() {
        let cached = cached(Ok(Some(Identity::user("7"))));
        let users = join_all((0..1_000).map(|_| cached.user_of("a"))).await;
        assert!(users.iter().all(|user| user.as_deref() == Some("7")));
        assert_eq!(cached.count(), 1);
        assert!(cached.memory.lock().pending.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn other_callers_are_answered_if_the_first_one_leaves() {
        let cached = cached(Ok(Some(Identity::user("7"))));
        cached.store.permits.forget_permits(1_000);
        let first = tokio::spawn({
            let cached = cached.clone();
            async move { cached.user_of("a").await }
        });
        tokio::task::yield_now().await;
        let second = cached.user_of("a");
        first.abort();
        cached.store.permits.add_permits(1);
        assert_eq!(second.await.as_deref(), Some("7"));
        assert_eq!(cached.count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_reaches_all_who_ask_and_is_not_remembered() {
        let cached = cached(Err(Outage::TimedOut(TIME).into()));
        let answers = join_all((0..3).map(|_| cached.look_up(question("a")))).await;
        assert!(answers.iter().all(Result::is_err));
        assert_eq!(cached.count(), 1);
        *cached.store.answer.lock() = Ok(Some(Identity::user("7")));
        assert_eq!(cached.user_of("a").await.as_deref(), Some("7"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_sessions_are_dropped() {
        let cached = cached(Ok(Some(Identity::user("7"))));
        for session in ["a", "b", "c", "d", "d"] {
            cached.user_of(session).await;
        }
        assert_eq!(cached.count(), 4);
        assert_eq!(cached.memory.lock().known.len(), 3);
        cached.user_of("b").await;
        assert_eq!(cached.count(), 4);
        cached.user_of("a").await;
        assert_eq!(cached.count(), 5);
        // Old entries are removed when the next one is added.
        tokio::time::advance(TIME).await;
        cached.user_of("e").await;
        assert_eq!(cached.memory.lock().known.len(), 1);
        assert_eq!(cached.memory.lock().order.len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn without_time_nothing_is_remembered() {
        let mut cached = cached(Ok(Some(Identity::user("7"))));
        cached.time = Duration::ZERO;
        cached.user_of("a").await;
        cached.user_of("a").await;
        assert_eq!(cached.count(), 2);
        assert!(cached.memory.lock().known.is_empty());
    }

    #[test]
    fn different_questions_have_different_keys() {
        let ip = Some("1.2.3.4".parse().unwrap());
        let questions = [
            question("ab"),
            question("a"),
            SessionQuestion { ip, ..question("a") },
            SessionQuestion { agent: Some("1.2.3.4".into()), ..question("a") },
            SessionQuestion { agent: Some(String::new()), ..question("a") },
            SessionQuestion { ip, agent: Some("b".into()), ..question("a") },
        ];
        let keys: std::collections::HashSet<Key> = questions.iter().map(SessionQuestion::key).collect();
        assert_eq!(keys.len(), questions.len());
    }
}
