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
//! sent it. Without the cookie, a client is a guest and sees `403 "Forbidden"`.

use std::error::Error;

use tokio::net::TcpListener;
use ws_cluster::{ActionError, Identity, MemoryPool, Request, Server, SessionCookie, shutdown_signal};

async fn hello(request: Request) -> Result<(), ActionError> {
    if request.details().is_empty() {
        return Err(ActionError::bad_request("No hello message:("));
    }
    request.reply_to_user(request.details()).await
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    println!("http://{}", listener.local_addr()?);

    // Believes the cookie. A site looks it up in its sessions.
    let users = SessionCookie::new("user", async |name| Ok(Some(Identity::user(name))));
    let server = Server::builder(MemoryPool::default()).authenticator(users).action("hello", hello).start().await?;
    server.serve(listener).with_graceful_shutdown(shutdown_signal()).await?;
    Ok(())
}
