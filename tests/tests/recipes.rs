//! The SQL of docs/logins.md, read out of the page, on tables of the shape that each site has.

use std::{collections::BTreeSet, fs, net::SocketAddr, path::Path, time::Duration};

use data_encoding::BASE64URL_NOPAD;
use mysql_async::{Conn, Opts, prelude::Queryable};
use sha2::{Digest, Sha256};
use tests::MariaDb;
use ws_cluster::{Authenticator, Handshake, Identity, SessionTable, TrustedProxies};

const HOME: &str = "192.0.2.1";
const AGENT: &str = "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0";

/// Values that strangers send, with `ID` for the id of a session.
const HOSTILE: [&str; 13] = [
    "",
    "unknown",
    "' OR 1 = 1 -- ",
    "' OR '1' = '1",
    "\\' OR 1 = 1 -- ",
    "%25",
    "_",
    "0",
    "ID%00",
    "ID%20",
    "ID' -- ",
    "IDID",
    "ID%27%20UNION%20SELECT%201%2C%20NULL%20--%20",
];

fn page() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/logins.md")).expect("the page is there")
}

/// The flags below a heading of the page.
struct Recipe {
    cookie: String,
    session: String,
    groups: Option<String>,
}

impl Recipe {
    fn read(heading: &str) -> Self {
        let page = page();
        let (_, section) = page.split_once(&format!("\n## {heading}\n")).expect("the heading");
        let (section, _) = section.split_once("\n## ").unwrap_or((section, ""));
        let (_, block) = section.split_once("```sh\n").expect("a block of shell");
        let (block, _) = block.split_once("```").expect("its end");
        let flag = |name: &str| {
            let (_, rest) = block.split_once(&format!("{name} "))?;
            match rest.strip_prefix('"') {
                Some(rest) => rest.split('"').next(),
                None => rest.split_whitespace().next(),
            }
        };
        let owned = |name| flag(name).map(str::to_owned);
        Self {
            cookie: owned("--session-cookie").expect("a cookie"),
            session: owned("--session-query").expect("a query"),
            groups: owned("--groups-query"),
        }
    }
}

/// A site's database, and the node's look at it.
struct Site {
    url: String,
    conn: Conn,
    cookie: String,
    table: SessionTable,
}

impl Site {
    async fn new(recipe: &Recipe) -> Self {
        let url = MariaDb::shared().await.database().await;
        let conn = Conn::new(Opts::from_url(&url).unwrap()).await.unwrap();
        let table = Self::table(&url, recipe);
        Self { url, conn, cookie: recipe.cookie.clone(), table }
    }

    fn table(url: &str, recipe: &Recipe) -> SessionTable {
        let table = SessionTable::new(url, &recipe.cookie, &recipe.session).unwrap().cache_time(Duration::ZERO);
        match &recipe.groups {
            Some(groups) => table.groups_query(groups).unwrap(),
            None => table,
        }
    }

    async fn run(&mut self, sql: &str) {
        for statement in sql.split(";\n").map(str::trim).filter(|statement| !statement.is_empty()) {
            self.conn.query_drop(statement).await.unwrap_or_else(|error| panic!("{statement}: {error}"));
        }
    }

    async fn ask(&self, cookie: &str, ip: &str, agent: &str) -> Option<Identity> {
        let cookie = format!("a=b; {}={cookie}", self.cookie);
        let request = http::Request::get("/WebSockets").header("cookie", cookie).header("user-agent", agent);
        let peer = Some(SocketAddr::new(ip.parse().unwrap(), 4711));
        let parts = request.body(()).unwrap().into_parts().0;
        self.table.authenticate(&Handshake::new(&parts, peer, &TrustedProxies::default()), None).await.unwrap()
    }

    /// Asserts who a cookie is, with the groups.
    async fn expect(&self, cookie: &str, user: &str, groups: &[&str]) -> Identity {
        let identity = self.ask(cookie, HOME, AGENT).await.unwrap_or_else(|| panic!("{cookie} is a guest"));
        let groups: BTreeSet<String> = groups.iter().map(|&group| group.to_owned()).collect();
        assert_eq!((identity.user.as_deref(), &identity.groups), (Some(user), &groups), "{cookie}");
        identity
    }

    async fn expect_guest(&self, cookie: &str) {
        assert_eq!(self.ask(cookie, HOME, AGENT).await, None, "{cookie}");
    }

    /// Asserts that nothing but the id of a session is that session.
    async fn expect_strangers_to_be_guests(&self, id: &str) {
        self.table.check().await.unwrap();
        for cookie in HOSTILE {
            self.expect_guest(&cookie.replace("ID", id)).await;
        }
        self.expect_guest(&"a".repeat(257)).await;
    }
}

