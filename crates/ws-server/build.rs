//! Names the version for `--version`: with the commit, if the source is a checkout, and the features.

use std::{env, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=WS_SERVER_COMMIT");
    let mut notes = Vec::new();
    // A package is built outside of a checkout, and its builder may know the commit.
    let commit = env::var("WS_SERVER_COMMIT").ok().filter(|commit| !commit.is_empty()).or_else(checked_out);
    notes.extend(commit.map(|commit| format!("commit {commit}")));
    let features: Vec<_> = ["deflate", "mysql-tls"]
        .into_iter()
        .filter(|name| env::var_os(format!("CARGO_FEATURE_{}", name.to_uppercase().replace('-', "_"))).is_some())
        .collect();
    notes.push(match features.is_empty() {
        true => "no features".to_owned(),
        false => format!("features {}", features.join(" ")),
    });
    let version = env::var("CARGO_PKG_VERSION").expect("cargo sets it");
    println!("cargo:rustc-env=WS_SERVER_VERSION={version} ({})", notes.join(", "));
}

/// The commit of the checkout that contains this crate; `None` for a packaged source.
fn checked_out() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").args(arguments).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    // The source may lie in somebody else's repository.
    let root = git(&["rev-parse", "--show-toplevel"])?;
    Path::new(&root).join("crates/ws-server/build.rs").exists().then_some(())?;
    // The file moves with every commit and checkout.
    println!("cargo:rerun-if-changed={}", git(&["rev-parse", "--git-path", "logs/HEAD"])?);
    git(&["rev-parse", "--short=12", "HEAD"])
}
