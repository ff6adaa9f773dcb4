//! The load generator: one thread that has all clients of a run, counts what they receive and when, and writes the
//! publishes itself, so that one clock measures how long a message took. It is a process of its own that gets
//! [`order`]s through a [`handle`]. [`client`] is one connection, on a [`transport`], [`walker`]
//! reads frames, and [`publisher`] publishes.

use std::{
    io::ErrorKind,
    net::SocketAddr,
    rc::Rc,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use benches::Result;
use mio::{Events, Interest, Poll, Token, Waker};
use rustls::ClientConfig;

use self::{
    client::{Client, Progress, Stage},
    order::{Order, Recipe, Report},
    publisher::Publisher,
};

mod client;
mod handle;
pub(crate) mod order;
mod publisher;
mod rounds;
mod transport;
mod walker;

pub(crate) use handle::Load;

const WAKE: Token = Token(usize::MAX);

/// The tokens from this one up, except for [`WAKE`], are those of connections for publishes.
const FIRST_PUBLISHER: usize = usize::MAX - 1_000;

/// The buffer that all connections share. It is larger than what a round brings to one of them.
const BUFFER: usize = 256 * 1024;

/// Time without progress after which missing messages count as lost.
const PATIENCE: Duration = Duration::from_secs(20);

/// Carries out orders from the standard input until its end.
pub(crate) fn run() -> Result<()> {
    let poll = Poll::new()?;
    let waker = Waker::new(poll.registry(), WAKE)?;
    let (sender, orders) = mpsc::channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(std::result::Result::ok) {
            if sender.send(line).is_err() || waker.wake().is_err() {
                return;
            }
        }
        drop(sender);
        // If this fails, the generator has ended.
        let _ = waker.wake();
    });
    let mut generator = Generator::new(poll);
    loop {
        match orders.try_recv() {
            Ok(line) => {
                let report = generator
                    .carry_out(serde_json::from_str(&line)?)
                    .unwrap_or_else(|error| Report { trouble: Some(error.to_string()), ..Report::default() });
                println!("{}", serde_json::to_string(&report)?);
            }
            // Idle clients answer pings too.
            Err(mpsc::TryRecvError::Empty) => drop(generator.turn(None)?),
            Err(mpsc::TryRecvError::Disconnected) => return Ok(()),
        }
    }
}

struct Generator {
    poll: Poll,
    events: Events,
    /// The clients by their tokens.
    clients: Vec<Option<Client>>,
    publishers: Vec<Option<Publisher>>,
    publish_to: Option<SocketAddr>,
    buffer: Box<[u8]>,
    /// The message that every new client sends. It closes once it has an answer.
    churn: Option<String>,
    /// The publish that follows each answer.
    flood: Option<String>,
    tally: Tally,
}

/// The events since the last reset.
#[derive(Default)]
struct Tally {
    round: usize,
    /// The time at which each tick of the round was published, and the number of messages of each.
    ticks: Vec<Instant>,
    messages: usize,
    /// For each client and tick, the time until the client had all messages of the tick, in nanoseconds.
    arrivals: Vec<u64>,
    marks: usize,
    /// Number of ends of response heads on the connections for publishes.
    answers: usize,
    /// For each answer, the time since the round's publish, in nanoseconds.
    acceptances: Vec<u64>,
    opened: usize,
    ended: usize,
    failed: usize,
    closed: Option<u16>,
    trouble: Option<String>,
}

impl Tally {
    fn fail(&mut self, error: impl ToString) {
        self.failed += 1;
        self.trouble.get_or_insert_with(|| error.to_string());
    }
}

impl Generator {
    fn new(poll: Poll) -> Self {
        let (clients, publishers, publish_to, churn, flood, tally) = Default::default();
        let buffer = vec![0; BUFFER].into_boxed_slice();
        Self { poll, events: Events::with_capacity(1024), clients, publishers, publish_to, buffer, churn, flood, tally }
    }

