//! Certificates for tests, and clients that trust nothing else.

use std::{io, net::SocketAddr, sync::Arc};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, ServerName},
};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::client::soon;

/// The host of all certificates.
pub const HOST: &str = "node.test";

/// A certificate with its private key, both in PEM.
pub struct Certificate {
    /// The certificate as clients trust it.
    pub der: CertificateDer<'static>,
    /// The certificate as a file.
    pub pem: String,
    /// The private key as a file.
    pub key: String,
}

impl Certificate {
    /// Makes a certificate.
    pub fn new() -> Self {
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed([HOST.to_owned()]).expect("a certificate");
        Self { der: cert.der().clone(), pem: cert.pem(), key: signing_key.serialize_pem() }
    }

    /// Connects over TLS and offers these protocols (ALPN).
    ///
    /// # Errors
    /// No connection, or the server has another certificate.
    pub async fn connect(&self, address: SocketAddr, protocols: &[&[u8]]) -> io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).expect("a certificate");
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        let mut config = builder.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from(HOST).expect("a name");
        soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }
}

impl Default for Certificate {
    fn default() -> Self {
        Self::new()
    }
}
