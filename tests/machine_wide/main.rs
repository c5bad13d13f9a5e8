//! Promises 20-24 with real processes: this test binary starts itself again as callers and as backends.
#![cfg_attr(
    windows,
    expect(
        dead_code,
        reason = "the test that stops a process by a signal is for Unix"
    )
)]

mod backend;
mod caller;
mod journal;
#[path = "../system/mod.rs"]
mod system;

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use spawn_gate::admin::{LedgerReading, LockReport, inspect_spawn_lock};
use spawn_gate::{FileSpawnLock, SpawnLockError, acquire_spawn_lock};

use caller::{Caller, KEY, Mode};
use journal::Journal;

/// Does nothing when the tests are run; a child that is started with a role in its environment plays it here.
#[test]
fn role() {
    caller::play_if_asked();
    backend::play_if_asked();
}

fn report(directory: &std::path::Path) -> LockReport {
    let path = FileSpawnLock::new(directory).unwrap().path_of(&KEY);
    inspect_spawn_lock(path).unwrap()
}

#[test]
fn eight_processes_with_fifty_tasks_each_on_a_cold_key_start_one_backend() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::new(directory.path());
    let callers: Vec<_> = (0..8)
        .map(|_| Caller::start(directory.path(), Mode::Launch, 50, 3))
        .collect();
    let mut answered = 0;
    for caller in callers {
        let tally = caller.finish();
        assert_eq!(tally.failed + tally.refused, 0, "{tally:?}");
        answered += tally.backends.len();
    }
    assert_eq!(answered, 8);
    assert_eq!(journal.lines("launch").len(), 1);
    assert_eq!(journal.lines("live").len(), 1);
    journal.end_backends();
}

#[test]
fn a_launcher_that_always_fails_is_tried_max_attempts_times_by_all_processes_together() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::new(directory.path());
    // Each asks until it is refused, so that sharing a failure cannot hide attempts that are left.
    let callers: Vec<_> = (0..8)
        .map(|_| Caller::start(directory.path(), Mode::Fail, 50, 3))
        .collect();
    for caller in callers {
        let tally = caller.finish();
        assert_eq!(tally.refused, 50, "{tally:?}");
    }
    assert_eq!(journal.lines("launch").len(), 3);
}

/// A child that a killed process was just starting has its descriptors, the lock's too, until it executes its program.
fn wait_until_free(path: &Path) {
    loop {
        match acquire_spawn_lock(path) {
            Ok(_) => return,
            Err(SpawnLockError::AlreadyLocked { .. }) => {
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// At least 200 rounds are asked for.
const ROUNDS: usize = 200;

#[test]
fn whoever_is_killed_at_whatever_moment_at_most_one_backend_lives_and_lock_and_ledger_are_good() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::new(directory.path());
    let mut chance = Chance(0x5eed);
    for round in 0..ROUNDS {
        let mut callers: Vec<_> = (0..3)
            .map(|_| Caller::start(directory.path(), Mode::Launch, 2, 1_000_000))
            .collect();
        std::thread::sleep(Duration::from_micros(chance.below(30_000)));
        for caller in &mut callers {
            caller.kill();
        }
        drop(callers);
        journal.wait_for_undecided();

        let live = journal.live_backends();
        assert!(
            live.len() <= 1,
            "round {round}: {live:?}\n{}",
            journal.text()
        );
        let path = FileSpawnLock::new(directory.path()).unwrap().path_of(&KEY);
        wait_until_free(&path);
        let LedgerReading::Found(ledger) = report(directory.path()).ledger else {
            panic!("round {round}: the ledger cannot be read");
        };
        // Each launch that was begun since the last success is charged, also if its process was killed.
        let charged = ledger.attempts_charged() as usize;
        let succeeded = ledger.last_outcome().map_or(0, |last| last.launch);
        let begun: HashSet<_> = journal.lines("launch").into_iter().collect();
        let open = begun
            .iter()
            .filter(|&&(_, number)| number > succeeded)
            .count();
        assert!(
            charged >= open,
            "round {round}: {charged} charged of {open}"
        );
        // Most rounds start cold, and some find a backend.
        if chance.below(4) != 0 {
            journal.end_backends();
        }
    }
    journal.end_backends();
    eprintln!(
        "{ROUNDS} rounds: {} launches begun, {} backends",
        journal.lines("launch").len(),
        journal.lines("live").len()
    );
}

#[test]
fn killing_launchers_does_not_give_them_a_fresh_budget() {
    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::new(directory.path());
    let mut refused = 0;
    for _ in 0..20 {
        let before = journal.lines("launch").len();
        let mut caller = Caller::start(directory.path(), Mode::Hang, 1, 5);
        // It either begins a launch that never ends, or is refused.
        loop {
            if journal.lines("launch").len() > before {
                caller.kill();
                break;
            }
            if let Some(tally) = caller.finished() {
                refused += tally.refused;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    assert_eq!(journal.lines("launch").len(), 5);
    assert_eq!(refused, 15);
}

#[cfg(unix)]
#[test]
fn a_stopped_holder_is_named_by_those_who_wait_and_they_go_on_when_it_does() {
    use rustix::process::{Pid, Signal, kill_process};

    let directory = tempfile::tempdir().unwrap();
    let journal = Journal::new(directory.path());
    let holder = Caller::start(directory.path(), Mode::LaunchOnRequest, 1, 3);
    journal.wait_for("launch", 1);
    let pid = Pid::from_raw(holder.pid() as i32).unwrap();
    kill_process(pid, Signal::STOP).unwrap();

    let impatient = Caller::start(directory.path(), Mode::Impatient, 1, 3).finish();
    assert_eq!(impatient.timed_out_on, Some(holder.pid()), "{impatient:?}");
    assert_eq!(report(directory.path()).holder().unwrap().pid, holder.pid());

    let patient = Caller::start(directory.path(), Mode::Launch, 1, 3);
    kill_process(pid, Signal::CONT).unwrap();
    holder.go_on();
    let (led, joined) = (holder.finish(), patient.finish());
    assert_eq!(led.backends, joined.backends);
    assert_eq!(journal.lines("launch").len(), 1);
    journal.end_backends();
}

/// Numbers without a pattern that are the same in every run: xorshift.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
