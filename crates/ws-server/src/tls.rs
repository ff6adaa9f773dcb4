//! The certificate of a node that serves TLS itself: read at the start, when its files change, and at SIGHUP.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use ws_cluster::TlsCertificate;

use crate::{Failure, Outcome, cli::Tls};

/// Time between two checks whether the files have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// A certificate, with its files.
pub(crate) struct Certificate {
    pub(crate) certificate: TlsCertificate,
    files: [PathBuf; 2],
    /// The last reason that was logged why the files cannot be used.
    trouble: Mutex<Option<String>>,
}

impl Certificate {
    /// Reads the certificate that the flags name. Returns `None` if they name none.
    pub(crate) fn open(given: &Tls) -> Outcome<Option<Self>> {
        let (cert, key) = match (&given.tls_cert, &given.tls_key) {
            (None, None) => return Ok(None),
            (Some(cert), Some(key)) => (cert, key),
            (Some(_), None) => {
                return Err(Failure::setup("--tls-cert needs --tls-key FILE, the private key of the certificate"));
            }
            (None, Some(_)) => {
                return Err(Failure::setup("--tls-key needs --tls-cert FILE, the certificate with its chain"));
            }
        };
        let certificate = TlsCertificate::from_pem_files(cert, key).map_err(Failure::setup)?;
        let files = [cert.clone(), key.clone()];
        Ok(Some(Self { certificate, files, trouble: Mutex::default() }))
    }

    /// Warns if every user of the machine can read the private key.
    pub(crate) fn warn(&self) {
        let [_, key] = &self.files;
        if fs::metadata(key).is_ok_and(|found| found.permissions().mode() & 0o007 != 0) {
            let key = key.display();
            tracing::warn!("every user of this machine can read the private key in {key}: chmod o= {key}");
        }
    }

    /// Reads the files again. If they cannot be used, nothing changes, and each reason is logged once.
    pub(crate) fn reload(&self) {
        let mut trouble = self.trouble.lock();
        match self.certificate.reload() {
            Ok(changed) => {
                if changed {
                    tracing::info!("new connections get the certificate that was read again");
                }
                *trouble = None;
            }
            Err(error) => {
                let why = error.to_string();
                if trouble.as_ref() != Some(&why) {
                    tracing::error!("the certificate is not read again, and the old one stays in use: {why}");
                    *trouble = Some(why);
                }
            }
        }
    }

    /// Reads the files again whenever they change.
    pub(crate) async fn follow(&self) {
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = self.stamps();
        loop {
            look.tick().await;
            let now = self.stamps();
            // After a failure the files are read again each time, because they may have been written only in part.
            if now != seen || self.trouble.lock().is_some() {
                self.reload();
                seen = now;
            }
        }
    }

    /// Returns the size and the time of the last change of both files.
    fn stamps(&self) -> [Option<(u64, SystemTime)>; 2] {
        self.files.each_ref().map(|path| {
            let found = fs::metadata(path).ok()?;
            Some((found.len(), found.modified().ok()?))
        })
    }
}
