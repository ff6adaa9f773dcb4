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
//! for (const action of ["joined", "left", "said"])
//!   chat.on(action, (...details) => console.log(action, ...details))
//! await chat.request("join", ["lobby"])
//! await chat.request("say", ["lobby", "Good morning"])
//! ```
//!
//! `join` is answered with those who are in the room. What one says (`said lobby ann Good morning`) shows in every tab
//! that is in the room, except the one that said it. `await chat.request("who", ["lobby"])` tells who is in, as far as
//! that node knows: its own. An application with several nodes keeps such a list in its database.
//! `chat.request("leave", ["lobby"])` and closing a tab show `left` to the others.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error,
    sync::Arc,
};

use parking_lot::Mutex;
use tokio::net::TcpListener;
use ws_cluster::{
    ActionError, ConnectionId, Details, Identity, Message, Request, Server, SessionCookie, State, Target, User,
    shutdown_signal,
};

/// Rooms by name, with their connections, each with its user.
#[derive(Clone, Default)]
struct Rooms(Arc<Mutex<BTreeMap<String, BTreeMap<ConnectionId, String>>>>);

/// Who is in a room: the answer to `join`, `leave` and `who`.
type Members = (String, BTreeSet<String>);

async fn join(
    request: Request,
    State(rooms): State<Rooms>,
    User(user): User,
    Details(room): Details<String>,
) -> Result<Members, ActionError> {
    rooms.enter(&room, request.connection(), &user);
    if request.join(&group(&room)) {
        tell(&request, "joined", &room, (&room, &user)).await?;
    }
    Ok(rooms.members(room))
}

async fn leave(
    request: Request,
    State(rooms): State<Rooms>,
    User(user): User,
    Details(room): Details<String>,
) -> Result<Members, ActionError> {
    request.leave(&group(&room));
    if rooms.exit(&room, request.connection()) {
        tell(&request, "left", &room, (&room, &user)).await?;
    }
    Ok(rooms.members(room))
}

async fn say(
    request: Request,
    User(user): User,
    Details((room, text)): Details<(String, String)>,
) -> Result<(), ActionError> {
    if !request.in_group(&group(&room)) {
        return Err(ActionError::forbidden("Join the room first"));
    }
    tell(&request, "said", &room, (&room, user, text)).await
}

async fn who(State(rooms): State<Rooms>, Details(room): Details<String>) -> Members {
    rooms.members(room)
}

async fn gone(request: Request, State(rooms): State<Rooms>, user: Option<User>) -> Result<(), ActionError> {
    let Some(User(user)) = user else { return Ok(()) };
    for room in rooms.of(request.connection()) {
        rooms.exit(&room, request.connection());
        tell(&request, "left", &room, (&room, &user)).await?;
    }
    Ok(())
}

/// Publishes to everyone in the room but the connection that asked.
async fn tell(request: &Request, action: &str, room: &str, details: impl serde::Serialize) -> Result<(), ActionError> {
    let message = Message::new(action, details)?.to(Target::group(group(room)));
    Ok(request.publish(message.except_connection(request.connection())).await?)
}

impl Rooms {
    fn enter(&self, room: &str, connection: ConnectionId, user: &str) {
        self.0.lock().entry(room.to_owned()).or_default().insert(connection, user.to_owned());
    }

    /// Takes a connection out of a room, and the room out of the list with its last one. Returns true if it was in it.
    fn exit(&self, room: &str, connection: ConnectionId) -> bool {
        let mut rooms = self.0.lock();
        let was_in = rooms.get_mut(room).is_some_and(|members| members.remove(&connection).is_some());
        rooms.retain(|_, members| !members.is_empty());
        was_in
    }

    fn of(&self, connection: ConnectionId) -> Vec<String> {
        let rooms = self.0.lock();
        rooms.iter().filter(|(_, members)| members.contains_key(&connection)).map(|(room, _)| room.clone()).collect()
    }

    /// Returns the users in a room, each once however many tabs they have.
    fn members(&self, room: String) -> Members {
        let members = self.0.lock().get(&room).into_iter().flat_map(|room| room.values().cloned()).collect();
        (room, members)
    }
}

/// Returns the group of a room. The prefix keeps clients, which choose the names of rooms, out of other groups.
fn group(room: &str) -> String {
    format!("room/{room}")
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let address = std::env::args().nth(1).unwrap_or("127.0.0.1:8080".into());
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    println!("http://{address}");

    let server = Server::builder(examples::pool().await?)
        .address(format!("ws://{address}"))
        .key(examples::KEY)
        .authenticator(SessionCookie::new("user", async |name| Ok(Some(Identity::user(name)))))
        .state(Rooms::default())
        .action("join", join)
        .action("leave", leave)
        .action("say", say)
        .action("who", who)
        .on_disconnect(gone)
        .start()
        .await?;
    server.serve(listener).with_graceful_shutdown(shutdown_signal()).await?;
    Ok(())
}
