//! The servers that are compared: how each is started, how its clients connect, how it is told to publish. One file
//! for each.

use std::{net::SocketAddr, process::Command, time::Duration};

use benches::{Result, marked};
use tempfile::TempDir;

use crate::{
    load::order::Recipe,
    process::{Process, free_port},
};

mod foreign;
mod own;

pub(crate) use foreign::{Centrifugo, Nats, Nchan, NodeWs, SocketIo, SocketIoxide};
pub(crate) use own::{Floor, Ours, Plain};

/// Bytes of a message as its client sees it.
pub(crate) const MESSAGE: usize = 100;

/// Where a server is to listen.
pub(crate) struct Place {
    pub(crate) port: u16,
    pub(crate) control: u16,
}

/// A server under test.
pub(crate) trait Peer {
    fn name(&self) -> &'static str;

    /// How to get it, where it is not installed.
    fn missing(&self) -> Option<String> {
        None
    }

    /// The program and its arguments; it goes on until it is killed.
    fn command(&self, place: &Place) -> Result<Command>;

    /// How its clients connect, the port left out.
    fn recipe(&self) -> Recipe;

    /// What is written to publish a text to all clients so many times at once.
    fn publish(&self, messages: usize) -> String {
        benches::control::request(&format!("/publish?count={messages}"), &marked(MESSAGE))
    }

    /// What the control connection begins with.
    fn introduction(&self) -> &'static str {
        ""
    }

    /// A message of a client that the server answers with one of the same size.
    fn echo(&self) -> Option<String> {
        None
    }

    /// Whether publishes go to the port of the clients.
    fn one_port(&self) -> bool {
        false
    }
}

/// A server that runs.
pub(crate) struct Running {
    pub(crate) port: u16,
    pub(crate) control: SocketAddr,
    process: Process,
    _directory: TempDir,
}

impl Running {
    /// Starts a server on this core, or anywhere.
    pub(crate) fn start(peer: &dyn Peer, core: Option<usize>) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("benches-").tempdir()?;
        let port = free_port()?;
        let control = if peer.one_port() { port } else { free_port()? };
        let place = Place { port, control };
        let mut process = Process::start(core, &peer.command(&place)?, directory.path())?;
        process.listening(port, directory.path())?;
        process.listening(control, directory.path())?;
        Ok(Self { port, control: SocketAddr::from(([127, 0, 0, 1], control)), process, _directory: directory })
    }

    pub(crate) fn cpu(&self) -> Duration {
        self.process.cpu()
    }

    pub(crate) fn memory(&self) -> u64 {
        self.process.memory()
    }
}
