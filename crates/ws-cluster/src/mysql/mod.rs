//! The parts that the pool, the outbox and the session table share for MySQL and MariaDB: the URL, the texts of errors, a
//! guard against panics of the driver, and statements on tables of their own.

use std::{any::Any, borrow::Cow, fmt, future::Future, panic::AssertUnwindSafe};

use futures_util::FutureExt;
use mysql_async::{DriverError, Error, IoError};

mod tables;
mod url;

pub(crate) use self::{
    tables::{StatementError, StatementResult, Tables, Trouble, code},
    url::{Database, parse},
};

/// Runs a call of the driver and converts a panic into an error. The driver panics on some packets that it does not
/// expect. The connection must not be used after that.
pub(crate) async fn guarded<T>(call: impl Future<Output = mysql_async::Result<T>>) -> mysql_async::Result<T> {
    caught(call).await?
}

/// Runs several calls of the driver like [`guarded`], with a result of their own.
pub(crate) async fn caught<T>(calls: impl Future<Output = T>) -> mysql_async::Result<T> {
    let outcome = AssertUnwindSafe(calls).catch_unwind().await;
    outcome.map_err(|panic| Error::Other(Box::new(Panicked(text_of(&*panic)))))
}

/// A panic of the driver.
#[derive(Debug, thiserror::Error)]
#[error("the database driver failed: {0}")]
struct Panicked(String);

fn text_of(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    // The text of an `unwrap` may repeat any bytes.
    text.unwrap_or("a panic without a text").chars().take(200).collect()
}

/// Formats the error as one short line, without the layers that the driver puts before it, and with a remedy if one is
/// known.
pub(crate) fn plain(error: &Error) -> impl fmt::Display {
    match error {
        Error::Server(error) => match cause(error.code) {
            Some(cause) => Cow::Owned(format!("{cause} (ERROR {}: {})", error.code, error.message)),
            None => error.to_string().into(),
        },
        Error::Driver(DriverError::UnknownAuthPlugin { name }) => format!(
            "the account's authentication plug-in {name:?} is not supported: use mysql_native_password, \
             caching_sha2_password, ed25519, parsec or, on a socket, unix_socket"
        )
        .into(),
        Error::Driver(DriverError::MysqlOldPasswordDisabled) => {
            "the account has a password of before MySQL 4.1, which is not supported: set the password again".into()
        }
        Error::Driver(DriverError::CleartextPluginDisabled) => {
            "the account's authentication plug-in wants the password in clear text: allow it with \
             enable_cleartext_plugin=true and require_ssl=true"
                .into()
        }
        Error::Driver(DriverError::NoClientSslFlagFromServer) => {
            "the server does not offer TLS: set its ssl_cert and ssl_key, or leave out require_ssl".into()
        }
        Error::Driver(error) => error.to_string().into(),
        Error::Io(IoError::Io(error)) if is_certificate(error) => {
            format!("{error}; see ssl_ca, ssl_hostname and verify_ca in the URL").into()
        }
        Error::Io(IoError::Io(error)) => error.to_string().into(),
        #[cfg(feature = "mysql-tls")]
        Error::Io(IoError::Tls(error)) => format!("TLS: {error}").into(),
        Error::Other(error) => error.to_string().into(),
        error => Cow::<str>::Owned(error.to_string()),
    }
}

/// Returns true if another attempt gives the same error until someone changes the URL, the account or the server.
pub(crate) fn is_permanent(error: &Error) -> bool {
    match error {
        Error::Driver(error) => matches!(
            error,
            DriverError::UnknownAuthPlugin { .. }
                | DriverError::MysqlOldPasswordDisabled
                | DriverError::CleartextPluginDisabled
                | DriverError::NoClientSslFlagFromServer
        ),
        Error::Server(error) => is_login_refusal(error.code),
        Error::Io(IoError::Io(error)) => is_certificate(error),
        #[cfg(feature = "mysql-tls")]
        Error::Io(IoError::Tls(_)) => true,
        _ => false,
    }
}

/// Returns true if the server refuses the account, the host or the database, which only an administrator can change.
pub(crate) fn is_login_refusal(code: u16) -> bool {
    match code {
        // No privilege, no password, no database, host blocked or not allowed, socket account over TCP.
        1044 | 1045 | 1049 | 1129 | 1130 | 1698 => true,
        // Old or unknown kind of password, expired password, locked account, TLS required.
        1251 | 1275 | 1524 | 1820 | 1862 | 3118 | 3159 | 4151 => true,
        _ => false,
    }
}

/// Returns true if the server's certificate was refused. The driver passes the TLS library's error on as this one.
fn is_certificate(error: &std::io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.to_string().contains("certificate"))
}

/// Returns the meaning of a server's code, if the server's message is long or unclear. The codes are from the manuals
/// of MySQL, MariaDB and Galera.
fn cause(code: u16) -> Option<&'static str> {
    Some(match code {
        1040 | 1203 | 1226 => "too many connections",
        1047 => "not part of the primary component of its Galera cluster",
        1053 => "shutting down",
        1180 => "the commit was refused by the Galera cluster",
        1290 | 1792 | 1836 => "read-only",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use mysql_async::ServerError;

    use super::*;

    #[tokio::test]
    async fn a_panic_of_the_driver_is_an_error() {
        let error = guarded::<()>(async { panic!("TLS support is disabled") }).await.unwrap_err();
        assert_eq!(plain(&error).to_string(), "the database driver failed: TLS support is disabled");
        assert_eq!(guarded(async { Ok(7) }).await.unwrap(), 7);
    }

    #[test]
    fn refusals_say_their_cause_first() {
        for (code, cause) in [(1047, "not part of the primary component"), (1290, "read-only"), (1836, "read-only")] {
            let error = ServerError { code, message: "told by the server".into(), state: "HY000".into() };
            let text = plain(&Error::Server(error)).to_string();
            assert!(text.starts_with(cause) && text.contains(&code.to_string()), "{text}");
        }
    }
}
