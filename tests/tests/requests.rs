//! Requests: a message with an id gets exactly one answer with this id, in every case, in both dialects, over a TCP
//! socket and over another kind of stream. Messages without an id are answered as ever.

use std::{
    collections::BTreeMap,
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use futures_util::{SinkExt, StreamExt};
use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tests::{
    client::{Client, soon},
    message,
    random::Random,
    solo::Solo,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, duplex},
    net::TcpStream,
    sync::Semaphore,
};
use tokio_tungstenite::{
    WebSocketStream, client_async,
    tungstenite::{Message, client::IntoClientRequest},
};
use ws_cluster::{
    ActionError, ActionHandler, AuthenticationError, Authenticator, Close, Config, Credentials, Details, Handshake,
    Identity, IntoHandler, MemoryPool, Next, RawDetails, Request, Server, ServerBuilder, Target,
};

/// An authenticator: `x-user: NAME` and credentials `[NAME]` are a user. It may be down.
#[derive(Clone, Default)]
struct Users(Arc<AtomicBool>);

#[async_trait]
impl Authenticator for Users {
    async fn authenticate(
        &self,
        handshake: &Handshake,
        credentials: Option<Credentials<'_>>,
    ) -> Result<Option<Identity>, AuthenticationError> {
        if self.0.load(Ordering::Relaxed) {
            return Err(AuthenticationError::Unavailable("down".into()));
        }
        let named = match credentials {
            Some(credentials) => credentials.details().first().and_then(Value::as_str).map(str::to_owned),
            None => handshake.header("x-user").map(str::to_owned),
        };
        Ok(named.filter(|name| name != "nobody").map(Identity::user))
    }

    fn uses_cookies(&self) -> bool {
        false
    }

    fn in_band(&self) -> bool {
        true
    }
}

/// A handler that is a value, and may answer several times or not at all.
struct Act;

#[async_trait]
impl ActionHandler for Act {
    async fn handle(&self, request: Request) -> Result<(), ActionError> {
        match request.action() {
            "silent" => {}
            "twice" => {
                request.reply("first")?;
                request.reply("second")?;
            }
            "reply, then fail" => {
                request.reply("before")?;
                return Err(ActionError::conflict("no"));
            }
            "reply, then panic" => {
                request.reply("before")?;
                panic!("as told");
            }
            "panic" => panic!("as told"),
            "fail" => return Err(ActionError::new(418, "as asked")),
            "map" => request.reply(BTreeMap::from([((1, 2), 3)]))?,
            "to user" => request.reply_to_user("everywhere").await?,
            "id" => request.reply(request.request_id().map(ToString::to_string))?,
            "too large" => request.publish(message("x", "x".repeat(1024 * 1024), Target::all())).await?,
            action => request.reply((action, request.details()))?,
        }
        Ok(())
    }

    fn guests(&self) -> bool {
        true
    }
}

fn builder(users: Users) -> ServerBuilder {
    async fn value(details: RawDetails) -> RawDetails {
        details
    }
    async fn sum(Details((one, other)): Details<(i64, i64)>) -> i64 {
        one + other
    }
    async fn nothing() {}
    async fn absent() -> Option<String> {
        None
    }
    async fn editors_only(request: Request, next: Next) -> Result<(), ActionError> {
        if request.in_group("editors") { next.run(request).await } else { Err(ActionError::forbidden("editors only")) }
    }
    async fn layered_over(_: Request, _: Next) -> Result<(), ActionError> {
        Ok(())
    }
    let acts = ["silent", "twice", "reply, then fail", "reply, then panic", "panic", "fail", "map", "to user", "id"];
    let builder = Server::builder(MemoryPool::default())
        .authenticator(users)
        .action("value", value.with_guests())
        .action("sum", sum.with_guests())
        .action("nothing", nothing.with_guests())
        .action("absent", absent.with_guests())
        .action("edit", nothing.with_guests().layer(editors_only))
        .action("layered over", value.with_guests().layer(layered_over))
        .action("for users", value)
        .action("too large", Act);
    acts.iter().fold(builder, |builder, action| builder.action(*action, Act))
}

