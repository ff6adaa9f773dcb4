//! The members of a JSON object that a site posts, read one by one, so that each mistake is named.

use std::{borrow::Cow, collections::HashSet, fmt};

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
#[cfg(feature = "backend")]
use serde_json::Value;
use serde_json::value::RawValue;

use crate::{ConnectionId, RawDetails, message::target::property_text};
use ws_cluster_client::replace_lone_surrogates;

/// The reason why a command is refused, for the site.
pub(crate) type Why = String;

/// Returns the text of a body. A byte order mark is skipped.
pub(crate) fn text(body: &[u8]) -> Result<&str, Why> {
    let body = body.strip_prefix(b"\xef\xbb\xbf").unwrap_or(body);
    // JSON begins with two ASCII characters, or is a single one.
    let wide =
        body.starts_with(b"\xff\xfe") || body.starts_with(b"\xfe\xff") || body.iter().take(2).any(|byte| *byte == 0);
    if wide {
        return Err("the body is UTF-16 or UTF-32: send it as UTF-8".to_owned());
    }
    std::str::from_utf8(body)
        .map_err(|error| format!("the body is not UTF-8 (byte {}): send it as UTF-8", error.valid_up_to() + 1))
}

/// Returns the JSON value of a body.
pub(crate) fn value(body: &[u8]) -> Result<&RawValue, Why> {
    let text = text(body)?;
    if text.trim_ascii().is_empty() {
        return Err("the body is empty: post a JSON object".to_owned());
    }
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<&RawValue>();
    // The iterator has an item, since the text is not empty.
    let value = values.next().transpose().map_err(|error| format!("the body is not JSON: {error}"))?;
    if text.get(values.byte_offset()..).is_some_and(|rest| !rest.trim_ascii().is_empty()) {
        return Err("text follows the JSON of the body: post one object at a time, or an array of messages".to_owned());
    }
    Ok(value.unwrap_or(RawValue::NULL))
}

/// The members of an object.
#[derive(Debug)]
pub(crate) struct Members<'a> {
    /// The text before their names in errors: `to.`, or nothing.
    prefix: String,
    members: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a> Members<'a> {
    /// Reads the members of a body that is one object.
    pub(crate) fn of_body(value: &'a RawValue) -> Result<Self, Why> {
        Self::of_object(value, "the body")
    }

    /// Reads the members of a message in a batch.
    pub(super) fn of_message(value: &'a RawValue) -> Result<Self, Why> {
        Self::of_object(value, "a message")
    }

    fn of_object(value: &'a RawValue, what: &str) -> Result<Self, Why> {
        match JsonKind::of(value.get()) {
            JsonKind::Object => Self::of(value, String::new()),
            kind => Err(format!("{what} must be a JSON object, not {kind}")),
        }
    }

    fn of(object: &'a RawValue, prefix: String) -> Result<Self, Why> {
        let Pairs(members) = Pairs::deserialize(object).map_err(|error| format!("a name is no text: {error}"))?;
        Ok(Self { prefix, members })
    }

    /// Refuses a member that is not in `known`, and one that is there twice.
    pub(crate) fn known(self, known: &[&str]) -> Result<Self, Why> {
        let Self { prefix, members } = &self;
        for (name, _) in members {
            if !known.contains(&&**name) {
                return Err(format!("unknown member `{prefix}{name}`: use {}", known.join(", ")));
            }
        }
        self.each_once()
    }

    /// Refuses a member that is there twice.
    fn each_once(self) -> Result<Self, Why> {
        let Self { prefix, members } = &self;
        // A set, because the site's answer may have very many members.
        let mut seen = HashSet::with_capacity(members.len());
        match members.iter().find(|(name, _)| !seen.insert(&**name)) {
            Some((name, _)) => Err(format!("`{prefix}{name}` is there twice")),
            None => Ok(self),
        }
    }

    /// Returns the members of an empty object.
    #[cfg(feature = "backend")]
    pub(crate) fn none() -> Self {
        Self { prefix: String::new(), members: Vec::new() }
    }

    /// Returns all members.
    #[cfg(feature = "backend")]
    pub(crate) fn all(self) -> impl Iterator<Item = (String, Member<'a>)> {
        let prefix = self.prefix;
        self.members.into_iter().map(move |(name, json)| {
            let member = Member::new(format!("{prefix}{name}"), json);
            (name.into_owned(), member)
        })
    }

    /// Returns a member of any kind, if it is there.
    pub(crate) fn take(&mut self, name: &str) -> Option<Member<'a>> {
        let at = self.members.iter().position(|(own, _)| own == name)?;
        let (name, json) = self.members.swap_remove(at);
        Some(Member::new(format!("{}{name}", self.prefix), json))
    }

    /// Returns a member, if it is there and not null.
    pub(crate) fn optional(&mut self, name: &str) -> Option<Member<'a>> {
        self.take(name).filter(|member| member.kind() != JsonKind::Null)
    }

    /// Returns a member that has to be there.
    pub(crate) fn required(&mut self, name: &str) -> Result<Member<'a>, Why> {
        self.take(name).ok_or_else(|| format!("`{}{name}` is missing", self.prefix))
    }
}

