//! The answers of a server at its own port, by path, and the same as an axum router.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Extensions, HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Body;
use hyper_util::rt::TokioIo;

use super::{
    Server,
    http::answer,
    socket::Rewound,
    upgrade::{busy, socket},
    websocket::switching,
};
use crate::{Status, node::link::PATH as LINK};

const PUBLISH: &str = "/_publish";
const CLOSE: &str = "/_close";
const REFRESH: &str = "/_refresh";
const GROUPS: &str = "/_groups";
const POSITION: &str = "/_position";
const OPENAPI: &str = "/_openapi.json";
const CLIENT: &str = "/ws-cluster.js";
const HEALTH: &str = "/health";
const READY: &str = "/ready";

/// Time for the cluster's task to answer before `/health` says that it hangs.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(3);

/// The methods of documents, of WebSockets, and of what a site posts.
const READS: &str = "GET, HEAD, OPTIONS";
pub(super) const UPGRADES: &str = "GET, OPTIONS";
pub(super) const POSTS: &str = "POST, OPTIONS";

/// The paths at which the server itself answers, apart from the clients' path, with their methods.
const RESERVED: [(&str, &str); 10] = [
    (LINK, UPGRADES),
    (PUBLISH, POSTS),
    (CLOSE, POSTS),
    (REFRESH, POSTS),
    (GROUPS, POSTS),
    (POSITION, READS),
    (OPENAPI, READS),
    (CLIENT, READS),
    (HEALTH, READS),
    (READY, READS),
];

/// The reserved paths that need the publish key.
const FOR_THE_SITE: [&str; 6] = [PUBLISH, CLOSE, REFRESH, GROUPS, POSITION, OPENAPI];

const CLIENT_SOURCE: &str = include_str!("../../client/ws-cluster.js");

/// The description of everything here as OpenAPI.
const DESCRIPTION: &str = include_str!("openapi.json");

/// The address of the peer of a request's socket. An application with an HTTP server of its own adds it to the
/// extensions of a request, from which [`Server::upgrade`] and [`Server::handle`] read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RemoteAddress(pub SocketAddr);

pub(super) fn remote_address(extensions: &Extensions) -> Option<SocketAddr> {
    let given = extensions.get().map(|RemoteAddress(address)| *address);
    #[cfg(feature = "axum")]
    let given = given.or_else(|| extensions.get().map(|axum::extract::ConnectInfo(address)| *address));
    given
}

/// Returns true if the server itself answers at this path, apart from the clients' path.
pub(super) fn is_reserved(path: &str) -> bool {
    RESERVED.iter().any(|(reserved, _)| *reserved == path)
}

/// Returns true if a node beyond its limit on sockets still answers at this path: health checks, links and the site's
/// requests.
pub(super) fn is_vital(path: &str) -> bool {
    is_reserved(path) && ![CLIENT, OPENAPI].contains(&path)
}

