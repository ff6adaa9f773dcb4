//! Reads the file of `--config`.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use toml::{
    Spanned,
    de::{DeTable, DeValue},
};
use ws_cluster::Config;

use super::{
    keys::{Expects, Key, name, nearest},
    library::Amount,
};

/// The settings of a file. Its keys are known, and their values have the right type.
#[derive(Debug, Default)]
pub(crate) struct File {
    pub(crate) path: PathBuf,
    entries: BTreeMap<String, Entry>,
    /// Warnings for the administrator, one line each.
    pub(crate) warnings: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Entry {
    line: usize,
    /// The values in the form in which a flag takes them.
    texts: Vec<String>,
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// Says in one line what is wrong with the file.
    pub(crate) fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("{} cannot be read ({error}): give --config FILE", path.display()))?;
        let mut file = Self::parse(path, &text, &Key::all())?;
        let mode = fs::metadata(path).map(|metadata| metadata.permissions().mode());
        let secrets = file.secrets();
        if mode.is_ok_and(|mode| mode & 0o007 != 0) && !secrets.is_empty() {
            file.warnings.push(format!(
                "every user of this machine can read the secrets in {} ({}): chmod o= {0}",
                path.display(),
                secrets.join(", ")
            ));
        }
        Ok(file)
    }

    fn parse(path: &Path, text: &str, keys: &[Key]) -> Result<Self, String> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let line = |at: usize| text[..at.min(text.len())].matches('\n').count() + 1;
        let document = DeTable::parse(text).map_err(|error| {
            let line = error.span().map_or(1, |span| line(span.start));
            let why = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            format!("{} line {line} is not TOML: {why}", path.display())
        })?;
        let mut file = Self { path: path.to_owned(), ..Self::default() };
        let is_section = |name: &str| keys.iter().any(|key| key.parts().0 == name);
        for (key, value) in document.get_ref() {
            match value.get_ref() {
                DeValue::Table(table) if is_section(key.get_ref()) => {
                    for (field, value) in table {
                        let name = format!("{}.{}", key.get_ref(), field.get_ref());
                        file.add(name, line(field.span().start), value, keys)?;
                    }
                }
                _ => file.add(key.get_ref().clone().into_owned(), line(key.span().start), value, keys)?,
            }
        }
        Ok(file)
    }

    fn add(&mut self, given: String, line: usize, value: &Spanned<DeValue<'_>>, keys: &[Key]) -> Result<(), String> {
        let place = format!("{} line {line}", self.path.display());
        let Some(key) = keys.iter().find(|key| key.name == given) else {
            let sections = keys.iter().map(|key| key.parts().0).filter(|section| !section.is_empty());
            return Err(match (value.get_ref(), nearest(&given, sections)) {
                (DeValue::Table(_), Some(section)) if !given.contains('.') => {
                    format!("{place}: unknown section [{given}]: the nearest is [{section}]")
                }
                _ => {
                    let nearest = nearest(&given, keys.iter().map(|key| &*key.name)).unwrap_or_default();
                    format!("{place}: unknown key {given}: the nearest is {nearest}")
                }
            });
        };
        let texts = texts(value.get_ref(), key.expects).ok_or_else(|| {
            let (found, expected) = (value.get_ref().type_str(), key.expects.describe());
            format!("{place}: {given} is of the wrong type ({found}): give {expected}")
        })?;
        if texts.iter().any(|text| text.trim().is_empty()) {
            return Err(format!("{place}: {given} is empty: give a value, or leave the key out"));
        }
        // The values of flags are checked later, with those of the command line.
        if let (None, Some(setting)) = (&key.flag, key.setting) {
            for text in &texts {
                setting.read(text).map_err(|why| format!("{place}: invalid value '{text}' for {given}: {why}"))?;
            }
        }
        self.entries.insert(given, Entry { line, texts });
        Ok(())
    }

    /// Returns the values that replace the default of a flag.
    pub(crate) fn of_flag(&self, flag: &str) -> Option<&[String]> {
        self.entries.get(&name(flag)).map(|entry| &*entry.texts)
    }

    /// Returns the file and the line of a key, for people.
    pub(crate) fn place(&self, key: &str) -> Option<String> {
        self.entries.get(key).map(|entry| format!("{} line {}", self.path.display(), entry.line))
    }

    /// Returns the file, the line and the name of the key of a flag.
    pub(crate) fn place_of_flag(&self, flag: &str) -> Option<String> {
        let key = name(flag);
        self.place(&key).map(|place| format!("{place} ({key})"))
    }

    /// Sets the library's settings that have no flag.
    pub(crate) fn apply(&self, config: &mut Config) {
        for key in Key::all().iter().filter(|key| key.flag.is_none()) {
            if let Some((setting, amount)) = self.amount(key) {
                setting.set(config, amount);
            }
        }
    }

    fn amount(&self, key: &Key) -> Option<(&'static super::library::Setting, Amount)> {
        let (setting, entry) = key.setting.zip(self.entries.get(&key.name))?;
        Some((setting, setting.read(entry.texts.first()?).ok()?))
    }

    /// Returns the keys of the secrets in the file.
    fn secrets(&self) -> Vec<String> {
        let is_secret = |key: &Key| {
            let texts = self.entries.get(&key.name).map(|entry| &*entry.texts).unwrap_or_default();
            texts.iter().any(|text| super::show::shown(key, text) != *text)
        };
        Key::all().into_iter().filter(is_secret).map(|key| key.name).collect()
    }
}