/// One member of an object.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    pub(super) name: String,
    json: &'a str,
    raw: &'a RawValue,
}

impl<'a> Member<'a> {
    /// Returns a value under a name for errors.
    pub(crate) fn new(name: String, raw: &'a RawValue) -> Self {
        Self { name, json: raw.get(), raw }
    }

    pub(super) fn kind(&self) -> JsonKind {
        JsonKind::of(self.json)
    }

    pub(crate) fn must_be(&self, what: &str) -> Why {
        format!("`{}` must be {what}, not {}", self.name, self.kind())
    }

    /// Reads the member as text.
    pub(crate) fn text(&self) -> Result<String, Why> {
        string(self.json).ok_or_else(|| self.must_be("text"))
    }

    /// Reads the member as true or false.
    pub(crate) fn flag(&self) -> Result<bool, Why> {
        serde_json::from_str(self.json).map_err(|_| self.must_be("true or false"))
    }

    /// Reads the member as an id: text that is not empty. A whole number means its decimal text.
    pub(crate) fn id(&self) -> Result<String, Why> {
        id(&self.name, self.json)
    }

    /// Reads the member as a list of ids.
    pub(crate) fn ids(&self) -> Result<Vec<String>, Why> {
        if self.kind() != JsonKind::Array {
            return Err(self.must_be("an array"));
        }
        let ids: Vec<&RawValue> =
            serde_json::from_str(self.json).map_err(|error| format!("`{}`: {error}", self.name))?;
        ids.into_iter().enumerate().map(|(at, json)| id(&format!("{}[{at}]", self.name), json.get())).collect()
    }

    /// Reads the member as details of any kind.
    pub(crate) fn details(&self) -> Result<RawDetails, Why> {
        RawDetails::from_raw(self.raw).map_err(|error| format!("`{}` are {error}", self.name))
    }

    /// Reads the member as a connection's id.
    pub(crate) fn connection(&self) -> Result<ConnectionId, Why> {
        self.text()?.parse().map_err(|error| format!("`{}` is {error}", self.name))
    }

    /// Reads a property's value as targets compare it: a string without its quotes, anything else as compact JSON.
    pub(super) fn property(&self) -> Result<String, Why> {
        match self.kind() {
            JsonKind::Null => Err(self.must_be("the value of a property")),
            JsonKind::Text => self.text(),
            // A number is written as the property's own value is, however the site wrote it: `1.0e+25` is `1e+25`.
            _ => Ok(serde_json::from_str(&replace_lone_surrogates(self.json))
                .map_or_else(|_| compact(self.json), |value| property_text(&value).into_owned())),
        }
    }

    pub(super) fn members(&self, known: &[&str]) -> Result<Members<'a>, Why> {
        if self.kind() != JsonKind::Object {
            return Err(self.must_be("an object"));
        }
        Members::of(self.raw, format!("{}.", self.name))?.known(known)
    }
}

