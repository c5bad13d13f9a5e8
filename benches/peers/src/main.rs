//! Measures all paths and writes the tables into the README; or, with an argument, only the paths whose names contain it, and
//! writes nothing.

use std::path::Path;
use std::process::ExitCode;

use peers::flights::{Flights, Ours};
use peers::other::ROLE;
use peers::paths::{
    crowd, fan_in, file_lock, leader, memory, notice, processes, random_keys, refusal, stress,
};
use peers::report::{self, Findings};
use spawn_gate::BackendKey;

type Measured = (&'static str, fn(&str, &mut Findings));

const PATHS: [Measured; 17] = [
    ("100 followers", |path, findings| {
        findings.flights.push(fan_in::fan_in(path, 100));
    }),
    ("1,000 followers", |path, findings| {
        findings.flights.push(fan_in::fan_in(path, 1_000));
    }),
    ("10,000 followers", |path, findings| {
        findings.flights.push(fan_in::fan_in(path, 10_000));
    }),
    ("leader", |path, findings| {
        findings.flights.push(leader::leader::<BackendKey>(path));
    }),
    ("leader, `String` key", |path, findings| {
        findings.flights.push(leader::leader::<String>(path));
    }),
    ("random keys", |path, findings| {
        let (comparison, seen) = random_keys::random_keys::<BackendKey>(path);
        findings.flights.push(comparison);
        findings.seen.extend(seen);
    }),
    ("stress", |_, findings| {
        findings.seen.extend(stress::stress());
    }),
    ("launch", |path, findings| {
        findings.others.push(leader::launch(path));
    }),
    ("refusal", |path, findings| {
        findings.others.push(refusal::refusal(path));
    }),
    ("permit with the file lock", |path, findings| {
        findings.others.push(file_lock::file_lock(path));
    }),
    ("launch with the file lock", |path, findings| {
        findings.others.push(file_lock::launch(path));
    }),
    ("cold key, ready after 200 ms", |path, findings| {
        findings.others.push(processes::processes(path));
    }),
    ("crowd-30", |path, findings| {
        findings.crowds.push(crowd::crowd(path, 30, 7));
    }),
    ("crowd-300", |path, findings| {
        findings.crowds.push(crowd::crowd(path, 300, 7));
    }),
    ("notice of a release", |path, findings| {
        findings.others.push(notice::notice(path));
    }),
    ("system calls while waiting", |_, findings| {
        findings.idle_calls = Some(notice::idle_calls());
    }),
    ("memory", |_, findings| {
        findings.memory = memory::memory();
    }),
];

/// Measured only if its whole name is given.
const ON_REQUEST: Measured = ("crowd-1000", |path, findings| {
    findings.crowds.push(crowd::crowd(path, 1_000, 1));
});

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        [ROLE, processes::BROKER, directory] => processes::play_broker(Path::new(directory)),
        [ROLE, notice::WAITER, directory] => notice::play_waiter(Path::new(directory)),
        [ROLE, crowd::ASKER, directory] => crowd::play_asker(Path::new(directory)),
        [ROLE, crowd::CONNECTOR, directory] => crowd::play_connector(Path::new(directory)),
        [ROLE, crowd::BACKEND, directory] => crowd::play_backend(Path::new(directory)),
        [] => return measure("", report::write_into_readme),
        [filter] => return measure(filter, |_| Ok(())),
        _ => {
            eprintln!("usage: peers [PART OF A PATH'S NAME]");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

fn measure(filter: &str, write: impl Fn(&Findings) -> std::io::Result<()>) -> ExitCode {
    let mut findings = Findings::default();
    let asked_for = PATHS.into_iter().filter(|(path, _)| path.contains(filter));
    let on_request = Some(ON_REQUEST).filter(|(path, _)| *path == filter);
    for (path, run) in asked_for.chain(on_request) {
        eprintln!("measuring: {path}");
        run(path, &mut findings);
    }
    report::print(&findings);
    if let Err(error) = write(&findings) {
        eprintln!("the README was not written: {error}");
        return ExitCode::FAILURE;
    }
    let ours = <Ours<BackendKey> as Flights<BackendKey>>::NAME;
    let of_ours = findings.seen.iter().filter(|seen| seen.name == ours);
    match of_ours.map(|seen| seen.violations).sum() {
        0 => ExitCode::SUCCESS,
        violations => {
            eprintln!("{ours} violated single flight {violations} times");
            ExitCode::FAILURE
        }
    }
}
