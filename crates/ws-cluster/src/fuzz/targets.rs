//! Texts from strangers and operators: targets, origins, lists of proxies, headers.

use std::net::{IpAddr, SocketAddr};

use http::HeaderValue;

use serde_json::Value;
use ws_cluster_client::ACTION_SIZE;

use super::search;
use crate::{
    Handshake, Origin, RawDetails, Target, TrustedProxies,
    message::client::{Incoming, MessageForm, OutgoingMessage, parse},
};

/// Returns the input as text, as far as it is UTF-8.
fn text(input: &[u8]) -> String {
    String::from_utf8_lossy(input).into_owned()
}

/// Returns a handshake with this header, if its value is valid.
fn handshake(name: &'static str, value: &[u8]) -> Option<Handshake> {
    let value = HeaderValue::from_bytes(value).ok()?;
    let request = http::Request::get("/WebSockets").header(name, value).body(()).ok()?;
    let peer: SocketAddr = "127.0.0.1:4711".parse().ok()?;
    Some(Handshake::new(&request.into_parts().0, Some(peer), &TrustedProxies::default()))
}

#[test]
fn a_hostile_target_is_refused_or_selects_connections() {
    let corpus: [&[u8]; 7] = [
        b"all",
        b"registered",
        b"user:ann,bob",
        b"group:editors,admins",
        b"session:e4d909c290d0fb1ca068ffaddf22cbd0",
        b"property:page=7",
        b"connection:0102030405060708090a0b0c0d0e0f10-7f",
    ];
    search(&corpus, |input| {
        let text = text(input);
        match text.parse::<Target>() {
            Ok(target) if target == Target::users([""; 0]) || target == Target::groups([""; 0]) => {
                Err("it selects no connection".into())
            }
            Ok(_) => Ok(()),
            Err(error) if error.to_string().is_empty() => Err("the error is empty".into()),
            Err(_) => Ok(()),
        }
    });
}

#[test]
fn a_hostile_origin_is_refused_or_means_one_thing() {
    let corpus: [&[u8]; 6] = [
        b"https://example.org",
        b"http://example.org:8080",
        b"wss://[::1]:443/",
        b"capacitor://localhost",
        b"https://*.example.org",
        "https://bücher.example".as_bytes(),
    ];
    search(&corpus, |input| {
        let text = text(input);
        let Ok(origin) = text.parse::<Origin>() else { return Ok(()) };
        let again = origin.to_string().parse::<Origin>();
        if again.as_ref() == Ok(&origin) { Ok(()) } else { Err(format!("{origin} comes back as {again:?}")) }
    });
}

#[test]
fn a_hostile_origin_header_passes_for_no_other_host() {
    let corpus: [&[u8]; 5] =
        [b"https://evil.example", b"null", b"https://example.org.evil.example", b"https://x@evil.example", b"file://"];
    search(&corpus, |input| {
        let Ok(value) = HeaderValue::from_bytes(input) else { return Ok(()) };
        let request = http::Request::get("/").header("host", "example.org").header("origin", value).body(());
        let Ok(request) = request else { return Ok(()) };
        let handshake = Handshake::new(&request.into_parts().0, None, &TrustedProxies::none());
        let own = text(input).to_ascii_lowercase();
        let passes = handshake.origin_allowed(&[]);
        if passes && !own.contains("example.org") { Err("a foreign page passes".into()) } else { Ok(()) }
    });
}

#[test]
fn a_hostile_list_of_proxies_is_refused_or_trusts_only_its_networks() {
    let corpus: [&[u8]; 4] = [b"10.0.0.0/8, 192.0.2.7", b"2001:db8::/32", b"::ffff:10.0.0.1", b"127.0.0.0/8,::1,"];
    search(&corpus, |input| {
        let Ok(proxies) = text(input).parse::<TrustedProxies>() else { return Ok(()) };
        // Of the public addresses nobody wrote, at least one is not trusted, unless a whole family is.
        let whole = text(input).contains("/0");
        let strangers: [IpAddr; 2] = [[203, 0, 113, 9].into(), [198, 51, 100, 77].into()];
        if !whole && strangers.iter().all(|ip| proxies.contains(*ip)) && !text(input).contains('/') {
            return Err("it trusts every address".into());
        }
        Ok(())
    });
}

#[test]
fn a_hostile_forwarded_for_gives_an_address() {
    let corpus: [&[u8]; 5] =
        [b"1.2.3.4", b"6.6.6.6, 1.2.3.4:80, [2001:db8::1]:5", b"unknown, _hidden", b"::ffff:1.2.3.4", b"1.2.3.4,,"];
    search(&corpus, |input| match handshake("x-forwarded-for", input) {
        Some(handshake) if handshake.remote_ip().is_none() => Err("the address is lost".into()),
        _ => Ok(()),
    });
}

