//! The task that drives the core: it carries out the core's outputs (frames, dials, queries, deliveries) and feeds the
//! results back. It decides nothing.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::sleep_until,
};

use super::{
    Delivery, DeliverySink, Failure, Shared,
    codec::{Note, PacketPart},
    link::{FrameSender, LinkError},
    notes::{CoreView, Told},
};
use crate::{
    clock::{SleepWatch, now},
    error::PublishError,
    log_limit::LogLimits,
    pool::Pool,
    stats::{PublishOutcome, Stats},
};
use ws_cluster_core::{Answer, Body, Core, Degraded, Frame, LinkId, NodeId, Output, Proposal, Status};

/// Maximum number of events that the core handles before its outputs are carried out, so that more frames leave
/// together.
const BATCH: usize = 256;

pub(super) enum Event {
    Publish(Publish),
    /// Publishes that enter the order together.
    PublishAll(Vec<Publish>),
    /// Publishes of rows of an outbox, unless this time has passed. If one is not taken, those after it are not taken
    /// either.
    PublishRows {
        publishes: Vec<Publish>,
        not_after: Instant,
    },
    LinkUp {
        link: LinkId,
        peer: NodeId,
        dialled: bool,
        sender: FrameSender,
    },
    LinkDown(LinkId),
    Arrived {
        link: LinkId,
        frames: Vec<Frame>,
        notes: Vec<Note>,
    },
    /// A note of this node for others.
    Tell(Note),
    DialFailed {
        node: NodeId,
        address: String,
        error: LinkError,
    },
    /// The answer to a query, with the cause if the query failed.
    Answer(Answer, Option<String>),
    Drain,
    /// Answered in its turn, which shows that the driver works.
    Probe(oneshot::Sender<()>),
    ShutDown(oneshot::Sender<()>),
}

/// A publish of this node.
pub(super) struct Publish {
    pub(super) content: Bytes,
    pub(super) key: Option<Bytes>,
    pub(super) waiting: WaitingCaller,
}

/// The caller that waits for a publish to be accepted, and its deadline.
pub(super) struct WaitingCaller {
    pub(super) accepted: oneshot::Sender<Result<(), PublishError>>,
    pub(super) since: Instant,
    pub(super) until: Instant,
    /// From the publish to its outcome.
    pub(super) span: tracing::Span,
}

/// An open link to a node.
pub(super) struct OpenLink {
    pub(super) peer: NodeId,
    pub(super) dialled: bool,
    pub(super) sender: FrameSender,
}

/// What the core has decided and the driver has not told anyone yet. Messages that come together are delivered
/// together.
#[derive(Default)]
struct Ready {
    deliveries: Vec<Delivery>,
    /// The counters of own publishes. Their callers learn it after the deliveries, so that a caller's reply follows the
    /// message.
    accepted: Vec<u64>,
}

pub(super) struct Driver {
    pub(super) core: Core,
    pub(super) pool: Arc<dyn Pool>,
    pub(super) hub: Arc<dyn DeliverySink>,
    pub(super) status: Arc<watch::Sender<Status>>,
    /// The status as `status` has it, or is about to.
    pub(super) presented: Status,
    /// A weak sender: the driver ends with the last handle, and the tasks that it started do not keep it running.
    pub(super) events: mpsc::WeakSender<Event>,
    pub(super) shared: Arc<Shared>,
    pub(super) links: HashMap<LinkId, OpenLink>,
    /// The nodes whose last dial failed.
    pub(super) unreachable: HashSet<NodeId>,
    /// The reason why this node cannot continue, if there is one.
    pub(super) failure: watch::Receiver<Option<Failure>>,
    /// The cause of the pool's last failure.
    pub(super) cause: Option<String>,
    /// Limits how often each cause is logged.
    pub(super) cause_limits: LogLimits<String>,
    /// The callers that wait for an own publish to be accepted, by its counter.
    pub(super) waiting: HashMap<u64, WaitingCaller>,
    /// True once the clients are being sent away. The shutdown follows.
    pub(super) draining: bool,
    /// The callers that wait for the end of the shutdown.
    pub(super) leaving: Vec<oneshot::Sender<()>>,
    pub(super) ended: bool,
    pub(super) stats: Arc<Stats>,
    /// Takes the notes of other nodes.
    pub(super) told: mpsc::Sender<Told>,
    /// What is shown of the core.
    pub(super) view: Arc<Mutex<CoreView>>,
}