impl Server {
    /// Answers any request:
    ///
    /// - clients at their [path](crate::ServerBuilder::path), links of other nodes at `/_cluster/v1`, and the browser
    ///   client at `/ws-cluster.js`;
    /// - `/health`: 200, or 503 if the cluster's task does not answer;
    /// - `/ready`: 200, or 503 with `degraded: WHY` (the node takes clients) or `not ready: WHY` (it does not). The
    ///   text of a 200 begins with `ready`, and also names trouble with the [outbox](crate::ServerBuilder::outbox).
    ///   Here and at `/health`, only requests with the publish key are told the database's own error, because it may
    ///   name an account and an address;
    /// - with a [publish key](crate::ServerBuilder::publish_key), POST to `/_publish`, `/_groups`, `/_close` and
    ///   `/_refresh`, GET of `/_position`, and `/_openapi.json`, which describes all of this;
    /// - the [pages](crate::ServerBuilder::page) of the builder.
    ///
    /// Other paths get 404. `OPTIONS` gets 204 and the methods that the path allows.
    pub async fn handle<B>(&self, request: Request<B>) -> Response<Full<Bytes>>
    where
        B: Body + Send,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let Some(path) = self.own_path(request.uri().path()) else {
            return answer(StatusCode::NOT_FOUND, "not found");
        };
        if *request.method() == Method::OPTIONS {
            return self.options(path);
        }
        match path {
            path if path == self.0.path => self.upgrade(request).await,
            LINK => self.link(request),
            path if FOR_THE_SITE.contains(&path) && self.live().publish_key.is_none() => {
                answer(StatusCode::NOT_FOUND, "not found")
            }
            PUBLISH => self.publish_request(request).await,
            CLOSE => self.close_request(request).await,
            REFRESH => self.refresh_request(request).await,
            GROUPS => self.groups_request(request).await,
            CLIENT | HEALTH | READY | POSITION | OPENAPI if !reads => only_get(),
            POSITION => self.position_request(request.headers()),
            OPENAPI => match self.check_key(request.headers()) {
                Ok(()) => document("application/json", "no-cache", DESCRIPTION.into()),
                Err(refusal) => *refusal,
            },
            // An hour, since it changes with the server's version only.
            CLIENT => document("text/javascript; charset=utf-8", "public, max-age=3600", CLIENT_SOURCE.into()),
            HEALTH if !self.responds(RESPONSE_TIMEOUT).await => {
                answer(StatusCode::SERVICE_UNAVAILABLE, "hanging: the cluster's task does not answer")
            }
            HEALTH => match self.trouble(self.detail(request.headers())) {
                None => answer(StatusCode::OK, "alive"),
                Some(why) => answer(StatusCode::OK, &format!("alive, degraded: {why}")),
            },
            READY => self.readiness(self.detail(request.headers())),
            path => match self.0.pages.get(path) {
                Some(_) if !reads => only_get(),
                Some(html) => document("text/html; charset=utf-8", "no-cache", html.clone()),
                None => answer(StatusCode::NOT_FOUND, "not found"),
            },
        }
    }

    /// Returns how much the sender of a request is told.
    fn detail(&self, headers: &HeaderMap) -> Detail {
        match self.check_key(headers) {
            Ok(()) => Detail::Cause,
            Err(_) => Detail::Reason,
        }
    }

    fn readiness(&self, detail: Detail) -> Response<Full<Bytes>> {
        let status = self.status();
        let why = trouble(&status, detail);
        match (status.ready, why) {
            // Trouble with the outbox is no reason to send clients elsewhere.
            (true, None) => {
                let risk = self.config().cluster.accept_when_isolated.then_some(ACCEPTS_WHEN_ISOLATED);
                let notes = risk.map(str::to_owned).into_iter().chain(self.outbox_trouble(detail));
                answer(StatusCode::OK, &["ready".to_owned()].into_iter().chain(notes).collect::<Vec<_>>().join("; "))
            }
            // It takes clients, and what is published is relayed or waits.
            (true, Some(why)) => busy(&format!("degraded: {why}")),
            (false, why) => busy(&format!("not ready: {}", why.as_deref().unwrap_or("no master for too long"))),
        }
    }

    /// Returns what is wrong with the node, with its outbox included.
    pub(super) fn trouble(&self, detail: Detail) -> Option<String> {
        trouble(&self.status(), detail).or_else(|| self.outbox_trouble(detail))
    }

    /// Returns what is wrong with the node's outbox, or with the lack of one.
    fn outbox_trouble(&self, detail: Detail) -> Option<String> {
        match &self.0.outbox {
            Some(trouble) => {
                let (why, cause) = ("rows of the outbox wait", trouble.get()?);
                Some(match detail {
                    Detail::Reason => why.to_owned(),
                    Detail::Cause => format!("{why}: {cause}"),
                })
            }
            None => self.others_have_outbox().then(|| NO_OUTBOX.to_owned()),
        }
    }

    /// Returns true if a request is for a link of another node or a publisher.
    pub(super) fn is_link(&self, path: &str) -> bool {
        self.own_path(path) == Some(LINK)
    }

    /// Returns a request's path without the [prefix](crate::ServerBuilder::prefix), or `None` if the path lacks the
    /// prefix.
    pub(super) fn own_path<'a>(&self, path: &'a str) -> Option<&'a str> {
        match path.strip_prefix(&*self.0.prefix)? {
            "" => Some("/"),
            path => Some(path).filter(|path| path.starts_with('/')),
        }
    }

    /// Returns the methods that a path allows.
    fn options(&self, path: &str) -> Response<Full<Bytes>> {
        let reserved = RESERVED.iter().find(|(reserved, _)| *reserved == path);
        let allowed = match reserved {
            Some(_) if FOR_THE_SITE.contains(&path) && self.live().publish_key.is_none() => None,
            Some((_, methods)) => Some(*methods),
            None if path == self.0.path => Some(UPGRADES),
            None => self.0.pages.contains_key(path).then_some(READS),
        };
        let Some(allowed) = allowed else { return answer(StatusCode::NOT_FOUND, "not found") };
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::NO_CONTENT;
        response.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static(allowed));
        response
    }

    /// Returns a router with the paths of clients, of links, of the browser client, of pages and of the requests of a
    /// site. The latter get 404 while there is no publish key, which can be
    /// [set later](crate::LiveSettings::set_publish_key). `/health` and `/ready` are in
    /// [`health_routes`](Self::health_routes).
    ///
    /// Merge it into an application's router, or nest it there; then add the prefix to the
    /// [address](crate::ServerBuilder::address). Serve the application with
    /// `into_make_service_with_connect_info::<SocketAddr>()`, so that the server knows the addresses of clients.
    #[cfg(feature = "axum")]
    pub fn routes<S: Clone + Send + Sync + 'static>(&self) -> axum::Router<S> {
        let mut paths = vec![&*self.0.path, LINK, CLIENT];
        paths.extend(FOR_THE_SITE);
        paths.extend(self.0.pages.keys().map(String::as_str));
        self.router(paths)
    }

    /// Returns a router with `/health` and `/ready`, which answer as in [`handle`](Self::handle), for applications that
    /// have no such paths of their own: `server.routes().merge(server.health_routes())`.
    #[cfg(feature = "axum")]
    pub fn health_routes<S: Clone + Send + Sync + 'static>(&self) -> axum::Router<S> {
        self.router(vec![HEALTH, READY])
    }

    #[cfg(feature = "axum")]
    fn router<S: Clone + Send + Sync + 'static>(&self, paths: Vec<&str>) -> axum::Router<S> {
        paths.into_iter().fold(axum::Router::new(), |router, path| {
            let server = self.clone();
            let handle = move |request: axum::extract::Request| {
                let server = server.clone();
                async move { server.handle(request).await }
            };
            router.route(&format!("{}{path}", self.0.prefix), axum::routing::any(handle))
        })
    }

    /// Upgrades a link and hands it to the cluster, which asks for the key.
    fn link<B>(&self, mut request: Request<B>) -> Response<Full<Bytes>> {
        let response = match switching(&request) {
            Ok(response) => response,
            Err(refusal) => return *refusal,
        };
        let live = self.live();
        let from = remote_address(request.extensions());
        let ip = live.trusted_proxies.remote_ip(from, request.headers());
        // A proxy that names no client tells nothing about who comes.
        let ip = ip.filter(|ip| !live.trusted_proxies.contains(*ip));
        let upgrade = hyper::upgrade::on(&mut request);
        let cluster = self.0.cluster.clone();
        tokio::spawn(async move {
            match upgrade.await {
                Ok(upgraded) => match socket(upgraded) {
                    Ok((stream, leftover)) if leftover.is_empty() => {
                        cluster.serve_link(Box::new(stream), ip, from).await
                    }
                    Ok((stream, leftover)) => {
                        cluster.serve_link(Box::new(Rewound { leftover, stream }), ip, from).await
                    }
                    Err(upgraded) => cluster.serve_link(Box::new(TokioIo::new(upgraded)), ip, from).await,
                },
                Err(error) => tracing::debug!(%error, "the upgrade of a link did not come about"),
            }
        });
        response
    }
}

