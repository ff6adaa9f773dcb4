//! The identity of a client, over real sockets: closes and refreshes that come during a look-up of its session,
//! credentials on an open connection, rechecks, and what a client may cost its authenticator.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};
use tests::message;

use async_trait::async_trait;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tests::client::{Client, Place, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, watch},
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::{
        CloseFrame,
        frame::{
            Frame,
            coding::{Data, OpCode},
        },
    },
};
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Close, Config, Credentials, Degraded, Handshake,
    Identity, MemoryPool, Request, Server, ServerBuilder, Target,
};

const PUBLISH_KEY: &str = "a key to publish";

/// A site's sessions, by the token in `x-session` or in the credentials. It reads at once and answers as soon as a test
/// allows it.
#[derive(Clone)]
struct Site(Arc<Sessions>);

struct Sessions {
    identities: Mutex<HashMap<String, Identity>>,
    asked: watch::Sender<usize>,
    answers: Semaphore,
    down: AtomicBool,
    in_band: AtomicBool,
    recheck: Option<Duration>,
}

/// More answers than any test needs.
const ALL: usize = 100_000;

impl Site {
    fn new(recheck: Option<Duration>) -> Self {
        Self(Arc::new(Sessions {
            identities: Mutex::default(),
            asked: watch::Sender::new(0),
            answers: Semaphore::new(ALL),
            down: AtomicBool::new(false),
            in_band: AtomicBool::new(false),
            recheck,
        }))
    }

    fn set(&self, token: &str, identity: Identity) {
        self.0.identities.lock().insert(token.into(), identity);
    }

    fn remove(&self, token: &str) {
        self.0.identities.lock().remove(token);
    }

    /// Holds all answers from now on.
    fn hold(&self) {
        self.0.answers.forget_permits(ALL);
    }

    fn release(&self) {
        self.0.answers.add_permits(ALL);
    }

    /// Waits until it was asked `count` times.
    async fn asked(&self, count: usize) {
        soon(self.0.asked.subscribe().wait_for(|asked| *asked >= count)).await.unwrap();
    }

    fn count(&self) -> usize {
        *self.0.asked.borrow()
    }
}

#[async_trait]
impl Authenticator for Site {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let token = match credentials.map(|credentials| credentials.details()) {
            Some([Value::String(token)]) => Some(token.clone()),
            Some(_) => None,
            None => handshake.header("x-session").map(str::to_owned),
        };
        let identity = token.and_then(|token| self.0.identities.lock().get(&token).cloned());
        let down = self.0.down.load(Ordering::Relaxed);
        self.0.asked.send_modify(|asked| *asked += 1);
        self.0.answers.acquire().await.unwrap().forget();
        if down { Err(AuthenticationError::Unavailable("down".into())) } else { Ok(identity) }
    }

    fn uses_cookies(&self) -> bool {
        false
    }

    fn in_band(&self) -> bool {
        self.0.in_band.load(Ordering::Relaxed)
    }

    fn recheck_interval(&self) -> Option<Duration> {
        self.0.recheck
    }
}

/// A handler: `echo` answers, `join` and `leave` change groups, and `set NAME VALUE` sets a property.
struct Act;

#[async_trait]
impl ActionHandler for Act {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        match request.action() {
            "join" => drop(request.join(request.detail(0)?)),
            "leave" => drop(request.leave(request.detail(0)?)),
            "set" => request.set_property(request.detail(0)?, request.detail::<Value>(1)?),
            _ => {}
        }
        let groups: Vec<String> = request.groups().into_iter().collect();
        request.reply(json!([groups, request.property("colour"), request.session()]))?;
        Ok(())
    }

    fn guests(&self) -> bool {
        true
    }
}

struct App {
    server: Server,
    address: SocketAddr,
    site: Site,
}

impl App {
    async fn start() -> Self {
        Self::with(None, |builder| builder).await
    }

    async fn with(recheck: Option<Duration>, set: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        let site = Site::new(recheck);
        site.set("a", Identity::user("ann").session("a").groups(["editors"]).property("colour", "red"));
        site.set("b", Identity::user("ann").session("b"));
        site.set("c", Identity::user("bob").session("c"));
        let builder = Server::builder(MemoryPool::default()).authenticator(site.clone()).publish_key(PUBLISH_KEY);
        let builder =
            ["state", "join", "leave", "set"].iter().fold(builder, |builder, name| builder.action(*name, Act));
        let server = set(builder).start().await.unwrap();
        server.wait_ready().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = server.clone();
        tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(std::future::pending()).await });
        Self { server, address, site }
    }

    async fn connect(&self, token: &str) -> Client {
        Client::connect(self.address, &[("x-session", token)]).await
    }

    /// Waits until everything that was published before is delivered.
    async fn delivered(&self) {
        let mut witness = Client::connect(self.address, &[]).await;
        witness.send("state", json!([])).await;
        witness.json().await;
        self.server.publish(message("delivered", (), Target::all())).await.unwrap();
        while witness.json().await["action"] != "delivered" {}
    }

    /// Posts JSON with the publish key. Returns the status and the body.
    async fn post(&self, path: &str, body: Value) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let body = body.to_string();
        let request = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: Bearer {PUBLISH_KEY}\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.trim().to_owned())
    }
}

