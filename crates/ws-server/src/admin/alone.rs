//! Operates a node without a supervisor: the page can stop it, but nothing starts it again.

use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::Notify;
use ws_cluster::TrustedProxies;

use super::{Answer, Node, Order, Phase, Question, ServerState, Service, state::SharedState};

pub(crate) struct Alone {
    node: Arc<Node>,
    state: SharedState,
    stop: Notify,
}

impl Alone {
    /// Makes the service for the node of this process.
    pub(crate) fn new(node: Arc<Node>, address: std::net::SocketAddr) -> Self {
        let state = SharedState::new(ServerState::starting(Some(std::process::id())));
        state.run(address);
        Self { node, state, stop: Notify::new() }
    }

    /// Waits until the page orders the node to stop.
    pub(crate) async fn stopped(&self) {
        self.stop.notified().await;
        tracing::info!("shutting down: the admin page said so");
    }

    /// Notes that the node drains.
    pub(crate) fn shut_down(&self) {
        self.state.enter(Phase::Stopping, None);
    }
}

#[async_trait]
impl Service for Alone {
    fn is_supervised(&self) -> bool {
        false
    }

    fn state(&self) -> ServerState {
        let mut state = self.state.get();
        if state.phase == Phase::Running && !self.node.is_ready() {
            state.phase = Phase::Starting;
            state.why = Some("the node takes no clients yet".to_owned());
        }
        state
    }

    fn order(&self, order: Order) -> Result<(), String> {
        self.state().phase.takes(order)?;
        match order {
            Order::Stop => {
                self.shut_down();
                self.stop.notify_one();
                Ok(())
            }
            Order::Start | Order::Restart => {
                Err("nothing starts this node again: it runs without ws-server supervise".to_owned())
            }
        }
    }

    fn trusted_proxies(&self) -> TrustedProxies {
        self.node.trusted_proxies()
    }

    async fn ask(&self, question: Question) -> Answer {
        self.node.answer(question).await
    }
}