/// What only the answers of a site's own code need.
#[cfg(feature = "backend")]
impl<'a> Member<'a> {
    /// Returns the name, as errors show it.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Returns the JSON text.
    pub(crate) fn json(&self) -> &'a str {
        self.json
    }

    /// Reads the member as an array of any values.
    pub(crate) fn items(&self) -> Result<Vec<Self>, Why> {
        if self.kind() != JsonKind::Array {
            return Err(self.must_be("an array"));
        }
        let items: Vec<&RawValue> =
            serde_json::from_str(self.json).map_err(|error| format!("`{}`: {error}", self.name))?;
        Ok(items.into_iter().enumerate().map(|(at, raw)| Self::new(format!("{}[{at}]", self.name), raw)).collect())
    }

    /// Reads the member as an object, whose members may have any names.
    pub(crate) fn object(&self) -> Result<Members<'a>, Why> {
        self.object_with(format!("{}.", self.name))
    }

    /// Reads the member like [`object`](Self::object). In errors its members are named without it.
    pub(crate) fn whole_object(&self) -> Result<Members<'a>, Why> {
        self.object_with(String::new())
    }

    fn object_with(&self, prefix: String) -> Result<Members<'a>, Why> {
        match self.kind() {
            JsonKind::Object => Members::of(self.raw, prefix)?.each_once(),
            _ => Err(self.must_be("an object")),
        }
    }

    /// Reads the member as any value.
    pub(crate) fn value(&self) -> Result<Value, Why> {
        let mended = replace_lone_surrogates(self.json);
        serde_json::from_str(&mended).map_err(|error| format!("`{}` cannot be read: {error}", self.name))
    }
}

fn id(name: &str, json: &str) -> Result<String, Why> {
    let digits = json.strip_prefix('-').unwrap_or(json);
    match string(json) {
        Some(id) if id.is_empty() => Err(format!("`{name}` is empty")),
        Some(id) => Ok(id),
        None if digits.bytes().all(|byte| byte.is_ascii_digit()) => Ok(json.to_owned()),
        None if JsonKind::of(json) == JsonKind::Number => {
            Err(format!("`{name}` must be text or a whole number, not {json}"))
        }
        None => Err(format!("`{name}` must be text or a number, not {}", JsonKind::of(json))),
    }
}

/// Returns the text of a JSON string.
fn string(json: &str) -> Option<String> {
    json.starts_with('"').then(|| serde_json::from_str(&replace_lone_surrogates(json)).ok()).flatten()
}

/// Returns the JSON without spaces between its tokens.
fn compact(json: &str) -> String {
    let (mut text, mut escaped) = (false, false);
    let keep = |character: &char| {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => text = !text,
            ' ' | '\t' | '\n' | '\r' => return text,
            _ => {}
        }
        true
    };
    json.chars().filter(keep).collect()
}

/// The kind of a JSON value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum JsonKind {
    Null,
    Flag,
    Number,
    Text,
    Array,
    Object,
}

impl JsonKind {
    /// Returns the kind of valid JSON without spaces before it.
    pub(super) fn of(json: &str) -> Self {
        match json.as_bytes().first() {
            Some(b'"') => Self::Text,
            Some(b'[') => Self::Array,
            Some(b'{') => Self::Object,
            Some(b't' | b'f') => Self::Flag,
            Some(b'-' | b'0'..=b'9') => Self::Number,
            _ => Self::Null,
        }
    }
}

impl fmt::Display for JsonKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Null => "null",
            Self::Flag => "true or false",
            Self::Number => "a number",
            Self::Text => "text",
            Self::Array => "an array",
            Self::Object => "an object",
        })
    }
}

/// All members of an object, in their order, including repeated ones.
struct Pairs<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct All;

        impl<'de> Visitor<'de> for All {
            type Value = Pairs<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<Cow<'de, str>, &'de RawValue>()? {
                    members.push(member);
                }
                Ok(Pairs(members))
            }
        }

        deserializer.deserialize_map(All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_is_utf8() {
        let wide = |units: Vec<[u8; 2]>| units.concat();
        let json = r#"{"action":"x","to":"all"}"#;
        let little: Vec<u8> = wide(json.encode_utf16().map(u16::to_le_bytes).collect());
        let big: Vec<u8> = wide(json.encode_utf16().map(u16::to_be_bytes).collect());
        for body in [&little, &big, &[b"\xff\xfe", &little[..]].concat(), &[b"\xfe\xff", &big[..]].concat()] {
            assert!(text(body).unwrap_err().contains("UTF-16"), "{body:?}");
        }
        assert!(text(b"{\"a\":\"\xe9\"}").unwrap_err().contains("not UTF-8 (byte 7)"));
        assert_eq!(text(b"\xef\xbb\xbf{}"), Ok("{}"));
    }
}
