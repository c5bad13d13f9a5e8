//! One process of the crowd: comes by its backend, has one answer of it, writes that down, and ends.

use std::path::Path;
use std::process::exit;
use std::time::Duration;

use spawn_gate::BoxError;
use tokio::time::timeout;

use super::{backend, launcher};
use crate::clock::nanos;
use crate::paths::one_thread;

/// The role of a process that asks the gate for its backend.
pub const ASKER: &str = "crowd-asker";

/// The role of a process that knows that its backend is up.
pub const CONNECTOR: &str = "crowd-connector";

/// Many times what it takes, and the end of a process that nobody waits for any more.
const LIMIT: Duration = Duration::from_secs(60);

/// What a process of the crowd says.
pub(super) struct Answer {
    /// When it had its answer, as a reading of the clock that all processes share.
    pub(super) at: u64,
    /// Who answered.
    pub(super) backend: u32,
    /// Whether this process launched the backend.
    pub(super) launched: bool,
}

impl Answer {
    pub(super) fn read_all(path: &Path) -> Vec<Self> {
        let text = std::fs::read_to_string(path).expect("the answers can be read");
        text.lines().filter_map(Self::parse).collect()
    }

    fn parse(line: &str) -> Option<Self> {
        match line.split(' ').collect::<Vec<_>>()[..] {
            [at, backend, launched] => Some(Self {
                at: at.parse().ok()?,
                backend: backend.parse().ok()?,
                launched: launched.parse().ok()?,
            }),
            _ => None,
        }
    }
}

/// Plays the role of a process that asks the gate for its backend. Without an answer in time it exits with 1.
pub fn play_asker(directory: &Path) {
    play(launcher::launch(directory));
}

/// Plays the role of a process that knows that its backend is up. Without an answer in time it exits with 1.
pub fn play_connector(directory: &Path) {
    play(async { Ok((backend::port(directory)?, false)) });
}

fn play(find: impl Future<Output = Result<(u16, bool), BoxError>>) {
    let answered = async {
        let (port, launched) = find.await?;
        let backend = backend::ask(port).await?;
        Ok::<_, BoxError>(format!("{} {backend} {launched}", nanos()))
    };
    let answered = one_thread().block_on(async { timeout(LIMIT, answered).await? });
    match answered {
        Ok(line) => println!("{line}"),
        Err(error) => {
            // Not a panic: hundreds of backtraces take seconds.
            eprintln!("no answer: {error:?}");
            exit(1)
        }
    }
}
