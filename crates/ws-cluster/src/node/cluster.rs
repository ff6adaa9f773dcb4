//! The rest of the node's handle on its cluster, and the start of the node.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, SocketAddr},
    sync::{Arc, atomic::AtomicU64},
    time::Instant,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::timeout,
};

use super::{
    CoreView, DeliverySink, Failure, LinkLogCause, Settings, Shared, Told,
    codec::Note,
    driver::{Driver, Event, Publish, WaitingCaller},
    greetings::Greetings,
    ingest,
    link::{self, Keys, LinkError, LinkIdentity, Purpose},
    links::{probe_self, run_link},
};
use crate::{
    clock::now,
    error::{PublishError, StartError},
    io::Stream,
    log_limit::{Excerpt, LogLimits},
    message::content::Content,
    pool::PoolError,
};
use ws_cluster_core::{Core, Degraded, NodeId, Status};

/// Maximum number of events that wait for the core. A sender beyond that waits.
const MAX_EVENTS: usize = 4096;

/// A handle on the running driver. The driver ends after its shutdown, or when the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Cluster {
    events: mpsc::Sender<Event>,
    status: watch::Receiver<Status>,
    failure: watch::Receiver<Option<Failure>>,
    view: Arc<Mutex<CoreView>>,
    pub(super) shared: Arc<Shared>,
}

/// Tells other nodes something, as long as the node runs.
pub(crate) struct Teller {
    events: mpsc::WeakSender<Event>,
    node: NodeId,
}

impl Teller {
    /// Sends a note to a node, or to all if there is none. Nothing says that it arrives. Returns false if the node has
    /// ended.
    pub(crate) async fn tell(&self, to: Option<NodeId>, content: Bytes) -> bool {
        let Some(events) = self.events.upgrade() else { return false };
        let bytes = |node: NodeId| Bytes::copy_from_slice(node.as_bytes());
        let note = Note { origin: bytes(self.node), to: to.map(bytes).unwrap_or_default(), relayed: false, content };
        events.send(Event::Tell(note)).await.is_ok()
    }
}

/// Publishes rows of an outbox, as long as the node runs.
pub(crate) struct Submitter {
    events: mpsc::WeakSender<Event>,
    status: watch::Receiver<Status>,
    shared: Arc<Shared>,
}

impl Submitter {
    /// Passes publishes with their idempotency keys to the core, in this order. None is taken after `not_after`, and none
    /// is taken after one that was not. Each receiver gets the outcome, or the error that the time limit is over. Returns
    /// `None` if the node has ended.
    pub(crate) async fn submit_all(
        &self,
        publishes: Vec<(Bytes, Bytes)>,
        not_after: Instant,
    ) -> Option<Vec<oneshot::Receiver<Result<(), PublishError>>>> {
        let events = self.events.upgrade()?;
        let publish = |(content, key)| Publish::new(&self.shared, content, Some(key));
        let (publishes, acceptances) = publishes.into_iter().map(publish).unzip();
        events.send(Event::PublishRows { publishes, not_after }).await.ok()?;
        Some(acceptances)
    }

    /// Returns true if this node has delivered the row of an outbox that this key stands for. It remembers only the last
    /// ones, but those for as long as it runs.
    pub(crate) fn has_delivered(&self, key: &Bytes) -> bool {
        self.shared.delivered_keys.lock().contains(key)
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    pub(crate) fn node(&self) -> NodeId {
        self.shared.identity.node
    }

    /// Returns the name of the cluster.
    pub(crate) fn name(&self) -> &str {
        &self.shared.identity.cluster
    }
}

impl Publish {
    /// Makes a publish for the driver, and what receives its outcome. It waits for at most the publish's time limit.
    fn new(shared: &Shared, content: Bytes, key: Option<Bytes>) -> (Self, oneshot::Receiver<Result<(), PublishError>>) {
        let (accepted, acceptance) = oneshot::channel();
        let since = now();
        let until = since + shared.config.cluster.publish_timeout;
        let (origin, counter) = (shared.identity.node, tracing::field::Empty);
        let span = tracing::debug_span!("publish", ?origin, counter, size = content.len());
        (Self { content, key, waiting: WaitingCaller { accepted, since, until, span } }, acceptance)
    }
}

impl Cluster {
    /// Returns what publishes rows of an outbox. It does not keep the node running.
    pub(crate) fn submitter(&self) -> Submitter {
        Submitter { events: self.events.downgrade(), status: self.status.clone(), shared: self.shared.clone() }
    }

    /// Returns what tells other nodes something. It does not keep the node running.
    pub(crate) fn teller(&self) -> Teller {
        Teller { events: self.events.downgrade(), node: self.shared.identity.node }
    }

