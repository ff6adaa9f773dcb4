//! Accounts of every authentication plug-in, TLS, and servers that send invalid packets: a connection succeeds, or the
//! error says in one line what is wrong. Both users of a database are tested, the pool and the session table.

use std::{net::Ipv4Addr, path::Path, process::Command};

use mysql_async::prelude::Queryable;
use tests::MariaDb;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use ws_cluster::{
    AuthenticationError, SessionTable,
    pool::{self, PoolError},
};

const PASSWORD: &str = "p%40ss";

/// Returns what the pool and the session table say about a URL. It is `Ok` if they reach the database.
async fn refusal(url: &str) -> Result<(), String> {
    let pool = pool::open(url).await.map_err(|error| error.to_string())?;
    let prepared = pool.prepare().await;
    let sessions = SessionTable::new(url, "sid", "SELECT 1 FROM DUAL WHERE '' = ?").unwrap().check().await;
    match (prepared, sessions) {
        (Ok(()), Ok(())) => Ok(()),
        (Err(pool @ PoolError::Unreachable(_)), Err(sessions)) => {
            let (pool, sessions) = (pool.to_string(), text_of(&sessions));
            // The same cause, in one line.
            let cause = pool.splitn(3, ": ").nth(2).unwrap_or(&pool);
            assert!(sessions.contains(cause), "{url}: {pool} / {sessions}");
            assert!(!pool.contains('\n') && !pool.contains("driver failed"), "{url}: {pool}");
            assert!(!pool.contains("p@ss") && !pool.contains(PASSWORD), "{url}: {pool}");
            Err(pool)
        }
        (pool, sessions) => panic!("{url}: {pool:?} / {sessions:?}"),
    }
}

fn text_of(error: &AuthenticationError) -> String {
    error.to_string()
}

async fn refused(url: &str, why: &str) {
    let text = refusal(url).await.expect_err(url);
    assert!(text.contains(why), "{url}: {text}");
}

async fn accepted(url: &str) {
    if let Err(why) = refusal(url).await {
        panic!("{url}: {why}");
    }
}

/// Makes the certificate `NAME.pem` with the key `NAME.key`, of an authority of this name or signed by `authority`.
fn certificate(directory: &Path, name: &str, authority: Option<&str>, names: &str) {
    let mut openssl = Command::new("openssl");
    openssl.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]);
    openssl.args(["-subj", &format!("/CN={name}"), "-out", &format!("{name}.pem"), "-keyout", &format!("{name}.key")]);
    if let Some(authority) = authority {
        openssl.args(["-CA", &format!("{authority}.pem"), "-CAkey", &format!("{authority}.key")]);
        openssl.args(["-addext", "basicConstraints=critical,CA:FALSE", "-addext", &format!("subjectAltName={names}")]);
    }
    let made = openssl.current_dir(directory).output().expect("openssl is installed");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// Makes the files of a server with TLS. Returns its options.
fn with_tls(directory: &Path) -> Vec<String> {
    certificate(directory, "authority", None, "");
    certificate(directory, "stranger", None, "");
    certificate(directory, "server", Some("authority"), "DNS:db.example,IP:127.0.0.1");
    certificate(directory, "client", Some("authority"), "DNS:client.example");
    let file = |name: &str| directory.join(name).display().to_string();
    vec![
        format!("--ssl-ca={}", file("authority.pem")),
        format!("--ssl-cert={}", file("server.pem")),
        format!("--ssl-key={}", file("server.key")),
    ]
}

/// Returns the URL of `user`, who has all privileges and is identified in this way.
async fn account(server: &MariaDb, user: &str, identified: &str) -> String {
    let mut conn = server.connect().await;
    conn.query_drop(format!("CREATE USER '{user}'@'%' {identified}")).await.unwrap();
    conn.query_drop(format!("GRANT ALL ON *.* TO '{user}'@'%'")).await.unwrap();
    conn.query_drop("CREATE DATABASE IF NOT EXISTS site").await.unwrap();
    format!("mysql://{user}:{PASSWORD}@127.0.0.1:{}/site", server.port())
}

