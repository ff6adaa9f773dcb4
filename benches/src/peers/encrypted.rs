//! ws-cluster with TLS for its clients: its own, or that of nginx in front of it, beside a server without.

use std::{fs, process::Command};

use benches::Result;
use tempfile::TempDir;

use super::{Ours, Peer, Place, foreign};
use crate::{load::order::Recipe, process::free_ports};

/// The process that encrypts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Front {
    /// None: the connections are not encrypted.
    None,
    Own,
    Nginx,
}

/// ws-cluster behind such a front. Messages are published within its process.
pub(crate) struct Encrypted<'a> {
    pub(crate) front: Front,
    pub(crate) certificate: &'a Certificate,
}

/// A certificate for `localhost` with its key, in files.
pub(crate) struct Certificate {
    directory: TempDir,
}

impl Certificate {
    pub(crate) fn make() -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("benches-").tempdir()?;
        let certified = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
        fs::write(directory.path().join("chain.pem"), certified.cert.pem())?;
        fs::write(directory.path().join("key.pem"), certified.signing_key.serialize_pem())?;
        Ok(Self { directory })
    }

    fn files(&self) -> [std::path::PathBuf; 2] {
        ["chain.pem", "key.pem"].map(|name| self.directory.path().join(name))
    }
}

impl Peer for Encrypted<'_> {
    fn name(&self) -> &'static str {
        match self.front {
            Front::None => "ws-cluster without TLS",
            Front::Own => "ws-cluster with TLS",
            Front::Nginx => "ws-cluster behind nginx with TLS",
        }
    }

    fn missing(&self) -> Option<String> {
        if self.front == Front::Nginx { foreign::nginx() } else { None }
    }

    fn command(&self, place: &Place) -> Result<Command> {
        let ours = |place| Ours::default().command(&place);
        let [chain, key] = self.certificate.files();
        let Place { port, control } = *place;
        Ok(match self.front {
            Front::None => ours(Place { port, control })?,
            Front::Own => {
                let mut command = ours(Place { port, control })?;
                command.arg("--tls-cert").arg(chain).arg("--tls-key").arg(key);
                command
            }
            Front::Nginx => {
                let [upstream] = free_ports()?;
                let ours = ours(Place { port: upstream, control })?;
                let mut command = foreign::script("nginx-tls", place);
                command.arg(upstream.to_string()).arg(chain).arg(key).arg(ours.get_program()).args(ours.get_args());
                command
            }
        })
    }

    fn recipe(&self) -> Recipe {
        let [chain, _] = self.certificate.files();
        Recipe { certificate: (self.front != Front::None).then_some(chain), ..Ours::default().recipe() }
    }

    fn publish(&self, messages: usize) -> String {
        Ours::publish_to("all", messages)
    }
}
