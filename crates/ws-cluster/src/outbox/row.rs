//! What a row becomes: a publish with an idempotency key, or the reason why it cannot be published. Pure.

use std::time::Duration;

use bytes::Bytes;
use data_encoding::HEXLOWER;

use super::{OutboxRow, ReadLimits, RowId, RowTexts};
use crate::{
    RawDetails, Target,
    message::{command, content::Content, publish},
};

/// The limits of one read. A batch is enough for some thousand rows a second at twenty reads a second, and little
/// compared with what may wait for a master.
pub(super) const LIMITS: ReadLimits = ReadLimits { rows: 500, size: 4 * 1024 * 1024, row_size: ROW_SIZE };

/// Most bytes of a row's texts that are read. Six bytes of an escape sequence (`\u0041`) may stand for one of the
/// message.
const ROW_SIZE: u64 = 6 * publish::PUBLISH_SIZE as u64 + 256 * 1024;

/// Maximum length of the reason why a row cannot be published, in characters. A reason may quote the row, and the table
/// of failed rows takes no text of any length.
const REASON_LENGTH: usize = 1_000;

/// A row that can be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Publish {
    pub(super) content: Bytes,
    pub(super) key: Bytes,
    /// The age of the row when it was read.
    pub(super) age: Duration,
}

/// Makes a publish of a row. The error says why the row cannot be published, for a person. It has a limited length.
pub(super) fn publish(row: &OutboxRow) -> Result<Publish, String> {
    made(row).map_err(|why| match why.char_indices().nth(REASON_LENGTH) {
        Some((end, _)) => format!("{}…", &why[..end]),
        None => why,
    })
}

fn made(row: &OutboxRow) -> Result<Publish, String> {
    let Some(texts) = &row.texts else {
        return Err(format!("the row has {} bytes: a message may have {}", row.size, publish::PUBLISH_SIZE));
    };
    let action = text(&texts.action, "action is")?;
    let details = match &texts.details {
        Some(details) => {
            let details: Result<RawDetails, _> = text(details, "details are")?.parse();
            details.map_err(|error| format!("the details are {error}"))?
        }
        None => RawDetails::default(),
    };
    let target = target(text(&texts.target, "target is")?)?;
    let details = publish::details(action, details).map_err(|error| error.to_string())?;
    let content = Content::Message { target, action: action.to_owned(), details, volatile: false }.encode();
    let key = key(row.id, texts);
    publish::check(&content, Some(&key)).map_err(|error| error.to_string())?;
    Ok(Publish { content, key, age: row.age })
}

/// Returns the idempotency key of a row. It is the same in every process, and another for every other row, even if the
/// database uses the number of a removed row again.
fn key(row: RowId, texts: &RowTexts) -> Bytes {
    let mut hash = blake3::Hasher::new_derive_key("ws-cluster outbox row");
    hash.update(&row.id.to_le_bytes()).update(&row.stamp.to_le_bytes());
    for text in [Some(&texts.action), texts.details.as_ref(), Some(&texts.target)] {
        hash.update(&text.map_or(u64::MAX, |text| text.len() as u64).to_le_bytes());
        hash.update(text.map_or(&[], Vec::as_slice));
    }
    let digest = HEXLOWER.encode(&hash.finalize().as_bytes()[..16]);
    [publish::OUTBOX_KEY, digest.as_bytes()].concat().into()
}

fn text<'a>(bytes: &'a [u8], column: &str) -> Result<&'a str, String> {
    std::str::from_utf8(bytes).map_err(|error| format!("the {column} not UTF-8 (byte {})", error.valid_up_to() + 1))
}

