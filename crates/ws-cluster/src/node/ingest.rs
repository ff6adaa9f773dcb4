//! What a node takes in from publishers outside of the cluster, on the links that they dialled.

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

/// Publishes of one publisher whose outcomes are not on their way to it; its next requests wait for them.
const OUTCOMES: usize = 1024;

/// A node's end: submits what comes in its order, and answers as each is accepted.
pub(crate) async fn serve<S: Stream>(cluster: &Cluster, link: Link<S>) {
    let (mut writer, mut reader) = link.split();
    // `None` answers a heartbeat.
    let (outcomes, mut answers) = mpsc::channel::<Option<Outcome>>(OUTCOMES);
    let places = Arc::new(Semaphore::new(OUTCOMES));
    // A publisher is not told of the node's settings: its own are the defaults.
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
            // Publishers send heartbeats; one that does not is gone.
            let packet = match timeout(silence, reader.read()).await {
                Ok(Ok(Some(packet))) => packet,
                Ok(Ok(None)) => return Ok(()),
                Ok(Err(error)) => return Err(error),
                Err(_) => return Err(LinkError::Silent),
            };
            if packet.is_empty() {
                // A full channel has outcomes in it, by which the publisher hears of this node as well.
                let _ = outcomes.try_send(None);
                continue;
            }
            let Publish { id, content, key } = Publish::decode(packet)?;
            let Ok(place) = places.clone().acquire_owned().await else { return Ok(()) };
            let checked = publish::check(&content, key.as_deref());
            // Copied: the message's buffer is larger, and the log keeps what it is given.
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
                drop(place);
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

    /// Has no clients.
    struct Nobody;

    impl DeliverySink for Nobody {
        fn deliver(&self, _: Delivery) {}
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
        let settings = Settings { node, cluster, address: None, keys: Vec::new(), config, pool };
        let cluster = start(settings, Arc::new(Nobody)).await.unwrap();
        let [_publisher, link] = pair().await;
        let start = Instant::now();
        serve(&cluster, link).await;
        assert_eq!(start.elapsed(), Duration::from_secs(3));
    }
}