/// Returns the user that a client is told to be; `None` for a guest.
async fn user_of(client: &mut Client) -> Option<String> {
    client.send("Client/authentication", json!([])).await;
    loop {
        let message = client.json().await;
        match message["action"].as_str().unwrap() {
            "Client/authentication" => return message["details"][1]["user"].as_str().map(str::to_owned),
            "Client/authentication:error" => {
                assert_eq!(message["details"], json!([403, "Forbidden"]));
                return None;
            }
            _ => {}
        }
    }
}

/// Returns groups, colour and session, as handlers see them.
async fn state_of(client: &mut Client) -> Value {
    client.send("state", json!([])).await;
    loop {
        let message = client.json().await;
        if message["action"] == "state" {
            return message["details"].clone();
        }
    }
}

async fn dismissed(client: &mut Client) {
    loop {
        let message = client.json().await;
        if message["action"] == "Server/close" {
            break;
        }
        assert_eq!(message["action"], "delivered");
    }
    assert_eq!(client.closed().await.0, 1000);
}

// ---- closes against look-ups

#[tokio::test]
async fn a_close_wins_against_a_look_up_at_the_upgrade() {
    for close in [Close::session("a"), Close::user("ann"), Close::user("ann").except_session("b")] {
        let app = App::start().await;
        app.site.hold();
        let connecting = tokio::spawn({
            let address = app.address;
            async move { Client::connect(address, &[("x-session", "a")]).await }
        });
        app.site.asked(1).await;
        app.site.remove("a");
        app.server.close(close).await.unwrap();
        app.site.0.answers.add_permits(1);
        // The session is looked up again, and this answer counts.
        app.site.asked(2).await;
        app.site.release();
        let mut client = connecting.await.unwrap();
        assert_eq!(user_of(&mut client).await, None);
    }
}

#[tokio::test]
async fn a_look_up_of_others_is_not_repeated_for_a_close() {
    let app = App::start().await;
    app.site.hold();
    let connecting = tokio::spawn({
        let address = app.address;
        async move { Client::connect(address, &[("x-session", "b")]).await }
    });
    app.site.asked(1).await;
    app.server.close(Close::session("a")).await.unwrap();
    app.server.close(Close::user("bob")).await.unwrap();
    app.server.close(Close::user("ann").except_session("b")).await.unwrap();
    app.site.release();
    let mut client = connecting.await.unwrap();
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
    assert_eq!(app.site.count(), 1);
}

#[tokio::test]
async fn a_session_that_is_still_valid_after_its_close_is_let_in() {
    let app = App::start().await;
    app.site.hold();
    let connecting = tokio::spawn({
        let address = app.address;
        async move { Client::connect(address, &[("x-session", "a")]).await }
    });
    app.site.asked(1).await;
    app.server.close_session("a").await.unwrap();
    app.site.0.answers.add_permits(1);
    app.site.asked(2).await;
    app.site.release();
    // The application has to end the session first, and did not end this one.
    assert_eq!(user_of(&mut connecting.await.unwrap()).await.as_deref(), Some("ann"));
}

#[tokio::test]
async fn closes_that_never_end_refuse_the_upgrade() {
    let app = App::start().await;
    app.site.hold();
    let connecting = tokio::spawn({
        let address = app.address;
        async move { Client::try_connect(address, "/WebSockets", &[("x-session", "a")]).await }
    });
    for attempt in 1..=3 {
        app.site.asked(attempt).await;
        app.server.close_session("a").await.unwrap();
        app.site.0.answers.add_permits(1);
    }
    assert_eq!(connecting.await.unwrap().err().map(|status| status.as_u16()), Some(503));
}

#[tokio::test]
async fn a_close_wins_against_a_look_up_of_credentials() {
    for close in [Close::session("a"), Close::user("ann")] {
        let app = App::start().await;
        let mut client = Client::connect(app.address, &[]).await;
        let before = app.site.count();
        app.site.hold();
        client.send("Client/authentication", json!(["a"])).await;
        app.site.asked(before + 1).await;
        app.site.remove("a");
        app.server.close(close).await.unwrap();
        app.site.0.answers.add_permits(1);
        app.site.asked(before + 2).await;
        app.site.release();
        client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
        assert_eq!(client.closed().await.0, 4401);
    }
}

