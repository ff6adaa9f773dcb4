//! The PHP package of `clients/php`: its own tests, and the package with real `ws-server` processes.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use serde_json::json;
use tempfile::TempDir;
use tests::{
    WsServer,
    client::{Client, soon},
};
use tokio::process::Command;

const PUBLISH_KEY: &str = "a key that only the site and its ws-servers have";
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
        command.env("WS_SERVER_PUBLISH_KEY", PUBLISH_KEY);
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
