//! A client's view of one server, over real sockets: messages, errors, authentication, limits, closes.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tests::message;

use async_trait::async_trait;
use futures_util::StreamExt;
use http::StatusCode;
use serde_json::{Value, json};
use tests::client::{Client, Place, soon};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc, oneshot},
    task::JoinHandle,
};
use tokio_tungstenite::tungstenite::{
    Message,
    protocol::frame::{
        Frame, FrameHeader,
        coding::{Data, OpCode},
    },
};
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Config, Credentials, Handshake, Identity,
    MemoryPool, Request, ServeError, Server, ServerBuilder, StartError, Target,
};

/// A server on a port of its own.
struct App {
    server: Server,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), ServeError>>,
    /// The reports of handlers to the test.
    told: mpsc::UnboundedReceiver<String>,
    /// Lets `wait` continue.
    gate: Arc<Semaphore>,
}

impl App {
    async fn start() -> Self {
        Self::with(|builder| builder).await
    }

    async fn with(set: impl FnOnce(ServerBuilder) -> ServerBuilder) -> Self {
        let (tell, told) = mpsc::unbounded_channel();
        let gate = Arc::new(Semaphore::new(0));
        let act = Act { tell, gate: gate.clone() };
        let names = [
            "echo",
            "hello",
            "wait",
            "panic",
            "fail",
            "shape",
            "room",
            "block",
            "Client/authentication",
            "Client/disconnection",
        ];
        let builder = Server::builder(MemoryPool::default()).authenticator(Sessions);
        let builder = names.iter().fold(builder, |builder, name| match *name {
            "hello" => builder.action(*name, act.clone()),
            name => builder.action(name, Guests(act.clone())),
        });
        let server = set(builder).start().await.unwrap();
        server.wait_ready().await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let serving = server.clone();
        let task =
            tokio::spawn(
                async move { serving.serve(listener).with_graceful_shutdown(async { drop(stopped.await) }).await },
            );
        Self { server, address, stop, task, told, gate }
    }

    async fn guest(&self) -> Client {
        Client::connect(self.address, &[]).await
    }

    async fn user(&self, name: &str) -> Client {
        let mut client = Client::connect(self.address, &[("x-user", name)]).await;
        // The handler of `Client/authentication` has run when its connection answers.
        client.send("echo", json!(["up"])).await;
        client.expect("echo", json!(["up"])).await;
        client
    }

    async fn told(&mut self) -> String {
        soon(self.told.recv()).await.unwrap()
    }

    /// Sends one HTTP request. Returns the status and the body.
    async fn http(&self, method: &str, path: &str, headers: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let size = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {size}\r\n{headers}\r\n{body}"
        );
        // A refusal may come before the body has been taken.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut response = Vec::new();
        let _ = soon(stream.read_to_end(&mut response)).await;
        let response = String::from_utf8(response).unwrap();
        let (head, body) = response.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }
}

#[derive(Clone)]
struct Act {
    tell: mpsc::UnboundedSender<String>,
    gate: Arc<Semaphore>,
}

#[async_trait]
impl ActionHandler for Act {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        match request.action() {
            "echo" => request.reply(request.details())?,
            "hello" if request.details().is_empty() => return Err(ActionError::bad_request("No hello message:(")),
            "hello" => request.reply_to_user(request.details()).await?,
            "wait" => {
                self.tell.send("waiting".into()).ok();
                self.gate.acquire().await.unwrap().forget();
                request.reply(request.details())?;
                self.tell.send("waited".into()).ok();
            }
            "panic" => panic!("as told"),
            "block" => {
                let start = Instant::now();
                while start.elapsed() < Duration::from_millis(20) {
                    std::hint::spin_loop();
                }
                request.reply(())?;
            }
            "fail" => return Err(ActionError::conflict("no")),
            "shape" => {
                let (number, text): (u8, String) = request.parse()?;
                request.reply(format!("{number}{text}"))?;
            }
            "room" => {
                let (verb, name): (&str, &str) = request.parse()?;
                match verb {
                    "join" => drop(request.join(name)),
                    "leave" => drop(request.leave(name)),
                    "colour" => request.set_property("colour", name),
                    "others" => {
                        let others = Target::group(name).except_connection(request.connection());
                        request.publish(message("others", json!([]), others)).await?;
                    }
                    _ => return Err(ActionError::not_found("no such verb")),
                }
                let groups: Vec<String> = request.groups().into_iter().collect();
                request.reply(json!([groups, request.property("colour")]))?;
            }
            action => {
                let groups: Vec<String> = request.groups().into_iter().collect();
                let user = request.user().unwrap_or("guest");
                self.tell.send(format!("{action} {user} {}", groups.join(","))).ok();
            }
        }
        Ok(())
    }
}

struct Guests(Act);

#[async_trait]
impl ActionHandler for Guests {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        self.0.handle(request).await
    }

    fn guests(&self) -> bool {
        true
    }
}

