//! The hello service: what a user sends comes back to every tab of that user.
//!
//! ```text
//! cargo run -p examples --bin hello
//! ```
//!
//! Open http://127.0.0.1:8080/health in two tabs of a browser, and in the console of each (F12) run
//!
//! ```js
//! document.cookie = "user=ann"
//! await import("/ws-cluster.js")
//! client = new WsCluster().on("hello", console.log, console.warn).send("hello", ["world"])
//! ```
//!
//! What the second sends shows in both. `client.send("hello")` shows `400 "No hello message:("`, only in the tab that
//! sent it. Without the cookie, whoever says hello is a guest and sees `403 "Forbidden"`.

use std::error::Error;

use async_trait::async_trait;
use tokio::{net::TcpListener, signal::ctrl_c};
use ws_cluster::{ActionError, ActionHandler, Identity, MemoryPool, Request, Server, SessionCookie};

struct Hello;

#[async_trait]
impl ActionHandler for Hello {
    async fn handle(&self, request: Request<'_>) -> Result<(), ActionError> {
        if request.details().is_empty() {
            return Err(ActionError::bad_request("No hello message:("));
        }
        request.reply(request.details()).await
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    println!("http://{}", listener.local_addr()?);

    let server = Server::builder(MemoryPool::default())
        // Believes whoever says to be ann. A site looks the cookie up in its sessions.
        .authenticator(SessionCookie::new("user", async |name| Ok(Some(Identity::user(name)))))
        .action("hello", Hello)
        .start()
        .await?;
    server.serve(listener, async { drop(ctrl_c().await) }).await?;
    Ok(())
}
