//! Feeds the core: one task owns it, carries out what it says (frames, dials, queries, deliveries) and passes in
//! what came of it. Nothing is decided here.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    panic::AssertUnwindSafe,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;
use tokio::{
    runtime::Handle,
    sync::{mpsc, oneshot, watch},
    time::{sleep, sleep_until, timeout},
};

use crate::{
    cluster::{Answer, Core, Frame, LinkId, NodeId, Output, Place, Proposal, Query, Seq, Ticket},
    config::Config,
    connection::Stream,
    error::{PublishError, StartError},
    greetings::Greetings,
    link::{self, Keys, Link, LinkError, Outgoing, Passport, Purpose},
    log_limit::{Excerpt, LogLimits},
    pool::{Pool, PoolError},
    publisher,
    wire::content::Content,
};

pub use crate::cluster::{NodeStatus, Status};

/// Events that wait for the core; whoever has more waits.
const EVENTS: usize = 4096;
/// Events that are passed in before the outputs are carried out: what gathers goes out together.
const BATCH: usize = 256;
/// Room of a link's queue beside what the log holds.
const QUEUE_ROOM: usize = 16 * 1024 * 1024;
/// Time between two tries of a node to reach itself.
const PROBE_INTERVAL: Duration = Duration::from_secs(5);

/// Where delivered entries go: the hub. Called from the driver's task only, so nothing here may block.
pub(crate) trait Deliver: Send + Sync + 'static {
    /// One entry, in the cluster's order.
    fn deliver(&self, delivery: Delivery);
    /// Writes what was delivered since the last time.
    fn write(&self);
    /// The log no longer holds what is up to this place.
    fn trimmed(&self, base: Seq);
    /// What was delivered after this place has lost its own; it may come again, as repeated.
    fn cut(&self, after: Seq);
    /// What is delivered next follows this place. `missed`: entries are missing before it, since this node was away for
    /// longer than the log reaches.
    fn restarted(&self, base: Option<Place>, missed: bool);
    /// Time passed: some times a second.
    fn tick(&self);
    /// The node has been without a master for 30 s while there is one: send the clients elsewhere (1013).
    fn cut_off(&self);
}

/// An entry at its place in the cluster's one order.
pub(crate) struct Delivery {
    pub(crate) place: Place,
    pub(crate) ticket: Ticket,
    /// Bytes that it counts in the log.
    pub(crate) size: usize,
    /// Delivered by this node before, at a place that was cut away: only connections that came later may still get it.
    pub(crate) repeated: Option<Ticket>,
    /// Encoded; `None` where there is nothing to deliver at this place.
    pub(crate) content: Option<Bytes>,
}

/// What the server hands to the cluster.
pub(crate) struct Settings {
    pub(crate) node: NodeId,
    pub(crate) cluster: String,
    pub(crate) address: Option<String>,
    pub(crate) keys: Vec<Vec<u8>>,
    pub(crate) config: Config,
    pub(crate) pool: Arc<dyn Pool>,
}

/// A handle on the running driver, which ends when it was shut down or the last handle is dropped.
#[derive(Clone)]
pub(crate) struct Cluster {
    events: mpsc::Sender<Event>,
    status: watch::Receiver<Status>,
    failure: watch::Receiver<Option<Failure>>,
    shared: Arc<Shared>,
}

/// What links need to know.
struct Shared {
    passport: Passport,
    config: Config,
    next_link: AtomicU64,
    /// Links whose peers have not proved the key.
    greetings: Arc<Greetings>,
    /// Bounds the log lines that strangers can bring about.
    logs: LogLimits<Cause>,
}

/// Causes of log lines that strangers can bring about as often as they like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Cause {
    Refused,
    GivenUp,
}

