//! Chat rooms on a cluster: a room is a group, which a connection joins and leaves.
//!
//! ```text
//! cargo run -p examples --bin chat
//! cargo run -p examples --bin chat 127.0.0.1:8081
//! ```
//!
//! The second is another node of the same cluster. Open http://127.0.0.1:8080/health and http://localhost:8081/health
//! in a browser (two names, since cookies are by name), and in the console of each (F12) run, as ann in the one and as
//! bob in the other,
//!
//! ```js
//! document.cookie = "user=ann"
//! await import("/ws-cluster.js")
//! chat = new WsCluster()
//! for (const action of ["join", "leave", "joined", "left", "said", "who"])
//!   chat.on(action, (...details) => console.log(action, ...details), console.warn)
//! chat.send("join", ["lobby"]).send("say", ["lobby", "Good morning"])
//! ```
//!
//! What one says (`said lobby ann Good morning`) shows in every tab that is in the room, except the one that said it.
//! `chat.send("who", ["lobby"])` shows who is in, as far as that node knows: its own. An application with several
//! nodes keeps such a list in its database. `chat.send("leave", ["lobby"])` and closing a tab show `left` to the
//! others.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::Arc,
};

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::json;
use tokio::{net::TcpListener, signal::ctrl_c};
use ws_cluster::{ActionError, ActionHandler, ConnectionId, Identity, Request, Server, SessionCookie, Target};

/// Rooms by name, with the connections that are in, each with its user.
#[derive(Clone, Default)]
struct Chat(Arc<Mutex<BTreeMap<String, BTreeMap<ConnectionId, String>>>>);

#[async_trait]
impl ActionHandler for Chat {
    async fn handle(&self, request: Request<'_>) -> Result<(), ActionError> {
        // Guests get here only to be told as gone, and are in no room.
        let user = request.user().unwrap_or_default();
        if request.action() == "Client/disconnection" {
            for room in self.rooms(request.connection()) {
                self.leave(&request, user, &room).await?;
            }
            return Ok(());
        }
        let room: String = request.detail(0)?;
        match request.action() {
            "join" => {
                self.0.lock().entry(room.clone()).or_default().insert(request.connection(), user.to_owned());
                if request.join(&group(&room)) {
                    request.publish("joined", json!([room, user]), others(&request, &room)).await?;
                }
            }
            "leave" => self.leave(&request, user, &room).await?,
            "say" if request.in_group(&group(&room)) => {
                let text: String = request.detail(1)?;
                request.publish("said", json!([room, user, text]), others(&request, &room)).await?;
                return Ok(());
            }
            "say" => return Err(ActionError::forbidden("Join the room first")),
            _ => {}
        }
        request.respond(json!([room, self.who(&room)]));
        Ok(())
    }
}

impl Chat {
    async fn leave(&self, request: &Request<'_>, user: &str, room: &str) -> Result<(), ActionError> {
        request.leave(&group(room));
        let was_in = self.forget(request.connection(), room);
        if was_in {
            request.publish("left", json!([room, user]), others(request, room)).await?;
        }
        Ok(())
    }

    /// Takes a connection out of a room, and the room out of the list with its last one. Whether it was in.
    fn forget(&self, connection: ConnectionId, room: &str) -> bool {
        let mut rooms = self.0.lock();
        let was_in = rooms.get_mut(room).is_some_and(|members| members.remove(&connection).is_some());
        rooms.retain(|_, members| !members.is_empty());
        was_in
    }

    fn rooms(&self, connection: ConnectionId) -> Vec<String> {
        let rooms = self.0.lock();
        rooms.iter().filter(|(_, members)| members.contains_key(&connection)).map(|(room, _)| room.clone()).collect()
    }

    /// Who is in a room, each once however many tabs they have.
    fn who(&self, room: &str) -> BTreeSet<String> {
        self.0.lock().get(room).into_iter().flat_map(|members| members.values().cloned()).collect()
    }
}

/// The group of a room: under a prefix, since clients choose the names of rooms, but not of other groups.
fn group(room: &str) -> String {
    format!("room/{room}")
}

/// Everyone in the room but the connection that asks.
fn others(request: &Request<'_>, room: &str) -> Target {
    Target::group(group(room)).except_connection(request.connection())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    println!("http://{address}");

    let chat = Chat::default();
    let builder = Server::builder(examples::pool().await?)
        .address(format!("ws://{address}"))
        .key(examples::KEY)
        .authenticator(SessionCookie::new("user", async |name| Ok(Some(Identity::user(name)))));
    let server = ["join", "leave", "say", "who", "Client/disconnection"]
        .into_iter()
        .fold(builder, |builder, action| builder.action(action, chat.clone()))
        .start()
        .await?;
    server.serve(listener, async { drop(ctrl_c().await) }).await?;
    Ok(())
}
