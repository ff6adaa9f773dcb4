//! The measurements. Each takes a server that was started for it and returns a figure. [`compare`](crate::compare) and
//! [`goals`](crate::goals) decide how often, in what order and for what purpose.

use std::{thread::sleep, time::Duration};

use benches::Result;

use crate::{
    load::{
        Load,
        order::{FanOut, Order, Recipe, Report},
    },
    machine,
    peers::{Peer, Running},
};

pub(crate) mod batch;
pub(crate) mod connect;
pub(crate) mod deflate;
pub(crate) mod echo;
pub(crate) mod fan_out;
pub(crate) mod followers;
pub(crate) mod idle;
pub(crate) mod locks;
pub(crate) mod relay;
pub(crate) mod slow;
pub(crate) mod targets;

/// Number of handshakes at a time while a measurement prepares. The backlog of every server has room for them.
const IN_FLIGHT: usize = 64;

/// A server with its clients.
pub(crate) struct Stage {
    pub(crate) server: Running,
    pub(crate) load: Load,
    recipe: Recipe,
    introduction: &'static str,
    clients: usize,
}

impl Stage {
    /// Starts both, each on its core.
    pub(crate) fn set(peer: &dyn Peer) -> Result<Self> {
        let [server, clients] = machine::cores()?;
        Self::set_on(peer, Some(server), Some(clients))
    }

    /// Starts both on these cores, or on any core.
    pub(crate) fn set_on(peer: &dyn Peer, server: Option<usize>, clients: Option<usize>) -> Result<Self> {
        let server = Running::start(peer, server)?;
        let recipe = Recipe { port: server.port, ..peer.recipe() };
        Ok(Self { server, load: Load::start(clients)?, recipe, introduction: peer.introduction(), clients: 0 })
    }

    /// Connects the clients that are missing.
    pub(crate) fn connect(&mut self, clients: usize) -> Result<Report> {
        self.connect_by(clients, IN_FLIGHT)
    }

    /// Connects the missing clients, with at most `in_flight` handshakes at a time.
    pub(crate) fn connect_by(&mut self, clients: usize, in_flight: usize) -> Result<Report> {
        let count = clients.saturating_sub(self.clients);
        let order = Order::Connect { recipe: self.recipe.clone(), first: self.clients, count, in_flight };
        let report = self.load.order(&order)?;
        if report.failed > 0 {
            let trouble = report.trouble.as_deref().unwrap_or("no answer");
            return Err(format!("{} of {count} clients could not connect: {trouble}", report.failed).into());
        }
        self.clients += count;
        Ok(report)
    }

    /// Drops all clients.
    pub(crate) fn disconnect(&mut self) -> Result<()> {
        self.clients = 0;
        self.load.order(&Order::Close)?;
        Ok(())
    }

    /// Waits until the work after connecting has ended.
    pub(crate) fn settle(&self) {
        sleep(Duration::from_millis(300));
    }

    /// Returns the server's CPU time for an order, and the report. Fails if messages are missing.
    pub(crate) fn cost(&mut self, order: &Order) -> Result<(Duration, Report)> {
        let before = self.server.cpu()?;
        let report = self.load.order(order)?;
        let cost = self.server.cpu()?.checked_sub(before).ok_or("a process of the server has ended")?;
        if report.failed > 0 {
            let trouble = report.trouble.as_deref().unwrap_or_default();
            return Err(format!("{} messages of {} are missing {trouble}", report.failed, report.done).into());
        }
        Ok((cost, report))
    }

    /// Returns the order for rounds of publishing to all.
    pub(crate) fn all(&self, publish: String, messages: usize, rounds: usize) -> FanOut {
        FanOut {
            publish_to: Some(self.server.publishing),
            introduction: self.introduction.to_owned(),
            publishes: vec![publish],
            reached: self.clients,
            messages,
            rounds,
            pause_micros: 500,
            spin: true,
            ..FanOut::default()
        }
    }
}
