//! A Galera cluster of private MariaDB servers on loopback. Any of them can be killed, started again and bootstrapped.

use std::{
    collections::HashSet,
    env,
    ffi::OsStr,
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use mysql_async::prelude::Queryable;
use tokio::time::{interval, timeout};

use crate::{MariaDb, mariadb::free_ports};

/// The variable that turns the tests on Galera on.
const SWITCH: &str = "WS_CLUSTER_GALERA";
/// The variable with the path of the provider, if it is in none of the [`PROVIDERS`].
const PROVIDER: &str = "WS_CLUSTER_GALERA_PROVIDER";
/// The paths of the provider on Debian and others.
const PROVIDERS: [&str; 3] =
    ["/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so", "/usr/lib64/galera/libgalera_smm.so"];
/// The database that every server has.
const DATABASE: &str = "site";
/// Maximum wait for a server's state: the others drop a dead server after 5 s, and a state transfer may follow.
const PATIENCE: Duration = Duration::from_secs(60);
/// Time between two looks at a server's state, which sends no notice.
const LOOK: Duration = Duration::from_millis(50);

/// The servers of one Galera cluster.
pub struct Galera {
    servers: Vec<MariaDb>,
    /// The options with which each server joins.
    joining: Vec<Vec<String>>,
}

impl Galera {
    /// Returns true if the tests on Galera are turned on, and otherwise prints how to turn them on.
    pub fn is_wanted() -> bool {
        let wanted = env::var_os(SWITCH).is_some_and(|value| value == "1");
        if !wanted {
            println!("left out: {SWITCH}=1 runs it (packages mariadb-server, galera-4, rsync and lsof)");
        }
        wanted
    }

    /// Starts `count` servers, and waits until all are synced.
    ///
    /// # Panics
    /// Panics with the server's log if one does not start.
    pub async fn start(count: usize) -> Self {
        let mut seen = HashSet::new();
        let ports: Vec<u16> = free_ports().filter(|port| seen.insert(*port)).take(3 * count).collect();
        let peers: Vec<String> = ports.chunks(3).map(|ports| format!("127.0.0.1:{}", ports[0])).collect();
        let joining: Vec<_> = ports.chunks(3).map(|ports| options(ports, &peers.join(","))).collect();
        let bootstrapping = [&joining[0][..], &["--wsrep-new-cluster".to_owned()]].concat();

        let mut first = MariaDb::start_with(|_| bootstrapping).await;
        let mut conn = first.connect().await;
        conn.query_drop(format!("CREATE DATABASE {DATABASE}")).await.expect("a database");
        // The result does not matter.
        let _ = conn.disconnect().await;
        first.stop().await;
        let data = first.directory().join("data");
        let seed = tempfile::tempdir().expect("a temporary directory");
        copy(&data, seed.path());
        open_to_rsync(first.directory());
        first.start_again().await;
        first.set_options(joining[0].clone());
        let mut this = Self { servers: vec![first], joining };
        for index in 1..count {
            let options = this.joining[index].clone();
            // As after a restored backup: a transfer of the whole state takes seconds, and root cannot receive one by
            // rsync.
            let seed = seed.path().to_owned();
            let server = MariaDb::start_with(move |directory| {
                copy(&seed, &directory.join("data"));
                open_to_rsync(directory);
                options
            });
            this.servers.push(server.await);
        }
        for server in 0..count {
            this.synced(server).await;
        }
        this
    }

    /// Returns the URL of the database at each server.
    pub fn urls(&self) -> Vec<String> {
        self.servers.iter().map(|server| server.url(MariaDb::USER, MariaDb::PASSWORD, DATABASE)).collect()
    }

    /// Kills a server (SIGKILL), and waits until it is gone.
    pub async fn kill(&mut self, server: usize) {
        self.servers[server].kill().await;
    }

    /// Starts a killed server again, and waits until it is synced.
    ///
    /// # Panics
    /// Panics with the server's log if it does not start.
    pub async fn start_again(&mut self, server: usize) {
        // Systemd does this before it starts a server that crashed. The others then send only what the server missed.
        let log = self.servers[server].run("--wsrep-recover").await;
        let position =
            log.lines().find_map(|line| line.split_once("Recovered position: ")).map(|(_, position)| position);
        let position = position.unwrap_or_else(|| panic!("no position in the log:\n{log}")).trim();
        let mut options = self.joining[server].clone();
        options.push(format!("--wsrep-start-position={position}"));
        self.servers[server].set_options(options);
        self.servers[server].start_again().await;
        self.synced(server).await;
    }

    /// Makes the component of this server the primary one.
    ///
    /// # Panics
    /// Panics if the server refuses.
    pub async fn bootstrap(&self, server: usize) {
        let mut conn = self.servers[server].connect().await;
        conn.query_drop("SET GLOBAL wsrep_provider_options = 'pc.bootstrap=YES'").await.expect("a statement");
        // The result does not matter.
        let _ = conn.disconnect().await;
    }

    /// Waits until a server is synced (`wsrep_local_state` = 4).
    pub async fn synced(&self, server: usize) {
        self.reaches(server, "wsrep_local_state", "4").await;
    }

    /// Waits until a server is not part of a primary component.
    pub async fn without_quorum(&self, server: usize) {
        self.reaches(server, "wsrep_cluster_status", "non-Primary").await;
    }

    async fn reaches(&self, server: usize, variable: &str, wanted: &str) {
        let mut last = String::new();
        let looking = async {
            let mut look = interval(LOOK);
            while last != wanted {
                look.tick().await;
                last = self.status(server, variable).await;
            }
        };
        let reached = timeout(PATIENCE, looking).await;
        reached.unwrap_or_else(|_| panic!("{variable} of server {server} is {last:?}, not {wanted:?}"));
    }

    /// Returns the value of a status variable of a running server.
    async fn status(&self, server: usize, variable: &str) -> String {
        let mut conn = self.servers[server].connect().await;
        let row = conn.query_first(format!("SHOW GLOBAL STATUS LIKE '{variable}'")).await;
        // The result does not matter.
        let _ = conn.disconnect().await;
        let row: Option<(String, String)> = row.expect("SHOW is always answered");
        row.unwrap_or_else(|| panic!("the server does not know {variable}")).1
    }
}

/// Returns the options of a server in a cluster: ports for the group, for incremental and for whole state transfers.
fn options(ports: &[u16], peers: &str) -> Vec<String> {
    let &[group, incremental, whole] = ports else { unreachable!("three ports for each server") };
    let provider = [
        format!("base_host=127.0.0.1;base_port={group};gmcast.listen_addr=tcp://127.0.0.1:{group}"),
        format!("ist.recv_addr=127.0.0.1:{incremental};ist.recv_bind=127.0.0.1:{incremental}"),
        "gcache.size=8M;gcache.page_size=8M".to_owned(),
    ];
    vec![
        "--wsrep-on=ON".to_owned(),
        format!("--wsrep-provider={}", provider_path().display()),
        format!("--wsrep-provider-options={}", provider.join(";")),
        format!("--wsrep-cluster-address=gcomm://{peers}"),
        "--wsrep-cluster-name=tests".to_owned(),
        "--wsrep-node-address=127.0.0.1".to_owned(),
        "--wsrep-sst-method=rsync".to_owned(),
        format!("--wsrep-sst-receive-address=127.0.0.1:{whole}"),
        "--binlog-format=ROW".to_owned(),
        "--innodb-autoinc-lock-mode=2".to_owned(),
    ]
}

/// Copies the data of a stopped server, except for the last messages and members of its cluster.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let (kind, to) = (entry.file_type().expect("a kind"), to.join(entry.file_name()));
        if kind.is_dir() {
            copy(&entry.path(), &to);
        } else if kind.is_file() && !["galera.cache", "gvwstate.dat"].map(OsStr::new).contains(&&*entry.file_name()) {
            fs::copy(entry.path(), to).expect("a copy");
        }
    }
}

/// Lets the rsync daemon write a file to the data directory, with which the sender of a state transfer reports that it
/// is complete. If root starts the daemon, it becomes `nobody`.
fn open_to_rsync(directory: &Path) {
    let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).expect("an own directory");
    if fs::metadata(directory).expect("the directory was made").uid() == 0 {
        mode(directory, 0o711);
        mode(&directory.join("data"), 0o777);
    }
}

fn provider_path() -> PathBuf {
    if let Some(path) = env::var_os(PROVIDER) {
        return path.into();
    }
    let path = PROVIDERS.map(Path::new).into_iter().find(|path| path.exists());
    path.unwrap_or_else(|| {
        panic!("the provider of Galera (package galera-4) is in none of {PROVIDERS:?}; {PROVIDER} names it")
    })
    .into()
}
