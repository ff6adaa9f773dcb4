//! The comments of the site: a page sends one as a request, PHP validates and stores it, and the others get it through
//! the outbox. And the three ways in which the nodes learn who a client is.

use http::StatusCode;
use mysql_async::{Conn, Opts, prelude::Queryable};
use serde_json::{Value, json};
use tests::{
    browser::Browser,
    client::{Client, eventually},
};

use super::{ELSEWHERE, HOME, Login, Site, Visitor};

/// Signs in as the form of the page does.
const SIGN_IN: &str = r#"
    const body = new URLSearchParams({ user: args, password: "example" });
    await fetch("/login.php", { method: "POST", body });
"#;

/// Waits until the client has a user.
const WHO: &str = "while (!client.user) await new Promise((resolve) => setTimeout(resolve, 10)); return client.user;";

/// Sends a comment by the form. Waits for its outcome.
const COMMENT: &str = r##"
    const form = document.getElementById("comment"), status = form.querySelector("[role=status]");
    const before = document.querySelectorAll("#comments li").length;
    form.text.value = args;
    form.requestSubmit();
    return new Promise((resolve) => {
        const look = () => {
            const items = document.querySelectorAll("#comments li");
            if (status.textContent) resolve(status.textContent);
            else if (items.length > before) resolve(items[0].textContent);
            else setTimeout(look, 10);
        };
        look();
    });
"##;

/// Returns the comments that the page shows, the newest first.
const SHOWN: &str = "return [...document.querySelectorAll('#comments li')].map((item) => item.textContent);";

/// Sends a request and waits for its answer. Messages of other actions are left out.
async fn request(client: &mut Client, action: &str, details: Value) -> (String, Value) {
    client.text(&json!({ "action": action, "details": details, "id": 1 }).to_string()).await;
    loop {
        let mut came = client.json().await;
        if came["id"] == 1 {
            return (came["action"].as_str().unwrap().to_owned(), came["details"].take());
        }
    }
}

async fn rows(site: &Site, sql: &str) -> Vec<(String, String)> {
    let mut conn = Conn::new(Opts::from_url(&site.database).unwrap()).await.unwrap();
    let rows = conn.query(sql).await.unwrap();
    conn.disconnect().await.unwrap();
    rows
}

#[tokio::test]
async fn a_comment_is_answered_stored_and_seen_by_the_others() {
    let site = Site::start().await;
    let mut bob = site.signed_in("bob").await.connect_known().await;
    let mut guest = site.visitor(HOME).connect_as_guest().await;
    let browser = Browser::start().await;
    let url = format!("http://{}/", site.address);

    // A guest of the page is told why.
    let tab = browser.open(&url).await;
    assert_eq!(tab.run(COMMENT, json!("Hello")).await, "sign in first");
    tab.run(SIGN_IN, json!("ann")).await;
    let tab = browser.open(&url).await;
    let second = browser.open(&url).await;
    assert_eq!(tab.run(WHO, json!(null)).await, "ann");
    assert_eq!(second.run(WHO, json!(null)).await, "ann");
    for text in ["Hello", "<b>&\"'", "  é 🎉  "] {
        let shown = format!("ann: {}", text.trim());
        assert_eq!(tab.run(COMMENT, json!(text)).await, json!(shown));
        for client in [&mut bob, &mut guest] {
            let came = client.json().await;
            assert_eq!((&came["action"], &came["details"][0]["text"]), (&json!("comment/new"), &json!(text.trim())));
            assert_eq!(came["details"][0]["user"], "ann");
        }
    }
    let all = json!(["ann: é 🎉", "ann: <b>&\"'", "ann: Hello"]);
    // Once in the tab that sent them, and in the other tab and a new one.
    assert_eq!(tab.run(SHOWN, json!(null)).await, all);
    let until =
        "while (document.querySelectorAll('#comments li').length < 3) await new Promise((r) => setTimeout(r, 10));";
    second.run(until, json!(null)).await;
    assert_eq!(second.run(SHOWN, json!(null)).await, all);
    assert_eq!(browser.open(&url).await.run(SHOWN, json!(null)).await, all);
    let stored = rows(&site, "SELECT user, text FROM comments ORDER BY id").await;
    assert_eq!(stored[2], ("ann".to_owned(), "é 🎉".to_owned()));
    // The rows are removed after their delivery.
    eventually(async || rows(&site, "SELECT action, target FROM ws_outbox").await.is_empty().then_some(())).await;
}

#[tokio::test]
async fn a_comment_that_is_malformed_is_refused_with_the_reason() {
    let site = Site::start().await;
    let mut ann = site.signed_in("ann").await.connect_known().await;
    let mut guest = site.visitor(HOME).connect_as_guest().await;
    let long = "é".repeat(501);
    for (details, why) in [
        (json!([]), "the comment must be text that is not empty"),
        (json!([" \n"]), "the comment must be text that is not empty"),
        (json!([7]), "the comment must be text that is not empty"),
        (json!([{ "text": "x" }]), "the comment must be text that is not empty"),
        (json!([long]), "the comment is longer than 500 characters"),
    ] {
        let (action, told) = request(&mut ann, "comment/add", details).await;
        assert_eq!((&*action, told), ("comment/add:error", json!([400, why])));
    }
    assert_eq!(request(&mut guest, "comment/add", json!(["x"])).await.1, json!([403, "sign in first"]));
    let (action, told) = request(&mut ann, "comment/remove", json!([1])).await;
    assert_eq!((&*action, told), ("comment/remove:error", json!([404, "Not Found"])));
    assert!(rows(&site, "SELECT user, text FROM comments").await.is_empty());
    // What is not text in UTF-8 for the database is none for PHP either, and its largest text is stored.
    let (action, told) = request(&mut ann, "comment/add", json!(["🎉".repeat(500)])).await;
    assert_eq!((&*action, &told[0]["text"]), ("comment/add", &json!("🎉".repeat(500))));
}

