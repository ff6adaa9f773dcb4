//! Writes settings as TOML: the settings in effect with their sources, or an example of all.

use std::{collections::BTreeMap, fmt::Write, sync::Arc};

use clap::{ArgMatches, parser::ValueSource};
use parking_lot::Mutex;
use serde::Serialize;
use url::Url;
use ws_cluster::Config;

use super::{
    File, Sources,
    keys::{Expects, Key},
};

/// Columns of a comment.
const COLUMNS: usize = 100;
const HIDDEN: &str = "(hidden)";

/// Returns the settings in effect, each with its meaning and its source. Secrets are hidden.
pub(crate) fn effective(matches: &ArgMatches, sources: &Sources, file: Option<&File>, config: &Config) -> String {
    let mut text = String::from("# The settings in effect, and the source of each.\n");
    for_each(&mut text, |text, key| {
        let (_, name) = key.parts();
        let (value, source) = in_effect(key, matches, sources, file, config);
        let _ = match value {
            Some(value) => writeln!(text, "{name} = {value}  # {source}"),
            None => writeln!(text, "# {name} is not set"),
        };
    });
    text
}

/// Returns the values in effect by key, in TOML, including secrets. A value that is not set is empty.
pub(crate) fn values(matches: &ArgMatches, config: &Config) -> BTreeMap<String, String> {
    let value = |key: &Key| match (key.setting, &key.flag) {
        (Some(setting), _) => Some(setting.show(config)),
        (None, Some(flag)) => given(matches, &id(flag), key, false),
        (None, None) => None,
    };
    Key::all().iter().map(|key| (key.name.clone(), value(key).unwrap_or_default())).collect()
}

/// Returns the settings in effect as rows of a page. Secrets are hidden.
pub(crate) fn table(matches: &ArgMatches, sources: &Sources, file: Option<&File>, config: &Config) -> Vec<Row> {
    let row = |key: Key| {
        let (value, source) = in_effect(&key, matches, sources, file, config);
        Row { key: key.name, value, source, help: key.help }
    };
    Key::all().into_iter().map(row).collect()
}

/// A setting as a page shows it.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    key: String,
    /// In TOML; `None` if it is not set.
    value: Option<String>,
    source: String,
    help: String,
}

/// The settings in effect, as a page shows them. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shown(Arc<Mutex<Vec<Row>>>);

impl Shown {
    pub(crate) fn new(rows: Vec<Row>) -> Self {
        Self(Arc::new(Mutex::new(rows)))
    }

    pub(crate) fn rows(&self) -> Vec<Row> {
        self.0.lock().clone()
    }

    /// Replaces the rows of these keys.
    pub(crate) fn change(&self, keys: &[String], rows: Vec<Row>) {
        let mut shown = self.0.lock();
        for row in rows.into_iter().filter(|row| keys.contains(&row.key)) {
            if let Some(old) = shown.iter_mut().find(|old| old.key == row.key) {
                *old = row;
            }
        }
    }
}

/// Returns the value of a key in TOML, and its source.
fn in_effect(
    key: &Key,
    matches: &ArgMatches,
    sources: &Sources,
    file: Option<&File>,
    config: &Config,
) -> (Option<String>, String) {
    let place = || file.and_then(|file| file.place(&key.name));
    // `--no-compression` turns the setting off. If the flag is on, it is the source.
    if key.name == "connection.compression"
        && matches.get_flag("no_compression")
        && let Some(flag) = Key::all().iter().find(|key| key.name == "no_compression")
    {
        let (_, source) = in_effect(flag, matches, sources, file, config);
        return (key.setting.map(|setting| setting.show(config)), source);
    }
    let id = key.flag.as_deref().map(id);
    let source = id.as_deref().and_then(|id| matches.value_source(id));
    let source = match (source, &key.flag) {
        (Some(ValueSource::CommandLine), Some(flag)) => format!("--{flag}"),
        (Some(ValueSource::EnvVariable), Some(flag)) => sources.of_flag(flag).unwrap_or_default(),
        _ => place().unwrap_or_else(|| "default".to_owned()),
    };
    let value = match (key.setting, &id) {
        (Some(setting), _) => Some(setting.show(config)),
        (None, Some(id)) => given(matches, id, key, true),
        (None, None) => None,
    };
    (value, source)
}