/// The note of `/ready` on nodes that may lose messages.
const ACCEPTS_WHEN_ISOLATED: &str = "accept_when_isolated is on: a failover may lose accepted messages";

/// What is wrong with a node without an outbox while others have one.
pub(super) const NO_OUTBOX: &str =
    "this node has no outbox, and others have one: while this node is the master, rows of the outbox wait";

/// How much is told of what is wrong with a node.
#[derive(Clone, Copy)]
pub(super) enum Detail {
    /// The reason alone, for everyone.
    Reason,
    /// The reason with the database's own error, which may name an account and an address.
    Cause,
}

/// Returns what is wrong with a node.
fn trouble(status: &Status, detail: Detail) -> Option<String> {
    let why = status.degraded?;
    Some(match (detail, &status.cause) {
        (Detail::Cause, Some(cause)) => format!("{why} ({cause})"),
        _ => why.to_string(),
    })
}

fn only_get() -> Response<Full<Bytes>> {
    let mut response = answer(StatusCode::METHOD_NOT_ALLOWED, "only GET");
    response.headers_mut().insert(header::ALLOW, http::HeaderValue::from_static(READS));
    response
}

fn document(content_type: &'static str, caching: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    headers.insert(header::CACHE_CONTROL, http::HeaderValue::from_static(caching));
    response
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;

    #[test]
    fn the_description_has_every_path_and_method() {
        let description: Value = serde_json::from_str(DESCRIPTION).unwrap();
        assert_eq!(description["info"]["version"], env!("CARGO_PKG_VERSION"));
        let methods = |path: &Value| {
            let mut methods: Vec<_> = path.as_object().unwrap().keys().map(|method| method.to_uppercase()).collect();
            methods.sort_unstable();
            methods
        };
        let described: BTreeMap<_, _> = description["paths"]
            .as_object()
            .unwrap()
            .iter()
            .map(|(path, item)| (path.as_str(), methods(item)))
            .collect();
        let reserved = RESERVED.map(|(path, methods)| {
            let mut methods: Vec<_> = methods.split(", ").map(str::to_owned).collect();
            methods.sort_unstable();
            (path, methods)
        });
        assert_eq!(described, BTreeMap::from(reserved));
        for path in FOR_THE_SITE {
            let operations = description["paths"][path].as_object().unwrap().iter();
            let open = operations.filter(|(method, operation)| *method != "options" && operation["security"].is_null());
            assert_eq!(open.count(), 0, "{path} needs the key");
        }
    }
}
