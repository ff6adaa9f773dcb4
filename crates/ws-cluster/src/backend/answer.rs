//! What the site's answers mean. An answer is read as a whole, so that nothing of an answer with a mistake takes
//! effect. Pure.

use std::time::{Duration, SystemTime};

use serde_json::{Value, value::RawValue};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    ActionError, Identity, Message, RawDetails,
    message::{
        command::{Member, Members, Why, message_of, text},
        groups::{GROUPS, NAMES_SIZE},
    },
};

/// Maximum number of messages in one answer, and of properties.
const MESSAGES: usize = 1_000;
const PROPERTIES: usize = 1_000;
/// Maximum size of the id of a user or session, in bytes.
const ID_SIZE: usize = 1_024;
/// The range of times in seconds since 1970, from the year 2001 to the year 9999. What is below is the number of
/// seconds until then, and what is above is in milliseconds.
const TIMES: std::ops::Range<f64> = 1e9..253_402_300_800.0;

/// What an answer to an action asks for, in the order in which it takes effect.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Effects {
    /// The properties to set. Null removes one.
    pub(super) properties: Vec<(String, Value)>,
    pub(super) join: Vec<String>,
    pub(super) leave: Vec<String>,
    pub(super) publish: Vec<Message>,
    /// The answer to the client: details, or an error.
    pub(super) reply: Option<Result<RawDetails, ActionError>>,
}

/// Reads the answer to an action. The error names the member that is wrong.
pub(super) fn effects(body: &[u8]) -> Result<Effects, Why> {
    let text = text(body)?;
    let mut members = object(text)?;
    let ids = |member: Option<Member<'_>>| member.map_or(Ok(Vec::new()), |member| member.ids());
    let properties = properties(members.optional("properties"))?;
    let (join, leave) = (ids(members.optional("join"))?, ids(members.optional("leave"))?);
    check_groups(join.iter().chain(&leave))?;
    let publish = members.optional("publish").map_or(Ok(Vec::new()), |member| messages(&member))?;
    let reply = match (members.optional("reply"), members.optional("error")) {
        (Some(_), Some(_)) => return Err("`reply` and `error` exclude each other".to_owned()),
        (Some(reply), None) => Some(Ok(reply.details()?)),
        (None, Some(error)) => Some(Err(self::error(&error)?)),
        (None, None) => None,
    };
    Ok(Effects { properties, join, leave, publish, reply })
}

/// Reads the answer about a client. No member `user` means a guest.
pub(super) fn identity(body: &[u8]) -> Result<Identity, Why> {
    let text = text(body)?;
    let mut members = object(text)?;
    let id = |member: Option<Member<'_>>| member.map(|member| id(&member)).transpose();
    let mut identity = Identity::guest();
    identity.user = id(members.optional("user"))?;
    identity.session = id(members.optional("session"))?;
    identity.expires = members.optional("expires").map(|member| expires(&member)).transpose()?;
    if let Some(groups) = members.optional("groups") {
        let groups = groups.ids()?;
        check_groups(&groups)?;
        identity = identity.groups(groups);
    }
    let properties = properties(members.optional("properties"))?;
    identity.properties = properties.into_iter().filter(|(_, value)| !value.is_null()).collect();
    Ok(identity)
}

fn object(text: &str) -> Result<Members<'_>, Why> {
    if text.trim_ascii().is_empty() {
        return Err("the answer is empty: answer with 204, or with a JSON object".to_owned());
    }
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| format!("the answer is not JSON: {error}"))?;
    // PHP writes an empty array for an empty object.
    let raw = if raw.get().trim_ascii() == "[]" { RawValue::NULL } else { raw };
    match Member::new("answer".to_owned(), raw) {
        member if member.json() == "null" => Ok(Members::none()),
        member => member.whole_object(),
    }
}

fn id(member: &Member<'_>) -> Result<String, Why> {
    let id = member.id()?;
    match id.len() {
        ..=ID_SIZE => Ok(id),
        _ => Err(format!("`{}` is longer than {ID_SIZE} bytes", member.name())),
    }
}

fn properties(member: Option<Member<'_>>) -> Result<Vec<(String, Value)>, Why> {
    let Some(member) = member.filter(|member| !is_empty_array(member)) else { return Ok(Vec::new()) };
    let properties: Vec<_> =
        member.object()?.all().map(|(name, member)| Ok((name, member.value()?))).collect::<Result<_, Why>>()?;
    match properties.len() {
        ..=PROPERTIES => Ok(properties),
        count => Err(format!("`properties` has {count} properties, of at most {PROPERTIES}")),
    }
}

