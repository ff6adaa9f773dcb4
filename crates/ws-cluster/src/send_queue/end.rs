//! How a connection ended, in 32 bits: there are as many of these as there are connections.

use parking_lot::Mutex;

/// How a connection ended: what its first close frame says, of whichever side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct End {
    pub(crate) code: u16,
    pub(crate) reason: Box<str>,
}

/// The reasons that this program gives, in their order of use. There is no room for them in each connection.
static REASONS: Mutex<Vec<Box<str>>> = Mutex::new(Vec::new());

/// More reasons than this program has. Beyond, a reason reads as none.
const MOST_REASONS: usize = 256;

impl End {
    /// Without a close frame.
    pub(super) const LOST: u32 = 1006;

    /// In 32 bits. A reason that a client or an application made up would be kept for ever, so it is left out.
    pub(super) fn pack(code: u16, reason: &'static str) -> u32 {
        let mut reasons = REASONS.lock();
        let known = reasons.iter().position(|known| **known == *reason).or_else(|| {
            let new = !reason.is_empty() && reasons.len() < MOST_REASONS;
            new.then(|| {
                reasons.push(reason.into());
                reasons.len() - 1
            })
        });
        u32::from(code) | (known.map_or(0, |place| place as u32 + 1) << 16)
    }

    pub(super) fn unpack(packed: u32) -> Self {
        let place = (packed >> 16).checked_sub(1);
        let reason = place.and_then(|place| REASONS.lock().get(place as usize).cloned());
        Self { code: packed as u16, reason: reason.unwrap_or_default() }
    }

    /// What a close frame that is formatted says. It is short, so its payload begins with the third byte.
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
