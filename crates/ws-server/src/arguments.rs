//! The command line and the environment, read together: a variable counts for its own command only, and an empty one
//! counts as unset.

use std::{
    collections::BTreeMap,
    env,
    ffi::{OsStr, OsString},
};

use clap::{
    Arg, ArgMatches, CommandFactory, FromArgMatches, builder::Resettable, error::ErrorKind, parser::ValueSource,
};

use crate::cli::Cli;

/// What was asked for.
pub(crate) struct Parsed {
    pub(crate) cli: Cli,
    pub(crate) variables: Variables,
}

/// Why nothing was asked for.
#[derive(Debug)]
pub(crate) enum Misuse {
    /// One value is wrong: what to do, in one line.
    Line(String),
    /// Anything else, help included.
    Usage(clap::Error),
}

impl Misuse {
    pub(crate) fn status(&self) -> u8 {
        match self {
            Self::Line(_) => 2,
            Self::Usage(error) => u8::try_from(error.exit_code()).unwrap_or(2),
        }
    }
}

/// The flags whose values come from the environment, each with its variable.
#[derive(Default)]
pub(crate) struct Variables(BTreeMap<String, String>);

impl Variables {
    /// Says of each flag in an error that its value comes from a variable.
    pub(crate) fn named_in(&self, text: String) -> String {
        let is_flag = |word: &str, flag: &str| word.trim_end_matches([':', ',', ';', '.', ')']) == flag;
        let named = |(flag, _): &(&String, &String)| text.split_whitespace().any(|word| is_flag(word, flag));
        let named: Vec<_> =
            self.0.iter().filter(named).map(|(flag, variable)| format!("{variable} sets {flag}")).collect();
        if named.is_empty() { text } else { format!("{text} ({})", named.join(", ")) }
    }

    fn of(command: &clap::Command, matches: &ArgMatches) -> Self {
        let from_environment = |arg: &&Arg| {
            let id = arg.get_id().as_str();
            matches.try_contains_id(id).is_ok() && matches.value_source(id) == Some(ValueSource::EnvVariable)
        };
        let names = command
            .get_arguments()
            .filter(from_environment)
            .filter_map(|arg| Some((format!("--{}", arg.get_long()?), arg.get_env()?.to_string_lossy().into_owned())));
        Self(names.collect())
    }
}

/// Reads the command line, and the environment for what it leaves out.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Parsed, Misuse> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let command = Cli::command();
    // Flags of `run` do not mix with another command, so that stands first if there is one.
    let used = arguments.get(1).and_then(|name| command.find_subcommand(name)).map(|used| used.get_name().to_owned());
    let mut unreadable = None;
    let mut command = select(command, used.is_none(), &mut unreadable);
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for name in names {
        let is_used = used.as_deref() == Some(&*name);
        command = command.mut_subcommand(name, |command| select(command, is_used, &mut unreadable));
    }
    if let Some(name) = unreadable {
        return Err(Misuse::Line(format!("{name} is not UTF-8: give it as text, or unset it")));
    }
    let matches =
        command.clone().try_get_matches_from(&arguments).map_err(|error| misuse(&command, &arguments, error))?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| misuse(&command, &arguments, error))?;
    let variables = match matches.subcommand() {
        Some((name, matches)) => {
            command.find_subcommand(name).map(|command| Variables::of(command, matches)).unwrap_or_default()
        }
        None => Variables::of(&command, &matches),
    };
    Ok(Parsed { cli, variables })
}

/// Takes the variables away that must not count: all, if the command is not the one that is used, and empty ones.
fn select(command: clap::Command, is_used: bool, unreadable: &mut Option<String>) -> clap::Command {
    command.mut_args(|arg| {
        let Some(name) = arg.get_env().map(OsStr::to_owned) else { return arg };
        let Some(value) = env::var_os(&name) else { return arg };
        let text = value.to_str();
        if is_used && text.is_none() {
            *unreadable = Some(name.to_string_lossy().into_owned());
        }
        let counts = is_used && text.is_none_or(|text| !text.trim().is_empty());
        if counts { arg } else { arg.env(Resettable::Reset) }
    })
}

/// An error of clap as a person needs it: a value that is wrong in one line, with the variable if it came from there.
fn misuse(command: &clap::Command, arguments: &[OsString], error: clap::Error) -> Misuse {
    if !matches!(error.kind(), ErrorKind::ValueValidation | ErrorKind::InvalidValue) {
        return Misuse::Usage(error);
    }
    let text = error.to_string();
    let line = text.lines().next().unwrap_or_default();
    let line = line.strip_prefix("error: ").unwrap_or(line);
    // Without the environment the same command line is in order, if it was the environment's value.
    let without = without_environment(command.clone());
    let from_environment = without.try_get_matches_from(arguments).is_ok();
    let flag = line.split_once("for '").and_then(|(_, rest)| rest.split([' ', '\'']).next());
    let used = arguments.get(1).and_then(|name| command.find_subcommand(name)).unwrap_or(command);
    let is_meant = |arg: &&Arg| flag.is_some_and(|flag| flag.strip_prefix("--") == arg.get_long());
    let variable = used.get_arguments().find(is_meant).and_then(Arg::get_env).filter(|_| from_environment);
    match variable {
        Some(variable) => Misuse::Line(format!("{}: {line}", variable.to_string_lossy())),
        None => Misuse::Line(line.to_owned()),
    }
}

fn without_environment(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| arg.env(Resettable::Reset))
        .mut_subcommands(|command| command.mut_args(|arg| arg.env(Resettable::Reset)))
}