#[tokio::test]
async fn a_table_of_ones_own_names_its_users() {
    let mut site = Site::new(&Recipe::read("A table of your own")).await;
    let schema = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/site/schema.sql");
    site.run(&fs::read_to_string(schema).unwrap()).await;
    let (ann, late, far) = ("0a".repeat(16), "0b".repeat(16), "0c".repeat(16));
    site.run(&format!(
        "INSERT INTO sessions VALUES ('{ann}', 'ann', UNIX_TIMESTAMP() + 3600, '{HOME}'),
            ('{late}', 'bob', UNIX_TIMESTAMP() - 1, '{HOME}'), ('{far}', 'bob', UNIX_TIMESTAMP() + 3600, '192.0.2.2')"
    ))
    .await;
    let identity = site.expect(&ann, "ann", &["admins", "editors"]).await;
    assert!(identity.expires.is_some());
    for cookie in [late, far, ann.to_uppercase()] {
        site.expect_guest(&cookie).await;
    }
    site.expect_strangers_to_be_guests(&ann).await;
}

#[tokio::test]
async fn drupal_names_its_users() {
    let mut site = Site::new(&Recipe::read("Drupal")).await;
    site.run(
        "CREATE TABLE sessions (
            uid INT UNSIGNED NOT NULL, sid VARCHAR(128) CHARACTER SET ascii NOT NULL,
            hostname VARCHAR(128) CHARACTER SET ascii NOT NULL DEFAULT '', timestamp BIGINT NOT NULL DEFAULT 0,
            session LONGBLOB, PRIMARY KEY (sid), KEY timestamp (timestamp), KEY uid (uid));
        CREATE TABLE user__roles (
            bundle VARCHAR(128) CHARACTER SET ascii NOT NULL DEFAULT '', deleted TINYINT NOT NULL DEFAULT 0,
            entity_id INT UNSIGNED NOT NULL, revision_id INT UNSIGNED NOT NULL,
            langcode VARCHAR(32) CHARACTER SET ascii NOT NULL DEFAULT '', delta INT UNSIGNED NOT NULL,
            roles_target_id VARCHAR(255) CHARACTER SET ascii NOT NULL,
            PRIMARY KEY (entity_id, deleted, delta, langcode));
        INSERT INTO user__roles VALUES ('user', 0, 7, 7, 'en', 0, 'content_editor'),
            ('user', 0, 7, 7, 'en', 1, 'administrator'), ('user', 0, 8, 8, 'en', 0, 'other')",
    )
    .await;
    let digest = |id: &str| BASE64URL_NOPAD.encode(&Sha256::digest(id));
    // Ids as Drupal makes them: their digests have both characters that differ in base64 for URLs.
    let ids: Vec<String> = (0..20).map(|n| BASE64URL_NOPAD.encode(&Sha256::digest(format!("session {n}")))).collect();
    assert!(ids.iter().any(|id| digest(id).contains('-')) && ids.iter().any(|id| digest(id).contains('_')));
    for id in &ids {
        site.run(&format!("INSERT INTO sessions (uid, sid, session) VALUES (7, '{}', 'uid|s:1:\"7\";')", digest(id)))
            .await;
    }
    let guest = "the session of a guest with a cart";
    site.run(&format!("INSERT INTO sessions (uid, sid) VALUES (0, '{}')", digest(guest))).await;
    for id in &ids {
        let identity = site.expect(id, "7", &["administrator", "content_editor"]).await;
        assert_eq!(identity.session.as_deref(), Some(&**id));
    }
    site.expect_guest(guest).await;
    // A reader of the table cannot use its contents.
    site.expect_guest(&digest(&ids[0])).await;
    site.expect_strangers_to_be_guests(&ids[0]).await;
}

