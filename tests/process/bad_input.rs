//! Bad input and shortages: each is a typed error that names the thing, and leaves nothing locked or running.

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::process::{Resource, Rlimit, geteuid, getrlimit, setrlimit};
use spawn_gate::budget::SpawnBudgetConfig;
use spawn_gate::error::LaunchError;
use spawn_gate::process::{Endpoint, Presence, ProcessError, Ready};
use spawn_gate::{FileSpawnLock, GateError, SpawnGate, SpawnLockError};
use tokio::runtime::{Builder, Runtime};

use crate::kit::{Gate, Launcher, Scene, sh, until_nobody_is_there};
use crate::roles::{cause, end, outcome, steps, upgraded};
use crate::scenes::{assert_nothing_left, file_of_a, is_held};

const EPERM: i32 = 1;
const EAGAIN: i32 = 11;
const EMFILE: i32 = 24;

const SCRIPT: &str = "echo is ready; exec sleep 60";

/// The error of a launch of this command.
async fn failure(scene: &Scene, command: fn(&Path) -> Command) -> GateError {
    let outer = scene.temporary.path().to_owned();
    let launcher = scene.launcher(move |_| Ok((command(&outer), Ready::line("is ready"))));
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    assert!(!cause(&error).retry_helps(), "{error:?}");
    until_nobody_is_there(&launcher).await;
    for extension in ["lock", "life"] {
        assert!(!is_held(&file_of_a(scene, extension)));
    }
    error
}

/// Writes a file with this mode.
fn write_with_mode(path: &Path, text: &str, mode: u32) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

#[tokio::test]
async fn a_program_that_does_not_exist_is_named() {
    let scene = Scene::new();
    let error = failure(&scene, |outer| Command::new(outer.join("tool"))).await;
    let path = scene.temporary.path().join("tool");
    assert!(matches!(cause(&error), ProcessError::NotFound { program, .. } if *program == path));
    let said = format!("there is no program {}", path.display());
    assert_eq!(cause(&error).to_string(), said);

    let error = failure(&Scene::new(), |_| Command::new("no-such-tool-anywhere")).await;
    assert!(
        matches!(cause(&error), ProcessError::NotFound { program, .. } if program.as_os_str() == "no-such-tool-anywhere")
    );
}

