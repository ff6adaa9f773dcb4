//! Clients that come back and get what they missed: all of it is in here.
//!
//! Each message tells its client a position. On its return the client brings the last one (`request`), and a sealed state
//! (`seal`, `state`): what it was, and since when. `join_phase` says how far it is, `join` makes it what it was and sends it
//! what it missed, `turns` limits how many are sent something at once. What was missed is found in `history`, which
//! `replay_log` keeps beside what may come again after a failover. `owed` is the hub's half: what happens under its lock.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{Client, Hub};
use crate::{Config, LogConfig, message::content::Content, node::Cluster};

pub(crate) mod history;
mod join;
mod join_phase;
mod owed;
pub(super) mod replay_log;
mod request;
mod seal;
mod state;
mod turns;

pub(crate) use join::{Admitted, Step};
pub(crate) use join_phase::{Arriving, JoinPhase, Joining};
pub(crate) use owed::AT_ONCE;
#[cfg(test)]
pub(crate) use owed::replay;
pub(crate) use request::ResumeRequest;
pub(crate) use seal::StateSealer;
pub(crate) use state::{ResumeState, unix_time};
pub(crate) use turns::{Replays, Turn};

/// What a node needs to let clients come back.
pub(crate) struct Resumption {
    pub(crate) hub: Arc<Hub>,
    /// Seals what clients carry from one connection to the next.
    pub(crate) sealer: StateSealer,
    config: Config,
    cluster: Cluster,
    /// Turns of clients that are sent what they missed.
    replays: Arc<Replays>,
    runtime: Handle,
}

impl Resumption {
    pub(crate) fn new(hub: Arc<Hub>, cluster: Cluster, sealer: StateSealer, config: Config) -> Arc<Self> {
        let replays = Arc::new(Replays::new(&config.connection));
        Arc::new(Self { hub, sealer, config, cluster, replays, runtime: Handle::current() })
    }

    /// Makes a client what it was before. `greets`: the application is asked whether the client may be here.
    pub(crate) fn admit(self: &Arc<Self>, client: &Arc<Client>, asked: ResumeRequest, greets: bool) -> Joining {
        Box::pin(join::admit(self.clone(), client.clone(), asked, greets))
    }

    /// Tells a client where it is, sends it what it missed, and lets it have what comes from then on.
    pub(crate) fn replay(self: &Arc<Self>, client: &Arc<Client>, back: Admitted) -> Joining {
        join::replay(self.clone(), client.clone(), back)
    }

    /// Tells a client what to carry from now on, if that changed, and the other nodes what is not valid any more.
    pub(crate) fn tell_changes(&self, client: &Client) {
        client.tell_changes(&self.hub, &self.sealer);
        self.revoke(client);
    }

    /// Tells the other nodes if something was taken away from a client that keeps its position, so that what it carried
    /// before gives nothing back. Does not wait for it.
    pub(crate) fn revoke(&self, client: &Client) {
        // What the application undoes when a client is gone is no reason to forget it, should it come back.
        if client.is_forgotten() || !client.membership().is_taken_from() {
            return;
        }
        let version = client.membership_lock().write().take_version();
        let Some(version) = version.filter(|_| client.keeps_position()) else { return };
        let content = Content::Revoked { connection: client.known_as(), version };
        let cluster = self.cluster.clone();
        self.runtime.spawn(async move {
            if let Err(error) = cluster.publish(&content, None).await {
                tracing::debug!(%error, "the other nodes may not know what was taken away from a client");
            }
        });
    }
}

/// How often a client is given anew what it carries, which is valid for as long as the log's age, and for this time beside,
/// so that it can be away for as long.
pub(crate) fn reseal_interval(log: &LogConfig) -> Duration {
    log.age / 4
}
