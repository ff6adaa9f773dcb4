//! The databases of the clusters: each in a temporary directory, at a port of its own, with the settings that its own
//! documentation gives for data that must survive.

use std::{
    fs,
    net::Ipv4Addr,
    path::{Path, PathBuf},
    process::Command,
};

use benches::Result;
use tempfile::TempDir;

use crate::{
    peers::installed,
    process::{Process, free_ports},
};

/// A running database. It ends when it is dropped.
pub(super) struct Database {
    pub(super) url: String,
    _process: Process,
    _directory: TempDir,
}

impl Database {
    fn start(directory: TempDir, port: u16, url: String, command: &Command) -> Result<Self> {
        let mut process = Process::start(None, command, directory.path())?;
        process.listening(port, directory.path())?;
        Ok(Self { url, _process: process, _directory: directory })
    }
}

fn directory() -> Result<TempDir> {
    Ok(tempfile::Builder::new().prefix("benches-").tempdir()?)
}

/// Returns a program by its name, from the directories of servers too.
fn server(program: &str) -> PathBuf {
    let places = ["/usr/sbin", "/usr/local/sbin", "/usr/libexec"].map(|place| Path::new(place).join(program));
    places.into_iter().find(|path| path.exists()).unwrap_or_else(|| program.into())
}

/// Runs a program to its end.
fn run(command: &mut Command) -> Result<()> {
    let output = command.output().map_err(|error| format!("{:?} does not start: {error}", command.get_program()))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr)).into()),
    }
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

pub(super) mod mariadb {
    use super::*;

    pub(in crate::cluster) fn missing() -> Option<String> {
        let there = installed("MARIADBD", "mariadbd") && installed("MARIADB_INSTALL_DB", "mariadb-install-db");
        if there { None } else { Some("MariaDB (mariadb-server of Debian)".to_owned()) }
    }

    /// Starts MariaDB with its defaults, which write every transaction to the disk.
    pub(in crate::cluster) fn start() -> Result<Database> {
        let (directory, [port]) = (directory()?, free_ports()?);
        let data = directory.path().join("data");
        let user = is_root().then_some("--user=root");
        run(Command::new("mariadb-install-db")
            .args(["--no-defaults", "--skip-test-db", "--auth-root-authentication-method=normal"])
            .arg(format!("--datadir={}", data.display()))
            .args(user))?;
        let init = directory.path().join("init.sql");
        fs::write(&init, "CREATE DATABASE bench;\nCREATE USER bench@'%';\nGRANT ALL ON bench.* TO bench@'%';\n")?;
        let mut command = Command::new(server("mariadbd"));
        command
            .args([
                "--no-defaults",
                "--bind-address=127.0.0.1",
                "--skip-name-resolve",
                "--socket=socket",
                "--pid-file=pid",
            ])
            .arg(format!("--datadir={}", data.display()))
            .arg(format!("--init-file={}", init.display()))
            .arg(format!("--port={port}"))
            .args(user);
        let url = format!("mysql://bench@{}:{port}/bench", Ipv4Addr::LOCALHOST);
        Database::start(directory, port, url, &command)
    }
}

pub(super) mod redis {
    use super::*;

    pub(in crate::cluster) fn missing() -> Option<String> {
        if installed("REDIS_SERVER", "redis-server") { None } else { Some("Redis (redis-server of Debian)".to_owned()) }
    }

    /// Starts Redis so that it writes every change to the disk before it answers.
    pub(in crate::cluster) fn start() -> Result<Database> {
        let (directory, [port]) = (directory()?, free_ports()?);
        let mut command = Command::new("redis-server");
        command
            .args(["--bind", "127.0.0.1", "--save", "", "--appendonly", "yes", "--appendfsync", "always"])
            .arg("--port")
            .arg(port.to_string())
            .arg("--dir")
            .arg(directory.path());
        Database::start(directory, port, format!("redis://{}:{port}", Ipv4Addr::LOCALHOST), &command)
    }
}

pub(super) mod postgres {
    use super::*;

    /// The user who runs the server if the benches run as root, which it refuses. Debian's package makes the user.
    const USER: &str = "postgres";

    pub(in crate::cluster) fn missing() -> Option<String> {
        if programs().is_some() { None } else { Some("PostgreSQL (postgresql of Debian)".to_owned()) }
    }

    /// Returns the directory of the server's programs, which Debian keeps apart for each version.
    fn programs() -> Option<PathBuf> {
        let mut versions: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
            .into_iter()
            .flatten()
            .flatten()
            .map(|version| version.path().join("bin"))
            .filter(|programs| programs.join("initdb").exists())
            .collect();
        versions.sort();
        versions.pop()
    }

    fn program(name: &str) -> Result<Command> {
        let path = programs().ok_or("PostgreSQL is not installed")?.join(name);
        if !is_root() {
            return Ok(Command::new(path));
        }
        let mut command = Command::new("setpriv");
        command.arg(format!("--reuid={USER}")).arg(format!("--regid={USER}")).arg("--init-groups").arg(path);
        Ok(command)
    }

    /// Starts PostgreSQL with its defaults, which write every transaction to the disk.
    pub(in crate::cluster) fn start() -> Result<Database> {
        let (directory, [port]) = (directory()?, free_ports()?);
        if is_root() {
            run(Command::new("chown").arg(USER).arg(directory.path()))?;
        }
        let data = directory.path().join("data");
        run(program("initdb")?.current_dir("/").args(["--auth=trust", "--username=bench", "-D"]).arg(&data))?;
        let mut command = program("postgres")?;
        command
            .current_dir("/")
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=127.0.0.1", "-c"])
            .arg(format!("unix_socket_directories={}", directory.path().display()))
            .arg("-p")
            .arg(port.to_string());
        let url = format!("postgres://bench@{}:{port}/postgres?sslmode=disable", Ipv4Addr::LOCALHOST);
        Database::start(directory, port, url, &command)
    }
}