impl Driver {
    pub(super) async fn run(mut self, mut received: mpsc::Receiver<Event>) {
        let mut batch = Vec::with_capacity(BATCH);
        let mut sleep = SleepWatch::new();
        loop {
            self.carry_out_outputs().await;
            let deadline = tokio::time::Instant::from_std(self.core.poll_timeout());
            tokio::select! {
                biased;
                () = sleep_until(deadline), if !self.ended => {
                    self.note_sleep(sleep.slept());
                    self.tick();
                }
                count = received.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        break;
                    }
                    // The clock stood still while the machine slept, so the deadline may be yet to come.
                    self.note_sleep(sleep.slept());
                    batch.drain(..).for_each(|event| self.handle(event));
                }
            }
        }
        if !self.ended {
            tracing::debug!("the last handle was dropped");
            self.leave_pool().await;
        }
    }

    /// Tells the core that the machine slept, before anything that arrived meanwhile.
    fn note_sleep(&mut self, slept: Duration) {
        let config = &self.shared.config.cluster;
        // The proof that this node is alone ends a quarter of the lease before the lease does.
        if !self.ended && slept > config.heartbeat_timeout.min(config.lease / 4) {
            tracing::warn!(seconds = slept.as_secs(), "this machine slept, or its clock was set forward");
            self.core.handle_standstill(now());
        }
    }

    fn tick(&mut self) {
        let now = now();
        self.core.handle_timeout(now);
        *self.shared.ticked_at.lock() = now;
        self.hub.tick();
        self.show();
        // The dropped sender tells a caller that the time is over. The outcome of some publishes is never known.
        let stats = &self.stats;
        self.waiting.retain(|_, waiting| {
            let outcome = match waiting.until > now {
                true if !waiting.accepted.is_closed() => return true,
                true => PublishOutcome::Abandoned,
                false => PublishOutcome::Unknown,
            };
            note_unsettled(stats, waiting.since, outcome);
            false
        });
    }

    fn handle(&mut self, event: Event) {
        let now = now();
        match event {
            Event::Publish(publish) => _ = self.publish(now, publish),
            Event::PublishAll(publishes) => publishes.into_iter().for_each(|publish| _ = self.publish(now, publish)),
            Event::PublishRows { publishes, not_after } => {
                // The callers of those that are not taken see that their senders are dropped.
                let mut publishes = publishes.into_iter();
                while now <= not_after
                    && let Some(publish) = publishes.next()
                    && self.publish(now, publish)
                {}
            }
            Event::LinkUp { link, peer, dialled, sender } => {
                if !self.ended {
                    tracing::info!(?peer, dialled, "linked");
                    self.unreachable.remove(&peer);
                    self.stats.metered.note(|counts| counts.links_opened.add(1));
                    self.links.insert(link, OpenLink { peer, dialled, sender });
                    self.core.handle_link_up(now, link, peer, dialled);
                }
            }
            Event::LinkDown(link) => {
                self.links.remove(&link);
                self.stats.metered.note(|counts| counts.links_lost.add(1));
                self.core.handle_link_down(now, link);
            }
            Event::Arrived { link, frames, notes } => {
                frames.into_iter().for_each(|frame| self.core.handle_frame(now, link, frame));
                notes.into_iter().for_each(|note| self.take_note(link, note));
            }
            Event::Tell(note) => self.tell(&note),
            Event::DialFailed { node, address, error } => {
                self.stats.metered.note(|counts| counts.dials_failed.add(1));
                // Logged once for each loss, because the core dials again twice a second.
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
            // The caller may have stopped waiting.
            Event::Probe(answer) => drop(answer.send(())),
            Event::ShutDown(done) if self.ended => {
                let _ = done.send(());
            }
            Event::ShutDown(done) => {
                self.leaving.push(done);
                self.core.shut_down(now);
            }
        }
    }

    /// Passes a publish to the core. Returns true if the core takes it.
    fn publish(&mut self, now: Instant, Publish { content, key, waiting }: Publish) -> bool {
        if self.ended || !self.leaving.is_empty() {
            self.settle(waiting, PublishOutcome::ShuttingDown, PublishError::ShuttingDown);
            return false;
        }
        let Ok(counter) = self.core.publish(now, content, key) else {
            self.settle(waiting, PublishOutcome::Busy, PublishError::Busy);
            return false;
        };
        waiting.span.record("counter", counter);
        waiting.span.in_scope(|| tracing::debug!("proposed"));
        self.waiting.insert(counter, waiting);
        true
    }

    async fn carry_out_outputs(&mut self) {
        let mut ready = Ready::default();
        while let Some(output) = self.core.poll_output() {
            match output {
                Output::Send { links, frame } => self.send(&links, frame),
                Output::Dial { node, address } => self.dial(node, address),
                Output::Hangup { link } => drop(self.links.remove(&link)),
                Output::Query(query) => self.ask(query),
                Output::Deliver { position, proposal, repeated } => {
                    let size = proposal.size();
                    let Proposal { id, key, content } = proposal;
                    self.shared.delivered_keys.lock().note(key, position.seq);
                    ready.deliveries.push(Delivery { position, id, size, repeated, content });
                }
                Output::Diverged { again, dropped: 0 } => {
                    tracing::warn!(again, "the cluster went on without messages of this node; they are proposed again");
                }
                Output::Diverged { again, dropped } => tracing::error!(
                    again,
                    dropped,
                    "the cluster went on without messages of this node; the dropped ones are too old to be proposed again"
                ),
                Output::Trimmed { base } => {
                    self.deliver_ready(&mut ready);
                    self.hub.trimmed(base);
                }
                Output::Cut { after } => {
                    self.deliver_ready(&mut ready);
                    self.shared.delivered_keys.lock().cut(after);
                    self.hub.cut(after);
                }
                Output::Restarted { base, missed } => {
                    self.deliver_ready(&mut ready);
                    self.shared.delivered_keys.lock().cut(0);
                    self.hub.restarted(base, missed);
                }
                Output::Accepted { counter } => ready.accepted.push(counter),
                Output::CutOff => {
                    self.deliver_ready(&mut ready);
                    tracing::warn!("no master for too long while others have one: clients are sent elsewhere");
                    self.hub.cut_off();
                }
                Output::ShutDown => {
                    self.deliver_ready(&mut ready);
                    self.ended = true;
                    self.links.clear();
                    self.leave_pool().await;
                    // These publishes may or may not be in the logs of other nodes.
                    for waiting in std::mem::take(&mut self.waiting).into_values() {
                        self.settle(waiting, PublishOutcome::Unknown, PublishError::OutcomeUnknown);
                    }
                    for done in self.leaving.drain(..) {
                        let _ = done.send(());
                    }
                }
            }
        }
        self.deliver_ready(&mut ready);
        self.hub.write();
        self.update_presented();
        let status = &self.presented;
        self.status.send_if_modified(|known| {
            if known == status {
                return false;
            }
            if known.master != status.master || known.term != status.term {
                tracing::info!(term = status.term, master = ?status.master, "the cluster changed");
            }
            // Every node begins without a master, so that is not logged.
            if *known != Status::default() {
                self.log_degradation(known, status);
            }
            known.clone_from(status);
            true
        });
    }

    /// Encodes a frame, and adds it to the queue of each of these links.
    fn send(&mut self, links: &[LinkId], frame: Frame) {
        let peers = links.iter().filter_map(|link| self.links.get(link)).map(|link| link.peer);
        trace_relays(peers, &frame);
        let frame = PacketPart::frame(frame);
        for &link in links {
            if self.links.get(&link).is_some_and(|link| !link.sender.send(frame.clone())) {
                tracing::warn!(link, "a peer reads too slowly and is cut");
                self.links.remove(&link);
                self.core.handle_link_down(now(), link);
            }
        }
    }

    /// Delivers what is ready, and then tells the callers whose publishes are accepted.
    fn deliver_ready(&mut self, ready: &mut Ready) {
        if !ready.deliveries.is_empty() {
            self.hub.deliver(std::mem::take(&mut ready.deliveries));
        }
        for counter in ready.accepted.drain(..) {
            if let Some(waiting) = self.waiting.remove(&counter) {
                self.stats.accepted.observe(now().saturating_duration_since(waiting.since));
                waiting.span.in_scope(|| tracing::debug!("accepted"));
                // The caller may have stopped waiting.
                let _ = waiting.accepted.send(Ok(()));
            }
        }
    }

    /// Answers a publish that is not accepted.
    fn settle(&self, waiting: WaitingCaller, outcome: PublishOutcome, error: PublishError) {
        note_unsettled(&self.stats, waiting.since, outcome);
        // The caller may have stopped waiting.
        let _ = waiting.accepted.send(Err(error));
    }

    /// Logs why the node is degraded if the reason is new, and that it is no longer degraded.
    fn log_degradation(&self, known: &Status, status: &Status) {
        let is_news = known.degraded != status.degraded;
        match (status.degraded, &status.cause) {
            // This is what somebody asked for.
            (Some(Degraded::ShuttingDown), _) if is_news => tracing::info!("not ready: shutting down"),
            (Some(Degraded::ShuttingDown), _) => {}
            (Some(why), Some(cause)) => {
                // A new cause for the same reason is worth a line: a database that is started again may still refuse.
                // Causes that alternate get one line per interval.
                let is_due = known.cause != status.cause && self.cause_limits.due(cause.clone(), now()).is_some();
                if is_news || is_due {
                    tracing::warn!(why = why.as_str(), cause, "degraded");
                }
            }
            (Some(why), None) if is_news => tracing::warn!(why = why.as_str(), "degraded"),
            (None, _) if is_news => tracing::info!("no longer degraded"),
            _ => {}
        }
    }

    /// Sets `presented` to the core's status, with the facts that only the driver knows.
    fn update_presented(&mut self) {
        let status = &mut self.presented;
        self.core.update_status(status);
        if self.core.has_pool_trouble() {
            status.cause.clone_from(&self.cause);
        }
        if self.draining {
            (status.ready, status.degraded) = (false, Some(Degraded::ShuttingDown));
        }
        if let Some(failure) = &*self.failure.borrow() {
            (status.ready, status.degraded) = (false, Some(failure.degraded()));
        }
    }

    /// Sends the event that a future results in to the driver, unless the driver is gone.
    pub(super) fn report(&self, event: impl Future<Output = Event> + Send + 'static) {
        let events = self.events.clone();
        tokio::spawn(async move {
            let event = event.await;
            if let Some(events) = events.upgrade() {
                let _ = events.send(event).await;
            }
        });
    }
}

fn note_unsettled(stats: &Stats, since: Instant, outcome: PublishOutcome) {
    stats.metered.note(|counts| counts.unsettled[outcome as usize].observe(now().saturating_duration_since(since)));
}

/// Gives each publish in a frame a span `relay` for each of these peers, with the fields that the spans of its publish
/// and of its deliveries have.
fn trace_relays(peers: impl Iterator<Item = NodeId>, frame: &Frame) {
    if !tracing::enabled!(tracing::Level::DEBUG) {
        return;
    }
    for peer in peers {
        let trace = |proposal: &Proposal| {
            let (origin, counter) = (proposal.id.origin, proposal.id.counter);
            tracing::debug_span!("relay", ?origin, counter, ?peer).in_scope(|| tracing::debug!("sent"));
        };
        match &frame.body {
            Body::Propose(proposals) => proposals.iter().for_each(trace),
            Body::Append { entries, .. } => entries.iter().map(|entry| &entry.proposal).for_each(trace),
            _ => {}
        }
    }
}
