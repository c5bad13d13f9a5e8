//! Many callers in many processes want a backend that takes a while to start, at once: how long the last of them waits.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use spawn_gate::{
    BackendKey, BackendLauncher, BoxError, FileSpawnLock, LaunchPermit, SpawnGate, async_trait,
};

use super::threads;
use crate::clock::{nanos, sleep_until};
use crate::keys::PeerKey;
use crate::measure::{Comparison, summarize};
use crate::other::{Other, play};

/// The role of a process whose callers ask.
pub const BROKER: &str = "broker";

const PROCESSES: usize = 8;
const CALLERS: usize = 50;
const ROUNDS: usize = 9;
const READY_AFTER: Duration = Duration::from_millis(200);

/// By then, every process has heard when to begin.
const NOTICE: Duration = Duration::from_millis(30);

/// Compares the time until the last caller has its backend with that of one caller alone.
///
/// # Panics
///
/// If a backend was launched twice.
pub fn processes(path: &str) -> Comparison {
    let directory = tempfile::tempdir().expect("a temporary directory is made");
    let start = |_| Other::start(BROKER, directory.path(), &[]);
    let mut brokers: Vec<Other> = (0..PROCESSES).map(start).collect();
    let (mut alone, mut together) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        alone.push(ask(&mut brokers[..1], 2 * round, 1));
        together.push(ask(&mut brokers, 2 * round + 1, CALLERS));
    }
    let one = "one caller alone";
    let all = format!("spawn-gate, {PROCESSES} processes x {CALLERS} callers");
    let samples = vec![(all, together), (one.to_owned(), alone)];
    summarize(path.to_owned(), one, samples)
}

/// Lets so many callers in each of the processes ask for a key that nobody asked for before.
fn ask(brokers: &mut [Other], key: usize, callers: usize) -> f64 {
    let begin = nanos() + NOTICE.as_nanos() as u64;
    for broker in brokers.iter_mut() {
        broker.tell(&format!("{begin} {key} {callers}"));
    }
    let (mut last_answer, mut launches) = (0, 0);
    for broker in brokers {
        let [answer, launched] = numbers(&broker.hear());
        last_answer = last_answer.max(answer);
        launches += launched;
    }
    assert_eq!(launches, 1, "each backend is launched once");
    (last_answer - begin) as f64
}

/// Plays the role of a broker.
pub fn play_broker(directory: &Path) {
    let runtime = threads(2);
    let lock = FileSpawnLock::new(directory.join("locks")).expect("the directory serves");
    let gate = SpawnGate::builder(lock).build();
    play(|line| {
        let [begin, key, callers] = numbers(line);
        let launcher = Arc::new(Slow {
            ready: directory.join(format!("ready-{key}")),
            launches: AtomicU32::new(0),
        });
        sleep_until(begin);
        let last_answer = runtime.block_on(async {
            let callers: Vec<_> = (0..callers)
                .map(|_| tokio::spawn(caller(gate.clone(), key, Arc::clone(&launcher))))
                .collect();
            for caller in callers {
                caller.await.expect("no caller panics");
            }
            nanos()
        });
        format!("{last_answer} {}", launcher.launches.load(SeqCst))
    });
}

async fn caller(gate: SpawnGate<BackendKey, u64>, key: u64, launcher: Arc<Slow>) {
    let launched = gate.launch(BackendKey::nth(key as usize), launcher).await;
    launched.expect("the backend starts");
}

fn numbers<const N: usize>(line: &str) -> [u64; N] {
    let words = line.split(' ').map(|word| word.parse().expect("a number"));
    let numbers: Vec<u64> = words.collect();
    numbers.try_into().expect("as many as agreed")
}

/// Launches a backend that is a file, and that takes its time.
struct Slow {
    ready: PathBuf,
    launches: AtomicU32,
}

#[async_trait]
impl BackendLauncher<BackendKey, u64> for Slow {
    async fn discover(&self, _key: &BackendKey) -> Result<Option<u64>, BoxError> {
        Ok(self.ready.try_exists()?.then_some(1))
    }

    async fn launch(&self, _permit: &LaunchPermit<BackendKey, u64>) -> Result<u64, BoxError> {
        self.launches.fetch_add(1, SeqCst);
        tokio::time::sleep(READY_AFTER).await;
        std::fs::write(&self.ready, "")?;
        Ok(1)
    }
}