/// Returns the values in the form in which a flag takes them, or `None` if they have another type than expected.
fn texts(value: &DeValue<'_>, expects: Expects) -> Option<Vec<String>> {
    match (value, expects) {
        (DeValue::Boolean(on), Expects::Switch) => Some(vec![on.to_string()]),
        (DeValue::Integer(number), Expects::Number) => {
            let number = i64::from_str_radix(number.as_str(), number.radix()).ok()?;
            Some(vec![number.to_string()])
        }
        (DeValue::String(text), Expects::Number | Expects::Text | Expects::Texts) => Some(vec![text.to_string()]),
        (DeValue::Array(items), Expects::Texts) => {
            items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect()
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn parse(text: &str) -> Result<File, String> {
        File::parse(Path::new("ws.toml"), text, &Key::all())
    }

    #[test]
    fn keys_sections_and_dotted_names_are_read() {
        let file = parse(
            "listen = \"127.0.0.1:9\"\ndemo = true\ntrusted_proxy = [\"10.0.0.1\", \"10.0.0.2\"]\n\
             cluster.lease = \"7s\"\ncluster.name = \"blue\"\n[connection]\nmessage_size = \"16 KiB\"\n\
             ping_interval = 0x1f\n[log]\nsize = \"2 GiB\"\n",
        )
        .unwrap();
        let of = |flag: &str| file.of_flag(flag).map(|texts| texts.join("|"));
        assert_eq!(of("listen").as_deref(), Some("127.0.0.1:9"));
        assert_eq!(of("demo").as_deref(), Some("true"));
        assert_eq!(of("trusted-proxy").as_deref(), Some("10.0.0.1|10.0.0.2"));
        assert_eq!(of("cluster").as_deref(), Some("blue"));
        assert_eq!(of("message-size").as_deref(), Some("16 KiB"));
        assert_eq!(of("path"), None);
        let mut config = Config::default();
        file.apply(&mut config);
        assert_eq!(config.cluster.lease, Duration::from_secs(7));
        assert_eq!(config.connection.ping_interval, Duration::from_secs(31));
        assert_eq!(config.log.size, 2 << 30);
        assert_eq!(file.place("connection.message_size").as_deref(), Some("ws.toml line 7"));
    }

    #[test]
    fn a_mistake_is_named_with_its_line_and_what_to_do() {
        for (text, says) in [
            ("\nlisten = ", "ws.toml line 2 is not TOML: "),
            ("a = 1\na = 2", "ws.toml line 2 is not TOML: duplicate key"),
            ("\n\nlisen = \"x\"", "ws.toml line 3: unknown key lisen: the nearest is listen"),
            ("[conection]\nreplays = 1", "ws.toml line 1: unknown section [conection]: the nearest is [connection]"),
            ("[connection]\nreplay = 1", "ws.toml line 2: unknown key connection.replay: the nearest is connection."),
            ("message_size = 1", "unknown key message_size: the nearest is connection.message_size"),
            ("listen = 8080", "listen is of the wrong type (integer): give a text in quotes"),
            ("demo = \"yes\"", "demo is of the wrong type (string): give true or false"),
            ("cluster = \"blue\"", "unknown key cluster: the nearest is cluster."),
            ("key = [1]", "key is of the wrong type (array): give a text in quotes, or several in brackets"),
            ("http.sockets = 1.5", "http.sockets is of the wrong type (float): give a number"),
            ("cluster.lease = \"5 parsecs\"", "invalid value '5 parsecs' for cluster.lease: use a whole number"),
            ("log.size = -1", "invalid value '-1' for log.size: use a number of bytes"),
            ("publish_key = \" \"", "publish_key is empty"),
        ] {
            let why = parse(text).unwrap_err();
            assert!(why.contains(says), "{text:?}: {why}");
            assert!(!why.contains('\n'), "{why}");
        }
    }
}