#[tokio::test]
async fn a_close_of_a_session_wins_against_its_renewal() {
    let app = App::start().await;
    let mut client = app.connect("b").await;
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
    app.site.hold();
    client.send("Client/authentication", json!(["a"])).await;
    app.site.asked(2).await;
    app.site.remove("a");
    app.server.close_session("a").await.unwrap();
    app.site.0.answers.add_permits(1);
    app.site.asked(3).await;
    app.site.release();
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    assert_eq!(state_of(&mut client).await[2], "b");
}

#[tokio::test]
async fn a_close_wins_against_a_recheck() {
    let app = App::start().await;
    let mut client = app.connect("a").await;
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
    app.site.hold();
    app.server.refresh_session("a").await.unwrap();
    app.site.asked(2).await;
    app.server.close_session("a").await.unwrap();
    dismissed(&mut client).await;
    app.site.release();
}

// ---- which connections are closed, and how

#[tokio::test]
async fn all_sessions_of_a_user_but_one_are_closed() {
    let app = App::start().await;
    app.site.set("none", Identity::user("ann"));
    let mut clients = Vec::new();
    for token in ["a", "b", "none", "c", ""] {
        let mut client = app.connect(token).await;
        state_of(&mut client).await;
        clients.push(client);
    }
    let (status, why) = app.post("/_close", json!({"user": "ann", "except_session": "b"})).await;
    assert_eq!((status, &*why), (204, ""));
    let [a, b, none, c, guest] = &mut clients[..] else { unreachable!() };
    for closed in [a, none] {
        dismissed(closed).await;
    }
    app.delivered().await;
    for open in [b, c, guest] {
        open.expect("delivered", json!([])).await;
    }
}

#[tokio::test]
async fn a_soft_close_lets_its_clients_come_back() {
    let app = App::start().await;
    for (order, token) in
        [(json!({"session": "a", "reconnect": true}), "a"), (json!({"user": "bob", "reconnect": true}), "c")]
    {
        let mut client = app.connect(token).await;
        state_of(&mut client).await;
        assert_eq!(app.post("/_close", order).await.0, 204);
        // There is no `Server/close` before the close.
        assert_eq!(client.closed().await.0, 4003);
        assert!(user_of(&mut app.connect(token).await).await.is_some());
    }
}

#[tokio::test]
async fn orders_without_or_with_too_many_subjects_are_refused() {
    let app = App::start().await;
    for (path, order) in [
        ("/_close", json!({})),
        ("/_close", json!({"user": null})),
        ("/_close", json!({"user": "ann", "session": "a"})),
        ("/_close", json!({"session": "a", "except_session": "b"})),
        ("/_close", json!({"except_session": "b"})),
        ("/_close", json!({"user": "ann", "soft": true})),
        ("/_refresh", json!({})),
        ("/_refresh", json!({"user": "ann", "session": "a"})),
        ("/_refresh", json!({"user": "ann", "reconnect": true})),
    ] {
        let (status, why) = app.post(path, order.clone()).await;
        assert_eq!(status, 400, "{order}");
        assert!(!why.is_empty(), "{order}");
    }
}

// ---- refreshes and rechecks

#[tokio::test]
async fn a_refresh_replaces_what_the_site_said_and_keeps_what_handlers_changed() {
    for order in [json!({"user": "ann"}), json!({"session": "a"})] {
        let app = App::start().await;
        app.site
            .set("a", Identity::user("ann").session("a").groups(["editors", "staff", "all"]).property("colour", "red"));
        let mut client = app.connect("a").await;
        for (action, details) in [("join", json!(["room"])), ("leave", json!(["all"])), ("set", json!(["size", 7]))] {
            client.send(action, details).await;
            client.json().await;
        }
        let fresh = Identity::user("ann").session("a").groups(["staff", "admins", "all"]).property("colour", "blue");
        app.site.set("a", fresh.property("size", 1));
        assert_eq!(app.post("/_refresh", order).await.0, 204);
        // Once the authenticator was asked, the handler of the next message finds the answer.
        app.site.asked(2).await;
        while state_of(&mut client).await[1] != "blue" {}
        assert_eq!(state_of(&mut client).await, json!([["admins", "room", "staff"], "blue", "a"]));
        app.server.publish(message("for editors", (), Target::group("editors"))).await.unwrap();
        app.server.publish(message("for seven", (), Target::property("size", "7"))).await.unwrap();
        app.server.publish(message("for admins", (), Target::group("admins"))).await.unwrap();
        client.expect("for seven", json!([])).await;
        client.expect("for admins", json!([])).await;
    }
}

