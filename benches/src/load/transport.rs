//! The stream of one client: TCP, or TLS on it.

use std::{
    fs,
    io::{self, ErrorKind, Read, Write},
    sync::Arc,
};

use benches::Result;
use mio::net::TcpStream;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore,
    client::Resumption,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};

use super::order::Recipe;

/// A stream that never blocks.
pub(super) struct Transport {
    pub(super) stream: TcpStream,
    tls: Option<Box<ClientConnection>>,
}

/// Returns the settings of clients that trust the certificate of a server, if the server speaks TLS.
pub(super) fn trust(recipe: &Recipe) -> Result<Option<Arc<ClientConfig>>> {
    let Some(certificate) = &recipe.certificate else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&fs::read(certificate)?)?)?;
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    // Each client is another visitor.
    config.resumption = Resumption::disabled();
    Ok(Some(Arc::new(config)))
}

impl Transport {
    pub(super) fn new(stream: TcpStream, tls: Option<Arc<ClientConfig>>) -> Result<Self> {
        let name = ServerName::try_from("localhost")?;
        let tls = tls.map(|config| ClientConnection::new(config, name)).transpose()?.map(Box::new);
        Ok(Self { stream, tls })
    }

    /// Returns true if a read that does not fill its buffer has read everything that has come.
    pub(super) fn reads_all(&self) -> bool {
        self.tls.is_none()
    }

    /// Writes what TLS has to send. The rest is written after the next read.
    fn flush_tls(&mut self) -> io::Result<()> {
        let Some(tls) = &mut self.tls else { return Ok(()) };
        while tls.wants_write() {
            match tls.write_tls(&mut self.stream) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                written => drop(written?),
            }
        }
        Ok(())
    }
}

impl Read for Transport {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(tls) = &mut self.tls else { return self.stream.read(buffer) };
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                read => return read,
            }
            if tls.read_tls(&mut self.stream)? == 0 {
                return Ok(0);
            }
            tls.process_new_packets().map_err(io::Error::other)?;
            self.flush_tls()?;
        }
    }
}

impl Write for Transport {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.stream.write(bytes) };
        // Until the end of the handshake, it only keeps the bytes.
        let size = tls.writer().write(bytes)?;
        self.flush_tls()?;
        Ok(size)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush_tls()
    }
}
