//! Detached backends: what they have of their own, and that they have nothing of the caller's.

use std::ffi::OsString;
use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use spawn_gate::process::{Presence, Ready};

use crate::backends::{backend_in, call};
use crate::kit::{Launcher, Scene, eventually, lives, sh};
use crate::roles::{Caller, end, launched};
use crate::scenes::{
    address, descriptors, file_of_a, group_of, kill, output_of, session_of, signals, touch,
};

const SCRIPT: &str = "echo is ready; exec sleep 60";

/// Waits until a backend has as many descriptors as it ought to, and checks that they are no input, the log, and the lock for its
/// life. Until `sleep` runs, it has some of its own.
async fn has_only_its_own(scene: &Scene, pid: u32) {
    let log = file_of_a(scene, "log");
    let found = eventually(|| Some(descriptors(pid)).filter(|found| found.len() == 4)).await;
    let [input, output, errors, (number, life)] = &found[..] else {
        unreachable!();
    };
    assert_eq!(*input, (0, "/dev/null".into()));
    assert_eq!([output, errors], [&(1, log.clone()), &(2, log)]);
    assert!(*number > 2);
    assert_eq!(*life, file_of_a(scene, "life"));
}

#[tokio::test]
async fn a_detached_backend_has_a_session_a_log_and_a_working_directory_of_its_own_and_no_input() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| Ok((sh(SCRIPT), Ready::line("is ready"))));
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let pid = backend.pid;
    assert_eq!((session_of(pid), group_of(pid)), (pid, pid));
    has_only_its_own(&scene, pid).await;
    let directory = fs::read_link(format!("/proc/{pid}/cwd")).unwrap();
    assert_eq!(directory, scene.files());
    assert_eq!(backend.log, scene.file(".log"));
    let mode = fs::metadata(&backend.log).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o600);
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let launch = format!("SPAWN_GATE_LAUNCH={}", backend.launch);
    assert!(
        environment
            .split(|&byte| byte == 0)
            .any(|variable| variable == launch.as_bytes())
    );
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_working_directory_that_the_command_names_is_kept() {
    let scene = Scene::new();
    let outer = scene.temporary.path().to_owned();
    let launcher = scene.launcher(move |_| {
        let mut command = sh(SCRIPT);
        command.current_dir(&outer);
        Ok((command, Ready::line("is ready")))
    });
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let directory = fs::read_link(format!("/proc/{}/cwd", backend.pid)).unwrap();
    assert_eq!(directory, scene.temporary.path());
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn a_relative_directory_is_the_same_one_to_the_backend() {
    let scene = Scene::new();
    let here = std::env::current_dir().unwrap();
    let mut relative: std::path::PathBuf = here.components().skip(1).map(|_| "..").collect();
    relative.push(scene.files().strip_prefix("/").unwrap());
    // So deep that the same steps up do not lead to the root from there.
    let deep: std::path::PathBuf = here.components().map(|_| "deep").collect();
    let (outer, deep) = (scene.outer(), scene.outer().join(deep));
    fs::create_dir_all(&deep).unwrap();
    let launcher = Launcher::new(&scene.gate, relative, move |_| {
        let mut backend = backend_in(&outer);
        backend.current_dir(&deep);
        Ok((backend, Ready::notify()))
    });
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    assert_eq!(call(&backend).await.unwrap(), backend.pid);
    end(&launcher, &backend).await;
}

#[tokio::test]
async fn signals_that_the_caller_ignores_or_blocks_have_their_default_effect_on_a_backend() {
    /// What means an error of the program itself (ILL, TRAP, ABRT, BUS, FPE, SEGV, SYS), and two of the C library.
    const LEFT_ALONE: [u32; 10] = [4, 5, 6, 7, 8, 11, 31, 32, 33, MUSLS];
    const MUSLS: u32 = if cfg!(target_env = "musl") { 34 } else { 33 };
    let scene = Scene::new();
    let mut env = Command::new("env");
    env.args(["--ignore-signal", "--block-signal"]);
    let knows = Command::new("env")
        .args(["--ignore-signal", "--block-signal", "true"])
        .output();
    if !knows.unwrap().status.success() {
        eprintln!("skipped: env cannot ignore signals here");
        return;
    }
    let caller = Caller::new(&scene, SCRIPT)
        .that_stays()
        .through(&env)
        .spawn();
    let mut caller = caller.unwrap();
    let pid = launched(&scene).await;
    let left_alone = LEFT_ALONE
        .iter()
        .fold(0, |mask, number| mask | 1 << (number - 1));
    // The caller did ignore and block them.
    assert_ne!(signals(caller.id(), "SigIgn"), 0);
    assert_ne!(signals(caller.id(), "SigBlk"), 0);
    assert_eq!(signals(pid, "SigBlk"), 0);
    assert_eq!(format!("{:b}", signals(pid, "SigIgn") & !left_alone), "0");
    kill(pid);
    caller.kill().unwrap();
    caller.wait().unwrap();
}

#[tokio::test]
async fn a_lock_that_the_caller_inherited_is_free_once_the_caller_lets_go_of_it() {
    let scene = Scene::new();
    let script = r#"cd "$0" && exec 9>L && flock 9 && "$@" && exec 9>&- && flock -n L echo free"#;
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", script]).arg(scene.temporary.path());
    let output = output_of(Caller::new(&scene, SCRIPT).through(&shell)).await;
    let pid = launched(&scene).await;
    assert!(lives(pid));
    assert!(output.ends_with("free\n"), "{output}");
    kill(pid);
}

#[tokio::test]
async fn a_pipe_that_the_caller_inherited_ends_with_the_caller() {
    let scene = Scene::new();
    let output = output_of(Caller::new(&scene, SCRIPT).in_shell(r#""$@" 3>&1 >/dev/null | cat"#));
    assert_eq!(output.await, "");
    let pid = launched(&scene).await;
    assert!(lives(pid));
    kill(pid);
}

#[tokio::test]
async fn a_shell_that_reads_the_output_of_the_caller_does_not_wait_for_the_backend() {
    let scene = Scene::new();
    let output =
        output_of(Caller::new(&scene, SCRIPT).in_shell(r#"all=$("$@" 2>&1); echo "$all""#));
    let output = output.await;
    assert!(output.contains("1 passed"), "{output}");
    let pid = launched(&scene).await;
    assert!(lives(pid));
    kill(pid);
}

#[tokio::test]
async fn a_port_that_the_caller_inherited_is_free_once_the_caller_has_ended() {
    let scene = Scene::new();
    let at = address();
    let listener = TcpListener::bind(at).unwrap();
    let caller = Caller::new(&scene, SCRIPT).that_stays();
    let mut command = caller.in_shell(r#"exec 5<&0 6>/dev/null </dev/null; exec "$@""#);
    let mut caller = command.stdin(OwnedFd::from(listener)).spawn().unwrap();
    drop(command);
    let pid = launched(&scene).await;
    let of_caller = descriptors(caller.id());
    assert!(
        of_caller.iter().any(|(number, _)| *number == 5),
        "{of_caller:?}"
    );
    assert!(TcpListener::bind(at).is_err());
    has_only_its_own(&scene, pid).await;
    caller.kill().unwrap();
    caller.wait().unwrap();
    assert!(lives(pid));
    TcpListener::bind(at).unwrap();
    kill(pid);
}

#[tokio::test]
async fn a_log_is_bounded_and_the_backend_writes_on() {
    let scene = Scene::new();
    let launcher = scene.launcher(|_| {
        let script = "seq 10000; echo is ready; until [ -e go ]; do sleep 0.01; done; echo more; exec sleep 60";
        Ok((sh(script), Ready::line("is ready")))
    });
    let launcher = launcher.log_limit(1000);
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    assert!(fs::metadata(&backend.log).unwrap().len() > 40_000);
    // It is cut when its backend is found.
    let found = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    assert_eq!(found, backend);
    let length = fs::metadata(&backend.log).unwrap().len();
    assert!((100..=500).contains(&length), "{length}");
    touch(&scene, "go");
    let text = eventually(|| {
        let text = fs::read_to_string(&backend.log).unwrap();
        text.ends_with("more\n").then_some(text)
    })
    .await;
    assert!(text.ends_with("\n9999\n10000\nis ready\nmore\n"), "{text}");
    assert!(text.len() <= 600, "{text}");
    end(&launcher, &backend).await;
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
}

#[tokio::test]
async fn the_notify_socket_of_the_caller_is_not_passed_on() {
    let scene = Scene::new();
    let mut command = Caller::new(&scene, SCRIPT).command();
    let mut caller = command.env("NOTIFY_SOCKET", "/nowhere").spawn().unwrap();
    let pid = launched(&scene).await;
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let mut variables = environment.split(|&byte| byte == 0);
    assert!(!variables.any(|variable| variable.starts_with(b"NOTIFY_SOCKET")));
    caller.wait().unwrap();
    kill(pid);
}

#[tokio::test]
async fn a_program_named_by_a_relative_path_is_found_and_runs_where_the_caller_is() {
    let scene = Scene::new();
    let here = std::env::current_dir().unwrap();
    // Up to the root and down again.
    let mut program = OsString::new();
    for _ in here.components().skip(1) {
        program.push("../");
    }
    program.push("bin/sh");
    let launcher = scene.launcher(move |_| {
        let mut command = Command::new(&program);
        command.args(["-c", r#"echo "$WORDS $#"; exec sleep 60"#, "sh", "1", "2"]);
        command.env("WORDS", "is ready with");
        Ok((command, Ready::line("is ready with 2")))
    });
    let backend = scene
        .gate
        .launch("a", launcher.clone())
        .await
        .unwrap()
        .value;
    let directory = fs::read_link(format!("/proc/{}/cwd", backend.pid)).unwrap();
    assert_eq!(directory, here);
    end(&launcher, &backend).await;
}