/// Checks the groups of an answer, which have the limits of a command of the site.
fn check_groups<'a>(names: impl IntoIterator<Item = &'a String>) -> Result<(), Why> {
    let (count, size) = names.into_iter().fold((0, 0), |(count, size), name| (count + 1, size + name.len()));
    if count > GROUPS || size > NAMES_SIZE {
        let limit = NAMES_SIZE / 1024;
        return Err(format!("the answer names {count} groups of {size} bytes, of at most {GROUPS} and {limit} KiB"));
    }
    Ok(())
}

/// PHP writes an empty array for an empty object.
fn is_empty_array(member: &Member<'_>) -> bool {
    member.items().is_ok_and(|items| items.is_empty())
}

fn messages(member: &Member<'_>) -> Result<Vec<Message>, Why> {
    let items = member.items()?;
    if items.len() > MESSAGES {
        return Err(format!("`publish` has {} messages, of at most {MESSAGES}", items.len()));
    }
    items.iter().map(|item| message(item).map_err(|why| within(item.name(), why))).collect()
}

fn message(item: &Member<'_>) -> Result<Message, Why> {
    let message = message_of(item.whole_object()?)?;
    // What could not be published is found before anything of the answer takes effect.
    message.clone().encode().map_err(|error| error.to_string())?;
    Ok(message)
}

/// Says of a mistake in which item of an array it is.
fn within(item: &str, why: Why) -> Why {
    if why.starts_with(&format!("`{item}`")) { why } else { format!("in `{item}`: {why}") }
}

fn error(member: &Member<'_>) -> Result<ActionError, Why> {
    let shape = || member.must_be("[CODE, \"text\"], with a code from 100 to 999");
    let items = member.items().map_err(|_| shape())?;
    let [code, text] = &*items else { return Err(shape()) };
    let code = code.json().parse().ok().filter(|code| (100..=999).contains(code)).ok_or_else(shape)?;
    Ok(ActionError::new(code, text.text().map_err(|_| shape())?))
}

