//! Random bytes of the operating system.

/// Returns fresh random bytes.
pub(crate) fn bytes<const N: usize>() -> Result<[u8; N], getrandom::Error> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)?;
    Ok(bytes)
}

/// Returns fresh random bytes.
///
/// # Panics
/// If the system has none. TLS and nonces need them too, so there is no fallback.
pub(crate) fn certain<const N: usize>() -> [u8; N] {
    bytes().expect("the operating system has random numbers")
}
