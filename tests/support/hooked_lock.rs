//! A lock of files with a ledger, where one hook runs before and after each step that reads or writes one.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use spawn_gate::{FileSpawnLock, GateKey};

use super::halt::Halt;
use super::scripted_lock::{Scripted, ScriptedLock};

/// Where the hook runs. Each kind of step is numbered from 1 over all leases of the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum At {
    /// Before a write of the ledger. An error is what comes of the write.
    Write(usize),
    /// When a write has been made, but its caller has not heard of it.
    Written(usize),
    /// Before a look at the ledger. An error leaves the look without an answer.
    Look(usize),
    /// A try found the lock held, the ledger has been looked at, and the wait for the release begins.
    Wait(usize),
}

impl<K: GateKey> ScriptedLock<K> {
    /// The lock of files in the directory, with this hook.
    pub(crate) fn hooked<F>(
        directory: &Path,
        hook: impl Fn(At) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Scripted> + Send + 'static,
    {
        let hook = Arc::new(hook);
        let at = |place: fn(usize) -> At| {
            let hook = Arc::clone(&hook);
            move |number| hook(place(number))
        };
        Self::new(FileSpawnLock::new(directory).unwrap())
            .on_write(at(At::Write))
            .on_written(at(At::Written))
            .on_look(at(At::Look))
            .on_wait(at(At::Wait))
    }

    /// One that halts wherever `halts_at` says so.
    pub(crate) fn halting(
        directory: &Path,
        halts_at: impl Fn(At) -> bool + Send + Sync + 'static,
    ) -> (Self, Halt) {
        let halt = Halt::new();
        let lock = Self::hooked(directory, {
            let halt = halt.clone();
            move |at| {
                let halt = halts_at(at).then(|| halt.clone());
                async move {
                    if let Some(halt) = halt {
                        halt.halt().await;
                    }
                    Ok(())
                }
            }
        });
        (lock, halt)
    }
}
