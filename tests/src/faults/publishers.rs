//! The publishers of a run. Some publish over HTTP like a site, with an idempotency key, and go to another node if one
//! does not answer. Others publish over links, like programs.

use crate::message;
use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep},
};
use ws_cluster::Publisher;

use super::{
    crowd::{ACTION, PADDING, USERS},
    recorder::Recorder,
};
use crate::{
    history::Record,
    publish::{Message, Refusal, publish},
    random::Random,
};

/// Longer than a node waits (5 s).
const ANSWER: Duration = Duration::from_secs(8);
/// Time for which a message is tried again. It is longer than any fault.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time before a message is tried again if a node refused at once.
const PAUSE: Duration = Duration::from_millis(50);

/// The nodes at which messages are published.
#[derive(Clone)]
pub(super) struct Place {
    /// The nodes' addresses.
    pub(super) addresses: Vec<SocketAddr>,
    /// The names of their present processes.
    pub(super) processes: Arc<Mutex<Vec<String>>>,
    /// The recorder.
    pub(super) recorder: Arc<Recorder>,
}

/// The publishers that run.
pub(super) struct Publishers {
    stop: watch::Sender<bool>,
    at_work: Vec<JoinHandle<()>>,
}

impl Publishers {
    /// Starts two publishers for each node, and one for each of `links`. Without faults they publish `rate` messages
    /// per second together.
    pub(super) fn start(place: &Place, links: Vec<Publisher>, rate: f64, seed: u64) -> Self {
        let (stop, stopped) = watch::channel(false);
        let homes = place.addresses.len();
        let count = 2 * homes + links.len();
        let pace = Duration::from_secs_f64(count as f64 / rate);
        let mut at_work = Vec::new();
        let mut start = |way| {
            let number = at_work.len();
            let worker = Worker {
                name: format!("publisher {number}"),
                run: seed,
                place: place.clone(),
                random: Random::new(seed.wrapping_add(1 + number as u64)),
                way,
            };
            at_work.push(tokio::spawn(worker.work(pace, stopped.clone())));
        };
        (0..2 * homes).for_each(|number| start(Way::Http { home: number % homes }));
        links.into_iter().for_each(|link| start(Way::Link(link)));
        Self { stop, at_work }
    }

    /// Waits until the publishers have finished their present messages.
    ///
    /// # Panics
    /// Panics if a publisher panicked.
    pub(super) async fn end(self) {
        self.stop.send_replace(true);
        for worker in self.at_work {
            worker.await.expect("a publisher does not fail");
        }
    }
}

enum Way {
    Http { home: usize },
    Link(Publisher),
}

struct Worker {
    name: String,
    /// A part of the idempotency keys, which are remembered for longer than a run.
    run: u64,
    place: Place,
    random: Random,
    way: Way,
}

impl Worker {
    async fn work(mut self, pace: Duration, mut stopped: watch::Receiver<bool>) {
        let mut pace = interval(pace);
        // Missed ticks are delayed, so that messages that a fault holds back do not come as a flood.
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for number in 0.. {
            tokio::select! {
                _ = pace.tick() => {}
                _ = stopped.wait_for(|stopped| *stopped) => break,
            }
            let to = match self.random.below(4) {
                0..=1 => "all".to_owned(),
                2 => "registered".to_owned(),
                _ => format!("user:u{}", self.random.below(USERS)),
            };
            self.publish(number, &to).await;
        }
    }

    async fn publish(&self, number: u64, to: &str) {
        let recorder = &self.place.recorder;
        let by = || (&*self.name).into();
        recorder.add(&Record::Begun { t: recorder.now(), by: by(), number, to: to.into() });
        let key = format!("{} {} {number}", self.run, self.name);
        let details = json!([self.name, number, PADDING]);
        let outcome = match &self.way {
            Way::Http { home } => {
                let message = Message { action: ACTION, details: &details, to, key: Some(&key) };
                anywhere(&self.place, *home, message, |node| {
                    recorder.add(&Record::Tried { t: recorder.now(), by: by(), number, node: node.into() });
                })
                .await
            }
            Way::Link(publisher) => link(publisher, details, to, &key).await,
        };
        let t = recorder.now();
        recorder.add(&match outcome {
            Ok(()) => Record::Accepted { t, by: by(), number },
            Err(why) => Record::Refused { t, by: by(), number, why: why.into() },
        });
    }
}

/// Publishes over HTTP at one node, or at the next one if there is no good answer. Records which nodes may have got it.
///
/// # Errors
/// Fails with the last reason if no node accepts in time.
/// None accepts in time, and why the last did not.
pub(super) async fn anywhere(
    place: &Place,
    home: usize,
    message: Message<'_>,
    mut tried: impl FnMut(&str),
) -> Result<(), String> {
    let deadline = Instant::now() + PATIENCE;
    let mut node = home;
    loop {
        let before = place.processes.lock()[node].clone();
        let outcome = publish(place.addresses[node], message, ANSWER).await;
        if !matches!(outcome, Err(Refusal::NotThere)) {
            tried(&before);
            let after = place.processes.lock()[node].clone();
            // The node was restarted meanwhile, and either process may have got it.
            if after != before {
                tried(&after);
            }
        }
        let why = match outcome {
            Ok(()) => return Ok(()),
            Err(Refusal::Wrong(why)) => return Err(why),
            Err(Refusal::NotThere) => "nothing listens there".to_owned(),
            Err(Refusal::Unclear(why)) => why,
        };
        if Instant::now() >= deadline {
            return Err(why);
        }
        sleep(PAUSE).await;
        node = (node + 1) % place.addresses.len();
    }
}

async fn link(publisher: &Publisher, details: Value, to: &str, key: &str) -> Result<(), String> {
    let target: ws_cluster::Target = to.parse().expect("a target");
    let deadline = Instant::now() + PATIENCE;
    loop {
        match publisher.publish(message(ACTION, details.clone(), target.clone()).idempotency_key(key)).await {
            Ok(()) => return Ok(()),
            Err(error) if !error.is_retryable() || Instant::now() >= deadline => return Err(error.to_string()),
            Err(_) => sleep(PAUSE).await,
        }
    }
}
