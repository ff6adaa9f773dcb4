//! How a supervisor asks its node: HTTP on a socket in a directory that only their user can enter.

use std::{
    env,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use nix::libc::{O_NOFOLLOW, O_NONBLOCK};
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{Answer, Node, Question, answer, listener::serve, unavailable};
use crate::random::{self, hex};

/// The variable in which the node finds the path of the socket.
pub(crate) const SOCKET: &str = "WS_SERVER_ADMIN_SOCKET";

/// Time limit for a node's answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time limit for answers that wait for others: an order waits for the cluster, and a search waits for other nodes.
const LONG: Duration = Duration::from_secs(10);
/// The path at which a node answers at once, to show that it answers at all.
const PING: &str = "/ping";
/// Maximum size of a node's answer, and of the body of a question.
const SIZE: usize = 16 * 1024 * 1024;

/// The beginning of the names of such directories; random digits follow.
const NAME: &str = "ws-server-admin-";
/// Random bytes of a name, each of which is two digits.
const RANDOM: usize = 8;
/// Permissions of such a directory: only its user can enter it.
const RIGHTS: u32 = 0o700;
/// The file in them that a supervisor locks for as long as it lives.
const LOCK: &str = "lock";
/// The name of that file until it is locked.
const DRAFT: &str = "draft";
/// The socket.
const NODE: &str = "node";
/// Maximum length of a socket's path, in bytes.
const LONGEST_PATH: usize = 107;

/// The directory of the socket. It is removed when this is dropped.
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes a directory in the place for this user's sockets.
    pub(crate) fn make() -> io::Result<Self> {
        let given = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].into_iter().filter_map(env::var_os).map(PathBuf::from);
        let places = given.filter(|path| path.is_absolute()).chain([env::temp_dir()]);
        Self::make_in(places)
    }

    fn make_in(places: impl Iterator<Item = PathBuf>) -> io::Result<Self> {
        let name = format!("{NAME}{}", hex(&random::bytes::<RANDOM>()?));
        let mut last = io::ErrorKind::NotFound.into();
        for place in places {
            remove_forsaken(&place);
            let path = place.join(&name);
            if path.join(NODE).as_os_str().len() > LONGEST_PATH {
                last = io::Error::other(format!("{} is too long a path for a socket", place.display()));
                continue;
            }
            match DirBuilder::new().mode(RIGHTS).create(&path).and_then(|()| lock(&path)) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The path of the socket in it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join(NODE)
    }
}

/// Marks a directory as in use, until the file is closed.
fn lock(directory: &Path) -> io::Result<File> {
    let draft = directory.join(DRAFT);
    let file = File::create_new(&draft)?;
    file.lock()?;
    // So a file of this name is always locked.
    fs::rename(draft, directory.join(LOCK))?;
    Ok(file)
}

/// Removes the directories of supervisors of this user that were killed.
fn remove_forsaken(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    let ours = entries.flatten().filter(|entry| is_name(&entry.file_name().to_string_lossy()));
    for directory in ours.map(|entry| entry.path()).filter(|path| is_own(path)) {
        let Ok(lock) = open_lock(&directory) else { continue };
        if lock.try_lock().is_ok() {
            remove(&directory);
        }
    }
}

fn is_name(name: &str) -> bool {
    let digits = name.strip_prefix(NAME);
    digits.is_some_and(|digits| digits.len() == 2 * RANDOM && digits.bytes().all(|digit| digit.is_ascii_hexdigit()))
}

/// Returns true if it is a directory of this user that no other user can enter.
fn is_own(path: &Path) -> bool {
    let user = rustix::process::geteuid().as_raw();
    let is_own = |found: fs::Metadata| found.is_dir() && found.uid() == user && found.mode() & 0o777 == RIGHTS;
    fs::symlink_metadata(path).is_ok_and(is_own)
}

/// Opens the lock of a directory if it is a regular file. A link could lead elsewhere, and a FIFO would block.
fn open_lock(directory: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(O_NOFOLLOW | O_NONBLOCK).open(directory.join(LOCK))?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Removes a directory with the files that a supervisor makes in it. A directory with other files stays. Another
/// supervisor may remove the directory at the same time.
fn remove(directory: &Path) {
    for file in [NODE, DRAFT, LOCK] {
        let _ = fs::remove_file(directory.join(file));
    }
    let _ = fs::remove_dir(directory);
}

impl Drop for Directory {
    fn drop(&mut self) {
        remove(&self.path);
    }
}

/// Answers the supervisor on its socket, until the process ends.
pub(crate) async fn serve_supervisor(path: PathBuf, node: Arc<Node>) {
    let listener = match replace(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("the admin page cannot ask this node ({}: {error})", path.display());
            return;
        }
    };
    serve(listener, move |request, _, place| {
        // Only this user's processes reach the socket.
        place.admit();
        answer_supervisor(node.clone(), request)
    })
    .await;
}

/// Listens on a socket. Removes the socket that an earlier process of the same supervisor left.
fn replace(path: &Path) -> io::Result<UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

async fn answer_supervisor(node: Arc<Node>, request: Request<Incoming>) -> Answer {
    if request.uri().path() == PING {
        return answer::text(StatusCode::OK, "here");
    }
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    match answer::read(body, SIZE).await {
        Ok(body) => node.answer(Question { method: head.method, path, body }).await,
        Err(refusal) => *refusal,
    }
}

/// Asks the node behind a socket.
pub(crate) struct Forward(PathBuf);

