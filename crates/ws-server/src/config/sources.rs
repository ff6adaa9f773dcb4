//! Where the values of flags come from.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, parser::ValueSource};

use super::File;

/// The flags whose values come from elsewhere than the command line, each with its variable or its place in the file.
#[derive(Clone, Default)]
pub(crate) struct Sources(BTreeMap<String, String>);

impl Sources {
    /// Says of each flag in an error where its value comes from.
    pub(crate) fn named_in(&self, text: String) -> String {
        let is_flag = |word: &str, flag: &str| word.trim_end_matches([':', ',', ';', '.', ')']) == flag;
        let named = |(flag, _): &(&String, &String)| text.split_whitespace().any(|word| is_flag(word, flag));
        let named: Vec<_> = self.0.iter().filter(named).map(|(flag, source)| format!("{source} sets {flag}")).collect();
        if named.is_empty() { text } else { format!("{text} ({})", named.join(", ")) }
    }

    /// Where the value of a flag comes from.
    pub(crate) fn of_flag(&self, flag: &str) -> Option<String> {
        self.0.get(&format!("--{flag}")).cloned()
    }

    pub(crate) fn new(command: &clap::Command, matches: &ArgMatches, file: Option<&File>) -> Self {
        let named = |arg: &Arg| {
            let id = arg.get_id().as_str();
            matches.try_contains_id(id).ok()?;
            let flag = arg.get_long()?;
            let source = match matches.value_source(id)? {
                ValueSource::EnvVariable => arg.get_env()?.to_string_lossy().into_owned(),
                ValueSource::DefaultValue => file?.place_of_flag(flag)?,
                _ => return None,
            };
            Some((format!("--{flag}"), source))
        };
        Self(command.get_arguments().filter_map(named).collect())
    }
}
