//! Transactions of a site that insert rows into the outbox, while the master and the database are killed between any two
//! steps. A seed determines the transactions and the kills.

use std::{collections::BTreeMap, time::Duration};

use futures_util::StreamExt;
use mysql_async::{Conn, prelude::Queryable};
use serde_json::Value;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_tungstenite::tungstenite::Message;

use crate::{MariaDb, client::Client, processes::Processes, random::Random};

/// Maximum wait for anything in a run.
const PATIENCE: Duration = Duration::from_secs(90);
/// Time between two looks at a table, which sends no notice.
const LOOK: Duration = Duration::from_millis(20);
/// Longest time from a step to the kill beside it, in milliseconds. A round of the poller takes less.
const MAX_DELAY: u64 = 90;

/// A cluster with an outbox, and its site.
pub struct Site {
    /// The database.
    pub database: MariaDb,
    /// The nodes.
    pub processes: Processes,
    runs: u64,
}

/// What happened in a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rows that were committed and delivered.
    pub delivered: usize,
    /// Rows of transactions that rolled back.
    pub rolled_back: usize,
    /// Rows of commits that had no answer, and how many of them were delivered.
    pub unknown: (usize, usize),
    /// Malformed rows that were committed.
    pub failed: usize,
    /// True if the master and the database were killed.
    pub kills: (bool, bool),
}

/// A transaction.
struct Transaction {
    /// The rows. Of malformed ones, the details are no JSON.
    rows: Vec<Row>,
    commits: bool,
    outcome: Outcome,
    conn: Option<Conn>,
}

struct Row {
    tag: String,
    is_malformed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Open,
    Committed,
    RolledBack,
    /// The commit had no answer.
    Unknown,
}

/// A step of a transaction.
#[derive(Clone, Copy, Debug)]
enum Step {
    Begin(usize),
    Insert(usize, usize),
    End(usize),
}

/// What is killed beside a step, and how long after it begins.
#[derive(Clone, Copy, Debug)]
struct Kill {
    step: usize,
    delay: Duration,
    is_database: bool,
}

/// A client that keeps the tags that it gets.
struct Observer {
    node: usize,
    tags: watch::Receiver<Vec<String>>,
    task: JoinHandle<()>,
}

impl Site {
    /// Starts two nodes with an outbox.
    pub async fn start() -> Self {
        let database = MariaDb::start().await;
        let processes = Processes::start(&[database.database().await], 2, &["--demo", "--outbox"]).await;
        Self { database, processes, runs: 0 }
    }

    /// Runs the transactions and kills of a seed.
    ///
    /// # Errors
    /// Says which promise was broken.
    pub async fn run(&mut self, seed: u64) -> Result<Summary, String> {
        self.runs += 1;
        let mut random = Random::new(seed);
        let prefix = format!("run {} seed {seed}", self.runs);
        let mut transactions = transactions(&mut random, &prefix);
        let steps = steps(&mut random, &transactions);
        let kills = kills(&mut random, steps.len());
        let settled = self.processes.settled().await?;
        let observers = self.observers().await;
        let mut summary = Summary::default();
        for (index, step) in steps.into_iter().enumerate() {
            let url = self.processes.url().to_owned();
            let beside: Vec<Kill> = kills.iter().copied().filter(|kill| kill.step == index).collect();
            let killing = async {
                for kill in beside {
                    sleep(kill.delay).await;
                    if kill.is_database {
                        summary.kills.1 = true;
                        self.database.kill().await;
                        self.database.start_again().await;
                    } else {
                        summary.kills.0 = true;
                        self.processes.kill(settled.master).await;
                    }
                }
            };
            tokio::join!(take(&url, &mut transactions, step), killing);
        }
        if summary.kills.0 {
            self.processes.start_node(settled.master).await;
        }
        self.processes.settled().await?;
        let last = format!("{prefix} last");
        self.insert(&last).await?;
        let killed = summary.kills.0.then_some(settled.master);
        for observer in observers.into_iter().filter(|observer| Some(observer.node) != killed) {
            let tags = observer.up_to(&last).await.map_err(|why| format!("{prefix}: {why}"))?;
            check(&transactions, &tags, &mut summary).map_err(|why| format!("{prefix}: {why}: {tags:?}"))?;
        }
        self.check_tables(&transactions).await.map_err(|why| format!("{prefix}: {why}"))?;
        Ok(summary)
    }

