//! The browser client in a real browser, against servers of this process, and the demo page of the real program.

use std::sync::Arc;
use tests::message;

use serde_json::{Value, json};
use tests::{
    browser::{Browser, Tab},
    forwarder::Forwarder,
};
use ws_cluster::{Identity, MemoryPool, Pool, SessionCookie, Target};

use crate::node::{Node, Upgrades, page};

mod demo;
mod fidelity;
mod node;
mod places;
mod position;
mod requests;
mod silence;
mod subprotocols;

/// Loads the client, and defines `hear(name)`, which returns a callback. `heard()` returns the calls one after another.
const PRELUDE: &str = r#"
    await new Promise((resolve, reject) => {
        const script = document.createElement("script");
        script.src = "/ws-cluster.js";
        script.onload = resolve;
        script.onerror = reject;
        document.head.append(script);
    });
    const calls = [];
    const waiting = [];
    window.hear = (name) => (...details) => {
        calls.push([name, ...details]);
        waiting.shift()?.();
    };
    window.heard = async () => {
        if (calls.length === 0) await new Promise((resolve) => waiting.push(resolve));
        return calls.shift();
    };
"#;

/// A page with the client loaded.
struct Page<'a>(Tab<'a>);

impl<'a> Page<'a> {
    async fn open(browser: &'a Browser, url: &str) -> Self {
        let tab = browser.open(url).await;
        tab.run(PRELUDE, Value::Null).await;
        Self(tab)
    }

    /// Runs a script; see [`Tab::run`].
    async fn run(&self, script: &str) -> Value {
        self.0.run(script, Value::Null).await
    }

    /// Asserts that the next callback is this one with these details, so no other came before it.
    async fn expect(&self, call: Value) {
        assert_eq!(self.run("return heard();").await, call);
    }

    /// Asserts that the next callback is this one, with any details.
    async fn expect_any(&self, name: &str) -> Value {
        let call = self.run("return heard();").await;
        assert_eq!(call[0], name, "{call}");
        call
    }
}

#[tokio::test]
async fn details_arrive_as_arguments_both_ways() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &node.page()).await;
    page.run(
        "window.ws = new WsCluster();
         ws.on('echo', hear('echo')).on('news', hear('news'))
           .send('echo').send('echo', null).send('echo', []).send('echo', 7).send('echo', 'ü\\u2028')
           .send('echo', [1, 'two', [3]]).send('echo', { four: [4] }).send('echo', [[5, 6]]);",
    )
    .await;
    for call in [
        json!(["echo"]),
        json!(["echo"]),
        json!(["echo"]),
        json!(["echo", 7]),
        json!(["echo", "ü\u{2028}"]),
        json!(["echo", 1, "two", [3]]),
        json!(["echo", { "four": [4] }]),
        json!(["echo", [5, 6]]),
    ] {
        page.expect(call).await;
    }
    for (details, call) in
        [(json!(null), json!(["news"])), (json!("a"), json!(["news", "a"])), (json!(["a", 2]), json!(["news", "a", 2]))]
    {
        node.server.publish(message("news", details, Target::all())).await.unwrap();
        page.expect(call).await;
    }
    assert_eq!(page.run("return ws.connected;").await, true);
}

#[tokio::test]
async fn callbacks_are_put_on_and_off() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &node.page()).await;

    page.run(
        "window.ws = new WsCluster();
         window.first = hear('first');
         ws.on('echo', first).on('echo', hear('second')).send('echo', 1);",
    )
    .await;
    page.expect(json!(["first", 1])).await;
    page.expect(json!(["second", 1])).await;
    page.run("ws.off('echo', first).send('echo', 2);").await;
    page.expect(json!(["second", 2])).await;
    page.run("ws.off('echo').on('where', hear('where')).send('echo', 3).send('where');").await;
    page.expect(json!(["where", "alone"])).await;

    // Errors have callbacks of their own, and an action without a handler is answered too.
    page.run("ws.on('fail', hear('fail'), hear('failed')).on('nothing', hear('nothing'), hear('no such action'));")
        .await;
    page.run("ws.send('fail', 1).send('nothing', 2);").await;
    page.expect(json!(["failed", 409, "no"])).await;
    page.expect(json!(["no such action", 404, "Not Found"])).await;
}