#[tokio::test]
async fn a_refresh_wins_against_a_look_up_that_began_before_it() {
    let app = App::start().await;
    let mut client = app.connect("a").await;
    state_of(&mut client).await;
    app.site.hold();
    app.server.refresh_session("a").await.unwrap();
    app.site.asked(2).await;
    app.site.set("a", Identity::user("ann").session("a").property("colour", "blue"));
    app.server.refresh_user("ann").await.unwrap();
    app.site.0.answers.add_permits(1);
    app.site.asked(3).await;
    app.site.release();
    while state_of(&mut client).await != json!([[], "blue", "a"]) {}
}

#[tokio::test]
async fn a_refresh_reaches_no_other_connection() {
    let app = App::start().await;
    let (mut ann, mut bob) = (app.connect("a").await, app.connect("c").await);
    state_of(&mut ann).await;
    state_of(&mut bob).await;
    app.server.refresh_user("bob").await.unwrap();
    app.site.asked(3).await;
    app.server.refresh_session("another").await.unwrap();
    app.delivered().await;
    assert_eq!(user_of(&mut ann).await.as_deref(), Some("ann"));
    // The witness is the fourth.
    assert_eq!(app.site.count(), 4);
}

#[tokio::test]
async fn a_refresh_ends_connections_whose_session_is_gone() {
    let app = App::start().await;
    let (mut gone, mut another) = (app.connect("a").await, app.connect("b").await);
    state_of(&mut gone).await;
    state_of(&mut another).await;
    app.site.remove("a");
    app.site.set("b", Identity::user("bob").session("b"));
    app.server.refresh_user("ann").await.unwrap();
    assert_eq!(gone.closed().await.0, 4003);
    assert_eq!(another.closed().await.0, 4003);
}

#[tokio::test]
async fn a_store_that_is_down_at_a_recheck_changes_nothing() {
    let app = App::start().await;
    let mut client = app.connect("a").await;
    state_of(&mut client).await;
    app.site.0.down.store(true, Ordering::Relaxed);
    app.server.refresh_user("ann").await.unwrap();
    app.site.asked(2).await;
    assert_eq!(state_of(&mut client).await, json!([["editors"], "red", "a"]));
}

#[tokio::test]
async fn groups_that_the_site_revokes_are_gone_after_the_next_recheck() {
    let app = App::with(Some(Duration::from_millis(20)), |builder| builder).await;
    let mut client = app.connect("a").await;
    client.send("join", json!(["room"])).await;
    client.json().await;
    app.site.set("a", Identity::user("ann").session("a").groups(["staff"]));
    let asked = app.site.count();
    app.site.asked(asked + 3).await;
    assert_eq!(state_of(&mut client).await, json!([["room", "staff"], null, "a"]));
    app.site.remove("a");
    assert_eq!(client.closed().await.0, 4003);
}

#[tokio::test]
async fn guests_and_clients_with_credentials_are_not_rechecked() {
    let app = App::with(Some(Duration::from_millis(5)), |builder| builder).await;
    let (mut guest, mut ann, mut witness) =
        (app.connect("").await, app.connect("").await, Client::connect(app.address, &[("x-session", "c")]).await);
    ann.send("Client/authentication", json!(["a"])).await;
    assert_eq!(ann.json().await["details"][0], "ok");
    state_of(&mut guest).await;
    let asked = app.site.count();
    app.site.asked(asked + 10).await;
    assert_eq!(user_of(&mut ann).await.as_deref(), Some("ann"));
    assert_eq!(user_of(&mut witness).await.as_deref(), Some("bob"));
    assert_eq!(state_of(&mut guest).await[2], Value::Null);
}

// ---- credentials on an open connection

#[tokio::test]
async fn an_answer_says_who_the_client_is_and_for_how_long() {
    let app = App::start().await;
    app.site.set("a", Identity::user("ann").session("a").expires(SystemTime::now() + Duration::from_millis(99_500)));
    let mut client = app.connect("a").await;
    for _ in 0..20 {
        client.send("Client/authentication", json!([])).await;
        let answer = client.json().await;
        let details = &answer["details"];
        assert_eq!((&answer["action"], &details[0]), (&json!("Client/authentication"), &json!("ok")));
        assert_eq!(details[1]["user"], "ann");
        assert!(details[1]["connection"].as_str().is_some_and(|id| id.contains('-')), "{details}");
        assert!(details[1]["expires_in"].as_u64().is_some_and(|left| (60..=99).contains(&left)), "{details}");
    }
    // The authenticator was not asked about that.
    assert_eq!(app.site.count(), 1);
    let mut client = app.connect("c").await;
    client.send("Client/authentication", json!([])).await;
    let answer = client.json().await;
    assert_eq!(answer["details"][1].get("expires_in"), None, "its session has no end");
}

