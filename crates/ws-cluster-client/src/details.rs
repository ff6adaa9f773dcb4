//! The arguments of a message as JSON text, so that the bytes of one client reach the others unchanged, and the few
//! rewrites of JSON text that are necessary. Pure.

use std::{borrow::Cow, fmt, str::FromStr, sync::OnceLock};

use bytes::Bytes;
use memchr::{memchr, memchr2_iter};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::IgnoredAny, de::value::SeqDeserializer};
use serde_json::{Value, value::RawValue};
use tungstenite::Utf8Bytes;

/// Maximum nesting of details that are read from text, including the array of the arguments. Each argument is then
/// within the limit of common parsers.
const DEPTH: usize = 128;

/// The arguments of a message: a JSON array, kept as text.
///
/// The text is not changed: numbers of any size and precision, the order of members, repeated members and spaces stay.
/// There are two exceptions. A value that is not an array is put into one (`null` becomes no argument, any other value
/// one argument). Half of a surrogate pair (`\ud83c` alone), which is not valid text, becomes U+FFFD.
///
/// Details are made from JSON text with [`str::parse`], from a [`Value`] (`json!`), or from any serializable value with
/// [`from_serialize`](Self::from_serialize). Clones share the text.
///
/// [`detail`](Self::detail) and [`parse`](Self::parse) read from the text. [`values`](Self::values) reads the arguments
/// as [`Value`]s.
///
/// ```
/// use ws_cluster_client::RawDetails;
///
/// let details: RawDetails = r#"[18446744073709551616, {"z": 1.0, "a": 2}]"#.parse()?;
/// assert_eq!(details.as_str(), r#"[18446744073709551616, {"z": 1.0, "a": 2}]"#);
/// assert_eq!(details.detail::<u128>(0)?, 1 << 64);
/// assert_eq!(details.values()[1]["a"], 2);
/// assert_eq!(RawDetails::from_serialize("hello")?.as_str(), r#"["hello"]"#);
/// # Ok::<_, Box<dyn std::error::Error>>(())
/// ```
pub struct RawDetails {
    /// A JSON array.
    text: Utf8Bytes,
    values: OnceLock<Box<[Value]>>,
}

/// The reason why a text cannot be details.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ParseDetailsError {
    /// It is not JSON.
    #[error("not JSON: {0}")]
    NotJson(#[from] serde_json::Error),
    /// Arrays and objects are nested too deeply.
    #[error("nested more than {DEPTH} levels deep")]
    TooDeep,
}

impl RawDetails {
    /// Makes details from any serializable value. `null` becomes no argument, an array or a tuple becomes one argument
    /// for each element, and any other value becomes one argument.
    ///
    /// The text keeps what serde writes, such as a [`RawValue`], a `u128`, or the order of a structure's fields.
    ///
    /// ```
    /// use ws_cluster_client::RawDetails;
    /// let details = RawDetails::from_serialize(&("room", u128::MAX))?;
    /// assert_eq!(details.as_str(), r#"["room",340282366920938463463374607431768211455]"#);
    /// # Ok::<_, serde_json::Error>(())
    /// ```
    ///
    /// # Errors
    /// The value cannot be written as JSON, such as a map whose keys are not text.
    pub fn from_serialize<T: Serialize + ?Sized>(value: &T) -> Result<Self, serde_json::Error> {
        Ok(Self::wrap(serde_json::to_string(value)?.into()))
    }

    /// Makes details from JSON text that serde has already checked, by the same rules as [`str::parse`].
    ///
    /// # Errors
    /// Arrays and objects are nested too deeply.
    pub fn from_raw(json: &RawValue) -> Result<Self, ParseDetailsError> {
        let json = json.get();
        if is_too_deep(json, DEPTH - usize::from(!json.starts_with('['))) {
            return Err(ParseDetailsError::TooDeep);
        }
        Ok(Self::wrap(replace_lone_surrogates(json)))
    }

    fn wrap(json: Cow<'_, str>) -> Self {
        let text = match json.as_bytes().first() {
            Some(b'[') => json.into_owned(),
            // No other value begins so.
            Some(b'n') => "[]".to_owned(),
            _ => format!("[{json}]"),
        };
        Self { text: text.into(), values: OnceLock::new() }
    }

    /// Returns the JSON array.
    pub fn as_str(&self) -> &str {
        self.text.as_str()
    }

