//! Async functions as handlers: their arguments, their return values, the layers around them, and what the compiler says
//! if a function cannot be a handler.

use std::{collections::BTreeMap, fs, sync::Arc};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tests::{
    client::{Client, Place, soon},
    solo::Solo,
};
use ws_cluster::{
    ActionError, ConnectionId, Data, Details, Disconnection, FromRequest, Identity, IntoHandler, MemoryPool, Message,
    Next, RawDetails, Request, Server, ServerBuilder, Session, SessionCookie, StartError, State, Target, User,
};

/// Returns a server whose clients have their names in a cookie.
fn builder() -> ServerBuilder {
    Server::builder(MemoryPool::default()).authenticator(SessionCookie::new("user", async |name| {
        Ok(Some(Identity::user(name.clone()).session(format!("of {name}"))))
    }))
}

async fn ann(solo: &Solo) -> Client {
    Client::connect(solo.address, &[("cookie", "user=ann")]).await
}

#[derive(Deserialize, Serialize)]
struct Move {
    card: u64,
    column: String,
}

#[derive(Deserialize)]
struct Nested {
    place: BTreeMap<String, u64>,
}

#[tokio::test]
async fn details_come_in_the_shape_that_the_handler_takes() {
    async fn fail(Details(code): Details<u16>) -> Result<(), ActionError> {
        Err(ActionError::new(code, "as asked"))
    }
    let solo = Solo::start(
        builder()
            .action("none", async || "nothing taken")
            .action("tuple", async |Details((a, b)): Details<(i64, i64)>| a + b)
            .action("struct", async |Details(Move { card, column }): Details<Move>| (card, column))
            .action("nested", async |Details(Nested { place })| place)
            .action("text", async |Details(text): Details<String>| text)
            .action("list", async |Details(list): Details<Vec<u8>>| list.len())
            .action("option", async |Details((first, second)): Details<(u8, Option<u8>)>| (first, second))
            .action("raw", async |details: RawDetails| details)
            .action("unit", async |Details(()): Details<()>| "no arguments")
            .action("fail", fail),
    )
    .await;
    let mut client = ann(&solo).await;
    for (action, details, answer) in [
        ("none", json!([1, 2]), json!(["nothing taken"])),
        ("tuple", json!([1, 2]), json!([3])),
        ("struct", json!({"card": 7, "column": "done"}), json!([7, "done"])),
        ("struct", json!([7, "done"]), json!([7, "done"])),
        ("nested", json!({"place": {"x": 1}}), json!([{"x": 1}])),
        ("nested", json!([{"x": 1}]), json!([{"x": 1}])),
        ("text", json!("hello"), json!(["hello"])),
        ("list", json!([1, 2, 3]), json!([3])),
        ("list", json!([[1, 2, 3]]), json!([3])),
        ("option", json!([1, null]), json!([1, null])),
        ("raw", json!([{"z": 1.0, "a": "ü"}]), json!([{"z": 1.0, "a": "ü"}])),
    ] {
        client.send(action, details).await;
        client.expect(action, answer).await;
    }
    for (action, details, why) in [
        ("tuple", json!([1]), "details: invalid length 1, expected a tuple of size 2"),
        ("tuple", json!([1, "two"]), "details: invalid type: string \"two\", expected i64"),
        ("tuple", json!([1, 2, 3]), "details: invalid length 3, expected 2 elements"),
        ("tuple", json!({"a": 1}), "details: invalid"),
        ("struct", json!({"card": 7}), "details: missing field `column`"),
        ("struct", json!({"card": "x", "column": "done"}), "details: invalid type: string \"x\", expected u64"),
        ("struct", json!([]), "details: invalid length 0"),
        ("text", json!([]), "details: invalid type: sequence, expected a string"),
        ("text", json!([7]), "details: invalid type: integer `7`, expected a string"),
        ("fail", json!([418]), "as asked"),
    ] {
        client.send(action, details.clone()).await;
        let answer = client.json().await;
        assert_eq!(answer["action"], format!("{action}:error"), "{answer}");
        let code = if action == "fail" { 418 } else { 400 };
        assert_eq!(answer["details"][0], code, "{answer}");
        let text = answer["details"][1].as_str().unwrap();
        assert!(text.contains(why), "{action} {details}: {text}");
    }
}