impl Forward {
    pub(crate) fn new(socket: &Path) -> Self {
        Self(socket.to_owned())
    }

    /// Returns the node's answer, or 503 if the node does not run or does not answer. If the node answers nothing at
    /// all, this takes two seconds.
    pub(crate) async fn ask(&self, question: Question) -> Answer {
        let path = question.path.clone();
        let limit = if question.is_order() || path.starts_with("/admin/api/connections") { LONG } else { PATIENCE };
        let asked = async {
            if limit > PATIENCE {
                timeout(PATIENCE, self.send(Question::get(PING))).await.map_err(|_| silent(PATIENCE))??;
            }
            timeout(limit, self.send(question)).await.map_err(|_| silent(limit))?
        };
        asked.await.unwrap_or_else(|why| unavailable(&path, &why))
    }

    async fn send(&self, question: Question) -> Result<Answer, String> {
        let stream = UnixStream::connect(&self.0).await.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => "the server does not run".to_owned(),
            _ => format!("the server cannot be asked: {error}"),
        })?;
        let broken = |error: hyper::Error| format!("the server did not answer: {error}");
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // It ends with the sender.
        tokio::spawn(connection);
        let Question { method, path, body } = question;
        let request =
            Request::builder().method(if body.is_empty() && method != Method::POST { Method::GET } else { method });
        let request = request.uri(path).header(header::HOST, "node").header(header::CONNECTION, "close");
        let request = request.body(Full::new(body)).map_err(|error| format!("the server cannot be asked: {error}"))?;
        let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
        let body = Limited::new(body, SIZE).collect().await.map_err(|_| "the server's answer broke off".to_owned())?;
        let body: Bytes = body.to_bytes();
        let mut answer = Answer::new(Full::new(body));
        *answer.status_mut() = head.status;
        for name in [header::CONTENT_TYPE, header::RETRY_AFTER] {
            if let Some(value) = head.headers.get(&name) {
                answer.headers_mut().insert(name, value.clone());
            }
        }
        Ok(answer)
    }
}

fn silent(limit: Duration) -> String {
    format!("the server did not answer in {} s", limit.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory of a test, and a directory in it.
    struct Test(PathBuf);

    impl Test {
        fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("ws-server-test-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn directory(&self, name: &str) -> PathBuf {
            let path = self.0.join(name);
            DirBuilder::new().mode(RIGHTS).create(&path).unwrap();
            path
        }
    }

    impl Drop for Test {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_directories_of_killed_supervisors_are_removed() {
        let test = Test::new("forsaken");
        let [forsaken, used, full] = [1, 2, 3].map(|number| test.directory(&format!("{NAME}{number:016x}")));
        let others = ["other", "ws-server-1", "ws-server-admin-1"].map(|name| test.directory(name));
        for path in [&forsaken, &full].into_iter().chain(&others) {
            drop(lock(path).unwrap());
        }
        fs::write(full.join("file"), "of somebody").unwrap();
        let _in_use = lock(&used).unwrap();
        remove_forsaken(&test.0);
        assert!(!forsaken.exists() && used.exists());
        assert!(full.join("file").exists(), "a file that no supervisor made");
        assert!(others.iter().all(|path| path.join(LOCK).exists()), "directories of other programs");
    }

    #[test]
    fn a_directory_that_another_user_can_change_is_left_alone() {
        let test = Test::new("strange");
        let name = |number: u32| format!("{NAME}{number:016x}");
        // To open a FIFO waits for its other end.
        let fifo = test.directory(&name(1));
        assert!(std::process::Command::new("mkfifo").arg(fifo.join(LOCK)).status().unwrap().success());
        let link = test.directory(&name(2));
        std::os::unix::fs::symlink("/dev/null", link.join(LOCK)).unwrap();
        let open = test.directory(&name(3));
        drop(lock(&open).unwrap());
        fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
        let target = test.directory("target");
        drop(lock(&target).unwrap());
        std::os::unix::fs::symlink(&target, test.0.join(name(4))).unwrap();
        remove_forsaken(&test.0);
        assert!(fifo.join(LOCK).exists() && link.join(LOCK).is_symlink());
        assert!(open.join(LOCK).exists() && target.join(LOCK).exists());
    }

    #[test]
    fn a_place_whose_path_is_too_long_for_a_socket_is_passed_over() {
        let test = Test::new("long");
        let long = test.directory(&"x".repeat(90));
        let directory = Directory::make_in([long, test.0.clone()].into_iter()).unwrap();
        assert_eq!(directory.path.parent(), Some(&*test.0));
    }

    #[tokio::test]
    async fn only_a_socket_is_replaced_by_a_socket() {
        let test = Test::new("socket");
        let path = test.0.join("file");
        fs::write(&path, "of somebody").unwrap();
        assert!(replace(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "of somebody");
        let path = test.0.join("socket");
        drop(replace(&path).unwrap());
        let _listener = replace(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_node_that_is_not_there_or_hangs_is_told_soon() {
        let directory = Directory::make().unwrap();
        let path = directory.socket();
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        let forward = Forward::new(&path);
        let order = || Question { method: Method::POST, path: "/admin/api/publish".to_owned(), body: Bytes::new() };
        let answer = forward.ask(order()).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        // It takes connections and answers nothing. Real time passes no quicker, so only this one answer is awaited.
        let _listener = UnixListener::bind(&path).unwrap();
        let answer = forward.ask(order()).await;
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(&*body, br#"{"error":"the server did not answer in 2 s"}"#);
        drop(directory);
        assert!(!path.parent().unwrap().exists());
    }
}
