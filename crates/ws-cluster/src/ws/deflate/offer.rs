//! What a client offers in `Sec-WebSocket-Extensions`, and the answer. An offer that is malformed, or has parameters
//! that the RFC does not know, is declined, and the next one counts. The upgrade itself never fails.

use super::{Deflate, MAX_WINDOW_BITS, MIN_WINDOW_BITS};

/// The name of the extension.
const NAME: &str = "permessage-deflate";

/// Returns what is negotiated with a client, and the header that says so, from the lines of its header. `min_size`:
/// messages below this size are sent plain.
pub(crate) fn answer<'a>(lines: impl IntoIterator<Item = &'a [u8]>, min_size: usize) -> Option<(Deflate, String)> {
    let server_bits = lines.into_iter().flat_map(elements).find_map(accept)?;
    let mut answer = format!("{NAME}; server_no_context_takeover; client_no_context_takeover");
    if let Some(bits) = server_bits {
        answer.push_str(&format!("; server_max_window_bits={bits}"));
    }
    Some((Deflate::new(min_size, server_bits.unwrap_or(MAX_WINDOW_BITS)), answer))
}

/// Returns the elements of a list. A comma inside quotes separates none.
fn elements(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    split(line, b',')
}

/// Returns the parts of a text between separators that stand outside of quotes.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ => return !quoted && *byte == separator,
        }
        false
    })
    .map(<[u8]>::trim_ascii)
}

/// Accepts an offer, or declines it. Returns the size that the client sets for the server's window, if any.
fn accept(offer: &[u8]) -> Option<Option<u8>> {
    let mut parts = split(offer, b';');
    if !parts.next()?.eq_ignore_ascii_case(NAME.as_bytes()) {
        return None;
    }
    let (mut server_takeover, mut client_takeover, mut server_bits, mut client_bits) = Default::default();
    for parameter in parts {
        let (name, value) = match split(parameter, b'=').collect::<Vec<_>>()[..] {
            [name] => (name, None),
            [name, value] => (name, Some(unquote(value)?)),
            _ => return None,
        };
        let bits = value.as_deref().map(window_bits);
        match name.to_ascii_lowercase().as_slice() {
            b"server_no_context_takeover" if value.is_none() => once(&mut server_takeover, ())?,
            b"client_no_context_takeover" if value.is_none() => once(&mut client_takeover, ())?,
            // The client could not use a smaller window than it is told to, and the inflater has the largest.
            b"client_max_window_bits" => once(&mut client_bits, bits.unwrap_or(Some(MAX_WINDOW_BITS))?)?,
            b"server_max_window_bits" => once(&mut server_bits, bits??)?,
            _ => return None,
        }
    }
    Some(server_bits)
}

/// Sets a parameter. Returns `None` if it is there already.
fn once<T>(parameter: &mut Option<T>, value: T) -> Option<()> {
    parameter.replace(value).is_none().then_some(())
}

/// Returns a value without its quotes, or `None` if its quotes are not a pair.
fn unquote(value: &[u8]) -> Option<Vec<u8>> {
    let Some(quoted) = value.strip_prefix(b"\"") else { return (!value.contains(&b'"')).then(|| value.to_vec()) };
    let mut bytes = quoted.strip_suffix(b"\"")?.iter();
    let mut unquoted = Vec::new();
    while let Some(byte) = bytes.next() {
        unquoted.push(match byte {
            b'\\' => *bytes.next()?,
            byte => *byte,
        });
    }
    Some(unquoted)
}

/// Parses the size of a window: 8 to 15, without a leading zero.
fn window_bits(value: &[u8]) -> Option<u8> {
    (MIN_WINDOW_BITS..=MAX_WINDOW_BITS).find(|bits| bits.to_string().as_bytes() == value)
}

#[cfg(test)]
mod tests {
    use super::*;

    const AGREED: &str = "permessage-deflate; server_no_context_takeover; client_no_context_takeover";

    fn answered(lines: &[&str]) -> Option<String> {
        answer(lines.iter().map(|line| line.as_bytes()), 256).map(|(_, answer)| answer)
    }

