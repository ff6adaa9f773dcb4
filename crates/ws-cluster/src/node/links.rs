//! Links of this node: dialled, accepted, run until their end, and the dial to the own address.

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
    link::{self, Link, LinkError, Purpose},
};
use crate::io::Stream;
use ws_cluster_core::{LinkId, NodeId};

/// Room of a link's queue beside what the log holds.
const QUEUE_ROOM: usize = 16 * 1024 * 1024;
/// Time between two tries of a node to reach itself.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

impl Driver {
    pub(super) fn dial(&self, node: NodeId, address: String) {
        let Some(events) = self.events.upgrade() else { return };
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let limit = shared.config.cluster.heartbeat_timeout;
            let dialled = timeout(limit, link::dial(&address, Some(node), Purpose::Node, &shared.identity));
            // A dial that panics is one that fails: the core waits for its outcome.
            let dialled = AssertUnwindSafe(dialled).catch_unwind().await;
            let panicked = |_| Ok(Err(LinkError::Broken("the dial panicked".into())));
            match dialled.unwrap_or_else(panicked).unwrap_or(Err(LinkError::Silent)) {
                Ok((peer, link)) => {
                    // It dials back from there.
                    link.remote_ip().into_iter().for_each(|ip| shared.greetings.know(ip));
                    run_link(&events, &shared, peer, true, link).await;
                }
                Err(error) => drop(events.send(Event::DialFailed { node, address, error }).await),
            }
        });
    }
}

/// Runs a link that was proved, and tells the driver of its frames and its end.
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
    if events.send(Event::LinkUp { link, peer, dialled, outgoing }).await.is_err() {
        return;
    }
    let cluster = &shared.config.cluster;
    let arrived = |frames| {
        let events = events.clone();
        async move { events.send(Event::Frames(link, frames)).await.is_ok() }
    };
    let ended = link::run(proved, waiting, cluster.heartbeat_interval, cluster.heartbeat_timeout, arrived).await;
    match ended {
        Ok(()) => tracing::info!(?peer, "a link ended"),
        Err(error) => tracing::warn!(?peer, %error, "a link was lost"),
    }
    drop(end);
}

/// Tells the driver that a link has ended when it is dropped, also by a panic of the link's task: the core would take
/// the link for a living one for ever.
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

/// Dials the own address until this node answers there. Another's answer is a conflict that only people can solve.
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