/// Returns a file with every key, its default and its meaning. All lines are comments.
pub(crate) fn example() -> String {
    let mut text = String::from(
        "# Settings of ws-server. Every line is the default: remove the # to change it.\n\
         # A flag wins over its environment variable, and the variable over this file.\n\
         # Sizes have units (\"64 KiB\", \"1 MiB\"), and so have times (\"500ms\", \"25s\", \"5min\").\n",
    );
    let mut config = Config::default();
    for key in Key::all() {
        // A flag may have a default of its own.
        if let (Some(setting), Some(default)) = (key.setting, &key.default)
            && let Ok(amount) = setting.read(default)
        {
            setting.set(&mut config, amount);
        }
    }
    for_each(&mut text, |text, key| {
        let (_, name) = key.parts();
        let value = match (key.setting, key.expects, &key.default) {
            (Some(setting), ..) => setting.show(&config),
            (None, Expects::Switch, _) => "false".to_owned(),
            (None, Expects::Number, Some(default)) if default.parse::<u64>().is_ok() => default.clone(),
            (None, _, Some(default)) => quoted(default),
            (None, Expects::Texts, None) => "[]".to_owned(),
            (None, _, None) => "\"\"".to_owned(),
        };
        let _ = writeln!(text, "#{name} = {value}");
    });
    text
}

/// Writes all keys: first those without a section, then section by section.
fn for_each(text: &mut String, mut write: impl FnMut(&mut String, &Key)) {
    let keys = Key::all();
    let mut sections = Vec::new();
    for key in &keys {
        let (section, _) = key.parts();
        if !sections.contains(&section) {
            sections.push(section);
        }
    }
    sections.sort_by_key(|section| !section.is_empty());
    for section in sections {
        if !section.is_empty() {
            let _ = write!(text, "\n[{section}]\n");
        }
        for key in keys.iter().filter(|key| key.parts().0 == section) {
            text.push('\n');
            comment(text, &key.help);
            write(text, key);
        }
    }
}

fn comment(text: &mut String, help: &str) {
    let mut line = String::from("#");
    for word in help.split_whitespace() {
        if line.len() + word.len() >= COLUMNS {
            let _ = writeln!(text, "{line}");
            "#".clone_into(&mut line);
        }
        line.push(' ');
        line.push_str(word);
    }
    let _ = writeln!(text, "{line}");
}

/// Returns clap's id of a flag: the name of its field.
fn id(flag: &str) -> String {
    match flag {
        "key" => "keys".to_owned(),
        flag => flag.replace('-', "_"),
    }
}

/// Returns the value of a flag in TOML. If `hide` is true, a secret is not shown.
fn given(matches: &ArgMatches, id: &str, key: &Key, hide: bool) -> Option<String> {
    if key.expects == Expects::Switch {
        return Some(matches.get_flag(id).to_string());
    }
    let texts = matches.get_raw(id)?.map(|text| text.to_string_lossy().trim().to_owned());
    let texts = texts.map(|text| if hide { shown(key, &text) } else { text });
    let is_number = |text: &str| key.expects == Expects::Number && text.bytes().all(|byte| byte.is_ascii_digit());
    let mut texts: Vec<_> = texts.map(|text| if is_number(&text) { text } else { quoted(&text) }).collect();
    match key.expects {
        Expects::Texts => Some(format!("[{}]", texts.join(", "))),
        _ => texts.pop(),
    }
}

/// Returns a value as it may be shown: a URL without its secrets, and no part of any other secret.
pub(super) fn shown(key: &Key, text: &str) -> String {
    match &*key.name {
        "backend" if text.starts_with("unix:") => without_query(text),
        "backend" => without_secrets(text, true).unwrap_or_else(|| HIDDEN.to_owned()),
        "pool" | "session_database" => without_secrets(text, false).unwrap_or_else(|| HIDDEN.to_owned()),
        // Files and URLs.
        "jwt_jwks" => {
            let shown = |text: &str| match text.contains("://") {
                true => without_secrets(text, true).unwrap_or_else(|| HIDDEN.to_owned()),
                false => text.to_owned(),
            };
            text.split(',').map(shown).collect::<Vec<_>>().join(",")
        }
        _ if key.is_secret => HIDDEN.to_owned(),
        _ => text.to_owned(),
    }
}