    fn carry_out(&mut self, order: Order) -> Result<Report> {
        self.tally = Tally { round: self.tally.round + 1, ..Tally::default() };
        let began = Instant::now();
        let mut report = match order {
            Order::Connect { recipe, first, count, in_flight } => self.connect(recipe, first, count, in_flight)?,
            Order::FanOut(order) => self.fan_out(&order)?,
            Order::Pace(order) => self.pace(&order)?,
            Order::Echo { message, clients, answers, rounds } => self.echo(&message, clients, answers, rounds)?,
            Order::Churn { recipe, message, count, in_flight } => self.churn(recipe, message, count, in_flight)?,
            Order::Stall { from } => self.stall(from)?,
            Order::Unstall => self.unstall()?,
            Order::Flood { publish_to, publish, connections, millis } => {
                self.flood(publish_to, publish, connections, Duration::from_millis(millis))?
            }
            Order::Count { millis } => self.count(Duration::from_millis(millis))?,
            Order::Close => {
                (self.clients, self.publishers) = Default::default();
                Report::default()
            }
        };
        if report.seconds == 0.0 {
            report.seconds = began.elapsed().as_secs_f64();
        }
        report.trouble = self.tally.trouble.take();
        report.closed = report.closed.or(self.tally.closed);
        Ok(report)
    }

    /// Waits for events and handles all of them. Returns true if there were any.
    fn turn(&mut self, wait: Option<Duration>) -> Result<bool> {
        let mut events = std::mem::replace(&mut self.events, Events::with_capacity(0));
        match self.poll.poll(&mut events, wait) {
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            polled => polled?,
        }
        for event in &events {
            match event.token() {
                WAKE => {}
                Token(token) if token >= FIRST_PUBLISHER => self.drain_publisher(token - FIRST_PUBLISHER)?,
                Token(index) => {
                    let ending = event.is_read_closed() || event.is_error();
                    self.attend(index, event.is_readable() || ending, ending);
                }
            }
        }
        let any = !events.is_empty();
        self.events = events;
        Ok(any)
    }

    /// Handles an event of a client.
    fn attend(&mut self, index: usize, readable: bool, ending: bool) {
        let Some(client) = self.clients.get_mut(index).and_then(Option::as_mut) else { return };
        if client.stalled {
            return;
        }
        let progress = match client.stage {
            Stage::Connecting => client.connected().map(|()| Progress::None),
            _ if readable => client.read(&mut self.buffer, ending),
            _ => return,
        };
        let tally = &mut self.tally;
        match progress {
            Ok(Progress::None) => {}
            Ok(Progress::Opened) => {
                tally.opened += 1;
                if let Some(message) = &self.churn
                    && let Err(error) = client.say(message)
                {
                    self.give_up(index, error);
                }
            }
            Ok(Progress::Messages(count)) => {
                if client.round != tally.round {
                    (client.round, client.marks) = (tally.round, 0);
                }
                let before = client.marks;
                client.marks += count;
                tally.marks += count;
                // `None` if arrival times are not measured.
                let ticks = before.checked_div(tally.messages).zip(client.marks.checked_div(tally.messages));
                if let Some((from, to)) = ticks {
                    let now = Instant::now();
                    for tick in from..to {
                        tally.arrivals.extend(tally.ticks.get(tick).map(|at| (now - *at).as_nanos() as u64));
                    }
                }
                if self.churn.is_some()
                    && let Err(error) = client.close()
                {
                    self.give_up(index, error);
                }
            }
            Ok(Progress::Ended(code)) => {
                tally.ended += 1;
                tally.closed = tally.closed.or(code);
                if client.stage != Stage::Closing {
                    tally.fail("a connection was lost");
                }
                self.clients[index] = None;
            }
            Err(error) => self.give_up(index, error),
        }
    }

    fn give_up(&mut self, index: usize, error: impl ToString) {
        self.tally.ended += 1;
        self.tally.fail(error);
        self.clients[index] = None;
    }

    /// Begins a connection with this index.
    fn open(&mut self, index: usize, number: usize, recipe: Rc<Recipe>, tls: Option<Arc<ClientConfig>>) -> Result<()> {
        let mut client = Client::connect(number, recipe, tls)?;
        let interest = Interest::READABLE | Interest::WRITABLE;
        self.poll.registry().register(&mut client.transport.stream, Token(index), interest)?;
        if index == self.clients.len() {
            self.clients.push(Some(client));
        } else {
            self.clients[index] = Some(client);
        }
        Ok(())
    }
}
