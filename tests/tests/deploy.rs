//! What is shipped beside the binary: completions, manual pages, the systemd unit, the Debian package and the files for
//! containers.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde_json::Value;
use tempfile::TempDir;
use tests::{WsServer, program};

/// Returns a path of the repository.
fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository").join(path)
}

#[track_caller]
fn succeeded(output: Output) -> String {
    let Output { status, stdout, stderr } = output;
    assert!(status.success(), "{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    String::from_utf8_lossy(&stdout).into_owned()
}

async fn ws_server(arguments: &[&str]) -> String {
    let state = tempfile::tempdir().unwrap();
    succeeded(WsServer::run(state.path(), arguments).await)
}

#[tokio::test]
async fn the_version_names_the_commit_and_the_features() {
    let version = ws_server(&["--version"]).await;
    assert!(version.starts_with(concat!("ws-server ", env!("CARGO_PKG_VERSION"), " (")), "{version}");
    assert!(version.contains("features ") && version.contains("mysql-tls"), "{version}");
    if repository(".git").exists() {
        assert!(version.contains("(commit "), "{version}");
    }
}

#[tokio::test]
async fn completions_and_manual_pages_name_every_command() {
    let pages = tempfile::tempdir().unwrap();
    ws_server(&["man", pages.path().to_str().unwrap()]).await;
    let first = ws_server(&["man"]).await;
    assert!(first.starts_with(".ie") && first.contains("ws\\-server"), "{first}");
    for command in ["run", "supervise", "config", "send", "close", "pool", "check", "drain", "completions", "man"] {
        let page = fs::read_to_string(pages.path().join(format!("ws-server-{command}.1"))).expect(command);
        assert!(page.contains(".SH SYNOPSIS"), "{page}");
        for shell in ["bash", "zsh", "fish"] {
            let script = ws_server(&["completions", shell]).await;
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
    assert!(!pages.path().join("ws-server-help.1").exists(), "it would say nothing");
    let script = ws_server(&["completions", "bash"]).await;
    let file = pages.path().join("completions");
    fs::write(&file, script).unwrap();
    succeeded(Command::new("bash").arg("-n").arg(&file).output().unwrap());
}

/// Returns the assignments of a unit, in its order.
fn assignments(unit: &str) -> Vec<(&str, &str)> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn systemd_takes_the_unit_and_the_drop_in_for_tls() {
    let unit = fs::read_to_string(repository("deploy/systemd/ws-server@.service")).unwrap();
    // The drop-in for TLS at port 443, as the documentation has it.
    let docs = fs::read_to_string(repository("docs/operations.md")).unwrap();
    let (_, drop_in) = docs.split_once("```ini\n").expect("a drop-in");
    let (drop_in, _) = drop_in.split_once("```").expect("its end");
    let all = assignments(&unit);
    for wanted in [("Type", "notify"), ("ExecStart", "/usr/bin/ws-server run"), ("NoNewPrivileges", "yes")] {
        assert!(all.contains(&wanted), "{wanted:?}");
    }
    // A root of its own, so that the program is where the unit says.
    let root = tempfile::tempdir().unwrap();
    for directory in ["usr/bin", "bin", "etc/systemd/system"] {
        fs::create_dir_all(root.path().join(directory)).unwrap();
    }
    for (from, to) in [(program("ws-server"), "usr/bin/ws-server"), (PathBuf::from("/bin/kill"), "bin/kill")] {
        fs::copy(from, root.path().join(to)).unwrap();
    }
    let units = root.path().join("etc/systemd/system");
    fs::write(units.join("ws-server@.service"), unit).unwrap();
    fs::create_dir(units.join("ws-server@443.service.d")).unwrap();
    fs::write(units.join("ws-server@443.service.d/override.conf"), drop_in).unwrap();
    // Those of the system that every unit depends on.
    for target in ["basic", "multi-user", "network-online", "shutdown", "sysinit"] {
        fs::write(units.join(format!("{target}.target")), "[Unit]\n").unwrap();
    }
    for instance in ["ws-server@9001.service", "ws-server@443.service"] {
        let mut verify = Command::new("systemd-analyze");
        verify.arg(format!("--root={}", root.path().display())).args(["verify", "--man=no", instance]);
        let verified = verify.output().expect("systemd-analyze");
        let said = String::from_utf8_lossy(&verified.stderr).into_owned();
        succeeded(verified);
        let ours: Vec<_> = said.lines().filter(|line| line.contains("ws-server")).collect();
        assert!(ours.is_empty(), "{instance}: {said}");
    }
}

#[tokio::test]
async fn the_debian_package_contains_a_node_that_runs() {
    let built = Command::new(repository("deploy/debian/build"))
        .arg("dev")
        .env("WS_SERVER_BINARY", program("ws-server"))
        .output()
        .unwrap();
    let package = repository(succeeded(built).trim());
    let root = tempfile::tempdir().unwrap();
    succeeded(Command::new("dpkg-deb").arg("-x").args([&package, root.path()]).output().unwrap());
    for path in [
        "usr/lib/systemd/system/ws-server@.service",
        "usr/share/man/man1/ws-server.1.gz",
        "usr/share/man/man1/ws-server-supervise.1.gz",
        "usr/share/bash-completion/completions/ws-server",
        "usr/share/zsh/vendor-completions/_ws-server",
        "usr/share/fish/vendor_completions.d/ws-server.fish",
        "usr/share/doc/ws-server/copyright",
    ] {
        assert!(root.path().join(path).exists(), "{path}");
    }
    let field = |name: &str| {
        succeeded(Command::new("dpkg-deb").arg("-f").arg(&package).arg(name).output().unwrap()).trim().to_owned()
    };
    assert_eq!(field("Package"), "ws-server");
    assert!(field("Depends").contains("adduser"), "{}", field("Depends"));
    let control = tempfile::tempdir().unwrap();
    succeeded(Command::new("dpkg-deb").arg("-e").args([&package, control.path()]).output().unwrap());
    assert_eq!(fs::read_to_string(control.path().join("conffiles")).unwrap().trim(), "/etc/ws-server/ws-server.toml");
    for script in ["postinst", "prerm", "postrm"] {
        succeeded(Command::new("sh").arg("-n").arg(control.path().join(script)).output().unwrap());
    }

    // The unit's command, with the package's program and its configuration, and without systemd.
    let state = tempfile::tempdir().unwrap();
    let mut command = tokio::process::Command::new(root.path().join("usr/bin/ws-server"));
    command.arg("run").env_clear().kill_on_drop(true);
    command.env("WS_SERVER_CONFIG", root.path().join("etc/ws-server/ws-server.toml"));
    command.env("WS_SERVER_LISTEN", "127.0.0.1:0").env("XDG_STATE_HOME", state.path());
    let mut node = WsServer::spawn(command).await;
    node.ready().await;
    node.terminate();
    assert_eq!(node.wait().await.code(), Some(0));
}

/// The scripts of the Debian package on a root of their own, with stand-ins for systemd and the tools of users.
struct Debian {
    root: TempDir,
}

impl Debian {
    /// Two nodes run, with this environment each.
    fn new(environment: &[String]) -> Self {
        let root = tempfile::tempdir().unwrap();
        for directory in ["bin", "run/systemd/system", "etc/ws-server", "proc/7"] {
            fs::create_dir_all(root.path().join(directory)).unwrap();
        }
        let debian = Self { root };
        let terminated = |texts: &[String]| texts.iter().flat_map(|text| [text, "\0"]).collect::<String>();
        debian.write("proc/7/environ", &terminated(environment));
        let command = ["/usr/bin/ws-server", "run", "--demo"].map(str::to_owned);
        debian.write("proc/7/cmdline", &terminated(&command));
        debian.write("broken", "");
        debian.write("told", "");
        for (name, script) in [("getent", "exit 0"), ("chgrp", "exit 0"), ("systemctl", SYSTEMCTL)] {
            let text = format!("#!/bin/sh\nroot={}\n{script}\n", debian.root.path().display());
            let file = debian.write(&format!("bin/{name}"), &text);
            fs::set_permissions(file, Permissions::from_mode(0o755)).unwrap();
        }
        debian
    }

    fn write(&self, path: &str, text: &str) -> PathBuf {
        let path = self.root.path().join(path);
        fs::write(&path, text).unwrap();
        path
    }

    /// Runs postinst as dpkg does. Returns the units that it restarted, and what it said.
    fn configure(&self, former: &str) -> (Vec<String>, String) {
        let mut script = fs::read_to_string(repository("deploy/debian/postinst")).unwrap();
        script = script.replace("/usr/bin/ws-server", &program("ws-server").display().to_string());
        for path in ["/run/systemd/", "/etc/ws-server", "/proc/"] {
            script = script.replace(path, &format!("{}{path}", self.root.path().display()));
        }
        let script = self.write("postinst", &script);
        let path = format!("{}:{}", self.root.path().join("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("sh");
        let output = command.arg(script).args(["configure", former]).env("PATH", path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        let told = fs::read_to_string(self.root.path().join("told")).unwrap();
        (told.lines().map(str::to_owned).collect(), said)
    }

    fn mode(&self, path: &str) -> u32 {
        fs::metadata(self.root.path().join(path)).unwrap().permissions().mode() & 0o777
    }
}

/// Two nodes are active. A restart fails if the file `broken` names the unit.
const SYSTEMCTL: &str = r#"case $1 in
    list-units) printf '%s loaded active running a node\n' ws-server@9001.service ws-server@9002.service ;;
    show) echo 7 ;;
    restart) echo "$2" >> "$root/told"; ! grep -q "$2" "$root/broken" ;;
esac"#;

#[test]
fn an_upgrade_restarts_the_nodes_until_one_cannot_start() {
    let debian = Debian::new(&[]);
    let (restarted, said) = debian.configure("0.1.0");
    assert_eq!(restarted, ["ws-server@9001.service", "ws-server@9002.service"], "{said}");
    let debian = Debian::new(&[]);
    debian.write("broken", "ws-server@9001.service");
    let (restarted, said) = debian.configure("0.1.0");
    assert_eq!(restarted, ["ws-server@9001.service"], "{said}");
    assert!(said.contains("ws-server@9001.service does not start"), "{said}");
}

#[test]
fn an_upgrade_restarts_no_node_whose_settings_the_new_version_refuses() {
    let settings = tempfile::NamedTempFile::new().unwrap();
    fs::write(&settings, "backend = \"http://127.0.0.1/ws.php\"\n").unwrap();
    let file = format!("WS_SERVER_CONFIG={}", settings.path().display());
    let (restarted, said) = Debian::new(std::slice::from_ref(&file)).configure("0.1.0");
    assert!(restarted.is_empty() && said.contains("--backend needs --backend-key"), "{said}");
    assert!(said.contains("refuses the settings with which ws-server@9001.service runs"), "{said}");
    // As a file for the environment of one node has it.
    let key = "WS_SERVER_BACKEND_KEY=a key of the requests of the ws-servers".to_owned();
    let (restarted, said) = Debian::new(&[file, key]).configure("0.1.0");
    assert_eq!(restarted.len(), 2, "{said}");
}

#[test]
fn the_administrator_may_change_or_remove_the_settings_of_the_package() {
    let debian = Debian::new(&[]);
    let file = debian.write("etc/ws-server/ws-server.toml", "");
    assert!(debian.configure("").0.is_empty());
    assert_eq!((debian.mode("etc/ws-server"), debian.mode("etc/ws-server/ws-server.toml")), (0o750, 0o640));
    fs::set_permissions(&file, Permissions::from_mode(0o600)).unwrap();
    debian.configure("0.1.0");
    assert_eq!(debian.mode("etc/ws-server/ws-server.toml"), 0o600);
    fs::remove_file(file).unwrap();
    debian.configure("0.1.0");
    debian.configure("");
}

/// Returns a YAML file as JSON, with its anchors and merges resolved.
fn yaml(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap();
    let mut value: serde_yaml_ng::Value = serde_yaml_ng::from_str(&text).expect("YAML");
    value.apply_merge().expect("merges");
    serde_json::to_value(value).expect("JSON")
}

/// Returns a value of compose.yaml with the defaults of its variables.
fn defaulted(text: &str) -> String {
    let mut rest = text;
    let mut whole = String::new();
    while let Some((before, variable)) = rest.split_once("${") {
        let (variable, after) = variable.split_once('}').expect("an end");
        let (_, default) = variable.split_once(":-").expect("a default");
        whole.push_str(before);
        whole.push_str(default);
        rest = after;
    }
    whole + rest
}

#[tokio::test]
async fn the_containers_get_settings_that_the_programs_take() {
    let directory = repository("deploy/docker");
    let compose = yaml(&directory.join("compose.yaml"));
    let services = compose["services"].as_object().expect("services");
    for (name, service) in services {
        for volume in service["volumes"].as_array().into_iter().flatten() {
            let (source, _) = volume.as_str().and_then(|volume| volume.split_once(':')).expect("a mount");
            let is_named = compose["volumes"].get(source).is_some();
            assert!(is_named || directory.join(source).exists(), "{name} mounts {source}, which is not there");
        }
        if let Some(build) = service.get("build") {
            let context = directory.join(build["context"].as_str().expect("a context"));
            assert!(context.join(build["dockerfile"].as_str().expect("a file")).exists(), "{name}");
        }
    }
    for name in ["node1", "node2"] {
        let service = &services[name];
        let environment = service["environment"].as_object().expect("variables");
        let state = tempfile::tempdir().unwrap();
        let mut command = WsServer::command(state.path());
        // What the image sets, then what compose sets.
        command.args(["config", "--check"]).env("WS_SERVER_LISTEN", "0.0.0.0:8080");
        for argument in service["command"].as_array().expect("arguments").iter().skip(1) {
            command.arg(argument.as_str().expect("text"));
        }
        for (variable, value) in environment {
            command.env(variable, defaulted(value.as_str().expect("text")));
        }
        succeeded(command.output().await.unwrap());
    }
    // Both sides use the same keys.
    for key in ["WS_SERVER_PUBLISH_KEY", "WS_SERVER_BACKEND_KEY"] {
        let key_of = |service: &str| services[service]["environment"][key].as_str().expect("a key").to_owned();
        assert_eq!(key_of("node1"), key_of("php"));
    }

    // nginx resolves names when it reads its configuration, so these become addresses, and paths those of this machine.
    let configuration = fs::read_to_string(directory.join("nginx.conf")).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let mut local = format!("pid {}/pid;\nerror_log stderr;\n{configuration}", scratch.path().display());
    for (from, to) in [
        ("node1:8080", "127.0.0.1:9001".to_owned()),
        ("node2:8080", "127.0.0.1:9002".to_owned()),
        ("php:9000", "127.0.0.1:9000".to_owned()),
        ("/examples/site/public", repository("examples/site/public").display().to_string()),
        ("include fastcgi_params", "include /etc/nginx/fastcgi_params".to_owned()),
        ("worker_rlimit_nofile 32768;", String::new()),
        ("listen 80;", "listen 127.0.0.1:8000;".to_owned()),
        ("listen 9000;", "listen 127.0.0.1:9003;".to_owned()),
    ] {
        assert!(local.contains(from), "{from}");
        local = local.replace(from, &to);
    }
    let file = scratch.path().join("nginx.conf");
    fs::write(&file, local).unwrap();
    succeeded(Command::new("nginx").arg("-t").arg("-c").arg(&file).output().unwrap());

    // The image's commands are ones that the program has.
    let image = fs::read_to_string(directory.join("Dockerfile")).unwrap();
    assert!(image.contains(r#"CMD ["ws-server", "check", "--address", "ws://127.0.0.1:8080"]"#));
    let ignored = fs::read_to_string(directory.join("Dockerfile.dockerignore")).unwrap();
    for path in ignored.lines().filter_map(|line| line.strip_prefix('!')) {
        assert!(repository(path).exists(), "{path}");
    }
}