    /// Returns the JSON array as bytes, which share the text's memory.
    pub fn to_bytes(&self) -> Bytes {
        self.text.clone().into()
    }

    /// Returns the same JSON with text in UTF-8: `\uXXXX` stays only if JSON requires it.
    pub fn plain(&self) -> Self {
        Self { text: plain(self.as_str()).into(), values: OnceLock::new() }
    }

    /// Returns true if there are no arguments.
    pub fn is_empty(&self) -> bool {
        let text = self.as_str();
        text.get(1..text.len() - 1).is_none_or(|inner| inner.trim_ascii().is_empty())
    }

    /// Returns the number of arguments.
    pub fn len(&self) -> usize {
        self.read::<Vec<IgnoredAny>>().len()
    }

    /// Returns the JSON text of each argument.
    pub fn raw(&self) -> Vec<&RawValue> {
        self.read()
    }

    /// Reads the array as a type that takes any array.
    fn read<'a, T: Deserialize<'a> + Default>(&'a self) -> T {
        // It is an array: `wrap` saw to that.
        serde_json::from_str(self.as_str()).unwrap_or_default()
    }

    /// Reads the argument at `index`, counted from 0, from the text as a type of your own. A missing argument reads as
    /// `null`.
    ///
    /// # Errors
    /// The argument has another shape.
    pub fn detail<'a, T: Deserialize<'a>>(&'a self, index: usize) -> Result<T, serde_json::Error> {
        match self.raw().get(index) {
            // Text with escapes cannot be borrowed from the JSON, but from its value.
            Some(raw) => T::deserialize(*raw).or_else(|error| match self.fits_values() {
                true => T::deserialize(&self.values()[index]),
                false => Err(error),
            }),
            None => T::deserialize(&Value::Null),
        }
    }

    /// Reads all arguments from the text as a tuple or a list.
    fn parse_list<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        T::deserialize(SeqDeserializer::new(self.raw().into_iter())).or_else(|error| match self.fits_values() {
            true => T::deserialize(SeqDeserializer::new(self.values().iter())),
            false => Err(error),
        })
    }

    /// Returns false if an argument does not fit into a `Value`, and so would read as another value than it is.
    fn fits_values(&self) -> bool {
        self.raw().iter().all(|raw| serde_json::from_str::<Value>(raw.get()).is_ok())
    }

    /// Returns the arguments as [`Value`]s, which are made on first use. A `Value` cannot hold everything: integers
    /// beyond 64 bits become floating point, members are sorted, and an argument that does not fit at all (`1e400`)
    /// reads as `null`.
    pub fn values(&self) -> &[Value] {
        self.values.get_or_init(|| {
            let value = |raw: &RawValue| serde_json::from_str(raw.get()).unwrap_or_default();
            self.raw().into_iter().map(value).collect()
        })
    }

    /// Reads all arguments from the text as a tuple or a list. A single argument may also be the whole value: an object
    /// for a struct, or text for a `String`.
    ///
    /// # Errors
    /// The arguments have another number or shape.
    pub fn parse<'a, T: Deserialize<'a>>(&'a self) -> Result<T, serde_json::Error> {
        let &[single] = &*self.raw() else { return self.parse_list() };
        Self::parse_single(self.as_str(), single).or_else(|error| {
            // Text with escapes cannot be borrowed from the JSON, but from its value.
            if !self.fits_values() {
                return Err(error);
            }
            let list = T::deserialize(SeqDeserializer::new(self.values().iter()));
            list.or_else(|_| T::deserialize(&self.values()[0])).map_err(|_| error)
        })
    }

    /// Reads a list of a single argument, or this argument.
    fn parse_single<'a, T: Deserialize<'a>>(list: &'a str, single: &'a RawValue) -> Result<T, serde_json::Error> {
        let object = single.get().starts_with('{');
        let (first, second) = if object { (single.get(), list) } else { (list, single.get()) };
        let from_first = match serde_json::from_str(first) {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        match serde_json::from_str(second) {
            Ok(value) => Ok(value),
            // An object was meant for a struct, unless the type takes no object at all.
            Err(_) if object && !from_first.to_string().starts_with("invalid type: map") => Err(from_first),
            Err(from_second) => Err(if object || from_first.to_string().starts_with("invalid type: sequence") {
                from_second
            } else {
                from_first
            }),
        }
    }
}

