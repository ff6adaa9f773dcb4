//! The keys of the file: one for each flag of `run`, and one for each setting of the library.

use std::any::TypeId;

use clap::{Arg, ArgAction, CommandFactory};

use super::library::{Kind, SETTINGS, Setting};
use crate::cli::Cli;

/// Flags that are not settings.
const NO_SETTINGS: [&str; 2] = ["config", "help"];

/// A key of the file.
pub(crate) struct Key {
    /// `NAME`, or `SECTION.NAME`.
    pub(crate) name: String,
    /// The same setting as a flag of `run`, without its dashes.
    pub(crate) flag: Option<String>,
    pub(crate) setting: Option<&'static Setting>,
    pub(crate) expects: Expects,
    pub(crate) help: String,
    /// The flag's default, if it has one that is a text.
    pub(crate) default: Option<String>,
    pub(crate) is_secret: bool,
}

/// The type of TOML that a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Expects {
    Switch,
    /// An integer, or a text that may have a unit.
    Number,
    Text,
    /// One text or several.
    Texts,
}

impl Expects {
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Switch => "true or false",
            Self::Number => "a number, or a text with a unit",
            Self::Text => "a text in quotes",
            Self::Texts => "a text in quotes, or several in brackets",
        }
    }
}

impl Key {
    /// Returns all keys: the flags of `run` in their order, then the other settings of the library.
    pub(crate) fn all() -> Vec<Self> {
        let command = Cli::command();
        let run = command.get_subcommands().find(|command| command.get_name() == "run");
        let flags = run.into_iter().flat_map(clap::Command::get_arguments).filter_map(Self::of_flag);
        let mut keys: Vec<Self> = flags.collect();
        for setting in SETTINGS {
            if keys.iter().all(|key| key.name != setting.key) {
                keys.push(Self::of_setting(setting));
            }
        }
        keys
    }

    fn of_flag(arg: &Arg) -> Option<Self> {
        let flag = arg.get_long().filter(|flag| !NO_SETTINGS.contains(flag) && !arg.is_hide_set())?;
        let name = name(flag);
        let setting = Setting::find(&name);
        let of_number = [TypeId::of::<u16>(), TypeId::of::<u32>(), TypeId::of::<u64>(), TypeId::of::<usize>()];
        let of_time = TypeId::of::<std::time::Duration>();
        let value_type = arg.get_value_parser().type_id();
        let expects = match arg.get_action() {
            ArgAction::SetTrue | ArgAction::SetFalse => Expects::Switch,
            ArgAction::Append => Expects::Texts,
            _ if of_number.iter().chain([&of_time]).any(|number| value_type == *number) => Expects::Number,
            _ => Expects::Text,
        };
        let default = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        Some(Self {
            name,
            flag: Some(flag.to_owned()),
            setting,
            expects,
            help,
            default,
            is_secret: arg.is_hide_env_values_set(),
        })
    }

    fn of_setting(setting: &'static Setting) -> Self {
        let expects = if setting.kind == Kind::Switch { Expects::Switch } else { Expects::Number };
        Self {
            name: setting.key.to_owned(),
            flag: None,
            setting: Some(setting),
            expects,
            help: setting.help.to_owned(),
            default: None,
            is_secret: false,
        }
    }

    /// Returns the section, which is empty for keys at the top, and the name in the section.
    pub(crate) fn parts(&self) -> (&str, &str) {
        self.name.split_once('.').unwrap_or(("", &self.name))
    }
}

/// Returns the key of a flag: the key of the library's setting with this name, or else the flag's own name.
pub(crate) fn name(flag: &str) -> String {
    // The section `cluster` has settings of the library.
    if flag == "cluster" {
        return "cluster.name".to_owned();
    }
    let name = flag.replace('-', "_");
    let same = |setting: &&Setting| setting.key.split_once('.').is_some_and(|(_, field)| field == name);
    SETTINGS.iter().find(same).map_or(name, |setting| setting.key.to_owned())
}

/// Returns the known name that is most similar to the given one.
pub(crate) fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let last = |name: &str| name.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |name: &str| {
        let whole = strsim::jaro_winkler(given, name);
        // The name may be right and its section wrong.
        whole.max(strsim::jaro_winkler(&last(given), &last(name)) - 0.01)
    };
    known.into_iter().max_by(|one, other| likeness(one).total_cmp(&likeness(other)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_flag_of_run_has_a_key_of_its_own() {
        let keys = Key::all();
        let names: BTreeSet<_> = keys.iter().map(|key| &key.name).collect();
        assert_eq!(names.len(), keys.len());
        for (flag, name) in [
            ("listen", "listen"),
            ("cluster", "cluster.name"),
            ("message-size", "connection.message_size"),
            ("sockets", "http.sockets"),
            ("accept-when-isolated", "cluster.accept_when_isolated"),
            ("trusted-proxy", "trusted_proxy"),
        ] {
            let key = keys.iter().find(|key| key.flag.as_deref() == Some(flag)).expect(flag);
            assert_eq!(key.name, name);
        }
        let sections: BTreeSet<_> = keys.iter().map(|key| key.parts().0).collect();
        assert!(keys.iter().all(|key| !sections.contains(&*key.name)), "a key has the name of a section");
    }

    #[test]
    fn an_unknown_key_has_a_nearest_one() {
        let keys = Key::all();
        for (given, expected) in [
            ("lisen", "listen"),
            ("publish-key", "publish_key"),
            ("message_size", "connection.message_size"),
            ("connection.mesage_size", "connection.message_size"),
            ("http.message_size", "connection.message_size"),
            ("cluster.leas", "cluster.lease"),
            ("connections", "connection.connections"),
        ] {
            assert_eq!(nearest(given, keys.iter().map(|key| &*key.name)), Some(expected), "{given}");
        }
    }
}