    /// Returns what the driver last showed of the core.
    pub(crate) fn view(&self) -> CoreView {
        self.view.lock().clone()
    }

    /// Returns the address at which other nodes reach this one.
    pub(crate) fn address(&self) -> &str {
        &self.shared.address
    }

    /// Publishes a message and waits until it is accepted, at most for the publish's time limit.
    pub(crate) async fn publish(&self, content: &Content, key: Option<Bytes>) -> Result<(), PublishError> {
        let limit = self.shared.config.cluster.publish_timeout;
        // Once submitted, the driver watches the deadline, so a publish needs no timer of its own.
        let submitted = timeout(limit, self.submit(content.encode(), key)).await;
        submitted.unwrap_or(Err(PublishError::OutcomeUnknown))?.await.unwrap_or(Err(PublishError::OutcomeUnknown))
    }

    /// Passes a publish to the core, in the order of the calls. The receiver gets its acceptance, or the error that the
    /// time limit is over.
    pub(crate) async fn submit(
        &self,
        content: Bytes,
        key: Option<Bytes>,
    ) -> Result<oneshot::Receiver<Result<(), PublishError>>, PublishError> {
        let (publish, acceptance) = Publish::new(&self.shared, content, key);
        self.events.send(Event::Publish(publish)).await.map_err(|_| PublishError::ShuttingDown)?;
        Ok(acceptance)
    }