/// Returns a URL without its password and its query, and without its user if `hides_user` is true. Returns `None` if
/// its parts cannot be distinguished.
fn without_secrets(text: &str, hides_user: bool) -> Option<String> {
    if ["sqlite:", "memory:"].iter().any(|scheme| text.starts_with(scheme)) {
        return Some(without_query(text));
    }
    let mut url = Url::parse(text).ok().filter(|_| text.contains("://"))?;
    // A password that contains `/`, `?` or `#` continues in these parts.
    if url.fragment().is_some() || url.path().contains('@') || url.query().is_some_and(|query| query.contains('@')) {
        return None;
    }
    let hides_user = hides_user && !url.username().is_empty();
    if url.password().is_none() && url.query().is_none() && !hides_user {
        return Some(text.to_owned());
    }
    if url.password().is_some() {
        url.set_password(Some(HIDDEN)).ok()?;
    }
    if hides_user {
        url.set_username(HIDDEN).ok()?;
    }
    if url.query().is_some() {
        url.set_query(Some(HIDDEN));
    }
    Some(url.to_string().replace("%28hidden%29", HIDDEN))
}

fn without_query(text: &str) -> String {
    text.split_once('?').map_or(text.to_owned(), |(path, _)| format!("{path}?{HIDDEN}"))
}

/// Returns a text as a string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for letter in text.chars() {
        match letter {
            '"' | '\\' => quoted.extend(['\\', letter]),
            letter if letter.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(letter));
            }
            letter => quoted.push(letter),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_hidden_and_the_rest_of_a_url_is_not() {
        let keys = Key::all();
        let shown = |name: &str, text: &str| super::shown(keys.iter().find(|key| key.name == name).unwrap(), text);
        for secret in ["key", "publish_key", "admin_key", "jwt_secret", "backend_key"] {
            for text in ["a key of thirty-two bytes", "https://a-key-of-thirty-two-bytes", "sqlite:secret"] {
                assert_eq!(shown(secret, text), HIDDEN, "{secret}");
            }
        }
        for key in ["pool", "session_database"] {
            for (text, says) in [
                ("mysql://ann:secret@db:3306/site", "mysql://ann:(hidden)@db:3306/site"),
                ("mysql://db/site?password=secret", "mysql://db/site?(hidden)"),
                ("mysql://db/site", "mysql://db/site"),
                ("mysql://ann:12/secret@db/site", HIDDEN),
                ("mysql://ann:12#secret@db/site", HIDDEN),
                ("mysql://ann:12?secret@db/site", HIDDEN),
                ("secret", HIDDEN),
                ("sqlite:/var/lib/pool", "sqlite:/var/lib/pool"),
                ("sqlite:/var/lib/pool?key=secret", "sqlite:/var/lib/pool?(hidden)"),
                ("memory:", "memory:"),
            ] {
                assert_eq!(shown(key, text), says);
            }
        }
        for (text, says) in [
            ("/etc/keys.json", "/etc/keys.json"),
            ("https://id.example/keys", "https://id.example/keys"),
            ("https://secret@id.example/keys", "https://(hidden)@id.example/keys"),
            (
                "/a.json,https://ann:secret@id.example/?t=secret",
                "/a.json,https://(hidden):(hidden)@id.example/?(hidden)",
            ),
        ] {
            assert_eq!(shown("jwt_jwks", text), says);
        }
        for (text, says) in [
            ("http://127.0.0.1:8000/ws.php", "http://127.0.0.1:8000/ws.php"),
            ("https://example.org/ws?token=secret", "https://example.org/ws?(hidden)"),
            ("https://secret@example.org/ws", "https://(hidden)@example.org/ws"),
            ("unix:/run/site.sock:/ws", "unix:/run/site.sock:/ws"),
            ("unix:/run/site.sock:/ws?token=secret", "unix:/run/site.sock:/ws?(hidden)"),
            ("secret", HIDDEN),
        ] {
            assert_eq!(shown("backend", text), says);
        }
        assert_eq!(shown("path", "/WebSockets"), "/WebSockets");
    }

    #[test]
    fn texts_are_quoted_for_toml() {
        let text = "a \"b\" \\ c\n";
        let toml = format!("a = {}", quoted(text));
        let table = toml::de::DeTable::parse(&toml).unwrap();
        assert_eq!(table.get_ref()["a"].get_ref().as_str(), Some(text));
    }
}
