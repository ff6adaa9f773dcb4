//! `run`: runs a node, from its settings to the end of its shutdown.

use std::{
    env,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use sd_notify::NotifyState;
use tokio::{net::TcpListener, task::AbortHandle};
use url::{Host, Url};
use ws_cluster::{
    Backend, Config, Origin, ServeError, Server, ServerBuilder, TrustedProxies, outbox::Outbox, pool::PoolView,
};

use crate::{
    Failure, Outcome,
    admin::{self, Alone, Front, Listeners, Node},
    authentication::{self, Authenticators},
    cli::{AdminPage, Run},
    config::Settings,
    demo::Demo,
    logs, metrics, outbox, parent,
    pool::{self, Kind, Opened},
    probe::reachable,
    say,
    signals::Signals,
    stderr::Stderr,
    systemd,
    tls::Certificate,
    values::items,
};

/// Finds mistakes in the settings, as far as this is possible without a database and a listener.
pub(crate) fn check(settings: &Settings) -> Outcome {
    let Settings { run, config, .. } = settings;
    config.check().map_err(Failure::setup)?;
    if run.publish_key.as_deref() == Some("") {
        return Err(Failure::setup("--publish-key is empty: give a long random key, or leave it out"));
    }
    trusted_proxies(&run.trusted_proxy)?;
    allowed_origins(&run.allowed_origin)?;
    logs::check(run.log_filter.as_deref())?;
    authentication::tokens(&run.tokens)?;
    authentication::backend(&run.backend)?;
    outbox::check(run)?;
    Certificate::open(&run.tls)?;
    pool::check_keys(&run.place.keys)?;
    admin::check(&run.admin_page)
}

/// The parts of a node that are ready before it starts.
struct Parts {
    opened: Opened,
    keys: Vec<Vec<u8>>,
    backend: Option<Backend>,
    authenticators: Authenticators,
    outbox: Option<Arc<dyn Outbox>>,
    allowed_origins: Vec<Origin>,
    trusted_proxies: TrustedProxies,
    /// The address at which other nodes reach this one.
    address: String,
}

/// The sockets on which a node listens.
struct Sockets {
    clients: TcpListener,
    /// The address of `clients`.
    bound: SocketAddr,
    certificate: Option<Arc<Certificate>>,
    admin: AdminListener,
}

/// Runs a node until it is told to stop. `read_again` is called at SIGHUP.
pub(crate) async fn run(settings: Settings, read_again: impl FnMut(&Server) + Send + 'static) -> Outcome {
    if let Some(supervisor) = settings.run.supervision.supervised_by {
        parent::follow(supervisor)?;
    }
    let signals = Signals::catch().map_err(|error| Failure::setup(format!("signals cannot be caught: {error}")))?;
    check(&settings)?;
    let Settings { run, config, shown } = settings;
    let (parts, sockets) = open(&run, &config).await?;
    let demo = run.demo.then(Demo::new);
    let server = build(&run, config, parts, demo.as_ref(), sockets.bound).await?;
    let report = announce(&run, &server, demo, &sockets);
    let Sockets { clients, bound, certificate, admin } = sockets;
    let page = admin.serve(&run.admin_page, Node::new(server.clone(), shown), bound);
    if let Some(certificate) = certificate.clone() {
        certificate.warn();
        tokio::spawn(async move { certificate.follow().await });
    }
    let stop = stop(server.clone(), certificate.clone(), page, report, signals, read_again);
    let mut serve = server.serve(clients);
    if let Some(certificate) = certificate {
        serve = serve.with_tls(certificate.certificate.clone());
    }
    serve.with_graceful_shutdown(stop).await.map_err(|error| match error {
        ServeError::AddressTaken { .. } => Failure::setup(error),
        // The node ended without an order.
        _ => Failure::refused(error),
    })
}

/// Opens the pool and everything else that the flags name, and listens.
async fn open(run: &Run, config: &Config) -> Outcome<(Parts, Sockets)> {
    let trusted_proxies = trusted_proxies(&run.trusted_proxy)?;
    let allowed_origins = allowed_origins(&run.allowed_origin)?;
    let opened = Opened::for_node(&run.place).await?;
    let keys = opened.keys(&run.place.keys)?;
    let backend = authentication::backend(&run.backend)?;
    let authenticators = Authenticators::new(run, &opened, backend.as_ref())?;
    let outbox = outbox::open(run, &opened)?;
    let certificate = Certificate::open(&run.tls)?.map(Arc::new);
    let clients = listen(&run.listen).await?;
    let admin = AdminListener::bind(run).await?;
    let bound = clients.local_addr().map_err(|error| Failure::setup(format!("the listener is gone: {error}")))?;
    let address = address(run.address.as_deref(), bound, opened.kind);
    let reach = Reach::of(&address);
    if reach == Reach::Nobody {
        return Err(Failure::setup(format!(
            "no other node can reach this one at {address}: give --address ws://HOST:PORT with a host of its own"
        )));
    }
    // A node waits if its database goes down while the node runs. But if the database does not answer at the start, its
    // URL is probably wrong, and a line in the log would not be noticed.
    let view = opened.read(&run.place.cluster).await?;
    tell_pool(run, &opened, bound);
    if let Some(other) = find_out_of_reach(&address, &view, config.cluster.member_timeout) {
        tracing::warn!(
            address,
            other,
            "one of these nodes cannot be reached from other hosts: give each an --address that all reach"
        );
    }
    let parts = Parts { opened, keys, backend, authenticators, outbox, allowed_origins, trusted_proxies, address };
    Ok((parts, Sockets { clients, bound, certificate, admin }))
}

/// Starts the server.
async fn build(run: &Run, config: Config, parts: Parts, demo: Option<&Demo>, bound: SocketAddr) -> Outcome<Server> {
    let mut builder = Server::builder(parts.opened.pool)
        .cluster(&run.place.cluster)
        .address(parts.address)
        .path(&run.path)
        .guests(!run.no_guests)
        .dialect(run.dialect)
        .allowed_origins(parts.allowed_origins)
        .own_origin(!run.no_own_origin)
        .trusted_proxies(parts.trusted_proxies)
        .config(config);
    builder = parts.keys.into_iter().fold(builder, ServerBuilder::key);
    if let Some(key) = &run.publish_key {
        builder = builder.publish_key(key);
    }
    if let Some(authenticator) = parts.authenticators.checked().await? {
        builder = builder.authenticator(authenticator);
    }
    if let Some(backend) = &parts.backend {
        builder = match run.backend.no_backend_disconnect {
            true => backend.add_actions_to(builder),
            false => backend.add_to(builder),
        };
    }
    if let Some(outbox) = parts.outbox {
        outbox::prepare(&*outbox).await?;
        builder = builder.outbox(outbox);
    }
    if let Some(demo) = demo {
        if !bound.ip().is_loopback() {
            tracing::warn!("the demo accepts every name without proof, and everyone who reaches {bound} can use it");
        }
        builder = demo.add_to(builder, &run.path);
    }
    builder.start().await.map_err(Failure::setup)
}

/// Prints the address, and starts the tasks that report on the node: to the demo's pages, to systemd and as metrics.
/// Returns the task that reports to systemd.
fn announce(run: &Run, server: &Server, demo: Option<Demo>, sockets: &Sockets) -> AbortHandle {
    let bound = sockets.bound;
    let scheme = if sockets.certificate.is_some() { "https" } else { "http" };
    // The node does not depend on a reader of its standard output.
    let _ = say(format_args!("{scheme}://{bound}/"));
    if let Some(demo) = demo {
        let _ = say(format_args!("Open {scheme}://{}/?user=ann in a browser", reachable(bound)));
        tokio::spawn(demo.show(server.clone()));
    }
    let report = systemd::report(server.clone(), bound, run.path.clone(), run.supervision.check_timeout);
    let report = tokio::spawn(report).abort_handle();
    if !matches!(sockets.admin, AdminListener::Nowhere)
        && let Err(error) = metrics::install()
    {
        tracing::error!(%error, "the metrics cannot be recorded");
    }
    report
}

/// Waits until the node is told to stop: by a signal, over a link, or on the admin page. Calls `read_again` at SIGHUP
/// until then. Then ends `report`, because a node that does not listen any more fails its test connections.
async fn stop(
    server: Server,
    certificate: Option<Arc<Certificate>>,
    page: Option<Arc<Alone>>,
    report: AbortHandle,
    signals: Signals,
    mut read_again: impl FnMut(&Server) + Send + 'static,
) {
    let drained = server.clone();
    let read_again = move || {
        read_again(&server);
        certificate.iter().for_each(|certificate| certificate.reload());
    };
    let mut told = tokio::spawn(async move { signals.stop(read_again).await });
    tokio::select! {
        _ = &mut told => {}
        // `told` goes on: during such a drain, the first signal is ignored and the second one ends the process.
        () = drained.drain_requested() => {}
        () = ordered(page.as_deref()) => {}
    }
    page.inspect(|page| page.shut_down());
    report.abort();
    systemd::tell(&[NotifyState::Stopping, NotifyState::Status("shutting down")]);
}

/// The way in which an administrator reaches the node.
enum AdminListener {
    Nowhere,
    /// The supervisor serves the admin page, and asks the node on this socket.
    Supervisor(std::path::PathBuf),
    /// The node serves the admin page.
    Own(Listeners),
}

impl AdminListener {
    async fn bind(run: &Run) -> Outcome<Self> {
        if run.supervision.supervised_by.is_some() {
            return Ok(env::var_os(admin::SOCKET).map_or(Self::Nowhere, |path| Self::Supervisor(path.into())));
        }
        match &run.admin_page.admin {
            Some(address) => {
                // The page shows the log from the first line on.
                Stderr::get().keep();
                Ok(Self::Own(Listeners::bind(address, run.admin_page.admin_key.is_some()).await?))
            }
            None => Ok(Self::Nowhere),
        }
    }

    /// Serves the admin page, or answers the supervisor.
    fn serve(self, page: &AdminPage, node: Node, bound: SocketAddr) -> Option<Arc<Alone>> {
        match self {
            Self::Nowhere => None,
            Self::Supervisor(path) => {
                tokio::spawn(admin::serve_supervisor(path, Arc::new(node)));
                None
            }
            Self::Own(listeners) => {
                let alone = Arc::new(Alone::new(Arc::new(node), bound));
                let (page, service) = (page.clone(), alone.clone());
                tokio::spawn(async move {
                    if let Err(why) = Front::serve(listeners, &page, service).await {
                        tracing::error!("there is no admin page: {}", why.text);
                    }
                });
                Some(alone)
            }
        }
    }
}

/// Waits until the admin page orders the node to stop. Without a page, this waits for ever.
async fn ordered(page: Option<&Alone>) {
    match page {
        Some(page) => page.stopped().await,
        None => std::future::pending().await,
    }
}

/// Logs the pool before anything else. If a node is started without its environment, it forms a cluster of its own, and
/// only this line shows it.
fn tell_pool(run: &Run, opened: &Opened, bound: SocketAddr) {
    let (pool, cluster) = (opened.name(), &run.place.cluster);
    if !opened.is_default {
        tracing::info!(pool, cluster, "starting");
        return;
    }
    let belongs_to_others = !bound.ip().is_loopback()
        || run.address.is_some()
        || run.session_cookie.is_some()
        || run.publish_key.is_some()
        || run.no_guests
        || !run.allowed_origin.is_empty()
        || !run.trusted_proxy.is_empty();
    if belongs_to_others {
        tracing::warn!(
            pool,
            cluster,
            "no pool was given (--pool, WS_SERVER_POOL): only nodes of this user on this machine find this one"
        );
    } else {
        tracing::info!(pool, cluster, "starting; no pool was given (--pool, WS_SERVER_POOL)");
    }
}

/// Returns the address of a live node that cannot reach this one or cannot be reached from it, because only one of the
/// two has a loopback address.
fn find_out_of_reach<'a>(own: &str, view: &'a PoolView, member_timeout: Duration) -> Option<&'a str> {
    let living = view.nodes.iter().filter(|node| node.age <= member_timeout && node.address != own);
    let mut addresses = living.map(|node| node.address.as_str());
    addresses.find(|address| Reach::of(address) != Reach::of(own))
}