impl Default for RawDetails {
    /// No arguments.
    fn default() -> Self {
        Self::wrap("[]".into())
    }
}

impl Clone for RawDetails {
    fn clone(&self) -> Self {
        Self { text: self.text.clone(), values: OnceLock::new() }
    }
}

impl fmt::Debug for RawDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for RawDetails {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl PartialEq for RawDetails {
    /// Returns true if the text is the same.
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for RawDetails {}

impl PartialEq<[Value]> for RawDetails {
    fn eq(&self, other: &[Value]) -> bool {
        self.values() == other
    }
}

impl<const N: usize> PartialEq<[Value; N]> for RawDetails {
    fn eq(&self, other: &[Value; N]) -> bool {
        self.values() == other
    }
}

impl PartialEq<Vec<Value>> for RawDetails {
    fn eq(&self, other: &Vec<Value>) -> bool {
        self.values() == other
    }
}

impl FromStr for RawDetails {
    type Err = ParseDetailsError;

    /// Reads JSON text of any kind: an array has one argument for each element, `null` none, and any other value is one
    /// argument.
    fn from_str(text: &str) -> Result<Self, ParseDetailsError> {
        Self::from_raw(serde_json::from_str(text)?)
    }
}

impl From<Value> for RawDetails {
    fn from(value: Value) -> Self {
        Self::wrap(value.to_string().into())
    }
}

impl Serialize for RawDetails {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::from_str::<&RawValue>(self.as_str()).map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for RawDetails {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self::wrap(replace_lone_surrogates(Box::<RawValue>::deserialize(deserializer)?.get())))
    }
}

/// Returns true if valid JSON nests arrays and objects in more than `limit` levels.
fn is_too_deep(json: &str, limit: usize) -> bool {
    let bytes = json.as_bytes();
    // Each level takes two bytes, so what is short or has few brackets need not be read.
    if bytes.len() <= 2 * limit || memchr2_iter(b'[', b'{', bytes).count() <= limit {
        return false;
    }
    let (mut depth, mut text, mut escaped) = (0, false, false);
    bytes.iter().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => text = !text,
            b'[' | b'{' if !text => depth += 1,
            b']' | b'}' if !text => depth -= 1,
            _ => {}
        }
        depth > limit
    })
}

/// Returns the code unit of `\uXXXX` at the beginning.
fn unit(bytes: &[u8]) -> Option<u16> {
    let digits = bytes.strip_prefix(b"\\u")?.get(..4)?;
    digits.iter().try_fold(0, |unit, digit| Some(unit << 4 | char::from(*digit).to_digit(16)? as u16))
}

/// Returns the character of `\uXXXX`, or of a pair of them, at the beginning, and its size in the text. The character
/// is `None` for half of a pair.
fn escaped(bytes: &[u8]) -> Option<(Option<char>, usize)> {
    const SIZE: usize = "\\uXXXX".len();
    let first = unit(bytes)?;
    let second = matches!(first, 0xD800..=0xDBFF).then(|| unit(&bytes[SIZE..])).flatten();
    Some(match char::decode_utf16([first].into_iter().chain(second)).next()?.ok() {
        Some(character) => (Some(character), SIZE * character.len_utf16()),
        None => (None, SIZE),
    })
}

/// Returns the JSON text with each half of a surrogate pair as U+FFFD.
pub fn replace_lone_surrogates(json: &str) -> Cow<'_, str> {
    rewrite(json, |bytes| match escaped(bytes) {
        Some((None, size)) => Some((char::REPLACEMENT_CHARACTER, size)),
        _ => None,
    })
}

/// Returns the JSON text with every character written as itself if JSON allows it.
fn plain(json: &str) -> String {
    let plain = rewrite(json, |bytes| match escaped(bytes) {
        Some((character, size)) => {
            let character = character.unwrap_or(char::REPLACEMENT_CHARACTER);
            (character >= ' ' && !matches!(character, '"' | '\\')).then_some((character, size))
        }
        None => bytes.starts_with(b"\\/").then_some(('/', 2)),
    });
    plain.into_owned()
}

