//! Chaos with real processes (promises 1, 3, 16, 20-24, 27, 31, 33, 36, 48): processes are killed and stopped, and their lock
//! files deleted, replaced, damaged and given away, while they ask their gates for the same few keys.
//!
//! This test binary starts itself again as the asking processes (`asker`, `launcher`, `backends`). Each launch notes its begin
//! and end in one journal (`journal`); a seeded driver does the harm (`driver`, `harm`, `process`, `config`); `checks` then reads
//! the journal. The seed decides what is asked and what is done, but not when: the operating system schedules the processes, so
//! a replay is the same plan and not the same run.
//!
//! `CHAOS_ROUNDS=1000` makes more rounds than the 20 of each run; `CHAOS_SEED=17` makes one.
//!
//! # What may overlap
//!
//! The lock is on a file, and the promise is about the file that the path names. A deleted or replaced file keeps its holder: it
//! goes on launching, and the next leader takes the new file and launches too. So:
//!
//! - Launches that hold the same file never overlap.
//! - Neither do launches of one process, whatever happens to the files; with one exception: after `abort`, a permit that a caller
//!   of `acquire` still holds is kept apart from the next launch by its file alone.
//! - Launches overlap only if the file was deleted or replaced between the open of the one and the begin of the other.
//! - Of launches that overlap, at most one succeeds: a success is published only if the path names the holder's file both before
//!   the launch and after it, and a path does not come back to a file. Another one whose launcher succeeds is `LockLost`.
//! - Stops, kills, truncation, junk and chmod lead to no overlap at all.
//! - A launch that a kill ends is over when its process is; what it has started is not this test's subject.
#![cfg(unix)]

mod asker;
mod backends;
#[path = "../simulation/chance.rs"]
mod chance;
mod checks;
mod config;
mod driver;
mod harm;
mod journal;
mod launcher;
mod process;

use std::env;
use std::sync::Mutex;
use std::thread;

use checks::Tally;

/// Does nothing when the tests are run; a process that is started with a role in its environment plays it here.
#[test]
fn role() {
    asker::play_if_asked();
}

#[test]
fn killed_processes_and_destroyed_lock_files_break_no_promise() {
    let number = |name| env::var(name).ok().map(|it| it.parse().expect(name));
    let seeds: Vec<u64> = match (number("CHAOS_SEED"), number("CHAOS_ROUNDS")) {
        (Some(seed), _) => vec![seed],
        (None, rounds) => (0..rounds.unwrap_or(20)).collect(),
    };
    let (left, broken) = (Mutex::new(seeds.iter()), Mutex::new(Vec::new()));
    let tally = Mutex::new(Tally::default());
    // Two rounds at once: each is a disturbance to the other.
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(&seed) = left.lock().unwrap().next() else {
                        return;
                    };
                    match driver::round(seed) {
                        Ok(round) => tally.lock().unwrap().add(&round),
                        Err(report) => {
                            eprintln!("{report}");
                            broken.lock().unwrap().push((seed, report));
                        }
                    }
                }
            });
        }
    });
    let (broken, tally) = (broken.into_inner().unwrap(), tally.into_inner().unwrap());
    eprintln!("{} rounds: {tally:?}", seeds.len());
    if let Some((seed, _)) = broken.first() {
        let all: Vec<_> = broken
            .iter()
            .filter_map(|(_, report)| report.lines().next())
            .collect();
        panic!(
            "{}\nreplay: CHAOS_SEED={seed} cargo test --test chaos",
            all.join("\n")
        );
    }
    assert!(tally.launches > 0, "nothing was launched");
}
