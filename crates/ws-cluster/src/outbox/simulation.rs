//! The poller on the real cores of simulated nodes, over the outbox in memory. Nodes crash, stop and leave, and the
//! outbox's database fails, between any two steps. A seed determines the site's transactions and all faults.
//!
//! `WS_CLUSTER_SEED` replays one run and prints its story; `WS_CLUSTER_RUNS` sets how many there are.

use std::{
    collections::{BTreeMap, HashMap},
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use bytes::Bytes;
use futures_util::FutureExt;

use super::{
    MemoryOutbox, MemoryTransaction, Outbox, RowId,
    poller::{Outcome, Poller, Step},
    row::LIMITS,
};
use crate::{
    message::{content::Content, publish::OUTBOX_KEY},
    node::delivered_keys::DeliveredKeys,
};
use ws_cluster_core::{
    Degraded, LogPosition, NodeId, Output, Seq, Status,
    simulator::{Checks, Clients, Random, search, single_faults_with_clients},
};

/// Time limit of a publish, as that of a node.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(5);

/// Most transactions of the site at a time.
const TRANSACTIONS: u64 = 4;

/// The site, its database, and the pollers of the nodes.
struct Site {
    start: Instant,
    outbox: MemoryOutbox,
    /// The database does not answer before this time.
    down_until: Duration,
    /// Percentage of calls that take effect without an answer, at once or later.
    lost: u64,
    late: u64,
    late_calls: Vec<(Duration, Call)>,
    transactions: Vec<Transaction>,
    rows: Vec<Row>,
    /// The rows of each transaction that committed.
    committed: Vec<Vec<usize>>,
    nodes: BTreeMap<usize, Node>,
    /// The log positions at which each row was delivered.
    delivered: HashMap<usize, Vec<LogPosition>>,
    mutant: Option<Mutant>,
    /// Makes the keys of a mutant.
    keys: u64,
}

/// A rule that a run leaves out, to show that the checks notice it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutant {
    /// A row has another idempotency key at each attempt.
    ChangesKeys,
    /// Rows are removed before they are accepted.
    RemovesFirst,
}

/// A transaction of the site that is open.
struct Transaction {
    inner: MemoryTransaction,
    rows: Vec<usize>,
}

struct Row {
    is_malformed: bool,
    is_committed: bool,
}

/// A node that runs.
struct Node {
    id: NodeId,
    poller: Poller,
    keys: DeliveredKeys,
    publishing: Option<Publishing>,
}

/// Publishes that wait for their outcomes.
struct Publishing {
    since: Duration,
    counters: Vec<Option<u64>>,
    accepted: Vec<u64>,
}

/// A call that changes the outbox.
#[derive(Clone)]
enum Call {
    Remove(Vec<RowId>),
    Fail(Vec<(RowId, String)>),
}

impl Site {
    fn new(mutant: Option<Mutant>) -> Self {
        Self {
            start: Instant::now(),
            outbox: MemoryOutbox::default(),
            down_until: Duration::ZERO,
            lost: 0,
            late: 0,
            late_calls: Vec::new(),
            transactions: Vec::new(),
            rows: Vec::new(),
            committed: Vec::new(),
            nodes: BTreeMap::new(),
            delivered: HashMap::new(),
            mutant,
            keys: 0,
        }
    }

    /// Lets the site take some steps, and perhaps the database fail.
    fn live(&mut self, now: Duration, random: &mut Random) {
        if random.below(100) == 0 {
            // Open transactions are rolled back, and some servers use the numbers of removed rows again.
            self.down_until = now + Duration::from_millis(random.below(8_000));
            self.transactions.clear();
            self.outbox.reuse_ids();
        }
        if random.below(50) == 0 {
            (self.lost, self.late) = (random.below(30), random.below(30));
        }
        if now < self.down_until {
            return;
        }
        for _ in 0..random.below(6) {
            let open = self.transactions.len() as u64;
            if open == 0 || open < TRANSACTIONS && random.below(3) == 0 {
                self.transactions.push(Transaction { inner: self.outbox.begin(), rows: Vec::new() });
            }
            let index = random.below(self.transactions.len() as u64) as usize;
            if random.below(3) > 0 {
                let is_malformed = random.below(10) == 0;
                let (row, end) = (self.rows.len(), if is_malformed { "" } else { "]" });
                self.rows.push(Row { is_malformed, is_committed: false });
                let transaction = &mut self.transactions[index];
                transaction.rows.push(row);
                transaction.inner.insert("row", &*format!("[{row}{end}"), "all");
            } else {
                let Transaction { inner, rows } = self.transactions.swap_remove(index);
                // A transaction that is dropped is rolled back.
                if random.below(4) > 0 {
                    inner.commit();
                    rows.iter().for_each(|row| self.rows[*row].is_committed = true);
                    self.committed.push(rows);
                }
            }
        }
    }

