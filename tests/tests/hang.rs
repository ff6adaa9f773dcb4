//! A driver that hangs in code of the application, while the other tasks of its process go on.

use std::sync::{Arc, Condvar, Mutex};

use async_trait::async_trait;
use serde_json::json;
use tests::{
    client::soon,
    message,
    nodes::{KEY, config},
};
use tokio::net::TcpListener;
use ws_cluster::{
    AuthenticationError, Authenticator, Credentials, Handshake, Identity, MemoryPool, Pool, Revoked, Server, Target,
};

/// Keeps the driver's thread as long as it is closed.
#[derive(Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn set(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.opened.notify_all();
    }
}

struct Hanging(Arc<Gate>);

#[async_trait]
impl Authenticator for Hanging {
    async fn authenticate(
        &self,
        _: &Handshake,
        _: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        Ok(None)
    }

    fn forget(&self, _: Revoked<'_>) {
        let closed = self.0.closed.lock().unwrap();
        drop(self.0.opened.wait_while(closed, |closed| *closed).unwrap());
    }
}

/// A gate that is closed until this is dropped, also if the test fails: the runtime waits for the thread behind it.
struct Closed(Arc<Gate>);

impl Closed {
    fn new(gate: Arc<Gate>) -> Self {
        gate.set(true);
        Self(gate)
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

async fn start(pool: &Arc<dyn Pool>, gate: &Arc<Gate>) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let server = Server::builder(pool.clone())
        .authenticator(Hanging(gate.clone()))
        .address(format!("ws://{}", listener.local_addr().unwrap()))
        .key(KEY)
        .config(config())
        .start()
        .await
        .unwrap();
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(std::future::pending()).await });
    server
}

/// Waits until a node knows a master other than `not`, and all nodes are its members.
async fn settled(server: &Server, not: Option<ws_cluster::NodeId>) {
    let mut status = server.subscribe_status();
    let whole = status.wait_for(|status| {
        let members = status.nodes.iter().filter(|node| node.member).count();
        status.ready && status.master.is_some() && status.master != not && members == 3
    });
    soon(whole).await.expect("the server lives");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 6)]
async fn a_master_whose_driver_hangs_is_replaced() {
    let pool: Arc<dyn Pool> = Arc::new(MemoryPool::default());
    let gates = [(); 3].map(|()| Arc::new(Gate::default()));
    let mut servers = Vec::new();
    for gate in &gates {
        servers.push(start(&pool, gate).await);
    }
    for server in &servers {
        settled(server, None).await;
    }
    let hung = servers[0].status().master.unwrap();
    let master = servers.iter().position(|server| server.node_id() == hung).unwrap();
    let follower = &servers[(master + 1) % 3];
    let closed = Closed::new(gates[master].clone());
    // The master's driver delivers this and does not return.
    follower.close_user("anyone").await.unwrap();
    follower.publish(message("said", json!(["after"]), Target::all())).await.expect("another master accepts it");
    let status = follower.status();
    assert!(status.master.is_some_and(|master| master != hung), "{status:?}");
    drop(closed);
    for server in &servers {
        settled(server, Some(hung)).await;
    }
}
