//! Serves the publishers outside of the cluster, on the links that they dialled.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use tokio::{
    sync::{Semaphore, mpsc},
    time::timeout,
};

use super::{
    Cluster,
    codec::{Outcome, Publish},
    link::{Link, LinkError, log_publisher_loss},
};
use crate::{ClusterConfig, error::PublishError, io::Stream, message::publish};

/// Maximum number of publishes of one publisher whose outcomes have not been sent. The publisher's next requests wait.
const MAX_OUTCOMES: usize = 1024;

/// Submits what a publisher sends, in its order, and answers as each publish is settled.
pub(crate) async fn serve<S: Stream>(cluster: &Cluster, link: Link<S>) {
    let (mut writer, mut reader) = link.split();
    // `None` answers a heartbeat.
    let (outcomes, mut answers) = mpsc::channel::<Option<Outcome>>(MAX_OUTCOMES);
    let slots = Arc::new(Semaphore::new(MAX_OUTCOMES));
    // The publisher does not know this node's settings, so it uses the default interval.
    let interval = ClusterConfig::default().heartbeat_interval;
    let silence = cluster.shared.config.cluster.heartbeat_timeout.max(2 * interval);
    let answering = async {
        while let Some(answer) = answers.recv().await {
            match answer {
                Some(outcome) => writer.write(&outcome).await?,
                None => writer.write_heartbeat().await?,
            }
        }
        Ok(())
    };
    let reading = async {
        loop {
            // Publishers send heartbeats, so a silent publisher is gone.
            let packet = match timeout(silence, reader.read()).await {
                Ok(Ok(Some(packet))) => packet,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(LinkError::Silent),
            };
            if packet.is_empty() {
                // If the channel is full, the outcomes in it tell the publisher that this node is alive.
                let _ = outcomes.try_send(None);
                continue;
            }
            let Publish { id, content, key, drain } = Publish::decode(packet)?;
            if drain {
                cluster.request_drain();
                if outcomes.send(Some(Outcome { id, ..Outcome::default() })).await.is_err() {
                    return Ok(());
                }
                continue;
            }
            let Ok(slot) = slots.clone().acquire_owned().await else { return Ok(()) };
            let checked = publish::check(&content, key.as_deref());
            // The buffers are copied, because the link's buffer is larger and the log keeps what it gets.
            let (content, key) = (Bytes::copy_from_slice(&content), key.as_deref().map(Bytes::copy_from_slice));
            let submitted = match checked {
                Ok(()) => cluster.submit(content, key).await,
                Err(error) => Err(error),
            };
            let outcomes = outcomes.clone();
            tokio::spawn(async move {
                let outcome = match submitted {
                    Ok(acceptance) => acceptance.await.unwrap_or(Err(PublishError::OutcomeUnknown)),
                    Err(error) => Err(error),
                };
                let (error, text) = publish::encode_outcome(&outcome);
                let _ = outcomes.send(Some(Outcome { id, error, text })).await;
                drop(slot);
            });
        }
    };
    let ended: Result<(), LinkError> = tokio::select! {
        ended = reading => ended,
        ended = answering => ended,
    };
    if let Err(error) = ended {
        log_publisher_loss(&error);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;
    use ws_cluster_core::{LogPosition, NodeId, Seq};

    use super::*;
    use crate::{
        Config, MemoryPool,
        node::{Delivery, DeliverySink, Settings, link::pair, start},
    };

    /// A sink without clients.
    struct Nobody;

    impl DeliverySink for Nobody {
        fn deliver(&self, _: Vec<Delivery>) {}
        fn write(&self) {}
        fn trimmed(&self, _: Seq) {}
        fn cut(&self, _: Seq) {}
        fn restarted(&self, _: Option<LogPosition>, _: bool) {}
        fn tick(&self) {}
        fn cut_off(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_publisher_is_gone_after_the_heartbeat_timeout_of_the_node() {
        let mut config = Config::default();
        config.cluster.heartbeat_timeout = Duration::from_secs(3);
        let pool = Arc::new(MemoryPool::default());
        let (node, cluster) = (NodeId::from_bytes([7; 16]), "default".into());
        let settings = Settings { node, cluster, address: None, keys: Vec::new(), config, pool, stats: Arc::default() };
        let cluster = start(settings, Arc::new(Nobody), mpsc::channel(1).0).await.unwrap();
        let [_publisher, link] = pair().await;
        let start = Instant::now();
        serve(&cluster, link).await;
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }
}
