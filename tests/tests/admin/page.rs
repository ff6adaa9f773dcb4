//! The page in a real browser, used as an administrator does: through its forms, its buttons and what it shows.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tests::browser::{Browser, Tab};

use super::{Admin, Client, KEY, Signal, WsServer, address, kill_process, process, state};

mod outages;

/// Defines `until(condition)`, which waits until the page meets the condition, `text(id)`, and `press(id)`, which also
/// answers the question that a button asks.
const PRELUDE: &str = r##"
    window.until = (condition) => new Promise((resolve) => {
        const observer = new MutationObserver(() => look());
        const look = () => {
            if (!condition()) return;
            observer.disconnect();
            resolve();
        };
        observer.observe(document, { subtree: true, childList: true, characterData: true, attributes: true });
        look();
    });
    window.text = (id) => document.getElementById(id).textContent;
    window.press = async (button) => {
        button = typeof button === "string" ? document.getElementById(button) : button;
        await until(() => !button.disabled);
        button.click();
        await new Promise((resolve) => setTimeout(resolve));
        if (document.getElementById("confirm").open) document.getElementById("confirm-yes").click();
    };
    window.violations = [];
    addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));
"##;

struct Page<'a>(Tab<'a>);

impl<'a> Page<'a> {
    async fn open(browser: &'a Browser, admin: &Admin) -> Self {
        Self::at(browser, admin.address).await
    }

    async fn at(browser: &'a Browser, address: SocketAddr) -> Self {
        let tab = browser.open(&format!("http://{address}/admin/")).await;
        tab.run(PRELUDE, Value::Null).await;
        Self(tab)
    }

    /// Opens the page and signs in.
    async fn enter(browser: &'a Browser, admin: &Admin) -> Self {
        let page = Self::open(browser, admin).await;
        page.present(KEY).await;
        page.run("await until(() => !document.getElementById('app').hidden);").await;
        page
    }

    async fn present(&self, key: &str) {
        let submit = "const form = document.getElementById('sign-in-form');
                      await until(() => !document.getElementById('sign-in').hidden);
                      document.getElementById('key').value = args;
                      form.requestSubmit();";
        self.0.run(submit, json!(key)).await;
    }

    async fn run(&self, script: &str) -> Value {
        self.0.run(script, Value::Null).await
    }

    /// Waits until the page says that the server is in this state.
    async fn says(&self, state: &str) {
        self.0.run("await until(() => text('state-text') === args);", json!(state)).await;
    }

    async fn press(&self, button: &str) {
        self.0.run("await press(args);", json!(button)).await;
    }

    /// Saves a picture in the directory that the environment names, for people to look at.
    async fn picture(&self, name: &str) {
        if let Some(directory) = std::env::var_os("ADMIN_SCREENSHOTS") {
            let path = std::path::Path::new(&directory).join(format!("{name}.png"));
            std::fs::write(path, self.0.screenshot().await).expect("a file in $ADMIN_SCREENSHOTS");
        }
    }
}

#[tokio::test]
async fn an_administrator_signs_in_and_stops_and_starts_the_server() {
    let admin = Admin::supervise(&[]).await;
    admin.is("running").await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &admin).await;
    page.present("a wrong key of sixteen bytes").await;
    page.run("await until(() => text('sign-in-error') === 'the key is wrong');").await;
    assert_eq!(page.run("return document.getElementById('app').hidden;").await, true);
    page.picture("wrong-key").await;
    page.present(KEY).await;
    page.says("Running").await;
    assert_eq!(page.run("return document.cookie;").await, "", "scripts do not see the cookie");
    page.run("await until(() => text('nodes').includes('Master') && text('facts').includes('127.0.0.1:'));").await;

    page.press("stop").await;
    page.says("Stopped").await;
    page.run("await until(() => text('cluster-note') === 'the server does not run');").await;
    page.picture("stopped").await;
    assert!(page.run("return document.getElementById('stop').disabled;").await == true);
    page.press("start").await;
    page.says("Running").await;
    let first = admin.is("running").await;
    page.press("restart").await;
    admin.until(|state| state["state"] == "running" && state["pid"] != first["pid"]).await;
    page.run("await until(() => text('restart-list').includes('the administrator ordered it'));").await;

    // A session is still there after the page is loaded again, and gone after its end.
    page.0.reload().await;
    page.run(PRELUDE).await;
    page.says("Running").await;
    page.press("sign-out").await;
    page.run("await until(() => document.getElementById('app').hidden);").await;
    assert_eq!(page.run("return (await fetch('api/state')).status;").await, 401);
    assert_eq!(page.run("return violations;").await, json!([]));
}

