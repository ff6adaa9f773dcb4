//! The link of a publisher to a node.

use std::{collections::HashMap, time::Duration};

use bytes::Bytes;
use prost::Message as _;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, interval, timeout},
};
use ws_cluster_core::ClusterConfig;

use super::ConnectError;
use crate::{
    PublishError,
    message::publish,
    node::{
        codec::{Outcome, Publish},
        link::{self, Dialled, LinkError, LinkIdentity, Purpose, log_publisher_loss},
    },
};

/// Time for one node to answer a dial, before the next is tried.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

/// A publish to send over a link.
pub(super) struct Request {
    pub(super) content: Bytes,
    pub(super) key: Bytes,
    pub(super) outcome: oneshot::Sender<Result<(), PublishError>>,
}

/// Dials the node at an address.
pub(super) async fn reach(address: &str, identity: &LinkIdentity) -> Result<Dialled, ConnectError> {
    let dialled = link::dial(address, None, Purpose::Publisher, identity);
    let address = address.to_owned();
    match timeout(DIAL_TIMEOUT, dialled).await.unwrap_or(Err(LinkError::Silent)) {
        Ok((_, link)) => Ok(link),
        Err(LinkError::Mismatch(why)) => Err(ConnectError::Refused { address, why }),
        Err(why) => Err(ConnectError::Unreachable { address, why: why.to_string() }),
    }
}

/// Runs the publisher's side of its link. It ends when the link or all publishers are gone, or when the node is silent
/// for the time after which a link between nodes counts as dead. That is shorter than a publish waits, so another node
/// may still take the publish.
pub(super) async fn run(link: Dialled, mut requests: mpsc::Receiver<Request>) {
    let ClusterConfig { heartbeat_interval, heartbeat_timeout, .. } = ClusterConfig::default();
    let (mut writer, mut reader) = link.split();
    let mut open: HashMap<u64, oneshot::Sender<Result<(), PublishError>>> = HashMap::new();
    let mut last = 0;
    let mut beat = interval(heartbeat_interval);
    let mut last_heard = Instant::now();
    loop {
        tokio::select! {
            request = requests.recv() => {
                let Some(Request { content, key, outcome }) = request else { break };
                last += 1;
                open.insert(last, outcome);
                let publish = Publish { id: last, content, key: Some(key), drain: false };
                if !matches!(timeout(heartbeat_timeout, writer.write(&publish)).await, Ok(Ok(()))) {
                    break;
                }
            }
            _ = beat.tick() => {
                // The node answers each heartbeat.
                let written = timeout(heartbeat_timeout, writer.write_heartbeat());
                if last_heard.elapsed() >= heartbeat_timeout || !matches!(written.await, Ok(Ok(()))) {
                    break;
                }
            }
            packet = reader.read() => {
                last_heard = Instant::now();
                let packet = match packet {
                    Ok(Some(packet)) => packet,
                    Ok(None) => break,
                    Err(error) => {
                        log_publisher_loss(&error);
                        break;
                    }
                };
                if packet.is_empty() {
                    continue;
                }
                let Ok(outcome) = Outcome::decode(packet) else { break };
                if let Some(sender) = open.remove(&outcome.id) {
                    let _ = sender.send(publish::outcome(outcome.error, &outcome.text));
                }
            }
        }
    }
    // The dropped senders tell their publishes to try another node.
    drop((open, requests));
    // A node that is gone need not get the close frame.
    let _ = timeout(heartbeat_timeout, writer.close()).await;
}
