//! Promise 8: a directory in which nothing may be written is enough to find and use a running backend.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;

use crate::backends::{caller_in, result};
use crate::kit::{Scene, until_gone};
use crate::life::kill;

/// This test binary where any user can execute it.
fn copy(outer: &Path) -> std::path::PathBuf {
    let program = outer.join("test");
    // Copied by another process: a child that is forked meanwhile would have this one's descriptor for writing, and a program that
    // somebody can write to cannot be run.
    let copied = Command::new("cp")
        .arg(std::env::current_exe().unwrap())
        .arg(&program)
        .status();
    assert!(copied.unwrap().success());
    program
}

/// The caller as a user whom permissions bind.
fn as_user(caller: &Command, program: &Path, user: u32) -> Command {
    let mut command = Command::new(program);
    command.args(caller.get_args());
    for (name, value) in caller.get_envs() {
        command.env(name, value.unwrap());
    }
    if rustix::process::geteuid().is_root() {
        command.uid(user).gid(user);
    }
    command.stdout(std::process::Stdio::piped());
    command
}

fn set_modes(files: &Path, of_directory: u32, of_files: u32) {
    let set = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    };
    for entry in fs::read_dir(files).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            set(&entry.path(), of_files);
        }
    }
    set(files, of_directory);
}

#[tokio::test]
async fn a_directory_in_which_nothing_may_be_written_is_enough_to_find_and_use_a_backend() {
    let user = 100_000 + std::process::id() % 1_000_000;
    let scene = Scene::new();
    let (outer, files) = (scene.outer(), scene.files());
    fs::set_permissions(&outer, fs::Permissions::from_mode(0o755)).unwrap();
    let program = copy(&outer);
    // The gate of the scene made some.
    fs::remove_dir_all(&files).unwrap();
    fs::create_dir(&files).unwrap();
    fs::write(outer.join("journal"), "").unwrap();
    if rustix::process::geteuid().is_root() {
        for path in [&files, &outer.join("journal")] {
            chown(path, Some(user), Some(user)).unwrap();
        }
    }
    fs::set_permissions(&files, fs::Permissions::from_mode(0o700)).unwrap();
    let caller = caller_in(&outer, "backend", "notify");
    let launched = result(as_user(&caller, &program, user).spawn().unwrap()).await;
    let pid: u32 = launched.strip_prefix("Led ").unwrap().parse().unwrap();

    let mut finder = caller_in(&outer, "backend", "notify");
    finder.env(crate::kit::ROLE, "finder");
    // The directory alone, and then its files, too, as on a read-only file system.
    for of_files in [0o600, 0o400] {
        set_modes(&files, 0o500, of_files);
        let found = result(as_user(&finder, &program, user).spawn().unwrap()).await;
        let expected = format!("Ok(true) Ok((Discovered, {pid})) Ok({pid})");
        assert_eq!(found, expected, "{of_files:o}");
    }
    kill(pid, Signal::KILL);
    until_gone(pid).await;
    // Only a launch needs to write, and says so.
    let refused = result(as_user(&finder, &program, user).spawn().unwrap()).await;
    assert!(refused.contains("Permission denied"), "{refused}");
    set_modes(&files, 0o700, 0o600);
}