/// Reads a target: its text form, or the JSON that publishes over HTTP take.
fn target(text: &str) -> Result<Target, String> {
    match text.trim_ascii_start().starts_with('{') {
        true => command::target_of_json(text).map_err(|why| format!("the target is malformed: {why}")),
        false => text.parse().map_err(|error| format!("{error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(action: &str, details: Option<&str>, target: &str) -> OutboxRow {
        let texts = RowTexts { action: action.into(), details: details.map(Into::into), target: target.into() };
        OutboxRow { id: RowId { id: 7, stamp: 9 }, age: Duration::ZERO, size: 0, texts: Some(texts) }
    }

    fn published(action: &str, details: Option<&str>, target: &str) -> Result<(Target, String), String> {
        let content = publish(&row(action, details, target))?.content;
        match Content::decode(content) {
            Ok(Content::Message { target, details, .. }) => Ok((target, String::from_utf8(details.into()).unwrap())),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_row_becomes_a_message() {
        for (details, expected) in [
            (Some("[7]"), "[7]"),
            (Some(r#"{"z":1.0,"a":1e400}"#), r#"[{"z":1.0,"a":1e400}]"#),
            (Some(" 7 "), "[7]"),
            (Some("null"), "[]"),
            (None, "[]"),
        ] {
            assert_eq!(published("news/new", details, "all"), Ok((Target::all(), expected.to_owned())));
        }
        for (target, expected) in [
            ("group:editors", Target::group("editors")),
            ("user:ann,bob except user:bob", Target::users(["ann", "bob"]).except_user("bob")),
            (r#" {"users":["a,b",7]}"#, Target::users(["a,b", "7"])),
        ] {
            assert_eq!(published("news/new", None, target).map(|(target, _)| target), Ok(expected));
        }
        // Escape sequences count as what they stand for.
        let escaped = format!("[\"{}\"]", r"\u00e9".repeat(400_000));
        assert!(published("news/new", Some(&escaped), "all").is_ok());
    }

    #[test]
    fn a_malformed_row_has_a_reason() {
        let large = format!("[\"{}\"]", "x".repeat(publish::PUBLISH_SIZE));
        let deep = "[".repeat(200) + &"]".repeat(200);
        let wide = format!("user:{}", "x".repeat(1_200_000));
        for (action, details, target, why) in [
            ("", Some("[]"), "all", "an action has 1 to 255 bytes"),
            (&*"x".repeat(256), Some("[]"), "all", "an action has 1 to 255 bytes"),
            ("Server/close", Some("[]"), "all", "reserved"),
            ("Client/reset", Some("[]"), "all", "reserved"),
            ("x", Some(""), "all", "the details are"),
            ("x", Some("[7"), "all", "the details are"),
            ("x", Some("[7] 8"), "all", "the details are"),
            ("x", Some(r#"[],"to":"all""#), "user:ann", "the details are"),
            ("x", Some(&*deep), "all", "nested"),
            ("x", Some(&*large), "all", "over the limit"),
            ("x", None, "", "target"),
            ("x", None, "everybody", "target"),
            ("x", None, "user:", "target"),
            ("x", None, r#"{"user":"ann""#, "target"),
            ("x", None, r#"{"user":"ann","group":"b"}"#, "target"),
            ("x", None, r#"{"user":"ann"},"except":{"user":"b"}"#, "target"),
            ("x", None, &*wide, "over the limit"),
        ] {
            let Err(told) = published(action, details, target) else { panic!("{why}") };
            assert!(told.contains(why), "{why}: {told}");
        }
        let mut latin1 = row("x", None, "all");
        latin1.texts.as_mut().unwrap().details = Some(b"[\"\xe9\"]".to_vec());
        assert_eq!(publish(&latin1), Err("the details are not UTF-8 (byte 3)".to_owned()));
        let unread = OutboxRow { size: 10_000_000, texts: None, ..row("x", None, "all") };
        assert!(publish(&unread).unwrap_err().contains("10000000 bytes"));
    }

    #[test]
    fn the_reason_of_a_row_that_fails_has_a_limited_length() {
        let long = |text: &str| text.repeat(70_000);
        for (action, details, target) in [
            ("x", "[]", format!("users:{}", long("1,"))),
            ("x", "[]", format!("property:{}", long("\u{1f600}"))),
            ("x", "[]", format!("all except {}", long("\u{1}"))),
            ("x", "[]", format!(r#"{{"{}":1}}"#, long("u"))),
            ("x", &*long("\u{e9}"), "all".to_owned()),
            (&*long("x"), "[]", "all".to_owned()),
        ] {
            let why = publish(&row(action, Some(details), &target)).unwrap_err();
            assert!(why.chars().count() <= REASON_LENGTH + 1, "{} characters: {why:.200}", why.chars().count());
        }
        let why = published("x", None, &format!("users:{}", long("1,"))).unwrap_err();
        assert!(why.starts_with("unknown target \"users:1,1,") && why.ends_with('…'), "{why:.100}");
    }

    #[test]
    fn keys_tell_rows_apart() {
        let first = row("a", Some("[]"), "all");
        let key_of = |row: &OutboxRow| publish(row).unwrap().key;
        assert_eq!(key_of(&first), key_of(&first.clone()));
        let reused = OutboxRow { id: RowId { id: 7, stamp: 10 }, ..first.clone() };
        let next = OutboxRow { id: RowId { id: 8, stamp: 9 }, ..first.clone() };
        let changed = row("a", None, "all");
        for other in [reused, next, changed] {
            assert_ne!(key_of(&first), key_of(&other));
        }
    }
}
