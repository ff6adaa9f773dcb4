//! The workspace's own programs, as the tests start them. Cargo builds no other package's binaries for a test.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// Returns the path of the program with this name, in the profile of the present test or program. The first call builds
/// all programs.
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
    // The variables that describe a test's package to it. Build scripts that read them (ring's) would take them for a
    // change. Everything that depends on these scripts would then be built again, here and by the next Cargo outside of
    // a test.
    let of_package = |name: &str| ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| name.starts_with(start));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_str().is_some_and(of_package)) {
        cargo.env_remove(name);
    }
    let built = cargo
        // The whole workspace, as in `.ci/test`, so that nothing is built a second time with other features.
        .args(["build", "--quiet", "--workspace", "--bins", "--profile", profile, "--target-dir"])
        .arg(directory.parent().unwrap_or(Path::new(".")))
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status();
    assert!(built.is_ok_and(|status| status.success()), "the programs are not built");
    directory.to_owned()
}
