//! TLS on the listeners of [`serve`](super::Server::serve): the certificate, and its exchange while a server runs.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use parking_lot::{Mutex, RwLock};
use rustls::{
    CertificateError, RootCertStore, ServerConfig,
    client::verify_server_cert_signed_by_trust_anchor,
    crypto::ring::{self, Ticketer},
    pki_types::{
        CertificateDer, PrivateKeyDer, UnixTime,
        pem::{self, PemObject},
    },
    server::{ClientHello, NoServerSessionStorage, ParsedCertificate, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::TcpStream,
    time::{Instant, timeout_at},
};
use tokio_rustls::TlsAcceptor;

use super::socket::Socket;
use crate::send_queue::EagerSocket;

/// The first byte of a TLS connection: a handshake record. HTTP begins with a letter.
const HANDSHAKE: u8 = 0x16;

/// The only protocol that is offered. Browsers would try WebSockets over HTTP/2 otherwise.
const PROTOCOL: &[u8] = b"http/1.1";

/// A certificate with its private key, from two PEM files, for [`Serve::with_tls`](super::Serve::with_tls).
///
/// Clones share the certificate: [`reload`](Self::reload) exchanges it for all listeners. It serves TLS 1.2 and 1.3.
///
/// ```no_run
/// # async fn f(server: ws_cluster::Server) -> Result<(), Box<dyn std::error::Error>> {
/// use ws_cluster::TlsCertificate;
///
/// let certificate = TlsCertificate::from_pem_files("fullchain.pem", "privkey.pem")?;
/// let listener = tokio::net::TcpListener::bind("0.0.0.0:443").await?;
/// server.serve(listener).with_tls(certificate).await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct TlsCertificate(Arc<Shared>);

struct Shared {
    files: Files,
    /// The contents of the files that are in use. A synchronous lock, held while the files are read again.
    contents: Mutex<Contents>,
    resolver: Arc<Resolver>,
    acceptor: TlsAcceptor,
}

struct Files {
    chain: PathBuf,
    key: PathBuf,
}

#[derive(PartialEq)]
struct Contents {
    chain: Vec<u8>,
    key: Vec<u8>,
}

/// The reason why a certificate cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read.
    #[error("{} cannot be read: {source}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The file of the certificate has no certificate in PEM.
    #[error("{} has no certificate in PEM: give the certificate with its chain (-----BEGIN CERTIFICATE-----)", path.display())]
    NoCertificate {
        /// The file.
        path: PathBuf,
    },
    /// The file of the key has no private key in PEM.
    #[error("{} has no private key in PEM: give the key of the certificate (-----BEGIN PRIVATE KEY-----)", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
    },
    /// The private key has a passphrase, and nobody can type it when the server starts.
    #[error("the private key in {} has a passphrase: remove it, as with `openssl pkey`", path.display())]
    EncryptedKey {
        /// The file.
        path: PathBuf,
    },
    /// A file is not PEM.
    #[error("{} is not PEM: {why}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// Where it stops being PEM.
        why: String,
    },
    /// The certificate and the private key are readable, but cannot be used together.
    #[error("{} and {} cannot be used: {source}", chain.display(), key.display())]
    Unusable {
        /// The file of the certificate.
        chain: PathBuf,
        /// The file of the private key.
        key: PathBuf,
        /// What is wrong with them, such as a key of another certificate.
        source: rustls::Error,
    },
}

impl TlsCertificate {
    /// Reads the certificate with its chain, the server's own one first, and the private key (PKCS #8, PKCS #1 or SEC 1).
    ///
    /// # Errors
    /// [`TlsError`] if a file cannot be read or used, or if the key is not the certificate's.
    pub fn from_pem_files(chain: impl AsRef<Path>, key: impl AsRef<Path>) -> Result<Self, TlsError> {
        let files = Files { chain: chain.as_ref().to_owned(), key: key.as_ref().to_owned() };
        let contents = files.read()?;
        let resolver = Arc::new(Resolver(RwLock::new(Arc::new(files.certified(&contents)?))));
        let unusable = |source| TlsError::Unusable { chain: files.chain.clone(), key: files.key.clone(), source };
        let builder = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().map_err(unusable)?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(resolver.clone());
        config.alpn_protocols = vec![PROTOCOL.to_vec()];
        // A client keeps what it needs to come back quickly, so that nothing is kept here for those that do not.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new().map_err(unusable)?;
        let acceptor = TlsAcceptor::from(Arc::new(config));
        Ok(Self(Arc::new(Shared { files, contents: Mutex::new(contents), resolver, acceptor })))
    }

