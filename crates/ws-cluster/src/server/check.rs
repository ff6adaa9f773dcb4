//! What the settings of a server may be. Pure.

use url::Url;
use ws_cluster_client::ACTION_SIZE;

use super::builder::OWN_ACTIONS;
use crate::{Config, StartError, message::publish::RESERVED_FOR_LATER, node::link::PATH as LINK};

/// Longest address, in bytes; the pool's column.
const ADDRESS_SIZE: usize = 255;

impl Config {
    /// Checks that the settings can work. [`ServerBuilder::start`](crate::ServerBuilder::start) does so itself.
    ///
    /// # Errors
    /// [`StartError::Config`], which says what to give instead.
    pub fn check(&self) -> Result<(), StartError> {
        self.find_mistake().map_err(|reason| StartError::Config { reason })
    }
}

fn is_plain(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte))
}

/// Checks the path of clients, or of a page.
pub(super) fn path(path: &str) -> Result<(), StartError> {
    if !is_plain(path) {
        return Err(StartError::MalformedPath { path: path.to_owned() });
    }
    if super::routes::is_reserved(path) {
        return Err(StartError::ReservedPath { path: path.to_owned() });
    }
    Ok(())
}

/// Checks the prefix of all paths.
pub(super) fn prefix(prefix: &str) -> Result<(), StartError> {
    if prefix.is_empty() || is_plain(prefix) && !prefix.ends_with('/') && !prefix.contains("//") {
        return Ok(());
    }
    Err(StartError::Prefix { prefix: prefix.to_owned() })
}

/// Checks the name of the cluster.
pub(super) fn cluster(name: &str) -> Result<(), StartError> {
    if (1..=64).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Ok(());
    }
    Err(StartError::ClusterName { name: name.to_owned() })
}

/// Returns the address at which other nodes reach the node, without slashes at its end.
pub(super) fn address(address: &str) -> Result<String, StartError> {
    let refused = |reason: &str| StartError::Address { address: address.to_owned(), reason: reason.to_owned() };
    let malformed = || {
        refused(
            "is not ws://HOST:PORT or wss://HOST:PORT, with the prefix behind it if there is one, like \
             ws://10.0.0.1:8080/app",
        )
    };
    let url = Url::parse(address).map_err(|_| malformed())?;
    let bare =
        url.query().is_none() && url.fragment().is_none() && url.username().is_empty() && url.password().is_none();
    if url.scheme() == "wss" && !cfg!(feature = "tls") {
        return Err(refused("needs the feature `tls`, which this program lacks"));
    }
    if !matches!(url.scheme(), "ws" | "wss") || !url.has_host() || url.port() == Some(0) || !bare {
        return Err(malformed());
    }
    let prefix = url.path().trim_end_matches('/');
    if prefix.ends_with(LINK) {
        return Err(refused(&format!("ends in {LINK}, which is added when it is dialled: leave it out")));
    }
    if !prefix.is_empty() && (!is_plain(prefix) || prefix.contains("//")) {
        return Err(malformed());
    }
    let address = url.as_str().trim_end_matches('/').to_owned();
    if address.len() > ADDRESS_SIZE || !address.is_ascii() {
        return Err(refused(&format!("is longer than {ADDRESS_SIZE} bytes")));
    }
    Ok(address)
}

/// Checks the action of a handler.
pub(super) fn action(name: &str) -> Result<(), StartError> {
    if !(1..=ACTION_SIZE).contains(&name.len()) {
        return Err(StartError::ActionSize { action: name.to_owned() });
    }
    let reason = if name.starts_with("Client/") && !OWN_ACTIONS.contains(&name) {
        let [authentication, disconnection] = OWN_ACTIONS;
        format!(
            "there is no action {name:?}: of those that begin with Client/ there are {authentication} and \
             {disconnection}"
        )
    } else if name.starts_with("Server/") || name.ends_with(":error") {
        format!("the action {name:?} can never come: clients must not send what begins with Server/ or ends in :error")
    } else if name.starts_with(RESERVED_FOR_LATER) {
        format!("the action {name:?} begins with {RESERVED_FOR_LATER}, which is reserved for later")
    } else {
        return Ok(());
    };
    Err(StartError::ReservedAction { action: name.to_owned(), reason })
}