#[tokio::test]
async fn the_page_shows_a_killed_server_come_back() {
    let admin = Admin::supervise(&[]).await;
    let first = admin.is("running").await;
    let browser = Browser::start().await;
    let page = Page::enter(&browser, &admin).await;
    page.says("Running").await;
    kill_process(process(&first), Signal::KILL).unwrap();
    page.run("await until(() => text('restart-list').includes('the server ended (signal 9)'));").await;
    page.says("Running").await;
    page.run("location.hash = 'log'; await until(() => text('lines').includes('the server ended (signal 9)'));").await;
    page.picture("log").await;
    let shown = "await until(() => text('facts').includes(args));";
    let next = admin.until(|state| state["state"] == "running" && state["pid"] != first["pid"]).await;
    page.0.run(shown, json!(next["pid"].to_string())).await;
}

#[tokio::test]
async fn the_page_shows_a_second_node_and_closes_a_user_on_it() {
    let directory = state();
    let pool = format!("sqlite:{}", directory.path().join("pool.sqlite").display());
    let mut command = WsServer::command(directory.path());
    command.args(["supervise", "--demo", "--listen", "127.0.0.1:0", "--pool", &pool]);
    command.args(["--admin", "127.0.0.1:0", "--admin-key", KEY]);
    let arguments = ["--demo", "--pool", &pool];
    let other_state = state();
    let admin = Admin::of(command, directory).await;
    let own = address(&admin.is("running").await);
    admin.answers().await;
    let browser = Browser::start().await;
    let page = Page::enter(&browser, &admin).await;
    page.run("await until(() => document.querySelectorAll('#nodes tbody tr').length === 1);").await;

    let other = WsServer::start(other_state.path(), &arguments).await;
    let shown = "await until(() => document.querySelectorAll('#nodes tbody tr').length === 2
                     && text('nodes').includes(args[0]) && text('nodes').includes(args[1])
                     && document.querySelectorAll('#picture .node').length === 2
                     && document.querySelectorAll('#picture .relay').length === 1);";
    page.0.run(shown, json!([own.to_string(), other.address().to_string()])).await;
    page.picture("two-nodes").await;

    let mut clients = Vec::new();
    for (address, user) in [(own, "ann"), (other.address(), "ann"), (other.address(), "bob")] {
        let mut client = Client::connect_to(address, &format!("/WebSockets?user={user}")).await;
        client.send("Client/authentication", json!([])).await;
        while client.json().await["action"] != "Client/authentication" {}
        clients.push(client);
    }
    page.run(
        "location.hash = 'clients';
         document.getElementById('by-user').value = 'ann';
         document.getElementById('search').requestSubmit();
         await until(() => document.querySelectorAll('#connections tbody tr').length === 2);
         document.getElementById('publish-to').value = 'user:bob';
         document.getElementById('publish').requestSubmit();
         await until(() => text('notices').includes('Accepted: test to user:bob.'));",
    )
    .await;
    let mut bob = clients.pop().unwrap();
    while bob.json().await["action"] != "test" {}
    page.picture("clients").await;
    page.run(
        "const button = document.querySelector('#connections button[aria-label=\"Close user: user ann\"]');
         await press(button);
         await until(() => text('connections-summary') === '0 found');",
    )
    .await;
    for mut ann in clients {
        while ann.json().await["action"] != "Server/close" {}
        ann.closed().await;
    }
    // A name that would be shown backwards.
    let mut eve = Client::connect_to(own, "/WebSockets?user=%E2%80%AEeve").await;
    eve.send("Client/authentication", json!([])).await;
    while eve.json().await["action"] != "Client/authentication" {}
    page.run(
        "document.getElementById('by-user').value = '';
         document.getElementById('search').requestSubmit();
         await until(() => text('connections').includes('\\\\u{202e}eve'));",
    )
    .await;
    assert_eq!(page.run("return violations;").await, json!([]));
}