    async fn observers(&self) -> Vec<Observer> {
        let mut observers = Vec::new();
        for node in 0..self.processes.count() {
            let mut client = Client::connect_to(self.processes.address(node), "/WebSockets").await;
            let (sender, tags) = watch::channel(Vec::new());
            // The answer shows that the client has joined.
            client.send("demo/node", Value::Null).await;
            while client.json().await["action"] != "demo/node" {}
            let task = tokio::spawn(async move {
                while let Some(Ok(frame)) = client.0.next().await {
                    let Message::Text(text) = frame else { continue };
                    let message: Value = serde_json::from_str(&text).expect("a message is JSON");
                    if message["action"] == "outbox/row" {
                        let tag = message["details"][0].as_str().expect("a tag").to_owned();
                        sender.send_modify(|tags: &mut Vec<String>| tags.push(tag));
                    }
                }
            });
            observers.push(Observer { node, tags, task });
        }
        observers
    }

    /// Inserts a row in a transaction of its own, at the first attempt that succeeds.
    async fn insert(&self, tag: &str) -> Result<(), String> {
        let inserting = async {
            loop {
                let Ok(mut conn) = Conn::from_url(self.processes.url()).await else {
                    sleep(LOOK).await;
                    continue;
                };
                conn.query_drop(insertion(tag, false)).await.map_err(|error| error.to_string())?;
                return Ok(());
            }
        };
        timeout(PATIENCE, inserting).await.unwrap_or_else(|_| Err("the database does not come back".into()))
    }

    /// Checks that no row waits, and that the malformed rows are where they belong.
    async fn check_tables(&self, transactions: &[Transaction]) -> Result<(), String> {
        let mut conn = Conn::from_url(self.processes.url()).await.map_err(|error| error.to_string())?;
        let waiting = async {
            while !matches!(conn.query_first::<u64, _>("SELECT COUNT(*) FROM ws_outbox").await, Ok(Some(0))) {
                sleep(LOOK).await;
            }
        };
        timeout(PATIENCE, waiting).await.map_err(|_| "rows stay in the outbox".to_owned())?;
        let failed: Vec<String> =
            conn.query("SELECT details FROM ws_outbox_failed").await.map_err(|error| error.to_string())?;
        for transaction in transactions {
            for row in transaction.rows.iter().filter(|row| row.is_malformed) {
                let details = format!("[\"{}\"", row.tag);
                let count = failed.iter().filter(|failed| **failed == details).count();
                let (least, most) = transaction.outcome.bounds();
                if !(least..=most).contains(&count) {
                    return Err(format!("{} is {count} times among those that failed", row.tag));
                }
            }
        }
        Ok(())
    }
}

impl Outcome {
    /// Returns how often a row may come, at least and at most.
    fn bounds(self) -> (usize, usize) {
        match self {
            Self::Committed => (1, 1),
            Self::RolledBack | Self::Open => (0, 0),
            Self::Unknown => (0, 1),
        }
    }
}

impl Observer {
    /// Waits until the client has this tag, and returns all that came before it.
    async fn up_to(mut self, last: &str) -> Result<Vec<String>, String> {
        let has = |tags: &Vec<String>| tags.iter().any(|tag| tag == last);
        let came = timeout(PATIENCE, self.tags.wait_for(has)).await;
        self.task.abort();
        match came {
            Ok(Ok(tags)) => Ok(tags.clone()),
            Ok(Err(_)) => Err(format!("the client of node {} was cut", self.node)),
            Err(_) => Err(format!("the client of node {} waits for {last}", self.node)),
        }
    }
}

fn transactions(random: &mut Random, prefix: &str) -> Vec<Transaction> {
    let transaction = |number: u64, random: &mut Random| {
        let count = 1 + random.below(4);
        let row = |row| Row { tag: format!("{prefix} {number}/{row}"), is_malformed: random.percent(15) };
        let rows = (0..count).map(row).collect();
        Transaction { rows, commits: random.percent(75), outcome: Outcome::Open, conn: None }
    };
    (0..6).map(|number| transaction(number, random)).collect()
}

