//! Where the cluster is: the pool that was named or the default one, and the keys that belong to it.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use url::Url;
use ws_cluster::{
    Pool, PoolError,
    pool::{PoolView, open, open_existing},
};

use crate::{Failure, Outcome, cli::Place, key, values};

/// Shortest key in bytes, as the library asks for.
const KEY_SIZE: usize = 32;
/// Time for the pool's database to answer the first question.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where a pool is kept, which decides who can reach it and where its key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In this process: one node.
    Memory,
    /// In a file: nodes on one machine.
    Sqlite,
    /// In MySQL or MariaDB: nodes anywhere.
    MySql,
}

/// A pool that is open.
pub(crate) struct Opened {
    pub(crate) kind: Kind,
    pub(crate) url: String,
    pub(crate) pool: Arc<dyn Pool>,
    /// Whether it is the one that is used if none is given.
    pub(crate) is_default: bool,
    /// Where it is a file: that.
    path: Option<PathBuf>,
    /// Whether what is missing is made.
    creates: bool,
}

impl Opened {
    /// Opens the pool of a place, or the default one, for a node: an SQLite file is made if it is missing.
    pub(crate) async fn for_node(place: &Place) -> Outcome<Self> {
        Self::at(place, true).await
    }

    /// Opens it for a command, which creates nothing.
    pub(crate) async fn existing(place: &Place) -> Outcome<Self> {
        Self::at(place, false).await
    }

    async fn at(place: &Place, creates: bool) -> Outcome<Self> {
        let url = match &place.pool {
            Some(url) => with_home(url)?,
            None => default_url()?,
        };
        let (scheme, rest) = url.split_once(':').unwrap_or((&url, ""));
        let (kind, path) = match &*scheme.to_ascii_lowercase() {
            "sqlite" => (Kind::Sqlite, Some(PathBuf::from(rest.strip_prefix("//").unwrap_or(rest)))),
            "mysql" | "mariadb" => (Kind::MySql, None),
            // Whatever else there may be does not open.
            _ => (Kind::Memory, None),
        };
        let missing = path.as_deref().filter(|path| !creates && !path.as_os_str().is_empty() && !path.exists());
        if let Some(path) = missing {
            return Err(Failure::refused(format!(
                "the pool has no running server: {} does not exist; start one, or give its --pool",
                path.display()
            )));
        }
        let pool = if creates { open(&url).await } else { open_existing(&url).await };
        let pool = pool.map_err(failure)?;
        Ok(Self { kind, url, pool, path, creates, is_default: place.pool.is_none() })
    }

    /// Which pool it is, for people: without its user and password.
    pub(crate) fn name(&self) -> String {
        match (self.kind, &self.path) {
            (Kind::Sqlite, Some(path)) => {
                format!("sqlite:{}", std::path::absolute(path).unwrap_or_else(|_| path.clone()).display())
            }
            (Kind::MySql, _) => match Url::parse(&self.url) {
                Ok(url) => {
                    let (host, port) = (url.host_str().unwrap_or_default(), url.port().unwrap_or(3306));
                    format!("mysql://{host}:{port}{}", url.path())
                }
                Err(_) => "mysql:".to_owned(),
            },
            _ => "memory:".to_owned(),
        }
    }

    /// The keys that were given, or that of the pool's file, which is made if it is missing and this is for a node.
    pub(crate) fn keys(&self, given: &[String]) -> Outcome<Vec<Vec<u8>>> {
        let given = values::items(given, "--key")?;
        let keys = match (&*given, &self.path) {
            ([], Some(path)) => vec![key::beside(path, self.creates)?],
            ([], None) if self.kind == Kind::MySql => {
                return Err(Failure::setup(format!(
                    "a MySQL pool needs the cluster's key: give --key or WS_CLUSTER_KEY, the same {KEY_SIZE} bytes or \
                     more on every node, as from `openssl rand -hex 32`"
                )));
            }
            (given, _) => given.iter().map(|key| key.clone().into_bytes()).collect(),
        };
        check_sizes(keys.iter().map(Vec::len))?;
        Ok(keys)
    }

    /// What the pool says of a cluster: the proof that its database is there.
    pub(crate) async fn read(&self, cluster: &str) -> Outcome<PoolView> {
        match tokio::time::timeout(PATIENCE, self.pool.read(cluster)).await {
            Ok(read) => read.map_err(failure),
            Err(_) => Err(failure(PoolError::Unreachable(format!("no answer in {PATIENCE:?}").into()))),
        }
    }
}

/// Finds mistakes in the keys that were given.
pub(crate) fn check_keys(given: &[String]) -> Outcome {
    check_sizes(values::items(given, "--key")?.iter().map(String::len))
}

fn check_sizes(mut sizes: impl Iterator<Item = usize>) -> Outcome {
    match sizes.find(|size| *size < KEY_SIZE) {
        Some(size) => Err(Failure::setup(format!(
            "the cluster's key has {size} bytes: give one of at least {KEY_SIZE}, as from `openssl rand -hex 32`"
        ))),
        None => Ok(()),
    }
}

/// What to do about a pool that is not to be had.
pub(crate) fn failure(error: PoolError) -> Failure {
    Failure::setup(match error {
        PoolError::Url(_) => error.to_string(),
        error => format!("{error}; check --pool, and that its database is there"),
    })
}

/// The URL with the home directory for a `~` at the start of its path. Shells expand it in `--pool ~/x` only.
fn with_home(url: &str) -> Outcome<String> {
    let path = url.split_once(':').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("sqlite"));
    let path = path.map(|(_, path)| path.strip_prefix("//").unwrap_or(path));
    let Some(rest) = path.and_then(|path| path.strip_prefix('~')) else { return Ok(url.to_owned()) };
    let home = env::var("HOME").ok().filter(|home| Path::new(home).is_absolute());
    match home {
        Some(home) if rest.starts_with('/') => Ok(format!("sqlite:{home}{rest}")),
        Some(_) => Err(Failure::setup(format!("{url} names no file: give --pool as sqlite:~/PATH or sqlite:/PATH"))),
        None => Err(Failure::setup("there is no home directory for ~ (HOME): give --pool as sqlite:/PATH")),
    }
}

/// In the user's state directory, as the XDG base directory specification has it.
fn default_url() -> Outcome<String> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    let path = state.map(|state| state.join("ws-cluster/pool.sqlite"));
    match path.as_deref().map(Path::to_str) {
        Some(Some(path)) => Ok(format!("sqlite:{path}")),
        _ => Err(Failure::setup("there is no home directory for a pool: give --pool, as sqlite:PATH")),
    }
}