    fn apply(&self, call: &Call) {
        let done = match call {
            Call::Remove(rows) => self.outbox.remove(rows).now_or_never(),
            Call::Fail(rows) => self.outbox.fail(rows).now_or_never(),
        };
        assert!(matches!(done, Some(Ok(()))), "the outbox in memory never fails and never waits");
    }

    /// Carries out the late calls that are due.
    fn catch_up(&mut self, now: Duration) {
        let (due, later) = std::mem::take(&mut self.late_calls).into_iter().partition(|(at, _)| *at <= now);
        self.late_calls = later;
        let due: Vec<(Duration, Call)> = due;
        due.iter().for_each(|(_, call)| self.apply(call));
    }

    /// Makes a call that changes the outbox. Returns true if it has an answer.
    fn call(&mut self, now: Duration, random: &mut Random, call: Call) -> bool {
        if now < self.down_until {
            return false;
        }
        if random.below(100) < self.late {
            self.late_calls.push((now + Duration::from_millis(random.below(2_000)), call));
            return false;
        }
        self.apply(&call);
        random.below(100) >= self.lost
    }

    /// Takes one step of a node's poller.
    fn advance(&mut self, now: Duration, random: &mut Random, node: &mut Node) -> Progress {
        let at = self.start + now;
        let is_down = now < self.down_until;
        match node.poller.step(at) {
            Step::Wait(_) => return Progress::Waits,
            Step::Prepare | Step::Read if is_down => node.poller.failed(at),
            Step::Prepare => node.poller.prepared(),
            Step::Read => {
                let read = self.outbox.read("default", LIMITS).now_or_never();
                let Some(Ok(read)) = read else { unreachable!("the outbox in memory never fails and never waits") };
                node.poller.read(at, &read, |key| node.keys.contains(key));
                if self.mutant == Some(Mutant::RemovesFirst) {
                    let rows: Vec<RowId> = read.rows.iter().map(|row| row.id).collect();
                    self.apply(&Call::Remove(rows));
                }
            }
            Step::Publish { not_after, .. } if at > not_after => node.poller.published(at, &[]),
            Step::Publish { publishes, .. } => {
                let mut publishes: Vec<(Bytes, Bytes)> =
                    publishes.into_iter().map(|publish| (publish.content, publish.key)).collect();
                if self.mutant == Some(Mutant::ChangesKeys) {
                    for (_, key) in &mut publishes {
                        self.keys += 1;
                        *key = [OUTBOX_KEY, self.keys.to_string().as_bytes()].concat().into();
                    }
                }
                return Progress::Publishes(publishes);
            }
            Step::Remove(rows) => match self.call(now, random, Call::Remove(rows)) {
                true => node.poller.removed(at),
                false => node.poller.failed(at),
            },
            Step::Fail(rows) => match self.call(now, random, Call::Fail(rows)) {
                true => node.poller.moved(at),
                false => node.poller.failed(at),
            },
        }
        Progress::Goes
    }

    /// Checks what was delivered so far.
    fn check(&self) -> Result<(), String> {
        for (row, positions) in &self.delivered {
            let Row { is_malformed, is_committed } = self.rows[*row];
            if !is_committed || is_malformed {
                return Err(format!("row {row} was delivered, and must not be"));
            }
            if positions.len() > 1 {
                return Err(format!("row {row} was delivered at {} log positions", positions.len()));
            }
        }
        Ok(())
    }

    /// Checks what must be true once all has healed.
    fn check_end(&self) -> Result<(), String> {
        let mut malformed = 0;
        for rows in &self.committed {
            let mut last = 0;
            for row in rows {
                if self.rows[*row].is_malformed {
                    malformed += 1;
                    continue;
                }
                let Some(positions) = self.delivered.get(row) else {
                    return Err(format!("row {row} was committed and not delivered"));
                };
                if positions[0].seq < last {
                    return Err(format!("row {row} was delivered before an earlier one of its transaction"));
                }
                last = positions[0].seq;
            }
        }
        let failed = self.outbox.failed().len();
        if failed != malformed {
            return Err(format!("{failed} rows failed, and {malformed} are malformed"));
        }
        if self.committed.is_empty() {
            return Err("nothing was committed".into());
        }
        Ok(())
    }
}

/// What a step of a poller led to.
enum Progress {
    Waits,
    Goes,
    Publishes(Vec<(Bytes, Bytes)>),
}

impl Clients for Site {
    fn boot(&mut self, node: usize, id: NodeId) {
        let running = Node { id, poller: Poller::default(), keys: DeliveredKeys::default(), publishing: None };
        self.nodes.insert(node, running);
    }