/// An authenticator: `x-user: NAME` is a session, `x-expires: MILLISECONDS` its remaining time, and credentials are
/// `["secret", NAME]`.
struct Sessions;

#[async_trait]
impl Authenticator for Sessions {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        let down = || AuthenticationError::Unavailable("down".into());
        match (credentials.map(|credentials| credentials.details().to_vec()), handshake.header("x-user")) {
            (Some(details), _) => match &details[..] {
                [Value::String(secret), Value::String(user)] if secret == "secret" => {
                    Ok(Some(Identity::user(user).session(format!("session of {user}"))))
                }
                [Value::String(down_now)] if down_now == "down" => Err(down()),
                _ => Ok(None),
            },
            (None, Some("down")) => Err(down()),
            (None, Some(user)) => {
                let mut identity =
                    Identity::user(user).session(format!("session of {user}")).groups(["users"]).property("colour", 7);
                if let Some(left) = handshake.header("x-expires") {
                    let at = match user {
                        "renewed" => SystemTime::now() + Duration::from_millis(left.parse().unwrap()),
                        _ => SystemTime::UNIX_EPOCH + Duration::from_millis(left.parse().unwrap()),
                    };
                    identity = identity.expires(at);
                }
                Ok(Some(identity))
            }
            (None, None) => Ok(None),
        }
    }

    fn uses_cookies(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn details_come_back_normalised_in_the_clients_dialect() {
    let app = App::start().await;
    for (sent, back) in [
        (r#"{"action":"echo"}"#, json!({"action": "echo", "details": []})),
        (r#"{"action":"echo","details":null}"#, json!({"action": "echo", "details": []})),
        (r#"{"action":"echo","details":{"a":1}}"#, json!({"action": "echo", "details": [{"a": 1}]})),
        (r#"{"action":"echo","details":[1,"ü"]}"#, json!({"action": "echo", "details": [1, "ü"]})),
        (r#"["echo"]"#, json!(["echo", []])),
        (r#"["echo","x"]"#, json!(["echo", ["x"]])),
        (r#"["echo",[[1]]]"#, json!(["echo", [[1]]])),
        (r#"["nothing"]"#, json!(["nothing:error", [404, "Not Found"]])),
    ] {
        let mut client = app.guest().await;
        client.text(sent).await;
        assert_eq!(client.json().await, back, "{sent}");
    }
}

#[tokio::test]
async fn the_first_message_decides_the_dialect() {
    let app = App::start().await;
    let mut client = app.guest().await;
    app.server.publish(message("before", (), Target::all())).await.unwrap();
    client.expect("before", json!([])).await;
    client.text(r#"["echo",1]"#).await;
    assert_eq!(client.json().await, json!(["echo", [1]]));
    client.send("echo", json!([2])).await;
    assert_eq!(client.json().await, json!(["echo", [2]]));
    app.server.publish(message("after", "x", Target::all())).await.unwrap();
    assert_eq!(client.json().await, json!(["after", ["x"]]));
}

#[tokio::test]
async fn errors_are_answered_with_code_and_text() {
    let app = App::start().await;
    let mut client = app.user("ann").await;
    let reserved = json!([400, "this action is not for clients to send"]);
    for (action, details, error) in [
        ("nothing", json!([]), json!([404, "Not Found"])),
        ("hello", json!([]), json!([400, "No hello message:("])),
        ("fail", json!([]), json!([409, "no"])),
        ("panic", json!([]), json!([500, "Internal Server Error"])),
        ("Client/disconnection", json!([]), reserved.clone()),
        ("Server/close", json!([]), reserved.clone()),
        ("echo:error", json!([]), reserved),
    ] {
        client.send(action, details).await;
        client.expect(&format!("{action}:error"), error).await;
    }
    client.send("shape", json!([300, "x"])).await;
    let answer = client.json().await;
    assert_eq!((&answer["action"], &answer["details"][0]), (&json!("shape:error"), &json!(400)));
    assert!(answer["details"][1].as_str().unwrap().contains("expected u8"), "{answer}");
    client.send("shape", json!([1, "x", 2])).await;
    assert_eq!(client.json().await["details"][0], 400);
    client.send("shape", json!([1, "x"])).await;
    client.expect("shape", json!(["1x"])).await;
}

#[tokio::test]
async fn a_guest_gets_messages_to_all_and_calls_actions_for_guests() {
    let app = App::start().await;
    let mut guest = app.guest().await;
    let mut user = app.user("ann").await;
    guest.send("hello", json!(["x"])).await;
    guest.expect("hello:error", json!([403, "Forbidden"])).await;
    for (action, target) in [
        ("registered", Target::registered()),
        ("user", Target::user("ann")),
        ("group", Target::groups(["users", "others"])),
        ("session", Target::session("session of ann")),
        ("property", Target::property("colour", "7")),
    ] {
        app.server.publish(message(action, (), target)).await.unwrap();
        user.expect(action, json!([])).await;
    }
    for target in [
        Target::user("bob"),
        Target::group("others"),
        Target::session("s"),
        Target::property("colour", "8"),
        Target::user("ann").except_user("ann"),
        Target::all().except_user("ann"),
    ] {
        app.server.publish(message("not for ann", (), target)).await.unwrap();
    }
    app.server.publish(message("all", (), Target::all())).await.unwrap();
    user.expect("all", json!([])).await;
    guest.expect("not for ann", json!([])).await;
    guest.expect("all", json!([])).await;
}

#[tokio::test]
async fn a_reply_goes_to_every_tab_and_a_response_to_one() {
    let app = App::start().await;
    let (mut one, mut two) = (app.user("ann").await, app.user("ann").await);
    let mut other = app.user("bob").await;
    one.send("echo", json!(["only one"])).await;
    one.expect("echo", json!(["only one"])).await;
    one.send("hello", json!(["both"])).await;
    one.expect("hello", json!(["both"])).await;
    two.expect("hello", json!(["both"])).await;
    app.server.publish(message("sentinel", (), Target::all())).await.unwrap();
    other.expect("sentinel", json!([])).await;
}

#[tokio::test]
async fn handlers_change_groups_and_properties() {
    let mut app = App::start().await;
    let (mut one, mut two) = (app.guest().await, app.guest().await);
    for client in [&mut one, &mut two] {
        client.send("room", json!(["join", "blue"])).await;
        client.expect("room", json!([["blue"], null])).await;
    }
    one.send("room", json!(["others", "blue"])).await;
    one.expect("room", json!([["blue"], null])).await;
    two.expect("others", json!([])).await;
    two.send("room", json!(["leave", "blue"])).await;
    two.expect("room", json!([[], null])).await;
    two.send("room", json!(["colour", "red"])).await;
    two.expect("room", json!([[], "red"])).await;
    app.server.publish(message("in blue", (), Target::group("blue"))).await.unwrap();
    app.server.publish(message("in red", (), Target::property("colour", "red"))).await.unwrap();
    one.expect("in blue", json!([])).await;
    two.expect("in red", json!([])).await;
    drop(one);
    assert_eq!(app.told().await, "Client/disconnection guest blue");
}

#[tokio::test]
async fn a_valid_session_at_the_upgrade_authenticates() {
    let mut app = App::start().await;
    let mut client = Client::connect(app.address, &[("x-user", "ann")]).await;
    assert_eq!(app.told().await, "Client/authentication ann users");
    client.send("Client/authentication", json!([])).await;
    client.authenticated().await;
    client.send("Client/authentication", json!(["wrong"])).await;
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    drop(client);
    assert_eq!(app.told().await, "Client/disconnection ann users");
}

#[tokio::test]
async fn credentials_authenticate_in_band() {
    let mut app = App::start().await;
    let mut client = app.guest().await;
    client.send("Client/authentication", json!([])).await;
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    client.send("Client/authentication", json!(["down"])).await;
    client.expect("Client/authentication:error", json!([503, "Service Unavailable"])).await;
    client.send("room", json!(["join", "blue"])).await;
    client.expect("room", json!([["blue"], null])).await;
    client.send("Client/authentication", json!(["secret", "ann"])).await;
    client.authenticated().await;
    assert_eq!(app.told().await, "Client/authentication ann blue");
    app.server.publish(message("for ann", (), Target::user("ann").except_user("bob"))).await.unwrap();
    client.expect("for ann", json!([])).await;

    let mut client = app.guest().await;
    client.send("Client/authentication", json!(["wrong"])).await;
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    assert_eq!(client.closed().await.0, 4401);
}

#[tokio::test]
async fn a_store_that_is_down_refuses_the_upgrade() {
    let app = App::start().await;
    let refused = Client::try_connect(app.address, "/WebSockets", &[("x-user", "down")]).await;
    assert_eq!(refused.err(), Some(StatusCode::SERVICE_UNAVAILABLE));
}

#[tokio::test]
async fn an_unwelcome_guest_gets_an_error_inside_and_is_closed() {
    let app = App::with(|builder| builder.guests(false)).await;
    let mut client = app.guest().await;
    client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
    assert_eq!(client.closed().await.0, 4401);
    let mut client = app.user("ann").await;
    client.send("echo", json!([1])).await;
    client.expect("echo", json!([1])).await;
}

/// [`Sessions`] that also takes credentials of clients without a session.
struct InBand;

#[async_trait]
impl Authenticator for InBand {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        Sessions.authenticate(handshake, credentials).await
    }

    fn uses_cookies(&self) -> bool {
        false
    }

    fn in_band(&self) -> bool {
        true
    }
}

#[tokio::test]
async fn an_unwelcome_guest_may_send_credentials_in_time() {
    let mut config = Config::default();
    config.connection.handshake_timeout = Duration::from_millis(300);
    let app = App::with(|builder| builder.guests(false).authenticator(InBand).config(config)).await;
    let mut client = app.guest().await;
    app.server.publish(message("not yet", (), Target::all())).await.unwrap();
    client.send("echo", json!([])).await;
    client.expect("echo:error", json!([403, "Forbidden"])).await;
    client.send("Client/authentication", json!(["secret", "ann"])).await;
    client.authenticated().await;
    client.send("echo", json!([])).await;
    client.expect("echo", json!([])).await;

    for details in [None, Some(json!([])), Some(json!(["wrong"]))] {
        let mut client = app.guest().await;
        if let Some(details) = details {
            client.send("Client/authentication", details).await;
        }
        client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
        assert_eq!(client.closed().await.0, 4401);
    }
}

#[tokio::test]
async fn a_client_that_authenticates_in_band_is_told_its_position_afterwards() {
    for guests in [true, false] {
        let mut app = App::with(|builder| builder.guests(guests).authenticator(InBand)).await;
        let mut place = Place::default();
        for kind in [json!(["new"]), json!(["recovered", 1])] {
            let state = place.state.clone().unwrap_or_default();
            let path = format!("/WebSockets?resume={}&state={state}", place.at);
            let mut client = Client::try_connect(app.address, &path, &[]).await.unwrap();
            app.server.publish(message("before", (), Target::user("ann"))).await.unwrap();
            client.send("Client/authentication", json!(["secret", "ann"])).await;
            client.authenticated().await;
            let told = client.moved(&mut place).await;
            assert_eq!((&told["action"], &told["details"][0]), (&json!("Server/position"), &kind[0]));
            assert_eq!(app.told().await, "Client/authentication ann ");
            if kind[0] == "recovered" {
                // The messages that came while the client was away, and before it authenticated.
                assert_eq!(told["details"][1], 2);
                assert_eq!(client.moved(&mut place).await["action"], "missed");
                assert_eq!(client.moved(&mut place).await["action"], "before");
            }
            drop(client);
            assert_eq!(app.told().await, "Client/disconnection ann ");
            app.server.publish(message("missed", (), Target::user("ann"))).await.unwrap();
        }
    }
}

#[tokio::test]
async fn a_guest_that_sends_no_credentials_begins_with_its_first_message() {
    let app = App::with(|builder| builder.authenticator(InBand)).await;
    for first in ["echo", "Client/authentication"] {
        let mut client = Client::try_connect(app.address, "/WebSockets?resume=", &[]).await.unwrap();
        client.send(first, json!([])).await;
        if first == "Client/authentication" {
            client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
        }
        assert_eq!(client.json().await["details"], json!(["new"]));
        if first == "echo" {
            client.expect("echo", json!([])).await;
        }
        app.server.publish(message("news", (), Target::all())).await.unwrap();
        assert_eq!(client.json().await["action"], "news");
    }
}

#[tokio::test]
async fn a_resume_token_with_the_changes_of_a_handler_comes_before_its_answer() {
    let app = App::start().await;
    let mut place = Place::default();
    let mut client = Client::try_connect(app.address, "/WebSockets?resume=", &[("x-user", "ann")]).await.unwrap();
    assert_eq!(client.moved(&mut place).await["details"], json!(["new"]));
    client.send("room", json!(["join", "blue"])).await;
    assert_eq!(client.moved(&mut place).await["details"], json!(["now"]));
    client.expect("room", json!([["blue", "users"], 7])).await;
    drop(client);
    // The session's own groups and properties are as the authenticator says.
    let path = format!("/WebSockets?resume={}&state={}", place.at, place.state.unwrap());
    let mut client = Client::try_connect(app.address, &path, &[("x-user", "ann")]).await.unwrap();
    assert_eq!(client.json().await["details"], json!(["recovered", 0]));
    client.send("room", json!(["colour", "red"])).await;
    assert_eq!(client.json().await["details"], json!(["now"]));
    client.expect("room", json!([["blue", "users"], "red"])).await;
}

#[tokio::test]
async fn a_frame_that_is_no_message_closes_the_connection() {
    let mut config = Config::default();
    config.connection.message_size = 1000;
    let app = App::with(|builder| builder.config(config)).await;
    let data = |data, payload: Vec<u8>, last| Message::Frame(Frame::message(payload, OpCode::Data(data), last));
    let reserved = {
        let header = FrameHeader { rsv1: true, opcode: OpCode::Data(Data::Text), ..FrameHeader::default() };
        Message::Frame(Frame::from_payload(header, "x".into()))
    };
    for (message, code) in [
        (Message::text("hello"), 4400),
        (Message::text("{}"), 4400),
        (Message::text("[1]"), 4400),
        (Message::text(r#"{"action":7}"#), 4400),
        (Message::text(r#"{"action":""}"#), 4400),
        (Message::text(format!(r#"["{}"]"#, "x".repeat(256))), 4400),
        (Message::binary(r#"["echo"]"#), 4400),
        (Message::text("x".repeat(1001)), 1009),
        (Message::text("x".repeat(100_000)), 1009),
        (data(Data::Text, vec![0xff], true), 1007),
        (data(Data::Continue, vec![b'x'], true), 1002),
        (reserved, 1002),
    ] {
        let mut client = app.guest().await;
        let shown = format!("{message:?}");
        client.message(message).await;
        let (came, reason) = client.closed().await;
        assert_eq!(came, code, "{shown:.80}");
        assert!(!reason.is_empty(), "{shown:.80}");
    }
}

#[tokio::test]
async fn fragments_are_joined_and_pings_answered_between() {
    let app = App::start().await;
    let mut client = app.guest().await;
    let text = json!(["echo", "ä".repeat(5000)]).to_string().into_bytes();
    let mut parts: Vec<Vec<u8>> = text.chunks(501).map(<[u8]>::to_vec).collect();
    let last = parts.pop().unwrap();
    for (number, part) in parts.into_iter().enumerate() {
        let data = if number == 0 { Data::Text } else { Data::Continue };
        client.message(Message::Frame(Frame::message(part, OpCode::Data(data), false))).await;
        client.message(Message::Ping(number.to_string().into())).await;
        assert_eq!(soon(client.0.next()).await.unwrap().unwrap(), Message::Pong(number.to_string().into()));
    }
    client.message(Message::Frame(Frame::message(last, OpCode::Data(Data::Continue), true))).await;
    assert_eq!(client.json().await, json!(["echo", ["ä".repeat(5000)]]));
}

#[tokio::test]
async fn a_clients_close_is_answered_and_ends_the_socket() {
    let mut app = App::start().await;
    let mut client = app.guest().await;
    client.send("echo", json!([1])).await;
    soon(client.0.close(None)).await.unwrap();
    client.expect("echo", json!([1])).await;
    assert!(matches!(client.message_in().await, Message::Close(None)));
    assert!(soon(client.0.next()).await.is_none());
    assert_eq!(app.told().await, "Client/disconnection guest ");
}

#[tokio::test]
async fn a_session_or_a_user_is_closed_for_good() {
    let app = App::start().await;
    let (mut ann, mut bob, mut guest) = (app.user("ann").await, app.user("bob").await, app.guest().await);
    app.server.close_session("session of ann").await.unwrap();
    ann.expect("Server/close", json!([])).await;
    assert_eq!(ann.closed().await.0, 1000);
    app.server.publish(message("sentinel", (), Target::all())).await.unwrap();
    bob.expect("sentinel", json!([])).await;
    app.server.close_user("bob").await.unwrap();
    bob.expect("Server/close", json!([])).await;
    assert_eq!(bob.closed().await.0, 1000);
    guest.expect("sentinel", json!([])).await;
    guest.send("echo", json!([])).await;
    guest.expect("echo", json!([])).await;
}

#[tokio::test]
async fn a_session_that_ends_closes_its_connection() {
    let app = App::start().await;
    let soon_gone = SystemTime::now() + Duration::from_millis(300);
    let at = soon_gone.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_millis().to_string();
    let mut ending = Client::connect(app.address, &[("x-user", "ann"), ("x-expires", &at)]).await;
    let mut renewed = Client::connect(app.address, &[("x-user", "renewed"), ("x-expires", "20")]).await;
    assert_eq!(ending.closed().await.0, 4003);
    renewed.send("echo", json!([])).await;
    renewed.expect("echo", json!([])).await;
}

#[tokio::test]
async fn a_slow_handler_holds_back_its_own_connection_only() {
    let mut app = App::start().await;
    let (mut slow, mut quick) = (app.guest().await, app.guest().await);
    slow.send("wait", json!([1])).await;
    for number in 0..100 {
        slow.send("echo", json!([number])).await;
    }
    assert_eq!(app.told().await, "waiting");
    quick.send("echo", json!(["quick"])).await;
    quick.expect("echo", json!(["quick"])).await;
    // A published message is sent while the handler runs.
    app.server.publish(message("news", (), Target::all())).await.unwrap();
    slow.expect("news", json!([])).await;
    app.gate.add_permits(1);
    slow.expect("wait", json!([1])).await;
    for number in 0..100 {
        slow.expect("echo", json!([number])).await;
    }
}

#[tokio::test]
async fn a_close_reaches_a_client_whose_handler_runs() {
    let mut app = App::start().await;
    let mut client = app.user("ann").await;
    client.send("wait", json!([])).await;
    assert_eq!(app.told().await, "Client/authentication ann users");
    assert_eq!(app.told().await, "waiting");
    app.server.close_user("ann").await.unwrap();
    client.expect("Server/close", json!([])).await;
    assert_eq!(client.closed().await.0, 1000);
    app.gate.add_permits(1);
    assert_eq!(app.told().await, "waited");
    assert_eq!(app.told().await, "Client/disconnection ann users");
}

#[tokio::test]
async fn a_handler_runs_to_its_end_when_its_client_leaves() {
    let mut app = App::start().await;
    let mut client = app.guest().await;
    client.send("wait", json!([])).await;
    assert_eq!(app.told().await, "waiting");
    drop(client);
    app.gate.add_permits(1);
    assert_eq!(app.told().await, "waited");
    assert_eq!(app.told().await, "Client/disconnection guest ");
}

#[tokio::test]
async fn a_handler_that_holds_its_thread_is_named_in_the_log() {
    // Everything of this test runs on its own thread, on which this subscriber listens.
    let (tell, mut lines) = mpsc::unbounded_channel();
    let subscriber = tracing_subscriber::fmt().with_writer(move || Lines(tell.clone())).finish();
    let _listening = tracing::subscriber::set_default(subscriber);
    let mut config = Config::default();
    config.connection.blocking_warning = Duration::from_millis(10);
    let app = App::with(|builder| builder.config(config)).await;
    let mut client = app.guest().await;
    client.send("block", json!([])).await;
    client.expect("block", json!([])).await;
    let line = soon(async {
        loop {
            let line: String = lines.recv().await.unwrap();
            if line.contains("held its thread") {
                break line;
            }
        }
    })
    .await;
    assert!(line.contains("WARN") && line.contains("\"block\""), "{line}");
}

/// Passes each line of the log to the test.
struct Lines(mpsc::UnboundedSender<String>);

impl std::io::Write for Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.0.send(String::from_utf8_lossy(line).into_owned()).ok();
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_delays_no_other_client() {
    let mut config = Config::default();
    config.connection.queue_size = 1024 * 1024;
    let app = App::with(|builder| builder.config(config)).await;
    let (mut slow, mut quick) = (app.guest().await, app.guest().await);
    // More than the buffers of two sockets take.
    let large = "x".repeat(512 * 1024);
    for number in 0..64 {
        app.server.publish(message("large", json!([number, large]), Target::all())).await.unwrap();
        assert_eq!(quick.json().await["details"][0], number);
    }
    let mut seen = 0;
    let code = loop {
        match slow.message_in().await {
            Message::Text(_) => seen += 1,
            Message::Close(Some(frame)) => break u16::from(frame.code),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(code, 4000);
    assert!(seen < 64);
}

#[tokio::test]
async fn a_client_that_sends_too_fast_is_read_more_slowly() {
    let mut config = Config::default();
    config.connection.messages_per_second = 100;
    config.connection.message_burst = 3;
    let app = App::with(|builder| builder.config(config)).await;
    let mut client = app.guest().await;
    for number in 0..20 {
        client.send("echo", json!([number])).await;
    }
    for number in 0..20 {
        client.expect("echo", json!([number])).await;
    }
}

/// The bytes of an upgrade request as a guest.
const UPGRADE: &str = "GET /WebSockets HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
                       sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// Returns a socket after its upgrade.
async fn upgraded(address: SocketAddr, sent: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(sent).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(stream.read_u8()).await.unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&head));
    stream
}

#[tokio::test]
async fn a_silent_client_is_pinged_and_then_closed() {
    let mut config = Config::default();
    config.connection.ping_interval = Duration::from_millis(20);
    config.connection.ping_timeout = Duration::from_millis(300);
    let app = App::with(|builder| builder.config(config)).await;
    let mut stream = upgraded(app.address, UPGRADE.as_bytes()).await;
    let mut ping = [0; 2];
    soon(stream.read_exact(&mut ping)).await.unwrap();
    assert_eq!(ping, [0x89, 0]);
    // Any bytes count as an answer.
    stream.write_all(&[0x8a, 0x80, 0, 0, 0, 0]).await.unwrap();
    soon(stream.read_exact(&mut ping)).await.unwrap();
    assert_eq!(ping, [0x89, 0]);
    let mut close = [0; 4];
    soon(stream.read_exact(&mut close)).await.unwrap();
    assert_eq!((close[0], u16::from_be_bytes([close[2], close[3]])), (0x88, 4001));
}

#[tokio::test]
async fn a_message_may_come_with_the_upgrade_request() {
    let app = App::start().await;
    let message = br#"["echo",1]"#;
    let mut sent = UPGRADE.as_bytes().to_vec();
    sent.extend([0x81, 0x80 | message.len() as u8, 0, 0, 0, 0]);
    sent.extend(message);
    let mut stream = upgraded(app.address, &sent).await;
    let mut answer = vec![0; 2 + 12];
    soon(stream.read_exact(&mut answer)).await.unwrap();
    assert_eq!(&answer[2..], br#"["echo",[1]]"#);
}

#[tokio::test]
async fn a_message_without_a_mask_breaks_the_protocol() {
    let app = App::start().await;
    let mut stream = upgraded(app.address, UPGRADE.as_bytes()).await;
    stream.write_all(&[0x81, 1, b'x']).await.unwrap();
    let mut rest = Vec::new();
    soon(stream.read_to_end(&mut rest)).await.unwrap();
    assert_eq!((rest[0], u16::from_be_bytes([rest[2], rest[3]])), (0x88, 1002));
}

#[tokio::test]
async fn limits_and_foreign_pages_are_refused_before_the_upgrade() {
    let mut config = Config::default();
    config.connection.connections_per_ip = 1;
    config.connection.connections = 2;
    let mut app = App::with(|builder| builder.config(config)).await;
    let address = app.address;
    let connect = async |ip| {
        Client::try_connect(address, "/WebSockets", &[("x-forwarded-for", ip)]).await.map_err(|s| s.as_u16())
    };
    let first = connect("1.1.1.1").await.unwrap();
    assert_eq!(connect("1.1.1.1").await.err(), Some(429));
    let _second = connect("2.2.2.2").await.unwrap();
    assert_eq!(connect("3.3.3.3").await.err(), Some(503));
    drop(first);
    // The slot is free once the connection is completely over, a moment after its handler.
    assert_eq!(app.told().await, "Client/disconnection guest ");
    soon(async {
        while connect("1.1.1.1").await.is_err() {
            tokio::task::yield_now().await;
        }
    })
    .await;

    let app = App::with(|builder| {
        let session = |_| async { Ok(None) };
        builder
            .authenticator(ws_cluster::SessionCookie::new("sid", session))
            .allowed_origins(["https://app.example".parse().unwrap()])
    })
    .await;
    for (origin, status) in [("https://evil.example", Some(StatusCode::FORBIDDEN)), ("https://app.example", None)] {
        let tried = Client::try_connect(app.address, "/WebSockets", &[("origin", origin)]).await;
        assert_eq!(tried.err(), status, "{origin}");
    }
}

#[tokio::test]
async fn http_answers_by_path() {
    let app = App::start().await;
    for (method, path, headers, status) in [
        ("GET", "/WebSockets", "", 426),
        ("POST", "/WebSockets", "", 405),
        ("GET", "/_cluster/v1", "", 426),
        ("GET", "/health", "", 200),
        ("POST", "/health", "", 405),
        ("GET", "/ready", "", 200),
        ("GET", "/ws-cluster.js", "", 200),
        ("HEAD", "/ws-cluster.js", "", 200),
        ("GET", "/", "", 404),
        ("POST", "/_publish", "authorization: Bearer x\r\n", 404),
        ("POST", "/_close", "", 404),
    ] {
        assert_eq!(app.http(method, path, headers, "").await.0, status, "{method} {path}");
    }
    let upgrade = |version: &str, key: &str| {
        format!("upgrade: websocket\r\nsec-websocket-version: {version}\r\nsec-websocket-key: {key}\r\n")
    };
    // `connection: close` comes before it, and a list of values may follow.
    let headers = format!("connection: upgrade\r\n{}", upgrade("12", "AAAAAAAAAAAAAAAAAAAAAA=="));
    assert_eq!(app.http("GET", "/WebSockets", &headers, "").await.0, 426);
}

#[tokio::test]
async fn the_publish_key_opens_publishing_and_closing() {
    let app = App::with(|builder| builder.publish_key("a key of this test")).await;
    let mut ann = app.user("7").await;
    let key = "authorization: Bearer a key of this test\r\n";
    let publish = r#"{"action":"news","details":{"a":1},"to":"user:7","key":"once"}"#;
    assert_eq!(app.http("POST", "/_publish", key, publish).await.0, 204);
    ann.expect("news", json!([{"a": 1}])).await;
    let large = json!({"action": "x", "to": "all", "details": "x".repeat(1024 * 1024)}).to_string();
    let larger = json!({"action": "x", "to": "all", "details": "x".repeat(3 * 1024 * 1024)}).to_string();
    for (method, path, headers, body, status) in [
        ("POST", "/_publish", "", publish, 401),
        ("POST", "/_publish", "authorization: Bearer wrong\r\n", publish, 401),
        ("POST", "/_publish", "authorization: Basic a key of this test\r\n", publish, 401),
        ("GET", "/_publish", key, publish, 405),
        ("POST", "/_publish", key, "", 400),
        ("POST", "/_publish", key, "[]", 400),
        ("POST", "/_publish", key, r#"{"action":"x"}"#, 400),
        ("POST", "/_publish", key, r#"{"action":"","to":"all"}"#, 400),
        ("POST", "/_publish", key, r#"{"action":"x","to":"everyone"}"#, 400),
        ("POST", "/_publish", key, r#"{"action":"x","to":"all","too":1}"#, 400),
        ("POST", "/_publish", key, &large, 413),
        ("POST", "/_publish", key, &larger, 413),
        ("POST", "/_close", "", r#"{"user":7}"#, 401),
        ("POST", "/_close", key, r#"{"users":7}"#, 400),
        ("POST", "/_close", key, r#"{"user":7,"session":8}"#, 400),
        ("POST", "/_close", key, r#"{"session":"none"}"#, 204),
        ("POST", "/_close", key, r#"{"user":7}"#, 204),
    ] {
        let (came, text) = app.http(method, path, headers, body).await;
        assert_eq!(came, status, "{method} {path} {headers} {body:.80}: {text}");
    }
    ann.expect("Server/close", json!([])).await;
    assert_eq!(ann.closed().await.0, 1000);
}

#[tokio::test]
async fn publishes_that_cannot_be_sent_are_refused() {
    let app = App::start().await;
    let mut client = app.guest().await;
    for action in ["", &"x".repeat(256)] {
        assert!(app.server.publish(message(action, (), Target::all())).await.is_err());
    }
    assert!(app.server.publish(message("x", (), Target::all()).idempotency_key(&"x".repeat(65))).await.is_err());
    assert!(app.server.publish(message("x", "x".repeat(1024 * 1024), Target::all())).await.is_err());
    app.server.publish(message("x", "x".repeat(1024 * 1024 - 5), Target::all())).await.unwrap();
    assert_eq!(client.json().await["action"], "x");
}

#[tokio::test]
async fn a_shutdown_waits_for_handlers_and_sends_clients_elsewhere() {
    let mut app = App::start().await;
    let mut client = app.guest().await;
    client.send("wait", json!([])).await;
    assert_eq!(app.told().await, "waiting");
    app.stop.send(()).unwrap();
    assert_eq!(client.closed().await.0, 1012);
    assert!(!app.task.is_finished());
    app.gate.add_permits(1);
    soon(app.task).await.unwrap().unwrap();
    assert_eq!(app.told.recv().await.unwrap(), "waited");
    assert_eq!(app.told.recv().await.unwrap(), "Client/disconnection guest ");
    assert!(TcpStream::connect(app.address).await.is_err());
    assert!(app.server.publish(message("x", (), Target::all())).await.is_err());
}

#[tokio::test]
async fn a_shutdown_closes_clients_that_have_not_authenticated() {
    let app = App::with(|builder| builder.guests(false).authenticator(InBand)).await;
    let mut client = app.guest().await;
    client.send("echo", json!([])).await;
    client.expect("echo:error", json!([403, "Forbidden"])).await;
    app.stop.send(()).unwrap();
    assert_eq!(client.closed().await.0, 1012);
    soon(app.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_axum_app_mounts_it() {
    let app = App::start().await;
    let server = app.server.clone();
    let upgrade = move |request: axum::extract::Request| {
        let server = server.clone();
        async move { server.upgrade(request).await }
    };
    let router = axum::Router::new().route("/own", axum::routing::any(upgrade)).merge(app.server.routes());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = router.into_make_service_with_connect_info::<SocketAddr>();
    tokio::spawn(async move { axum::serve(listener, service).await });
    for path in ["/own", "/WebSockets"] {
        let mut client = Client::try_connect(address, path, &[]).await.unwrap();
        client.send("echo", json!([path])).await;
        client.expect("echo", json!([path])).await;
    }
}

#[tokio::test]
async fn settings_that_cannot_work_are_named() {
    let refused =
        async |set: fn(ServerBuilder) -> ServerBuilder, word: &str| match set(Server::builder(MemoryPool::default()))
            .start()
            .await
        {
            Err(StartError::Config { reason: text }) => assert!(text.contains(word), "{text}"),
            other => panic!("{word}: {other:?}"),
        };
    struct Nothing;
    #[async_trait]
    impl ActionHandler for Nothing {
        async fn handle(&self, _: Request) -> Result<(), ActionError> {
            Ok(())
        }
    }
    refused(|builder| builder.path("ws"), "\"ws\"").await;
    refused(|builder| builder.path("/_publish"), "taken").await;
    refused(|builder| builder.address("http://host:1"), "ws://HOST:PORT").await;
    refused(|builder| builder.address("ws://host:1/path?query"), "ws://HOST:PORT").await;
    refused(|builder| builder.cluster(""), "name").await;
    refused(|builder| builder.key("short"), "32 bytes").await;
    refused(|builder| builder.publish_key(""), "publish key").await;
    refused(|builder| builder.action("Server/x", Nothing), "Server/x").await;
    refused(|builder| builder.action("x:error", Nothing), ":error").await;
    for unknown in ["Client/disconnected", "Client/", "Client/Authentication", "Client/authentication "] {
        let set = async |name: &str| Server::builder(MemoryPool::default()).action(name, Nothing).start().await;
        let Err(StartError::Config { reason: text }) = set(unknown).await else { panic!("{unknown}") };
        for word in [unknown, "Client/authentication", "Client/disconnection"] {
            assert!(text.contains(word), "{text}");
        }
    }
    refused(|builder| builder.action("x", Nothing).action("x", Nothing), "two handlers").await;
    let zero = |builder: ServerBuilder| {
        let mut config = Config::default();
        config.connection.messages_per_second = 0;
        builder.config(config)
    };
    refused(zero, "messages_per_second").await;
}
