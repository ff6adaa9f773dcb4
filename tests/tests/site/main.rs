//! The site of `examples/site` as it runs: nginx with its real configuration, PHP, MariaDB and two `ws-server`
//! processes. The tests check what a browser can do through nginx, and what nginx refuses.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use futures_util::StreamExt;
use http::StatusCode;
use mysql_async::{Conn, Opts, prelude::Queryable};
use serde_json::json;
use tempfile::TempDir;
use tests::{
    MariaDb, WsServer,
    client::{Client, soon},
    http_client::{self, Answer},
};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpSocket, TcpStream},
    process::{Child, Command},
};
use tokio_tungstenite::tungstenite::{self, Message, client::IntoClientRequest};

mod button;
mod comments;

const PUBLISH_KEY: &str = "a key that only the site and its ws-servers have";
const BACKEND_KEY: &str = "a key of the requests of the ws-servers to the site";
const JWT_SECRET: &str = "a secret with which the site signs its tokens";
/// The key of the site's encrypted cookies.
const SITE_KEY: &str = "base64:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
/// Number of ports that are tried for nginx, which cannot pick one itself, and for PHP, which the nodes have to know.
const PORTS: usize = 5;
/// The visitors' address. All of 127.0.0.0/8 is this machine, and nginx can distinguish the addresses.
const HOME: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// How the nodes learn who a client is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Login {
    /// They read the table of sessions.
    Table,
    /// They ask the site, whose cookies are encrypted.
    Cookie,
    /// The page brings a token.
    Token,
}

impl Login {
    fn flags(self) -> Vec<&'static str> {
        let groups = ["--groups-query", "SELECT name FROM memberships WHERE user = ?"];
        let query = "SELECT user, expires FROM sessions WHERE id = :id AND ip = :ip";
        match self {
            Self::Table => [&["--session-cookie", "site_session", "--session-query", query], &groups[..]].concat(),
            Self::Cookie => vec!["--backend-connect"],
            Self::Token => vec!["--jwt-secret", JWT_SECRET],
        }
    }

    /// The value of `SITE_LOGIN`.
    fn name(self) -> &'static str {
        match self {
            Self::Table => "table",
            Self::Cookie => "cookie",
            Self::Token => "token",
        }
    }
}

/// The whole site, in a database of its own. Its processes end with the thread of the test that started it.
struct Site {
    address: SocketAddr,
    servers: [WsServer; 2],
    /// The address of PHP without nginx.
    pages: SocketAddr,
    _php: Process,
    _nginx: Process,
    directory: TempDir,
    /// The URL of its database.
    database: String,
}

impl Site {
    async fn start() -> Self {
        Self::with(Login::Table, &[]).await
    }

    /// Starts the site with these arguments for PHP.
    async fn with(login: Login, arguments: &[&str]) -> Self {
        let directory = tempfile::Builder::new().prefix("site-").tempdir().unwrap();
        let mariadb = MariaDb::shared().await;
        for _ in 0..PORTS {
            let database = mariadb.database().await;
            let mut conn = Conn::new(Opts::from_url(&database).unwrap()).await.unwrap();
            conn.query_drop(fs::read_to_string(site().join("schema.sql")).unwrap()).await.unwrap();
            conn.disconnect().await.unwrap();

            // The nodes and PHP have to know each other's addresses.
            let pages = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
            let start = async || ws_server(directory.path(), &database, login, pages).await;
            let servers = [start().await, start().await];
            for server in &servers {
                server.ready().await;
            }
            let [one, two] = [servers[0].address(), servers[1].address()];

            let (_, name) = database.rsplit_once('/').unwrap();
            let mut php = Command::new("php");
            php.args(arguments)
                .args(["-S", &pages.to_string(), "-t"])
                .arg(site().join("public"))
                .env(
                    "SITE_DATABASE",
                    format!("mysql:host=127.0.0.1;port={};dbname={name};charset=utf8mb4", mariadb.port()),
                )
                .env("SITE_DATABASE_USER", MariaDb::USER)
                .env("SITE_DATABASE_PASSWORD", MariaDb::PASSWORD)
                .env("SITE_LOGIN", login.name())
                .env("SITE_KEY", SITE_KEY)
                .env("WS_SERVERS", format!("http://{one} http://{two}"))
                .env("WS_SERVER_PUBLISH_KEY", PUBLISH_KEY)
                .env("WS_SERVER_BACKEND_KEY", BACKEND_KEY)
                .env("WS_SERVER_JWT_SECRET", JWT_SECRET)
                // The node has the environment of PHP, and refuses a key of a backend without the backend.
                .env("WS_SUPERVISE", format!("{} --backend http://{pages}/", button::supervise(one)))
                .env("WS_LOG", directory.path().join("supervisor.log"));
            let php = match Process::start(&php, "Development Server (http://").await {
                Ok((php, _)) => php,
                // Another process has taken the port.
                Err(log) if log.contains("Address already in use") => continue,
                Err(log) => panic!("PHP does not start:\n{log}"),
            };

            let configuration = fs::read_to_string(site().join("nginx.conf")).unwrap();
            let configuration = replaced(&configuration, "127.0.0.1:9001", one);
            let configuration = replaced(&configuration, "127.0.0.1:9002", two);
            let configuration = replaced(&configuration, "127.0.0.1:9000", pages);
            let configuration =
                replaced(&configuration, "root public;", format!("root {};", site().join("public").display()));
            let (nginx, address) = nginx(directory.path(), &configuration).await;
            return Self { address, servers, pages, _php: php, _nginx: nginx, directory, database };
        }
        panic!("{PORTS} ports were taken one after the other");
    }

