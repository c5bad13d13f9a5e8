//! A crowd of short-lived processes, as a command-line tool's invocations are, wants one backend at once: how long the last one
//! waits for its answer and what each of them costs, on a cold key beside a backend that is up.

mod backend;
mod launcher;
mod leash;
mod tool;

use std::fs::File;
use std::path::Path;
use std::process::Child;
use std::time::Duration;

pub use self::backend::{BACKEND, play_backend};
pub use self::tool::{ASKER, CONNECTOR, play_asker, play_connector};

use self::leash::Leash;
use self::tool::Answer;
use crate::clock::{children_nanos, nanos};
use crate::measure::{Line, line, median};
use crate::other::{Other, in_role};

/// What a backend does before it can serve.
const READY_AFTER: Duration = Duration::from_millis(200);

/// What a crowd of so many processes took.
#[derive(Debug)]
pub struct Crowd {
    /// The path.
    pub path: String,
    /// How many processes there were.
    pub processes: usize,
    /// From the first start of a process to the last answer, on a cold key. The ratio is without the 200 ms.
    pub cold: Line,
    /// The same without a gate, and with a backend that is up.
    pub warm: Line,
    /// The CPU time of one of the processes, user and system, on a cold key.
    pub cold_cpu: Line,
    /// The same without a gate, and with a backend that is up.
    pub warm_cpu: Line,
}

/// Lets so many processes ask at once, on a cold key and with a backend that is up, in turns.
///
/// # Panics
///
/// If a backend was launched twice, or a process had no answer.
pub fn crowd(path: &str, processes: usize, rounds: usize) -> Crowd {
    let warm_directory = directory();
    let _backend = Other::start(BACKEND, warm_directory.path(), &[]);
    let (mut cold, mut warm) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        for turn in 0..2 {
            if (round + turn) % 2 == 0 {
                cold.push(run(ASKER, processes, directory().path()));
            } else {
                warm.push(run(CONNECTOR, processes, warm_directory.path()));
            }
        }
    }
    summarize(path, processes, &cold, &warm)
}

/// What one crowd took, in nanoseconds.
struct Turn {
    wall: f64,
    cpu_each: f64,
}

fn summarize(path: &str, processes: usize, cold: &[Turn], warm: &[Turn]) -> Crowd {
    let walls = |turns: &[Turn]| turns.iter().map(|turn| turn.wall).collect::<Vec<_>>();
    let cpus = |turns: &[Turn]| turns.iter().map(|turn| turn.cpu_each).collect::<Vec<_>>();
    let (cold_wall, warm_wall) = (walls(cold), walls(warm));
    let (cold_cpu, warm_cpu) = (cpus(cold), cpus(warm));
    let ready_after = READY_AFTER.as_nanos() as f64;
    let rounds = cold_wall.iter().zip(&warm_wall);
    let beyond = median(rounds.map(|(cold, warm)| (cold - ready_after) / warm));
    Crowd {
        path: path.to_owned(),
        processes,
        cold: Line {
            ratio: beyond,
            ..line("cold".to_owned(), &cold_wall, &warm_wall)
        },
        warm: line("warm".to_owned(), &warm_wall, &warm_wall),
        cold_cpu: line("CPU time each, cold".to_owned(), &cold_cpu, &warm_cpu),
        warm_cpu: line("CPU time each, warm".to_owned(), &warm_cpu, &warm_cpu),
    }
}

/// Starts so many processes, one after the other without a pause, and waits for all of them.
fn run(role: &str, processes: usize, directory: &Path) -> Turn {
    let leash = Leash::new();
    let path = directory.join("answers");
    let answers = appended(&path);
    let (cpu_before, began) = (children_nanos(), nanos());
    let started: Vec<Child> = (0..processes)
        .map(|_| {
            let output = answers.try_clone().expect("a descriptor is left");
            let mut command = in_role(role, directory, &[]);
            let started = command.stdin(leash.end()).stdout(output).spawn();
            started.expect("a process is started")
        })
        .collect();
    for mut process in started {
        // How it ended is judged by what it said.
        process.wait().expect("it was not waited for before");
    }
    // A backend that one of them launched is nobody's to wait for here, so its time does not count.
    let cpu = children_nanos() - cpu_before;
    leash.pull();
    let answers: Vec<Answer> = Answer::read_all(&path);
    std::fs::remove_file(&path).expect("the answers were written");

    assert_eq!(answers.len(), processes, "each has its answer");
    let one_backend = answers
        .iter()
        .all(|answer| answer.backend == answers[0].backend);
    assert!(one_backend, "all have their answer from one backend");
    let launches = answers.iter().filter(|answer| answer.launched).count();
    assert_eq!(
        launches,
        usize::from(role == ASKER),
        "a cold backend is launched once"
    );
    let last = answers.iter().map(|answer| answer.at).max();
    Turn {
        wall: (last.unwrap_or(began) - began) as f64,
        cpu_each: cpu as f64 / processes as f64,
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary directory is made")
}

/// Opens a file that many processes can write to at once, line by line.
fn appended(path: &Path) -> File {
    let mut options = File::options();
    options.append(true).create(true);
    options.open(path).expect("the answers can be written")
}
