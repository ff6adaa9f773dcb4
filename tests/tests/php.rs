//! The PHP package of `clients/php`: its own tests, and the package with real `ws-server` processes.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use http::StatusCode;
use mysql_async::{Conn, Opts, prelude::Queryable};
use serde_json::{Value, json};
use tempfile::TempDir;
use tests::{
    MariaDb, WsServer,
    browser::Browser,
    client::{Client, soon},
    forwarder::Forwarder,
};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    process::{Child, Command},
};

const PUBLISH_KEY: &str = "a key that only the site and its ws-servers have";
const BACKEND_KEY: &str = "a key of the requests of the ws-servers to the site";
const JWT_SECRET: &str = "a secret of the tokens with 32 bytes or more";

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path).canonicalize().expect("it is there")
}

fn package() -> PathBuf {
    repository("clients/php")
}

/// A node with these flags, and PHP that knows it.
struct Node {
    server: WsServer,
    directory: TempDir,
}

impl Node {
    async fn start(flags: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut command = WsServer::command(directory.path());
        command.args(["run", "--listen", "127.0.0.1:0"]).args(flags);
        if !flags.contains(&"--pool") {
            command.args(["--pool", "memory:"]);
        }
        if flags.contains(&"--backend") {
            command.env("WS_SERVER_BACKEND_KEY", BACKEND_KEY);
        }
        command.env("WS_SERVER_PUBLISH_KEY", PUBLISH_KEY);
        command.env("WS_CLUSTER_KEY", "the key of the cluster: 32 bytes or more");
        let server = WsServer::spawn(command).await;
        server.ready().await;
        Self { server, directory }
    }

    async fn client(&self) -> Client {
        Client::connect(self.server.address(), &[]).await
    }

    fn url(&self) -> String {
        format!("http://{}", self.server.address())
    }