/// A client of one dialect, over any stream.
struct Asking {
    socket: WebSocketStream<Box<dyn Stream>>,
    array: bool,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// The kinds of connections: the dialect, and whether the stream is a TCP socket.
const KINDS: [(bool, bool); 4] = [(false, true), (true, true), (false, false), (true, false)];

impl Asking {
    async fn connect(solo: &Solo, (array, tcp): (bool, bool), user: Option<&str>) -> Self {
        let stream: Box<dyn Stream> = if tcp {
            Box::new(TcpStream::connect(solo.address).await.unwrap())
        } else {
            let (near, far) = duplex(4096);
            let server = solo.server.clone();
            let service = service_fn(move |request| {
                let server = server.clone();
                async move { Ok::<_, Infallible>(server.handle(request).await) }
            });
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(far), service).with_upgrades());
            Box::new(near)
        };
        let mut request = "ws://site/WebSockets".into_client_request().unwrap();
        if let Some(user) = user {
            request.headers_mut().insert("x-user", user.parse().unwrap());
        }
        Self { socket: soon(client_async(request, stream)).await.unwrap().0, array }
    }

    async fn text(&mut self, text: &str) {
        soon(self.socket.send(Message::text(text))).await.unwrap();
    }

    /// Sends a request, or an ordinary message if the id is `null`.
    async fn ask(&mut self, action: &str, details: &Value, id: &Value) {
        let text = match (self.array, id.is_null()) {
            (true, true) => json!([action, details]),
            (true, false) => json!([action, details, id]),
            (false, true) => json!({ "action": action, "details": details }),
            (false, false) => json!({ "id": id, "action": action, "details": details }),
        };
        self.text(&text.to_string()).await;
    }

    /// Returns the next message: its action, its details, and its id or `null`.
    async fn next(&mut self) -> (String, Value, Value) {
        let text = loop {
            match soon(self.socket.next()).await.expect("no end").expect("no error") {
                Message::Text(text) => break text,
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("no text: {other:?}"),
            }
        };
        let mut came: Value = serde_json::from_str(&text).unwrap();
        let taken = match &mut came {
            Value::Array(elements) => {
                assert!(self.array && (2..=3).contains(&elements.len()), "{text}");
                elements.resize(3, Value::Null);
                [elements[0].take(), elements[1].take(), elements[2].take()]
            }
            members => {
                assert!(!self.array && members.get("at").is_none(), "{text}");
                ["action", "details", "id"].map(|name| members.get_mut(name).map(Value::take).unwrap_or_default())
            }
        };
        let [action, details, id] = taken;
        (action.as_str().unwrap().to_owned(), details, id)
    }

    #[track_caller]
    fn expect(&mut self, action: &str, details: Value, id: Value) -> impl Future<Output = ()> {
        let caller = std::panic::Location::caller();
        let expected = (action.to_owned(), details, id);
        async move { assert_eq!(self.next().await, expected, "expected at {caller}") }
    }

    /// Asserts that nothing more has come.
    async fn nothing_more(&mut self) {
        self.ask("sum", &json!([1, 1]), &json!("sentinel")).await;
        self.expect("sum", json!([2]), json!("sentinel")).await;
    }

    async fn closed(&mut self) -> u16 {
        match soon(self.socket.next()).await {
            Some(Ok(Message::Close(Some(frame)))) => frame.code.into(),
            other => panic!("no close: {other:?}"),
        }
    }
}