#[tokio::test]
async fn fresh_credentials_of_the_same_user_renew_the_connection() {
    let app = App::start().await;
    let soon_over = SystemTime::now() + Duration::from_millis(800);
    app.site.set("first", Identity::user("ann").session("first").groups(["old"]).expires(soon_over));
    let later = SystemTime::now() + Duration::from_secs(3_600);
    app.site
        .set("second", Identity::user("ann").session("second").groups(["new"]).property("colour", 1).expires(later));
    let mut client = Client::connect(app.address, &[]).await;
    client.send("Client/authentication", json!(["first"])).await;
    assert_eq!(client.json().await["details"][1]["expires_in"], 0);
    client.send("join", json!(["room"])).await;
    client.json().await;
    client.send("Client/authentication", json!(["second"])).await;
    let answer = client.json().await;
    assert!(answer["details"][1]["expires_in"].as_u64().is_some_and(|left| left > 3_000), "{answer}");
    assert_eq!(state_of(&mut client).await, json!([["new", "room"], 1, "second"]));
    // Another connection lives beyond the end of this one's session, so this one would be closed by then.
    let mut other = Client::connect(app.address, &[]).await;
    other.send("Client/authentication", json!(["first"])).await;
    other.json().await;
    assert_eq!(other.closed().await.0, 4003);
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
    // The connection is known by the session of its latest credentials.
    app.server.close_session("second").await.unwrap();
    dismissed(&mut client).await;
}

#[tokio::test]
async fn other_credentials_change_nothing() {
    let app = App::start().await;
    let mut client = app.connect("a").await;
    for wrong in [json!(["c"]), json!(["rubbish"]), json!(["a", "b"]), json!({"token": "a"})] {
        client.send("Client/authentication", wrong).await;
        client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    }
    app.site.0.down.store(true, Ordering::Relaxed);
    client.send("Client/authentication", json!(["a"])).await;
    client.expect("Client/authentication:error", json!([503, "Service Unavailable"])).await;
    assert_eq!(state_of(&mut client).await, json!([["editors"], "red", "a"]));
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
}

#[tokio::test]
async fn a_session_that_ends_without_a_close_lets_its_client_come_back() {
    let app = App::start().await;
    let over = SystemTime::now() + Duration::from_millis(300);
    app.site.set("a", Identity::user("ann").session("a").expires(over));
    let mut client = app.connect("a").await;
    assert_eq!(client.closed().await.0, 4003);
    // The site rotated the session, and the page comes back with the new cookie.
    assert_eq!(user_of(&mut app.connect("b").await).await.as_deref(), Some("ann"));
}

// ---- what authentication costs

#[tokio::test]
async fn repeated_authentication_costs_few_look_ups() {
    let mut config = Config::default();
    // Longer than the test takes.
    config.connection.authentication_interval = Duration::from_secs(600);
    let app = App::with(None, |builder| builder.config(config)).await;
    let mut guests = Vec::new();
    for number in 0..60 {
        guests.push(app.connect(&format!("invented {number}")).await);
    }
    let upgrades = app.site.count();
    for _ in 0..20 {
        for guest in &mut guests {
            guest.send("Client/authentication", json!([])).await;
        }
    }
    for guest in &mut guests {
        for attempt in 0..20 {
            let error = if attempt < 5 { json!([403, "Forbidden"]) } else { json!([429, "Too Many Requests"]) };
            guest.expect("Client/authentication:error", error).await;
        }
        // The connection stays open.
        state_of(guest).await;
    }
    assert_eq!(app.site.count() - upgrades, 60 * 5);
}

#[tokio::test]
async fn credentials_on_an_open_connection_are_limited_as_well() {
    let mut config = Config::default();
    config.connection.authentication_interval = Duration::from_secs(600);
    config.connection.authentication_burst = 2;
    let app = App::with(None, |builder| builder.config(config)).await;
    let mut client = app.connect("a").await;
    for error in [[json!(403), json!("Forbidden")], [json!(403), json!("Forbidden")]] {
        client.send("Client/authentication", json!(["rubbish"])).await;
        client.expect("Client/authentication:error", json!(error)).await;
    }
    client.send("Client/authentication", json!(["a"])).await;
    client.expect("Client/authentication:error", json!([429, "Too Many Requests"])).await;
    assert_eq!(user_of(&mut client).await.as_deref(), Some("ann"));
    assert_eq!(app.site.count(), 3);
}

#[tokio::test]
async fn look_ups_of_one_address_wait_their_turn() {
    let mut config = Config::default();
    config.connection.look_ups_per_ip = 2;
    let app = App::with(None, |builder| builder.config(config)).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(app.connect("").await);
    }
    let upgrades = app.site.count();
    app.site.hold();
    for client in &mut clients {
        client.send("Client/authentication", json!(["a"])).await;
    }
    app.site.asked(upgrades + 2).await;
    // Published after all of them were sent: once a client gets it, its question is being asked or waits.
    app.server.publish(message("delivered", (), Target::all())).await.unwrap();
    for client in &mut clients {
        client.expect("delivered", json!([])).await;
    }
    assert_eq!(app.site.count(), upgrades + 2);
    app.site.release();
    for client in &mut clients {
        while client.json().await["details"][0] != "ok" {}
    }
    assert_eq!(app.site.count(), upgrades + 5);
}