enum Event {
    Publish {
        content: Bytes,
        key: Option<Bytes>,
        waiting: Waiting,
    },
    LinkUp {
        link: LinkId,
        peer: NodeId,
        dialled: bool,
        outgoing: Outgoing,
    },
    LinkDown(LinkId),
    Frames(LinkId, Vec<Frame>),
    DialFailed {
        node: NodeId,
        address: String,
        error: LinkError,
    },
    /// With the cause, if the query failed.
    Answer(Answer, Option<String>),
    Drain,
    ShutDown(oneshot::Sender<()>),
}

/// Why a node cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Another node answers at this node's address.
    AddressTaken(String),
    /// The driver's task panicked.
    Stopped,
}

impl Failure {
    /// Returns what the node's status says.
    fn why(&self) -> &'static str {
        match self {
            Self::AddressTaken(_) => "another node answers at this node's address",
            Self::Stopped => "the cluster's task ended by a panic",
        }
    }
}

impl From<Failure> for StartError {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::AddressTaken(address) => Self::AddressTaken { address },
            Failure::Stopped => Self::Stopped,
        }
    }
}

impl Cluster {
    /// Publishes, and waits until the message is accepted, but no longer than the publish's time limit.
    pub(crate) async fn publish(&self, content: &Content, key: Option<Bytes>) -> Result<(), PublishError> {
        let limit = self.shared.config.cluster.publish_timeout;
        // Beyond that the driver knows when it waited for too long: no timer for each publish.
        let submitted = timeout(limit, self.submit(content.encode(), key)).await;
        submitted.unwrap_or(Err(PublishError::Unknown))?.await.unwrap_or(Err(PublishError::Unknown))
    }

    /// Hands a publish to the core, after all that were handed to it before; the receiver tells its acceptance, or that
    /// it took longer than the time limit.
    pub(crate) async fn submit(
        &self,
        content: Bytes,
        key: Option<Bytes>,
    ) -> Result<oneshot::Receiver<Result<(), PublishError>>, PublishError> {
        let (accepted, acceptance) = oneshot::channel();
        let until = now() + self.shared.config.cluster.publish_timeout;
        let event = Event::Publish { content, key, waiting: Waiting { accepted, until } };
        self.events.send(event).await.map_err(|_| PublishError::ShuttingDown)?;
        Ok(acceptance)
    }

    pub(crate) fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Resolves when this node cannot go on, with the reason.
    pub(crate) async fn failure(&self) -> Failure {
        let mut failure = self.failure.clone();
        match failure.wait_for(Option::is_some).await.ok().and_then(|failure| failure.clone()) {
            Some(failure) => failure,
            None => std::future::pending().await,
        }
    }

    /// Serves one accepted link, of another node or a publisher, on an upgraded stream until it ends.
    /// `ip`: where it comes from, if that tells anything about who it is.
    pub(crate) async fn serve_link(&self, stream: Box<dyn Stream>, ip: Option<IpAddr>) {
        let (mut greeting, full) = self.shared.greetings.begin(ip);
        if full && let Some(line) = self.shared.logs.due(Cause::GivenUp, now()) {
            let (ip, left_out) = (ip.map(tracing::field::display), line.left_out);
            tracing::warn!(ip, left_out, "more links come than may be greeted: those that wait longest are given up");
        }
        let limit = self.shared.config.cluster.greeting_timeout;
        let accepted = tokio::select! {
            // Twice the time for both of the dialler's messages, and for ours to be read.
            accepted = timeout(2 * limit, link::accept(stream, &self.shared.passport, limit)) => {
                accepted.unwrap_or(Err(LinkError::Silent))
            }
            () = greeting.given_up() => return,
        };
        match &accepted {
            Ok(Some(_)) => greeting.prove(),
            _ => drop(greeting),
        }
        match accepted {
            Ok(None) => {}
            Ok(Some((_, Purpose::Publisher, link))) => publisher::serve(self, link).await,
            Ok(Some((peer, _, link))) => run_link(&self.events, &self.shared, peer, false, link).await,
            Err(error) => {
                if let Some(line) = self.shared.logs.due(Cause::Refused, now()) {
                    let (ip, error) = (ip.map(tracing::field::display), error.to_string());
                    tracing::warn!(ip, error = %Excerpt(&error), left_out = line.left_out, "a link was refused");
                }
            }
        }
    }