async fn listen(address: &str) -> Outcome<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        Failure::setup(match error.kind() {
            ErrorKind::AddrInUse => {
                format!("{address} is taken: stop what listens there, or give another --listen (port 0 picks one)")
            }
            ErrorKind::InvalidInput => format!("{address:?} is no HOST:PORT: give --listen 127.0.0.1:8080"),
            ErrorKind::PermissionDenied => {
                format!("this user may not listen at {address}: give --listen with a port above 1023")
            }
            _ => format!("the node cannot listen at {address} ({error}): give another --listen"),
        })
    })
}

pub(crate) fn trusted_proxies(given: &[String]) -> Outcome<TrustedProxies> {
    let given = items(given, "--trusted-proxy")?;
    if given.is_empty() {
        return Ok(TrustedProxies::default());
    }
    given.join(",").parse().map_err(|error| Failure::setup(format!("--trusted-proxy: {error}")))
}

pub(crate) fn allowed_origins(given: &[String]) -> Outcome<Vec<Origin>> {
    let parsed = |origin: String| origin.parse().map_err(|error| Failure::setup(format!("--allowed-origin: {error}")));
    items(given, "--allowed-origin")?.into_iter().map(parsed).collect()
}

/// Returns the address at which other nodes reach this one.
fn address(given: Option<&str>, bound: SocketAddr, kind: Kind) -> String {
    match given {
        Some(address) => address.to_owned(),
        None if kind == Kind::MySql => format!("ws://{bound}"),
        None => format!("ws://{}", reachable(bound)),
    }
}

/// The machines that can reach an address, as far as its text shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    Nobody,
    ThisHost,
    Others,
}

impl Reach {
    /// Classifies an address. For a malformed one it returns `Others`: the library reports what is wrong with it.
    fn of(address: &str) -> Self {
        let url = Url::parse(address).ok();
        let ip = match url.as_ref().and_then(Url::host) {
            Some(Host::Ipv4(ip)) => IpAddr::from(ip),
            Some(Host::Ipv6(ip)) => IpAddr::from(ip),
            Some(Host::Domain("localhost")) => return Self::ThisHost,
            Some(Host::Domain(_)) | None => return Self::Others,
        };
        match () {
            () if ip.is_unspecified() => Self::Nobody,
            () if ip.is_loopback() => Self::ThisHost,
            () => Self::Others,
        }
    }
}