    /// Returns a visitor at this address.
    fn visitor(&self, from: Ipv4Addr) -> Visitor {
        Visitor { site: self.address, from, cookie: None }
    }

    /// Returns a visitor at home who has signed in.
    async fn signed_in(&self, user: &str) -> Visitor {
        let mut visitor = self.visitor(HOME);
        visitor.sign_in(user).await;
        visitor
    }
}

/// A visitor of the site: an address, and a session once signed in. It only talks to nginx.
#[derive(Clone)]
struct Visitor {
    site: SocketAddr,
    from: Ipv4Addr,
    cookie: Option<String>,
}

impl Visitor {
    async fn sign_in(&mut self, user: &str) {
        let answer = self.post("/login.php", &[("user", user), ("password", "example")]).await;
        assert_eq!(answer.status, StatusCode::SEE_OTHER, "{}", answer.text);
        let (cookie, _) = answer.header("set-cookie").expect("a cookie").split_once(';').unwrap();
        self.cookie = Some(cookie.to_owned());
    }

    async fn publish(&self, to: &str, text: &str) {
        let answer = self.post("/publish.php", &[("to", to), ("text", text)]).await;
        assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    }

    async fn try_publish(&self, to: &str, text: &str) -> StatusCode {
        self.post("/publish.php", &[("to", to), ("text", text)]).await.status
    }

    async fn post(&self, path: &str, form: &[(&str, &str)]) -> Answer {
        // The tests send nothing that has to be escaped.
        let body = form.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&");
        let form = "content-type: application/x-www-form-urlencoded";
        self.request(&format!("POST {path} HTTP/1.0\r\n{form}\r\ncontent-length: {}\r\n", body.len()), &body).await
    }

    async fn get(&self, path: &str) -> Answer {
        self.request(&format!("GET {path} HTTP/1.0\r\n"), "").await
    }

    async fn request(&self, head: &str, body: &str) -> Answer {
        let headers: String = self.headers().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let mut stream = self.dial().await;
        soon(async {
            stream.write_all(format!("{head}host: {}\r\n{headers}\r\n{body}", self.site).as_bytes()).await.unwrap();
            http_client::answer(stream).await.unwrap()
        })
        .await
    }

    /// Opens a WebSocket. Fails with the status if it is refused.
    async fn try_connect(&self, headers: &[(&str, &str)]) -> Result<Client, StatusCode> {
        let mut request = format!("ws://{}/WebSockets", self.site).into_client_request().unwrap();
        for (name, value) in self.headers().chain(headers.iter().copied()) {
            let name: http::HeaderName = name.parse().unwrap();
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        match soon(tokio_tungstenite::client_async(request, self.dial().await)).await {
            Ok((socket, _)) => Ok(Client(socket)),
            Err(tungstenite::Error::Http(response)) => Err(response.status()),
            Err(error) => panic!("{error}"),
        }
    }

    /// Opens a WebSocket from a page of the site.
    async fn connect(&self) -> Client {
        let origin = format!("http://{}", self.site);
        self.try_connect(&[("origin", &origin)]).await.expect("no refusal")
    }

    /// Opens a WebSocket, which must be known to be the user's.
    async fn connect_known(&self) -> Client {
        let mut client = self.connect().await;
        client.send("Client/authentication", json!([])).await;
        client.authenticated().await;
        client
    }

    /// Opens a WebSocket, which must be a guest's.
    async fn connect_as_guest(&self) -> Client {
        let mut client = self.connect().await;
        client.send("Client/authentication", json!([])).await;
        client.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
        client
    }

    fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        self.cookie.as_deref().map(|cookie| ("cookie", cookie)).into_iter()
    }

