//! The load generator's actions for each order.

use std::{
    net::SocketAddr,
    rc::Rc,
    time::{Duration, Instant},
};

use benches::Result;
use mio::{Interest, Token};

use super::{
    Generator, PATIENCE,
    order::{FanOut, Pace, Recipe, Report},
    transport::trust,
};

/// Time for which it waits for events before it checks whether enough has happened.
const STEP: Duration = Duration::from_millis(1);

/// Time for a server to close a client that reads again.
const CLOSING: Duration = Duration::from_secs(10);

impl Generator {
    pub(super) fn connect(&mut self, recipe: Recipe, first: usize, count: usize, in_flight: usize) -> Result<Report> {
        let (recipe, tls) = (Rc::new(recipe.clone()), trust(&recipe)?);
        let base = self.clients.len();
        let mut begun = 0;
        let mut progress = Instant::now();
        while self.tally.opened + self.tally.failed < count {
            while begun < count && begun - self.tally.opened - self.tally.failed < in_flight {
                self.open(base + begun, first + begun, recipe.clone(), tls.clone())?;
                begun += 1;
            }
            let before = self.tally.opened;
            self.turn(Some(STEP))?;
            if self.tally.opened > before {
                progress = Instant::now();
            } else if progress.elapsed() > PATIENCE {
                self.tally.trouble.get_or_insert("a handshake does not end".to_owned());
                break;
            }
        }
        Ok(Report { done: self.tally.opened, failed: count - self.tally.opened, ..Report::default() })
    }

    pub(super) fn fan_out(&mut self, order: &FanOut) -> Result<Report> {
        let to = order.publish_to.ok_or("nowhere to publish")?;
        self.introduce(to, &order.introduction, order.connections.max(1))?;
        let (mut seconds, mut done, mut failed) = (0.0, 0, 0);
        let read = self.bytes();
        for round in 0..order.rounds {
            let wanted = order.reached * order.messages;
            self.tally.round += 1;
            self.tally.messages = order.messages;
            (self.tally.marks, self.tally.answers) = (0, 0);
            let began = Instant::now();
            self.tally.ticks = vec![began];
            self.publish(&order.publishes[round % order.publishes.len()])?;
            self.wait(order.spin, |tally| tally.marks >= wanted && tally.answers >= order.answers)?;
            seconds += began.elapsed().as_secs_f64();
            done += self.tally.marks;
            failed += wanted.saturating_sub(self.tally.marks);
            if failed > 0 {
                break;
            }
            let pause = Instant::now();
            while pause.elapsed() < Duration::from_micros(order.pause_micros) {
                self.turn(Some(Duration::from_micros(order.pause_micros).saturating_sub(pause.elapsed())))?;
            }
        }
        let bytes = self.bytes() - read;
        Ok(Report { seconds, done, failed, bytes, ..self.latencies() })
    }

    /// Returns the number of bytes that the clients have read.
    fn bytes(&self) -> u64 {
        self.clients.iter().flatten().map(|client| client.bytes).sum()
    }

    pub(super) fn pace(&mut self, order: &Pace) -> Result<Report> {
        self.introduce(order.publish_to.ok_or("nowhere to publish")?, "", 1)?;
        let clients = self.clients.iter().flatten().filter(|client| !client.stalled).count();
        self.tally.messages = order.messages;
        let began = Instant::now();
        for tick in 0..order.ticks {
            let due = began + Duration::from_secs_f64(tick as f64 / order.per_second as f64);
            while let Some(wait) = due.checked_duration_since(Instant::now()).filter(|wait| !wait.is_zero()) {
                self.turn(Some(wait))?;
            }
            self.tally.ticks.push(Instant::now());
            for publish in &order.publishes {
                self.publish(publish)?;
            }
        }
        let wanted = clients * order.messages * order.ticks;
        self.wait(false, |tally| tally.marks >= wanted)?;
        let done = self.tally.marks;
        Ok(Report { done, failed: wanted.saturating_sub(done) + self.tally.failed, ..self.latencies() })
    }

    pub(super) fn echo(&mut self, message: &str, clients: usize, answers: usize, rounds: usize) -> Result<Report> {
        let (mut seconds, mut done, mut failed) = (0.0, 0, 0);
        for _ in 0..rounds {
            self.tally.round += 1;
            self.tally.marks = 0;
            self.tally.messages = answers;
            let began = Instant::now();
            self.tally.ticks = vec![began];
            for index in 0..clients.min(self.clients.len()) {
                if let Some(client) = &mut self.clients[index] {
                    client.say(message)?;
                }
            }
            let wanted = clients * answers;
            self.wait(true, |tally| tally.marks >= wanted)?;
            seconds += began.elapsed().as_secs_f64();
            done += self.tally.marks;
            failed += wanted.saturating_sub(self.tally.marks);
        }
        Ok(Report { seconds, done, failed, ..self.latencies() })
    }

