//! The codes with which a server closes a connection. The range of a code tells a client whether to connect again.

/// The reason why the server closed a connection.
///
/// A client connects again after every code, including 1006 and 1011, **except** 1000, 1002, 1003, 1007–1010 and
/// 4400–4999: after these, a new attempt would fail in the same way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum CloseCode {
    /// The application closed the connection; `Server/close` came before it. Stay away.
    Normal = 1000,
    /// The client broke the WebSocket protocol. Stay away.
    Protocol = 1002,
    /// A text was not UTF-8, or a compressed message could not be inflated. Stay away.
    NotUtf8 = 1007,
    /// A message was over the limit (64 KiB by default). Stay away.
    TooLarge = 1009,
    /// A fault of the server. Come again.
    Internal = 1011,
    /// The node shuts down. Come again: another node answers.
    Restart = 1012,
    /// The node has lost its master although the other nodes have one, or it lacks messages that the others have. Come
    /// again: another node answers.
    TryAgainLater = 1013,
    /// The client read too slowly and its queue was full (1 MiB by default). Come again.
    TooSlow = 4000,
    /// The client did not answer a ping. Come again.
    Silent = 4001,
    /// It is not known who the client is: its session or its credentials could not be looked up, or no credentials came
    /// in time. Come again.
    SessionUnknown = 4002,
    /// The session expired, or the application asked the client to connect again. Come again and authenticate again.
    Expired = 4003,
    /// A message was binary, or neither `{action, details}` nor `[action, details]`. Stay away.
    Malformed = 4400,
    /// The credentials were wrong, or there were none and guests are not welcome. Stay away.
    Unauthenticated = 4401,
}

impl CloseCode {
    /// Returns true if a client connects again after this code.
    pub fn reconnects(self) -> bool {
        reconnects(self as u16)
    }
}

/// Returns true if a client connects again after `code`, from whichever side it came.
pub(crate) fn reconnects(code: u16) -> bool {
    !matches!(code, 1000 | 1002 | 1003 | 1007..=1010 | 4400..=4999)
}
