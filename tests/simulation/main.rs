//! A simulation of several processes that share their locks, under paused time: what a seed decides is checked against
//! docs/design.md.
//!
//! - `model`: the budget, naively. `checks`, `flights`, `heard`, `leases`, `budgets`, `operators`: what must hold at every step.
//! - `store`, `lock`: a scripted lock, and a gate's handle of a lock, real or scripted. `leash`: requests that freeze and drop.
//! - `config`, `chance`: what a seed decides. `world`, `requests`, `launcher`, `acts`, `driver`, `quiet`: what happens.
//! - `found`: what it has found. `mutations.py` shows what it notices.
//!
//! `SIMULATION=real:17` replays one seed of a mode; `SIMULATION_SEEDS=100000` runs more than the 300 of each.

mod acts;
mod budgets;
mod chance;
mod checks;
mod config;
mod driver;
mod flights;
mod found;
mod heard;
mod launcher;
mod leases;
mod leash;
mod lock;
mod model;
mod operators;
mod quiet;
mod requests;
mod store;
mod world;

use std::env;
use std::sync::Mutex;
use std::thread;

use driver::{Run, run};

#[test]
fn scripted_locks_keep_every_promise() {
    keep_every_promise("scripted");
}

#[test]
fn lock_files_keep_every_promise() {
    keep_every_promise("real");
}

fn keep_every_promise(mode: &str) {
    let replayed = env::var("SIMULATION").ok();
    let (first, last) = match replayed
        .as_deref()
        .and_then(|replay| replay.split_once(':'))
    {
        Some((of, _)) if of != mode => return,
        Some((_, seed)) => {
            let seed = seed.parse().expect("SIMULATION=MODE:SEED");
            (seed, seed + 1)
        }
        None => {
            let seeds = env::var("SIMULATION_SEEDS").ok();
            (
                0,
                seeds.map_or(300, |seeds| seeds.parse().expect("a number of seeds")),
            )
        }
    };
    let (next, broken) = (Mutex::new(first), Mutex::new(Vec::new()));
    let launches = Mutex::new(0);
    let workers = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(seed) = taken(&next, last) {
                    let run = in_thread(mode, seed);
                    *launches.lock().unwrap() += run.launches;
                    if run.broken.is_some() {
                        broken.lock().unwrap().push((seed, run));
                    }
                }
            });
        }
    });
    let mut broken = broken.into_inner().unwrap();
    broken.sort_by_key(|(seed, _)| *seed);
    let launches = launches.into_inner().unwrap();
    assert!(broken.is_empty(), "{}", told(mode, &broken));
    assert!(launches > 0, "nothing was launched");
}

fn taken(next: &Mutex<u64>, last: u64) -> Option<u64> {
    let mut next = next.lock().unwrap();
    let seed = *next;
    *next += 1;
    (seed < last).then_some(seed)
}

/// A thread of its own, since what a thread keeps must not go from one seed to the next.
fn in_thread(mode: &str, seed: u64) -> Run {
    let is_real = mode == "real";
    let run = thread::spawn(move || run(is_real, seed)).join();
    run.unwrap_or_else(|_| panic!("{mode}:{seed} panicked"))
}

fn told(mode: &str, broken: &[(u64, Run)]) -> String {
    let (seed, run) = &broken[0];
    let reasons: Vec<String> = broken
        .iter()
        .map(|(seed, run)| format!("{mode}:{seed} {}", run.broken.as_deref().unwrap_or("")))
        .collect();
    format!(
        "{:#?}\n{}\n\n{}\n\nreplay: SIMULATION={mode}:{seed} cargo test --test simulation",
        run.config,
        run.log.join("\n"),
        reasons.join("\n"),
    )
}
