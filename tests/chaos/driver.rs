//! The driver of a round: starts the processes, does what the seed says, and checks what is left.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use spawn_gate::admin::{LedgerReading, inspect_spawn_lock};

use crate::chance::Chance;
use crate::checks::{self, Tally};
use crate::config::{Config, KEYS};
use crate::harm;
use crate::journal::{Event, Reader};
use crate::process::Process;

/// A round takes about a second. One that takes this long hangs.
const LONGEST_ROUND: Duration = Duration::from_secs(90);

/// The longest pause between two acts, and the longest wait for a launch to begin, which may not come.
const LONGEST_PAUSE: Duration = Duration::from_millis(20);

struct Round<'a> {
    seed: u64,
    config: Config,
    chance: Chance,
    directory: &'a Path,
    deadline: Instant,
    journal: Reader,
    processes: Vec<Process>,
    started: usize,
}

/// Runs one round. The error says which promise was broken, and what each process was doing.
pub(crate) fn round(seed: u64) -> Result<Tally, String> {
    let directory = tempfile::tempdir().unwrap();
    let (config, chance) = Config::chance_of(seed, None);
    let mut round = Round {
        seed,
        config,
        chance,
        directory: directory.path(),
        deadline: Instant::now() + LONGEST_ROUND,
        journal: Reader::open(directory.path()),
        processes: Vec::new(),
        started: 0,
    };
    round.run().map_err(|broken| round.report(&broken))
}

impl Round<'_> {
    fn run(&mut self) -> Result<Tally, String> {
        for _ in 0..self.config.processes {
            self.start();
        }
        for process in &self.processes {
            process.says(self.deadline)?;
        }
        self.tell_all("ask");
        for _ in 0..self.config.acts {
            self.pause();
            self.act();
        }
        self.calm_down();
        // Some time in which nothing is done to anybody.
        self.pause();
        self.pause();
        self.tell_all("finish");
        for process in &mut self.processes {
            process.ends(self.deadline)?;
        }
        self.journal.read();
        self.check_ledgers()?;
        // A process that comes now gets every lock, and its answers.
        let visitor = Process::start(self.seed, self.directory, self.started, true);
        self.processes = vec![visitor];
        self.processes[0].ends(self.deadline)?;

        self.journal.read();
        let tally = checks::check(&self.config, &self.journal.events)?;
        self.check_files()?;
        Ok(tally)
    }

    fn start(&mut self) {
        let process = Process::start(self.seed, self.directory, self.started, false);
        self.processes.push(process);
        self.started += 1;
    }

    fn tell_all(&mut self, what: &str) {
        for process in &mut self.processes {
            process.tell(what);
        }
    }

    fn wait_for(&mut self, longest: Duration, mut is_so: impl FnMut(&mut Reader) -> bool) {
        let until = Instant::now() + longest;
        while !is_so(&mut self.journal) && Instant::now() < until {
            thread::sleep(Duration::from_micros(200));
        }
    }

    /// Lets some events happen, or some time pass.
    fn pause(&mut self) {
        let longest = self.chance.below(LONGEST_PAUSE.as_micros() as u64);
        let wanted = self.journal.read() + self.chance.below(40) as usize;
        self.wait_for(Duration::from_micros(longest), |journal| {
            journal.read() >= wanted
        });
    }

    fn act(&mut self) {
        match self.chance.below(100) {
            0..10 => self.kill(),
            10..25 => self.stop_one(),
            25..40 => self.continue_one(),
            40..50 => harm::mend(self.directory),
            // Nothing but kills and stops.
            _ if self.config.harms.is_empty() => {}
            _ => {
                let key = self.chance.pick(self.config.keys);
                let harm = self.chance.pick(self.config.harms);
                // Most harm is done by what happens to a key during its launch.
                if self.chance.percent(70) {
                    self.wait_for(LONGEST_PAUSE, |journal| {
                        journal.read();
                        journal.is_launching(key)
                    });
                }
                let chance = &mut self.chance;
                harm::harm(self.directory, key, harm, chance, &self.journal);
            }
        }
    }

    fn any(&mut self) -> usize {
        self.chance.below(self.processes.len() as u64) as usize
    }

    /// Kills a process, also one that is stopped. Most times another one comes.
    fn kill(&mut self) {
        if self.processes.len() < 3 {
            return;
        }
        let victim = self.any();
        let mut victim = self.processes.swap_remove(victim);
        self.note("killing", victim.number);
        victim.kill();
        self.note("killed", victim.number);
        if self.chance.percent(70) {
            self.start();
            if let Some(process) = self.processes.last_mut() {
                process.tell("ask");
            }
        }
    }

    fn note(&self, what: &str, process: usize) {
        self.journal.note(&Event::new(what, process, "-"));
    }

    fn stop_one(&mut self) {
        let process = self.any();
        self.note("stop", self.processes[process].number);
        self.processes[process].signal(Signal::STOP);
    }

    fn continue_one(&mut self) {
        let stopped = self.processes.iter_mut().find(|it| it.is_stopped);
        if let Some(process) = stopped {
            process.signal(Signal::CONT);
            let number = process.number;
            self.note("continue", number);
        }
    }

    fn calm_down(&mut self) {
        harm::mend(self.directory);
        while self.processes.iter().any(|process| process.is_stopped) {
            self.continue_one();
        }
    }

    /// The last record of a launch is written before its lock is free, so no older one comes after it, also if
    /// processes are killed.
    fn check_ledgers(&self) -> Result<(), String> {
        for &key in self.config.keys {
            let Some(success) = checks::newest_success(&self.journal.events, key) else {
                continue;
            };
            let report = inspect_spawn_lock(harm::lock_file(self.directory, key));
            let LedgerReading::Found(ledger) = report.map_err(|error| format!("{error:?}"))?.ledger
            else {
                return Err(format!("the ledger of {key} is broken"));
            };
            let last = ledger.last_outcome().map_or(0, |last| last.launch);
            if last < success || ledger.fencing_token() < last {
                return Err(format!(
                    "the ledger of {key} lost launch {success}: {ledger:?}"
                ));
            }
        }
        Ok(())
    }

    /// All processes have ended: what is in the lock directory?
    fn check_files(&self) -> Result<(), String> {
        let directory = harm::lock_directory(self.directory);
        let mode = fs::metadata(&directory).unwrap().permissions().mode() & 0o777;
        if mode != 0o700 {
            return Err(format!("the lock directory has mode {mode:o}"));
        }
        let files: Vec<_> = KEYS
            .map(|key| harm::lock_file(self.directory, key))
            .into_iter()
            .chain([directory.join("probe.lock")])
            .collect();
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if !files.contains(&path) {
                return Err(format!("a file was left: {}", path.display()));
            }
        }
        for &key in self.config.keys {
            let path = harm::lock_file(self.directory, key);
            let report = inspect_spawn_lock(path).map_err(|error| format!("{key}: {error:?}"))?;
            if report.is_held {
                return Err(format!("{key} is held by nobody"));
            }
        }
        Ok(())
    }

    fn report(&mut self, broken: &str) -> String {
        self.journal.read();
        let mut lines = vec![
            format!("round {}: {broken}", self.seed),
            format!("{:?}", self.config),
        ];
        lines.extend(self.processes.iter_mut().map(Process::report));
        lines.extend(checks::unanswered(&self.journal.events));
        lines.push("the journal's end (event, process, key, request, fencing token, how):".into());
        lines.push(self.journal.last(200));
        lines.join("\n")
    }
}
