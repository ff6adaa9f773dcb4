//! One address in front of servers that come and go, like a site's proxy.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
    task::AbortHandle,
};

/// Forwards TCP connections to the present server. When dropped, it closes its port and all its connections.
#[derive(Debug)]
pub struct Forwarder {
    address: SocketAddr,
    /// A watch, since connections end when the server changes.
    server: watch::Sender<Option<SocketAddr>>,
    accepting: AbortHandle,
}

impl Forwarder {
    /// Listens on a port of its own, in front of `server`.
    pub async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a bound socket");
        let (server, servers) = watch::channel(Some(server));
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(forward(client, servers.clone()));
            }
        });
        Self { address, server, accepting: accepting.abort_handle() }
    }

    /// Returns the address for clients.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Cuts every connection, and forwards new ones to `server`. Without a server, they end at once.
    pub fn switch(&self, server: Option<SocketAddr>) {
        self.server.send_replace(server);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn forward(mut client: TcpStream, mut server: watch::Receiver<Option<SocketAddr>>) {
    let Some(address) = *server.borrow_and_update() else { return };
    let through = async {
        let mut backend = TcpStream::connect(address).await?;
        client.set_nodelay(true)?;
        backend.set_nodelay(true)?;
        copy_bidirectional(&mut client, &mut backend).await
    };
    tokio::select! {
        // If either side is gone, both connections end.
        _ = through => {}
        // The server was switched, or the forwarder dropped.
        _ = server.changed() => {}
    }
}
