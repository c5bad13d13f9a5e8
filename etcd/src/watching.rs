//! Waiting for a release: one watch for each key that somebody of this process waits for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_stream::StreamExt;

use crate::core::Core;
use crate::error::EtcdError;
use crate::grant::RecordLease;
use crate::names::Names;
use crate::renewal::RenewedLease;
use crate::state::{KeyState, read_all};
use crate::wire::{KeyValue, WATCH, WatchCreateRequest, WatchRequest, WatchResponse};

/// A watch that nobody has asked for this long ends. A waiting gate asks each second.
const IDLE: Duration = Duration::from_secs(3);

/// A watch that has told nothing for this long is not believed alone: the next try asks etcd.
const BELIEVED: Duration = Duration::from_millis(2500);

/// The pause before a watch that has failed begins again.
const PAUSE: Duration = Duration::from_millis(200);

/// The watches of this process, by the names of their keys.
#[derive(Default)]
pub(crate) struct Watches(Mutex<HashMap<Names, Arc<Watched>>>);

/// What a watch knows of its key.
pub(crate) struct Watched {
    known: watch::Sender<Known>,
    used: Mutex<Instant>,
    /// Leases for the next try, so that it needs not grant them once the lock is free.
    spare: Mutex<Spare>,
}

#[derive(Clone, Debug)]
pub(crate) struct Known {
    pub(crate) state: KeyState,
    /// When etcd last said so.
    confirmed: Instant,
}

#[derive(Default)]
pub(crate) struct Spare {
    pub(crate) lock: Option<RenewedLease>,
    pub(crate) record: Option<RecordLease>,
}

impl Watches {
    /// The watch of this key, if there is one.
    pub(crate) fn of(&self, names: &Names) -> Option<Arc<Watched>> {
        let watched = self.lock().get(names).cloned()?;
        watched.touch();
        Some(watched)
    }

    /// Notes what a try has found. Begins a watch, if there is none.
    pub(crate) fn found(core: &Arc<Core>, names: &Names, state: KeyState) -> Arc<Watched> {
        let mut watches = core.watches.lock();
        if let Some(watched) = watches.get(names) {
            watched.touch();
            watched.confirm(|known| {
                if state.revision >= known.revision {
                    *known = state;
                }
            });
            return Arc::clone(watched);
        }
        let watched = Arc::new(Watched {
            known: watch::Sender::new(Known {
                state,
                confirmed: Instant::now(),
            }),
            used: Mutex::new(Instant::now()),
            spare: Mutex::default(),
        });
        watches.insert(names.clone(), Arc::clone(&watched));
        let task = follow(Arc::clone(core), names.clone(), Arc::clone(&watched));
        core.run_alone(task);
        watched
    }

    /// Ends the watch of a key if nobody has asked for it of late.
    fn remove_idle(&self, names: &Names, watched: &Watched) -> bool {
        let mut watches = self.lock();
        let is_idle = watched.idle_at() <= Instant::now();
        if is_idle {
            watches.remove(names);
        }
        is_idle
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Names, Arc<Watched>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Watched {
    /// What is known, if it can be believed without asking etcd.
    pub(crate) fn believed(&self) -> Option<KeyState> {
        let known = self.known.borrow();
        (known.confirmed.elapsed() < BELIEVED).then(|| known.state.clone())
    }

    /// Waits until the lock is free.
    pub(crate) async fn released(&self) {
        let mut known = self.known.subscribe();
        // The sender lives as long as this.
        let _ = known.wait_for(|known| known.state.lock.is_none()).await;
    }

    /// Takes the leases that were granted for the next try.
    pub(crate) fn take_spare(&self) -> Spare {
        std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Keeps leases for the next try.
    pub(crate) fn keep_spare(&self, new: Spare) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let spare = &mut *spare;
        spare.lock = new.lock.or(spare.lock.take());
        spare.record = new.record.or(spare.record.take());
    }

    fn confirm(&self, change: impl FnOnce(&mut KeyState)) {
        self.known.send_modify(|known| {
            known.confirmed = Instant::now();
            change(&mut known.state);
        });
    }

    fn touch(&self) {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn idle_at(&self) -> Instant {
        *self.used.lock().unwrap_or_else(PoisonError::into_inner) + IDLE
    }
}

/// Follows the changes of a key until nobody asks for them any more.
async fn follow(core: Arc<Core>, names: Names, watched: Arc<Watched>) {
    let idle = async {
        loop {
            sleep_until(watched.idle_at()).await;
            if core.watches.remove_idle(&names, &watched) {
                return;
            }
        }
    };
    tokio::select! {
        () = idle => {}
        () = watch_again(&core, &names, &watched) => {}
    }
}

/// Watches, at another member if one fails.
async fn watch_again(core: &Core, names: &Names, watched: &Watched) {
    loop {
        let (number, endpoint) = core.calls.current();
        let watching = async {
            let (key, range_end) = names.range();
            let start_revision = watched.known.borrow().state.revision + 1;
            let create = WatchCreateRequest {
                key,
                range_end,
                start_revision,
            };
            let request = WatchRequest {
                create: Some(create),
            };
            // The stream of requests stays open, or the watch would end.
            let requests = tokio_stream::once(request).chain(tokio_stream::pending());
            let mut answers = endpoint.stream(WATCH, requests).await?;
            // The first answer tells the revision that the watch begins at; changes before it are told again.
            let mut began_at = None;
            while let Some(answer) = answers.next().await {
                let answer: WatchResponse =
                    answer.map_err(|status| endpoint.stream_failed(&status))?;
                let revision = answer.header.map_or(i64::MAX, |header| header.revision);
                let began_at = *began_at.get_or_insert(revision);
                if answer.compact_revision > 0 {
                    return Err(EtcdError::Compacted);
                }
                if answer.canceled {
                    break;
                }
                note(core, names, watched, answer, began_at);
            }
            Ok::<(), EtcdError>(())
        };
        let ended = tokio::select! {
            ended = watching => ended,
            () = core.calls.moved_on(number) => continue,
        };
        if matches!(&ended, Err(error) if error.retry_helps()) {
            core.calls.move_on(number);
        }
        sleep(PAUSE).await;
        read_anew(core, names, watched).await;
    }
}

/// Reads the entries anew: the changes since the last answer may be compacted.
async fn read_anew(core: &Core, names: &Names, watched: &Watched) {
    if let Ok(answer) = core.calls.call(&read_all(names), core.deadline()).await {
        let revision = answer.header.map_or(0, |header| header.revision);
        let state = KeyState::new(names, answer.kvs, revision);
        watched.confirm(|known| {
            if state.revision >= known.revision {
                *known = state;
            }
        });
    }
}

fn note(core: &Core, names: &Names, watched: &Watched, answer: WatchResponse, began_at: i64) {
    // Not by the header: changes before its revision may be yet to come.
    let kvs = answer.events.iter().filter_map(|event| event.kv.as_ref());
    let revision = kvs.map(|kv| kv.mod_revision).max().unwrap_or_default();
    for event in &answer.events {
        // It was written a moment ago. The age of one that was written before the watch began is told by its lease.
        let is_new = |kv: &&KeyValue| kv.key == names.record() && kv.mod_revision > began_at;
        if let Some(kv) = event.kv.as_ref().filter(is_new) {
            core.ages
                .saw(names.shown(), kv.mod_revision, Duration::ZERO);
        }
    }
    watched.confirm(|known| {
        for event in answer.events {
            known.apply(names, event);
        }
        known.revision = known.revision.max(revision);
    });
}
