//! What nodes tell each other and an administrator: reports once a second, and questions about connections. None of it
//! goes through the log; a lost note is replaced by the next one.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{
    Server, Shared,
    routes::{Detail, NO_OUTBOX},
};
use crate::{
    NodeId,
    clock::now,
    node::{Teller, Told},
    report::{
        ConnectionList, ConnectionQuery, ConnectionReport, FollowerReport, LIMIT, LinkReport, NodeReport, NodeRole,
        Relay, note::Note,
    },
    stats::Recent,
};
use ws_cluster_core::FollowerStatus;

/// Time between two reports of a node.
const INTERVAL: Duration = Duration::from_secs(1);

/// Time for which the report of another node counts: a few of them may be late or lost.
const KEPT: Duration = Duration::from_secs(5);

/// Time for the other nodes to answer a question.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Most nodes whose reports are kept.
const MAX_NODES: usize = 1000;

/// How many seconds the size of the send queues is kept for.
#[cfg(feature = "metrics")]
const QUEUES_INTERVAL: u32 = 5;

/// Most notes of other nodes that wait. More are dropped.
pub(super) const MAX_TOLD: usize = 256;

/// What a node knows of the others, and of its own last seconds.
pub(super) struct Reports {
    started: Instant,
    /// The same in seconds since 1970.
    #[cfg(feature = "metrics")]
    started_at: u64,
    teller: Teller,
    recent: Mutex<Recent>,
    /// The newest report of each other node, and when it came.
    others: Mutex<HashMap<NodeId, (NodeReport, Instant)>>,
    /// True once the log says that other nodes have an outbox and this one has none.
    warned_of_outbox: AtomicBool,
    next_question: AtomicU64,
    #[cfg(feature = "metrics")]
    recording: Mutex<Recording>,
    /// The questions that wait for answers.
    questions: Mutex<HashMap<u64, mpsc::UnboundedSender<Answer>>>,
}

/// What was told to the recorder of metrics.
#[cfg(feature = "metrics")]
#[derive(Default)]
struct Recording {
    recorder: crate::metrics::Recorder,
    /// The bytes in the send queues, and how many records ago they were counted.
    send_queues: (u64, u32),
}

struct Answer {
    node: NodeId,
    connections: Vec<ConnectionReport>,
    matching: u64,
}

/// A question that waits for answers, until it is dropped.
struct Question<'a> {
    reports: &'a Reports,
    id: u64,
    answers: mpsc::UnboundedReceiver<Answer>,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.reports.questions.lock().remove(&self.id);
    }
}

impl Reports {
    pub(super) fn new(teller: Teller) -> Self {
        Self {
            started: now(),
            #[cfg(feature = "metrics")]
            started_at: crate::hub::resume::unix_time(),
            teller,
            recent: Mutex::default(),
            others: Mutex::default(),
            #[cfg(feature = "metrics")]
            recording: Mutex::default(),
            warned_of_outbox: AtomicBool::new(false),
            next_question: AtomicU64::new(1),
            questions: Mutex::default(),
        }
    }

    fn question(&self) -> Question<'_> {
        let (sender, answers) = mpsc::unbounded_channel();
        let id = self.next_question.fetch_add(1, Ordering::Relaxed);
        self.questions.lock().insert(id, sender);
        Question { reports: self, id, answers }
    }

    fn keep(&self, report: NodeReport) {
        let now = now();
        let mut others = self.others.lock();
        others.retain(|_, (_, came)| now.saturating_duration_since(*came) <= KEPT);
        if others.len() < MAX_NODES || others.contains_key(&report.node) {
            others.insert(report.node, (report, now));
        }
    }
}

/// Tells other nodes about this one once a second, and takes what they tell, until the server is dropped.
pub(super) async fn run(server: Weak<Shared>, mut told: mpsc::Receiver<Told>) {
    let mut beat = interval(INTERVAL);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = beat.tick() => {
                let Some(server) = server.upgrade().map(Server) else { return };
                server.tell_report().await;
            }
            told = told.recv() => {
                let (Some(told), Some(server)) = (told, server.upgrade().map(Server)) else { return };
                server.take_note(told).await;
            }
        }
    }
}

