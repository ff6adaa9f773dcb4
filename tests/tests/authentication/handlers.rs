//! The application's own handlers of `Client/authentication` and `Client/disconnection`.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use async_trait::async_trait;
use serde_json::json;
use tests::{
    client::{Client, Place, soon},
    message,
};
use tokio::{io::AsyncWriteExt, net::TcpListener, sync::mpsc};
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
    ActionError, ActionHandler, Close, Config, Degraded, Identity, MemoryPool, Request, Server, ServerBuilder, Target,
};

use super::{App, Site};

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
            let resumed = request.has_resumed().expect("beside the code");
            assert_eq!(request.details().to_string(), json!([code, reason, resumed]).to_string());
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
async fn a_client_gets_no_message_before_the_handler_agreed() {
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
