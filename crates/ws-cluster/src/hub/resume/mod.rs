//! Clients that come back and get what they missed.
//!
//! Each message tells its client a position. On its return the client brings the last one (`request`) and a resume
//! token (`seal`, `state`), which says what the client was and since when. `join_phase` is the client's progress.
//! `join` restores its membership and sends it what it missed. `turns` limits the number of replays at a time.
//! `history` finds what was missed, and `group_commands` how the site changed groups meanwhile. `replay_log` keeps the
//! history, and the entries that may come again after a failover. `catch_up` is the part that happens under the hub's
//! lock.

use std::{sync::Arc, time::Duration};

use tokio::runtime::Handle;

use super::{Client, Hub};
use crate::{Config, LogConfig, message::content::Content, node::Cluster};

mod catch_up;
mod group_commands;
pub(crate) mod history;
mod join;
mod join_phase;
pub(super) mod replay_log;
mod request;
mod seal;
mod state;
mod turns;

pub(crate) use catch_up::MAX_UNDER_LOCK;
#[cfg(test)]
pub(crate) use catch_up::replay;
pub(crate) use join::{Admitted, Step};
pub(crate) use join_phase::{Arriving, JoinPhase, Joining};
pub(crate) use request::ResumeRequest;
pub(crate) use seal::StateSealer;
pub(crate) use state::{ResumeState, unix_time};
pub(crate) use turns::{ReplayTurn, Replays};

/// Everything that a node needs to let clients resume.
pub(crate) struct Resumption {
    pub(crate) hub: Arc<Hub>,
    /// Seals and opens resume tokens.
    pub(crate) sealer: StateSealer,
    config: Config,
    cluster: Cluster,
    /// Limits replays.
    replays: Arc<Replays>,
    runtime: Handle,
}

impl Resumption {
    pub(crate) fn new(hub: Arc<Hub>, cluster: Cluster, sealer: StateSealer, config: Config) -> Arc<Self> {
        let replays = Arc::new(Replays::new(&config.connection));
        Arc::new(Self { hub, sealer, config, cluster, replays, runtime: Handle::current() })
    }

    /// Makes a client what it was before. `asks_application`: the application is asked whether the client may join.
    pub(crate) fn admit(
        self: &Arc<Self>,
        client: &Arc<Client>,
        asked: ResumeRequest,
        asks_application: bool,
    ) -> Joining {
        Box::pin(join::admit(self.clone(), client.clone(), asked, asks_application))
    }

    /// Tells a client its position, sends it what it missed, and adds it to the deliveries.
    pub(crate) fn replay(self: &Arc<Self>, client: &Arc<Client>, back: Admitted) -> Joining {
        join::replay(self.clone(), client.clone(), back)
    }

    /// Sends a client a new resume token if its token is outdated, and revokes the old ones if something was taken
    /// away.
    pub(crate) fn send_new_token(&self, client: &Client) {
        client.send_new_token(&self.hub, &self.sealer);
        self.revoke(client);
    }

    /// Tells the other nodes if something was taken away from a client that tracks its position, so that its older
    /// resume tokens give nothing back. Does not wait for the publish.
    pub(crate) fn revoke(&self, client: &Client) {
        // A group that the application takes away from a client that is gone is not revoked. The client has it again if
        // it comes back.
        if client.is_forgotten() || !client.membership().needs_revocation() {
            return;
        }
        let version = client.membership_lock().write().take_revocation();
        let Some(version) = version.filter(|_| client.keeps_position()) else { return };
        let content = Content::TokenRevoked { connection: client.known_as(), version };
        let cluster = self.cluster.clone();
        self.runtime.spawn(async move {
            if let Err(error) = cluster.publish(&content, None).await {
                tracing::debug!(%error, "the other nodes may not know what was taken away from a client");
            }
        });
    }
}

/// Returns the interval at which a client gets a new resume token. A token is valid for the log's age and this interval
/// together, so a client can be away for as long as the log's age.
pub(crate) fn reseal_interval(log: &LogConfig) -> Duration {
    log.age / 4
}