#[tokio::test]
async fn the_page_is_operated_by_keyboard_alone() {
    let admin = Admin::supervise(&[]).await;
    admin.is("running").await;
    let browser = Browser::start().await;
    let page = Page::open(&browser, &admin).await;
    page.run("await until(() => document.activeElement.id === 'key');").await;
    page.0.press(&format!("{KEY}\n")).await;
    page.says("Running").await;
    page.run("await until(() => document.activeElement.id === 'title' && !document.getElementById('stop').disabled);")
        .await;
    // Start cannot be pressed now, so that Stop is next, and Cancel comes before the order.
    page.0.press("\t").await;
    assert_eq!(page.run("return document.activeElement.id;").await, "stop");
    page.0.press("\n").await;
    page.run("await until(() => document.getElementById('confirm').open);").await;
    page.0.press("\n").await;
    page.run("await until(() => !document.getElementById('confirm').open);").await;
    assert_eq!(admin.get("/admin/api/state").await["state"], "running");
    page.0.press("\n\t\n").await;
    page.says("Stopped").await;
    // The views are links, and each field has a name.
    let unnamed = "return [...document.querySelectorAll('button, input, select, textarea, a, [role=region]')]
        .filter((element) => !element.labels?.length && !element.ariaLabel && !element.textContent.trim())
        .map((element) => element.outerHTML);";
    assert_eq!(page.run(unnamed).await, json!([]));
}

#[tokio::test]
async fn the_page_fits_a_narrow_screen_in_light_and_dark() {
    let admin = Admin::supervise(&["--demo"]).await;
    let running = admin.is("running").await;
    admin.answers().await;
    let mut ann = Client::connect_to(address(&running), "/WebSockets?user=a.user.with.quite.a.long.name").await;
    ann.send("Client/authentication", json!([])).await;
    while ann.json().await["action"] != "Client/authentication" {}
    let browser = Browser::start().await;
    let page = Page::enter(&browser, &admin).await;
    for (scheme, is_dark) in [("light", false), ("dark", true)] {
        page.0.emulate(360, scheme).await;
        for view in ["overview", "clients", "log", "settings"] {
            let shown = "location.hash = args;
                await until(() => !document.getElementById(args).hidden && document.querySelector(
                    '#overview:not([hidden]) #picture .node, #clients:not([hidden]) #connections tbody tr, ' +
                    '#log:not([hidden]) #lines li, #settings:not([hidden]) #settings-table tbody tr'));
                const page = document.documentElement;
                const wide = [...document.querySelectorAll('body *')].filter((element) =>
                    element.checkVisibility() && !element.closest('nav, .unseen, thead, .lines') &&
                    element.getBoundingClientRect().right > page.clientWidth + 1);
                return [page.clientWidth, page.scrollWidth, wide.map((element) => element.outerHTML.slice(0, 80))];";
            let sizes = page.0.run(shown, json!(view)).await;
            assert_eq!(sizes, json!([360, 360, []]), "{view} in {scheme}");
            page.picture(&format!("{view}-{scheme}-360")).await;
        }
        let background = "const [red] = getComputedStyle(document.body).backgroundColor.match(/\\d+/g);
                          return Number(red) < 128;";
        assert_eq!(page.run(background).await, is_dark, "{scheme}");
    }
}
