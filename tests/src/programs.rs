//! The workspace's own programs and library, as the tests start and use them. Cargo builds no other package's binaries
//! for a test.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

use serde_json::Value;

struct Built {
    directory: PathBuf,
    library: PathBuf,
}

/// Returns the path of the program with this name, in the profile of the present test or program. The first call builds
/// all programs.
pub fn program(name: &str) -> PathBuf {
    built().directory.join(name)
}

/// Compiles a source file against the library `ws_cluster`, without running it. Returns what the compiler says if it
/// refuses the file.
///
/// # Panics
/// Panics if the compiler cannot be started.
pub fn compile(source: &Path) -> Result<(), String> {
    let Built { directory, library } = built();
    let output = Command::new(Path::new(env!("CARGO")).with_file_name("rustc"))
        .args(["--edition", "2024", "--crate-type", "lib", "--emit", "metadata", "--out-dir"])
        .arg(source.parent().unwrap_or(Path::new(".")))
        .arg("-L")
        .arg(format!("dependency={}", directory.join("deps").display()))
        .arg("--extern")
        .arg(format!("ws_cluster={}", library.display()))
        .arg(source)
        .output()
        .expect("the compiler is beside Cargo");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

fn built() -> &'static Built {
    static BUILT: OnceLock<Built> = OnceLock::new();
    BUILT.get_or_init(build)
}

fn build() -> Built {
    // target/PROFILE/deps/TEST or target/PROFILE/PROGRAM
    let own = std::env::current_exe().expect("a program has a path");
    let directory = own.parent().expect("it stands in a directory");
    let directory = if directory.ends_with("deps") { directory.parent().expect("a profile's") } else { directory };
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let mut cargo = Command::new(env!("CARGO"));
    // The variables that describe a test's package to it. Build scripts that read them (ring's) would take them for a
    // change. Everything that depends on these scripts would then be built again, here and by the next Cargo outside of
    // a test.
    let of_package = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.starts_with(start));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        cargo.env_remove(name);
    }
    let built = cargo
        // The whole workspace, as in `.ci/test`, so that nothing is built a second time with other features.
        .args(["build", "--quiet", "--workspace", "--bins", "--profile", profile])
        .args(["--message-format", "json-render-diagnostics", "--target-dir"])
        .arg(directory.parent().unwrap_or(Path::new(".")))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::inherit())
        .output()
        .expect("Cargo can be started");
    assert!(built.status.success(), "the programs are not built");
    let messages = built.stdout.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok());
    let library = messages.filter_map(|message: Value| library(&message)).next_back();
    Built { directory: directory.to_owned(), library: library.expect("the programs use the library") }
}

/// Returns the path of the library `ws_cluster` if this message of Cargo is about it.
fn library(message: &Value) -> Option<PathBuf> {
    let files = message["filenames"].as_array().filter(|_| message["target"]["name"] == "ws_cluster")?;
    files.iter().filter_map(Value::as_str).find(|file| file.ends_with(".rlib")).map(PathBuf::from)
}