impl Server {
    /// Returns what this node tells about itself: its role, its load of the last seconds, and what is wrong with it.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let server = ws_cluster::Server::builder(ws_cluster::MemoryPool::default()).start().await?;
    /// let report = server.report();
    /// assert_eq!((report.node, report.connections), (server.node_id(), 0));
    /// # Ok(()) }
    /// ```
    pub fn report(&self) -> NodeReport {
        let (status, view, now) = (self.status(), self.0.cluster.view(), now());
        let rates = self.0.reports.recent.lock().rates(self.hub().stats(), now);
        let (users, guests) = self.hub().counts();
        let node = self.node_id();
        let role = match status.master {
            Some(master) if master == node => NodeRole::Master,
            Some(_) => NodeRole::Follower,
            None => NodeRole::Candidate,
        };
        let lag = status.master.filter(|_| role == NodeRole::Follower).and_then(|master| self.lag_of(node, master));
        let relay = |peer: NodeId| match role {
            NodeRole::Master if view.followers.iter().any(|follower| follower.node == peer) => Relay::To,
            NodeRole::Follower if status.master == Some(peer) => Relay::From,
            _ => Relay::None,
        };
        let link = |&(peer, dialled)| LinkReport { peer, dialled, relay: relay(peer) };
        let links = view.links.iter().map(link).collect();
        let follower =
            |known: &FollowerStatus| FollowerReport { node: known.node, member: known.member, lag: known.lag };
        let followers = view.followers.iter().map(follower).collect();
        NodeReport {
            node,
            address: self.0.cluster.address().to_owned(),
            role,
            term: status.term,
            ready: status.ready,
            degraded: self.trouble(Detail::Cause),
            outbox: Some(self.0.outbox.is_some()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: now.saturating_duration_since(self.0.reports.started).as_secs(),
            connections: self.connection_count() as u64,
            user_connections: users as u64,
            guest_connections: guests as u64,
            deliveries_per_second: rates.deliveries,
            messages_per_second: rates.messages_in,
            publishes_per_second: rates.publishes,
            publish_p50_ms: rates.publish_p50,
            publish_p99_ms: rates.publish_p99,
            pool_ms: rates.pool,
            lag,
            followers,
            links,
            log_entries: view.log.entries,
            log_bytes: view.log.bytes,
            log_age_seconds: view.log.age.as_secs(),
            age_ms: 0,
        }
    }

    /// Returns this node's own report and the newest of each other node, in the order of their addresses. Nodes tell
    /// each other once a second. Reports older than five seconds are left out. Nodes of older versions send none.
    pub fn cluster_report(&self) -> Vec<NodeReport> {
        let now = now();
        let others = self.0.reports.others.lock();
        let fresh = others.values().filter_map(|(report, came)| {
            let age = now.saturating_duration_since(*came);
            (age <= KEPT).then(|| NodeReport { age_ms: age.as_millis() as u64, ..report.clone() })
        });
        let mut reports: Vec<_> = fresh.collect();
        drop(others);
        reports.push(self.report());
        reports.sort_by(|one, other| (&one.address, one.node).cmp(&(&other.address, other.node)));
        reports
    }

    /// Lists connections of all nodes. Each node answers for its own; those that do not within two seconds are named in
    /// the answer.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let server = ws_cluster::Server::builder(ws_cluster::MemoryPool::default()).start().await?;
    /// let anns = server.list_connections(ws_cluster::ConnectionQuery::default().user("ann")).await;
    /// assert_eq!((anns.matching, anns.silent.len()), (0, 0));
    /// # Ok(()) }
    /// ```
    pub async fn list_connections(&self, mut query: ConnectionQuery) -> ConnectionList {
        query.limit = query.limit.min(LIMIT);
        let limit = query.limit;
        let (mut connections, mut matching) = self.hub().list(&query);
        let known = self.status().nodes.into_iter().map(|known| known.node);
        let mut silent: BTreeSet<NodeId> = known.chain(self.0.reports.others.lock().keys().copied()).collect();
        silent.remove(&self.node_id());
        if !silent.is_empty() {
            let mut question = self.0.reports.question();
            let asking = async {
                let note = Note::Question { id: question.id, query };
                self.0.reports.teller.tell(None, note.encode()).await;
                while !silent.is_empty()
                    && let Some(answer) = question.answers.recv().await
                {
                    if silent.remove(&answer.node) {
                        connections.extend(answer.connections);
                        matching += answer.matching;
                    }
                }
            };
            // Those that have not answered by then are named.
            let _ = timeout(ANSWER_TIMEOUT, asking).await;
        }
        connections.sort_by_key(|connection| connection.node);
        connections.truncate(limit);
        ConnectionList { connections, matching, silent: silent.into_iter().collect() }
    }

    /// Returns true if another node has an outbox.
    pub(super) fn others_have_outbox(&self) -> bool {
        let now = now();
        let others = self.0.reports.others.lock();
        others
            .values()
            .any(|(report, came)| report.outbox == Some(true) && now.saturating_duration_since(*came) <= KEPT)
    }

    async fn tell_report(&self) {
        self.0.reports.recent.lock().note(self.hub().stats(), now());
        let report = self.report();
        #[cfg(feature = "metrics")]
        self.record(&report);
        if !report.links.is_empty() {
            self.0.reports.teller.tell(None, Note::Report(Box::new(report)).encode()).await;
        }
    }

    async fn take_note(&self, Told { origin, content }: Told) {
        match Note::decode(&content) {
            Ok(Note::Report(report)) if report.node == origin => {
                let lacks_outbox = report.outbox == Some(true) && self.0.outbox.is_none();
                if lacks_outbox && !self.0.reports.warned_of_outbox.swap(true, Ordering::Relaxed) {
                    tracing::warn!(node = %report.node, address = report.address, "{NO_OUTBOX}");
                }
                self.0.reports.keep(*report);
            }
            Ok(Note::Report(_)) => {}
            Ok(Note::Question { id, query }) => {
                let (connections, matching) = self.hub().list(&query);
                let answer = Note::Answer { id, connections, matching };
                self.0.reports.teller.tell(Some(origin), answer.encode()).await;
            }
            Ok(Note::Answer { id, connections, matching }) => {
                if let Some(question) = self.0.reports.questions.lock().get(&id) {
                    // The asker may have stopped waiting.
                    let _ = question.send(Answer { node: origin, connections, matching });
                }
            }
            Err(error) => tracing::debug!(node = ?origin, %error, "a note is skipped"),
        }
    }

    /// Tells the recorder of metrics what was counted since the last time.
    #[cfg(feature = "metrics")]
    fn record(&self, report: &NodeReport) {
        let mut recording = self.0.reports.recording.lock();
        let Recording { recorder, send_queues: (send_queues, age) } = &mut *recording;
        if *age == 0 {
            *send_queues = self.hub().waiting();
        }
        *age = (*age + 1) % QUEUES_INTERVAL;
        let (status, view) = (self.status(), self.0.cluster.view());
        let (sockets, sockets_limit) = self.0.gate.count(self.connection_count());
        let gauges = crate::metrics::Gauges {
            open: report.connections as usize,
            users: report.user_connections as usize,
            guests: report.guest_connections as usize,
            pending: view.pending,
            send_queues: *send_queues,
            term: report.term,
            role: report.role,
            ready: report.ready,
            degraded: status.degraded,
            followers: report.followers.iter().filter(|follower| follower.member).count(),
            lag: report.followers.iter().map(|follower| follower.lag).max().unwrap_or_default(),
            log_entries: report.log_entries,
            log_bytes: report.log_bytes,
            log_age: view.log.age.as_secs_f64(),
            dropped: status.dropped,
            links: report.links.len(),
            sockets,
            sockets_limit,
            started: self.0.reports.started_at,
        };
        recorder.record(self.hub().stats(), self.0.handler_times.get().all(), &self.0.backend_stats, &gauges);
    }

    /// Returns how far behind a node is, as the master told last.
    fn lag_of(&self, node: NodeId, master: NodeId) -> Option<u64> {
        let others = self.0.reports.others.lock();
        let (report, _) = others.get(&master)?;
        report.followers.iter().find(|follower| follower.node == node).map(|follower| follower.lag)
    }
}
