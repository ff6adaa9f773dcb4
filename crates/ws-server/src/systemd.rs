//! Tells the service manager the state of a node (`sd_notify`). Without a service manager this does nothing.

use std::{net::SocketAddr, time::Duration};

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};
use ws_cluster::{Server, Status};

use crate::probe::test_connection;

/// The variables with which a service manager announces itself.
pub(crate) const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];
/// Maximum time between two status texts. A watchdog may shorten it.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

/// Tells the service manager these states. It is no error of the node if that fails.
pub(crate) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// Tells the service manager when the node has joined, and then its status again and again. The watchdog is notified
/// only if a test connection succeeds and the node's task answers. The caller ends this before the node shuts down.
pub(crate) async fn report(server: Server, bound: SocketAddr, path: String, limit: Duration) {
    if std::env::var_os(VARIABLES[0]).is_none() {
        return;
    }
    tell(&[NotifyState::Status("joining the cluster")]);
    server.wait_ready().await;
    tell(&[NotifyState::Ready, NotifyState::Status(&describe(&server))]);
    let watchdog = sd_notify::watchdog_enabled();
    let mut status = server.subscribe_status();
    // systemd recommends half of the watchdog's time.
    let mut tick = interval(watchdog.map_or(STATUS_INTERVAL, |limit| (limit / 2).min(STATUS_INTERVAL)));
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                if watchdog.is_some() {
                    match test_connection(bound, &path, limit).await {
                        Ok(()) => tell(&[NotifyState::Watchdog]),
                        Err(why) => tracing::error!("the watchdog is not fed: {why}"),
                    }
                }
            }
            changed = status.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
        tell(&[NotifyState::Status(&describe(&server))]);
    }
}

fn describe(server: &Server) -> String {
    let Status { ready, master, term, degraded, .. } = server.status();
    let role = match master {
        _ if !ready => "not ready",
        Some(master) if master == server.node_id() => "master",
        Some(_) => "follower",
        None => "candidate",
    };
    let degraded = degraded.map(|why| format!(", degraded: {}", why.as_str())).unwrap_or_default();
    format!("{role} in term {term}, {} connections{degraded}", server.connection_count())
}
