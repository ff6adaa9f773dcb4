//! `SessionTable` on a real MariaDB: the identity of a session, the result of each failure, and the end of an outage.

use std::{
    error::Error as _,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use data_encoding::{BASE64URL_NOPAD, HEXLOWER};
use mysql_async::{Conn, Opts, prelude::Queryable};
use sha2::{Digest, Sha256};
use tests::{MariaDb, log::Log};
use ws_cluster::{AuthenticationError, Authenticator, Handshake, Identity, SessionTable, TrustedProxies};

const QUERY: &str = "SELECT user, expires FROM sessions WHERE id = ?";

/// A site's database with a table of sessions.
struct Site {
    url: String,
    conn: Conn,
}

impl Site {
    async fn of(database: &MariaDb) -> Self {
        let url = database.database().await;
        let conn = Conn::new(Opts::from_url(&url).unwrap()).await.unwrap();
        let mut site = Self { url, conn };
        site.run(
            "CREATE TABLE sessions (id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY, user INT NULL,
                expires BIGINT NULL, ip VARCHAR(45), agent VARCHAR(255), hold INT NOT NULL DEFAULT 0)",
        )
        .await;
        site
    }

    async fn shared() -> Self {
        Self::of(MariaDb::shared().await).await
    }

    async fn run(&mut self, sql: &str) {
        self.conn.query_drop(sql).await.unwrap();
    }

    /// Returns a table that asks the database every time.
    fn table(&self, query: &str) -> SessionTable {
        SessionTable::new(&self.url, "sid", query).unwrap().cache_time(Duration::ZERO)
    }
}

fn handshake(session: &str, agent: &str, peer: &str) -> Handshake {
    let request =
        http::Request::get("/WebSockets").header("cookie", format!("sid={session}")).header("user-agent", agent);
    let peer = Some(SocketAddr::new(peer.parse().unwrap(), 4711));
    Handshake::new(&request.body(()).unwrap().into_parts().0, peer, &TrustedProxies::default())
}

async fn ask(table: &SessionTable, session: &str) -> Result<Option<Identity>, AuthenticationError> {
    table.authenticate(&handshake(session, "Agent/1", "192.0.2.1"), None).await
}

async fn identity(table: &SessionTable, session: &str) -> Option<Identity> {
    ask(table, session).await.unwrap()
}

async fn user(table: &SessionTable, session: &str) -> Option<String> {
    identity(table, session).await.and_then(|identity| identity.user)
}

