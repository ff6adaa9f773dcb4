//! What the process is told by signals: to stop (SIGTERM or ctrl-c), or to read its configuration again (SIGHUP).

use std::{io, process};

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::stderr::Stderr;

/// The signals that the process acts on.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// What a signal says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Told {
    Stop,
    ReadAgain,
}

impl Signals {
    /// Catches them from now on.
    pub(crate) fn catch() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// Resolves at the first that says to stop; `read_again` is called at the others before it. One that comes after it
    /// does not wait for what is going on then.
    pub(crate) async fn stop(mut self, mut read_again: impl FnMut()) {
        while self.next().await == Told::ReadAgain {
            read_again();
        }
        tracing::info!("shutting down; a second signal ends it at once");
        tokio::spawn(async move {
            while self.next().await == Told::ReadAgain {}
            tracing::warn!("ended before the shutdown was through");
            Stderr::get().flush();
            process::exit(1);
        });
    }

    /// The next one. Dropped before it resolves, it has taken none.
    pub(crate) async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.terminate.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::ReadAgain,
        }
    }
}