    async fn dial(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind((self.from, 0).into()).unwrap();
        soon(socket.connect(self.site)).await.unwrap()
    }
}

/// A process that is killed when this is dropped, or when the test's thread ends in any way.
struct Process(#[expect(dead_code, reason = "its drop kills the process")] Child);

impl Process {
    /// Starts a process and waits for a line on its standard error that contains this text. Fails with all lines if
    /// none does.
    async fn start(command: &Command, text: &str) -> Result<(Self, String), String> {
        let mut child =
            tied(command).stdin(Stdio::null()).stderr(Stdio::piped()).spawn().expect("setpriv (util-linux)");
        let mut log = BufReader::new(child.stderr.take().expect("piped")).lines();
        let mut came = String::new();
        while let Some(line) = soon(log.next_line()).await.expect("text") {
            if line.contains(text) {
                // Read to its end, because the process would block otherwise.
                tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
                return Ok((Self(child), line));
            }
            came.extend([&line, "\n"]);
        }
        Err(came)
    }
}

/// Returns the command with a process that the kernel kills when the thread that starts it is gone, because a killed
/// test drops nothing.
fn tied(command: &Command) -> Command {
    let command = command.as_std();
    let mut tied = Command::new("setpriv");
    tied.args(["--pdeathsig", "KILL", "--"]).arg(command.get_program()).args(command.get_args()).kill_on_drop(true);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => tied.env(name, value),
            None => tied.env_remove(name),
        };
    }
    tied
}

/// Starts a `ws-server` with the flags that docs/site.md shows. PHP is at this address.
async fn ws_server(state: &Path, database: &str, login: Login, pages: SocketAddr) -> WsServer {
    let mut command = WsServer::command(state);
    command
        .args(["run", "--listen", "127.0.0.1:0", "--outbox", "--backend"])
        .arg(format!("http://{pages}/backend.php"))
        .args(login.flags())
        .env("WS_SERVER_POOL", database)
        .env("WS_CLUSTER_KEY", "the key of the cluster: 32 bytes or more")
        .env("WS_SERVER_BACKEND_KEY", BACKEND_KEY)
        .env("WS_SERVER_PUBLISH_KEY", PUBLISH_KEY);
    let mut tied = tied(&command);
    tied.stdin(Stdio::null());
    WsServer::spawn(tied).await
}

/// Starts nginx with this configuration at a free port.
async fn nginx(directory: &Path, configuration: &str) -> (Process, SocketAddr) {
    fs::create_dir(directory.join("run")).unwrap();
    for _ in 0..PORTS {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let file = directory.join("nginx.conf");
        fs::write(&file, replaced(configuration, "listen 127.0.0.1:8000;", format!("listen {address};"))).unwrap();
        let mut nginx = Command::new("nginx");
        // On Debian it is outside of an ordinary user's PATH.
        nginx.env("PATH", format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default()));
        nginx.arg("-p").arg(directory).arg("-c").arg(file);
        // One process, which starts no other and runs as the user of the test.
        nginx.args(["-e", "stderr", "-g", "daemon off; master_process off;"]);
        // Its text when it listens.
        match Process::start(&nginx, " OS: ").await {
            Ok((process, _)) => return (process, address),
            // Another process has taken the port.
            Err(log) if log.contains("Address already in use") => {}
            Err(log) => panic!("nginx does not start:\n{log}"),
        }
    }
    panic!("{PORTS} ports were taken one after the other");
}

/// Returns the text with one part of it replaced, which must occur.
fn replaced(text: &str, part: &str, by: impl ToString) -> String {
    assert!(text.contains(part), "{part} in nginx.conf");
    text.replace(part, &by.to_string())
}

/// Returns the directory of the example.
fn site() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/site").canonicalize().expect("the example is there")
}