    /// Says that the node is not ready, since it shuts down soon. It goes on until then.
    pub(crate) async fn drain(&self) {
        // An error means that it is over already.
        let _ = self.events.send(Event::Drain).await;
    }

    /// Hands over what the cluster needs of this node, and leaves the pool.
    pub(crate) async fn shut_down(&self) {
        let (done, through) = oneshot::channel();
        if self.events.send(Event::ShutDown(done)).await.is_ok() {
            // An error means that another shutdown came first and is through.
            let _ = through.await;
        }
    }
}

/// Joins or founds the cluster, in the background.
pub(crate) async fn start(settings: Settings, hub: Arc<dyn Deliver>) -> Result<Cluster, StartError> {
    let Settings { node, cluster, address, keys, config, pool } = settings;
    // Without a key it is a cluster of one, which nobody dials.
    let is_dialled = address.is_some() && !keys.is_empty();
    let address = match address {
        Some(address) => address,
        // Nobody else can be there: an address that is never dialled.
        None if !pool.is_shared() => format!("ws://{node}.invalid"),
        None => return Err(StartError::Config("the address where other nodes reach this one is not given".into())),
    };
    if keys.is_empty() && pool.is_shared() {
        return Err(StartError::Config("the cluster's key is not given".into()));
    }
    match timeout(config.cluster.query_timeout, pool.prepare()).await {
        Ok(Err(error @ PoolError::Url(_))) => return Err(error.into()),
        Ok(Err(error)) => tracing::warn!(%error, "the pool is not ready; it is tried again"),
        Err(_) => tracing::warn!("the pool's database does not answer; it is tried again"),
        Ok(Ok(())) => {}
    }
    let (events, received) = mpsc::channel(EVENTS);
    let (status, status_receiver) = watch::channel(Status::default());
    let (failure, failure_receiver) = watch::channel(None);
    let failure = Arc::new(failure);
    let passport = Passport { node, cluster, keys: Keys::new(keys) };
    let greetings = Greetings::new(config.cluster.greetings, config.cluster.greetings_per_ip);
    let shared =
        Arc::new(Shared { passport, greetings, config, next_link: AtomicU64::new(1), logs: LogLimits::default() });
    if is_dialled {
        tokio::spawn(probe_self(address.clone(), shared.clone(), failure.clone()));
    }
    let core = Core::new(now(), node, address.clone(), shared.config.cluster.clone(), shared.config.log.clone());
    tracing::info!(%node, address, cluster = shared.passport.cluster, "starting");
    let driver = Driver {
        core,
        pool,
        hub,
        status: Arc::new(status),
        events: events.downgrade(),
        shared: shared.clone(),
        links: HashMap::new(),
        unreachable: HashSet::new(),
        failure: failure_receiver.clone(),
        cause: None,
        waiting: HashMap::new(),
        draining: false,
        leaving: Vec::new(),
        ended: false,
    };
    let (stopped, hub) = (driver.status.clone(), driver.hub.clone());
    tokio::spawn(async move {
        if tokio::spawn(driver.run(received)).await.is_err() {
            // Nothing of this node works without it: clients are better off elsewhere. The log comes last, since it
            // may be what panicked.
            stopped.send_modify(|status| {
                (status.ready, status.master, status.degraded) = (false, None, Some(Failure::Stopped.why()));
            });
            hub.cut_off();
            failure.send_replace(Some(Failure::Stopped));
            tracing::error!("the task that runs the cluster panicked: this node stops, and its clients go elsewhere");
        }
    });
    Ok(Cluster { events, status: status_receiver, failure: failure_receiver, shared })
}

/// Who waits for the acceptance of a publish, and until when.
struct Waiting {
    accepted: oneshot::Sender<Result<(), PublishError>>,
    until: Instant,
}

