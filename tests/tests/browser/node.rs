//! Servers of the test process, each on a runtime of its own, so that one can be killed like a process: at once, with
//! all its sockets and without a close.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use tests::client::soon;
use tokio::{
    net::TcpListener,
    runtime::{self, Runtime},
};
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Credentials, Handshake, Identity, MemoryPool, Pool,
    Request, Server, ServerBuilder,
};

/// The users whose upgrades the authenticator was asked about, one for each connection; `""` is a guest.
pub(crate) type Upgrades = Arc<Mutex<Vec<String>>>;

/// A running server.
pub(crate) struct Node {
    pub(crate) server: Server,
    pub(crate) address: SocketAddr,
    pub(crate) upgrades: Upgrades,
    /// `None` once it is killed.
    runtime: Option<Runtime>,
}

impl Node {
    /// Starts a server that is a cluster by itself. `?user=` and `?session=` of a connection's URL are its identity.
    pub(crate) async fn start() -> Self {
        let upgrades = Upgrades::default();
        let asked = upgrades.clone();
        let pool = Arc::new(MemoryPool::default());
        Self::with("alone", pool, upgrades, |builder, _| builder.authenticator(Query(asked))).await
    }

    /// Starts one more server of the cluster in this pool. It answers `where` with its name.
    pub(crate) async fn join(name: &'static str, pool: Arc<dyn Pool>) -> Self {
        let upgrades = Upgrades::default();
        let asked = upgrades.clone();
        Self::with(name, pool, upgrades, |builder, address| {
            let builder = builder.key("a key of the tests, thirty-two bytes or more");
            builder.address(format!("ws://{address}")).authenticator(Query(asked))
        })
        .await
    }

    /// Starts a server with the given settings.
    pub(crate) async fn with(
        name: &'static str,
        pool: Arc<dyn Pool>,
        upgrades: Upgrades,
        set: impl FnOnce(ServerBuilder, SocketAddr) -> ServerBuilder,
    ) -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        listener.set_nonblocking(true).expect("a setting");
        let address = listener.local_addr().expect("a bound socket");
        let actions = ["echo", "hello", "fail", "where", "never"];
        let builder =
            actions.into_iter().fold(Server::builder(pool), |builder, action| builder.action(action, Act(name)));
        let builder = set(builder, address);
        let serving = async move {
            let server = builder.start().await.expect("settings that work");
            let listener = TcpListener::from_std(listener).expect("a listener");
            let node = server.clone();
            tokio::spawn(async move { node.serve(listener).with_graceful_shutdown(std::future::pending()).await });
            server.wait_ready().await;
            server
        };
        let server = soon(runtime.spawn(serving)).await.expect("no panic");
        Self { server, address, upgrades, runtime: Some(runtime) }
    }

    /// Returns a page of this server.
    pub(crate) fn page(&self) -> String {
        page(self.address)
    }

    /// Ends the server without a close.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.end();
    }
}

/// Returns a page of the server at this address. All servers have this page, whose script is the test's.
pub(crate) fn page(address: SocketAddr) -> String {
    format!("http://{address}/health")
}

/// A handler of all actions, on the server of this name.
struct Act(&'static str);

#[async_trait]
impl ActionHandler for Act {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        match request.action() {
            "echo" => request.reply(request.details())?,
            "hello" => request.reply_to_user(request.details()).await?,
            "where" => request.reply(self.0)?,
            "never" => std::future::pending().await,
            _ => return Err(ActionError::conflict("no")),
        }
        Ok(())
    }

    fn guests(&self) -> bool {
        true
    }
}

/// An authenticator with sessions in the URL, which is only for tests.
struct Query(Upgrades);

#[async_trait]
impl Authenticator for Query {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        assert!(credentials.is_none(), "the pages send none");
        let user = handshake.query("user").unwrap_or_default();
        self.0.lock().push(user.clone().into_owned());
        if user.is_empty() {
            return Ok(None);
        }
        let session = handshake.query("session").unwrap_or_default();
        Ok(Some(Identity::user(user).session(session)))
    }

    fn uses_cookies(&self) -> bool {
        false
    }
}
