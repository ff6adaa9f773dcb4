//! Checks histories: `check FILE...` reads records, one per line, from all files (`-`: standard input), prints a
//! report, and exits with 1 if a promise is broken, or with 2 if a file cannot be read.

use std::{
    fs::File,
    io::{self, BufReader},
    process::ExitCode,
};

use tests::history::{History, LoadError};

fn main() -> ExitCode {
    let mut history = History::default();
    let files: Vec<String> = std::env::args().skip(1).collect();
    if files.is_empty() {
        eprintln!("check FILE...: JSON records, one a line");
        return ExitCode::from(2);
    }
    for file in files {
        let read = match &*file {
            "-" => history.read(BufReader::new(io::stdin())),
            path => File::open(path).map_err(LoadError::Io).and_then(|lines| history.read(BufReader::new(lines))),
        };
        if let Err(error) = read {
            eprintln!("{file}: {error}");
            return ExitCode::from(2);
        }
    }
    let report = history.check();
    println!("{report}");
    ExitCode::from(u8::from(!report.is_clean()))
}