    fn lose(&mut self, node: usize) {
        self.nodes.remove(&node);
    }

    fn output(&mut self, node: usize, output: &Output) {
        let Some(node) = self.nodes.get_mut(&node) else { return };
        match output {
            Output::Deliver { position, proposal, repeated } => {
                node.keys.note(proposal.key.clone(), position.seq);
                let is_row = proposal.key.as_ref().is_some_and(|key| key.starts_with(OUTBOX_KEY));
                if let (Some(content), true, None) = (&proposal.content, is_row, repeated) {
                    let positions = self.delivered.entry(row_of(content)).or_default();
                    if !positions.contains(position) {
                        positions.push(*position);
                    }
                }
            }
            Output::Cut { after } => node.keys.cut(*after),
            Output::Restarted { .. } => node.keys.cut(0),
            Output::Accepted { counter } => {
                node.publishing.iter_mut().for_each(|publishing| publishing.accepted.push(*counter));
            }
            _ => {}
        }
    }

    fn step(&mut self, now: Duration, random: &mut Random, _: &[usize], calm: bool, _: &Checks) -> Result<(), String> {
        if calm {
            self.transactions.clear();
            (self.down_until, self.lost, self.late) = (Duration::ZERO, 0, 0);
        } else {
            self.live(now, random);
        }
        self.catch_up(now);
        self.check()
    }

    fn work(&mut self, now: Duration, random: &mut Random, node: usize, status: &Status) -> Vec<(Bytes, Bytes)> {
        let Some(mut running) = self.nodes.remove(&node) else { return Vec::new() };
        let mut published = Vec::new();
        for _ in 0..=random.below(4) {
            if let Some(publishing) = &running.publishing {
                let outcome = |counter: &Option<u64>| match counter {
                    Some(counter) if publishing.accepted.contains(counter) => Outcome::Accepted,
                    _ => Outcome::Open,
                };
                let outcomes: Vec<Outcome> = publishing.counters.iter().map(outcome).collect();
                let waits = publishing
                    .counters
                    .iter()
                    .zip(&outcomes)
                    .any(|(counter, outcome)| counter.is_some() && *outcome == Outcome::Open);
                if waits && now - publishing.since < PUBLISH_TIMEOUT {
                    break;
                }
                running.publishing = None;
                running.poller.published(self.start + now, &outcomes);
            }
            let leads = status.master == Some(running.id) && status.degraded != Some(Degraded::Isolated);
            if running.poller.is_between_rounds() && !leads {
                running.poller.pause();
                break;
            }
            match self.advance(now, random, &mut running) {
                Progress::Waits => break,
                Progress::Goes => {}
                Progress::Publishes(publishes) => {
                    let (counters, accepted) = (Vec::new(), Vec::new());
                    running.publishing = Some(Publishing { since: now, counters, accepted });
                    published = publishes;
                    break;
                }
            }
        }
        self.nodes.insert(node, running);
        published
    }

    fn published(&mut self, node: usize, mut counters: Vec<Option<u64>>) {
        // A node takes none after one that it did not take.
        let taken = counters.iter().position(Option::is_none).unwrap_or(counters.len());
        assert!(counters[taken..].iter().all(Option::is_none), "no run publishes that much");
        if let Some(publishing) = self.nodes.get_mut(&node).and_then(|node| node.publishing.as_mut()) {
            publishing.counters = std::mem::take(&mut counters);
        }
    }

    fn is_settled(&self, _: Seq) -> bool {
        let is_done = self.outbox.waiting() == 0
            && self.late_calls.is_empty()
            && self.nodes.values().all(|node| node.publishing.is_none());
        if is_done && let Err(why) = self.check_end() {
            std::panic::resume_unwind(Box::new(why));
        }
        is_done
    }
}

/// Returns the number of the row that an entry has.
fn row_of(content: &Bytes) -> usize {
    let Ok(Content::Message { details, .. }) = Content::decode(content.clone()) else { panic!("a row is a message") };
    let details: [usize; 1] = serde_json::from_slice(&details).expect("the details of a row");
    details[0]
}

#[test]
fn committed_rows_are_delivered_once_and_rolled_back_rows_never() {
    search(1_000, |seed, story| single_faults_with_clients(seed, story, |_| Box::new(Site::new(None))));
}

#[test]
fn the_checks_notice_rules_that_are_left_out() {
    for mutant in [Mutant::ChangesKeys, Mutant::RemovesFirst] {
        let is_noticed = (0..200).any(|seed| {
            let run = || single_faults_with_clients(seed, false, |_| Box::new(Site::new(Some(mutant))));
            catch_unwind(AssertUnwindSafe(run)).is_err()
        });
        assert!(is_noticed, "{mutant:?}");
    }
}
