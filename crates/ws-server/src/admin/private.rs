//! How a supervisor asks its node: HTTP on a socket in a directory that only their user can enter.

use std::{
    env,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::{
    net::{UnixListener, UnixStream},
    time::timeout,
};

use super::{Answer, Node, Question, answer, key::hex, listener::serve, unavailable};

/// The variable in which the node finds the path of the socket.
pub(crate) const SOCKET: &str = "WS_SERVER_ADMIN_SOCKET";

/// Time for a node to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Time for what takes its time: an order waits for the cluster, and a search for other nodes.
const LONG: Duration = Duration::from_secs(10);
/// Where a node answers at once that it does.
const PING: &str = "/ping";
/// Largest answer of a node, and largest body of a question.
const SIZE: usize = 16 * 1024 * 1024;

/// The beginning of the names of such directories.
const NAME: &str = "ws-server-";
/// The file in them that a supervisor locks for as long as it lives.
const LOCK: &str = "lock";

/// The directory of the socket. It is removed when this is dropped.
pub(crate) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Makes it where this user's sockets belong.
    pub(crate) fn make() -> io::Result<Self> {
        let given = ["RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"].into_iter().filter_map(env::var_os).map(PathBuf::from);
        let places = given.filter(|path| path.is_absolute()).chain([env::temp_dir()]);
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(io::Error::other)?;
        let name = format!("{NAME}{}", hex(&random));
        let mut last = io::ErrorKind::NotFound.into();
        for place in places {
            remove_forsaken(&place);
            let path = place.join(&name);
            match DirBuilder::new().mode(0o700).create(&path).and_then(|()| lock(&path)) {
                Ok(lock) => return Ok(Self { path, _lock: lock }),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The path of the socket in it.
    pub(crate) fn socket(&self) -> PathBuf {
        self.path.join("node")
    }
}

/// Marks a directory as in use, until the file is closed.
fn lock(directory: &Path) -> io::Result<File> {
    let draft = directory.join("draft");
    let file = File::create_new(&draft)?;
    file.lock()?;
    // It is never there without its lock.
    fs::rename(draft, directory.join(LOCK))?;
    Ok(file)
}

/// Removes the directories of supervisors that were killed. Those of other users cannot be entered.
fn remove_forsaken(place: &Path) {
    let Ok(entries) = fs::read_dir(place) else { return };
    let is_ours = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with(NAME);
    for directory in entries.flatten().filter(is_ours).map(|entry| entry.path()) {
        let Ok(lock) = File::open(directory.join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            // Another supervisor may remove it as well.
            let _ = fs::remove_dir_all(&directory);
        }
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        // It may be removed already.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Answers the supervisor on its socket, until the process ends.
pub(crate) async fn serve_supervisor(path: PathBuf, node: Arc<Node>) {
    // A former process of the same supervisor left it.
    let _ = fs::remove_file(&path);
    let listener = match UnixListener::bind(&path) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!("the admin page cannot ask this node ({}: {error})", path.display());
            return;
        }
    };
    serve(listener, move |request, _| answer_supervisor(node.clone(), request)).await;
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

    /// Returns its answer, or 503 if the node is not there or does not answer: within two seconds, if it does not
    /// answer to anything.
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
        let stream = UnixStream::connect(&self.0).await.map_err(|_| "the server does not run".to_owned())?;
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
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_directories_of_killed_supervisors_are_removed() {
        let place = env::temp_dir().join(format!("{NAME}test-{}", std::process::id()));
        let [forsaken, used, strange] = ["ws-server-1", "ws-server-2", "other"].map(|name| place.join(name));
        for directory in [&forsaken, &used, &strange] {
            fs::create_dir_all(directory).unwrap();
        }
        drop(lock(&forsaken).unwrap());
        drop(lock(&strange).unwrap());
        let _in_use = lock(&used).unwrap();
        remove_forsaken(&place);
        assert!(!forsaken.exists() && used.exists() && strange.exists());
        fs::remove_dir_all(place).unwrap();
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