#[tokio::test]
async fn tls_checks_the_servers_certificate_unless_told_otherwise() {
    if MariaDb::is_mysql() {
        return eprintln!("left out: for MariaDB's plug-ins and options");
    }
    let server = MariaDb::start_with(with_tls).await;
    let file = |name: &str| server.directory().join(name).display().to_string();
    let (authority, stranger) = (file("authority.pem"), file("stranger.pem"));
    let (certificate, key) = (file("client.pem"), file("client.key"));
    let url = account(&server, "secured", "IDENTIFIED BY 'p@ss' REQUIRE SSL").await;
    refused(&url, "Access denied").await;
    for options in [
        format!("ssl_ca={authority}"),
        format!("require_ssl=true&verify_ca=true&verify_identity=true&ssl_ca={authority}"),
        format!("ssl_ca={authority}&ssl_hostname=db.example"),
        format!("ssl_ca={authority}&built_in_roots=true&compression=fast"),
        "require_ssl=true&verify_ca=false".to_owned(),
    ] {
        accepted(&format!("{url}?{options}")).await;
    }
    for (options, why) in [
        ("require_ssl=true".to_owned(), "UnknownIssuer; see ssl_ca"),
        (format!("ssl_ca={stranger}"), "see ssl_ca"),
        (format!("ssl_ca={authority}&ssl_hostname=other.example"), "not valid for name"),
    ] {
        refused(&format!("{url}?{options}"), why).await;
    }
    let localhost = url.replace("127.0.0.1", "localhost");
    refused(&format!("{localhost}?ssl_ca={authority}"), "ssl_hostname").await;
    accepted(&format!("{localhost}?ssl_ca={authority}&ssl_hostname=db.example")).await;

    let url = account(&server, "certified", "IDENTIFIED BY 'p@ss' REQUIRE X509").await;
    refused(&format!("{url}?ssl_ca={authority}"), "Access denied").await;
    accepted(&format!("{url}?ssl_ca={authority}&ssl_cert={certificate}&ssl_key={key}")).await;
    server_is_dropped(server).await;
}

/// Not on the runtime's thread, which would wait for the server's end.
async fn server_is_dropped(mut server: MariaDb) {
    server.kill().await;
}