    /// Runs PHP code with the package. Returns what it prints, and the class and text of an exception.
    async fn php(&self, code: &str, variables: &[(&str, &str)]) -> String {
        let mut php = Command::new("php");
        // The functions that open URLs are disabled, and a proxy is set.
        php.args(["-d", "allow_url_fopen=0", "-d", "display_errors=stderr", "-r"]).arg(format!(
            "require '{}/autoload.php'; use WsCluster\\{{Client, Jwt, Message, Target}};
             try {{ {code} }} catch (Exception $error) {{ echo get_class($error), ': ', $error->getMessage(); }}",
            package().display()
        ));
        php.env("WS_SERVERS", self.url()).env("WS_SERVER_PUBLISH_KEY", PUBLISH_KEY);
        php.env("WS_SERVER_JWT_SECRET", JWT_SECRET).env("http_proxy", "http://127.0.0.1:1");
        php.env("TMPDIR", self.directory.path()).envs(variables.iter().copied());
        let output = soon(php.stdin(Stdio::null()).kill_on_drop(true).output()).await.expect("php");
        assert!(output.stderr.is_empty(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

#[tokio::test]
async fn the_tests_of_the_package_pass() {
    let mut php = Command::new("php");
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("WS_")) {
        php.env_remove(name);
    }
    php.arg(package().join("tests/run.php")).stdin(Stdio::null()).kill_on_drop(true);
    // Longer than a step of a test may take.
    let output = php.output().await.expect("php");
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

#[tokio::test]
async fn clients_get_arrays_as_php_encodes_them() {
    let node = Node::start(&[]).await;
    let mut client = node.client().await;
    let servers = format!("\n http://127.0.0.1:1/,\n\t{}/ \n", node.url());
    let key = format!("{PUBLISH_KEY}\n");
    for (details, expected) in [
        ("array_filter([1, null, 3])", json!([1, 3])),
        ("[]", json!([])),
        ("['id' => 7, 'price' => 1.0]", json!([{ "id": 7, "price": 1.0 }])),
        ("[[1, 2], 'a/b é']", json!([[1, 2], "a/b é"])),
        ("7", json!([7])),
    ] {
        let code = format!("(new Client())->publish('news', {details}, Target::all()); echo 'published';");
        let said = node.php(&code, &[("WS_SERVERS", &servers), ("WS_SERVER_PUBLISH_KEY", &key)]).await;
        assert_eq!(said, "published", "{details}");
        client.expect("news", expected).await;
    }
}

#[tokio::test]
async fn a_failure_is_the_exception_of_the_package() {
    let node = Node::start(&[]).await;
    let publish = "(new Client())->publish('news', [1], 'all');";
    let wrong_target = "(new Client())->publish('news', [1], 'nobody');";
    let gone = "(new Client('http://127.0.0.1:1'))->publish('news', [1], 'all');";
    let latin = "(new Client())->publish('news', [\"\\xe9\"], 'all');";
    let large = "(new Client())->publish('news', str_repeat('x', 1 << 20), 'all');";
    for (code, variables, says) in [
        (publish, &[("WS_SERVERS", " \n")][..], "WS_SERVERS is not set"),
        (publish, &[("WS_SERVERS", "127.0.0.1:9001")], "WS_SERVERS: 127.0.0.1:9001 is no address"),
        (publish, &[("WS_SERVER_PUBLISH_KEY", "")], "WS_SERVER_PUBLISH_KEY is not set"),
        (publish, &[("WS_SERVER_PUBLISH_KEY", "wrong")], "401 "),
        (wrong_target, &[], "400 `to`: unknown target"),
        (gone, &[], "no ws-server answers"),
        (latin, &[], "a message is UTF-8 text"),
        (large, &[], "413 "),
    ] {
        let said = node.php(code, variables).await;
        assert!(said.starts_with(&format!("WsCluster\\Exception: {says}")), "{code} {variables:?}: {said}");
    }
}

#[tokio::test]
async fn targets_reach_ids_of_any_characters() {
    let node = Node::start(&["--jwt-secret", JWT_SECRET]).await;
    let token = node.php("echo Jwt::token('doe, john=%', 60, session: 's;1', groups: ['a,b']);", &[]).await;
    let mut client = node.client().await;
    client.send("Client/authentication", json!([token])).await;
    assert_eq!(client.authenticated().await["user"], "doe, john=%");
    for target in ["user('doe, john=%')", "users('x', 'doe, john=%')", "group('a,b')", "session('s;1')", "registered()"]
    {
        let code = format!(
            "$to = Target::{target}; $client = new Client(); $client->publish('json', null, $to);
            $client->publish('text', null, $to->text()); $client->publish('x', null, $to->exceptUser('doe, john=%'));"
        );
        assert_eq!(node.php(&code, &[]).await, "", "{target}");
        client.expect("json", json!([])).await;
        client.expect("text", json!([])).await;
    }
    node.php("(new Client())->close(session: 's;1');", &[]).await;
    client.expect("Server/close", json!([])).await;
}

/// A PHP script behind PHP's own web server. It is killed when this is dropped.
struct Script {
    address: SocketAddr,
    _php: Child,
}

impl Script {
    async fn start(file: &Path) -> Self {
        Self::with(file, &[]).await
    }

    /// Starts PHP with these variables.
    async fn with(file: &Path, variables: &[(&str, &str)]) -> Self {
        let mut php = Command::new("setpriv");
        // A killed test drops nothing.
        php.args(["--pdeathsig", "KILL", "--", "php", "-S", "127.0.0.1:0"]).arg(file);
        php.envs(variables.iter().copied()).env("WS_SERVER_BACKEND_KEY", BACKEND_KEY);
        php.stdin(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
        let mut php = php.spawn().expect("setpriv (util-linux) and php");
        let mut log = BufReader::new(php.stderr.take().expect("piped")).lines();
        let line = soon(async {
            loop {
                let line = log.next_line().await.expect("text").expect("PHP starts");
                if line.contains("Development Server (http://") {
                    break line;
                }
            }
        })
        .await;
        // Read to its end, because PHP would block otherwise.
        tokio::spawn(async move { while let Ok(Some(_)) = log.next_line().await {} });
        let (_, address) = line.split_once("(http://").unwrap();
        let (address, _) = address.split_once(')').unwrap();
        Self { address: address.parse().expect("an address"), _php: php }
    }
}

#[tokio::test]
async fn a_batch_has_an_outcome_for_each_message() {
    let node = Node::start(&[]).await;
    let mut client = node.client().await;
    let code = "$outcomes = (new Client())->batch([
            new Message('one', [1], Target::all()), new Message('two', [2], 'nobody'),
            new Message('three', ['a' => 1.0], Target::all()),
        ]);
        foreach ($outcomes as $outcome) echo $outcome?->getCode() ?? 'accepted', ' ';
        echo $outcomes[1]->getMessage();";
    let said = node.php(code, &[]).await;
    assert!(said.starts_with("accepted 400 accepted 400 `to`: unknown target"), "{said}");
    client.expect("one", json!([1])).await;
    client.expect("three", json!([{ "a": 1.0 }])).await;
    let code = "$one = new Message('many', null, 'all');
        for ($count = 0; $count < 1500; $count++) $all[] = new Message('many', [$count], 'all');
        $outcomes = (new Client())->batch($all); echo count($outcomes), count(array_filter($outcomes));";
    assert_eq!(node.php(code, &[]).await, "15000");
    for count in 0..1500 {
        client.expect("many", json!([count])).await;
    }
}

#[tokio::test]
async fn connections_join_and_leave_groups() {
    let node = Node::start(&["--jwt-secret", JWT_SECRET]).await;
    let mut client = node.client().await;
    let token = node.php("echo Jwt::token(7, 60);", &[]).await;
    client.send("Client/authentication", json!([token])).await;
    let id = client.authenticated().await["connection"].as_str().expect("an id").to_owned();
    let code = "$client = new Client(); $client->groups(user: 7, join: ['a,b']);
        $client->publish('one', null, Target::group('a,b'));
        $client->groups(connection: getenv('ID'), join: ['c'], leave: ['a,b']);
        $client->publish('two', null, Target::group('a,b'));
        $client->publish('three', null, Target::group('c'));
        $client->publish('four', null, Target::all()->exceptConnection(getenv('ID')));
        $client->publish('five', null, Target::connection(getenv('ID')));";
    assert_eq!(node.php(code, &[("ID", &id)]).await, "");
    for action in ["one", "three", "five"] {
        client.expect(action, json!([])).await;
    }
}

#[tokio::test]
async fn a_page_gets_what_was_published_after_its_position() {
    let node = Node::start(&[]).await;
    let code = "$client = new Client(); $client->publish('shown', null, 'all'); echo $client->position();
        $client->publish('since', null, 'all');";
    let position = node.php(code, &[]).await;
    let path = format!("/WebSockets?resume=&state={position}");
    let mut client = Client::connect_to(node.server.address(), &path).await;
    assert_eq!(client.json().await["details"], json!(["new"]));
    assert_eq!(client.json().await["action"], "since");
}

#[tokio::test]
async fn a_message_of_the_outbox_comes_if_its_transaction_commits() {
    let mariadb = MariaDb::shared().await;
    let url = mariadb.database().await;
    let node = Node::start(&["--pool", &url, "--outbox"]).await;
    let mut client = node.client().await;
    let mut conn = Conn::new(Opts::from_url(&url).unwrap()).await.unwrap();
    conn.query_drop("CREATE TABLE news (text VARCHAR(20))").await.unwrap();
    let (_, name) = url.rsplit_once('/').unwrap();
    let database = format!("mysql:host=127.0.0.1;port={};dbname={name};charset=latin1", mariadb.port());
    let code = "$database = new PDO(getenv('DATABASE'), getenv('DATABASE_USER'), getenv('PASSWORD'));
        $outbox = new WsCluster\\Outbox($database);
        foreach (['rolled back', 'é 🎉'] as $text) {
            $database->beginTransaction();
            $database->prepare('INSERT INTO news VALUES (?)')->execute([$text]);
            $outbox->publish('news/new', [$text, ['price' => 1.0]], Target::all()->exceptUser('a, b'));
            $text === 'rolled back' ? $database->rollBack() : $database->commit();
        }
        $outbox->publish('alone', null, Target::users('a,b', 'c'));
        $outbox->publish('last', str_repeat('x', 100_000), 'all');";
    let variables = [("DATABASE", &*database), ("DATABASE_USER", MariaDb::USER), ("PASSWORD", MariaDb::PASSWORD)];
    assert_eq!(node.php(code, &variables).await, "");
    client.expect("news/new", json!(["é 🎉", { "price": 1.0 }])).await;
    client.expect("last", json!(["x".repeat(100_000)])).await;
    let failed: Vec<String> = conn.query("SELECT reason FROM ws_outbox_failed").await.unwrap();
    assert!(failed.is_empty(), "{failed:?}");
    conn.disconnect().await.unwrap();
}

/// Sends a request and returns the action and the details of its answer, and the messages before it.
async fn request(client: &mut Client, action: &str, details: Value) -> (String, Value) {
    client.text(&json!({ "action": action, "details": details, "id": 7 }).to_string()).await;
    let mut came = client.json().await;
    assert_eq!(came["id"], 7, "{came}");
    (came["action"].as_str().unwrap().to_owned(), came["details"].take())
}

/// A site that answers in every way.
const BACKEND: &str = r#"<?php
require getenv('PACKAGE') . '/autoload.php';

use WsCluster\{Answer, Backend, Event, Identity, Refusal, Target};

(new Backend())
    ->connect(function (Event $event): ?Identity {
        $user = $event->cookie('user') ?? '';
        if ($user === 'banned') {
            throw new Refusal(403, 'banned');
        }
        $groups = [$event->header('user-agent') ?? 'none', $event->query['group'] ?? 'none', (string) $event->remoteAddress];
        return $user === '' ? null : new Identity($user, session: "s-$user", expires: time() + 300, groups: $groups);
    })
    ->action('who', fn (Event $event) => [$event->user, $event->session, $event->groups, $event->properties, $event->language])
    ->action('echo', fn (Event $event) => $event->details)
    ->action('nothing', fn () => null)
    ->action('fails', fn () => throw new PDOException('password of root'))
    ->action('room/*', fn (Event $event) => Answer::reply('joined')
        ->property('room', $event->action)
        ->join($event->action)
        ->publish('room/joined', [$event->user], Target::group($event->action)))
    ->run();
"#;

#[tokio::test]
async fn a_backend_in_php_says_who_clients_are_and_answers_them() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("backend.php");
    fs::write(&file, BACKEND.replace("getenv('PACKAGE')", &format!("'{}'", package().display()))).unwrap();
    let script = Script::start(&file).await;
    let url = format!("http://{}/backend.php", script.address);
    let node = Node::start(&["--backend", &url, "--backend-connect"]).await;
    let headers = [("cookie", "user=a%2Cb"), ("user-agent", "Agent/1"), ("accept-language", "de-CH")];
    let mut ann = Client::try_connect(node.server.address(), "/WebSockets?group=editors", &headers).await.unwrap();
    let mut guest = node.client().await;
    ann.send("Client/authentication", json!([])).await;
    assert_eq!(ann.authenticated().await["user"], "a,b");
    let banned = Client::try_connect(node.server.address(), "/WebSockets", &[("cookie", "user=banned")]).await;
    if let Ok(mut banned) = banned {
        banned.send("Client/authentication", json!([])).await;
        banned.expect("Client/authentication:error", json!([403, "Forbidden"])).await;
        assert_eq!(banned.closed().await.0, 4401);
    }

    let (_, who) = request(&mut ann, "who", json!([])).await;
    assert_eq!(who, json!(["a,b", "s-a,b", ["127.0.0.1", "Agent/1", "editors"], [], "de-CH"]));
    assert_eq!(request(&mut guest, "who", json!(null)).await.1[0], json!(null));
    let details = json!([1, "é", { "a": [true, null, 1.5] }, "x".repeat(50_000)]);
    assert_eq!(request(&mut ann, "echo", details.clone()).await, ("echo".into(), details));
    assert_eq!(request(&mut ann, "nothing", json!([])).await, ("nothing".into(), json!([])));
    let fails = request(&mut ann, "fails", json!([])).await;
    assert_eq!(fails, ("fails:error".into(), json!([500, "Internal Server Error"])));
    let unknown = request(&mut ann, "unknown", json!([])).await;
    assert_eq!(unknown, ("unknown:error".into(), json!([404, "Not Found"])));

    // What the answer asks for takes effect in its order: the connection is in the group when the message is published.
    ann.text(&json!({ "action": "room/7", "details": [], "id": 8 }).to_string()).await;
    ann.expect("room/joined", json!(["a,b"])).await;
    let reply = ann.json().await;
    assert_eq!((&reply["action"], &reply["details"], &reply["id"]), (&json!("room/7"), &json!(["joined"]), &json!(8)));
    let (_, who) = request(&mut ann, "who", json!([])).await;
    assert_eq!((&who[2][3], &who[3]), (&json!("room/7"), &json!({ "room": "room/7" })));
}

#[tokio::test]
async fn the_hello_service_comes_back_to_every_tab_of_its_user() {
    let script = Script::start(&repository("examples/php/hello.php")).await;
    let node = node_of("examples/php/README.md", &script).await;
    let page = soon(tests::http_client::request(script.address, "GET", "/", &[], "")).await.unwrap();
    assert_eq!(page.status, StatusCode::OK);
    assert!(page.text.contains("new WsCluster("), "{}", page.text);

    let origin = format!("http://{}", script.address);
    let headers = [("cookie", "user=ann"), ("origin", &*origin)];
    let (mut one, mut two) = (
        Client::connect(node.server.address(), &headers).await,
        Client::connect(node.server.address(), &headers).await,
    );
    let mut guest = Client::connect(node.server.address(), &[("origin", &origin)]).await;
    for tab in [&mut one, &mut two] {
        tab.send("Client/authentication", json!([])).await;
        assert_eq!(tab.authenticated().await["user"], "ann");
    }
    one.send("hello", json!(["world"])).await;
    for tab in [&mut one, &mut two] {
        tab.expect("hello", json!(["world"])).await;
    }
    one.send("hello", json!([])).await;
    one.expect("hello:error", json!([400, "No hello message:("])).await;
    guest.send("hello", json!(["world"])).await;
    guest.expect("hello:error", json!([403, "sign in first"])).await;
    // Fifteen lines, as it says.
    assert_eq!(fs::read_to_string(repository("examples/php/hello.php")).unwrap().lines().count(), 15);
}

/// Starts the node of an example as its README says, with this script.
async fn node_of(readme: &str, script: &Script) -> Node {
    let readme = fs::read_to_string(repository(readme)).unwrap();
    let flags = readme.lines().find_map(|line| line.strip_prefix("ws-server ")).expect("how to start a node");
    let flags = flags.replace("127.0.0.1:9000", &script.address.to_string());
    Node::start(&flags.split(' ').collect::<Vec<_>>()).await
}

#[tokio::test]
async fn what_one_page_of_the_chat_says_shows_in_all() {
    // The page has the node's address, and the node that of the script.
    let forwarder = Forwarder::start(SocketAddr::from(([127, 0, 0, 1], 9))).await;
    let place = format!("http://{}", forwarder.address());
    let script = Script::with(&repository("examples/php/chat/chat.php"), &[("WS_NODE", &place)]).await;
    let node = node_of("examples/php/chat/README.md", &script).await;
    forwarder.switch(Some(node.server.address()));

    let browser = Browser::start().await;
    let page = format!("http://{}/", script.address);
    let (ann, bob) = (browser.open(&page).await, browser.open(&page).await);
    let say = "document.getElementById('name').value = args[0];
        document.getElementById('text').value = args[1];
        document.querySelector('button').click();";
    // Waits until the last line is this.
    let shows = "for (;;) {
            const last = document.querySelector('#said li:last-child')?.textContent;
            if (last === args[0]) return last;
            await new Promise((resolve) => setTimeout(resolve, 20));
        }";
    let connected = "while (document.getElementById('state').textContent !== 'connected') {
            await new Promise((resolve) => setTimeout(resolve, 20));
        }";
    for tab in [&ann, &bob] {
        tab.run(connected, json!(null)).await;
    }
    for (tab, name, text) in [(&ann, "ann", "Hello"), (&bob, "bob", "<b>Hi</b>")] {
        tab.run(say, json!([name, text])).await;
        for tab in [&ann, &bob] {
            tab.run(shows, json!([format!("{name}: {text}")])).await;
        }
    }
    ann.run(say, json!(["ann", "x".repeat(501)])).await;
    ann.run(shows, json!(["not sent: the text is longer than 500 characters"])).await;
    let text = fs::read_to_string(repository("examples/php/chat/chat.php")).unwrap();
    let php = text.lines().take_while(|line| *line != "?>").count();
    assert!(php <= 15, "fifteen lines, as it says: {php}");
}
