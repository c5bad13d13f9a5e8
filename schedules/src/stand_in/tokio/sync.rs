//! Channels and locks. Each keeps its state behind a mutex of `shuttle`, so every operation is a point where the schedule can
//! change tasks.

use std::fmt;
use std::future::poll_fn;
use std::ops::{Deref, DerefMut};
use std::task::{Poll, Waker};

use shuttle::sync::{Mutex as StepMutex, MutexGuard as StepGuard, PoisonError};

/// Poisoning is ignored: a panic ends the schedule anyway.
fn step<V>(mutex: &StepMutex<V>) -> StepGuard<'_, V> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug, Default)]
pub struct Mutex<V>(StepMutex<V>);

#[derive(Debug)]
pub struct MutexGuard<'a, V>(StepGuard<'a, V>);

#[derive(Debug)]
pub struct TryLockError(());

impl<V> Mutex<V> {
    pub fn try_lock(&self) -> Result<MutexGuard<'_, V>, TryLockError> {
        self.0.try_lock().map(MutexGuard).map_err(|_| {
            // The caller tries again: let the holder run first, or a schedule by priorities never ends.
            shuttle::thread::yield_now();
            TryLockError(())
        })
    }
}

impl<V> Deref for MutexGuard<'_, V> {
    type Target = V;

    fn deref(&self) -> &V {
        &self.0
    }
}

impl<V> DerefMut for MutexGuard<'_, V> {
    fn deref_mut(&mut self) -> &mut V {
        &mut self.0
    }
}

/// For one waiter at a time, like the gate's.
#[derive(Debug, Default)]
pub struct Notify(StepMutex<Notified>);

#[derive(Debug, Default)]
struct Notified {
    is_stored: bool,
    waiter: Option<Waker>,
}

impl Notify {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn notify_one(&self) {
        let mut state = step(&self.0);
        state.is_stored = true;
        let waiter = state.waiter.take();
        drop(state);
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    pub async fn notified(&self) {
        poll_fn(|context| {
            let mut state = step(&self.0);
            if std::mem::take(&mut state.is_stored) {
                return Poll::Ready(());
            }
            state.waiter = Some(context.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

pub mod oneshot {
    //! A channel whose closing is all that the gate uses.

    use std::marker::PhantomData;
    use std::sync::Arc;
    use std::task::{Context, Poll, Waker};

    use super::{StepMutex, step};

    #[derive(Debug)]
    pub struct Sender<V>(Arc<StepMutex<Closed>>, PhantomData<V>);

    #[derive(Debug)]
    pub struct Receiver<V>(Arc<StepMutex<Closed>>, PhantomData<V>);

    #[derive(Debug, Default)]
    struct Closed {
        is_closed: bool,
        sender: Option<Waker>,
    }

    pub fn channel<V>() -> (Sender<V>, Receiver<V>) {
        let closed = Arc::<StepMutex<Closed>>::default();
        let receiver = Receiver(Arc::clone(&closed), PhantomData);
        (Sender(closed, PhantomData), receiver)
    }

    impl<V> Sender<V> {
        pub fn poll_closed(&mut self, context: &mut Context<'_>) -> Poll<()> {
            let mut state = step(&self.0);
            if state.is_closed {
                return Poll::Ready(());
            }
            state.sender = Some(context.waker().clone());
            Poll::Pending
        }
    }

    impl<V> Drop for Receiver<V> {
        fn drop(&mut self) {
            let mut state = step(&self.0);
            state.is_closed = true;
            let sender = state.sender.take();
            drop(state);
            if let Some(sender) = sender {
                sender.wake();
            }
        }
    }
}

pub mod watch {
    //! A value and the wait for a change of it.

    use std::future::poll_fn;
    use std::ops::Deref;
    use std::sync::Arc;
    use std::task::{Poll, Waker};

    use shuttle::sync::{PoisonError, RwLock, RwLockReadGuard};

    use super::{StepMutex, fmt, step};

    pub struct Sender<V>(Arc<Shared<V>>);

    pub struct Receiver<V>(Arc<Shared<V>>);

    /// The value, which no sender can change meanwhile.
    #[derive(Debug)]
    pub struct Ref<'a, V>(RwLockReadGuard<'a, V>);

    /// The sender is gone, and no value was the one to wait for.
    #[derive(Debug)]
    pub struct RecvError(());

    struct Shared<V> {
        value: RwLock<V>,
        state: StepMutex<State>,
    }

    #[derive(Default)]
    struct State {
        changes: u64,
        is_closed: bool,
        receivers: usize,
        waiting: Vec<Waker>,
    }

    impl<V> Shared<V> {
        fn change(&self, change: impl FnOnce(&mut State)) {
            let mut state = step(&self.state);
            change(&mut state);
            let waiting = std::mem::take(&mut state.waiting);
            drop(state);
            waiting.into_iter().for_each(Waker::wake);
        }
    }

    impl<V> Sender<V> {
        pub fn new(value: V) -> Self {
            Self(Arc::new(Shared {
                value: RwLock::new(value),
                state: StepMutex::default(),
            }))
        }

        pub fn subscribe(&self) -> Receiver<V> {
            step(&self.0.state).receivers += 1;
            Receiver(Arc::clone(&self.0))
        }

        pub fn receiver_count(&self) -> usize {
            step(&self.0.state).receivers
        }

        pub fn send_modify(&self, modify: impl FnOnce(&mut V)) {
            let mut place = self.0.value.write().unwrap_or_else(PoisonError::into_inner);
            modify(&mut place);
            drop(place);
            self.0.change(|state| state.changes += 1);
        }
    }

    impl<V> Receiver<V> {
        pub fn borrow(&self) -> Ref<'_, V> {
            let value = self.0.value.read();
            Ref(value.unwrap_or_else(PoisonError::into_inner))
        }

        /// Waits for a value. A last one that was sent before the sender was dropped counts.
        pub async fn wait_for(
            &mut self,
            mut is_wanted: impl FnMut(&V) -> bool,
        ) -> Result<Ref<'_, V>, RecvError> {
            let shared = &*self.0;
            poll_fn(|context| {
                loop {
                    // Read before the value: a change that comes later is noticed below.
                    let seen = {
                        let state = step(&shared.state);
                        (state.changes, state.is_closed)
                    };
                    let value = shared.value.read().unwrap_or_else(PoisonError::into_inner);
                    if is_wanted(&value) {
                        return Poll::Ready(Ok(Ref(value)));
                    }
                    drop(value);
                    if seen.1 {
                        return Poll::Ready(Err(RecvError(())));
                    }
                    let mut state = step(&shared.state);
                    if seen == (state.changes, state.is_closed) {
                        state.waiting.push(context.waker().clone());
                        return Poll::Pending;
                    }
                }
            })
            .await
        }
    }

    impl<V> Deref for Ref<'_, V> {
        type Target = V;

        fn deref(&self) -> &V {
            &self.0
        }
    }

    impl<V> Drop for Sender<V> {
        fn drop(&mut self) {
            self.0.change(|state| state.is_closed = true);
        }
    }

    impl<V> Drop for Receiver<V> {
        fn drop(&mut self) {
            step(&self.0.state).receivers -= 1;
        }
    }

    impl<V> fmt::Debug for Sender<V> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Sender").finish_non_exhaustive()
        }
    }

    impl<V> fmt::Debug for Receiver<V> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.debug_struct("Receiver").finish_non_exhaustive()
        }
    }
}