#[tokio::test]
async fn accounts_of_every_plug_in_work_or_say_why_not() {
    if MariaDb::is_mysql() {
        return eprintln!("left out: for MariaDB's plug-ins and options");
    }
    let server = MariaDb::start_with(|_| vec!["--plugin-maturity=experimental".to_owned()]).await;
    let mut admin = server.connect().await;
    for library in ["auth_ed25519", "auth_pam_v1"] {
        admin.query_drop(format!("INSTALL SONAME '{library}'")).await.unwrap();
    }
    for (user, identified) in [
        ("edward", "IDENTIFIED VIA ed25519 USING PASSWORD('p@ss')"),
        ("native", "IDENTIFIED VIA mysql_native_password USING PASSWORD('p@ss')"),
        ("either", "IDENTIFIED VIA unix_socket OR ed25519 USING PASSWORD('p@ss')"),
    ] {
        let url = account(&server, user, identified).await;
        accepted(&url).await;
        refused(&url.replace(PASSWORD, "wrong"), "Access denied").await;
        refused(&url.replace(&format!(":{PASSWORD}"), ""), "Access denied").await;
        refused(&format!("{url}?require_ssl=true"), "the server does not offer TLS").await;
    }
    let url = account(&server, "open", "").await;
    accepted(&url.replace(&format!(":{PASSWORD}"), "")).await;
    let url = account(&server, "pam", "IDENTIFIED VIA pam").await;
    refused(&url, r#"authentication plug-in "dialog" is not supported"#).await;
    let url = account(&server, "old", "IDENTIFIED VIA mysql_old_password USING '0123456789abcdef'").await;
    refused(&url, "has a password in the old format").await;

    let whoami = String::from_utf8(Command::new("id").arg("-un").output().unwrap().stdout).unwrap();
    admin.query_drop("DROP USER IF EXISTS root@localhost").await.unwrap();
    let url = account(&server, whoami.trim(), "IDENTIFIED VIA unix_socket").await;
    let socket = server.socket().display().to_string();
    accepted(&format!("{url}?socket={socket}")).await;
    accepted(&format!("mysql://{}@localhost/site?socket={socket}", whoami.trim())).await;
    refused(&url, "Access denied").await;
    refused(&format!("{url}?socket=/nowhere/mysqld.sock"), "/nowhere/mysqld.sock: No such file").await;
    server_is_dropped(server).await;
}

#[tokio::test]
async fn every_option_of_the_url_works_on_a_server() {
    let url = MariaDb::shared().await.database().await;
    for option in [
        "compression=fast",
        "compression=on",
        "compression=best",
        "compression=off",
        "tcp_keepalive=1000",
        "tcp_nodelay=false",
        "max_allowed_packet=1024",
        "wait_timeout=60",
        "stmt_cache_size=0",
        "prefer_socket=false",
        "enable_cleartext_plugin=true",
        "require_ssl=false",
    ] {
        accepted(&format!("{url}?{option}")).await;
    }
    accepted(&url.replace("mysql://", "mariadb://")).await;
}

/// Returns a packet of the protocol.
fn packet(number: u8, payload: &[u8]) -> Vec<u8> {
    let size = (payload.len() as u32).to_le_bytes();
    [&size[..3], &[number], payload].concat()
}

/// Returns the greeting of a server whose accounts use this plug-in.
fn greeting(plugin: &str) -> Vec<u8> {
    let capabilities: u32 = 0x000f_ffff & !0x0820;
    let (low, high) = (capabilities as u16, (capabilities >> 16) as u16);
    let mut greeting = b"\x0a8.0.99\0\x01\0\0\0abcdefgh\0".to_vec();
    greeting.extend(low.to_le_bytes());
    greeting.extend([45, 2, 0]);
    greeting.extend(high.to_le_bytes());
    greeting.extend([21, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    greeting.extend(b"ijklmnopqrst\0");
    greeting.extend(plugin.as_bytes());
    greeting.push(0);
    packet(0, &greeting)
}

/// Serves one client: sends each of these after the client has sent something, and then closes.
async fn say(mut client: TcpStream, lines: Vec<Vec<u8>>) {
    let mut buffer = [0; 4096];
    for line in lines {
        if client.write_all(&line).await.is_err() || !matches!(client.read(&mut buffer).await, Ok(1..)) {
            return;
        }
    }
}

#[tokio::test]
async fn servers_that_speak_nonsense_are_errors_and_no_panic() {
    let sha2 = || greeting("caching_sha2_password");
    for (number, lines) in [
        vec![],
        vec![b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()],
        vec![vec![0; 64]],
        vec![packet(0, b"")],
        vec![packet(0, b"\x0a")],
        vec![packet(0, b"\x0anonsense\0\x01")],
        vec![packet(0, b"\xff\x10\x04Too many connections")],
        vec![sha2(), packet(2, b"")],
        vec![sha2(), packet(2, b"\x01")],
        // Asked for the server's key, it sends nothing.
        vec![sha2(), packet(2, b"\x01\x04"), packet(4, b"")],
        vec![sha2(), packet(2, b"\x01\x04"), packet(4, b"\x01no key")],
        vec![sha2(), packet(2, b"\xfe")],
        vec![sha2(), packet(2, b"\xfemysql_old_password\0")],
        vec![sha2(), packet(2, b"\xfesha256_password\0abcdefghijklmnopqrst\0")],
        vec![sha2(), packet(2, b"\xfeclient_ed25519\0")],
        vec![sha2(), packet(2, b"\xfeparsec\0"), packet(4, b"P\xff")],
        vec![sha2(), packet(2, b"\xfeparsec\0abcdefghijklmnopqrstabcdefghijkl"), packet(4, b"P\0abcdefghijklmnopqr")],
        vec![sha2(), packet(2, b"\0\0\0\0\0\0\0"), packet(1, b"")],
    ]
    .into_iter()
    .enumerate()
    {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(say(client, lines.clone()));
            }
        });
        for user in ["site:secret", "site"] {
            let url = format!("mysql://{user}@127.0.0.1:{port}/site");
            // Twice, since the first failure must not damage the pool.
            let pool = pool::open(&url).await.unwrap();
            for _ in 0..2 {
                let error = pool.prepare().await.expect_err("no server").to_string();
                assert!(!error.contains("secret"), "{number}: {error}");
            }
            let sessions = SessionTable::new(&url, "sid", "SELECT 1 FROM DUAL WHERE '' = ?").unwrap();
            for _ in 0..2 {
                sessions.check().await.expect_err("no server");
            }
        }
        server.abort();
    }
}