#[tokio::test]
async fn the_value_that_a_handler_returns_answers_the_client() {
    async fn map(_: Request) -> Result<BTreeMap<(u8, u8), u8>, ActionError> {
        Ok(BTreeMap::from([((1, 2), 3)]))
    }
    async fn question(server: Server) -> Result<(), ActionError> {
        server.publish(Message::new("x".repeat(256), ())?).await?;
        Ok(())
    }
    let solo = Solo::start(
        builder()
            .action("unit", async || ())
            .action("absent", async || None::<String>)
            .action("fine", async || Ok::<_, ActionError>(()))
            .action("list", async || Ok::<_, ActionError>([1, 2]))
            .action("struct", async || Move { card: 7, column: "done".into() })
            .action("map", map)
            .action("question", question)
            .action("done", async || true),
    )
    .await;
    let mut client = ann(&solo).await;
    for action in ["unit", "absent", "fine", "done"] {
        client.send(action, json!([])).await;
    }
    client.expect("done", json!([true])).await;
    client.send("list", json!([])).await;
    client.expect("list", json!([1, 2])).await;
    client.send("struct", json!([])).await;
    client.expect("struct", json!([{"card": 7, "column": "done"}])).await;
    client.send("map", json!([])).await;
    client.expect("map:error", json!([500, "Internal Server Error"])).await;
    client.send("question", json!([])).await;
    client.expect("question:error", json!([400, "an action has 1 to 255 bytes"])).await;
}