/// Replaces escape sequences of JSON text. `replace` gets the text from an escape sequence on, and returns the
/// replacement and the size of the part that it replaces.
fn rewrite(json: &str, replace: impl Fn(&[u8]) -> Option<(char, usize)>) -> Cow<'_, str> {
    let bytes = json.as_bytes();
    let (mut rewritten, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(found) = memchr(b'\\', &bytes[at..]) {
        let start = at + found;
        match replace(&bytes[start..]) {
            Some((character, size)) => {
                rewritten.push_str(&json[copied..start]);
                rewritten.push(character);
                at = start + size;
                copied = at;
            }
            // A pair is passed as a whole, and anything else with the byte that is escaped.
            None => at = start + escaped(&bytes[start..]).map_or(2, |(_, size)| size),
        }
        if at >= bytes.len() {
            break;
        }
    }
    if copied == 0 {
        return json.into();
    }
    rewritten.push_str(&json[copied..]);
    rewritten.into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn parsed(text: &str) -> String {
        text.parse::<RawDetails>().unwrap().to_string()
    }

    #[test]
    fn text_passes_through_as_it_is() {
        for text in [
            "[]",
            "[ ]",
            "[117.63331139400017,1.0,1e400,-0,18446744073709551616,1E+2,0.10]",
            r#"[{"z":1,"a":2,"z":3}]"#,
            "[1 ,\t2,\n[3]]",
            r#"["\u00e9\ud83c\udf89\/\u0000","\\ud83c"]"#,
        ] {
            assert_eq!(parsed(text), text);
        }
    }

    #[test]
    fn what_is_no_array_is_wrapped() {
        for (text, wrapped) in [
            ("null", "[]"),
            (" null ", "[]"),
            (" [1] ", "[1]"),
            ("1e400", "[1e400]"),
            (r#""x""#, r#"["x"]"#),
            (r#" {"b":1, "a":1.0}"#, r#"[{"b":1, "a":1.0}]"#),
            ("false", "[false]"),
        ] {
            assert_eq!(parsed(text), wrapped);
        }
        assert_eq!(RawDetails::from(Value::Null).as_str(), "[]");
        assert_eq!(RawDetails::from(json!({"a": 1})).as_str(), r#"[{"a":1}]"#);
        assert_eq!(RawDetails::from(json!([1, 2])).as_str(), "[1,2]");
        assert_eq!(RawDetails::from_serialize("x").unwrap().as_str(), r#"["x"]"#);
        let nothing: Option<u8> = None;
        assert_eq!(RawDetails::from_serialize(&nothing).unwrap(), RawDetails::default());
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for text in ["", " ", "[1", "[1] 2", "[nan]", "['a']", "[01]", "[\"\t\"]", "[1,]", "nul", "\u{feff}[]"] {
            assert!(matches!(text.parse::<RawDetails>(), Err(ParseDetailsError::NotJson(_))), "{text}");
        }
    }

    #[test]
    fn half_of_a_pair_becomes_the_replacement_character() {
        for (text, mended) in [
            (r#"["\ud83c"]"#, "[\"\u{fffd}\"]"),
            (r#"["\uDF89x"]"#, "[\"\u{fffd}x\"]"),
            (r#"["\ud83c\ud83c\udf89\ud83c"]"#, "[\"\u{fffd}\\ud83c\\udf89\u{fffd}\"]"),
            (r#"["\ud83c\u0041"]"#, "[\"\u{fffd}\\u0041\"]"),
            (r#"["\ud83c\\udf89"]"#, "[\"\u{fffd}\\\\udf89\"]"),
            (r#"["\ud83c\n"]"#, "[\"\u{fffd}\\n\"]"),
            (r#"{"\udfff":1}"#, "[{\"\u{fffd}\":1}]"),
            (r#"["\\\ud83c","\\ud83c"]"#, "[\"\\\\\u{fffd}\",\"\\\\ud83c\"]"),
        ] {
            assert_eq!(parsed(text), mended);
        }
    }

    #[test]
    fn deep_nesting_is_refused() {
        let nested = |open: &str, close: &str, levels: usize| open.repeat(levels) + &close.repeat(levels);
        assert_eq!(parsed(&nested("[", "]", DEPTH)), nested("[", "]", DEPTH));
        let deep = |text: &str| matches!(text.parse::<RawDetails>(), Err(ParseDetailsError::TooDeep));
        assert!(deep(&nested("[", "]", DEPTH + 1)));
        assert!(deep(&nested("[", "]", 1_000_000)));
        assert!(!deep(&nested("{\"a\":[", "]}", DEPTH / 2 - 1)));
        assert!(deep(&nested("{\"a\":[", "]}", DEPTH / 2)));
        assert!(!deep(&format!("[\"{}\", \"\\\"{}\"]", "[".repeat(500), "{".repeat(500))), "it is text");
        assert!(!deep(&format!("[{}[]]", "[],".repeat(500))), "side by side");
    }

    #[test]
    fn arguments_are_read_from_the_text() {
        let details: RawDetails =
            r#"[18446744073709551616,117.63331139400017,"a\"b",9007199254740993]"#.parse().unwrap();
        assert_eq!(details.detail::<u128>(0).unwrap(), 1 << 64);
        assert_eq!(details.detail::<f64>(1).unwrap(), 117.63331139400017);
        assert_eq!(details.detail::<&str>(2).unwrap(), "a\"b");
        assert_eq!(details.detail::<Box<RawValue>>(0).unwrap().get(), "18446744073709551616");
        assert_eq!(details.detail::<Option<u8>>(7).unwrap(), None);
        assert!(details.detail::<u8>(7).is_err());
        let (power, _, text, large) = details.parse::<(u128, f64, String, i64)>().unwrap();
        assert_eq!((power, &*text, large), (1 << 64, "a\"b", 9_007_199_254_740_993));
        let error = details.parse::<(u8,)>().unwrap_err().to_string();
        assert!(!error.contains("line"), "{error}");
    }

    #[test]
    fn a_single_argument_may_be_the_whole_value() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Point {
            x: i32,
            y: i32,
        }
        let details = |text: &str| text.parse::<RawDetails>().unwrap();
        let point = Point { x: 1, y: 2 };
        assert_eq!(details(r#"[{"x": 1, "y": 2}]"#).parse::<Point>().unwrap(), point);
        assert_eq!(details("[1, 2]").parse::<Point>().unwrap(), point);
        assert_eq!(details(r#"[{"x": 1, "y": 2}]"#).parse::<(Point,)>().unwrap(), (point,));
        for text in [r#"["a"]"#, r#"["\u0061"]"#] {
            assert_eq!(details(text).parse::<&str>().unwrap(), "a");
            assert_eq!(details(text).parse::<(&str,)>().unwrap(), ("a",));
        }
        let error = details(r#"[{"x": 1}]"#).parse::<Point>().unwrap_err().to_string();
        assert!(error.contains("missing field `y`"), "{error}");
        assert!(details("[1e400]").parse::<Option<f64>>().is_err());
    }

    #[test]
    fn what_no_value_holds_is_not_taken_for_nothing() {
        let details: RawDetails = "[1e400]".parse().unwrap();
        assert!(details.detail::<Option<f64>>(0).is_err());
        assert!(details.parse::<(Option<f64>,)>().is_err());
        assert_eq!(details.values()[0], Value::Null);
        assert_eq!(details.raw()[0].get(), "1e400");
    }

    #[test]
    fn details_have_values() {
        let details: RawDetails = r#" [ 1, {"a": [2]} ] "#.parse().unwrap();
        assert_eq!((details.len(), details.is_empty()), (2, false));
        assert_eq!(details.values()[1]["a"][0], 2);
        assert_eq!(details, [json!(1), json!({"a": [2]})]);
        assert!("[ \n]".parse::<RawDetails>().unwrap().is_empty());
        assert_eq!("[ \n]".parse::<RawDetails>().unwrap().len(), 0);
    }

    #[test]
    fn details_are_serializable_as_they_are() {
        let details: RawDetails = "[1.0, 1e400]".parse().unwrap();
        assert_eq!(serde_json::to_string(&(7, &details)).unwrap(), "[7,[1.0, 1e400]]");
        assert_eq!(serde_json::from_str::<Vec<RawDetails>>("[[1.0, 1e400],1]").unwrap(), [details, json!(1).into()]);
    }

    #[test]
    fn plain_text_has_no_escapes_that_it_can_do_without() {
        let plain = |text: &str| text.parse::<RawDetails>().unwrap().plain().to_string();
        assert_eq!(
            plain(r#"["\u043f\ud83c\udf89\u003c\/\u0022\u005c\u000a\n\\u0041","\u0000"]"#),
            "[\"\u{43f}\u{1f389}</\\u0022\\u005c\\u000a\\n\\\\u0041\",\"\\u0000\"]"
        );
        assert_eq!(plain("[1]"), "[1]");
    }
}
