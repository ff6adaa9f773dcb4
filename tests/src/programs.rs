//! The workspace's own programs, as the tests start them: Cargo builds no other package's binaries for a test.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Where the program of this name is, in the profile of the test or program that asks; all are built by the first who
/// does.
pub fn program(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    DIRECTORY.get_or_init(build).join(name)
}

fn build() -> PathBuf {
    // target/PROFILE/deps/TEST or target/PROFILE/PROGRAM
    let own = std::env::current_exe().expect("a program has a path");
    let directory = own.parent().expect("it stands in a directory");
    let directory = if directory.ends_with("deps") { directory.parent().expect("a profile's") } else { directory };
    let profile = match directory.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(profile) => profile,
    };
    let built = Command::new(env!("CARGO"))
        // The whole workspace, as `.ci/test` does, so that nothing is built a second time for other features.
        .args(["build", "--quiet", "--workspace", "--bins", "--profile", profile, "--target-dir"])
        .arg(directory.parent().unwrap_or(Path::new(".")))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.is_ok_and(|status| status.success()), "the programs are not built");
    directory.to_owned()
}