/// Returns the mistake in the configuration.
async fn fault(table: &SessionTable, session: &str) -> String {
    match ask(table, session).await {
        Err(AuthenticationError::Misconfigured(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_session_names_its_user_and_its_end() {
    let mut site = Site::shared().await;
    site.run("INSERT INTO sessions (id, user, expires) VALUES ('a', 7, 4102444800), ('b', 8, NULL)").await;
    let table = site.table(QUERY);
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(4_102_444_800);
    assert_eq!(identity(&table, "a").await, Some(Identity::user("7").session("a").expires(end)));
    assert_eq!(identity(&table, "b").await, Some(Identity::user("8").session("b")));
    let table = site.table("SELECT user FROM sessions WHERE id = :session");
    assert_eq!(identity(&table, "a").await, Some(Identity::user("7").session("a")));
}

#[tokio::test]
async fn wrong_expired_missing_and_anonymous_sessions_are_none() {
    let mut site = Site::shared().await;
    site.run("INSERT INTO sessions (id, user, expires) VALUES ('expired', 7, 1000000000), ('anonymous', NULL, NULL)")
        .await;
    let table = site.table(QUERY);
    assert_eq!(user(&table, "expired").await, None);
    assert_eq!(user(&table, "anonymous").await, None);
    assert_eq!(user(&table, "EXPIRED").await, None);
    assert_eq!(user(&table, "' OR 1 = 1 -- ").await, None);
    assert_eq!(user(&table, "").await, None);
    let bare = http::Request::get("/").body(()).unwrap().into_parts().0;
    let bare = Handshake::new(&bare, None, &TrustedProxies::none());
    assert_eq!(table.authenticate(&bare, None).await.unwrap(), None);
}

#[tokio::test]
async fn an_end_may_be_a_date_and_time_in_utc_or_numeric_text() {
    let mut site = Site::shared().await;
    site.run("CREATE TABLE ends (id VARCHAR(9) PRIMARY KEY, at DATETIME(6), stamp TIMESTAMP NULL, text VARCHAR(20))")
        .await;
    // As a site writes it whose own connections have another time zone.
    site.run("SET time_zone = '+05:00'").await;
    site.run("INSERT INTO ends VALUES ('a', '2035-01-02 03:04:05.5', FROM_UNIXTIME(2051319845), '2051319845')").await;
    let end = SystemTime::UNIX_EPOCH + Duration::from_secs(2_051_319_845);
    for (column, end) in [
        ("at", end + Duration::from_millis(500)),
        ("stamp", end),
        ("text", end),
        ("COALESCE(at, 'never')", end + Duration::from_millis(500)),
        ("UNIX_TIMESTAMP(stamp)", end),
        ("UNIX_TIMESTAMP(stamp) + 0.25", end + Duration::from_millis(250)),
    ] {
        let table = site.table(&format!("SELECT 'alice', {column} FROM ends WHERE id = ?"));
        assert_eq!(identity(&table, "a").await.unwrap().expires, Some(end), "{column}");
    }
}

#[tokio::test]
async fn groups_come_from_a_second_query() {
    let mut site = Site::shared().await;
    site.run("INSERT INTO sessions (id, user) VALUES ('a', 7), ('b', 8)").await;
    site.run("CREATE TABLE members (user INT, name VARCHAR(20))").await;
    site.run("INSERT INTO members VALUES (7, 'editors'), (7, 'admins'), (7, NULL), (9, 'others')").await;
    for query in ["user = ?", "user = :user", "user = :id", "user IN (SELECT user FROM sessions WHERE id = :session)"] {
        let table = site.table(QUERY).groups_query(&format!("SELECT name FROM members WHERE {query}")).unwrap();
        let groups = identity(&table, "a").await.unwrap().groups;
        assert_eq!(groups, ["admins".to_owned(), "editors".to_owned()].into(), "{query}");
        assert!(identity(&table, "b").await.unwrap().groups.is_empty());
    }
}

#[tokio::test]
async fn a_session_may_be_bound_to_address_and_agent() {
    let mut site = Site::shared().await;
    site.run("INSERT INTO sessions (id, user, ip, agent) VALUES ('a', 7, '192.0.2.1', 'Agent/1')").await;
    let bound = "SELECT user FROM sessions WHERE id = :id AND ip = :ip AND agent = :agent -- :not, really?";
    // With the cache: the same session from another address is another question.
    let table = SessionTable::new(&site.url, "sid", bound).unwrap();
    let user = async |agent, peer| {
        table.authenticate(&handshake("a", agent, peer), None).await.unwrap().and_then(|identity| identity.user)
    };
    assert_eq!(user("Agent/1", "192.0.2.1").await.as_deref(), Some("7"));
    assert_eq!(user("Agent/1", "::ffff:192.0.2.1").await.as_deref(), Some("7"));
    assert_eq!(user("Agent/1", "192.0.2.2").await, None);
    assert_eq!(user("Agent/2", "192.0.2.1").await, None);
}

#[tokio::test]
async fn a_valid_session_is_remembered_and_a_missing_one_is_not() {
    let mut site = Site::shared().await;
    let table = SessionTable::new(&site.url, "sid", QUERY).unwrap();
    assert_eq!(user(&table, "a").await, None);
    site.run("INSERT INTO sessions (id, user) VALUES ('a', 7)").await;
    assert_eq!(user(&table, "a").await.as_deref(), Some("7"));
    site.run("DELETE FROM sessions").await;
    assert_eq!(user(&table, "a").await.as_deref(), Some("7"));
    assert_eq!(user(&table.cache_time(Duration::ZERO), "a").await, None);
}

#[tokio::test]
async fn a_query_that_does_not_fit_is_a_fault_of_the_configuration() {
    let mut site = Site::shared().await;
    site.run("INSERT INTO sessions (id, user, expires) VALUES ('a', 7, 4102444800)").await;
    for (query, why) in [
        ("SELECT user, expires, ip FROM sessions WHERE id = ?", "gives 3 columns"),
        ("DELETE FROM sessions WHERE id = ?", "gives 0 columns"),
        ("SELECT user FROM sessions WHERE id = ? AND ip = ?", "has 2 parameters where 1 is meant"),
        ("SELECT user FROM sessions WHERE id = '?'", "has 0 parameters where 1 is meant"),
        ("SELECT user FRM sessions WHERE id = ?", "You have an error in your SQL syntax"),
        ("SELECT user FROM session WHERE id = ?", "doesn't exist"),
        ("SELECT usr FROM sessions WHERE id = ?", "Unknown column"),
    ] {
        let fault = fault(&site.table(query), "a").await;
        assert!(fault.contains(why), "{query}: {fault}");
    }
    // The groups query is checked even if there is no session to ask for.
    let table = site.table(QUERY).groups_query("SELECT user, id FROM sessions WHERE user = ?").unwrap();
    assert!(fault(&table, "nobody's").await.contains("gives 2 columns where one"));
    assert!(matches!(table.check().await, Err(AuthenticationError::Misconfigured(_))));
    site.table(QUERY).check().await.unwrap();
    // Nothing was deleted: a statement without columns is only prepared.
    assert!(identity(&site.table("SELECT user FROM sessions WHERE id = ?"), "a").await.is_some());
}

#[tokio::test]
async fn odd_values_concern_their_row_alone() {
    let mut site = Site::shared().await;
    // As old sites have them.
    site.run("SET sql_mode = 'ALLOW_INVALID_DATES'").await;
    site.run("INSERT INTO sessions (id, user) VALUES ('good', 7)").await;
    let never = None;
    let at = |seconds| Some(SystemTime::UNIX_EPOCH + Duration::from_secs(seconds));
    for (column, value, outcome) in [
        ("DATETIME(6)", "'9999-12-31 23:59:59.999999'", Some(never)),
        ("DATETIME", "'0000-00-00 00:00:00'", None),
        ("DATETIME", "'2035-02-31 00:00:00'", None),
        ("DATE", "'2035-01-02'", Some(at(2_051_308_800))),
        ("TIMESTAMP NULL", "'0000-00-00 00:00:00'", None),
        ("TIMESTAMP NULL", "NULL", Some(never)),
        ("TIME", "'12:00:00'", None),
        ("VARCHAR(40)", "''", None),
        ("VARCHAR(40)", "'soon'", None),
        ("BINARY(16)", "'2051308800'", Some(at(2_051_308_800))),
        ("BINARY(4)", "0xFF", None),
        ("DECIMAL(20, 3)", "2051308800", Some(at(2_051_308_800))),
        ("DECIMAL(65)", "REPEAT('9', 65)", Some(never)),
        ("INT", "-1", None),
        ("INT", "0", None),
        ("INT UNSIGNED", "4294967295", Some(at(4_294_967_295))),
        ("BIGINT", "9223372036854775807", Some(never)),
        ("BIGINT UNSIGNED", "18446744073709551615", Some(never)),
        ("BIGINT", "2051308800000", Some(at(2_051_308_800))),
        ("DOUBLE", "2051308800", Some(at(2_051_308_800))),
    ] {
        site.run("DROP TABLE IF EXISTS odd").await;
        site.run(&format!("CREATE TABLE odd (id VARCHAR(9) PRIMARY KEY, at {column})")).await;
        site.run(&format!("INSERT INTO odd VALUES ('a', {value})")).await;
        let identity = identity(&site.table("SELECT 'alice', at FROM odd WHERE id = ?"), "a").await;
        assert_eq!(identity.map(|identity| identity.expires), outcome, "{column} {value}");
    }
    for (column, value, outcome) in [
        ("BINARY(8)", "'alice'", Some("alice")),
        ("BINARY(8)", "''", None),
        ("BINARY(16)", "0xFFEE", None),
        ("VARCHAR(9)", "''", None),
        ("DECIMAL(20)", "18446744073709551615", Some("18446744073709551615")),
        ("DECIMAL(5, 2)", "7", Some("7.00")),
        ("BIGINT UNSIGNED", "18446744073709551615", Some("18446744073709551615")),
        ("INT", "-7", Some("-7")),
        ("BIT(1)", "1", None),
        ("TIME", "'12:00:00'", None),
        ("DATETIME", "'2026-01-01 00:00:00'", None),
        ("YEAR", "2026", Some("2026")),
        ("TEXT", "REPEAT('x', 2000)", None),
    ] {
        site.run("DROP TABLE IF EXISTS odd").await;
        site.run(&format!("CREATE TABLE odd (id VARCHAR(9) PRIMARY KEY, user {column})")).await;
        site.run(&format!("INSERT INTO odd VALUES ('a', {value})")).await;
        let found = user(&site.table("SELECT user FROM odd WHERE id = ?"), "a").await;
        assert_eq!(found.as_deref(), outcome, "{column} {value}");
    }
    // The database itself fails on the row: a number out of range, a subquery with two rows.
    site.run("INSERT INTO sessions (id, user, expires) VALUES ('b', 8, 1), ('c', 8, 9223372036854775807)").await;
    for query in [
        "SELECT user, expires + 9223372036854775807 FROM sessions WHERE id = ?",
        "SELECT (SELECT user FROM sessions WHERE user = s.user) FROM sessions s WHERE id = ?",
    ] {
        let table = site.table(query);
        table.check().await.unwrap();
        assert_eq!(user(&table, "c").await, None, "{query}");
        assert_eq!(user(&table, "good").await.as_deref(), Some("7"), "{query}");
    }
    // A group without a name does not keep the user from the other groups.
    site.run("CREATE TABLE members (user INT, name VARBINARY(20))").await;
    site.run("INSERT INTO members VALUES (7, 0xFF), (7, 'editors'), (7, ''), (7, NULL)").await;
    let table = site.table(QUERY).groups_query("SELECT name FROM members WHERE user = ?").unwrap();
    assert_eq!(identity(&table, "good").await.unwrap().groups, ["editors".to_owned()].into());
}

#[tokio::test]
async fn the_log_says_what_is_wrong_with_a_row_and_not_whose_it_is() {
    let mut site = Site::shared().await;
    site.run("SET sql_mode = 'ALLOW_INVALID_DATES'").await;
    let mut log = Log::listen();
    for (column, value, query, problem) in [
        (
            "DATETIME",
            "'0000-00-00'",
            "SELECT 'ann', odd FROM odd WHERE id = ?",
            "expires (second column) is the zero date",
        ),
        ("TEXT", "'soon'", "SELECT 'ann', odd FROM odd WHERE id = ?", "expires (second column) is neither a Unix time"),
        ("TIME", "'12:00'", "SELECT 'ann', odd FROM odd WHERE id = ?", "expires (second column) is a time of day"),
        (
            "TEXT",
            "REPEAT('x', 2000)",
            "SELECT odd FROM odd WHERE id = ?",
            "user (first column) is longer than 1024 bytes",
        ),
        ("BIT(1)", "1", "SELECT odd FROM odd WHERE id = ?", "user (first column) has control characters"),
        ("BINARY(2)", "0xFFEE", "SELECT odd FROM odd WHERE id = ?", "user (first column) is not text in UTF-8"),
        ("DATETIME", "'2026-01-01'", "SELECT odd FROM odd WHERE id = ?", "user (first column) is a date or time"),
        ("BIGINT", "9223372036854775807", "SELECT 'ann', odd + odd FROM odd WHERE id = ?", "out of range"),
    ] {
        site.run("DROP TABLE IF EXISTS odd").await;
        site.run(&format!("CREATE TABLE odd (id VARCHAR(9) PRIMARY KEY, odd {column})")).await;
        site.run(&format!("INSERT INTO odd VALUES ('s3ss10n', {value})")).await;
        let table = site.table(query);
        assert_eq!(user(&table, "s3ss10n").await, None, "{problem}");
        let line = log.line("left out").await;
        assert!(line.contains("WARN") && line.contains(problem), "{problem}: {line}");
        assert!(!line.contains("s3ss10n"), "{line}");
    }
    site.run("CREATE TABLE names (user TEXT, name VARBINARY(20))").await;
    site.run("INSERT INTO names VALUES ('ann', 0xFF)").await;
    let table = site.table("SELECT 'ann' FROM odd WHERE id = ?");
    let table = table.groups_query("SELECT name FROM names WHERE user = ?").unwrap();
    assert_eq!(user(&table, "s3ss10n").await.as_deref(), Some("ann"));
    let line = log.line("left out").await;
    assert!(
        line.contains("WARN") && line.contains("groups query") && line.contains("name is not text in UTF-8"),
        "{line}"
    );
}

#[tokio::test]
async fn sessions_are_found_by_cookies_as_frameworks_send_them() {
    let mut site = Site::shared().await;
    site.run("INSERT INTO sessions (id, user) VALUES ('e4,d9', 7), ('q+z/A==', 8), ('raw%2Cid', 9), ('raw,id', 10)")
        .await;
    let table = SessionTable::new(&site.url, "sid", QUERY).unwrap();
    for (cookie, session, user) in [
        ("e4%2Cd9", "e4,d9", "7"),
        ("e4,d9", "e4,d9", "7"),
        (r#""e4\054d9""#, "e4,d9", "7"),
        ("q%2Bz%2FA%3D%3D", "q+z/A==", "8"),
        ("\"q+z/A==\"", "q+z/A==", "8"),
        ("raw%2Cid", "raw%2Cid", "9"),
        ("stale; sid=raw,id", "raw,id", "10"),
    ] {
        assert_eq!(identity(&table, cookie).await, Some(Identity::user(user).session(session)), "{cookie}");
    }
    for cookie in ["e4%252Cd9", "e4%2cd9%00", "1; sid=2; sid=3; sid=raw,id"] {
        assert_eq!(identity(&table, cookie).await, None, "{cookie}");
    }
}

#[tokio::test]
async fn sessions_are_found_by_digests_of_their_ids() {
    let mut site = Site::shared().await;
    site.run("CREATE TABLE hashed (id VARCHAR(64) CHARACTER SET ascii COLLATE ascii_bin PRIMARY KEY, user INT)").await;
    // Hexadecimal, and base64 for URLs as Drupal writes it.
    for (sql, ids) in [
        ("SHA2(?, 256)", ["3RKJpZVT", "d", "a b"]),
        (
            "REPLACE(REPLACE(TRIM(TRAILING '=' FROM TO_BASE64(UNHEX(SHA2(?, 256)))), '+', '-'), '/', '_')",
            ["3RKJpZVT", "d", "a b"],
        ),
    ] {
        let table = site.table(&format!("SELECT user FROM hashed WHERE id = {sql}"));
        for id in ids {
            let digest = Sha256::digest(id);
            let digest = match sql.starts_with("SHA2") {
                true => HEXLOWER.encode(&digest),
                false => BASE64URL_NOPAD.encode(&digest),
            };
            site.run(&format!("INSERT INTO hashed VALUES ('{digest}', 7)")).await;
            assert_eq!(identity(&table, id).await, Some(Identity::user("7").session(id)), "{sql}");
        }
        assert_eq!(user(&table, "other").await, None);
    }
}

#[tokio::test]
async fn an_ipv4_address_is_found_in_either_form() {
    let mut site = Site::shared().await;
    site.run(
        "INSERT INTO sessions (id, user, ip) VALUES ('plain', 7, '192.0.2.1'), ('mapped', 8, '::ffff:192.0.2.1'),
            ('six', 9, '2001:db8::1')",
    )
    .await;
    site.run("CREATE TABLE members (ip VARCHAR(45), name VARCHAR(20))").await;
    site.run("INSERT INTO members VALUES ('192.0.2.1', 'plain'), ('::ffff:192.0.2.1', 'mapped')").await;
    let table = site.table("SELECT user FROM sessions WHERE id = :id AND ip = :ip");
    let table = table.groups_query("SELECT name FROM members WHERE ip = :ip AND :user <> ''").unwrap();
    let user = async |session, peer| {
        let identity = table.authenticate(&handshake(session, "Agent/1", peer), None).await.unwrap();
        identity.map(|identity| (identity.user.unwrap(), identity.groups.into_iter().collect::<Vec<_>>()))
    };
    let found = |user: &str, groups: &[&str]| Some((user.to_owned(), groups.iter().map(|g| (*g).to_owned()).collect()));
    for peer in ["192.0.2.1", "::ffff:192.0.2.1"] {
        assert_eq!(user("plain", peer).await, found("7", &["plain"]), "{peer}");
        assert_eq!(user("mapped", peer).await, found("8", &["mapped"]), "{peer}");
        assert_eq!(user("six", peer).await, None, "{peer}");
    }
    assert_eq!(user("six", "2001:db8::1").await, found("9", &[]));
    assert_eq!(user("mapped", "192.0.2.2").await, None);
    let table = site.table("SELECT user FROM sessions WHERE id = :id AND ip = :ip6");
    let six = async |session| identity(&table, session).await.and_then(|identity| identity.user);
    assert_eq!((six("mapped").await.as_deref(), six("plain").await), (Some("8"), None));
}

#[tokio::test]
async fn a_refused_password_is_a_fault_of_the_configuration() {
    let database = MariaDb::shared().await;
    let table = SessionTable::new(&database.url(MariaDb::USER, "wrong", "mysql"), "sid", QUERY).unwrap();
    let fault = fault(&table, "a").await;
    assert!(fault.contains("Access denied") && !fault.contains("wrong"), "{fault}");
}

#[tokio::test]
async fn a_query_that_takes_too_long_is_dropped_with_its_answer() {
    let mut site = Site::shared().await;
    site.run("INSERT INTO sessions (id, user, hold) VALUES ('quick', 7, 0), ('slow', 8, 600)").await;
    let slow = "SELECT user, IF(hold = 0 OR SLEEP(hold), NULL, NULL) FROM sessions WHERE id = ?";
    let table = site.table(slow).connections(1);
    assert_eq!(user(&table, "quick").await.as_deref(), Some("7"));
    let impatient = table.clone().query_timeout(Duration::from_millis(200));
    let error = ask(&impatient, "slow").await.unwrap_err();
    assert!(matches!(error, AuthenticationError::Unavailable(_)), "{error}");
    assert_eq!(error.source().unwrap().to_string(), "no answer within 200ms");
    // On the only connection that is allowed.
    assert_eq!(user(&table, "quick").await.as_deref(), Some("7"));
}

#[tokio::test]
async fn many_questions_wait_for_few_connections() {
    let mut site = Site::shared().await;
    let rows: Vec<_> = (1..=300).map(|number| format!("({number}, {number})")).collect();
    site.run(&format!("INSERT INTO sessions (id, user) VALUES {}", rows.join(", "))).await;
    let table = site.table(QUERY).connections(2);
    let tasks: Vec<_> = (1..=300)
        .map(|number| {
            let table = table.clone();
            tokio::spawn(async move { (number, user(&table, &number.to_string()).await) })
        })
        .collect();
    for task in tasks {
        let (number, user) = task.await.unwrap();
        assert_eq!(user, Some(number.to_string()));
    }
}

#[tokio::test]
async fn a_database_that_is_down_is_unavailable_until_it_is_back() {
    let mut database = MariaDb::start().await;
    let mut site = Site::of(&database).await;
    site.run("INSERT INTO sessions (id, user) VALUES ('a', 7), ('b', 8)").await;
    let table = SessionTable::new(&site.url, "sid", QUERY).unwrap();
    assert_eq!(user(&table, "a").await.as_deref(), Some("7"));
    database.kill().await;
    // The cached answer still counts.
    assert_eq!(user(&table, "a").await.as_deref(), Some("7"));
    for _ in 0..3 {
        let error = ask(&table, "b").await.unwrap_err();
        assert!(matches!(error, AuthenticationError::Unavailable(_)), "{error}");
    }
    assert!(matches!(table.check().await, Err(AuthenticationError::Unavailable(_))));
    database.start_again().await;
    assert_eq!(user(&table, "b").await.as_deref(), Some("8"));
}
