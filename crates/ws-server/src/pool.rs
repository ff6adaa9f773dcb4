//! Where the cluster is: the pool that was named or the default one, and the keys that belong to it.

use std::{
    env,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ws_cluster::{
    Pool, PoolError,
    pool::{PoolView, open},
};

use crate::{Failure, Outcome, cli::Place, key};

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
    /// Where it is a file: that.
    path: Option<PathBuf>,
}

impl Opened {
    /// Opens the pool of a place, or the default one.
    pub(crate) async fn at(place: &Place) -> Outcome<Self> {
        let url = match &place.pool {
            Some(url) => url.clone(),
            None => default_url()?,
        };
        let (kind, path) = match url.split_once(':') {
            Some(("sqlite", path)) => (Kind::Sqlite, Some(path.strip_prefix("//").unwrap_or(path).into())),
            Some((scheme, _)) if ["mysql", "mariadb"].contains(&&*scheme.to_ascii_lowercase()) => (Kind::MySql, None),
            // Whatever else there may be does not open.
            _ => (Kind::Memory, None),
        };
        let pool = open(&url).await.map_err(failure)?;
        Ok(Self { kind, url, pool, path })
    }

    /// The keys that were given, or that of the pool's file, which is made where it is missing.
    pub(crate) fn keys(&self, given: &[String]) -> Outcome<Vec<Vec<u8>>> {
        let keys = match (given, &self.path) {
            ([], Some(path)) => vec![key::beside(path)?],
            ([], None) if self.kind == Kind::MySql => {
                return Err(Failure::setup(format!(
                    "a MySQL pool needs the cluster's key: give --key or WS_CLUSTER_KEY, the same {KEY_SIZE} bytes or \
                     more on every node, as from `openssl rand -hex 32`"
                )));
            }
            (given, _) => given.iter().map(|key| key.clone().into_bytes()).collect(),
        };
        match keys.iter().map(Vec::len).find(|size| *size < KEY_SIZE) {
            Some(size) => Err(Failure::setup(format!(
                "the cluster's key has {size} bytes: give one of at least {KEY_SIZE}, as from `openssl rand -hex 32`"
            ))),
            None => Ok(keys),
        }
    }

    /// What the pool says of a cluster: the proof that its database is there.
    pub(crate) async fn read(&self, cluster: &str) -> Outcome<PoolView> {
        match tokio::time::timeout(PATIENCE, self.pool.read(cluster)).await {
            Ok(read) => read.map_err(failure),
            Err(_) => Err(failure(PoolError::Unreachable(format!("no answer in {PATIENCE:?}").into()))),
        }
    }
}

/// What to do about a pool that is not to be had.
pub(crate) fn failure(error: PoolError) -> Failure {
    Failure::setup(match error {
        PoolError::Url(_) => error.to_string(),
        error => format!("{error}; check --pool, and that its database is there"),
    })
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
