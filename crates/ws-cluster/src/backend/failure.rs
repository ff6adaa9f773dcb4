//! Why a request to the site brought nothing, and what that means for the client and for the breaker. Pure.

use std::fmt;

use http::StatusCode;

use super::breaker::Sign;
use crate::{ActionError, http_client::HttpError, stats::BackendOutcome};

/// The reason why there is no answer that can be used.
#[derive(Debug)]
pub(super) enum Failure {
    /// The circuit breaker is open. Nothing was sent.
    BreakerOpen,
    /// Too many requests wait, or this one has waited for too long. Nothing was sent.
    QueueFull(&'static str),
    /// The site could not be reached. Nothing was sent.
    Unreachable(String),
    /// The site's proxy says that the site does not work.
    Failed(StatusCode),
    /// The connection was lost before there was an answer. The site may have done what it was asked.
    Lost(String),
    /// There was no answer in time. The site may have done what it was asked, or do it yet.
    TimedOut,
    /// The answer cannot be used. The site has most likely done what it was asked.
    Malformed(String),
}

impl Failure {
    /// Returns the statuses with which a proxy says that the site behind it does not work as a failure.
    pub(super) fn of_status(status: StatusCode) -> Option<Self> {
        let of_proxy = [StatusCode::BAD_GATEWAY, StatusCode::SERVICE_UNAVAILABLE, StatusCode::GATEWAY_TIMEOUT];
        of_proxy.contains(&status).then_some(Self::Failed(status))
    }

    /// Returns what it says about the site.
    pub(super) fn sign(&self) -> Sign {
        match self {
            Self::BreakerOpen | Self::QueueFull(_) => Sign::Unknown,
            Self::Unreachable(_) | Self::Failed(_) | Self::Lost(_) | Self::TimedOut => Sign::Dead,
            Self::Malformed(_) => Sign::Alive,
        }
    }

    pub(super) fn outcome(&self) -> BackendOutcome {
        match self {
            Self::BreakerOpen => BackendOutcome::BreakerOpen,
            Self::QueueFull(_) => BackendOutcome::QueueFull,
            Self::Unreachable(_) => BackendOutcome::Unreachable,
            Self::Failed(_) => BackendOutcome::Failed,
            Self::Lost(_) => BackendOutcome::Lost,
            Self::TimedOut => BackendOutcome::TimedOut,
            Self::Malformed(_) => BackendOutcome::Malformed,
        }
    }

    /// Returns the error for the client whose action it was: 503 if nothing was done, 504 if the outcome is unknown,
    /// 502 if the site answered wrongly.
    pub(super) fn error(&self) -> ActionError {
        match self {
            Self::BreakerOpen | Self::QueueFull(_) | Self::Unreachable(_) => {
                ActionError::unavailable("The site does not answer now: try again later")
            }
            Self::Failed(StatusCode::SERVICE_UNAVAILABLE) => {
                ActionError::unavailable("The site cannot do it now: try again later")
            }
            Self::Lost(_) | Self::TimedOut | Self::Failed(StatusCode::GATEWAY_TIMEOUT) => {
                ActionError::new(504, "The site did not answer in time: the outcome is unknown")
            }
            Self::Failed(_) => ActionError::new(502, "The site does not work now: the outcome is unknown"),
            Self::Malformed(why) => ActionError::new(502, format!("The site's answer cannot be used: {why}")),
        }
    }
}

impl From<HttpError> for Failure {
    fn from(error: HttpError) -> Self {
        match error {
            HttpError::Unreachable(why) => Self::Unreachable(why),
            HttpError::Lost(why) => Self::Lost(why),
            HttpError::Malformed(why) => Self::Malformed(why),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::BreakerOpen => f.write_str("it did not answer the last requests"),
            Self::QueueFull(why) => f.write_str(why),
            Self::Failed(status) => write!(f, "the answer is {status}"),
            Self::TimedOut => f.write_str("no answer in time"),
            Self::Unreachable(why) | Self::Lost(why) | Self::Malformed(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for Failure {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_tells_the_client_whether_something_was_done() {
        let status = |code| Failure::of_status(StatusCode::from_u16(code).unwrap());
        assert!([200, 204, 302, 401, 404, 500, 501].into_iter().all(|code| status(code).is_none()));
        for (failure, code, sign) in [
            (Failure::BreakerOpen, 503, Sign::Unknown),
            (Failure::QueueFull("too many"), 503, Sign::Unknown),
            (Failure::Unreachable("refused".into()), 503, Sign::Dead),
            (status(503).unwrap(), 503, Sign::Dead),
            (status(504).unwrap(), 504, Sign::Dead),
            (status(502).unwrap(), 502, Sign::Dead),
            (Failure::Lost("reset".into()), 504, Sign::Dead),
            (Failure::TimedOut, 504, Sign::Dead),
            (Failure::Malformed("`reply` is there twice".into()), 502, Sign::Alive),
        ] {
            assert_eq!((failure.error().code, failure.sign()), (code, sign), "{failure:?}");
            assert!(!failure.to_string().is_empty());
        }
        let told = Failure::Malformed("`join` must be an array".into()).error();
        assert!(told.text.contains("`join`"), "{told}");
    }
}
