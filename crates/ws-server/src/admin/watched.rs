//! Questions to the node that need no key. All requests at the same time share one question, so that strangers cannot
//! keep the node or its connections busy.

use std::{sync::Arc, time::Duration};

use tokio::{sync::Mutex, time::Instant};

use super::{Answer, Question, Service};

/// Time for which an answer is used again.
const FRESH: Duration = Duration::from_secs(1);

/// The last answer to one question. It is locked while the node is asked.
#[derive(Clone, Default)]
pub(super) struct Watched(Arc<Mutex<Option<(Instant, Answer)>>>);

impl Watched {
    /// Returns the last answer if it is at most a second old. Otherwise asks the node.
    pub(super) async fn ask(&self, service: &Arc<dyn Service>, path: &str) -> Answer {
        let mut kept = self.0.clone().lock_owned().await;
        if let Some((at, answer)) = &*kept
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let (service, question) = (service.clone(), Question::get(path));
        // A separate task asks, so that the others get the answer even if the first connection has ended.
        let asked = tokio::spawn(async move {
            let answer = service.ask(question).await;
            *kept = Some((Instant::now(), answer.clone()));
            answer
        });
        asked.await.unwrap_or_else(|_| super::unavailable(path, "the server cannot be asked"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;
    use http::StatusCode;
    use tokio::task::JoinSet;

    use super::*;
    use crate::admin::{Order, ServerState, answer};

    /// A node that hangs.
    #[derive(Default)]
    struct Hanging(AtomicUsize);

    #[async_trait]
    impl Service for Hanging {
        fn is_supervised(&self) -> bool {
            true
        }

        fn state(&self) -> ServerState {
            ServerState::starting(None)
        }

        fn order(&self, _: Order) -> Result<(), String> {
            Ok(())
        }

        fn trusted_proxies(&self) -> ws_cluster::TrustedProxies {
            ws_cluster::TrustedProxies::default()
        }

        async fn ask(&self, _: Question) -> Answer {
            self.0.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_secs(2)).await;
            answer::text(StatusCode::SERVICE_UNAVAILABLE, "it hangs")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_ask_at_the_same_time_share_one_question() {
        let (watched, node) = (Watched::default(), Arc::new(Hanging::default()));
        let service: Arc<dyn Service> = node.clone();
        let ask = || {
            let (watched, service) = (watched.clone(), service.clone());
            async move { watched.ask(&service, "/health").await }
        };
        // The first one is gone before the answer comes.
        let gone = tokio::spawn(ask());
        tokio::task::yield_now().await;
        gone.abort();
        let mut all: JoinSet<_> = (0..100).map(|_| ask()).collect();
        while let Some(answer) = all.join_next().await {
            assert_eq!(answer.unwrap().status(), StatusCode::SERVICE_UNAVAILABLE);
        }
        assert_eq!(node.0.load(Ordering::Relaxed), 1);
        tokio::time::advance(FRESH).await;
        ask().await;
        assert_eq!(node.0.load(Ordering::Relaxed), 2, "the answer is kept for a while only");
    }
}