#[tokio::test]
async fn phpbb_names_its_users() {
    let mut site = Site::new(&Recipe::read("phpBB")).await;
    site.run(
        "CREATE TABLE phpbb_sessions (
            session_id CHAR(32) COLLATE utf8_bin NOT NULL DEFAULT '', session_user_id INT UNSIGNED NOT NULL DEFAULT 0,
            session_last_visit INT UNSIGNED NOT NULL DEFAULT 0, session_start INT UNSIGNED NOT NULL DEFAULT 0,
            session_time INT UNSIGNED NOT NULL DEFAULT 0, session_ip VARCHAR(40) COLLATE utf8_bin NOT NULL DEFAULT '',
            session_browser VARCHAR(150) COLLATE utf8_bin NOT NULL DEFAULT '',
            session_autologin TINYINT UNSIGNED NOT NULL DEFAULT 0, PRIMARY KEY (session_id),
            KEY session_time (session_time), KEY session_user_id (session_user_id)) CHARACTER SET utf8;
        CREATE TABLE phpbb_groups (
            group_id INT UNSIGNED PRIMARY KEY, group_name VARCHAR(255) COLLATE utf8_bin NOT NULL) CHARACTER SET utf8;
        CREATE TABLE phpbb_user_group (
            group_id INT UNSIGNED NOT NULL, user_id INT UNSIGNED NOT NULL, group_leader TINYINT NOT NULL DEFAULT 0,
            user_pending TINYINT NOT NULL DEFAULT 1);
        INSERT INTO phpbb_groups VALUES (2, 'REGISTERED'), (4, 'GLOBAL_MODERATORS'), (5, 'ADMINISTRATORS');
        INSERT INTO phpbb_user_group VALUES (2, 7, 0, 0), (4, 7, 0, 0), (5, 7, 0, 1), (5, 8, 0, 0)",
    )
    .await;
    // phpBB keeps at most 150 characters of the browser.
    let agent = format!("{AGENT} {}", "x".repeat(200));
    let id = |digit: &str| digit.repeat(32);
    for (session, user, age, ip, browser, autologin) in [
        (id("a"), 7, 10, HOME, AGENT, 0),
        (id("b"), 1, 10, HOME, AGENT, 0),
        (id("c"), 7, 4000, HOME, AGENT, 0),
        (id("d"), 7, 4000, HOME, AGENT, 1),
        (id("e"), 7, 10, "192.0.2.99", AGENT, 0),
        (id("f"), 7, 10, "192.0.3.1", AGENT, 0),
        (id("1"), 7, 10, HOME, "Opera", 0),
        (id("2"), 8, 10, "2001:db8::1", &agent[..150], 0),
    ] {
        site.run(&format!(
            "INSERT INTO phpbb_sessions VALUES
                ('{session}', {user}, 0, 0, UNIX_TIMESTAMP() - {age}, '{ip}', '{browser}', {autologin})"
        ))
        .await;
    }
    let groups = &["GLOBAL_MODERATORS", "REGISTERED"];
    assert!(site.expect(&id("a"), "7", groups).await.expires.is_some());
    assert!(site.expect(&id("d"), "7", groups).await.expires.is_none());
    site.expect(&id("e"), "7", groups).await;
    for guest in ["b", "c", "f", "1", "A"] {
        site.expect_guest(&id(guest)).await;
    }
    let far = site.ask(&id("2"), "2001:db8::1", &agent).await.expect("a user");
    assert_eq!(far.user.as_deref(), Some("8"));
    assert_eq!(site.ask(&id("2"), "2001:db8::2", &agent).await, None);
    assert_eq!(site.ask(&id("a"), "198.51.100.1", AGENT).await, None);
    site.expect_strangers_to_be_guests(&id("a")).await;
}

#[tokio::test]
async fn an_id_compares_exactly_if_the_query_says_so() {
    let page = page();
    let advice = page.split_whitespace().collect::<Vec<_>>().join(" ");
    let (_, condition) = advice.split_once("add `AND ").expect("the advice about collations");
    let (condition, _) = condition.split_once('`').unwrap();
    let query = |condition: &str| format!("SELECT user FROM sessions WHERE id = :id {condition}");
    let recipe = |session| Recipe { cookie: "sid".into(), session, groups: None };
    let mut site = Site::new(&recipe(query(&format!("AND {condition}")))).await;
    site.run(
        "CREATE TABLE sessions (id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_general_ci PRIMARY KEY, user INT);
        INSERT INTO sessions VALUES ('abc', 7)",
    )
    .await;
    site.expect("abc", "7", &[]).await;
    let lax = Site::table(&site.url, &recipe(query("")));
    let exact = std::mem::replace(&mut site.table, lax);
    // Without the condition, each of these is the session as well.
    for other in ["ABC", "abc%20"] {
        site.expect(other, "7", &[]).await;
    }
    site.table = exact;
    for other in ["ABC", "abc%20", "Abc"] {
        site.expect_guest(other).await;
    }
    let plan: Vec<mysql_async::Row> =
        site.conn.query("EXPLAIN SELECT user FROM sessions WHERE id = 'abc' AND BINARY id = 'abc'").await.unwrap();
    assert_eq!(plan[0].get::<Option<String>, _>("key").unwrap().as_deref(), Some("PRIMARY"));
}
