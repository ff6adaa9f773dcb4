//! The page that `ws-server --demo` serves, on two nodes that share only a file.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tests::{
    WsServer,
    browser::{Browser, Tab},
};

/// Defines `until(condition)`, which waits until the page meets the condition, and `logged`, which returns true if a
/// message is in the page's log.
const PRELUDE: &str = r##"
    window.until = (condition) => new Promise((resolve) => {
        const observer = new MutationObserver(() => look());
        const look = () => {
            if (!condition()) return;
            observer.disconnect();
            resolve();
        };
        observer.observe(document.body, { subtree: true, childList: true, characterData: true, attributes: true });
        look();
    });
    window.logged = (kind, action, text) => [...document.querySelectorAll(`#log .${kind}`)].some((line) =>
        line.querySelector(".mono").textContent === action && line.querySelector(".what").textContent === text);
"##;

/// The demo page in a tab, used as a person does: through its forms and what it shows.
struct Page<'a>(Tab<'a>);

impl<'a> Page<'a> {
    async fn open(browser: &'a Browser, node: &WsServer, user: &str) -> Self {
        let tab = browser.open(&format!("http://{}/?user={user}", node.address())).await;
        tab.run(PRELUDE, Value::Null).await;
        Self(tab)
    }

    /// Submits the form of an action, with its fields filled in.
    async fn submit(&self, action: &str, fields: Value) {
        let submit = "for (const [id, value] of Object.entries(args[1])) document.getElementById(id).value = value;
                      document.getElementById(args[0]).requestSubmit();";
        self.0.run(submit, json!([action, fields])).await;
    }

    async fn hello(&self, text: &str) {
        self.submit("hello", json!({ "hello-text": text })).await;
    }

    async fn say(&self, text: &str) {
        self.submit("say", json!({ "say-text": text })).await;
    }

    /// Waits until a message is in the log.
    async fn received(&self, action: &str, text: &str) {
        self.0.run("await until(() => logged('received', ...args));", json!([action, text])).await;
    }

    async fn has_received(&self, action: &str, text: &str) -> bool {
        self.0.run("return logged('received', ...args);", json!([action, text])).await == true
    }

    /// Waits until the page shows this number of nodes, and that it is on the one at this address.
    async fn on(&self, address: SocketAddr, nodes: usize) {
        let shown = "await until(() => document.querySelectorAll('#nodes li').length === args[1]
                         && document.querySelector('#nodes [aria-current]')?.textContent.includes(args[0])
                         && document.getElementById('state').dataset.state === 'connected'
                         && document.getElementById('state-text').textContent.includes(args[0]));";
        self.0.run(shown, json!([address.to_string(), nodes])).await;
    }

    /// Saves a picture in the directory that the environment names, for people to look at.
    async fn picture(&self) {
        if let Some(path) = std::env::var_os("DEMO_SCREENSHOT") {
            std::fs::write(path, self.0.screenshot().await).expect("a file at $DEMO_SCREENSHOT");
        }
    }
}

#[tokio::test]
async fn the_page_shows_a_cluster_and_outlives_its_master() {
    let state = tempfile::tempdir().expect("a temporary directory");
    let mut master = WsServer::start(state.path(), &["--demo"]).await;
    master.ready().await;
    let other = WsServer::start(state.path(), &["--demo"]).await;
    other.ready().await;
    let browser = Browser::start().await;

    let ann = [Page::open(&browser, &master, "ann").await, Page::open(&browser, &master, "ann").await];
    let bob = Page::open(&browser, &other, "bob").await;
    for page in &ann {
        page.on(master.address(), 2).await;
    }
    bob.on(other.address(), 2).await;
    let badged = bob.0.run("return document.querySelector('.badge').parentElement.textContent;", Value::Null).await;
    assert!(badged.as_str().is_some_and(|node| node.contains(&master.address().to_string())), "{badged}");

    ann[0].hello("a hello").await;
    ann[0].say("to all").await;
    bob.submit("tell", json!({ "recipient": "ann", "tell-text": "a word" })).await;
    for page in &ann {
        page.received("hello", "a hello").await;
        page.received("said", "ann: to all").await;
        page.received("told", "bob: a word").await;
    }
    bob.received("said", "ann: to all").await;
    assert!(!bob.has_received("hello", "a hello").await, "it came before what went to all");
    ann[0].picture().await;

    master.kill().await;
    for page in &ann {
        page.on(other.address(), 1).await;
    }
    ann[1].hello("again").await;
    bob.say("still here").await;
    for page in &ann {
        page.received("hello", "again").await;
        page.received("said", "bob: still here").await;
    }
    bob.received("said", "bob: still here").await;
}
