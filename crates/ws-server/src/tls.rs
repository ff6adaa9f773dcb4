//! The certificate of a node that serves TLS itself: read at the start, when its files change, and at SIGHUP.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::PathBuf,
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use tokio::time::{MissedTickBehavior, interval};
use ws_cluster::TlsCertificate;

use crate::{Failure, Outcome, cli::Tls};

/// Time before the end of a certificate from which on the log warns of it. Tools renew certificates weeks before.
const END_IS_NEAR: Duration = Duration::from_secs(7 * DAY);
const DAY: u64 = 24 * 60 * 60;

/// Time between two checks whether the files have changed.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// A certificate, with its files.
pub(crate) struct Certificate {
    pub(crate) certificate: TlsCertificate,
    files: [PathBuf; 2],
    /// The state of the files before they were first read.
    opened: Stamps,
    trouble: Mutex<Trouble>,
}

/// Inode number, size and modification time of the certificate's file and of the key's file. The inode number shows an
/// exchange within one tick of the clock.
type Stamps = [Option<(u64, u64, SystemTime)>; 2];

/// What is wrong with the files at the moment.
#[derive(Default)]
struct Trouble {
    /// True if they could not be used when they were last read.
    persists: bool,
    /// The last reason that was logged.
    logged: Option<String>,
}

/// How near the end of a certificate is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Far,
    /// It comes after this many whole days.
    Near(u64),
    Over,
}

impl End {
    fn of(expires: SystemTime, now: SystemTime) -> Self {
        match expires.duration_since(now) {
            Err(_) => Self::Over,
            Ok(left) if left < END_IS_NEAR => Self::Near(left.as_secs() / DAY),
            Ok(_) => Self::Far,
        }
    }

    fn log(self) {
        match self {
            Self::Far => {}
            Self::Near(days) => tracing::warn!(days, "the certificate in use ends soon and has not been renewed"),
            Self::Over => tracing::error!("the certificate in use has ended: clients refuse it"),
        }
    }
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
        let files = [cert.clone(), key.clone()];
        // Before the files are read, so that a later change is noticed.
        let opened = stamps(&files);
        let certificate = TlsCertificate::from_pem_files(cert, key).map_err(Failure::setup)?;
        Ok(Some(Self { certificate, files, opened, trouble: Mutex::default() }))
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
        self.read_again(true);
    }

    /// Reads the files again. If `tells_at_once` is false, the first failure is not logged, because the two files are
    /// renewed one after the other.
    fn read_again(&self, tells_at_once: bool) {
        let mut trouble = self.trouble.lock();
        match self.certificate.reload() {
            Ok(changed) => {
                if changed {
                    tracing::info!("new connections get the certificate that was read again");
                }
                *trouble = Trouble::default();
            }
            Err(error) => {
                let why = error.to_string();
                let persists = std::mem::replace(&mut trouble.persists, true);
                if (persists || tells_at_once) && trouble.logged.as_ref() != Some(&why) {
                    tracing::error!("the certificate is not read again, and the old one stays in use: {why}");
                    trouble.logged = Some(why);
                }
            }
        }
    }

    /// Reads the files again whenever they change, and warns once a day if the certificate ends soon.
    pub(crate) async fn follow(&self) {
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut seen = self.opened;
        let mut end = End::Far;
        loop {
            look.tick().await;
            let now = stamps(&self.files);
            // After a failure the files are read again each time, because they may have been written only in part.
            if now != seen || self.trouble.lock().persists {
                self.read_again(false);
                seen = now;
            }
            let expires = self.certificate.expires();
            let next = expires.map_or(End::Far, |expires| End::of(expires, SystemTime::now()));
            if std::mem::replace(&mut end, next) != next {
                next.log();
            }
        }
    }
}

fn stamps(files: &[PathBuf; 2]) -> Stamps {
    files.each_ref().map(|path| {
        let found = fs::metadata(path).ok()?;
        Some((found.ino(), found.len(), found.modified().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    /// Exchanges the files of a certificate, or only that of its key, as tools that renew certificates do.
    fn renew(directory: &TempDir, only_key: bool) {
        let new = rcgen::generate_simple_self_signed(["node.test".to_owned()]).unwrap();
        let files = [("key.pem", new.signing_key.serialize_pem()), ("cert.pem", new.cert.pem())];
        for (name, text) in files.into_iter().take(if only_key { 1 } else { 2 }) {
            let written = directory.path().join("new");
            fs::write(&written, text).unwrap();
            fs::rename(&written, directory.path().join(name)).unwrap();
        }
    }

    fn open(directory: &TempDir) -> Certificate {
        let [cert, key] = ["cert.pem", "key.pem"].map(|name| Some(directory.path().join(name)));
        let opened = Certificate::open(&Tls { tls_cert: cert, tls_key: key });
        opened.unwrap_or_else(|_| panic!("a certificate")).expect("it is given")
    }

    #[test]
    fn a_certificate_that_ends_soon_is_told_once_a_day() {
        let directory = TempDir::new().unwrap();
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(2_000_000_000);
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(["node.test".to_owned()]).unwrap();
        params.not_after = (now + Duration::from_secs(8 * DAY)).into();
        fs::write(directory.path().join("cert.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
        fs::write(directory.path().join("key.pem"), key.serialize_pem()).unwrap();
        let expires = open(&directory).certificate.expires().expect("an end");
        let after = |hours: u64| End::of(expires, now + Duration::from_secs(hours * 60 * 60));
        assert_eq!([0, 24].map(after), [End::Far; 2]);
        assert_eq!([25, 48].map(after), [End::Near(6); 2]);
        assert_eq!([49, 191, 193].map(after), [End::Near(5), End::Near(0), End::Over]);
    }

    /// Lets a few looks at the files pass.
    async fn follow(certificate: &Certificate) {
        timeout(3 * LOOK_INTERVAL, certificate.follow()).await.expect_err("it follows for ever");
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_that_is_renewed_while_the_node_starts_is_used() {
        let directory = TempDir::new().unwrap();
        renew(&directory, false);
        let certificate = open(&directory);
        renew(&directory, false);
        follow(&certificate).await;
        assert!(!certificate.certificate.reload().unwrap(), "it is in use");
    }

    #[tokio::test(start_paused = true)]
    async fn a_certificate_whose_key_follows_a_moment_later_is_no_trouble_for_the_log() {
        let directory = TempDir::new().unwrap();
        renew(&directory, false);
        let certificate = open(&directory);
        renew(&directory, true);
        certificate.read_again(false);
        assert_eq!(certificate.trouble.lock().logged, None);
        renew(&directory, false);
        follow(&certificate).await;
        assert_eq!(certificate.trouble.lock().logged, None);
        assert!(!certificate.certificate.reload().unwrap(), "it is in use");
        // A key that never fits is one, and so is one that does not fit at SIGHUP.
        renew(&directory, true);
        follow(&certificate).await;
        assert!(certificate.trouble.lock().logged.take().is_some());
        certificate.reload();
        assert!(certificate.trouble.lock().logged.is_some());
    }
}
