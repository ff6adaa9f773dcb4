//! The sources of the values of flags.

use std::collections::BTreeMap;

use clap::{Arg, ArgMatches, parser::ValueSource};

use super::File;

/// The flags whose values do not come from the command line, each with its variable or its place in the file.
#[derive(Clone, Default)]
pub(crate) struct Sources(BTreeMap<String, String>);

impl Sources {
    /// Adds to an error the source of each flag that it names.
    pub(crate) fn named_in(&self, text: String) -> String {
        let is_flag = |word: &str, flag: &str| word.trim_end_matches([':', ',', ';', '.', ')']) == flag;
        let named = |(flag, _): &(&String, &String)| text.split_whitespace().any(|word| is_flag(word, flag));
        let named: Vec<_> = self.0.iter().filter(named).map(|(flag, source)| format!("{source} sets {flag}")).collect();
        if named.is_empty() { text } else { format!("{text} ({})", named.join(", ")) }
    }

    /// Returns the source of a flag's value.
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
