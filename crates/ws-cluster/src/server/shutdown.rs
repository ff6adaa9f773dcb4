//! The end of a server: a shutdown, the request for one, and a failure of the node.

use tokio::time::{Instant, timeout, timeout_at};

use super::Server;
use crate::{ServeError, config::LONGEST};

impl Server {
    /// Shuts the server down. [`serve`](Self::serve) does this itself; an application that does not use it calls this
    /// method.
    ///
    /// The node is not ready from now on. It closes the clients with 1012 evenly over
    /// [`drain`](crate::ConnectionConfig::drain), and they connect to another node. It waits for running handlers,
    /// including those of `Client/disconnection`, for at most
    /// [`shutdown_timeout`](crate::ClusterConfig::shutdown_timeout), and accepts what they publish. Then it leaves the
    /// cluster, for at most as long again, and publishes nothing more. Each [`serve`](Self::serve) of the server ends.
    ///
    /// The first of the two limits also holds for the `disconnect` events that a backend has not taken yet.
    ///
    /// If the returned future is dropped, the shutdown stops half-way: the node stays not ready, and may not have left
    /// the cluster. Another call goes on with it.
    pub async fn shutdown(&self) {
        let limit = self.config().cluster.shutdown_timeout;
        let drain = self.live().drain.min(LONGEST);
        let until = Instant::now() + drain + limit;
        self.0.shutting_down.send_replace(true);
        self.hub().admission().stop();
        let leaving = async {
            self.0.cluster.drain().await;
            self.hub().close_evenly(drain).await;
            self.hub().close();
            self.hub().admission().drained(limit).await
        };
        if !timeout_at(until, leaving).await.unwrap_or(false) {
            tracing::warn!(
                open = self.hub().admission().open(),
                "connections or their handlers are still there; they outlive the hand-over"
            );
        }
        if timeout_at(until, self.0.unfinished.closed()).await.is_err() {
            let count = self.0.unfinished.receiver_count();
            tracing::warn!(count, "the shutdown does not wait any longer to tell the site of connections that ended");
        }
        if timeout(limit, self.0.cluster.shut_down()).await.is_err() {
            tracing::warn!("the hand-over took too long; the cluster notices the loss of this node by itself");
        }
    }

    /// Resolves once the shutdown has begun.
    pub(super) async fn shutdown_begun(&self) {
        // `self` keeps the sender.
        let _ = self.0.shutting_down.subscribe().wait_for(|begun| *begun).await;
    }

    /// Makes a shutdown wait within its limit until the returned value is dropped.
    #[cfg(feature = "backend")]
    pub(crate) fn delay_shutdown(&self) -> tokio::sync::watch::Receiver<()> {
        self.0.unfinished.subscribe()
    }

    /// Resolves once somebody with the cluster's key has asked this node to shut down: `ws-server drain`, or
    /// [`Publisher::drain_node`](crate::Publisher::drain_node). [`serve`](Self::serve) shuts the server down then.
    /// An application with a listener of its own waits for this and calls [`shutdown`](Self::shutdown).
    pub async fn drain_requested(&self) {
        self.0.cluster.drain_requested().await;
    }

    /// Waits until this node cannot go on, and returns why: another node has its address
    /// ([`ServeError::AddressTaken`]), or its cluster's task panicked ([`ServeError::Stopped`]). From then on the node
    /// is not ready. [`serve`](Self::serve) ends with this error by itself. An application with a listener of its own
    /// awaits this beside the listener.
    pub async fn failed(&self) -> ServeError {
        self.0.cluster.failure().await.into()
    }
}
