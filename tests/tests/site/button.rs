//! `admin.php`: shows whether a server answers, and starts one, from a shell and from the site's own page.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
};

use http::StatusCode;
use rustix::process::{Pid, Signal, kill_process};
use tests::{
    WsServer,
    client::{eventually, soon},
    free_port, program,
};
use tokio::{net::TcpListener, process::Command};

use super::{HOME, Login, Site, site};

/// The command that starts a server at this address.
pub(super) fn supervise(address: SocketAddr) -> String {
    format!("{} supervise --pool memory: --drain 0 --listen {address}", program("ws-server").display())
}

/// A supervisor that PHP starts, known by its log. It outlives PHP, and is ended when this is dropped.
struct Supervisor {
    log: PathBuf,
}

impl Supervisor {
    /// The processes of the servers that the log names.
    fn servers(&self) -> Vec<Pid> {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let started = log.lines().filter_map(|line| line.split_once("the server is started pid=")?.1.parse().ok());
        started.filter_map(Pid::from_raw).collect()
    }

    /// The supervisor of the last server.
    fn process(&self) -> Option<Pid> {
        let server = self.servers().pop()?;
        let stat = fs::read_to_string(format!("/proc/{}/stat", server.as_raw_nonzero())).ok()?;
        let (_, rest) = stat.rsplit_once(") ")?;
        Pid::from_raw(rest.split(' ').nth(1)?.parse().ok()?).filter(|parent| parent.as_raw_nonzero().get() > 1)
    }

    async fn end(&self) {
        // The log comes through a thread of the supervisor.
        let process = eventually(async || self.process()).await;
        kill_process(process, Signal::TERM).unwrap();
        let directory = format!("/proc/{}", process.as_raw_nonzero());
        eventually(async || (!Path::new(&directory).exists()).then_some(())).await;
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if let Some(process) = self.process() {
            let _ = kill_process(process, Signal::TERM);
        }
    }
}

/// Runs `admin.php` from a shell. Returns its status and what it said.
async fn php(arguments: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut php = Command::new("php");
    php.args(["-d", "allow_url_fopen=0"]).args(arguments).envs(variables.iter().copied());
    php.stdin(Stdio::null()).kill_on_drop(true);
    let output = soon(php.output()).await.expect("php");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

fn script() -> String {
    site().join("admin.php").display().to_string()
}

/// An address at which nothing listens.
fn free() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], free_port()))
}

#[tokio::test]
async fn a_shell_sees_whether_a_server_answers_and_starts_one_that_outlives_it() {
    let directory = tempfile::tempdir().unwrap();
    let address = free();
    let supervisor = Supervisor { log: directory.path().join("log") };
    let (server, command, log) =
        (format!("http://{address}"), supervise(address), supervisor.log.display().to_string());
    let variables = [("WS_SERVERS", &*server), ("WS_SUPERVISE", &command), ("WS_LOG", &log)];
    let script = script();
    let (status, said) = php(&[&script], &variables).await;
    assert_eq!((status, &*said), (Some(1), &*format!("{server} no connection (Connection refused)\n")));
    let (status, said) = php(&[&script, "start"], &variables).await;
    assert_eq!((status, &*said), (Some(0), "it answers\n"));
    let (status, said) = php(&[&script], &variables).await;
    assert_eq!((status, &*said), (Some(0), &*format!("{server} answers\n")));
    // It runs already.
    assert_eq!(php(&[&script, "start"], &variables).await.0, Some(0));
    eventually(async || (!supervisor.servers().is_empty()).then_some(())).await;
    assert_eq!(supervisor.servers().len(), 1);
    supervisor.end().await;
    assert_eq!(php(&[&script], &variables).await.0, Some(1));
}

#[tokio::test]
async fn a_shell_is_told_what_keeps_a_server_from_starting() {
    let directory = tempfile::tempdir().unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = taken.local_addr().unwrap();
    let log = directory.path().join("log").display().to_string();
    let (server, command) = (format!("http://{address}"), supervise(address));
    let variables = [("WS_SERVERS", &*server), ("WS_SUPERVISE", &command), ("WS_LOG", &log)];
    let script = script();
    // The listener never answers.
    let (status, said) = php(&[&script, "start"], &variables).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.starts_with("the server ended: its log says: error: the server cannot start"), "{said}");
    let (_, said) = php(&[&script], &variables).await;
    assert!(said.contains("it takes connections and does not answer: it hangs"), "{said}");
    let disabled = ["-d", "disable_functions=exec,shell_exec,system,proc_open", &script, "start"];
    let (status, said) = php(&disabled, &variables).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.starts_with("PHP may not start programs here (exec is in disable_functions)."), "{said}");
    assert!(said.contains(&command), "{said}");
    let (status, said) = php(&[&script], &[("WS_SERVERS", "")]).await;
    assert_eq!(status, Some(2), "{said}");
    assert!(said.starts_with("WS_SERVERS is not set"), "{said}");
}

