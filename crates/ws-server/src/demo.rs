//! `--demo`: a page that shows the cluster live, with three actions. A name in the URL is enough to sign in.

use async_trait::async_trait;
use serde_json::json;
use tokio::sync::mpsc;
use ws_cluster::{
    ActionError, AuthenticationError, Authenticator, ConnectionId, Credentials, Details, Handshake, Identity,
    IntoHandler, Message, Request, Server, ServerBuilder, State, Target,
};

use crate::short;

const PAGE: &str = include_str!("demo.html");
/// The attribute of the page that names the path to connect to.
const PATH: &str = r#"data-path="/WebSockets""#;

/// Tells each page the state of the cluster.
pub(crate) struct Demo {
    /// The pages that have connected. The channel is unbounded because a handler must not wait here. It never has more
    /// entries than there are connections.
    arrivals: mpsc::UnboundedSender<ConnectionId>,
    arrived: mpsc::UnboundedReceiver<ConnectionId>,
}

impl Demo {
    pub(crate) fn new() -> Self {
        let (arrivals, arrived) = mpsc::unbounded_channel();
        Self { arrivals, arrived }
    }

    /// Adds the page, its actions and its authenticator.
    pub(crate) fn add_to(&self, builder: ServerBuilder, path: &str) -> ServerBuilder {
        builder
            .page("/", PAGE.replacen(PATH, &format!(r#"data-path="{path}""#), 1))
            .authenticator(ByName)
            .state(self.arrivals.clone())
            .on_connect(note_page)
            .action("demo/node", note_page.with_guests())
            .action("hello", hello.with_guests())
            .action("say", say.with_guests())
            .action("tell", tell.with_guests())
    }

    /// Tells each new page the state of the cluster, and all pages if the state has changed. One task does both, so
    /// that no page keeps the older of two states.
    pub(crate) async fn show(mut self, server: Server) {
        // The handlers have senders of their own, which end with the server.
        drop(self.arrivals);
        let mut status = server.subscribe_status();
        loop {
            let target = tokio::select! {
                changed = status.changed() => match changed {
                    Ok(()) => Target::all(),
                    Err(_) => return,
                },
                connection = self.arrived.recv() => match connection {
                    Some(connection) => Target::connection(connection),
                    None => return,
                },
            };
            let state = state(&server);
            if let Err(error) = server.deliver(Message::raw("demo/node", json!([state]).into()).to(target)) {
                tracing::warn!(%error, "the pages of the demo were not told the state of the cluster");
            }
        }
    }
}

fn state(server: &Server) -> serde_json::Value {
    let status = server.status();
    let nodes = status.nodes.iter().map(|node| {
        let master = status.master == Some(node.node);
        json!({ "node": short(node.node), "address": node.address, "master": master })
    });
    let nodes: Vec<_> = nodes.collect();
    let own = server.node_id();
    let address = status.nodes.iter().find(|node| node.node == own).map(|node| &node.address);
    json!({
        "node": short(own),
        "address": address,
        "term": status.term,
        "master": status.master.map(short),
        "nodes": nodes,
    })
}

/// Accepts the name in `?user=` without proof.
struct ByName;

#[async_trait]
impl Authenticator for ByName {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        _credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let name = handshake.query("user").map(|name| name.trim().to_owned());
        Ok(name.filter(|name| !name.is_empty()).map(|name| Identity::user(&*name).session(name)))
    }

    fn uses_cookies(&self) -> bool {
        false
    }
}

/// Notes a page that wants to know the state of the cluster: a user's page when it connects, a guest's when it asks.
async fn note_page(State(pages): State<mpsc::UnboundedSender<ConnectionId>>, page: ConnectionId) {
    // The receiver is gone when the server ends.
    let _ = pages.send(page);
}

/// `hello [text]` comes back to every tab of the user.
async fn hello(request: Request) -> Result<(), ActionError> {
    if request.details().is_empty() {
        return Err(ActionError::bad_request("No hello message:("));
    }
    request.reply_to_user(request.details()).await
}

/// `say [text]` goes to all, as `said [user, text]`.
async fn say(request: Request, Details(text): Details<String>) -> Result<(), ActionError> {
    Ok(request.publish(Message::new("said", (request.user(), text))?).await?)
}

/// `tell [user, text]` goes to that user, as `told [from, text]`.
async fn tell(request: Request, Details((user, text)): Details<(String, String)>) -> Result<(), ActionError> {
    Ok(request.publish(Message::new("told", (request.user(), text))?.to(Target::user(user))).await?)
}
