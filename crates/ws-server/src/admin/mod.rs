//! The admin page: its listener, its access control, and its answers.
//!
//! `front` answers at the public address. It asks a [`Service`], which is the supervisor, or a node that runs without
//! one (`alone`). `node` answers the questions that only a node can answer. A supervisor asks its node over a private
//! socket (`private`).

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use async_trait::async_trait;
use bytes::Bytes;
use http::{Method, Response, StatusCode};
use http_body_util::Full;
use ws_cluster::TrustedProxies;

pub(crate) use self::{
    alone::Alone,
    front::Front,
    listener::Listeners,
    node::Node,
    private::{Directory, Forward, SOCKET, serve_supervisor},
    state::{Order, Phase, ServerState, SharedState},
};
use crate::{Failure, Outcome, cli::AdminPage};

mod alone;
mod answer;
mod front;
mod history;
mod key;
mod listener;
mod node;
mod places;
mod private;
mod sign_in;
mod slow_down;
mod state;
mod watched;

pub(crate) type Answer = Response<Full<Bytes>>;

/// The service that the page operates: a supervisor with its server, or a node without a supervisor.
#[async_trait]
pub(crate) trait Service: Send + Sync + 'static {
    /// Returns true if a supervisor can start the server again.
    fn is_supervised(&self) -> bool;

    fn state(&self) -> ServerState;

    /// Accepts an order, which is carried out after this returns.
    ///
    /// # Errors
    /// Says for people why the order is not accepted.
    fn order(&self, order: Order) -> Result<(), String>;

    /// Returns the proxies whose headers tell the address of a sender. SIGHUP changes them.
    fn trusted_proxies(&self) -> TrustedProxies;

    /// Asks the node.
    async fn ask(&self, question: Question) -> Answer;
}

/// A request to the node. Its sender is allowed to ask it.
#[derive(Clone, Debug)]
pub(crate) struct Question {
    pub(crate) method: Method,
    /// The path with its query.
    pub(crate) path: String,
    pub(crate) body: Bytes,
}

impl Question {
    /// Returns true if the question is an order, which may take longer.
    fn is_order(&self) -> bool {
        self.method == Method::POST
    }

    fn get(path: &str) -> Self {
        Self { method: Method::GET, path: path.to_owned(), body: Bytes::new() }
    }
}

/// Finds mistakes in the settings of the admin page.
pub(crate) fn check(page: &AdminPage) -> Outcome {
    if let Some(key) = &page.admin_key {
        key::check(key).map_err(|why| Failure::setup(format!("--admin-key {why}")))?;
    }
    let Some(address) = &page.admin else {
        return match &page.admin_key {
            Some(_) => Err(Failure::setup("--admin-key needs --admin HOST:PORT, the address of the admin page")),
            None if page.metrics_open => Err(Failure::setup("--metrics-open needs --admin HOST:PORT, where they are")),
            None => Ok(()),
        };
    };
    let all = addresses(address)?;
    match page.admin_key.is_some() || all.into_iter().all(is_loopback) {
        true => Ok(()),
        false => Err(open_to_others(address)),
    }
}

/// Returns true if only processes of this machine reach an address.
fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn open_to_others(address: &str) -> Failure {
    Failure::setup(format!(
        "--admin {address} is open to other machines: give --admin-key, as from `openssl rand -hex 16`, or an address of \
         this machine only, as 127.0.0.1:9100"
    ))
}

/// Returns the addresses of `HOST:PORT`.
fn addresses(given: &str) -> Outcome<Vec<SocketAddr>> {
    let wrong = |why: String| Failure::setup(format!("--admin {given:?} is no HOST:PORT ({why}): give 127.0.0.1:9100"));
    let found: Vec<_> = given.to_socket_addrs().map_err(|error| wrong(error.to_string()))?.collect();
    match found.is_empty() {
        true => Err(wrong("the host has no address".to_owned())),
        false => Ok(found),
    }
}

/// Returns the address under which failures are counted: an IPv4 address itself, or the /64 of an IPv6 address, because
/// a single customer has at least that many addresses. All loopback addresses count as one.
fn counted(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        ip if ip.is_loopback() => std::net::Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) => std::net::Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into(),
        ip => ip,
    }
}

/// Makes the answer to a question that no node can answer now.
pub(crate) fn unavailable(path: &str, why: &str) -> Answer {
    match path.starts_with("/admin/") {
        true => answer::error(StatusCode::SERVICE_UNAVAILABLE, why),
        false => answer::text(StatusCode::SERVICE_UNAVAILABLE, why),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn addresses_of_one_sender_count_as_one() {
        let counted = |ip: &str| super::counted(ip.parse().unwrap()).to_string();
        for local in ["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.9"] {
            assert_eq!(counted(local), "127.0.0.1", "{local}");
        }
        assert_eq!(counted("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(counted("2001:db8::1:2"), counted("2001:db8::3"));
        assert_ne!(counted("2001:db8::1"), counted("2001:db8:0:1::1"));
    }
}