// ---- what the application says

/// Handlers of the server's own actions. They report to the test, and `Client/authentication` waits for its verdict.
#[derive(Clone)]
struct Own {
    tell: mpsc::UnboundedSender<String>,
    verdicts: Arc<tokio::sync::Mutex<mpsc::UnboundedReceiver<Verdict>>>,
}

enum Verdict {
    Welcome,
    /// Accepts after this message to the user.
    Publish(&'static str),
    Refuse(u16),
    Panic,
    /// Accepts after the client was taken out of this group.
    Leave(&'static str),
    /// After it was put into this group.
    Join(&'static str),
}

#[async_trait]
impl ActionHandler for Own {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        let user = request.user().unwrap_or("guest");
        if let Some(code) = request.close_code() {
            let reason = request.close_reason().expect("beside the code");
            assert_eq!(request.details().to_string(), json!([code, reason]).to_string());
            let outcome = request.publish(message("left", json!([user, code]), Target::all())).await;
            self.tell.send(format!("{user} left: {code} {reason} {outcome:?}")).ok();
            return Ok(());
        }
        self.tell.send(format!("{user} came")).ok();
        match self.verdicts.lock().await.recv().await {
            None | Some(Verdict::Welcome) => Ok(()),
            Some(Verdict::Publish(action)) => {
                Ok(request.publish(message(action, json!([]), Target::user(user))).await?)
            }
            Some(Verdict::Refuse(code)) => Err(ActionError::new(code, "not today")),
            Some(Verdict::Panic) => panic!("as told"),
            Some(Verdict::Leave(group)) => {
                request.leave(group);
                Ok(())
            }
            Some(Verdict::Join(group)) => {
                request.join(group);
                Ok(())
            }
        }
    }

    fn guests(&self) -> bool {
        true
    }
}

struct Told {
    told: mpsc::UnboundedReceiver<String>,
    verdicts: mpsc::UnboundedSender<Verdict>,
}

impl Told {
    async fn next(&mut self) -> String {
        soon(self.told.recv()).await.unwrap()
    }

    fn say(&self, verdict: Verdict) {
        self.verdicts.send(verdict).ok().unwrap();
    }
}

fn own() -> (Own, Told) {
    let ((tell, told), (verdicts, taken)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
    (Own { tell, verdicts: Arc::new(tokio::sync::Mutex::new(taken)) }, Told { told, verdicts })
}

impl App {
    async fn asking() -> (Self, Told) {
        let (own, told) = own();
        let set = |builder: ServerBuilder| {
            builder.action("Client/authentication", own.clone()).action("Client/disconnection", own)
        };
        (Self::with(None, set).await, told)
    }
}

#[tokio::test]
async fn a_handler_that_says_no_refuses_the_connection() {
    let (app, mut told) = App::asking().await;
    for (verdict, code, text, close) in [
        (Verdict::Refuse(403), 403, "not today", 4401),
        (Verdict::Refuse(499), 499, "not today", 4401),
        (Verdict::Refuse(503), 503, "not today", 1011),
        (Verdict::Panic, 500, "Internal Server Error", 1011),
    ] {
        told.say(verdict);
        let mut client = app.connect("a").await;
        // Sent before the verdict, and never answered.
        client.send("Client/authentication", json!([])).await;
        client.expect("Client/authentication:error", json!([code, text])).await;
        assert_eq!(client.closed().await.0, close);
        assert_eq!(told.next().await, "ann came");
    }
    // A refused client did not leave, so the next report is about another client.
    told.say(Verdict::Welcome);
    let client = app.connect("c").await;
    assert_eq!(told.next().await, "bob came");
    drop(client);
    assert_eq!(told.next().await, "bob left: 1006  Ok(())");
}

#[tokio::test]
async fn a_client_is_told_that_it_is_authenticated_after_the_handler_agreed() {
    let (app, mut told) = App::asking().await;
    for path in ["/WebSockets", "/WebSockets?resume="] {
        for verdict in [Verdict::Publish("hello"), Verdict::Refuse(403)] {
            let mut client = Client::try_connect(app.address, path, &[]).await.unwrap();
            if path.ends_with('=') {
                assert_eq!(client.json().await["details"], json!(["new"]));
            }
            client.send("Client/authentication", json!(["a"])).await;
            assert_eq!(told.next().await, "ann came");
            // The client gets no message before the handler has decided.
            app.server.deliver(message("sentinel", (), Target::all())).unwrap();
            assert_eq!(client.json().await["action"], "sentinel");
            let welcome = matches!(verdict, Verdict::Publish(_));
            told.say(verdict);
            if welcome {
                let mut actions = Vec::new();
                while actions.len() < 2 {
                    let message = client.json().await;
                    if message["action"] != "Server/position" {
                        actions.push(message["action"].as_str().unwrap().to_owned());
                    }
                }
                actions.sort();
                assert_eq!(actions, ["Client/authentication", "hello"]);
                drop(client);
                assert!(told.next().await.starts_with("ann left: 1006"));
            } else {
                client.expect("Client/authentication:error", json!([403, "not today"])).await;
                assert_eq!(client.closed().await.0, 4401);
            }
        }
    }
}

#[tokio::test]
async fn the_handlers_messages_come_before_the_replay() {
    let (app, mut told) = App::asking().await;
    told.say(Verdict::Publish("hello"));
    let headers = [("x-session", "a")];
    let mut client = Client::try_connect(app.address, "/WebSockets?resume=", &headers).await.unwrap();
    let mut place = Place::default();
    assert_eq!(client.moved(&mut place).await["details"], json!(["new"]));
    // The client also gets what the handler published before the client had joined.
    assert_eq!(client.moved(&mut place).await["action"], "hello");
    client.send("join", json!(["room"])).await;
    client.moved(&mut place).await;
    client.moved(&mut place).await;
    drop(client);
    assert_eq!(told.next().await, "ann came");
    assert!(told.next().await.starts_with("ann left: 1006"));
    app.server.publish(message("secret", (), Target::group("room"))).await.unwrap();
    app.server.publish(message("news", (), Target::user("ann"))).await.unwrap();

    let state = place.state.clone().unwrap();
    let path = format!("/WebSockets?resume={}&state={state}", place.at);
    // The client is refused, and gets no replay.
    told.say(Verdict::Refuse(403));
    let mut refused = Client::try_connect(app.address, &path, &headers).await.unwrap();
    refused.expect("Client/authentication:error", json!([403, "not today"])).await;
    assert_eq!(refused.closed().await.0, 4401);
    // The handler takes away the client's right.
    told.say(Verdict::Leave("room"));
    let mut client = Client::try_connect(app.address, &path, &headers).await.unwrap();
    assert_eq!(client.moved(&mut place).await["details"][0], "recovered");
    let mut actions = Vec::new();
    while actions.last() != Some(&json!("news")) {
        actions.push(client.moved(&mut place).await["action"].clone());
    }
    assert!(!actions.contains(&json!("secret")), "{actions:?}");
}

#[tokio::test]
async fn nothing_is_delivered_to_a_client_before_the_handler_agreed() {
    let (own, mut told) = own();
    let set = |builder: ServerBuilder| builder.action("Client/authentication", own).guests(false);
    let app = App::with(None, set).await;
    for in_band in [false, true] {
        app.site.0.in_band.store(in_band, Ordering::Relaxed);
        for welcome in [false, true] {
            let headers: &[_] = if in_band { &[] } else { &[("x-session", "a")] };
            let mut client = Client::try_connect(app.address, "/WebSockets", headers).await.unwrap();
            if in_band {
                client.send("Client/authentication", json!(["a"])).await;
            }
            assert_eq!(told.next().await, "ann came");
            app.server.publish(message("news", json!([1]), Target::user("ann"))).await.unwrap();
            app.server.deliver(message("beside", (), Target::all())).unwrap();
            if !welcome {
                told.say(Verdict::Refuse(403));
                client.expect("Client/authentication:error", json!([403, "not today"])).await;
                assert_eq!(client.closed().await.0, 4401);
                continue;
            }
            // What was published while the handler ran, or by the handler, comes once it has agreed.
            told.say(Verdict::Publish("hello"));
            if in_band {
                assert_eq!(client.json().await["details"][0], "ok");
            }
            client.expect("news", json!([1])).await;
            client.expect("hello", json!([])).await;
            app.server.publish(message("news", json!([2]), Target::user("ann"))).await.unwrap();
            client.expect("news", json!([2])).await;
        }
    }
}

/// As one that was never here.
#[tokio::test]
async fn a_group_that_the_handler_joins_brings_nothing_from_before() {
    let (app, mut told) = App::asking().await;
    let mut client = Client::try_connect(app.address, "/WebSockets", &[("x-session", "a")]).await.unwrap();
    assert_eq!(told.next().await, "ann came");
    app.server.publish(message("before", (), Target::group("room"))).await.unwrap();
    told.say(Verdict::Join("room"));
    // Answered after the handler has ended.
    client.send("join", json!(["other"])).await;
    assert_eq!(client.json().await["action"], "join");
    app.server.publish(message("after", (), Target::group("room"))).await.unwrap();
    client.expect("after", json!([])).await;
}

#[tokio::test]
async fn a_client_that_leaves_while_the_handler_runs_is_reported_only_if_it_was_accepted() {
    let (app, mut told) = App::asking().await;
    for verdict in [Verdict::Welcome, Verdict::Refuse(403)] {
        for path in ["/WebSockets", "/WebSockets?resume="] {
            let client = Client::try_connect(app.address, path, &[("x-session", "a")]).await.unwrap();
            assert_eq!(told.next().await, "ann came");
            drop(client);
            let welcome = matches!(verdict, Verdict::Welcome);
            told.say(if welcome { Verdict::Welcome } else { Verdict::Refuse(403) });
            if welcome {
                assert!(told.next().await.starts_with("ann left: 1006"));
            }
        }
    }
}

#[tokio::test]
async fn a_disconnection_reports_how_the_connection_ended() {
    let (app, mut told) = App::asking().await;
    for expected in [
        "1000 the session ended",
        "1000 closed by the application",
        "4003 authenticate again",
        "1002 ",
        "4400 neither ",
        "1001 away",
        "1005 ",
        "1006 ",
    ] {
        told.say(Verdict::Welcome);
        let mut client = app.connect("a").await;
        assert_eq!(told.next().await, "ann came");
        let frame = |code: u16| CloseFrame { code: code.into(), reason: "away".into() };
        match expected {
            "1000 the session ended" => app.server.close_session("a").await.unwrap(),
            "1000 closed by the application" => app.server.close_user("ann").await.unwrap(),
            "4003 authenticate again" => app.server.close(Close::user("ann").reconnect()).await.unwrap(),
            "1002 " => {
                client.message(Message::Frame(Frame::message(vec![1], OpCode::Data(Data::Reserved(3)), true))).await
            }
            "4400 neither " => client.text("7").await,
            "1001 away" => client.message(Message::Close(Some(frame(1001)))).await,
            "1005 " => client.message(Message::Close(None)).await,
            _ => drop(client.0.get_mut().shutdown().await),
        }
        drop(client);
        let left = told.next().await;
        assert!(left.starts_with(&format!("ann left: {expected}")) && left.ends_with("Ok(())"), "{left}");
    }
}

/// Starts a node of two, on a listener of its own.
async fn node(pool: &MemoryPool, own: Own) -> (Server, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let site = Site::new(None);
    site.set("a", Identity::user("ann"));
    let server = Server::builder(pool.clone())
        .address(format!("ws://{address}"))
        .key("a key of the cluster, of 32 bytes and more")
        .authenticator(site)
        .action("Client/disconnection", own)
        .start()
        .await
        .unwrap();
    let serving = server.clone();
    tokio::spawn(async move { serving.serve(listener).with_graceful_shutdown(std::future::pending()).await });
    soon(server.wait_ready()).await;
    (server, address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn publishes_of_handlers_during_a_shutdown_are_delivered() {
    for leaving in [0, 1] {
        let (own, mut told) = own();
        let pool = MemoryPool::default();
        // The first is the master.
        let nodes = [node(&pool, own.clone()).await, node(&pool, own.clone()).await];
        let ((leaving, near), (_, far)) = (&nodes[leaving], &nodes[1 - leaving]);
        let mut witness = Client::connect(*far, &[]).await;
        let mut ann = Client::connect(*near, &[("x-session", "a")]).await;
        // A client that reads nothing and answers no close frame.
        let _deaf = Client::connect(*near, &[("x-session", "a")]).await;
        let shutdown = async {
            leaving.shutdown().await;
            assert!(leaving.publish(message("too late", (), Target::all())).await.is_err());
        };
        let client = async {
            assert_eq!(ann.closed().await.0, 1012);
            for _ in 0..2 {
                witness.expect("left", json!(["ann", 1012])).await;
                assert_eq!(told.next().await, "ann left: 1012 the server restarts Ok(())");
            }
        };
        tokio::join!(shutdown, client);
    }
}

#[tokio::test]
async fn a_handler_that_hangs_delays_a_shutdown_by_its_time_limit_only() {
    let (own, mut told) = own();
    let mut config = Config::default();
    config.cluster.shutdown_timeout = Duration::from_millis(200);
    let set = |builder: ServerBuilder| builder.config(config).action("Client/authentication", own.clone());
    let app = App::with(None, set).await;
    let mut client = app.connect("a").await;
    // The client waits for a verdict that never comes.
    assert_eq!(told.next().await, "ann came");
    let mut status = app.server.subscribe_status();
    tokio::join!(soon(app.server.shutdown()), async {
        let status = soon(status.wait_for(|status| !status.ready)).await.unwrap().clone();
        assert_eq!(status.degraded, Some(Degraded::ShuttingDown));
        assert_eq!(client.closed().await.0, 1012);
    });
    assert!(app.server.publish(message("x", (), Target::all())).await.is_err());
}
