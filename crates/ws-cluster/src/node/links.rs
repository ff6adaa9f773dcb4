//! The links of this node: dialled or accepted, run until their end, and the probe of the node's own address.

use std::{
    panic::AssertUnwindSafe,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use super::{
    Failure, Shared,
    driver::{Driver, Event},
    link::{self, Heartbeat, Link, LinkError, Purpose},
};
use crate::io::Stream;
use ws_cluster_core::{LinkId, NodeId};

/// Size that a link's queue may have beyond the log's size, in bytes.
const QUEUE_ROOM: usize = 16 * 1024 * 1024;
/// Time between two attempts of a node to reach itself.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) fn dial(&self, node: NodeId, address: String) {
        let Some(events) = self.events.upgrade() else { return };
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let limit = shared.config.cluster.heartbeat_timeout;
            let dialled = timeout(limit, link::dial(&address, Some(node), Purpose::Node, &shared.identity));
            // A dial that panics counts as failed, because the core waits for the outcome.
            let dialled = AssertUnwindSafe(dialled).catch_unwind().await;
            let panicked = |_| Ok(Err(LinkError::Broken("the dial panicked".into())));
            match dialled.unwrap_or_else(panicked).unwrap_or(Err(LinkError::Silent)) {
                Ok((peer, link)) => {
                    // The peer will dial from this address too.
                    link.remote_ip().into_iter().for_each(|ip| shared.greetings.remember(ip));
                    run_link(&events, &shared, peer, true, link).await;
                }
                Err(error) => drop(events.send(Event::DialFailed { node, address, error }).await),
            }
        });
    }
}

/// Runs a proved link, and reports its frames and its end to the driver.
pub(super) async fn run_link<S: Stream>(
    events: &mpsc::Sender<Event>,
    shared: &Shared,
    peer: NodeId,
    dialled: bool,
    proved: Link<S>,
) {
    let link = shared.next_link.fetch_add(1, Ordering::Relaxed);
    let (outgoing, waiting) = link::queue(shared.config.log.size + QUEUE_ROOM);
    let end = LinkEnd { link, events: events.clone() };
    if events.send(Event::LinkUp { link, peer, dialled, sender: outgoing }).await.is_err() {
        return;
    }
    let cluster = &shared.config.cluster;
    let arrived = |frames, notes| {
        let events = events.clone();
        async move { events.send(Event::Arrived { link, frames, notes }).await.is_ok() }
    };
    let beat = Heartbeat { interval: cluster.heartbeat_interval, works: || shared.driver_works() };
    let ended = link::run(proved, waiting, beat, cluster.heartbeat_timeout, arrived).await;
    match ended {
        Ok(()) => tracing::info!(?peer, "a link ended"),
        Err(error) => tracing::warn!(?peer, %error, "a link was lost"),
    }
    drop(end);
}

/// Reports the end of a link to the driver when dropped. This also happens if the link's task panics; otherwise the
/// core would treat the link as alive for ever.
struct LinkEnd {
    link: LinkId,
    events: mpsc::Sender<Event>,
}

impl Drop for LinkEnd {
    fn drop(&mut self) {
        let down = Event::LinkDown(self.link);
        if let Err(mpsc::error::TrySendError::Full(down)) = self.events.try_send(down)
            && let Ok(runtime) = Handle::try_current()
        {
            let events = self.events.clone();
            runtime.spawn(async move { events.send(down).await });
        }
    }
}

/// Dials this node's own address until this node answers there. If another node answers, the addresses conflict, which
/// an administrator has to solve.
pub(super) async fn probe_self(address: String, shared: Arc<Shared>, failure: Arc<watch::Sender<Option<Failure>>>) {
    loop {
        let probed = link::dial(&address, None, Purpose::Probe, &shared.identity);
        match timeout(shared.config.cluster.heartbeat_timeout, probed).await.unwrap_or(Err(LinkError::Silent)) {
            Ok((node, _)) if node == shared.identity.node => return,
            Ok((node, _)) => {
                tracing::error!(address, other = %node, "another node answers at this node's address");
                failure.send_replace(Some(Failure::AddressTaken(address)));
                return;
            }
            Err(LinkError::Mismatch(why)) => {
                tracing::error!(address, why, "a node of another cluster answers at this node's address");
                failure.send_replace(Some(Failure::AddressTaken(address)));
                return;
            }
            Err(error) => tracing::warn!(address, %error, "this node does not reach itself at its own address"),
        }
        tokio::select! {
            () = sleep(PROBE_INTERVAL) => {}
            () = failure.closed() => return,
        }
    }
}
