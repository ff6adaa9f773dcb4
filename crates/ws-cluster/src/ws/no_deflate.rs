//! Stands in for compression without the feature `deflate`. No connection negotiates it.

use bytes::Bytes;

use super::InflateError;

/// Nothing is compressed.
pub(crate) const MAX_TOGETHER: usize = 0;

/// What a connection has negotiated. There is no value of this type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deflate {}

impl Deflate {
    pub(crate) fn takes(self, _size: usize) -> bool {
        match self {}
    }

    pub(crate) fn inflate(self, _compressed: &[u8], _limit: usize) -> Result<Vec<u8>, InflateError> {
        match self {}
    }
}

/// Returns `None`: nothing is negotiated.
pub(crate) fn answer<'a>(_lines: impl IntoIterator<Item = &'a [u8]>, _min_size: usize) -> Option<(Deflate, String)> {
    None
}

/// Returns `None`: a frame stays as it is.
pub(crate) fn compress(_frame: &Bytes) -> Option<Bytes> {
    None
}