    /// Reads the files again and uses them for new connections. Connections that are open keep the old certificate.
    /// Returns true if the files have changed.
    ///
    /// # Errors
    /// [`TlsError`] as from [`from_pem_files`](Self::from_pem_files). The old certificate then stays in use. Between the
    /// renewals of its two files, a certificate does not match its key: try again a moment later.
    pub fn reload(&self) -> Result<bool, TlsError> {
        let Shared { files, contents, resolver, .. } = &*self.0;
        // Locked first, so that of two calls at the same time the later reader wins.
        let mut contents = contents.lock();
        let new = files.read()?;
        if *contents == new {
            return Ok(false);
        }
        *resolver.0.write() = Arc::new(files.certified(&new)?);
        *contents = new;
        Ok(true)
    }

    /// Returns the time at which the certificate in use ends, or `None` if the certificate does not tell it.
    pub fn expires(&self) -> Option<SystemTime> {
        let certified = self.0.resolver.0.read().clone();
        let own = ParsedCertificate::try_from(certified.cert.first()?).ok()?;
        // The check of the dates comes first. At the end of time it fails, and its error has the end of the certificate.
        let end_of_time = UnixTime::since_unix_epoch(Duration::from_secs(u64::MAX));
        let no_roots = RootCertStore::empty();
        match verify_server_cert_signed_by_trust_anchor(&own, &no_roots, &[], end_of_time, &[]) {
            Err(rustls::Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => {
                UNIX_EPOCH.checked_add(Duration::from_secs(not_after.as_secs()))
            }
            _ => None,
        }
    }

    /// Accepts a connection within the time limit. One that does not speak TLS comes back as a plain socket, and one that
    /// sends nothing as `None`: a check of the port, or a browser's connection in reserve.
    pub(super) async fn accept(&self, stream: TcpStream, limit: Duration) -> io::Result<Option<Socket>> {
        let until = Instant::now() + limit;
        let mut first = [0];
        match timeout_at(until, stream.peek(&mut first)).await {
            Ok(Ok(1..)) if first == [HANDSHAKE] => {}
            Ok(Ok(1..)) => return Ok(Some(Socket::Tcp(stream))),
            Ok(Ok(0) | Err(_)) | Err(_) => return Ok(None),
        }
        let handshake = timeout_at(until, self.0.acceptor.accept(EagerSocket::new(stream))).await;
        Ok(Some(Socket::Tls(Box::new(handshake.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?))))
    }
}

impl fmt::Debug for TlsCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TlsCertificate").field(&self.0.files.chain).finish()
    }
}

impl Files {
    fn read(&self) -> Result<Contents, TlsError> {
        let read =
            |path: &Path| fs::read(path).map_err(|source| TlsError::Unreadable { path: path.to_owned(), source });
        Ok(Contents { chain: read(&self.chain)?, key: read(&self.key)? })
    }

    fn certified(&self, Contents { chain, key }: &Contents) -> Result<CertifiedKey, TlsError> {
        let malformed = |path: &Path, error: pem::Error| TlsError::Malformed {
            path: path.to_owned(),
            why: match error {
                pem::Error::IllegalSectionStart { .. } => "a section has no proper begin".to_owned(),
                pem::Error::MissingSectionEnd { .. } => "a section has no end".to_owned(),
                error => error.to_string(),
            },
        };
        let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(chain)
            .collect::<Result<_, _>>()
            .map_err(|error| malformed(&self.chain, error))?;
        if chain.is_empty() {
            return Err(TlsError::NoCertificate { path: self.chain.clone() });
        }
        let own = PrivateKeyDer::from_pem_slice(key).map_err(|error| match error {
            pem::Error::NoItemsFound if is_encrypted(key) => TlsError::EncryptedKey { path: self.key.clone() },
            pem::Error::NoItemsFound => TlsError::NoKey { path: self.key.clone() },
            error => malformed(&self.key, error),
        })?;
        CertifiedKey::from_der(chain, own, &ring::default_provider()).map_err(|source| TlsError::Unusable {
            chain: self.chain.clone(),
            key: self.key.clone(),
            source,
        })
    }
}

/// Returns true if a file of PEM has a private key with a passphrase: in PKCS #8, or in the older form.
fn is_encrypted(key: &[u8]) -> bool {
    let text = String::from_utf8_lossy(key);
    text.contains("BEGIN ENCRYPTED PRIVATE KEY") || text.contains("Proc-Type: 4,ENCRYPTED")
}

/// The certificate of the next connection.
struct Resolver(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Resolver {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().clone())
    }
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Resolver")
    }
}