    pub(super) fn churn(&mut self, recipe: Recipe, message: String, count: usize, in_flight: usize) -> Result<Report> {
        let (recipe, tls) = (Rc::new(recipe.clone()), trust(&recipe)?);
        self.churn = Some(message);
        let base = self.clients.len();
        let mut places: Vec<usize> = (base..base + in_flight).rev().collect();
        self.clients.resize_with(base + in_flight, || None);
        let mut begun = 0;
        let mut progress = Instant::now();
        while self.tally.ended < count {
            while begun < count
                && let Some(place) = places.pop()
            {
                self.open(place, begun, recipe.clone(), tls.clone())?;
                begun += 1;
            }
            let before = self.tally.ended;
            self.turn(Some(STEP))?;
            if self.tally.ended > before {
                progress = Instant::now();
                places = (base..base + in_flight).filter(|place| self.clients[*place].is_none()).collect();
            } else if progress.elapsed() > PATIENCE {
                self.tally.trouble.get_or_insert("a connection does not end".to_owned());
                break;
            }
        }
        self.churn = None;
        let done = self.tally.ended - self.tally.failed;
        Ok(Report { done, failed: count - done, ..Report::default() })
    }

    pub(super) fn stall(&mut self, from: usize) -> Result<Report> {
        let mut done = 0;
        for client in self.clients.iter_mut().skip(from).flatten() {
            client.stalled = true;
            self.poll.registry().deregister(&mut client.transport.stream)?;
            done += 1;
        }
        Ok(Report { done, ..Report::default() })
    }

    pub(super) fn unstall(&mut self) -> Result<Report> {
        let mut stalled = 0;
        let interest = Interest::READABLE | Interest::WRITABLE;
        for (index, client) in self.clients.iter_mut().enumerate() {
            let Some(client) = client.as_mut().filter(|client| client.stalled) else { continue };
            client.stalled = false;
            self.poll.registry().register(&mut client.transport.stream, Token(index), interest)?;
            stalled += 1;
        }
        // A close frame may wait behind other frames.
        let began = Instant::now();
        while self.tally.ended < stalled && began.elapsed() < CLOSING {
            self.turn(Some(STEP))?;
        }
        let done = self.tally.ended;
        Ok(Report { done, failed: stalled - done, ..Report::default() })
    }

    pub(super) fn flood(
        &mut self,
        to: SocketAddr,
        publish: String,
        connections: usize,
        time: Duration,
    ) -> Result<Report> {
        self.introduce(to, "", connections)?;
        let began = Instant::now();
        self.publish(&publish)?;
        self.flood = Some(publish);
        while let Some(left) = time.checked_sub(began.elapsed()) {
            self.turn(Some(left))?;
        }
        let (seconds, accepted) = (began.elapsed().as_secs_f64(), self.tally.answers);
        self.flood = None;
        let clients = self.clients.iter().flatten().count();
        // Those that are under way count as messages, but came too late for the rate.
        self.wait(false, |tally| tally.answers >= accepted + connections && tally.marks >= tally.answers * clients)?;
        let failed = (self.tally.answers * clients).saturating_sub(self.tally.marks);
        Ok(Report { seconds, done: accepted, failed, ..Report::default() })
    }

    pub(super) fn count(&mut self, time: Duration) -> Result<Report> {
        let began = Instant::now();
        while let Some(left) = time.checked_sub(began.elapsed()) {
            self.turn(Some(left))?;
        }
        Ok(Report { done: self.tally.marks, failed: self.tally.failed, ..Report::default() })
    }

    /// Waits until everything has come, or nothing comes any more.
    fn wait(&mut self, spin: bool, done: impl Fn(&super::Tally) -> bool) -> Result<()> {
        let mut progress = Instant::now();
        while !done(&self.tally) {
            let before = self.tally.marks;
            self.turn(Some(if spin { Duration::ZERO } else { Duration::from_millis(100) }))?;
            if self.tally.marks > before {
                progress = Instant::now();
            } else if progress.elapsed() > PATIENCE {
                let text = format!("only {} messages came", self.tally.marks);
                self.tally.trouble.get_or_insert(text);
                return Ok(());
            }
        }
        Ok(())
    }

    fn latencies(&mut self) -> Report {
        let [p50_micros, p99_micros] = percentiles(&mut self.tally.arrivals);
        let [accepted_p50_micros, accepted_p99_micros] = percentiles(&mut self.tally.acceptances);
        Report { p50_micros, p99_micros, accepted_p50_micros, accepted_p99_micros, ..Report::default() }
    }
}

/// Returns the median and the 99th percentile of nanoseconds, in microseconds.
fn percentiles(times: &mut [u64]) -> [f64; 2] {
    times.sort_unstable();
    [0.5, 0.99].map(|share| match times.len() {
        0 => 0.0,
        count => times[((count - 1) as f64 * share) as usize] as f64 / 1000.0,
    })
}
