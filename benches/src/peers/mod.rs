//! The servers that are compared: how each is started, how its clients connect, and how it is told to publish. Each has
//! its own file.

use std::{net::SocketAddr, process::Command, time::Duration};

use benches::{Result, marked};
use tempfile::TempDir;

use crate::{
    load::order::Recipe,
    process::{Process, free_ports},
    scenario::fan_out::Way,
};

mod encrypted;
mod foreign;
mod own;

pub(crate) use encrypted::{Certificate, Encrypted, Front};
pub(crate) use foreign::{Bun, Centrifugo, Nats, Nchan, NodeWs, SocketIo, SocketIoxide, installed};
pub(crate) use own::{OneSend, Ours, Plain};

/// Size of a message as its client sees it, in bytes.
pub(crate) const MESSAGE: usize = 100;

/// The ports on which a server listens.
pub(crate) struct Place {
    pub(crate) port: u16,
    pub(crate) control: u16,
}

/// A server under test.
pub(crate) trait Peer {
    fn name(&self) -> &'static str;

    /// Returns how to install it, if it is missing.
    fn missing(&self) -> Option<String> {
        None
    }

    /// Returns the program and its arguments. It runs until it is killed.
    fn command(&self, place: &Place) -> Result<Command>;

    /// Returns how its clients connect, without the port.
    fn recipe(&self) -> Recipe;

    /// Returns the bytes that publish a text to all clients several times at once: one request, if there is one for that.
    fn publish(&self, messages: usize) -> String {
        benches::control::request(&format!("/publish?count={messages}"), &marked(MESSAGE))
    }

    /// Returns the first bytes on the control connection.
    fn introduction(&self) -> &'static str {
        ""
    }

    /// Returns a client's message that the server answers with one of the same size.
    fn echo(&self) -> Option<String> {
        None
    }

    /// Returns true if publishes go to the clients' port.
    fn one_port(&self) -> bool {
        false
    }

    /// Returns the ways to publish in which it is measured.
    fn ways(&self) -> &'static [Way] {
        &Way::USUAL
    }
}

/// A running server.
pub(crate) struct Running {
    pub(crate) port: u16,
    pub(crate) control: SocketAddr,
    /// The address to which the bytes of [`Peer::publish`] go.
    pub(crate) publishing: SocketAddr,
    process: Process,
    _directory: TempDir,
}

impl Running {
    /// Starts a server on this core, or on any core.
    pub(crate) fn start(peer: &dyn Peer, core: Option<usize>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("benches-").tempdir()?;
        let [port, control] = free_ports()?;
        let place = Place { port, control };
        let publishing = if peer.one_port() { port } else { control };
        let mut process = Process::start(core, &peer.command(&place)?, directory.path())?;
        process.listening(port, directory.path())?;
        process.listening(publishing, directory.path())?;
        let [control, publishing] = [control, publishing].map(|port| SocketAddr::from(([127, 0, 0, 1], port)));
        Ok(Self { port, control, publishing, process, _directory: directory })
    }

    pub(crate) fn cpu(&self) -> Result<Duration> {
        self.process.cpu()
    }

    pub(crate) fn memory(&self) -> Result<u64> {
        self.process.memory()
    }
}
