//! Who may use the page: keys, sessions, proxies and the page without a key.

use std::fs;

use http::StatusCode;
use serde_json::{Value, json};
use tests::{WsServer, client::soon, http_client};
use tokio::net::TcpStream;

use super::{Admin, KEY, Signal, state};

#[tokio::test]
async fn nobody_gets_in_without_the_key() {
    let admin = Admin::run(&["--admin-key", KEY]).await;
    for (method, path) in [
        ("GET", "/admin/api/state"),
        ("GET", "/admin/api/log"),
        ("GET", "/admin/api/cluster"),
        ("GET", "/admin/api/connections"),
        ("GET", "/admin/api/config"),
        ("GET", "/admin/api/history"),
        ("GET", "/metrics"),
        ("POST", "/admin/api/stop"),
        ("POST", "/admin/api/restart"),
        ("POST", "/admin/api/close"),
        ("POST", "/admin/api/publish"),
        ("POST", "/admin/logout"),
    ] {
        let answer = admin.ask(method, path, &[], "").await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}: {}", answer.text);
        assert_eq!(answer.header("www-authenticate"), Some("Bearer"), "{path}");
        let cookie = admin.ask(method, path, &[("cookie", "ws_server_admin=1")], "").await;
        assert_eq!(cookie.status, StatusCode::UNAUTHORIZED, "{path}");
    }
    let wrong = admin.ask("GET", "/admin/api/state", &[("authorization", "Bearer wrong")], "").await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    admin.server.logged("was asked with a wrong key").await;
    admin.is("running").await;

    // What a load balancer asks is open, and so are the page's own files.
    assert_eq!(admin.ask("GET", "/health", &[], "").await.status, StatusCode::OK);
    for name in ["", "page.js", "page.css", "charts.js", "picture.js", "dom.js", "log.js"] {
        let file = &*format!("/admin/{name}");
        let answer = admin.ask("GET", file, &[], "").await;
        assert_eq!(answer.status, StatusCode::OK, "{file}");
        let policy = answer.header("content-security-policy").expect("a policy");
        assert!(policy.starts_with("default-src 'none'; script-src 'self';"), "{policy}");
        assert!(!policy.contains("unsafe") && policy.contains("frame-ancestors 'none'"), "{policy}");
        assert_eq!(answer.header("x-frame-options"), Some("DENY"));
        assert!(!answer.text.contains("style=") && !answer.text.contains("innerHTML"), "{file}");
    }
    for path in ["/", "/admin"] {
        let answer = admin.ask("GET", path, &[], "").await;
        assert_eq!((answer.status, answer.header("location")), (StatusCode::SEE_OTHER, Some("admin/")), "{path}");
    }
    let log = admin.server.end().await;
    assert!(!log.contains("Bearer"), "{log}");
}