    #[test]
    fn an_offer_is_accepted_without_takeover_of_contexts() {
        for lines in [
            &["permessage-deflate"] as &[&str],
            // Chromium, Firefox and Safari.
            &["permessage-deflate; client_max_window_bits"],
            &["PERMESSAGE-DEFLATE;Client_Max_Window_Bits"],
            &["permessage-deflate; client_max_window_bits=8"],
            &["permessage-deflate; client_max_window_bits=\"15\""],
            &["permessage-deflate; server_no_context_takeover; client_no_context_takeover"],
            &["\tpermessage-deflate ;\tclient_no_context_takeover "],
            &["x-webkit-deflate-frame, permessage-deflate"],
            &["x-webkit-deflate-frame", "permessage-deflate"],
            &[", ,permessage-deflate,"],
            &["foo; bar=\"a,b\\\",permessage-deflate; x;\", permessage-deflate"],
            // Offers that are declined come before it.
            &["permessage-deflate; unknown, permessage-deflate"],
            &["permessage-deflate; server_max_window_bits=7, permessage-deflate; client_max_window_bits"],
            &["permessage-deflate; server_no_context_takeover=1", "permessage-deflate"],
        ] {
            assert_eq!(answered(lines).as_deref(), Some(AGREED), "{lines:?}");
        }
    }

    #[test]
    fn the_clients_window_is_confirmed_and_limits_what_is_compressed() {
        for (offer, bits) in [
            ("permessage-deflate; server_max_window_bits=8", 8),
            ("permessage-deflate; server_max_window_bits=\"9\"; client_max_window_bits", 9),
            ("permessage-deflate; client_max_window_bits=10; server_max_window_bits=15", 15),
            ("permessage-deflate; server_max_window_bits=10, permessage-deflate", 10),
        ] {
            let (deflate, said) = answer([offer.as_bytes()], 256).unwrap();
            assert_eq!(said, format!("{AGREED}; server_max_window_bits={bits}"), "{offer}");
            assert!(deflate.takes(1 << bits), "{offer}");
            assert_eq!(deflate.takes((1 << bits) + 1), bits == 15, "{offer}");
        }
    }

    #[test]
    fn an_offer_that_the_rfc_does_not_know_is_declined() {
        for offer in [
            "",
            ",",
            ";",
            "permessage-deflate-2",
            "\"permessage-deflate\"",
            "x-webkit-deflate-frame",
            "permessage-bzip2; client_max_window_bits",
            "permessage-deflate;",
            "permessage-deflate; ;",
            "permessage-deflate client_max_window_bits",
            "permessage-deflate=1",
            "permessage-deflate; unknown",
            "permessage-deflate; unknown=1",
            "permessage-deflate; server_no_context_takeover=true",
            "permessage-deflate; server_no_context_takeover=",
            "permessage-deflate; client_no_context_takeover=\"\"",
            "permessage-deflate; server_no_context_takeover; server_no_context_takeover",
            "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
            "permessage-deflate; client_max_window_bits; client_max_window_bits=10",
            "permessage-deflate; server_max_window_bits=10; server_max_window_bits=10",
            "permessage-deflate; server_max_window_bits",
            "permessage-deflate; server_max_window_bits=",
            "permessage-deflate; server_max_window_bits=7",
            "permessage-deflate; server_max_window_bits=16",
            "permessage-deflate; server_max_window_bits=08",
            "permessage-deflate; server_max_window_bits=+8",
            "permessage-deflate; server_max_window_bits=8=8",
            "permessage-deflate; server_max_window_bits=\"8",
            "permessage-deflate; server_max_window_bits=8\"",
            "permessage-deflate; server_max_window_bits=\"8\\",
            "permessage-deflate; client_max_window_bits=",
            "permessage-deflate; client_max_window_bits=7",
            "permessage-deflate; client_max_window_bits=16",
            "permessage-deflate; client_max_window_bits=256",
            "permessage-deflate; client_max_window_bits=-1",
            "foo; bar=\"permessage-deflate, permessage-deflate",
        ] {
            assert_eq!(answered(&[offer]), None, "{offer}");
        }
    }

    #[test]
    fn a_hostile_offer_is_declined_or_answered_as_the_rfc_says() {
        let corpus: [&[u8]; 5] = [
            b"permessage-deflate; client_max_window_bits",
            b"permessage-deflate; server_max_window_bits=10; client_no_context_takeover",
            b"permessage-deflate; server_max_window_bits=\"15\", permessage-deflate; server_no_context_takeover",
            b"x; y=\"a, \\\"b\", permessage-deflate",
            b"permessage-deflate; unknown=1, permessage-deflate; client_max_window_bits=8",
        ];
        crate::fuzz::search(&corpus, |input| match answer([input], 256) {
            None => Ok(()),
            Some((deflate, said)) => {
                let bits = said.strip_prefix(AGREED).ok_or("it agrees to less")?;
                let bits = match bits.strip_prefix("; server_max_window_bits=") {
                    Some(bits) => bits.parse().map_err(|_| said.clone())?,
                    None if bits.is_empty() => MAX_WINDOW_BITS,
                    None => return Err(said),
                };
                (deflate == Deflate::new(256, bits)).then_some(()).ok_or(said)
            }
        });
    }
}