#[tokio::test]
async fn a_fault_of_the_site_shows_no_details_and_publishes_nothing() {
    let site = Site::start().await;
    let mut ann = site.signed_in("ann").await.connect_known().await;
    let mut conn = Conn::new(Opts::from_url(&site.database).unwrap()).await.unwrap();
    // The comment is stored, and then the outbox refuses the row: both are rolled back.
    let refuse = "ALTER TABLE ws_outbox ADD CONSTRAINT refused CHECK (action <> 'comment/new')";
    conn.query_drop(refuse).await.unwrap();
    let (action, told) = request(&mut ann, "comment/add", json!(["lost"])).await;
    assert_eq!((&*action, told), ("comment/add:error", json!([500, "Internal Server Error"])));
    conn.query_drop("ALTER TABLE ws_outbox DROP CONSTRAINT refused").await.unwrap();
    assert!(rows(&site, "SELECT user, text FROM comments").await.is_empty());
    let mut bob = site.signed_in("bob").await.connect_known().await;
    assert_eq!(request(&mut ann, "comment/add", json!(["kept"])).await.0, "comment/add");
    assert_eq!(bob.json().await["details"][0]["text"], "kept");
}

/// Signs in, comments and signs out in a browser.
async fn a_user_comments(login: Login) {
    let site = Site::with(login, &[]).await;
    let browser = Browser::start().await;
    let url = format!("http://{}/", site.address);
    let tab = browser.open(&url).await;
    tab.run(SIGN_IN, json!("ann")).await;
    let tab = browser.open(&url).await;
    assert_eq!(tab.run(WHO, json!(null)).await, "ann");
    // The nodes know the groups as well.
    site.signed_in("bob").await.publish("group:editors", "for editors").await;
    let until = "while (!document.querySelector('#news li')) await new Promise((r) => setTimeout(r, 10));
        return document.querySelector('#news').textContent;";
    assert_eq!(tab.run(until, json!(null)).await, "bob: for editors");
    assert_eq!(tab.run(COMMENT, json!("Hello")).await, "ann: Hello");
    let closed = "const closed = new Promise((resolve) => client.on('Server/close', resolve));
        await fetch('/logout.php', { method: 'POST' });
        await closed;
        return 'closed';";
    assert_eq!(tab.run(closed, json!(null)).await, "closed");
    let tab = browser.open(&url).await;
    assert_eq!(tab.run(COMMENT, json!("Hello")).await, "sign in first");
}

#[tokio::test]
async fn a_user_of_the_table_of_sessions_comments() {
    a_user_comments(Login::Table).await;
}

#[tokio::test]
async fn a_user_of_an_encrypted_cookie_comments() {
    a_user_comments(Login::Cookie).await;
}

#[tokio::test]
async fn a_user_of_a_token_comments() {
    a_user_comments(Login::Token).await;
}

#[tokio::test]
async fn an_encrypted_cookie_counts_only_as_the_site_made_it() {
    let site = Site::with(Login::Cookie, &[]).await;
    let ann = site.signed_in("ann").await;
    ann.connect_known().await;
    let cookie = ann.cookie.clone().expect("a cookie");
    // Longer than what SQL would be asked for.
    assert!(cookie.len() > 256, "{cookie}");
    let mut forged = cookie.clone().into_bytes();
    forged[100] = if forged[100] == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged).unwrap();
    for cookie in [&*forged, &cookie[..200], "site_session=e30%3D", "site_session=", "site_session=%00", "other=1"] {
        Visitor { cookie: Some(cookie.to_owned()), ..ann.clone() }.connect_as_guest().await;
    }
    // At another address it is no session, as the site decides.
    Visitor { from: ELSEWHERE, ..ann.clone() }.connect_as_guest().await;
}

#[tokio::test]
async fn strangers_do_not_reach_the_backend() {
    let site = Site::start().await;
    let visitor = site.visitor(HOME);
    let body = r#"{"event":"action","action":"comment/add","details":["x"],"user":"ann","connection":"a"}"#;
    let post = |headers: &str| format!("POST /backend.php HTTP/1.0\r\ncontent-length: {}\r\n{headers}", body.len());
    assert_eq!(visitor.request(&post(""), body).await.status, StatusCode::NOT_FOUND);
    // Without nginx they still lack the key.
    let direct = Visitor { site: site.pages, ..visitor };
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for headers in
        [String::new(), format!("webhook-id: a\r\nwebhook-timestamp: {now}\r\nwebhook-signature: v1,AAAA\r\n")]
    {
        let answer = direct.request(&post(&format!("content-type: application/json\r\n{headers}")), body).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{}", answer.text);
    }
    assert!(rows(&site, "SELECT user, text FROM comments").await.is_empty());
}

#[tokio::test]
async fn a_user_is_known_by_the_name_in_the_table_however_it_is_typed() {
    let site = Site::start().await;
    for typed in ["ANN", "ann+"] {
        let ann = site.signed_in(typed).await;
        let mut tab = ann.connect_known().await;
        ann.publish("user:ann", "Hello").await;
        ann.publish("all", "after it").await;
        tab.expect("news/new", json!(["ann", "Hello"])).await;
    }
    let array = site.visitor(HOME).post("/login.php", &[("user[]", "ann"), ("password", "example")]).await;
    assert_eq!(array.status, StatusCode::BAD_REQUEST, "{}", array.text);
}
