//! `ws-server` with a site whose own code answers: [`Site`] is the site, and the tests decide what it answers.

use std::path::Path;

use serde_json::{Value, json};
use tests::{
    WsServer,
    client::Client,
    site::{Asked, Site},
};

mod actions;
mod connects;
mod disconnects;
mod hostile;
mod limits;

/// Starts a node that uses the site's code, and waits until it takes clients.
async fn node(state: &Path, site: &Site, arguments: &[&str]) -> WsServer {
    let own = site.arguments();
    let all: Vec<&str> = own.iter().map(String::as_str).chain(arguments.iter().copied()).collect();
    let node = WsServer::start(state, &all).await;
    node.ready().await;
    node
}

/// Sends an action, and returns the request that it causes.
async fn act(client: &mut Client, site: &mut Site, action: &str, details: Value) -> Asked {
    client.send(action, details).await;
    site.asked_for("action").await
}

/// Sends an action whose answer says `pong`, which shows that all before it is over.
async fn ping(client: &mut Client, site: &mut Site) {
    act(client, site, "ping", json!([])).await.json(json!({"reply": "pong"})).await;
    client.expect("ping", json!(["pong"])).await;
}

/// Asserts that the next message is an error of this action, and returns its text.
async fn error(client: &mut Client, action: &str, code: u16) -> String {
    let message = client.json().await;
    assert_eq!(
        (&message["action"], &message["details"][0]),
        (&json!(format!("{action}:error")), &json!(code)),
        "{message}"
    );
    message["details"][1].as_str().expect("a text").to_owned()
}
