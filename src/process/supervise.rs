//! Reporting the end of a backend to the gate.

use super::error::off_thread_call;
use super::files::Files;
use super::launcher::ProcessLauncher;
use super::look::Sight;
use super::record::State;
use super::sys::{KNOWS_HOLDERS, Started, holder_of, is_orderly};
use crate::admin::BackendEnd;
use crate::flight::Launch;
use crate::key::GateKey;

impl<K: GateKey> ProcessLauncher<K> {
    /// Reports the end of the backend to the gate, as long as this process and its runtime live.
    pub(super) fn supervise(
        &self,
        launch: Launch<K>,
        files: Files,
        started: Started,
        has_forked: bool,
    ) {
        let gate = self.gate.clone();
        let settled = started.settle();
        tokio::spawn(async move {
            let status = settled.ended().await;
            let sight = Sight::take(&files).await.ok();
            let seen = sight.as_ref().filter(|sight| {
                let record = sight.record();
                record.is_some_and(|record| record.launch == launch.fencing_token)
            });
            let is_wanted = seen
                .and_then(Sight::record)
                .is_some_and(|record| record.state == State::Leaving);
            // A program that forked and exited goes on as another process, whose end nobody can wait for.
            let is_of_another = status.is_some_and(|status| status.success())
                && (has_forked
                    || seen.is_some_and(Sight::is_there)
                        && goes_on(&files, launch.fencing_token).await);
            let end = match status {
                _ if is_wanted => BackendEnd::orderly(launch.fencing_token),
                _ if is_of_another => return,
                Some(status) if is_orderly(status) => BackendEnd::orderly(launch.fencing_token),
                Some(status) => BackendEnd::failed(launch.fencing_token, status.to_string()),
                // How it ended is not known.
                None => return,
            };
            // If it cannot be written, the next refusal does not say why.
            let _ = gate.backend_ended(launch.key, end).await;
        });
    }
}

/// Whether what holds the lock for a backend's life is of that launch, and not of one that has just begun. If the system does not
/// tell, it is assumed to be.
async fn goes_on(files: &Files, launch: u64) -> bool {
    let files = files.clone();
    let found = off_thread_call(move || Ok(holder_of(&files, Some(launch)))).await;
    found.is_ok_and(|holder| holder.is_some()) || !KNOWS_HOLDERS
}