#[tokio::test]
async fn a_page_publishes_to_users_and_groups_of_the_site() {
    let site = Site::start().await;
    let (ann, bob) = (site.signed_in("ann").await, site.signed_in("bob").await);
    let page = ann.get("/").await;
    assert!(page.text.contains("Signed in as <b>ann</b>"), "{}", page.text);
    assert!(ann.get("/ws-cluster.js").await.header("content-type").unwrap().starts_with("text/javascript"));

    // Nginx chooses the servers.
    let mut tabs = [ann.connect_known().await, ann.connect_known().await];
    let mut bobs = [bob.connect_known().await, bob.connect_known().await];
    ann.publish("user:bob", "one").await;
    ann.publish("group:editors", "two").await;
    bob.publish("registered", "three").await;
    for tab in &mut bobs {
        tab.expect("news/new", json!(["ann", "one"])).await;
        tab.expect("news/new", json!(["bob", "three"])).await;
    }
    for tab in &mut tabs {
        tab.expect("news/new", json!(["ann", "two"])).await;
        tab.expect("news/new", json!(["bob", "three"])).await;
    }

    let refused = ann.post("/publish.php", &[("to", "nobody"), ("text", "x")]).await;
    assert_eq!(refused.status, StatusCode::BAD_GATEWAY);
    assert!(refused.text.starts_with("400 "), "{}", refused.text);
    assert_eq!(site.visitor(HOME).post("/publish.php", &[("to", "all")]).await.status, StatusCode::FORBIDDEN);
}

#[tokio::test]
async fn only_clients_get_through_nginx() {
    let site = Site::start().await;
    let visitor = site.visitor(HOME);
    let order = json!({ "action": "news/new", "to": "all" }).to_string();
    let key = format!("authorization: Bearer {PUBLISH_KEY}\r\ncontent-length: {}\r\n", order.len());
    for path in ["/_publish", "/_close", "/_cluster/v1", "/ready", "/health", "/WebSockets/../_publish", "//_publish"] {
        let answer = visitor.request(&format!("POST {path} HTTP/1.0\r\n{key}"), &order).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{path}: {}", answer.text);
        assert!(answer.text.contains("nginx"), "{path} is answered by another: {}", answer.text);
    }
    for path in ["/site.php", "/cookie.php", "/../site.php", "/backend.php", "/schema.sql", "/nginx.conf"] {
        assert!(!visitor.get(path).await.status.is_success(), "{path}");
    }
    let link = "GET /_cluster/v1 HTTP/1.1\r\nconnection: upgrade, close\r\nupgrade: websocket\r\n\
                sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    assert_eq!(visitor.request(link, "").await.status, StatusCode::NOT_FOUND);
    // At its own port, the server takes the same order.
    let bearer = format!("Bearer {PUBLISH_KEY}");
    let (status, text) = site.servers[0].http("POST", "/_publish", &[("authorization", &bearer)], &order).await;
    assert_eq!(status, StatusCode::NO_CONTENT, "{text}");
}

#[tokio::test]
async fn signing_out_closes_the_connections_of_the_session() {
    let site = Site::start().await;
    let (ann, phone) = (site.signed_in("ann").await, site.signed_in("ann").await);
    let mut tabs = [ann.connect_known().await, ann.connect_known().await];
    let mut other = phone.connect_known().await;
    assert_eq!(ann.post("/logout.php", &[]).await.status, StatusCode::SEE_OTHER);
    for tab in &mut tabs {
        tab.expect("Server/close", json!([])).await;
        tab.closed().await;
    }
    assert!(!ann.get("/").await.text.contains("Signed in"));
    // The user's other device stays connected until the user is signed out everywhere.
    phone.publish("user:ann", "still here").await;
    other.expect("news/new", json!(["ann", "still here"])).await;
    let again = site.signed_in("ann").await;
    assert_eq!(again.post("/logout.php", &[("everywhere", "1")]).await.status, StatusCode::SEE_OTHER);
    other.expect("Server/close", json!([])).await;
    other.closed().await;
}

#[tokio::test]
async fn a_session_counts_at_its_own_address_and_origin_only() {
    let site = Site::start().await;
    let ann = site.signed_in("ann").await;
    let mut known = ann.connect_known().await;

    // Nginx sets the address, whatever the client sends.
    let thief = Visitor { from: ELSEWHERE, ..ann.clone() };
    thief.connect_as_guest().await;
    let said = [("x-forwarded-for", "127.0.0.2"), ("x-real-ip", "127.0.0.2")];
    let mut liar = thief.try_connect(&said).await.expect("no refusal");
    liar.send("Client/authentication", json!([])).await;
    liar.expect("Client/authentication:error", json!([403, "Forbidden"])).await;

    let wrong = Visitor { cookie: Some("site_session=0123456789abcdef0123456789abcdef".into()), ..ann.clone() };
    let mut guest = wrong.connect_as_guest().await;
    site.visitor(HOME).connect_as_guest().await;
    ann.publish("registered", "for members").await;
    ann.publish("all", "for all").await;
    guest.expect("news/new", json!(["ann", "for all"])).await;
    known.expect("news/new", json!(["ann", "for members"])).await;

    let foreign = [("origin", "http://elsewhere.example")];
    assert_eq!(ann.try_connect(&foreign).await.err(), Some(StatusCode::FORBIDDEN));
    // Without its port, the site's host is another origin.
    assert_eq!(ann.try_connect(&[("origin", "http://127.0.0.1")]).await.err(), Some(StatusCode::FORBIDDEN));
}