#[tokio::test]
async fn a_program_that_may_not_be_executed_is_named() {
    let scene = Scene::new();
    let path = scene.temporary.path().join("tool");
    write_with_mode(&path, "echo", 0o644);
    let error = failure(&scene, |outer| Command::new(outer.join("tool"))).await;
    assert!(
        matches!(cause(&error), ProcessError::NotExecutable { program, .. } if *program == path),
        "{error:?}"
    );
    let scene = Scene::new();
    let error = failure(&scene, |outer| Command::new(outer)).await;
    assert!(
        matches!(cause(&error), ProcessError::NotExecutable { program, .. } if program == scene.temporary.path()),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_script_without_its_interpreter_may_not_be_executed() {
    let scene = Scene::new();
    let path = scene.temporary.path().join("tool");
    write_with_mode(&path, "#!/nowhere/sh\n", 0o755);
    let error = failure(&scene, |outer| Command::new(outer.join("tool"))).await;
    assert!(
        matches!(cause(&error), ProcessError::NotExecutable { program, .. } if *program == path),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_command_that_asks_for_a_group_is_not_taken_for_one_that_may_not_be_executed() {
    let scene = Scene::new();
    let error = failure(&scene, |_| {
        let mut command = sh("exec sleep 60");
        // The leader of a group cannot begin a session.
        command.process_group(0);
        command
    });
    let error = error.await;
    assert!(
        matches!(cause(&error), ProcessError::Spawn { source, .. } if source.raw_os_error() == Some(EPERM)),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_program_that_is_being_written_is_named_and_refunded_and_can_be_tried_again() {
    let scene = Scene::new();
    let gate = generous(&scene.files());
    let program = scene.temporary.path().join("tool");
    fs::copy("/bin/sh", &program).unwrap();
    let launcher = {
        let program = program.clone();
        scene.launcher(move |_| {
            let mut command = Command::new(&program);
            command.args(["-c", SCRIPT]);
            Ok((command, Ready::line("is ready")))
        })
    };
    let writer = File::options().append(true).open(&program).unwrap();
    let error = gate.launch("a", launcher.clone()).await.unwrap_err();
    assert!(
        matches!(cause(&error), ProcessError::Spawn { program: named, .. } if *named == program),
        "{error:?}"
    );
    assert_is_refunded(&gate, &launcher, &error).await;
    drop(writer);
    // A child of another test, between fork and exec, may have a copy of the descriptor.
    let launched = async {
        loop {
            match gate.launch("a", launcher.clone()).await {
                Err(error) if error.retry_helps() => tokio::task::yield_now().await,
                launched => return launched.unwrap().value,
            }
        }
    };
    let launched = tokio::time::timeout(crate::kit::LIMIT, launched).await;
    let backend = launched.unwrap();
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_script_at_a_relative_path_without_its_interpreter_may_not_be_executed() {
    let scene = Scene::new();
    write_with_mode(
        &scene.temporary.path().join("tool"),
        "#!/nowhere/sh\n",
        0o755,
    );
    let error = failure(&scene, |outer| {
        let here = env::current_dir().unwrap();
        let up: PathBuf = here.components().skip(1).map(|_| "..").collect();
        Command::new(up.join(outer.strip_prefix("/").unwrap()).join("tool"))
    });
    let error = error.await;
    assert!(
        matches!(cause(&error), ProcessError::NotExecutable { .. }),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_working_directory_that_does_not_exist_is_named() {
    let scene = Scene::new();
    let error = failure(&scene, |outer| {
        let mut command = sh(SCRIPT);
        command.current_dir(outer.join("nowhere"));
        command
    })
    .await;
    let nowhere = scene.temporary.path().join("nowhere");
    assert!(
        matches!(cause(&error), ProcessError::File { path, .. } if *path == nowhere),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_program_that_was_replaced_on_disk_is_named_and_never_charged() {
    let scene = Scene::new();
    let program = scene.temporary.path().join("a tool");
    // Copied by another process: a child that another test forks meanwhile would have this one's descriptor for writing, and
    // a program that somebody can write to cannot be run.
    let mut copy = Command::new("cp");
    copy.arg(env::current_exe().unwrap()).arg(&program);
    assert!(copy.status().unwrap().success());
    let mut tool = upgraded(&scene, &program).spawn().unwrap();
    assert_eq!(outcome(&scene).await, "attempts used: 0\n");
    assert!(tool.wait().unwrap().success());
}

#[tokio::test]
async fn a_directory_that_others_can_write_to_is_named_and_not_charged() {
    let scene = Scene::new();
    let files = scene.temporary.path().join("others");
    fs::create_dir(&files).unwrap();
    fs::set_permissions(&files, Permissions::from_mode(0o777)).unwrap();
    // Files of another user in it, or it would be made private.
    let launcher = Launcher::new(&scene.gate, &files, |_| {
        Ok((sh(SCRIPT), Ready::line("is ready")))
    });
    let foreign = files.join("foreign");
    fs::write(&foreign, "").unwrap();
    if !geteuid().is_root() {
        eprintln!("skipped: only root can make files of another user");
        return;
    }
    chown(&foreign, Some(12345), None).unwrap();
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    assert!(
        matches!(cause(&error), ProcessError::Directory(SpawnLockError::Unsafe { path, .. }) if *path == files),
        "{error:?}"
    );
    assert!(!error.retry_helps());
    until_nobody_is_there(&launcher).await;
    assert_eq!(scene.gate.snapshot("a").await.budget.attempts_used, 0);
}

#[tokio::test]
async fn a_directory_with_spaces_and_bytes_that_are_not_utf_8_serves() {
    for is_attached in [false, true] {
        let scene = Scene::new();
        let name = OsStr::from_bytes(b"a 'b\" \xff$(c)");
        let files = scene.temporary.path().join(name);
        let gate = Gate::new(&files).unwrap();
        let mut launcher = Launcher::new(&gate, &files, |_| {
            Ok((steps(&["ready-at-bytes"]), Ready::notify()))
        });
        if is_attached {
            launcher = launcher.attached();
        }
        let backend = gate.launch("a", launcher.clone()).await.unwrap().value;
        let at = backend.endpoint.as_ref().unwrap().unix().unwrap();
        assert_eq!(at.parent().unwrap(), files);
        let found = launcher.find("a").await.unwrap();
        assert_eq!(found, Presence::Ready(backend.clone()));
        end(&launcher, &backend).await;
        assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
    }
}

/// A path of at least so many bytes below the directory.
fn long_path(directory: &Path, length: usize) -> PathBuf {
    let mut path = directory.to_owned();
    while path.as_os_str().len() < length {
        let missing = length - path.as_os_str().len();
        path.push("d".repeat(missing.saturating_sub(1).clamp(1, 200)));
    }
    path
}

#[tokio::test]
async fn a_directory_of_4000_bytes_serves_but_for_its_sockets_which_are_named() {
    let scene = Scene::new();
    let files = long_path(scene.temporary.path(), 3950);
    fs::create_dir_all(&files).unwrap();
    let gate = Gate::new(&files).unwrap();
    let launcher = Launcher::new(&gate, &files, |_| Ok((sh(SCRIPT), Ready::line("is ready"))));
    let backend = gate.launch("a", launcher.clone()).await.unwrap().value;
    end(&launcher, &backend).await;

    let socket = files.join("socket");
    let by_connection = Launcher::new(&gate, &files, {
        let socket = socket.clone();
        move |_| Ok((sh(SCRIPT), Ready::accepts(Endpoint::Unix(socket.clone()))))
    });
    let by_protocol = Launcher::new(&gate, &files, |_| Ok((sh(SCRIPT), Ready::notify())));
    for launcher in [by_connection, by_protocol] {
        let error = gate.launch("a", launcher.clone()).await.unwrap_err();
        let ProcessError::SocketPathTooLong { path, limit } = cause(&error) else {
            panic!("{error:?}");
        };
        assert_eq!(path.parent().unwrap(), files);
        assert!((100..120).contains(limit));
        assert!(!error.retry_helps());
        until_nobody_is_there(&launcher).await;
        assert_eq!(gate.snapshot("a").await.budget.attempts_used, 0);
    }
}

#[tokio::test]
async fn a_directory_that_is_too_long_for_its_files_is_named_and_not_charged() {
    let scene = Scene::new();
    let files = long_path(scene.temporary.path(), 4050);
    fs::create_dir_all(&files).unwrap();
    let launcher = Launcher::new(&scene.gate, &files, |_| {
        Ok((sh(SCRIPT), Ready::line("is ready")))
    });
    let error = scene.gate.launch("a", launcher.clone()).await.unwrap_err();
    let said = format!("{error:#}");
    assert!(said.contains(&files.display().to_string()), "{said}");
    assert!(!cause(&error).retry_helps(), "{error:?}");
    assert_eq!(scene.gate.snapshot("a").await.budget.attempts_used, 0);
}

#[tokio::test]
async fn a_unix_socket_path_of_107_bytes_serves_and_one_byte_more_is_named() {
    let scene = Scene::new();
    for length in [107, 108] {
        let socket = long_path(scene.temporary.path(), length);
        fs::create_dir_all(socket.parent().unwrap()).unwrap();
        assert_eq!(socket.as_os_str().len(), length);
        let launcher = scene.launcher({
            let socket = socket.clone();
            move |_| {
                let listen = format!("unix {}", socket.display());
                let endpoint = Endpoint::Unix(socket.clone());
                Ok((steps(&[&listen]), Ready::accepts(endpoint)))
            }
        });
        let launched = scene.gate.launch("a", launcher.clone()).await;
        if length == 107 {
            end(&launcher, &launched.unwrap().value).await;
            continue;
        }
        let error = launched.unwrap_err();
        assert!(
            matches!(cause(&error), ProcessError::SocketPathTooLong { path, limit: 107 } if *path == socket),
            "{error:?}"
        );
        assert_nothing_left(&scene, &scene.gate, &launcher).await;
    }
}

/// In the child: its directory.
const DIRECTORY: &str = "PROCESS_TEST_DIRECTORY";

fn one_thread() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// Runs the body in a child process, alone, and as an ordinary user, since limits on processes do not bind root.
fn in_a_child(test: &str, body: impl FnOnce(&Path)) {
    if let Some(directory) = env::var_os(DIRECTORY) {
        return body(Path::new(&directory));
    }
    let outer = tempfile::tempdir().unwrap();
    fs::set_permissions(outer.path(), Permissions::from_mode(0o755)).unwrap();
    let program = outer.path().join("test");
    let mut copy = Command::new("cp");
    copy.arg(env::current_exe().unwrap()).arg(&program);
    assert!(copy.status().unwrap().success());
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let directory = outer.path().join("files");
    fs::create_dir(&directory).unwrap();
    let mut child = Command::new(program);
    if geteuid().is_root() {
        // A user with no other processes, also while these tests run more than once.
        let user = 100_000 + std::process::id() % 1_000_000;
        let user = user * 4 + u32::try_from(test.len() % 4).unwrap();
        chown(&directory, Some(user), Some(user)).unwrap();
        child.uid(user).gid(user);
    }
    run_alone(&mut child, test, &directory);
}

fn run_alone(child: &mut Command, test: &str, directory: &Path) {
    let output = child
        .args(["--exact", test, "--nocapture"])
        .env(DIRECTORY, directory)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("1 passed"), "{text}\n{errors}");
}

fn limit_to(resource: Resource, current: Option<u64>) {
    let Rlimit { maximum, .. } = getrlimit(resource);
    let current = current.or(maximum);
    setrlimit(resource, Rlimit { current, maximum }).unwrap();
}

/// A gate that a charge would not refuse.
fn generous(directory: &Path) -> Gate {
    let lock = FileSpawnLock::new(directory).unwrap();
    SpawnGate::builder(lock)
        .budget(SpawnBudgetConfig::new(20, Duration::from_secs(3600)))
        .stable_after(Duration::from_secs(3600))
        .build()
}

/// Checks that the launch started nothing, charged nothing, and helps when tried again.
async fn assert_is_refunded(gate: &Gate, launcher: &Launcher, error: &GateError) {
    assert!(
        matches!(error, GateError::Launch(LaunchError::NotStarted { .. })),
        "{error:?}"
    );
    assert!(error.retry_helps(), "{error:?}");
    assert_eq!(gate.snapshot("a").await.budget.attempts_used, 0);
    until_nobody_is_there(launcher).await;
}

#[test]
fn without_another_process_to_be_had_a_launch_is_refunded_and_can_be_tried_again() {
    let test =
        "bad_input::without_another_process_to_be_had_a_launch_is_refunded_and_can_be_tried_again";
    in_a_child(test, |directory| {
        let gate = generous(directory);
        let launcher = Launcher::new(&gate, directory, |_| {
            // Once the gate has its thread.
            limit_to(Resource::Nproc, Some(1));
            Ok((sh(SCRIPT), Ready::line("is ready")))
        });
        one_thread().block_on(async {
            for is_attached in [false, true] {
                let launcher = match is_attached {
                    true => launcher.clone().attached(),
                    false => launcher.clone(),
                };
                let error = gate.launch("a", launcher.clone()).await.unwrap_err();
                limit_to(Resource::Nproc, None);
                match (cause(&error), is_attached) {
                    (ProcessError::Spawn { program, source }, false) => {
                        assert_eq!(program, Path::new("/bin/sh"));
                        assert_eq!(source.raw_os_error(), Some(EAGAIN));
                    }
                    (ProcessError::Watcher(source), true) => {
                        assert_eq!(source.raw_os_error(), Some(EAGAIN));
                    }
                    (error, _) => panic!("{error:?}"),
                }
                assert_is_refunded(&gate, &launcher, &error).await;
            }
            let launcher = Launcher::new(&gate, directory, |_| {
                Ok((sh(SCRIPT), Ready::line("is ready")))
            });
            let backend = gate.launch("a", launcher.clone()).await.unwrap().value;
            end(&launcher, &backend).await;
        });
    });
}

#[test]
fn without_descriptors_a_launch_is_refunded_and_can_be_tried_again() {
    let test = "bad_input::without_descriptors_a_launch_is_refunded_and_can_be_tried_again";
    in_a_child(test, |directory| {
        limit_to(Resource::Nofile, Some(64));
        let gate = generous(directory);
        let taken = Arc::new(Mutex::new(Vec::new()));
        one_thread().block_on(async {
            for is_attached in [false, true] {
                let mut failed = 0;
                for spare in 0.. {
                    let mut launcher = Launcher::new(&gate, directory, {
                        let taken = Arc::clone(&taken);
                        move |_| {
                            let mut taken = taken.lock().unwrap();
                            while let Ok(file) = File::open("/dev/null") {
                                taken.push(file);
                            }
                            let left = taken.len() - spare;
                            taken.truncate(left);
                            Ok((sh(SCRIPT), Ready::line("is ready")))
                        }
                    });
                    if is_attached {
                        launcher = launcher.attached();
                    }
                    let launched = gate.launch("a", launcher.clone()).await;
                    taken.lock().unwrap().clear();
                    match launched {
                        Ok(launched) => {
                            end(&launcher, &launched.value).await;
                            break;
                        }
                        Err(error) => {
                            assert_eq!(number_of(cause(&error)), Some(EMFILE), "{error:?}");
                            assert_is_refunded(&gate, &launcher, &error).await;
                            failed += 1;
                        }
                    }
                }
                // Each step of the start was short of one once.
                assert!(failed > 3, "{failed}");
            }
        });
    });
}

/// The operating system's error number at the end of an error's sources.
fn number_of(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    match error.source() {
        Some(source) => number_of(source),
        None => error.downcast_ref::<io::Error>()?.raw_os_error(),
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_named_and_refunded_and_the_launch_can_be_tried_again() {
    let test = "bad_input::a_full_disk_is_named_and_refunded_and_the_launch_can_be_tried_again";
    on_small_disk(test, |disk| {
        let locks = tempfile::tempdir().unwrap();
        let gate = generous(locks.path());
        let launcher = Launcher::new(&gate, disk, |_| Ok((sh(SCRIPT), Ready::line("is ready"))));
        let filler = disk.join("filler");
        let mut failed = 0;
        one_thread().block_on(async {
            for room in 0.. {
                let full = fs::write(&filler, vec![1; 1 << 20]).unwrap_err();
                assert_eq!(full.kind(), io::ErrorKind::StorageFull);
                let length = fs::metadata(&filler).unwrap().len();
                let file = File::options().write(true).open(&filler).unwrap();
                file.set_len(length - room * 4096).unwrap();
                let launched = gate.launch("a", launcher.clone()).await;
                fs::remove_file(&filler).unwrap();
                match launched {
                    Ok(launched) => {
                        end(&launcher, &launched.value).await;
                        break;
                    }
                    // What failed before the start names its file, and is not charged.
                    Err(error @ GateError::Launch(LaunchError::NotStarted { .. })) => {
                        let said = format!("{error:#}");
                        assert!(said.contains(&disk.display().to_string()), "{said}");
                        assert_is_refunded(&gate, &launcher, &error).await;
                        failed += 1;
                    }
                    // What failed after it is.
                    Err(error) => {
                        assert!(
                            matches!(cause(&error), ProcessError::File { .. }),
                            "{error:?}"
                        );
                        assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
                        assert_eq!(gate.snapshot("a").await.budget.attempts_used, 1);
                        gate.reset("a").await.unwrap();
                    }
                }
            }
        });
        assert!(failed > 1, "{failed}");
    });
}

/// Runs the body in a child process with a small file system in memory. Where none can be mounted (in many containers), the
/// test is left out.
#[cfg(target_os = "linux")]
fn on_small_disk(test: &str, body: impl FnOnce(&Path)) {
    /// Shell words: where to mount, then the command to run.
    const MOUNT_AND_RUN: &str =
        r#"mount -t tmpfs -o mode=0700,size=128k none "$1" && shift && exec "$@""#;

    if let Some(directory) = env::var_os(DIRECTORY) {
        return body(Path::new(&directory));
    }
    let unshare = || {
        let mut unshare = Command::new("unshare");
        unshare.arg("--mount");
        if !geteuid().is_root() {
            unshare.arg("--map-root-user");
        }
        unshare
    };
    let disk = tempfile::tempdir().unwrap();
    let arguments = ["--", "sh", "-c", MOUNT_AND_RUN, "sh"];
    let mounts = unshare()
        .args(arguments)
        .arg(disk.path())
        .arg("true")
        .status();
    if !mounts.is_ok_and(|status| status.success()) {
        eprintln!("skipped: cannot mount a file system here");
        return;
    }
    let mut child = unshare();
    child
        .args(arguments)
        .arg(disk.path())
        .arg(env::current_exe().unwrap());
    run_alone(&mut child, test, disk.path());
}