#[tokio::test]
async fn handlers_extract_the_user_and_shared_state() {
    #[derive(Clone)]
    struct Greeting(&'static str);

    struct Editor;

    impl FromRequest for Editor {
        async fn from_request(request: &Request) -> Result<Self, ActionError> {
            tokio::task::yield_now().await;
            if request.in_group("editors") { Ok(Self) } else { Err(ActionError::forbidden("For editors only")) }
        }
    }

    async fn greet(
        State(Greeting(greeting)): State<Greeting>,
        User(user): User,
        Session(session): Session,
        connection: ConnectionId,
        request: Request,
    ) -> String {
        assert_eq!(connection, request.connection());
        format!("{greeting} {user} {session}")
    }

    let solo = Solo::start(
        builder()
            .state(Greeting("hello"))
            .action("greet", greet.with_guests())
            .action(
                "who",
                (async |user: Option<User>| user.map(|User(id)| id).unwrap_or("a guest".into())).with_guests(),
            )
            .action("edit", async |_: Editor| "edited")
            .action("may edit", async |editor: Option<Editor>| editor.is_some())
            .action("why not", async |editor: Result<Editor, ActionError>| editor.err().map(|error| error.text))
            .action("number", async |number: Option<Details<u64>>| number.map_or(0, |Details(number)| number))
            .action("join", async |request: Request| request.join("editors")),
    )
    .await;
    let mut client = ann(&solo).await;
    client.send("greet", json!([])).await;
    client.expect("greet", json!(["hello ann of ann"])).await;
    client.send("edit", json!([])).await;
    client.expect("edit:error", json!([403, "For editors only"])).await;
    client.send("may edit", json!([])).await;
    client.expect("may edit", json!([false])).await;
    client.send("why not", json!([])).await;
    client.expect("why not", json!(["For editors only"])).await;
    client.send("number", json!(["seven"])).await;
    assert_eq!(client.json().await["details"][0], 400, "a malformed number is no missing number");
    client.send("join", json!([])).await;
    client.expect("join", json!([true])).await;
    client.send("edit", json!([])).await;
    client.expect("edit", json!(["edited"])).await;
    client.send("may edit", json!([])).await;
    client.expect("may edit", json!([true])).await;
    client.send("number", json!([7])).await;
    client.expect("number", json!([7])).await;

    let mut guest = solo.guest().await;
    guest.send("who", json!([])).await;
    guest.expect("who", json!(["a guest"])).await;
    guest.send("greet", json!([])).await;
    guest.expect("greet:error", json!([403, "Forbidden"])).await;
    guest.send("join", json!([])).await;
    guest.expect("join:error", json!([403, "Forbidden"])).await;
}

#[tokio::test]
async fn a_server_does_not_start_without_a_state_that_a_handler_takes() {
    #[derive(Clone)]
    struct Database;
    async fn query(_: State<Database>) {}
    for builder in [
        builder().action("query", query),
        builder().action("query", query.with_guests()),
        builder().fallback(query),
        builder().action("query", query.layer(async |request: Request, next: Next| next.run(request).await)),
    ] {
        let Err(error) = builder.start().await else { panic!("it started") };
        assert!(matches!(error, StartError::MissingState { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.contains("Database>") && text.contains("ServerBuilder::state"), "{text}");
    }
    let started = builder().state(Database).action("query", query).start().await;
    assert!(started.is_ok());
}

#[tokio::test]
async fn a_connection_keeps_data_from_its_beginning_to_its_end() {
    #[derive(Clone, Debug, PartialEq)]
    struct Since(u64);

    type Ended = Arc<Mutex<Vec<(String, Option<u64>, u16)>>>;

    async fn gone(
        State(ended): State<Ended>,
        User(user): User,
        data: Option<Data<Since>>,
        Disconnection { code, .. }: Disconnection,
        server: Server,
    ) -> Result<(), ActionError> {
        ended.lock().push((user, data.map(|Data(Since(at))| at), code));
        Ok(server.publish(Message::new("gone", ())?).await?)
    }

    let ended = Ended::default();
    let solo = Solo::start(
        builder()
            .state(ended.clone())
            .on_connect(async |request: Request| {
                assert_eq!(request.set_data(Since(7)), None);
                match request.user() {
                    Some("eve") => Err(ActionError::forbidden("not eve")),
                    _ => Ok(()),
                }
            })
            .action("since", async |Data(Since(at)): Data<Since>| at)
            .action("absent", async |_: Data<String>| ())
            .on_disconnect(gone),
    )
    .await;
    let mut client = ann(&solo).await;
    client.send("since", json!([])).await;
    client.expect("since", json!([7])).await;
    client.send("absent", json!([])).await;
    client.expect("absent:error", json!([409, "This connection is not prepared for it"])).await;

    let mut eve = Client::connect(solo.address, &[("cookie", "user=eve")]).await;
    eve.expect("Client/authentication:error", json!([403, "not eve"])).await;
    assert_eq!(eve.closed().await.0, 4401);

    let mut other = ann(&solo).await;
    client.message(tokio_tungstenite::tungstenite::Message::Close(None)).await;
    other.expect("gone", json!([])).await;
    assert_eq!(*ended.lock(), [("ann".to_owned(), Some(7), 1005)]);
}

#[tokio::test]
async fn the_end_of_a_connection_says_if_its_client_has_resumed_on_the_node() {
    let (ended, mut ends) = tokio::sync::mpsc::unbounded_channel();
    let solo = Solo::start(builder().action("id", async |id: ConnectionId| id.to_string()).on_disconnect(
        move |end: Disconnection, id: ConnectionId| {
            let told = ended.send((end.resumed, id.to_string()));
            async move { told.map_err(|_| ActionError::internal("gone")) }
        },
    ))
    .await;
    let headers = [("cookie", "user=ann")];
    let connect = async |place: &mut Place| {
        let path = format!("/WebSockets?resume={}&state={}", place.at, place.state.clone().unwrap_or_default());
        let mut client = Client::try_connect(solo.address, &path, &headers).await.unwrap();
        let kind = client.moved(place).await["details"][0].clone();
        client.send("id", json!([])).await;
        (kind, client.json().await["details"][0].clone(), client)
    };
    let mut place = Place::default();
    let (kind, id, mut first) = connect(&mut place).await;
    assert_eq!(kind, "new");
    solo.server.publish(Message::new("a", ()).unwrap()).await.unwrap();
    assert_eq!(first.moved(&mut place).await["action"], "a");
    // The client is back, and the node has not noticed that its first connection is gone.
    let (kind, again, second) = connect(&mut place).await;
    assert_eq!((&kind, &again), (&json!("recovered"), &id));
    let id = id.as_str().unwrap().to_owned();
    drop(first);
    assert_eq!(soon(ends.recv()).await, Some((true, id.clone())));
    // The page closes before the node notices that the second connection is gone, too.
    let (kind, _, third) = connect(&mut place).await;
    assert_eq!(kind, "recovered");
    drop(third);
    assert_eq!(soon(ends.recv()).await, Some((false, id.clone())));
    drop(second);
    assert_eq!(soon(ends.recv()).await, Some((false, id)));
}

#[tokio::test]
async fn layers_run_around_the_actions_that_they_are_for() {
    type Log = Arc<Mutex<Vec<String>>>;

    /// Each connection may do so much of each kind.
    #[derive(Clone, Default)]
    struct Spent(u32);

    async fn limit(request: Request, next: Next) -> Result<(), ActionError> {
        let Spent(spent) = request.data().unwrap_or_default();
        if spent == 2 {
            return Err(ActionError::too_many_requests("Twice is enough"));
        }
        request.set_data(Spent(spent + 1));
        next.run(request).await
    }

    async fn editors_only(request: Request, next: Next) -> Result<(), ActionError> {
        if !request.in_group("editors") {
            return Err(ActionError::forbidden("For editors only"));
        }
        next.run(request).await
    }

    let log = Log::default();
    let noting = log.clone();
    let solo = Solo::start(
        builder()
            .layer(move |request: Request, next: Next| {
                let log = noting.clone();
                async move {
                    let action = request.action().to_owned();
                    let outcome = next.run(request).await;
                    log.lock().push(format!("{action} {}", outcome.as_ref().map_or_else(|error| error.code, |()| 0)));
                    outcome
                }
            })
            .layer_prefix("admin/", editors_only)
            .on_connect(async |request: Request| request.join("users"))
            .action("admin/close", async || "closed")
            .action("join", async |request: Request| request.join("editors"))
            .action("draw", (async || "drawn").layer(limit))
            .action("panic", async || -> () { panic!("as asked") })
            .fallback(async |request: Request| request.action().to_owned()),
    )
    .await;
    let mut client = ann(&solo).await;
    for (action, answer) in [
        ("admin/close", Err((403, "For editors only"))),
        ("join", Ok(json!([true]))),
        ("admin/close", Ok(json!(["closed"]))),
        ("admin/other", Ok(json!(["admin/other"]))),
        ("other", Ok(json!(["other"]))),
        ("draw", Ok(json!(["drawn"]))),
        ("draw", Ok(json!(["drawn"]))),
        ("draw", Err((429, "Twice is enough"))),
        ("panic", Err((500, "Internal Server Error"))),
    ] {
        client.send(action, json!([])).await;
        match answer {
            Ok(details) => client.expect(action, details).await,
            Err((code, text)) => client.expect(&format!("{action}:error"), json!([code, text])).await,
        }
    }
    let expected =
        ["admin/close 403", "join 0", "admin/close 0", "admin/other 0", "other 0", "draw 0", "draw 0", "draw 429"];
    assert_eq!(*log.lock(), expected);
}

#[tokio::test]
async fn a_request_can_be_moved_into_a_task_that_outlives_its_handler() {
    let solo = Solo::start(builder().action("later", async |request: Request| {
        let (release, released) = tokio::sync::oneshot::channel::<()>();
        let moved = request.clone();
        tokio::spawn(async move {
            let _ = released.await;
            moved.reply(("later", moved.user())).unwrap();
            moved.reply_to_user("everywhere").await.unwrap();
        });
        drop(release);
        "now"
    }))
    .await;
    let mut client = ann(&solo).await;
    client.send("later", json!([])).await;
    let mut came: Vec<Value> = Vec::new();
    for _ in 0..3 {
        came.push(client.json().await["details"].take());
    }
    // The task may be quicker than the handler's answer.
    came.sort_by_key(|details| details.to_string());
    assert_eq!(came, [json!(["everywhere"]), json!(["later", "ann"]), json!(["now"])]);
}

#[tokio::test]
async fn one_message_is_published_and_delivered_alike() {
    let solo = Solo::start(builder().action("joined", async |request: Request| {
        request.join("room");
        request.connection().to_string()
    }))
    .await;
    let mut clients = [ann(&solo).await, ann(&solo).await];
    let mut ids = Vec::new();
    for client in &mut clients {
        client.send("joined", json!([])).await;
        ids.push(client.json().await["details"][0].as_str().unwrap().parse::<ConnectionId>().unwrap());
    }
    let message = Message::new("moved", Move { card: 7, column: "done".into() }).unwrap();
    let message = message.to(Target::group("room")).except_connection(ids[0]);
    solo.server.publish(message.clone()).await.unwrap();
    solo.server.deliver(message.clone()).unwrap();
    solo.server.publish(message.clone().idempotency_key("once")).await.unwrap();
    solo.server.publish(message.idempotency_key("once")).await.unwrap();
    solo.server.publish(Message::new("end", ()).unwrap().except_user("bob")).await.unwrap();
    let [first, second] = &mut clients;
    first.expect("end", json!([])).await;
    for _ in 0..3 {
        second.expect("moved", json!([{"card": 7, "column": "done"}])).await;
    }
    second.expect("end", json!([])).await;
    let error = Message::new("map", BTreeMap::from([((1, 2), 3)])).unwrap_err();
    assert_eq!((error.status_code(), error.is_retryable()), (400, false));
}

#[tokio::test]
async fn the_test_kit_calls_a_handler_without_sockets() {
    use ws_cluster::testing;

    async fn enter(
        request: Request,
        State(limit): State<u8>,
        Details(room): Details<String>,
    ) -> Result<u8, ActionError> {
        if room.is_empty() {
            return Err(ActionError::bad_request("Which room?"));
        }
        request.join(&room);
        request.set_property("room", &room).unwrap();
        request.reply_to_user("x".repeat(70_000)).await?;
        request.publish(Message::new("entered", room)?.except_connection(request.connection())).await?;
        Ok(limit)
    }

    let outcome = testing::request("enter", "lobby").user("ann").state(3_u8).call(enter).await;
    assert_eq!(outcome.error(), None);
    let published: Vec<_> = outcome.published().iter().map(|message| (message.action(), message.target())).collect();
    assert_eq!(published[0], ("enter", &Target::user("ann")));
    assert_eq!(published[1].0, "entered");
    assert_eq!(outcome.groups().iter().map(String::as_str).collect::<Vec<_>>(), ["lobby"]);
    assert_eq!(outcome.properties()["room"], "lobby");
    assert_eq!(outcome.replies().last(), Some(&json!([3])));

    let outcome = testing::request("enter", [""]).user("ann").state(3_u8).call(enter).await;
    assert_eq!(outcome.error().map(|error| error.code), Some(400));
    assert_eq!(outcome.replies(), [json!(null); 0]);

    let outcome = testing::request("enter", "lobby").state(3_u8).call(enter).await;
    assert_eq!(outcome.error().map(|error| error.code), Some(403), "a guest");
    let outcome = testing::request("who", ()).call((async |request: Request| request.is_guest()).with_guests()).await;
    assert_eq!(outcome.reply(), json!([true]));
    let identity = Identity::user("ann").groups(["editors"]);
    let outcome = testing::request("who", ()).identity(identity).call(async |request: Request| request.groups()).await;
    assert_eq!(outcome.reply(), json!(["editors"]));
}

/// Returns what the compiler says about a program that registers `handler` for an action.
fn compile(handler: &str) -> Result<(), String> {
    let source = format!(
        "use ws_cluster::{{Details, Request, ServerBuilder, User}};
        pub struct Own;
        {handler}
        pub fn register(builder: ServerBuilder) -> ServerBuilder {{
            builder.action(\"it\", handler)
        }}"
    );
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("handlers.rs");
    fs::write(&file, source).unwrap();
    tests::compile(&file)
}

#[test]
fn the_compiler_says_what_a_handler_is_if_a_function_is_none() {
    assert_eq!(compile("async fn handler(_: Request, _: User, _: Details<String>) {}"), Ok(()));
    for handler in [
        "async fn handler(_: u32) {}",
        "async fn handler(_: User, _: Own) {}",
        "async fn handler(_: Details<Own>) {}",
        "async fn handler() -> Own { Own }",
        "fn handler(_: Request) {}",
        "async fn handler(_: Request) { let _one = std::rc::Rc::new(1); async {}.await; }",
        "async fn handler(_: (), _: (), _: (), _: (), _: (), _: (), _: (), _: (), _: ()) {}",
    ] {
        let said = compile(handler).expect_err(handler);
        for part in [
            "{handler}` cannot handle an action",
            "is no handler",
            "a handler is an async function or closure of at most eight arguments that implement `FromRequest`",
            "required by a bound in `ServerBuilder::action`",
        ] {
            assert!(said.contains(part), "{handler}: no {part:?} in:\n{said}");
        }
        assert_eq!(said.matches("error[").count(), 1, "{handler}: one error, in:\n{said}");
    }
}