struct Driver {
    core: Core,
    pool: Arc<dyn Pool>,
    hub: Arc<dyn Deliver>,
    status: Arc<watch::Sender<Status>>,
    /// Weak: the driver ends with the last handle, and tasks that it started do not keep it.
    events: mpsc::WeakSender<Event>,
    shared: Arc<Shared>,
    links: HashMap<LinkId, Outgoing>,
    /// Nodes whose last dial failed.
    unreachable: HashSet<NodeId>,
    /// Why this node cannot go on, if it cannot.
    failure: watch::Receiver<Option<Failure>>,
    /// Why the pool failed last.
    cause: Option<String>,
    /// Who waits for the acceptance of an own publish.
    waiting: HashMap<u64, Waiting>,
    /// The clients are sent away, and the shutdown follows.
    draining: bool,
    /// Who waits for the end of the shutdown.
    leaving: Vec<oneshot::Sender<()>>,
    ended: bool,
}

impl Driver {
    async fn run(mut self, mut received: mpsc::Receiver<Event>) {
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            self.carry_out().await;
            let deadline = tokio::time::Instant::from_std(self.core.poll_timeout());
            tokio::select! {
                biased;
                () = sleep_until(deadline), if !self.ended => {
                    let now = now();
                    self.core.handle_timeout(now);
                    self.hub.tick();
                    // Who waited for too long finds out by the dropped sender, and some publishes are never settled.
                    self.waiting.retain(|_, waiting| !waiting.accepted.is_closed() && waiting.until > now);
                }
                count = received.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        break;
                    }
                    batch.drain(..).for_each(|event| self.handle(event));
                }
            }
        }
        if !self.ended {
            tracing::debug!("the last handle was dropped");
            self.leave_pool().await;
        }
    }

    fn handle(&mut self, event: Event) {
        let now = now();
        match event {
            Event::Publish { waiting, .. } if self.ended || !self.leaving.is_empty() => {
                let _ = waiting.accepted.send(Err(PublishError::ShuttingDown));
            }
            Event::Publish { content, key, waiting } => match self.core.publish(now, content, key) {
                Ok(counter) => drop(self.waiting.insert(counter, waiting)),
                Err(_) => drop(waiting.accepted.send(Err(PublishError::Busy))),
            },
            Event::LinkUp { link, peer, dialled, outgoing } => {
                if !self.ended {
                    tracing::info!(?peer, dialled, "linked");
                    self.unreachable.remove(&peer);
                    self.links.insert(link, outgoing);
                    self.core.handle_link_up(now, link, peer, dialled);
                }
            }
            Event::LinkDown(link) => {
                self.links.remove(&link);
                self.core.handle_link_down(now, link);
            }
            Event::Frames(link, frames) => {
                frames.into_iter().for_each(|frame| self.core.handle_frame(now, link, frame));
            }
            Event::DialFailed { node, address, error } => {
                // Once for each loss: it is dialled again twice a second.
                if self.unreachable.insert(node) {
                    match &error {
                        LinkError::Mismatch(why) => tracing::error!(?node, address, why, "a node refuses this one"),
                        error => tracing::warn!(?node, address, %error, "a node cannot be reached; it is tried again"),
                    }
                }
                let refused = matches!(error, LinkError::Refused | LinkError::OtherNode);
                self.core.handle_dial_failed(now, node, refused);
            }
            Event::Answer(answer, cause) => {
                self.cause = cause.or(self.cause.take());
                self.core.handle_pool(now, answer);
            }
            Event::Drain => self.draining = true,
            Event::ShutDown(done) if self.ended => {
                let _ = done.send(());
            }
            Event::ShutDown(done) => {
                self.leaving.push(done);
                self.core.shut_down(now);
            }
        }
    }

    async fn carry_out(&mut self) {
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send { link, frame } => {
                    if self.links.get(&link).is_some_and(|outgoing| !outgoing.send(frame)) {
                        tracing::warn!(link, "a peer reads too slowly and is cut");
                        self.links.remove(&link);
                        self.core.handle_link_down(now(), link);
                    }
                }
                Output::Dial { node, address } => self.dial(node, address),
                Output::Hangup { link } => drop(self.links.remove(&link)),
                Output::Query(query) => self.ask(query),
                Output::Deliver { place, proposal, repeated } => {
                    let size = proposal.size();
                    let Proposal { ticket, content, .. } = proposal;
                    self.hub.deliver(Delivery { place, ticket, size, repeated, content });
                }
                Output::Diverged { again, dropped: 0 } => {
                    tracing::warn!(again, "the cluster went on without messages of this node; they are proposed again");
                }
                Output::Diverged { again, dropped } => tracing::error!(
                    again,
                    dropped,
                    "the cluster went on without messages of this node; those older than the log's age are lost"
                ),
                Output::Trimmed { base } => self.hub.trimmed(base),
                Output::Cut { after } => self.hub.cut(after),
                Output::Restarted { base, missed } => self.hub.restarted(base, missed),
                Output::Accepted { counter } => {
                    if let Some(waiting) = self.waiting.remove(&counter) {
                        // Whoever gave up waiting does not mind.
                        let _ = waiting.accepted.send(Ok(()));
                    }
                }
                Output::CutOff => {
                    tracing::warn!("no master for too long while others have one: clients are sent elsewhere");
                    self.hub.cut_off();
                }
                Output::ShutDown => {
                    self.ended = true;
                    self.links.clear();
                    self.leave_pool().await;
                    // They may or may not be in the log of others.
                    for (_, waiting) in self.waiting.drain() {
                        let _ = waiting.accepted.send(Err(PublishError::Unknown));
                    }
                    for done in self.leaving.drain(..) {
                        let _ = done.send(());
                    }
                }
            }
        }
        self.hub.write();
        let status = self.present_status();
        self.status.send_if_modified(|known| {
            let changed = *known != status;
            if known.master != status.master || known.term != status.term {
                tracing::info!(term = status.term, master = ?status.master, "the cluster changed");
            }
            // Every node begins without a master, which is no news.
            if known.degraded != status.degraded && *known != Status::default() {
                match status.degraded {
                    Some(why) => tracing::warn!(why, cause = status.cause, "degraded"),
                    None => tracing::info!("no longer degraded"),
                }
            }
            *known = status;
            changed
        });
    }

    /// Returns the core's status with what only the driver knows.
    fn present_status(&self) -> Status {
        let mut status = self.core.status();
        if self.core.has_pool_trouble() {
            status.cause.clone_from(&self.cause);
        }
        if self.draining {
            (status.ready, status.degraded) = (false, Some("shutting down"));
        }
        if let Some(failure) = &*self.failure.borrow() {
            (status.ready, status.degraded) = (false, Some(failure.why()));
        }
        status
    }

    /// Takes the own row out of the pool, if its database answers.
    async fn leave_pool(&self) {
        let Passport { node, cluster, .. } = &self.shared.passport;
        let removed = timeout(self.shared.config.cluster.query_timeout, self.pool.remove(cluster, *node)).await;
        if !matches!(removed, Ok(Ok(()))) {
            tracing::warn!("this node's row stays in the pool until the master removes it");
        }
    }

    /// Tells the driver what became of something, unless it is gone.
    fn report(&self, event: impl Future<Output = Event> + Send + 'static) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let event = event.await;
            if let Some(events) = events.upgrade() {
                let _ = events.send(event).await;
            }
        });
    }

    fn dial(&self, node: NodeId, address: String) {
        let Some(events) = self.events.upgrade() else { return };
        let shared = self.shared.clone();
        tokio::spawn(async move {
            let limit = shared.config.cluster.heartbeat_timeout;
            let dialled = timeout(limit, link::dial(&address, Some(node), Purpose::Node, &shared.passport));
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

    fn ask(&self, query: Query) {
        let pool = self.pool.clone();
        let shared = self.shared.clone();
        self.report(async move {
            let limit = shared.config.cluster.query_timeout;
            let asked = query.clone();
            // A task of its own, so that a pool that panics is one that fails.
            let answer = tokio::spawn(async move { timeout(limit, ask(&*pool, &shared, &asked)).await }).await;
            let why = match answer {
                Ok(Ok(Ok(answer))) => return Event::Answer(answer, None),
                Ok(Ok(Err(error))) => error.to_string(),
                Ok(Err(_)) => "no answer in time".to_owned(),
                Err(panic) => panic.to_string(),
            };
            tracing::debug!(why, ?query, "the pool failed");
            Event::Answer(Answer::Failed, Some(shortened(why)))
        });
    }
}

/// Tokio's clock, so that tests may pause it.
fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}

async fn ask(pool: &dyn Pool, shared: &Shared, query: &Query) -> Result<Answer, PoolError> {
    let Passport { node, cluster, .. } = &shared.passport;
    let lease = shared.config.cluster.lease;
    Ok(match query {
        Query::Read => {
            let view = pool.read(cluster).await?;
            shared.greetings.list(view.nodes.iter().map(|row| &*row.address));
            Answer::View(view)
        }
        Query::Announce(announcement) => {
            pool.announce(cluster, announcement).await?;
            Answer::Done
        }
        Query::Renew { term, owner } => Answer::Held(pool.renew(cluster, *term, *owner, lease).await?),
        Query::TakeOver { seen, max_seen } => {
            Answer::Term(pool.take_over(cluster, seen, *max_seen, *node, lease).await?)
        }
        Query::HandOver { term, successor } => {
            Answer::Held(pool.hand_over(cluster, *term, *node, *successor, lease).await?)
        }
        Query::Restore { term, owner } => {
            pool.restore(cluster, *term, *owner).await?;
            Answer::Done
        }
        Query::ClearJoined(lost) => {
            pool.clear_joined(cluster, *lost).await?;
            Answer::Done
        }
        Query::Remove(dead) => {
            pool.remove(cluster, *dead).await?;
            Answer::Done
        }
    })
}

/// Runs a link that was proved, and tells the driver of its frames and its end.
async fn run_link<S: Stream>(
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

/// Cuts a text of the database to what a log line and a status page can carry.
fn shortened(mut text: String) -> String {
    const LONGEST: usize = 300;
    text.truncate(text.floor_char_boundary(LONGEST));
    text
}

/// Dials the own address until this node answers there. Another's answer is a conflict that only people can solve.
async fn probe_self(address: String, shared: Arc<Shared>, failure: Arc<watch::Sender<Option<Failure>>>) {
    loop {
        let probed = link::dial(&address, None, Purpose::Probe, &shared.passport);
        match timeout(shared.config.cluster.heartbeat_timeout, probed).await.unwrap_or(Err(LinkError::Silent)) {
            Ok((node, _)) if node == shared.passport.node => return,
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

#[cfg(test)]
mod tests {
    use tokio::sync::Notify;

    use super::*;
    use crate::{Target, pool::MemoryPool};

    /// Panics when it is to deliver a message, and tells when the clients are sent away.
    #[derive(Default)]
    struct Panicking(Notify);

    impl Deliver for Panicking {
        fn deliver(&self, delivery: Delivery) {
            assert!(delivery.content.is_none(), "as the test wants it");
        }
        fn write(&self) {}
        fn trimmed(&self, _: Seq) {}
        fn cut(&self, _: Seq) {}
        fn restarted(&self, _: Option<Place>, _: bool) {}
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
        };
        let cluster = start(settings, hub.clone()).await.unwrap();
        let mut status = cluster.status();
        status.wait_for(|status| status.ready).await.unwrap();
        let message = Content::Message { target: Target::all(), action: "a".into(), details: "[]".into() };
        let published = cluster.publish(&message, None).await;
        assert_eq!(published, Err(PublishError::Unknown));
        assert_eq!(cluster.failure().await, Failure::Stopped);
        hub.0.notified().await;
        let status = status.wait_for(|status| !status.ready).await.unwrap();
        assert_eq!(status.degraded, Some("the cluster's task ended by a panic"));
    }
}