    /// Publishes messages together, in their order, and waits until each of them is accepted or fails. What failed
    /// already keeps its error.
    pub(crate) async fn publish_all(
        &self,
        contents: Vec<Result<(Content, Option<Bytes>), PublishError>>,
    ) -> Vec<Result<(), PublishError>> {
        let mut publishes = Vec::with_capacity(contents.len());
        let acceptances: Vec<_> = contents
            .into_iter()
            .map(|content| {
                let (content, key) = content?;
                let (publish, acceptance) = Publish::new(&self.shared, content.encode(), key);
                publishes.push(publish);
                Ok(acceptance)
            })
            .collect();
        let limit = self.shared.config.cluster.publish_timeout;
        let failure = match publishes.len() {
            0 => None,
            // One event, so that all of them enter the order and are delivered together.
            _ => match timeout(limit, self.events.send(Event::PublishAll(publishes))).await {
                Ok(Ok(())) => None,
                Ok(Err(_)) => Some(PublishError::ShuttingDown),
                Err(_) => Some(PublishError::OutcomeUnknown),
            },
        };
        let mut outcomes = Vec::with_capacity(acceptances.len());
        for acceptance in acceptances {
            outcomes.push(match (acceptance, &failure) {
                (Err(error), _) => Err(error),
                (Ok(_), Some(failure)) => Err(failure.clone()),
                (Ok(acceptance), None) => acceptance.await.unwrap_or(Err(PublishError::OutcomeUnknown)),
            });
        }
        outcomes
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Resolves once this node accepts clients, and never after its end.
    pub(crate) async fn ready(&self) {
        if self.status().wait_for(|status| status.ready).await.is_err() {
            std::future::pending().await
        }
    }

    /// Resolves with the reason if this node cannot continue.
    pub(crate) async fn failure(&self) -> Failure {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone()) {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// Serves one accepted link of another node or a publisher, on an upgraded stream, until the link ends. `ip`: the
    /// peer's address, if it tells peers apart. `from`: the address at the other end of the socket.
    pub(crate) async fn serve_link(&self, stream: Box<dyn Stream>, ip: Option<IpAddr>, from: Option<SocketAddr>) {
        if !self.shared.driver_works() {
            // The peer tries another node, or elects one.
            return;
        }
        let (mut greeting, full) = self.shared.greetings.begin(ip);
        if full && let Some(line) = self.shared.logs.due(LinkLogCause::Dropped, now()) {
            let (ip, left_out) = (ip.map(tracing::field::display), line.left_out);
            tracing::warn!(ip, left_out, "too many links wait for a proof of the key: the oldest are dropped");
        }
        let limit = self.shared.config.links.greeting_timeout;
        let accepted = tokio::select! {
            // Twice the limit: the dialler sends two messages, and has to read ours in between.
            accepted = timeout(2 * limit, link::accept(stream, &self.shared.identity, limit)) => {
                accepted.unwrap_or(Err(LinkError::Silent))
            }
            () = greeting.dropped() => return,
        };
        match &accepted {
            Ok(Some(_)) => greeting.prove(),
            _ => drop(greeting),
        }
        match accepted {
            Ok(None) => {}
            Ok(Some((_, Purpose::Publisher, link))) => ingest::serve(self, link).await,
            Ok(Some((peer, _, link))) => run_link(&self.events, &self.shared, peer, false, link).await,
            Err(error) => {
                if let Some(line) = self.shared.logs.due(LinkLogCause::Refused, now()) {
                    let (ip, from) = (ip.map(tracing::field::display), from.map(tracing::field::display));
                    let (error, left_out) = (error.to_string(), line.left_out);
                    tracing::warn!(from, ip, error = %Excerpt(&error), left_out, "a link was refused");
                }
            }
        }
    }

    /// Notes that somebody with the key wants this node to shut down.
    pub(super) fn request_drain(&self) {
        if !self.shared.drain_requested.send_replace(true) {
            tracing::info!("this node is asked over a link to shut down");
        }
    }

    /// Resolves once somebody has asked this node to shut down.
    pub(crate) async fn drain_requested(&self) {
        let mut requested = self.shared.drain_requested.subscribe();
        if requested.wait_for(|requested| *requested).await.is_err() {
            std::future::pending().await
        }
    }

    /// Reports the node as not ready, since it shuts down soon. It works until then.
    pub(crate) async fn drain(&self) {
        // An error means that the driver has ended already.
        let _ = self.events.send(Event::Drain).await;
    }

    /// Waits until the driver has handled all events so far. Returns false if it is gone.
    pub(crate) async fn probe(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.events.send(Event::Probe(answer)).await.is_ok() && answered.await.is_ok()
    }

    /// Passes on what the cluster needs from this node, and leaves the pool.
    pub(crate) async fn shut_down(&self) {
        let (done, through) = oneshot::channel();
        if self.events.send(Event::ShutDown(done)).await.is_ok() {
            // An error means that an earlier shutdown has finished.
            let _ = through.await;
        }
    }
}

/// Starts the node, which joins or founds the cluster in the background. Notes of other nodes go to `told`.
pub(crate) async fn start(
    settings: Settings,
    hub: Arc<dyn DeliverySink>,
    told: mpsc::Sender<Told>,
) -> Result<Cluster, StartError> {
    let Settings { node, cluster, address, keys, config, pool, stats } = settings;
    // A cluster without a key has one node, which is never dialled.
    let is_dialled = address.is_some() && !keys.is_empty();
    let address = match address {
        Some(address) => address,
        // The pool is not shared, so there is no other node to dial this address.
        None if !pool.is_shared() => format!("ws://{node}.invalid"),
        None => return Err(StartError::NoAddress),
    };
    if keys.is_empty() && pool.is_shared() {
        return Err(StartError::NoKey);
    }
    match timeout(config.cluster.query_timeout, pool.prepare()).await {
        Ok(Err(error @ PoolError::Url(_))) => return Err(error.into()),
        Ok(Err(error)) => tracing::warn!(%error, "the pool is not ready; it is tried again"),
        Err(_) => tracing::warn!("the pool's database does not answer; it is tried again"),
        Ok(Ok(())) => {}
    }
    let (events, received) = mpsc::channel(MAX_EVENTS);
    let (status, status_receiver) = watch::channel(Status::default());
    let (failure, failure_receiver) = watch::channel(None);
    let failure = Arc::new(failure);
    let identity = LinkIdentity { node, cluster, keys: Keys::new(keys) };
    let greetings = Greetings::new(config.links.greetings, config.links.greetings_per_ip);
    let shared = Arc::new(Shared {
        identity,
        address: address.clone(),
        greetings,
        config,
        next_link: AtomicU64::new(1),
        logs: LogLimits::default(),
        drain_requested: watch::Sender::new(false),
        stats: stats.clone(),
        delivered_keys: Mutex::default(),
        ticked_at: Mutex::new(now()),
    });
    let view = Arc::default();
    if is_dialled {
        tokio::spawn(probe_self(address.clone(), shared.clone(), failure.clone()));
    }
    let core = Core::new(now(), node, address.clone(), shared.config.cluster.clone(), shared.config.log.clone());
    tracing::info!(%node, address, cluster = shared.identity.cluster, "starting");
    let driver = Driver {
        core,
        pool,
        hub,
        status: Arc::new(status),
        presented: Status::default(),
        events: events.downgrade(),
        shared: shared.clone(),
        links: HashMap::new(),
        unreachable: HashSet::new(),
        failure: failure_receiver.clone(),
        cause: None,
        cause_limits: LogLimits::default(),
        waiting: HashMap::new(),
        draining: false,
        leaving: Vec::new(),
        ended: false,
        stats,
        told,
        view: Arc::clone(&view),
    };
    let (stopped, hub) = (driver.status.clone(), driver.hub.clone());
    tokio::spawn(async move {
        if tokio::spawn(driver.run(received)).await.is_err() {
            // The node cannot work without its driver, so its clients are sent to other nodes. The log line comes last,
            // since the log may be what panicked.
            stopped.send_modify(|status| {
                (status.ready, status.master, status.degraded) = (false, None, Some(Degraded::Stopped));
            });
            hub.cut_off();
            failure.send_replace(Some(Failure::Stopped));
            tracing::error!("the task that runs the cluster panicked: this node stops, and its clients go elsewhere");
        }
    });
    Ok(Cluster { events, status: status_receiver, failure: failure_receiver, view, shared })
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::sync::Notify;

    use super::*;
    use crate::{
        Config, Target,
        node::{Delivery, DeliverySink},
        pool::MemoryPool,
    };
    use ws_cluster_core::{LogPosition, Seq};

    /// A sink that panics when it gets a message, and notes that the clients are sent away.
    #[derive(Default)]
    struct Panicking(Notify);

    impl DeliverySink for Panicking {
        fn deliver(&self, deliveries: Vec<Delivery>) {
            assert!(deliveries.iter().all(|delivery| delivery.content.is_none()), "as the test wants it");
        }
        fn write(&self) {}
        fn trimmed(&self, _: Seq) {}
        fn cut(&self, _: Seq) {}
        fn restarted(&self, _: Option<LogPosition>, _: bool) {}
        fn tick(&self) {}
        fn cut_off(&self) {
            self.0.notify_one();
        }
    }

    #[tokio::test]
    async fn a_driver_that_panics_takes_the_node_out_of_service() {
        let hub = Arc::new(Panicking::default());
        let settings = Settings {
            node: NodeId::from_bytes([7; 16]),
            cluster: "default".into(),
            address: None,
            keys: Vec::new(),
            config: Config::default(),
            pool: Arc::new(MemoryPool::default()),
            stats: Arc::default(),
        };
        let cluster = start(settings, hub.clone(), mpsc::channel(1).0).await.unwrap();
        let mut status = cluster.status();
        status.wait_for(|status| status.ready).await.unwrap();
        let message =
            Content::Message { target: Target::all(), action: "a".into(), details: "[]".into(), volatile: false };
        let published = cluster.publish(&message, None).await;
        assert_eq!(published, Err(PublishError::OutcomeUnknown));
        assert_eq!(cluster.failure().await, Failure::Stopped);
        hub.0.notified().await;
        let status = status.wait_for(|status| !status.ready).await.unwrap();
        assert_eq!(status.degraded, Some(Degraded::Stopped));
        assert_eq!(cluster.ready().now_or_never(), None, "it never becomes ready again");
    }

    /// A sink that keeps the driver's thread when it gets a message, until it is released.
    struct Blocking {
        entered: Notify,
        released: std::sync::Barrier,
    }

    impl DeliverySink for Blocking {
        fn deliver(&self, deliveries: Vec<Delivery>) {
            if deliveries.iter().any(|delivery| delivery.content.is_some()) {
                self.entered.notify_one();
                self.released.wait();
            }
        }
        fn write(&self) {}
        fn trimmed(&self, _: Seq) {}
        fn cut(&self, _: Seq) {}
        fn restarted(&self, _: Option<LogPosition>, _: bool) {}
        fn tick(&self) {}
        fn cut_off(&self) {}
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 3)]
    async fn a_driver_that_hangs_does_not_answer() {
        let hub = Arc::new(Blocking { entered: Notify::new(), released: std::sync::Barrier::new(2) });
        let settings = Settings {
            node: NodeId::from_bytes([7; 16]),
            cluster: "default".into(),
            address: None,
            keys: Vec::new(),
            config: Config::default(),
            pool: Arc::new(MemoryPool::default()),
            stats: Arc::default(),
        };
        let cluster = start(settings, hub.clone(), mpsc::channel(1).0).await.unwrap();
        cluster.status().wait_for(|status| status.ready).await.unwrap();
        assert!(cluster.probe().await);
        let message =
            Content::Message { target: Target::all(), action: "a".into(), details: "[]".into(), volatile: false };
        let acceptance = cluster.submit(message.encode(), None).await.unwrap();
        hub.entered.notified().await;
        let probe = tokio::spawn({
            let cluster = cluster.clone();
            async move { cluster.probe().await }
        });
        // The probe waits for the driver, even if the runtime has other work.
        assert!(timeout(std::time::Duration::from_millis(100), cluster.probe()).await.is_err());
        hub.released.wait();
        assert!(probe.await.unwrap());
        acceptance.await.unwrap().unwrap();
    }
}