#[tokio::test]
async fn once_removes_both_callbacks_whichever_fires() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &node.page()).await;

    page.run("window.ws = new WsCluster(); ws.on('where', hear('where'));").await;
    // The error callback is called. A message that would call the other one comes behind it.
    page.run("ws.once('fail', hear('fail'), hear('failed')).send('fail').send('fail').send('where');").await;
    page.expect(json!(["failed", 409, "no"])).await;
    page.expect(json!(["where", "alone"])).await;
    node.server.publish(message("fail", (), Target::all())).await.unwrap();
    page.run("ws.send('where');").await;
    page.expect(json!(["where", "alone"])).await;

    // The callback is called. The error comes behind it.
    page.run("ws.once('fail', hear('fail'), hear('failed'));").await;
    node.server.publish(message("fail", "for once", Target::all())).await.unwrap();
    page.expect(json!(["fail", "for once"])).await;
    page.run("ws.send('fail').send('where');").await;
    page.expect(json!(["where", "alone"])).await;

    page.run("window.cb = hear('cb'); ws.once('echo', cb).off('echo', cb).send('echo').send('where');").await;
    page.expect(json!(["where", "alone"])).await;
}

#[tokio::test]
async fn another_server_takes_over_behind_one_address() {
    let pool: Arc<dyn Pool> = Arc::new(MemoryPool::default());
    let first = Node::join("first", pool.clone()).await;
    let second = Node::join("second", pool).await;
    let forwarder = Forwarder::start(first.address).await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &page(forwarder.address())).await;
    page.run(
        "window.ws = new WsCluster('/WebSockets?user=ann', { reconnectDelay: 50, reconnectDelayMax: 200 });
         ws.on('where', hear('where')).on('echo', hear('echo')).on('hello', hear('hello'));
         ws.once('Client/close', hear('close')).send('where').send('hello', 'before');",
    )
    .await;
    page.expect(json!(["where", "first"])).await;
    page.expect(json!(["hello", "before"])).await;

    // No server listens at the address, so the page is certainly offline.
    forwarder.switch(None);
    first.kill();
    let close = page.expect_any("close").await;
    assert_eq!((&close[1], &close[3]), (&json!(1006), &json!(true)), "{close}");
    page.run("for (let i = 0; i < 50; i++) ws.send('echo', i);").await;
    assert_eq!(page.run("return ws.connected;").await, false);

    forwarder.switch(Some(second.address));
    for i in 0..50 {
        page.expect(json!(["echo", i])).await;
    }
    page.run("ws.send('where').send('hello', 'after');").await;
    page.expect(json!(["where", "second"])).await;
    page.expect(json!(["hello", "after"])).await;
}

#[tokio::test]
async fn missed_messages_reach_a_page_that_is_back_on_another_node() {
    let pool: Arc<dyn Pool> = Arc::new(MemoryPool::default());
    let first = Node::join("first", pool.clone()).await;
    let second = Node::join("second", pool).await;
    let forwarder = Forwarder::start(first.address).await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &page(forwarder.address())).await;
    page.run(
        "window.ws = new WsCluster('/WebSockets?user=ann', { reconnectDelay: 50, reconnectDelayMax: 200 });
         ws.on('Client/recovered', hear('recovered')).on('Client/reset', hear('reset')).on('news', hear('news'))
           .once('Client/close', hear('close')).on('where', hear('where')).send('where');",
    )
    .await;
    page.expect(json!(["where", "first"])).await;
    second.server.publish(message("news", 0, Target::user("ann"))).await.unwrap();
    page.expect(json!(["news", 0])).await;

    forwarder.switch(None);
    page.expect_any("close").await;
    first.kill();
    for number in 1..=3 {
        second.server.publish(message("news", number, Target::user("ann"))).await.unwrap();
        second.server.publish(message("news", "not for ann", Target::user("bob"))).await.unwrap();
    }
    forwarder.switch(Some(second.address));
    page.expect(json!(["recovered", 3])).await;
    for number in 1..=3 {
        page.expect(json!(["news", number])).await;
    }
    // A node that does not know the position says so.
    let stranger = Node::start().await;
    page.run("ws.once('Client/close', hear('close'));").await;
    forwarder.switch(Some(stranger.address));
    page.expect_any("close").await;
    page.expect_any("reset").await;
    stranger.server.publish(message("news", "strange", Target::user("ann"))).await.unwrap();
    page.expect(json!(["news", "strange"])).await;
}

