//! A private MariaDB server in a temporary directory, on a port of its own. All tests of a process share one server.
//! Tests that stop a server have one of their own. None outlives its test process, however that ends.

use std::{
    fs,
    hash::{BuildHasher, RandomState},
    io::{BufRead, BufReader, Write},
    net::{Ipv4Addr, TcpListener},
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, Stdio},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use mysql_async::{Conn, OptsBuilder, prelude::Queryable};
use tempfile::TempDir;
use tokio::{sync::OnceCell, task::spawn_blocking};

/// Creates the data directory at the first start, starts the server, and ends it: with the signal that a line on
/// standard input names, or, when the test process is gone, at once and with all its files. The test process cannot do
/// the latter, since statics are not dropped.
const GUARD: &str = r#"
directory=$1
program=$2
user=$3
shift 3
# A server that starts removes temporary tables, those of its neighbours as well.
export TMPDIR="$directory"
# The log's reader may be gone before everything is removed.
trap "" PIPE
if [ -n "$MYSQLD" ]; then
    # MySQL of Oracle's make. The npm package has its libraries beside the program.
    base=$(dirname "$program")
    export LD_LIBRARY_PATH="$base:$LD_LIBRARY_PATH"
    set -- --basedir="$base" --lc-messages-dir="$base/share" "$@"
fi
if [ ! -d "$directory/data" ] && [ -n "$MYSQLD" ]; then
    if [ -f "$base/share/mysql_system_tables.sql" ]; then
        # Up to 5.6.
        mkdir -p "$directory/data/mysql"
        { echo "USE mysql;"; cat "$base/share/mysql_system_tables.sql" "$base/share/mysql_system_tables_data.sql"; } |
            "$program" --no-defaults --bootstrap --datadir="$directory/data" $user \
                --basedir="$base" --lc-messages-dir="$base/share" --innodb-log-file-size=4M
    else
        "$program" --no-defaults --initialize-insecure --datadir="$directory/data" $user --basedir="$base"
    fi >&2 || { rm -rf "$directory"; exit 1; }
fi
if [ ! -d "$directory/data" ]; then
    mariadb-install-db --no-defaults --datadir="$directory/data" $user \
        --skip-test-db --auth-root-authentication-method=normal \
        --innodb-autoextend-increment=1 --innodb-log-file-size=4M --loose-innodb-flush-method=nosync \
        </dev/null >&2 || { rm -rf "$directory"; exit 1; }
fi
"$program" --no-defaults --datadir="$directory/data" --init-file="$directory/init.sql" $user "$@" </dev/null &
server=$!
exec >/dev/null 2>&1
if read -r signal; then
    kill -s "$signal" $server
    wait $server
else
    kill -s KILL $server
    wait $server
    rm -rf "$directory"
fi
"#;

/// Small and quick. There is no sync to the disk: the writes of a killed process are in the system's cache, which
/// survives it.
const OPTIONS: [&str; 18] = [
    "--bind-address=127.0.0.1",
    "--character-set-server=utf8mb4",
    "--innodb-autoextend-increment=1",
    "--innodb-buffer-pool-dump-at-shutdown=OFF",
    "--innodb-buffer-pool-load-at-startup=OFF",
    "--innodb-buffer-pool-size=16M",
    "--innodb-flush-log-at-trx-commit=2",
    "--loose-innodb-flush-method=nosync",
    "--innodb-log-file-size=4M",
    "--loose-innodb-use-native-aio=OFF",
    "--key-buffer-size=64K",
    "--max-connections=500",
    "--performance-schema=OFF",
    "--pid-file=pid",
    "--skip-log-bin",
    "--skip-name-resolve",
    // Relative to the data directory, since the path of a socket is limited to 107 bytes.
    "--socket=socket",
    "--thread-cache-size=16",
];

/// Time for a start on a machine that starts many things at once. Usually it takes less than a second.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Number of ports that are tried before a start fails.
const PORTS: usize = 20;
/// The directories of the server on Debian and others, which are not in an ordinary user's PATH.
const SERVER_PLACES: [&str; 3] = ["/usr/sbin", "/usr/libexec", "/usr/local/sbin"];

/// A MariaDB server of this test process. When it is dropped, it is killed and its data is removed.
#[derive(Debug)]
pub struct MariaDb {
    directory: TempDir,
    port: u16,
    /// Options of this server in addition to the common ones.
    options: Vec<String>,
    databases: AtomicUsize,
    /// `None` while the server is stopped.
    server: Option<Server>,
}

impl MariaDb {
    /// The user in every URL, who has all privileges.
    pub const USER: &str = "tests";
    /// The user's password. In URLs it is percent-encoded, so that a missing decoding is noticed.
    pub const PASSWORD: &str = "s3cret@db/pw";