#[tokio::test]
async fn a_link_that_somebody_made_in_the_temporary_directory_is_not_followed() {
    let directory = tempfile::tempdir().unwrap();
    let temporary = directory.path().display().to_string();
    let address = free();
    let (server, command) = (format!("http://{address}"), supervise(address));
    let variables = [("WS_SERVERS", &*server), ("WS_SUPERVISE", &command), ("TMPDIR", &temporary), ("WS_LOG", "")];
    let target = directory.path().join("target");
    std::os::unix::fs::symlink(&target, directory.path().join("ws-server.log")).unwrap();
    let (status, said) = php(&[&script(), "start"], &variables).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.starts_with(&format!("the log {temporary}/ws-server.log is a link or of another user")), "{said}");
    assert!(!target.exists());
    // The same of the lock, which is the other file there.
    let mut files = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().path());
    let lock = files.find(|file| file.to_string_lossy().contains("ws-server-start-")).expect("a lock");
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&lock).unwrap()) & 0o777, 0o600);
    std::fs::remove_file(&lock).unwrap();
    std::os::unix::fs::symlink(&target, &lock).unwrap();
    let (status, said) = php(&[&script(), "start"], &variables).await;
    assert_eq!(status, Some(1), "{said}");
    assert!(said.starts_with("the lock of the start cannot be taken"), "{said}");
    assert!(!target.exists());
}

#[tokio::test]
async fn a_lock_is_of_the_user_of_the_process_whoever_owns_the_script() {
    let directory = tempfile::tempdir().unwrap();
    let temporary = directory.path().display().to_string();
    let wrapper = directory.path().join("start.php");
    fs::write(&wrapper, format!("<?php require '{}'; echo ws_start('http://{}');", script(), free())).unwrap();
    let variables = [("WS_SERVERS", ""), ("WS_SUPERVISE", "false"), ("TMPDIR", &*temporary), ("WS_LOG", "")];
    let start = async |disabled: &str| {
        let (_, said) = php(&["-d", disabled, wrapper.to_str().unwrap()], &variables).await;
        assert!(said.starts_with("the server ended"), "{said}");
    };
    start("disable_functions=getmyuid").await;
    // Only root can do that.
    let _ = std::os::unix::fs::chown(&wrapper, Some(65534), None);
    start("disable_functions=posix_geteuid").await;
    let files = fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().file_name());
    let locks = files.filter(|name| name.to_string_lossy().starts_with("ws-server-start-"));
    assert_eq!(locks.count(), 1);
}

#[tokio::test]
async fn a_refusal_is_told_as_such() {
    let state = tempfile::tempdir().unwrap();
    let server = WsServer::start(state.path(), &["--pool", "memory:"]).await;
    server.ready().await;
    let url = format!("http://{}", server.address());
    let (status, said) = php(&[&script()], &[("WS_SERVERS", &url), ("WS_PATH", "/elsewhere")]).await;
    assert_eq!((status, &*said), (Some(1), &*format!("{url} it refuses clients (404 Not Found)\n")));
}

#[tokio::test]
async fn an_administrator_of_the_site_starts_a_server_from_its_page() {
    let mut site = Site::start().await;
    let supervisor = Supervisor { log: site.directory.path().join("supervisor.log") };
    let (ann, bob) = (site.signed_in("ann").await, site.signed_in("bob").await);
    assert_eq!(bob.get("/admin.php").await.status, StatusCode::FORBIDDEN);
    assert_eq!(bob.post("/admin.php", &[]).await.status, StatusCode::FORBIDDEN);
    assert_eq!(site.visitor(HOME).post("/admin.php", &[]).await.status, StatusCode::FORBIDDEN);
    let page = ann.get("/admin.php").await;
    assert_eq!(page.status, StatusCode::OK, "{}", page.text);
    assert_eq!(page.text.matches(": answers</li>").count(), 2, "{}", page.text);
    assert!(!page.text.contains("<button>"), "{}", page.text);

    site.servers[0].kill().await;
    let page = ann.get("/admin.php").await;
    assert!(page.text.contains("no connection") && page.text.contains("<button>"), "{}", page.text);
    let page = ann.post("/admin.php", &[]).await;
    assert!(page.text.contains("The server runs."), "{}", page.text);
    assert_eq!(page.text.matches(": answers</li>").count(), 2, "{}", page.text);
    supervisor.end().await;
}

#[tokio::test]
async fn a_page_that_may_not_start_programs_says_what_to_do() {
    let mut site = Site::with(Login::Table, &["-d", "disable_functions=exec"]).await;
    let ann = site.signed_in("ann").await;
    site.servers[0].kill().await;
    for page in [ann.get("/admin.php").await, ann.post("/admin.php", &[]).await] {
        assert!(page.text.contains("PHP may not start programs here"), "{}", page.text);
        assert!(!page.text.contains("<button>"), "{}", page.text);
    }
}