/// The messages that a message with an action gets: the action and the details of each. The first one is the answer.
type Answers = Vec<(&'static str, Value)>;

/// What each action does for a user.
fn table() -> Vec<(&'static str, Value, Answers)> {
    let internal = || json!([500, "Internal Server Error"]);
    let reserved = || json!([400, "this action is not for clients to send"]);
    vec![
        ("value", json!(["ü", 1.5]), vec![("value", json!(["ü", 1.5]))]),
        ("value", json!([]), vec![("value", json!([]))]),
        ("sum", json!([1, 2]), vec![("sum", json!([3]))]),
        ("nothing", json!([]), vec![("nothing", json!([]))]),
        ("absent", json!([]), vec![("absent", json!([]))]),
        ("silent", json!([]), vec![("silent", json!([]))]),
        ("layered over", json!([]), vec![("layered over", json!([]))]),
        ("edit", json!([]), vec![("edit:error", json!([403, "editors only"]))]),
        ("twice", json!([]), vec![("twice", json!(["first"])), ("twice", json!(["second"]))]),
        (
            "reply, then fail",
            json!([]),
            vec![("reply, then fail", json!(["before"])), ("reply, then fail:error", json!([409, "no"]))],
        ),
        (
            "reply, then panic",
            json!([]),
            vec![("reply, then panic", json!(["before"])), ("reply, then panic:error", internal())],
        ),
        ("panic", json!([]), vec![("panic:error", internal())]),
        ("fail", json!([]), vec![("fail:error", json!([418, "as asked"]))]),
        ("map", json!([]), vec![("map:error", internal())]),
        ("too large", json!([]), vec![("too large:error", json!([413]))]),
        ("unknown", json!([]), vec![("unknown:error", json!([404, "Not Found"]))]),
        ("Client/disconnection", json!([]), vec![("Client/disconnection:error", reserved())]),
        ("Server/close", json!([]), vec![("Server/close:error", reserved())]),
        ("value:error", json!([]), vec![("value:error:error", reserved())]),
    ]
}

/// Returns true for actions whose only answer exists for the one who asks.
fn is_silent(action: &str, details: &Value) -> bool {
    ["nothing", "absent", "silent", "layered over"].contains(&action) || action == "value" && details == &json!([])
}

#[tokio::test]
async fn each_request_gets_one_answer_with_its_id() {
    let solo = Solo::start(builder(Users::default())).await;
    let long = "x".repeat(64);
    let ids = [json!(7), json!(-1), json!(9_007_199_254_740_993_u64), json!("a \"b\" ü"), json!(""), json!(long)];
    for kind in KINDS {
        let mut client = Asking::connect(&solo, kind, Some("ann")).await;
        for (turn, (action, details, answers)) in table().into_iter().enumerate() {
            for id in [&ids[turn % ids.len()], &Value::Null] {
                client.ask(action, &details, id).await;
                if id.is_null() && is_silent(action, &details) {
                    continue;
                }
                for (place, (answer, expected)) in answers.iter().enumerate() {
                    let (came, mut details, answered) = client.next().await;
                    if action == "too large" {
                        details = json!([details[0]]);
                    }
                    let id = if place == 0 { id } else { &Value::Null };
                    assert_eq!((came.as_str(), &details, &answered), (*answer, expected, id), "{action} {kind:?}");
                }
            }
            client.nothing_more().await;
        }
    }
}

#[tokio::test]
async fn a_guest_who_may_not_call_an_action_is_told_with_the_id() {
    let solo = Solo::start(builder(Users::default())).await;
    for kind in KINDS {
        let mut guest = Asking::connect(&solo, kind, None).await;
        guest.ask("for users", &json!([]), &json!(1)).await;
        guest.expect("for users:error", json!([403, "Forbidden"]), json!(1)).await;
        guest.ask("to user", &json!([]), &json!(2)).await;
        guest.expect("to user", json!(["everywhere"]), Value::Null).await;
        guest.expect("to user", json!([]), json!(2)).await;
        guest.nothing_more().await;
    }
}

#[tokio::test]
async fn what_a_handler_publishes_is_not_the_answer() {
    let solo = Solo::start(builder(Users::default())).await;
    for kind in KINDS {
        let mut client = Asking::connect(&solo, kind, Some("ann")).await;
        client.ask("to user", &json!([]), &json!(1)).await;
        client.expect("to user", json!(["everywhere"]), Value::Null).await;
        client.expect("to user", json!([]), json!(1)).await;
        client.nothing_more().await;
    }
}

#[tokio::test]
async fn a_handler_sees_the_id_and_it_comes_back_in_the_form_in_which_it_came() {
    let solo = Solo::start(builder(Users::default())).await;
    let mut client = Client::connect(solo.address, &[("x-user", "ann")]).await;
    for (id, seen) in [("-0", "-0"), ("123456789012345678901234567890", "123456789012345678901234567890")] {
        client.text(&format!(r#"{{"action":"id","id": {id} }}"#)).await;
        assert_eq!(client.text_in().await, format!(r#"{{"action":"id","details":["{seen}"],"id":{id}}}"#));
    }
    client.text(r#"{"action":"nothing","id":"\u00e9\/\ud83c"}"#).await;
    assert_eq!(client.text_in().await, "{\"action\":\"nothing\",\"details\":[],\"id\":\"\\u00e9\\/\u{fffd}\"}");
    client.send("id", json!([])).await;
    client.expect("id", json!([])).await;
    client.text(r#"{"action":"sum","details":[1,2],"id":null}"#).await;
    client.expect("sum", json!([3])).await;
}

#[tokio::test]
async fn malformed_requests_are_refused_and_the_connection_lives_on() {
    let solo = Solo::start(builder(Users::default())).await;
    let why = "an id is an integer or a string, of at most 64 bytes";
    let long = format!("\"{}\"", "x".repeat(65));
    let deep = "[".repeat(200) + &"]".repeat(200);
    for kind in KINDS {
        let mut client = Asking::connect(&solo, kind, Some("ann")).await;
        let array = kind.0;
        let text = |details: &str, id: &str| match array {
            true => format!(r#"["value",{details},{id}]"#),
            false => format!(r#"{{"action":"value","details":{details},"id":{id}}}"#),
        };
        for id in ["1.5", "1e3", "true", "[]", "[1]", "{}", &long] {
            client.text(&text("[]", id)).await;
            client.expect("value:error", json!([400, why]), Value::Null).await;
        }
        for details in [deep.as_str(), "[NaN]", "[1,]", "undefined"] {
            client.text(&text(details, "\"mine\"")).await;
            let (action, details, id) = client.next().await;
            assert_eq!((action.as_str(), &details[0], id), ("value:error", &json!(400), json!("mine")), "{details}");
        }
        client.ask("sum", &json!(["one"]), &json!(3)).await;
        let (action, details, id) = client.next().await;
        assert_eq!((action.as_str(), &details[0], id), ("sum:error", &json!(400), json!(3)));
        client.nothing_more().await;
    }
}

#[tokio::test]
async fn an_authentication_with_an_id_is_answered_with_it() {
    let users = Users::default();
    let mut config = Config::default();
    // Longer than the test takes.
    config.connection.authentication_interval = Duration::from_secs(600);
    let builder = builder(users.clone()).config(config);
    let solo = Solo::start(builder.on_connect(async |request: Request| match request.user() {
        Some("eve") => Err(ActionError::new(403, "not eve")),
        _ => Ok(()),
    }))
    .await;
    const NAME: &str = "Client/authentication";
    const FAILED: &str = "Client/authentication:error";
    for kind in KINDS {
        let mut client = Asking::connect(&solo, kind, None).await;
        // As its first message, it would be answered with what the upgrade found out.
        client.nothing_more().await;
        client.ask(NAME, &json!([]), &json!(1)).await;
        client.expect(FAILED, json!([403, "Forbidden"]), json!(1)).await;
        users.0.store(true, Ordering::Relaxed);
        // A guest that only asks who it is stays one.
        client.ask(NAME, &json!([]), &json!(2)).await;
        client.expect(FAILED, json!([503, "Service Unavailable"]), json!(2)).await;
        users.0.store(false, Ordering::Relaxed);
        // As a guest it becomes a user; as a user it says who it is, renews that, and is no other user.
        for (credentials, id) in [(json!(["ann"]), 3), (json!([]), 4), (json!(["ann"]), 5)] {
            client.ask(NAME, &credentials, &json!(id)).await;
            let (action, details, answered) = client.next().await;
            assert_eq!((action.as_str(), &details[0], answered), (NAME, &json!("ok"), json!(id)), "{details}");
        }
        client.ask(NAME, &json!(["bob"]), &json!(6)).await;
        client.expect(FAILED, json!([403, "Forbidden"]), json!(6)).await;
        // That was the fifth question.
        client.ask(NAME, &json!(["ann"]), &json!(7)).await;
        client.expect(FAILED, json!([429, "Too Many Requests"]), json!(7)).await;
        client.ask("unknown", &json!([]), &json!(8)).await;
        client.expect("unknown:error", json!([404, "Not Found"]), json!(8)).await;

        let mut late = Asking::connect(&solo, kind, None).await;
        users.0.store(true, Ordering::Relaxed);
        late.ask(NAME, &json!(["ann"]), &json!("late")).await;
        late.expect(FAILED, json!([503, "Service Unavailable"]), json!("late")).await;
        assert_eq!(late.closed().await, 4002);
        users.0.store(false, Ordering::Relaxed);

        let mut eve = Asking::connect(&solo, kind, None).await;
        eve.ask(NAME, &json!(["eve"]), &json!("e")).await;
        eve.expect(FAILED, json!([403, "not eve"]), json!("e")).await;
        assert_eq!(eve.closed().await, 4401);
        let mut nobody = Asking::connect(&solo, kind, None).await;
        nobody.ask(NAME, &json!(["nobody"]), &json!("n")).await;
        nobody.expect(FAILED, json!([403, "Forbidden"]), json!("n")).await;
        assert_eq!(nobody.closed().await, 4401);
    }
}

#[tokio::test]
async fn a_guest_of_a_server_without_guests_is_told_with_the_id() {
    let solo = Solo::start(builder(Users::default()).guests(false)).await;
    for kind in KINDS {
        let mut client = Asking::connect(&solo, kind, None).await;
        client.ask("value", &json!([]), &json!(1)).await;
        client.expect("value:error", json!([403, "Forbidden"]), json!(1)).await;
        client.ask("Client/authentication", &json!(["ann"]), &json!(2)).await;
        assert_eq!(client.next().await.2, json!(2));
        client.ask("value", &json!([]), &json!(3)).await;
        client.expect("value", json!([]), json!(3)).await;
    }
}

#[tokio::test]
async fn a_request_that_comes_first_on_a_connection_that_resumes_is_answered() {
    let solo = Solo::start(builder(Users::default())).await;
    for user in [None, Some("ann")] {
        let headers: Vec<_> = user.map(|user| ("x-user", user)).into_iter().collect();
        let mut client = Client::try_connect(solo.address, "/WebSockets?resume=", &headers).await.unwrap();
        client.text(r#"{"action":"sum","details":[1,2],"id":7}"#).await;
        assert_eq!(client.json().await["action"], "Server/position");
        assert_eq!(client.json().await, json!({"action": "sum", "details": [3], "id": 7}));
    }
}

#[tokio::test]
async fn a_fallback_answers_requests_like_any_handler() {
    let solo = Solo::start(builder(Users::default()).fallback(Act)).await;
    for kind in KINDS {
        let mut client = Asking::connect(&solo, kind, Some("ann")).await;
        client.ask("anything", &json!([1]), &json!(1)).await;
        client.expect("anything", json!(["anything", [1]]), json!(1)).await;
        client.nothing_more().await;
    }
}

#[tokio::test]
async fn a_reply_after_the_end_of_the_handler_is_an_ordinary_message() {
    let gate = Arc::new(Semaphore::new(0));
    let wait = gate.clone();
    let later = move |request: Request| {
        let wait = wait.clone();
        async move {
            tokio::spawn(async move {
                wait.acquire().await.unwrap().forget();
                request.reply("later").unwrap();
            });
        }
    };
    let solo = Solo::start(builder(Users::default()).action("later", later)).await;
    for kind in KINDS {
        let mut client = Asking::connect(&solo, kind, Some("ann")).await;
        client.ask("later", &json!([]), &json!(1)).await;
        client.expect("later", json!([]), json!(1)).await;
        gate.add_permits(1);
        client.expect("later", json!(["later"]), Value::Null).await;
    }
}

#[tokio::test]
async fn requests_beyond_the_rate_wait_and_are_all_answered() {
    let mut config = Config::default();
    config.connection.messages_per_second = 500;
    config.connection.message_burst = 5;
    let solo = Solo::start(builder(Users::default()).config(config)).await;
    for kind in KINDS {
        let mut client = Asking::connect(&solo, kind, Some("ann")).await;
        for id in 0..100 {
            client.ask("sum", &json!([id, 1]), &json!(id)).await;
        }
        for id in 0..100 {
            client.expect("sum", json!([id + 1]), json!(id)).await;
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_its_answers_is_closed() {
    let mut config = Config::default();
    config.connection.queue_size = 10_000;
    config.connection.message_burst = 100_000;
    config.connection.close_timeout = Duration::from_millis(200);
    let solo = Solo::start(builder(Users::default()).config(config)).await;
    let mut client = Client::connect(solo.address, &[("x-user", "ann")]).await;
    let request = |id: u32| json!({"action": "value", "details": ["x".repeat(60_000)], "id": id}).to_string();
    // Until the server no longer reads: it has closed.
    let mut sent = 0;
    while soon(client.0.send(Message::text(request(sent)))).await.is_ok() {
        sent += 1;
    }
    // Each request before the close has one answer or none, in order, and no other comes.
    let mut answered = 0;
    while let Some(Ok(message)) = soon(client.0.next()).await {
        match message {
            Message::Text(text) => {
                let came: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(came["id"], answered);
                answered += 1;
            }
            Message::Close(Some(frame)) => assert_eq!(u16::from(frame.code), 4000),
            _ => {}
        }
    }
    assert!(answered <= sent);
}

#[tokio::test]
async fn a_shutdown_answers_before_the_close_frame_or_not_at_all() {
    let gate = Arc::new(Semaphore::new(0));
    let wait = gate.clone();
    let waits = move |request: Request| {
        let wait = wait.clone();
        async move {
            wait.acquire().await.unwrap().forget();
            request.reply("waited")
        }
    };
    let solo = Solo::start(builder(Users::default()).action("wait", waits)).await;
    for kind in KINDS {
        let mut client = Asking::connect(&solo, kind, Some("ann")).await;
        client.ask("sum", &json!([1, 2]), &json!(1)).await;
        client.ask("wait", &json!([]), &json!(2)).await;
        client.expect("sum", json!([3]), json!(1)).await;
        solo.server.close(Close::user("ann").reconnect()).await.unwrap();
        assert_eq!(client.closed().await, 4003);
        gate.add_permits(1);
    }
    let mut client = Asking::connect(&solo, KINDS[0], Some("ann")).await;
    client.ask("sum", &json!([1, 2]), &json!(1)).await;
    client.ask("wait", &json!([]), &json!(2)).await;
    client.expect("sum", json!([3]), json!(1)).await;
    let server = solo.server.clone();
    let stopping = tokio::spawn(async move { server.shutdown().await });
    assert_eq!(client.closed().await, 1012);
    gate.add_permits(1);
    soon(stopping).await.unwrap();
}

/// Sends requests and messages in random order, and checks that each request has one answer and that the order holds.
#[tokio::test]
async fn requests_and_messages_in_any_order_have_one_answer_each() {
    let solo = Solo::start(builder(Users::default())).await;
    let seed = std::env::var("WS_CLUSTER_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or_else(Random::seed);
    eprintln!("WS_CLUSTER_SEED={seed}");
    let mut random = Random::new(seed);
    let table = table();
    for kind in KINDS {
        let mut client = Asking::connect(&solo, kind, Some("ann")).await;
        for _ in 0..10 {
            let mut expected = Vec::new();
            for number in 0..random.below(40) {
                let (action, details, answers) = random.choose(&table);
                let id = match random.below(3) {
                    0 => Value::Null,
                    1 => json!(number),
                    _ => json!(format!("request {number}")),
                };
                client.ask(action, details, &id).await;
                if id.is_null() && is_silent(action, details) {
                    continue;
                }
                expected.extend(answers.iter().enumerate().map(|(place, (answer, details))| {
                    let id = if place == 0 { id.clone() } else { Value::Null };
                    ((*answer).to_owned(), details.clone(), id)
                }));
            }
            for expected in expected {
                let (answer, mut details, id) = client.next().await;
                if answer == "too large:error" {
                    details = json!([details[0]]);
                }
                assert_eq!((answer, details, id), expected, "WS_CLUSTER_SEED={seed}");
            }
            client.nothing_more().await;
        }
    }
}

#[tokio::test]
async fn the_rust_client_gets_the_answers() {
    let solo = Solo::start(builder(Users::default())).await;
    let url = format!("ws://{}/WebSockets", solo.address);
    let (client, mut events) = ws_cluster::Client::builder([url]).header("x-user", "ann").connect().unwrap();
    let reading = tokio::spawn(async move {
        let mut actions = Vec::new();
        while let Some(event) = events.next().await {
            if let ws_cluster::client::Event::Message(message) = event {
                actions.push(message.action);
            }
        }
        actions
    });
    assert_eq!(soon(client.request("sum", json!([1, 2]))).await.unwrap().detail::<u8>(0).unwrap(), 3);
    let (one, other, refused) =
        tokio::join!(client.request("twice", ()), client.request("nothing", ()), client.request("fail", ()),);
    assert_eq!((one.unwrap().as_str(), other.unwrap().as_str()), (r#"["first"]"#, "[]"));
    assert_eq!(refused.unwrap_err(), ActionError::new(418, "as asked").into());
    client.close();
    assert_eq!(soon(reading).await.unwrap(), ["Client/authentication", "twice"]);
}