    /// Returns the server that all tests of this process share. The first call starts it. It must not be stopped.
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<MariaDb> = OnceCell::const_new();
        SHARED.get_or_init(Self::start).await
    }

    /// Starts a server for a test that stops it.
    ///
    /// # Panics
    /// Panics with the server's log if MariaDB is not installed or does not start.
    pub async fn start() -> Self {
        Self::start_with(|_| Vec::new()).await
    }

    /// Starts a server with more options, which may name files that are made in its directory.
    ///
    /// # Panics
    /// Panics as [`start`](Self::start) does.
    pub async fn start_with(options: impl FnOnce(&Path) -> Vec<String> + Send + 'static) -> Self {
        blocking(|| {
            let directory = tempfile::Builder::new().prefix("mariadb-").tempdir().expect("a temporary directory");
            fs::write(directory.path().join("init.sql"), init_sql()).expect("a file in it");
            let options = options(directory.path());
            for port in free_ports().take(PORTS) {
                match Server::start(directory.path(), port, &options) {
                    Ok(server) => {
                        return Self { directory, port, options, databases: AtomicUsize::new(0), server: Some(server) };
                    }
                    // Another process has taken the port.
                    Err(log) if log.contains("Bind on TCP/IP port") => {}
                    Err(log) => panic!("MariaDB (package mariadb-server) does not start:\n{log}"),
                }
            }
            panic!("{PORTS} ports were taken one after the other");
        })
        .await
    }

    /// Returns true if the tests run on Oracle's MySQL. The variable `WS_CLUSTER_MYSQLD` has the path of its `mysqld`.
    /// Tests of features that only MariaDB has are then skipped.
    pub fn is_mysql() -> bool {
        oracles().is_some()
    }

    /// Creates an empty database and returns its URL, `mysql://user:password@127.0.0.1:port/database`.
    pub async fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut conn = self.connect().await;
        conn.query_drop(format!("CREATE DATABASE {name}")).await.expect("a database");
        conn.disconnect().await.expect("a disconnect");
        self.url(Self::USER, Self::PASSWORD, &name)
    }

    /// Returns the URL of a database of this server, for this user.
    pub fn url(&self, user: &str, password: &str, database: &str) -> String {
        let password = password.replace('@', "%40").replace('/', "%2F");
        format!("mysql://{user}:{password}@127.0.0.1:{}/{database}", self.port)
    }

    /// Returns a connection as [`USER`](Self::USER), with no database chosen.
    ///
    /// # Panics
    /// Panics if the server is stopped.
    pub async fn connect(&self) -> Conn {
        let opts = OptsBuilder::default()
            .ip_or_hostname("127.0.0.1")
            .tcp_port(self.port)
            .prefer_socket(false)
            .user(Some(Self::USER))
            .pass(Some(Self::PASSWORD));
        Conn::new(opts).await.expect("a connection to MariaDB")
    }

    /// Returns the port on 127.0.0.1, which stays the same for the server's whole life.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Returns the directory of the server's files: those that the options name, and its data in `data`.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Returns the path of the server's Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("data/socket")
    }

    /// Shuts the server down in order and waits for its end. Does nothing if it is stopped.
    pub async fn stop(&mut self) {
        self.end("TERM").await;
    }

    /// Kills the server (SIGKILL), as a crash does, and waits until it is gone. Does nothing if it is stopped.
    pub async fn kill(&mut self) {
        self.end("KILL").await;
    }

    /// Starts the stopped server on the same port with the same data, and waits until it answers.
    ///
    /// # Panics
    /// Panics with the server's log if it runs already or does not start.
    pub async fn start_again(&mut self) {
        assert!(self.server.is_none(), "MariaDB runs already");
        let (directory, port, options) = (self.directory.path().to_owned(), self.port, self.options.clone());
        let server = blocking(move || Server::start(&directory, port, &options)).await;
        self.server = Some(server.unwrap_or_else(|log| panic!("MariaDB does not start again:\n{log}")));
    }

    /// Sets the options for [`start_again`](Self::start_again), in addition to the common ones.
    pub(crate) fn set_options(&mut self, options: Vec<String>) {
        self.options = options;
    }

    /// Runs the stopped server's program with one more option, which makes it do something and end. Returns its log.
    pub(crate) async fn run(&self, option: &str) -> String {
        assert!(self.server.is_none(), "MariaDB runs");
        let mut command = Command::new(server_program());
        command
            .env("TMPDIR", self.directory.path())
            .args(["--no-defaults", user_option(self.directory.path())].into_iter().filter(|option| !option.is_empty()))
            .arg(format!("--datadir={}", self.directory.path().join("data").display()))
            .args(OPTIONS)
            .arg(format!("--port={}", self.port))
            .args(&self.options)
            .arg(option);
        let output = blocking(move || command.output()).await.expect("MariaDB is installed");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    async fn end(&mut self, signal: &'static str) {
        if let Some(server) = self.server.take() {
            blocking(move || server.end(signal)).await;
        }
    }
}

