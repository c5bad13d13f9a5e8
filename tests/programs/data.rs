//! A data directory for postgres, and the user that it runs as.

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::program::in_path;

/// A user that is not root.
#[derive(Clone, Copy)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The user to run postgres as: `None` for that of the tests, unless that is root.
pub(crate) fn user_of_postgres() -> Option<User> {
    if !rustix::process::getuid().is_root() {
        return None;
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap();
    // The first is made by the package.
    let user = ["postgres", "nobody"].into_iter().find_map(|name| {
        let mut users = users.lines().map(|line| line.split(':'));
        let mut user = users.find_map(|mut user| (user.next() == Some(name)).then_some(user))?;
        let (uid, gid) = (user.nth(1)?.parse().ok()?, user.next()?.parse().ok()?);
        Some(User { uid, gid })
    });
    Some(user.expect("there is no user but root"))
}

/// A program of the package, of the newest version there is. Debian keeps them out of `PATH`.
pub(crate) fn postgres_file(name: &str) -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok();
    let versions = versions.into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| {
            let number = version.file_name().to_str()?.parse().ok()?;
            let file = version.path().join("bin").join(name);
            file.is_file().then_some((number, file))
        })
        .collect();
    found.sort();
    found.pop().map(|(_, file)| file).or_else(|| in_path(name))
}

/// Makes a data directory. `initdb` runs once; what it made is kept as an archive in memory, so that nothing is left on disk.
pub(crate) fn make_for_postgres(data: &Path) {
    static ARCHIVE: OnceLock<Vec<u8>> = OnceLock::new();

    std::fs::create_dir(data).unwrap();
    std::fs::set_permissions(data, PermissionsExt::from_mode(0o700)).unwrap();
    if let Some(user) = user_of_postgres() {
        std::os::unix::fs::chown(data, Some(user.uid), Some(user.gid)).unwrap();
    }
    let mut is_made = false;
    let archive = ARCHIVE.get_or_init(|| {
        is_made = true;
        let initdb = postgres_file("initdb").expect("postgres is there without initdb");
        let mut command = as_user(initdb, data);
        command.args(["--no-locale", "-E", "UTF8", "-A", "trust", "-U", "postgres"]);
        let made = command.args(["-N", "-D", "."]).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        let packed = as_user("tar".into(), data)
            .args(["-c", "."])
            .output()
            .unwrap();
        assert!(packed.status.success(), "{packed:?}");
        packed.stdout
    });
    if is_made {
        return;
    }
    let mut unpack = as_user("tar".into(), data);
    let mut unpack = unpack.arg("-xp").stdin(Stdio::piped()).spawn().unwrap();
    unpack.stdin.take().unwrap().write_all(archive).unwrap();
    assert!(unpack.wait().unwrap().success());
}

fn as_user(program: PathBuf, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env("LC_ALL", "C");
    if let Some(user) = user_of_postgres() {
        command.uid(user.uid).gid(user.gid);
    }
    command
}
