//! The end of a connection in 32 bits, since there are as many ends as there are connections.

use parking_lot::Mutex;

/// The code and the reason of a connection's first close frame, from either side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) code: u16,
    pub(crate) reason: Box<str>,
}

/// The reasons that this program gives, in the order of their first use. One connection has no room for a text.
static REASONS: Mutex<Vec<Box<str>>> = Mutex::new(Vec::new());

/// Maximum number of reasons, which is more than this program has. Any further reason is kept as an empty one.
const MAX_REASONS: usize = 256;

impl End {
    /// The code of a connection that ended without a close frame.
    pub(super) const LOST: u32 = 1006;

    /// Packs the end into 32 bits. Callers leave out a reason that a client or an application made up, because reasons
    /// are never freed.
    pub(super) fn pack(code: u16, reason: &'static str) -> u32 {
        let mut reasons = REASONS.lock();
        let known = reasons.iter().position(|known| **known == *reason).or_else(|| {
            let new = !reason.is_empty() && reasons.len() < MAX_REASONS;
            new.then(|| {
                reasons.push(reason.into());
                reasons.len() - 1
            })
        });
        u32::from(code) | (known.map_or(0, |index| index as u32 + 1) << 16)
    }

    pub(super) fn unpack(packed: u32) -> Self {
        let index = (packed >> 16).checked_sub(1);
        let reason = index.and_then(|index| REASONS.lock().get(index as usize).cloned());
        Self { code: packed as u16, reason: reason.unwrap_or_default() }
    }

    /// Reads the code and the reason of an encoded close frame. The frame is short, so its payload begins at the third
    /// byte.
    pub(crate) fn of(close: &[u8]) -> Self {
        match close.get(2..) {
            Some([high, low, reason @ ..]) => {
                let reason = String::from_utf8_lossy(reason).into_owned().into();
                Self { code: u16::from_be_bytes([*high, *low]), reason }
            }
            _ => Self { code: 1005, reason: Box::default() },
        }
    }
}