/// A running server and the shell that guards it.
#[derive(Debug)]
struct Server {
    guard: Child,
}

impl Server {
    /// Starts the server and waits until it answers. Fails with the server's log if it does not.
    fn start(directory: &Path, port: u16, options: &[String]) -> Result<Self, String> {
        let mut guard = Command::new("sh")
            .env("MYSQLD", oracles().unwrap_or_default())
            .args(["-c", GUARD, "guard"])
            .arg(directory)
            .arg(server_program())
            .arg(user_option(directory))
            .args(OPTIONS)
            .arg(format!("--port={port}"))
            .args(options)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // Without this, ctrl-c ends the guard before the server.
            .process_group(0)
            .spawn()
            .expect("a shell");
        let log = guard.stderr.take().expect("standard error is piped");
        let server = Self { guard };
        let reports = follow(log);
        let report = reports.recv_timeout(START_TIMEOUT);
        if let Ok(Ok(())) = report {
            return Ok(server);
        }
        // Not dropped, because that would remove the directory that the next attempt needs.
        server.end("KILL");
        // By now the log of a server that was too slow is complete.
        let report = report.or_else(|_| reports.recv_timeout(START_TIMEOUT));
        Err(report.unwrap_or_else(|error| Err(error.to_string())).err().unwrap_or_default())
    }

    fn end(mut self, signal: &str) {
        let mut stdin = self.guard.stdin.take().expect("only `end` and `drop` take it");
        // The guard may be gone, together with a server that ended by itself.
        let _ = writeln!(stdin, "{signal}");
        self.guard.wait().expect("the guard ends");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // The guard waits for the end of its input. After `end` this does nothing.
        drop(self.guard.stdin.take());
        let _ = self.guard.wait();
    }
}

/// Reads the server's log to its end, so that the server never blocks. Reports once that it answers or has ended.
fn follow(log: ChildStderr) -> mpsc::Receiver<Result<(), String>> {
    let (report, reports) = mpsc::sync_channel(1);
    thread::spawn(move || {
        let mut text = String::new();
        let mut lines = BufReader::new(log).lines().map_while(Result::ok);
        for line in &mut lines {
            if line.contains("ready for connections") {
                let _ = report.send(Ok(()));
                lines.for_each(drop);
                return;
            }
            text.extend([&line, "\n"]);
        }
        let _ = report.send(Err(text));
    });
    reports
}

/// Returns the statements that the server runs at each start. They create the user of the URLs.
fn init_sql() -> String {
    let (user, password) = (MariaDb::USER, MariaDb::PASSWORD);
    if MariaDb::is_mysql() {
        // MySQL 5.6 does not know CREATE USER IF NOT EXISTS, and lets every user create tables in databases named test.
        return format!(
            "GRANT ALL ON *.* TO '{user}'@'%' IDENTIFIED BY '{password}' WITH GRANT OPTION;\n\
             DELETE FROM mysql.db WHERE Db LIKE 'test%';\n\
             FLUSH PRIVILEGES;\n"
        );
    }
    format!(
        "CREATE USER IF NOT EXISTS '{user}'@'%' IDENTIFIED BY '{password}';\n\
         GRANT ALL ON *.* TO '{user}'@'%' WITH GRANT OPTION;\n"
    )
}

/// Returns Oracle's `mysqld` that the tests use instead of MariaDB, if the environment names one.
fn oracles() -> Option<PathBuf> {
    std::env::var_os("WS_CLUSTER_MYSQLD").filter(|path| !path.is_empty()).map(PathBuf::from)
}

fn server_program() -> PathBuf {
    if let Some(program) = oracles() {
        return program;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(SERVER_PLACES.map(PathBuf::from))
        .map(|place| place.join("mariadbd"))
        .find(|program| program.exists())
        .expect("mariadbd is installed (package mariadb-server)")
}

/// Returns the user option. MariaDB runs as root only if it is told to.
fn user_option(directory: &Path) -> &'static str {
    let owner = fs::metadata(directory).expect("the directory was made").uid();
    if owner == 0 { "--user=root" } else { "" }
}

/// Returns a free port below those that the system gives to outgoing connections. Otherwise a client that dials the port
/// of a stopped server could get this very port as its own, and hold it.
pub fn free_port() -> u16 {
    free_ports().next().expect("a port is free")
}

/// Returns further ones; see [`free_port`].
pub(crate) fn free_ports() -> impl Iterator<Item = u16> {
    let random = RandomState::new();
    (0_u64..)
        .map(move |attempt| 20_000 + (random.hash_one(attempt) % 12_000) as u16)
        .filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn_blocking(work).await {
        Ok(value) => value,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