#[test]
fn hostile_headers_are_read_without_harm() {
    let corpus: [&[u8]; 6] = [
        b"sid=e4%2Cd9; other=1; sid=second",
        b"sid=\"quoted\"; a=b=c;;=;",
        b"Bearer abc.def.ghi",
        b"de-CH, de;q=0.9, *;q=0.5, en;q=high",
        b"ws-cluster.v1, bearer.abc",
        b"caf\xe9=1; sid=\xff\xfe",
    ];
    search(&corpus, |input| {
        for name in ["cookie", "authorization", "accept-language", "sec-websocket-protocol", "user-agent"] {
            let Some(handshake) = handshake(name, input) else { return Ok(()) };
            let cookie = handshake.cookie("sid").map(str::len);
            if cookie.is_some_and(|size| size > 3 * input.len()) {
                return Err("a cookie is longer than its header".into());
            }
            let (_, _) = (handshake.bearer_token(), handshake.language());
            let _ = (handshake.query("user"), handshake.language(), format!("{handshake:?}"));
        }
        Ok(())
    });
}

#[test]
fn a_hostile_query_is_read_without_harm() {
    let corpus: [&[u8]; 4] = [
        b"/WebSockets?user=J%C3%B6rg+M&x&user=second",
        b"/WebSockets?resume=AQEB&state=abc&heartbeat=25",
        b"/WebSockets?%ff=%zz&&=&a=%",
        b"/?",
    ];
    search(&corpus, |input| {
        let Ok(uri) = http::Uri::try_from(input) else { return Ok(()) };
        let Ok(request) = http::Request::get(uri).body(()) else { return Ok(()) };
        let mut handshake = Handshake::new(&request.into_parts().0, None, &TrustedProxies::none());
        let before = handshake.query("user").map(|value| value.into_owned());
        let [resume] = handshake.take_query(["resume"]);
        if handshake.query("resume").is_some() {
            return Err(format!("what was taken out is still there, beside {resume:?}"));
        }
        let after = handshake.query("user").map(|value| value.into_owned());
        if before == after { Ok(()) } else { Err(format!("{before:?} became {after:?}")) }
    });
}

/// JSON as clients, sites and programs write it, and as they should not.
const JSON: &[&[u8]] = &[
    br#"{"action":"say","details":["hello",{"z":1.0,"a":[2]}],"at":"x"}"#,
    br#"["say",[18446744073709551616,1e400,-0.0,"\ud83c\udf89"]]"#,
    br#" {"details": null, "action": "\ud83c \u0000 \"x\""} "#,
    br#"{"action":"a","details":"\\\u00e4\/\n"}"#,
    br#"{"more":{"action":"b"},"action":"a","details":[[[[[[]]]]]]}"#,
    br#"["a""#,
    br#"["a",{"x":"]"},-17]"#,
    br#"{"id":"\u00e9\ud83cx","action":"a","details":[7]}"#,
    b"{}",
    b"[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[",
    "\u{feff}{\"action\":\"\u{1f389}\",\"details\":[true]}".as_bytes(),
];

#[test]
fn a_hostile_message_is_refused_or_reaches_others_as_it_came() {
    search(JSON, |input| {
        let text = text(input);
        let Ok(Incoming { action, details, id, .. }) = parse(&text) else { return Ok(()) };
        if !(1..=ACTION_SIZE).contains(&action.len()) {
            return Err(format!("an action of {} bytes", action.len()));
        }
        let message = OutgoingMessage::new(&action, details.as_str().as_bytes()).answers(id.as_ref());
        let frame = message.frame(MessageForm::Object, None);
        // Behind the header, whose size depends on that of the message.
        let start = frame.windows(2).position(|bytes| bytes == b"{\"").ok_or("no object")?;
        let sent = std::str::from_utf8(&frame[start..]).map_err(|error| error.to_string())?;
        let again = parse(sent).map_err(|error| format!("{sent} is not read: {error:?}"))?;
        let same = again.action == action && again.details.as_str() == details.as_str() && again.id == id;
        if same { Ok(()) } else { Err(format!("{sent} comes back as {again:?}")) }
    });
}

#[test]
fn hostile_details_are_refused_or_are_an_array() {
    search(JSON, |input| {
        let Ok(details) = text(input).parse::<RawDetails>() else { return Ok(()) };
        let elements: Vec<&serde_json::value::RawValue> =
            serde_json::from_str(details.as_str()).map_err(|error| format!("{details}: {error}"))?;
        if elements.len() != details.len() || elements.is_empty() != details.is_empty() {
            return Err(format!("{details} has {} elements, not {}", elements.len(), details.len()));
        }
        // As values, whatever these can hold.
        let values: &[Value] = details.values();
        if values.len() == elements.len() { Ok(()) } else { Err(format!("{details} has {} values", values.len())) }
    });
}