#[tokio::test]
async fn a_session_is_a_cookie_and_a_token() {
    let admin = Admin::run(&["--admin-key", KEY]).await;
    let json = ("content-type", "application/json");
    let key = json!({ "key": KEY }).to_string();
    // A form of another site's page cannot send JSON.
    let form = admin.ask("POST", "/admin/login", &[("content-type", "text/plain")], &key).await;
    assert_eq!(form.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    let secure = admin.ask("POST", "/admin/login", &[json, ("x-forwarded-proto", "https")], &key).await;
    assert!(secure.header("set-cookie").unwrap().ends_with("; Secure"));
    let answer = admin.ask("POST", "/admin/login", &[json], &key).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    let cookie = answer.header("set-cookie").expect("a cookie");
    for part in ["Path=/admin", "HttpOnly", "SameSite=Strict", "Max-Age="] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Secure"), "{cookie}");
    let cookie = ("cookie", cookie.split(';').next().unwrap());
    let told: Value = serde_json::from_str(&answer.text).unwrap();
    let session: Value =
        serde_json::from_str(&admin.ask("GET", "/admin/api/session", &[cookie], "").await.text).unwrap();
    assert_eq!(session["csrf"], told["csrf"]);
    let token = ("x-csrf-token", told["csrf"].as_str().expect("a token"));

    assert_eq!(admin.ask("GET", "/admin/api/state", &[cookie], "").await.status, StatusCode::OK);
    let order = json!({ "user": "nobody" }).to_string();
    for headers in [&[cookie][..], &[cookie, ("x-csrf-token", "wrong")]] {
        let answer = admin.ask("POST", "/admin/api/close", headers, &order).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text);
    }
    let closed = admin.ask("POST", "/admin/api/close", &[cookie, token], &order).await;
    assert_eq!(closed.status, StatusCode::OK, "{}", closed.text);
    assert_eq!(admin.ask("POST", "/admin/logout", &[cookie, token], "").await.status, StatusCode::OK);
    assert_eq!(admin.ask("GET", "/admin/api/state", &[cookie], "").await.status, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn the_page_trusts_the_proxies_that_sighup_names() {
    for command in ["run", "supervise"] {
        let directory = state();
        let file = directory.path().join("ws-server.toml");
        fs::write(&file, "trusted_proxy = [\"192.0.2.1\"]\n").unwrap();
        let mut started = WsServer::command(directory.path());
        started.args([command, "--listen", "127.0.0.1:0", "--pool", "memory:", "--admin", "127.0.0.1:0"]);
        started.args(["--admin-key", KEY]).env("WS_SERVER_CONFIG", &file);
        let admin = Admin::of(started, directory).await;
        admin.is("running").await;
        let key = json!({ "key": KEY }).to_string();
        let is_secure = async || {
            let headers = [("content-type", "application/json"), ("x-forwarded-proto", "https")];
            let answer = admin.ask("POST", "/admin/login", &headers, &key).await;
            answer.header("set-cookie").expect("a cookie").ends_with("; Secure")
        };
        assert!(!is_secure().await, "{command}");
        fs::write(&file, "trusted_proxy = [\"127.0.0.1\"]\n").unwrap();
        admin.server.signal(Signal::HUP);
        admin.server.logged("SIGHUP: changed trusted_proxy").await;
        assert!(is_secure().await, "{command}");
    }
}

#[tokio::test]
async fn wrong_keys_make_their_address_wait_and_no_other() {
    let admin = Admin::run(&["--admin-key", KEY]).await;
    // As nginx on this machine tells it.
    let try_key = async |key: &str, address: &str| {
        let headers = [("authorization", format!("Bearer {key}")), ("x-forwarded-for", address.to_owned())];
        let headers = headers.each_ref().map(|(name, value)| (*name, value.as_str()));
        admin.ask("GET", "/admin/api/state", &headers, "").await
    };
    // The fifth of quick ones waits. The time of a busy machine gives some back.
    let mut refused = 0;
    let answer = loop {
        let answer = try_key("wrong", "192.0.2.1").await;
        if answer.status != StatusCode::UNAUTHORIZED {
            break answer;
        }
        refused += 1;
        assert!(refused < 100, "wrong keys never wait");
    };
    assert!(refused >= 4, "{refused}");
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS, "{}", answer.text);
    assert!(answer.header("retry-after").unwrap().parse::<u64>().unwrap() > 0);
    assert_eq!(try_key("wrong", "192.0.2.2").await.status, StatusCode::UNAUTHORIZED, "another address");
    // Wrong keys from a network do not keep the right key from the same network out.
    assert_eq!(try_key(KEY, "192.0.2.1").await.status, StatusCode::OK);
    let log = admin.server.end().await;
    assert_eq!(log.matches("was asked with a wrong key").count(), 1, "{log}");
}

#[tokio::test]
async fn connections_without_the_key_keep_nobody_out() {
    let admin = Admin::run(&["--admin-key", KEY]).await;
    let mut strangers = Vec::new();
    for _ in 0..200 {
        strangers.push(TcpStream::connect(admin.address).await.unwrap());
    }
    admin.is("running").await;
    // The oldest one made room.
    let mut oldest = strangers.swap_remove(0);
    assert_eq!(soon(tokio::io::AsyncReadExt::read(&mut oldest, &mut [0])).await.unwrap(), 0);
    let answer = admin.ask("GET", "/health", &[], "").await;
    assert_eq!((answer.status, answer.header("connection")), (StatusCode::OK, Some("close")));
}

#[tokio::test]
async fn without_a_key_the_page_is_for_this_machine_only() {
    let admin = Admin::run(&[]).await;
    admin.server.logged("every user of this machine may use it").await;
    assert_eq!(admin.ask("GET", "/admin/api/state", &[], "").await.status, StatusCode::OK);
    assert_eq!(
        admin.ask("POST", "/admin/api/stop", &[], "").await.status,
        StatusCode::FORBIDDEN,
        "another site's page"
    );
    // Another site's name may lead to this machine.
    for path in ["/admin/api/state", "/admin/api/session", "/admin/", "/health", "/metrics", "/nothing"] {
        let mut stream = TcpStream::connect(admin.address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n");
        tokio::io::AsyncWriteExt::write_all(&mut stream, request.as_bytes()).await.unwrap();
        let answer = soon(http_client::answer(stream)).await.unwrap();
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}: {}", answer.text);
    }
    let token: Value = serde_json::from_str(&admin.ask("GET", "/admin/api/session", &[], "").await.text).unwrap();
    let token = [("x-csrf-token", token["csrf"].as_str().unwrap())];
    assert_eq!(admin.ask("POST", "/admin/api/stop", &token, "").await.status, StatusCode::ACCEPTED);
}

#[tokio::test]
async fn a_page_that_is_open_to_the_world_or_has_a_weak_key_is_refused() {
    let state = state();
    for (arguments, says) in [
        (&["--admin", "0.0.0.0:0"][..], "--admin 0.0.0.0:0 is open to other machines: give --admin-key"),
        (&["--admin", "[::]:0"], "is open to other machines"),
        (&["--admin", "127.0.0.1:0", "--admin-key", "short"], "--admin-key has 5 bytes, and needs at least 16"),
        (&["--admin", "127.0.0.1:0", "--admin-key", "................"], "--admin-key is too simple"),
        (&["--admin", "nowhere"], "--admin \"nowhere\" is no HOST:PORT"),
        (&["--admin-key", KEY], "--admin-key needs --admin HOST:PORT"),
        (&["--metrics-open"], "--metrics-open needs --admin HOST:PORT"),
    ] {
        for command in ["run", "supervise"] {
            let arguments = [&[command, "--listen", "127.0.0.1:0", "--pool", "memory:"], arguments].concat();
            let output = WsServer::run(state.path(), &arguments).await;
            let log = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {log}");
            assert!(log.starts_with("error: ") && log.trim_end().lines().count() == 1, "{log}");
            assert!(log.contains(says), "{arguments:?}: {log}");
        }
    }
}
