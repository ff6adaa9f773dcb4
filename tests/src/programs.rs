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
    let mut cargo = Command::new(env!("CARGO"));
    // What Cargo tells a test of its package. Build scripts that look at it (ring's) would take it for a change, and all
    // that depends on them would be built again, here and by the next Cargo outside of a test.
    let of_package = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.starts_with(start));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        cargo.env_remove(name);
    }
    let built = cargo
        // The whole workspace, as `.ci/test` does, so that nothing is built a second time for other features.
        .args(["build", "--quiet", "--workspace", "--bins", "--profile", profile, "--target-dir"])
        .arg(directory.parent().unwrap_or(Path::new(".")))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.is_ok_and(|status| status.success()), "the programs are not built");
    directory.to_owned()
}
