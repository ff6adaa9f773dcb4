//! Opens the pool that the flags name, or the default one, and finds the cluster's keys.

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

/// Minimum size of a cluster's key in bytes, as the library requires.
const CLUSTER_KEY_SIZE: usize = 32;
/// Time limit for the first answer of the pool's database.
const PATIENCE: Duration = Duration::from_secs(5);

/// The kind of a pool. It decides which nodes reach the pool, and where the key comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The memory of this process: for one node.
    Memory,
    /// A file: for nodes on one machine.
    Sqlite,
    /// MySQL or MariaDB: for nodes anywhere.
    MySql,
}

/// A pool that is open.
pub(crate) struct Opened {
    pub(crate) kind: Kind,
    pub(crate) url: String,
    pub(crate) pool: Arc<dyn Pool>,
    /// True if no pool was named.
    pub(crate) is_default: bool,
    /// The path, if the pool is a file.
    path: Option<PathBuf>,
    /// True if missing files and keys are created.
    creates: bool,
}

impl Opened {
    /// Opens the pool of a place, or the default one, for a node. A missing SQLite file is created.
    pub(crate) async fn for_node(place: &Place) -> Outcome<Self> {
        Self::at(place, true).await
    }

    /// Opens the pool for a command, which creates nothing.
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
            // A pool with any other scheme cannot be opened below.
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

    /// Returns the URL for people: without user and password.
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

    /// Returns the given keys, or the key in the file beside the pool. A node creates that file if it is missing.
    pub(crate) fn keys(&self, given: &[String]) -> Outcome<Vec<Vec<u8>>> {
        let given = values::items(given, "--key")?;
        let keys = match (&*given, &self.path) {
            ([], Some(path)) => vec![key::beside(path, self.creates)?],
            ([], None) if self.kind == Kind::MySql => {
                return Err(Failure::setup(format!(
                    "a MySQL pool needs the cluster's key: give --key or WS_CLUSTER_KEY, the same {CLUSTER_KEY_SIZE} \
                     bytes or more on every node, as from `openssl rand -hex 32`"
                )));
            }
            (given, _) => given.iter().map(|key| key.clone().into_bytes()).collect(),
        };
        check_sizes(keys.iter().map(Vec::len))?;
        Ok(keys)
    }

    /// Reads the rows of a cluster. This also shows that the database answers.
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
    match sizes.find(|size| *size < CLUSTER_KEY_SIZE) {
        Some(size) => Err(Failure::setup(format!(
            "the cluster's key has {size} bytes: give one of at least {CLUSTER_KEY_SIZE}, as from \
             `openssl rand -hex 32`"
        ))),
        None => Ok(()),
    }
}

/// Advice if the pool cannot be opened.
pub(crate) fn failure(error: PoolError) -> Failure {
    Failure::setup(match error {
        PoolError::Url(_) => error.to_string(),
        error => format!("{error}; check --pool, and that its database is there"),
    })
}

/// Returns the URL with the home directory in place of a `~` at the start of its path. Shells do not expand it in
/// `--pool sqlite:~/x`.
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

/// Returns the default URL: a file in the user's state directory, as the XDG base directory specification defines it.
fn default_url() -> Outcome<String> {
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    let path = state.map(|state| state.join("ws-cluster/pool.sqlite"));
    match path.as_deref().map(Path::to_str) {
        Some(Some(path)) => Ok(format!("sqlite:{path}")),
        _ => Err(Failure::setup("there is no home directory for a pool: give --pool, as sqlite:PATH")),
    }
}