#[tokio::test]
async fn a_client_finds_the_other_server_when_one_is_killed() {
    let mut site = Site::start().await;
    let ann = site.signed_in("ann").await;
    let mut tabs = Vec::new();
    for _ in 0..6 {
        tabs.push(ann.connect_known().await);
    }
    site.servers[0].kill().await;
    // The killed server is asked first, and the other one accepts.
    ann.publish("user:ann", "one").await;
    for tab in &mut tabs {
        match soon(tab.0.next()).await {
            Some(Ok(Message::Text(text))) => assert!(text.contains("one"), "{text}"),
            None | Some(Err(_) | Ok(Message::Close(_))) => *tab = ann.connect_known().await,
            other => panic!("{other:?}"),
        }
    }
    ann.publish("user:ann", "two").await;
    for tab in &mut tabs {
        tab.expect("news/new", json!(["ann", "two"])).await;
    }
    assert!(ann.get("/ws-cluster.js").await.status.is_success());
}

#[tokio::test]
async fn a_server_that_hangs_keeps_no_visitor_out() {
    let site = Site::start().await;
    let ann = site.signed_in("ann").await;
    // Its port still takes connections.
    site.servers[0].stop();
    for _ in 0..4 {
        assert!(ann.get("/ws-cluster.js").await.status.is_success());
    }
    let origin = format!("http://{}", site.address);
    let headers = [("origin", origin.as_str())];
    for _ in 0..4 {
        // Like the browser client, which drops a connection and tries again, but sooner.
        let connected = soon(async {
            loop {
                let attempt = ann.try_connect(&headers);
                if let Ok(Ok(client)) = tokio::time::timeout(Duration::from_secs(1), attempt).await {
                    break client;
                }
            }
        });
        drop(connected.await);
    }
    // By now the other server is the only node of its cluster, as soon as it is the master.
    soon(async { while ann.try_publish("user:ann", "one").await != StatusCode::OK {} }).await;
    // By now the pages know which server does not answer.
    ann.publish("user:ann", "two").await;
    ann.publish("user:ann", "three").await;
    site.servers[0].cont();
}

#[tokio::test]
async fn a_page_reports_a_malformed_message() {
    let site = Site::start().await;
    let ann = site.signed_in("ann").await;
    let latin = ann.post("/publish.php", &[("to", "all"), ("text", "caf%E9")]).await;
    assert_eq!(latin.status, StatusCode::BAD_GATEWAY);
    assert!(latin.text.contains("UTF-8"), "{}", latin.text);
    let mut tab = ann.connect_known().await;
    ann.publish("user:ann", "caf%C3%A9").await;
    tab.expect("news/new", json!(["ann", "café"])).await;
}

#[tokio::test]
async fn signing_out_works_without_a_ws_server() {
    let mut site = Site::start().await;
    let (ann, bob) = (site.signed_in("ann").await, site.signed_in("bob").await);
    for server in &mut site.servers {
        server.kill().await;
    }
    assert_eq!(ann.post("/logout.php", &[]).await.status, StatusCode::SEE_OTHER);
    assert_eq!(bob.post("/logout.php", &[("everywhere", "1")]).await.status, StatusCode::SEE_OTHER);
    for visitor in [&ann, &bob] {
        assert!(!visitor.get("/").await.text.contains("Signed in"));
    }
    let refused = site.signed_in("ann").await.post("/publish.php", &[("to", "all"), ("text", "x")]).await;
    assert_eq!(refused.status, StatusCode::BAD_GATEWAY);
    assert!(refused.text.starts_with("no ws-server answers"), "{}", refused.text);
}

#[tokio::test]
async fn an_address_in_a_header_counts_from_nginx_only() {
    let site = Site::start().await;
    let ann = site.signed_in("ann").await;
    assert!(ann.get("/").await.text.contains("Signed in"));
    // Another visitor, who reaches PHP without nginx and claims the address of the session.
    let thief = Visitor { site: site.pages, from: ELSEWHERE, ..ann.clone() };
    let lie = format!("GET / HTTP/1.0\r\nx-real-ip: {HOME}\r\n");
    assert!(!thief.request(&lie, "").await.text.contains("Signed in"));
    let home = Visitor { from: HOME, ..thief };
    assert!(home.get("/").await.text.contains("Signed in"));
}