/// Reads a time: seconds since 1970, or text as in RFC 3339.
fn expires(member: &Member<'_>) -> Result<SystemTime, Why> {
    let name = member.name();
    if let Ok(text) = member.text() {
        let time = OffsetDateTime::parse(text.trim(), &Rfc3339)
            .map_err(|error| format!("`{name}` is no time as 2030-01-31T12:00:00Z ({error})"))?;
        return Ok(time.max(OffsetDateTime::UNIX_EPOCH).into());
    }
    let wrong = || member.must_be("a time in seconds since 1970, or text as 2030-01-31T12:00:00Z");
    let seconds: f64 = serde_json::from_str(member.json()).map_err(|_| wrong())?;
    if !TIMES.contains(&seconds) {
        let why = if seconds < TIMES.start { "not a number of seconds from now" } else { "not in milliseconds" };
        return Err(format!("`{name}` must be a time in seconds since 1970, {why}: {}", member.json()));
    }
    Ok(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{Target, fuzz::search};

    fn read(body: &str) -> Effects {
        effects(body.as_bytes()).unwrap_or_else(|why| panic!("{body}: {why}"))
    }

    fn who(body: &str) -> Identity {
        identity(body.as_bytes()).unwrap_or_else(|why| panic!("{body}: {why}"))
    }

    #[test]
    fn an_answer_to_an_action_is_read_with_its_order() {
        let effects = read(
            r#"{"reply": {"z": 1.0, "a": 1e400}, "publish": [{"action": "comment/new", "details": [7, "é"],
                "to": "group:page/7", "except": {"user": "ann"}, "later": 1}, {"action": "x", "to": {"users": ["a,b", 7]},
                "key": "k"}], "join": ["page/7", 8], "leave": [], "properties": {"page": 7, "old": null}, "more": {}}"#,
        );
        assert_eq!(effects.properties, [("page".to_owned(), json!(7)), ("old".to_owned(), Value::Null)]);
        assert_eq!((effects.join, effects.leave), (vec!["page/7".to_owned(), "8".to_owned()], vec![]));
        let first = Message::raw("comment/new", json!([7, "é"]).into()).to(Target::group("page/7").except_user("ann"));
        let second = Message::raw("x", RawDetails::default()).to(Target::users(["a,b", "7"])).idempotency_key("k");
        assert_eq!(effects.publish[1], second);
        assert_eq!(effects.publish[0].target(), first.target());
        assert_eq!(effects.publish[0].details().as_str(), r#"[7, "é"]"#);
        assert_eq!(effects.reply.unwrap().unwrap().as_str(), r#"[{"z": 1.0, "a": 1e400}]"#);
    }

    #[test]
    fn an_answer_may_ask_for_nothing() {
        for body in
            ["{}", "[]", "null", " {\n}", r#"{"reply": null, "error": null, "publish": null, "properties": []}"#]
        {
            assert_eq!(read(body), Effects::default(), "{body}");
        }
        assert_eq!(read(r#"{"reply": []}"#).reply, Some(Ok(RawDetails::default())));
        let refused = ActionError::new(409, "It is taken");
        assert_eq!(read(r#"{"error": [409, "It is taken"]}"#).reply, Some(Err(refused)));
    }

    #[test]
    fn a_mistake_in_an_answer_names_its_member() {
        let deep = "[".repeat(200) + &"]".repeat(200);
        let long = "a".repeat(256);
        let many = r#"{"action":"a","to":"all"},"#.repeat(1_001);
        let numbered: String = (0..1_001).map(|number| format!(r#""{number}":1,"#)).collect();
        for (body, says) in [
            ("", "the answer is empty"),
            ("<html>", "the answer is not JSON"),
            (r#"{"reply": 1"#, "the answer is not JSON"),
            (r#"{"reply": 1}{"reply": 1}"#, "the answer is not JSON: trailing"),
            ("[1]", "`answer` must be an object, not an array"),
            ("7", "`answer` must be an object, not a number"),
            (r#"{"reply": 1, "reply": 2}"#, "`reply` is there twice"),
            (r#"{"reply": 1, "error": [400, "x"]}"#, "`reply` and `error` exclude"),
            (&format!(r#"{{"reply": {deep}}}"#), "`reply` are nested more than"),
            (r#"{"error": "no"}"#, r#"`error` must be [CODE, "text"]"#),
            (r#"{"error": [400]}"#, "`error` must be"),
            (r#"{"error": ["400", "x"]}"#, "`error` must be"),
            (r#"{"error": [99, "x"]}"#, "`error` must be"),
            (r#"{"error": [70000, "x"]}"#, "`error` must be"),
            (r#"{"error": [400, 7]}"#, "`error` must be"),
            (r#"{"join": "a"}"#, "`join` must be an array, not text"),
            (r#"{"leave": [""]}"#, "`leave[0]` is empty"),
            (&format!(r#"{{"join": [{}7], "leave": [8]}}"#, "7,".repeat(999)), "names 1001 groups of 1001 bytes"),
            (&format!(r#"{{"leave": ["{}"]}}"#, "a".repeat(65_537)), "names 1 groups of 65537 bytes"),
            (&format!(r#"{{"properties": {{{}}}}}"#, numbered.trim_end_matches(',')), "has 1001 properties"),
            (r#"{"join": [1.5]}"#, "`join[0]` must be text or a whole number"),
            (r#"{"properties": ["a"]}"#, "`properties` must be an object, not an array"),
            (r#"{"properties": {"a": 1e400}}"#, "`properties.a` cannot be read"),
            (r#"{"publish": {"action": "a"}}"#, "`publish` must be an array, not an object"),
            (r#"{"publish": ["a"]}"#, "`publish[0]` must be an object, not text"),
            (r#"{"publish": [{"to": "all"}]}"#, "in `publish[0]`: `action` is missing"),
            (r#"{"publish": [{"action": "a", "to": "all"}, {"action": "a"}]}"#, "in `publish[1]`: `to` is missing"),
            (r#"{"publish": [{"action": "a", "to": "everyone"}]}"#, "in `publish[0]`: `to`: unknown target"),
            (r#"{"publish": [{"action": "a", "to": {"user": 1, "x": 2}}]}"#, "in `publish[0]`: unknown member `to.x`"),
            (r#"{"publish": [{"action": "a", "to": "all", "key": ""}]}"#, "in `publish[0]`: `key` is empty"),
            (&format!(r#"{{"publish": [{{"action": "{long}", "to": "all"}}]}}"#), "an action has 1 to 255 bytes"),
            (&format!(r#"{{"publish": [{}]}}"#, many.trim_end_matches(',')), "`publish` has 1001 messages"),
        ] {
            let told = effects(body.as_bytes()).expect_err(body);
            assert!(told.contains(says), "{body}: {told}");
        }
        assert!(effects(b"{\"reply\":\"\xe9\"}").unwrap_err().contains("not UTF-8"));
    }

    #[test]
    fn an_answer_about_a_client_is_its_identity() {
        assert_eq!(who("{}"), Identity::guest());
        assert_eq!(who("[]"), Identity::guest());
        assert_eq!(who(r#"{"user": null, "groups": null, "more": 1}"#), Identity::guest());
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let ann = Identity::user("7").session("s").expires(at(1_900_000_000)).groups(["a", "8"]).property("page", 7);
        let rest = r#""session": "s", "groups": ["a", 8], "properties": {"page": 7, "no": null}"#;
        for expires in ["1900000000", "1900000000.0", "\"2030-03-17T17:46:40Z\"", "\"2030-03-17t19:46:40+02:00\""] {
            assert_eq!(who(&format!(r#"{{"user": 7, "expires": {expires}, {rest}}}"#)), ann, "{expires}");
        }
        assert_eq!(who(r#"{"expires": "1960-01-01T00:00:00Z"}"#).expires, Some(at(0)));
    }

    /// Answers with all members.
    const ANSWERS: &[&[u8]] = &[
        br#"{"properties": {"page": 8, "draft": null}, "join": ["page/8", 9], "leave": ["page/7"], "reply": {"id": 1e400}}"#,
        br#"{"publish": [{"action": "a", "details": [9, "\ud83c"], "to": "group:page/7", "except": {"user": "bob"}}]}"#,
        br#"{"publish": [{"action": "a", "to": {"users": ["a,b"]}, "key": "k", "volatile": true}], "error": [409, "no"]}"#,
        br#"{"user": "ann", "session": 7, "expires": 1900000000.5, "groups": ["editors"], "properties": {"page": 7}}"#,
        br#"{"user": null, "expires": "2030-03-17T17:46:40.123+02:00", "groups": [], "properties": []}"#,
        b"[]",
    ];

    #[test]
    fn a_hostile_answer_is_refused_or_can_take_effect() {
        search(ANSWERS, |input| match effects(input) {
            Ok(effects) => {
                let groups = effects.join.iter().chain(&effects.leave);
                if groups.into_iter().any(String::is_empty) {
                    return Err("a group without a name".to_owned());
                }
                effects
                    .publish
                    .into_iter()
                    .try_for_each(|message| message.encode().map(drop))
                    .map_err(|error| error.to_string())
            }
            Err(why) if why.is_empty() => Err("no reason".to_owned()),
            Err(_) => Ok(()),
        });
    }

    #[test]
    fn a_hostile_answer_about_a_client_is_refused_or_names_a_user_or_a_guest() {
        search(ANSWERS, |input| match identity(input) {
            Ok(identity) if identity.user.as_deref() == Some("") => Err("a user without an id".to_owned()),
            Ok(identity) if identity.expires.is_some_and(|expires| expires < SystemTime::UNIX_EPOCH) => {
                Err("an end before 1970".to_owned())
            }
            Ok(_) => Ok(()),
            Err(why) if why.is_empty() => Err("no reason".to_owned()),
            Err(_) => Ok(()),
        });
    }

    #[test]
    fn a_mistake_in_an_answer_about_a_client_is_named() {
        let long = "a".repeat(1_025);
        for (body, says) in [
            (r#"{"user": ""}"#, "`user` is empty"),
            (r#"{"user": false}"#, "`user` must be text or a number, not true or false"),
            (&format!(r#"{{"user": "{long}"}}"#), "`user` is longer than 1024 bytes"),
            (r#"{"session": []}"#, "`session` must be text or a number, not an array"),
            (r#"{"groups": {"0": "a"}}"#, "`groups` must be an array, not an object"),
            (r#"{"groups": "a"}"#, "`groups` must be an array, not text"),
            (r#"{"expires": 3600}"#, "not a number of seconds from now: 3600"),
            (r#"{"expires": -1}"#, "not a number of seconds from now"),
            (r#"{"expires": 1900000000000}"#, "not in milliseconds"),
            (r#"{"expires": "tomorrow"}"#, "`expires` is no time as"),
            (r#"{"expires": "2030-01-31 12:00:00"}"#, "`expires` is no time as"),
            (r#"{"expires": true}"#, "`expires` must be a time in seconds since 1970"),
        ] {
            let told = identity(body.as_bytes()).expect_err(body);
            assert!(told.contains(says), "{body}: {told}");
        }
    }
}
