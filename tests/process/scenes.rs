//! What the tests of launching share: a launch in progress, a clock that is set forward, and what the system says of a process.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;

use spawn_gate::process::{Backend, Presence};
use spawn_gate::{FileSpawnLock, GateError, Launched, SpawnGate};
use tokio::task::JoinHandle;
use tokio::time;

use crate::kit::{Gate, Launcher, Scene, eventually};

/// Longer than any test. Only a clock that is set forward gets there.
pub(crate) const AN_AGE: Duration = Duration::from_secs(10_000);

pub(crate) type Launching = JoinHandle<Result<Launched<Backend>, GateError>>;

/// Launches the backend of `a` in a task of its own.
pub(crate) fn launching(gate: &Gate, launcher: &Launcher) -> Launching {
    let (gate, launcher) = (gate.clone(), launcher.clone());
    tokio::spawn(async move { gate.launch("a", launcher).await })
}

/// A gate whose own timeouts are ages, at the scene's directory.
pub(crate) fn patient(scene: &Scene) -> Gate {
    let lock = FileSpawnLock::new(scene.files()).unwrap();
    SpawnGate::builder(lock)
        .launch_timeout(AN_AGE * 100)
        .build()
}

/// Sets tokio's clock forward.
pub(crate) async fn set_clock_forward(by: Duration) {
    time::pause();
    time::advance(by).await;
    time::resume();
}

/// The file of the backend of `a` with this extension, which may not be there yet.
pub(crate) fn file_of_a(scene: &Scene, extension: &str) -> PathBuf {
    let lock = FileSpawnLock::new(scene.files()).unwrap();
    lock.path_of(&"a".to_owned()).with_extension(extension)
}

/// Polls until the backend of `a` is starting and `wanted` of its status.
pub(crate) async fn until_starting(launcher: &Launcher, wanted: impl Fn(Option<&str>) -> bool) {
    let seen = async {
        loop {
            match launcher.find("a").await {
                Ok(Presence::Starting { status, .. }) if wanted(status.as_deref()) => return,
                // Also while its record is not written yet.
                _ => tokio::task::yield_now().await,
            }
        }
    };
    time::timeout(crate::kit::LIMIT, seen).await.unwrap();
}

/// Touches a file in the backends' working directory.
pub(crate) fn touch(scene: &Scene, name: &str) {
    fs::write(scene.files().join(name), "").unwrap();
}

/// Waits for a number that a backend wrote to a file in its working directory.
pub(crate) async fn number_in(scene: &Scene, name: &str) -> u32 {
    let path = scene.files().join(name);
    let text = eventually(|| {
        let text = fs::read_to_string(&path).ok();
        text.filter(|text| text.ends_with('\n'))
    });
    text.await.trim().parse().unwrap()
}

/// An address that no other test uses, of this run or another one: on Linux, all of 127.0.0.0/8 is this machine.
pub(crate) fn address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(7201);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    ([127, 1 + high, middle, low], port).into()
}

/// The fields of `/proc/PID/stat` from the process's state on.
fn stat(pid: u32) -> Option<Vec<String>> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, fields) = text.rsplit_once(')')?;
    Some(fields.split_whitespace().map(str::to_owned).collect())
}

pub(crate) fn group_of(pid: u32) -> u32 {
    stat(pid).unwrap()[2].parse().unwrap()
}

pub(crate) fn session_of(pid: u32) -> u32 {
    stat(pid).unwrap()[3].parse().unwrap()
}

/// When a process started, in the unit of the system.
pub(crate) fn start_of(pid: u32) -> u64 {
    stat(pid).unwrap()[19].parse().unwrap()
}

/// The processes of a group that live.
pub(crate) fn members(group: u32) -> Vec<u32> {
    let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let name = entry.unwrap().file_name();
        name.to_str()?.parse().ok()
    });
    pids.filter(|&pid: &u32| {
        stat(pid).is_some_and(|fields| fields[0] != "Z" && fields[2] == group.to_string())
    })
    .collect()
}

pub(crate) async fn until_no_member(group: u32) {
    eventually(|| members(group).is_empty().then_some(())).await;
}

/// The open descriptors of a process, and what they are.
pub(crate) fn descriptors(pid: u32) -> Vec<(u32, PathBuf)> {
    let directory = PathBuf::from(format!("/proc/{pid}/fd"));
    let mut found: Vec<_> = fs::read_dir(&directory)
        .unwrap()
        .filter_map(|entry| {
            let path = entry.unwrap().path();
            let number = path.file_name().unwrap().to_str().unwrap().parse().unwrap();
            // It may have been closed since.
            Some((number, fs::read_link(&path).ok()?))
        })
        .collect();
    found.sort();
    found
}

/// A line of `/proc/PID/status` with a mask of signals.
pub(crate) fn signals(pid: u32, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let mask = line.unwrap().trim_start_matches(':').trim();
    u64::from_str_radix(mask, 16).unwrap()
}

pub(crate) fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// Runs a command off the runtime's thread, and returns what it wrote to standard output.
pub(crate) async fn output_of(mut command: Command) -> String {
    let output = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = time::timeout(crate::kit::LIMIT, output).await;
    let output = output.expect("it hangs").unwrap();
    String::from_utf8(output.stdout).unwrap()
}

/// What a scene's launches may leave behind: no attempt charged, no spawn lock or life lock held, and no backend.
pub(crate) async fn assert_nothing_left(scene: &Scene, gate: &Gate, launcher: &Launcher) {
    assert_eq!(launcher.find("a").await.unwrap(), Presence::Gone);
    assert_eq!(gate.snapshot("a").await.budget.attempts_used, 0);
    for extension in ["lock", "life"] {
        assert!(!is_held(&file_of_a(scene, extension)), "{extension}");
    }
}

pub(crate) fn is_held(path: &Path) -> bool {
    path.exists() && spawn_gate::admin::inspect_spawn_lock(path).unwrap().is_held
}
