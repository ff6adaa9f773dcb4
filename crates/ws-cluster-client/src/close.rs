//! Every code with which a server closes a connection, in two ranges that tell any client what to do.

/// Why the server closed a connection.
///
/// A client reconnects after every code, 1006 and 1011 included, **except** 1000, 1002, 1003, 1007–1010 and
/// 4400–4999: then the same client would meet the same end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum CloseCode {
    /// The application closed the connection; `Server/close` came before it. Stay away.
    Normal = 1000,
    /// The client broke the WebSocket protocol. Stay away.
    Protocol = 1002,
    /// A text frame was not UTF-8. Stay away.
    NotUtf8 = 1007,
    /// A message was over the limit (64 KiB by default). Stay away.
    TooLarge = 1009,
    /// A fault of the server. Come again.
    Internal = 1011,
    /// The node shuts down. Come again: another node answers.
    Restart = 1012,
    /// The node lost its master while the others did not, or messages that the others have. Come again: another node
    /// answers.
    TryAgainLater = 1013,
    /// The client read too slowly and its queue was full (1 MiB by default). Come again.
    TooSlow = 4000,
    /// No answer to a ping. Come again.
    Silent = 4001,
    /// The session ran out while its store could not be asked. Come again.
    SessionUnknown = 4002,
    /// The session ran out or is no longer valid and nobody renewed it, or the application asked the client to come
    /// again. Come again and authenticate anew.
    Expired = 4003,
    /// A message was neither `{action, details}` nor `[action, details]`, or a binary frame. Stay away.
    Malformed = 4400,
    /// The credentials were wrong, or guests are not welcome. Stay away.
    Unauthenticated = 4401,
}

impl CloseCode {
    /// Returns true if a client comes again after this code.
    pub fn reconnects(self) -> bool {
        reconnects(self as u16)
    }
}

/// Returns true if a client comes again after `code`, whoever sent it.
pub(crate) fn reconnects(code: u16) -> bool {
    !matches!(code, 1000 | 1002 | 1003 | 1007..=1010 | 4400..=4999)
}
