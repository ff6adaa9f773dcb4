//! The key in a file beside an SQLite pool, so that nodes on one machine need no set-up. The first process makes the
//! file, which only its user can read.

use std::{
    fs::{self, OpenOptions},
    io::{self, ErrorKind, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use crate::{
    Failure, Outcome,
    random::{bytes, hex},
};

/// The key in the file `POOL.key`. If the file is missing and `creates` is true, it is made.
pub(crate) fn beside(pool: &Path, creates: bool) -> Outcome<Vec<u8>> {
    let path = with_suffix(pool, ".key");
    let key = if creates { read_or_make(&path) } else { read(&path) };
    key.map_err(|error| Failure::setup(format!("the key file {} cannot be used ({error}): give --key", path.display())))
}

fn read_or_make(path: &Path) -> io::Result<Vec<u8>> {
    match read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        outcome => return outcome,
    }
    make(path)?;
    read(path)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let key = fs::read(path)?.trim_ascii().to_vec();
    if fs::metadata(path)?.permissions().mode() & 0o077 != 0 {
        tracing::warn!(path = %path.display(), "others can read the key: make its file accessible to its user only");
    }
    Ok(key)
}

/// Makes the complete file or none. The file is written under another name and then linked to its own, because a link
/// does not replace a file that another process has made meanwhile.
fn make(path: &Path) -> io::Result<()> {
    // The name is random, because processes of several containers that share a directory may have the same id.
    let draft = with_suffix(path, &format!(".{}", hex(&bytes::<8>()?)));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = file
        .write_all(format!("{}\n", hex(&bytes::<32>()?)).as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::hard_link(&draft, path));
    fs::remove_file(&draft)?;
    match written {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        outcome => outcome,
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut path = path.as_os_str().to_owned();
    path.push(suffix);
    path.into()
}