/// Mixes the steps of the transactions. Each keeps its order.
fn steps(random: &mut Random, transactions: &[Transaction]) -> Vec<Step> {
    let mut left: Vec<Vec<Step>> = Vec::new();
    for (index, transaction) in transactions.iter().enumerate() {
        let inserts = (0..transaction.rows.len()).map(|row| Step::Insert(index, row));
        let all: Vec<Step> = [Step::Begin(index)].into_iter().chain(inserts).chain([Step::End(index)]).collect();
        left.push(all.into_iter().rev().collect());
    }
    let mut steps = Vec::new();
    while !left.is_empty() {
        let index = random.index(left.len());
        match left[index].pop() {
            Some(step) => steps.push(step),
            None => drop(left.swap_remove(index)),
        }
    }
    steps
}

/// Draws the kills: mostly one of the master, often one of the database, and sometimes none.
fn kills(random: &mut Random, steps: usize) -> Vec<Kill> {
    let mut kills = Vec::new();
    for (percent, is_database) in [(70, false), (45, true)] {
        if random.percent(percent) {
            let delay = Duration::from_millis(random.below(MAX_DELAY));
            kills.push(Kill { step: random.index(steps), delay, is_database });
        }
    }
    kills
}

fn insertion(tag: &str, is_malformed: bool) -> String {
    let end = if is_malformed { "" } else { "]" };
    format!("INSERT INTO ws_outbox (action, details, target) VALUES ('outbox/row', '[\"{tag}\"{end}', 'all')")
}

/// Takes a step. A transaction whose connection is lost is rolled back, unless it was about to commit.
async fn take(url: &str, transactions: &mut [Transaction], step: Step) {
    let (Step::Begin(index) | Step::Insert(index, _) | Step::End(index)) = step;
    let transaction = &mut transactions[index];
    if transaction.outcome != Outcome::Open {
        return;
    }
    let failed = match step {
        Step::Begin(_) => {
            // The database may be on its way back.
            let connecting = async {
                loop {
                    match Conn::from_url(url).await {
                        Ok(conn) => return conn,
                        Err(_) => sleep(LOOK).await,
                    }
                }
            };
            let conn = transaction.conn.insert(timeout(PATIENCE, connecting).await.expect("a database"));
            conn.query_drop("START TRANSACTION").await.is_err()
        }
        Step::Insert(_, row) => {
            let Row { tag, is_malformed } = &transaction.rows[row];
            let conn = transaction.conn.as_mut().expect("it has begun");
            conn.query_drop(insertion(tag, *is_malformed)).await.is_err()
        }
        Step::End(_) => {
            let conn = transaction.conn.as_mut().expect("it has begun");
            let end = if transaction.commits { "COMMIT" } else { "ROLLBACK" };
            let is_done = conn.query_drop(end).await.is_ok();
            transaction.outcome = match (transaction.commits, is_done) {
                (true, true) => Outcome::Committed,
                (true, false) => Outcome::Unknown,
                (false, _) => Outcome::RolledBack,
            };
            false
        }
    };
    if failed {
        transaction.outcome = Outcome::RolledBack;
    }
}

/// Checks what one client got.
fn check(transactions: &[Transaction], tags: &[String], summary: &mut Summary) -> Result<(), String> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    tags.iter().for_each(|tag| *counts.entry(tag).or_default() += 1);
    (summary.delivered, summary.rolled_back, summary.unknown, summary.failed) = Default::default();
    for transaction in transactions {
        let (least, most) = transaction.outcome.bounds();
        for row in &transaction.rows {
            let count = counts.get(&*row.tag).copied().unwrap_or_default();
            match (row.is_malformed, transaction.outcome) {
                (true, Outcome::Committed) => summary.failed += 1,
                (true, _) => {}
                (false, Outcome::Committed) => summary.delivered += count,
                (false, Outcome::Unknown) => {
                    summary.unknown = (summary.unknown.0 + 1, summary.unknown.1 + count);
                }
                (false, _) => summary.rolled_back += 1,
            }
            let (least, most) = if row.is_malformed { (0, 0) } else { (least, most) };
            if !(least..=most).contains(&count) {
                return Err(format!("{} was delivered {count} times, and is {:?}", row.tag, transaction.outcome));
            }
        }
        let places = transaction.rows.iter().filter_map(|row| tags.iter().position(|tag| *tag == row.tag));
        if !places.is_sorted() {
            return Err(format!("the rows of {} have lost their order", transaction.rows[0].tag));
        }
    }
    Ok(())
}