#[tokio::test]
async fn a_session_or_a_user_is_closed_for_good() {
    let node = Node::start().await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &node.page()).await;
    // A reconnect would come at once, before the next client's connection.
    page.run(
        "window.open = (name, user, session) => {
             const url = `/WebSockets?user=${user}&session=${session}`;
             window[name] = new WsCluster(url, { reconnectDelay: 0 })
                 .on('Server/close', hear(`${name} dismissed`)).on('Client/close', hear(`${name} closed`))
                 .on('where', hear(`${name} where`), hear(`${name} refused`)).send('where');
         };
         open('one', 'ann', 's1');",
    )
    .await;
    page.expect(json!(["one where", "alone"])).await;
    page.run("open('two', 'ann', 's2');").await;
    page.expect(json!(["two where", "alone"])).await;

    node.server.close_session("s1").await.unwrap();
    page.expect(json!(["one dismissed"])).await;
    let closed = page.expect_any("one closed").await;
    assert_eq!((&closed[1], &closed[3]), (&json!(1000), &json!(false)), "{closed}");
    page.run("open('three', 'ann', 's3');").await;
    page.expect(json!(["three where", "alone"])).await;
    assert_eq!(page.run("return [one.connected, two.connected];").await, json!([false, true]));

    node.server.close_user("ann").await.unwrap();
    let mut last: Vec<Value> = Vec::new();
    for _ in 0..4 {
        last.push(page.run("return heard();").await);
    }
    // Two sockets, in any order.
    last.sort_by_key(|call| call[0].as_str().map(str::to_owned));
    let names: Vec<_> = last.iter().map(|call| call[0].as_str().unwrap()).collect();
    assert_eq!(names, ["three closed", "three dismissed", "two closed", "two dismissed"]);
    page.run("open('four', 'bob', 's4');").await;
    page.expect(json!(["four where", "alone"])).await;
    let connected = page.run("return [one, two, three, four].map((client) => client.connected);").await;
    assert_eq!(connected, json!([false, false, false, true]));
    assert_eq!(*node.upgrades.lock(), ["ann", "ann", "ann", "bob"]);

    // A message that is sent now is refused at once.
    page.run("one.send('where');").await;
    page.expect(json!(["one refused", 503, "Closed"])).await;
}

#[tokio::test]
async fn a_reply_reaches_both_tabs_of_a_user_on_two_nodes() {
    let pool: Arc<dyn Pool> = Arc::new(MemoryPool::default());
    let nodes = [Node::join("first", pool.clone()).await, Node::join("second", pool).await];
    let browser = Browser::start().await;
    let pages = [Page::open(&browser, &nodes[0].page()).await, Page::open(&browser, &nodes[1].page()).await];
    for (page, name) in pages.iter().zip(["first", "second"]) {
        page.run(
            "window.ws = new WsCluster('/WebSockets?user=ann')
                 .on('hello', hear('hello')).on('where', hear('where')).send('where');",
        )
        .await;
        page.expect(json!(["where", name])).await;
    }
    for (sender, text) in pages.iter().zip(["from the first", "from the second"]) {
        sender.0.run("ws.send('hello', args);", json!([text])).await;
        for page in &pages {
            page.expect(json!(["hello", text])).await;
        }
    }
}

#[tokio::test]
async fn a_page_of_a_foreign_origin_cannot_use_the_cookie() {
    // Another port is another origin, but the same site: the browser sends the cookie from there too.
    let foreign = Node::start().await;
    let own = cookie_node(None).await;
    let friendly = cookie_node(Some(&foreign)).await;
    let browser = Browser::start().await;

    let page = Page::open(&browser, &own.page()).await;
    let connect = "window.ws = new WsCluster(args, { reconnectDelay: 0, reconnectDelayMax: 0 })
        .on('hello', hear('hello')).once('Client/close', hear('close')).send('hello', 'hi');";
    page.run("document.cookie = 'sid=ann; path=/';").await;
    page.0.run(connect, json!("/WebSockets")).await;
    page.expect(json!(["hello", "hi"])).await;

    let page = Page::open(&browser, &foreign.page()).await;
    page.0.run(connect, json!(format!("ws://{}/WebSockets", own.address))).await;
    let close = page.expect_any("close").await;
    assert_eq!((&close[1], &close[3]), (&json!(1006), &json!(true)), "{close}");
    page.run("ws.close();").await;
    assert_eq!(*own.upgrades.lock(), ["ann"]);

    // An allowed origin may do what was refused before.
    page.0.run(connect, json!(format!("ws://{}/WebSockets", friendly.address))).await;
    page.expect(json!(["hello", "hi"])).await;
    assert_eq!(*friendly.upgrades.lock(), ["ann"]);
}

/// Starts a server whose sessions are cookies with the user's name as their id.
async fn cookie_node(allowed: Option<&Node>) -> Node {
    let upgrades = Upgrades::default();
    let asked = upgrades.clone();
    let origins = allowed.map(|node| format!("http://{}", node.address).parse().expect("an origin"));
    Node::with("cookies", Arc::new(MemoryPool::default()), upgrades, |builder, _| {
        let look_up = move |user: String| {
            asked.lock().push(user.clone());
            async move { Ok(Some(Identity::user(user))) }
        };
        builder.authenticator(SessionCookie::new("sid", look_up)).allowed_origins(origins)
    })
    .await
}
