//! A request on a leash: it can be frozen (kept, and not polled), let go on, or dropped at any point.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::Notify;

type Request = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The number of the newest event. Events are counted, since many happen in one millisecond.
pub(crate) type Ticks = Arc<AtomicU64>;

pub(crate) fn tick(ticks: &Ticks) -> u64 {
    ticks.fetch_add(1, Ordering::SeqCst) + 1
}

/// All that were woken, in the order of their numbers: a flight's end wakes its followers in an order of tokio's own chance,
/// which has a seed with `tokio_unstable` only.
#[derive(Default)]
pub(crate) struct Herd {
    woken: Mutex<BTreeMap<u64, Waker>>,
    is_woken: Notify,
}

impl Herd {
    /// Drives those who were woken, for ever.
    pub(crate) async fn drive(self: Arc<Self>) {
        loop {
            self.is_woken.notified().await;
            let woken = mem::take(&mut *self.woken.lock().unwrap());
            woken.into_values().for_each(Waker::wake);
        }
    }
}

/// The hand that holds a leash.
#[derive(Clone)]
pub(crate) struct Leash(Arc<Held>);

struct Held {
    is_frozen: Mutex<bool>,
    request: Mutex<Option<Request>>,
    bell: Arc<Bell>,
    polled: AtomicU64,
}

/// Notes when it was last rung: a request that hears an outcome was woken once the lock was free.
struct Bell {
    number: u64,
    herd: Arc<Herd>,
    ticks: Ticks,
    rung: AtomicU64,
    task: Mutex<Option<Waker>>,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.rung.store(tick(&self.ticks), Ordering::SeqCst);
        let task = self.task.lock().unwrap().take();
        if let Some(task) = task {
            self.herd.woken.lock().unwrap().insert(self.number, task);
            self.herd.is_woken.notify_one();
        }
    }
}

impl Leash {
    pub(crate) fn new(number: u64, ticks: &Ticks, herd: &Arc<Herd>) -> Self {
        Self(Arc::new(Held {
            is_frozen: Mutex::new(false),
            request: Mutex::new(None),
            polled: AtomicU64::new(0),
            bell: Arc::new(Bell {
                number,
                herd: Arc::clone(herd),
                ticks: Arc::clone(ticks),
                rung: AtomicU64::new(0),
                task: Mutex::new(None),
            }),
        }))
    }

    /// Runs a request in a task of its own.
    pub(crate) fn run(&self, request: impl Future<Output = ()> + Send + 'static) {
        *self.0.request.lock().unwrap() = Some(Box::pin(request));
        tokio::spawn(OnLeash(Arc::clone(&self.0)));
    }

    pub(crate) fn freeze(&self) {
        *self.0.is_frozen.lock().unwrap() = true;
    }

    pub(crate) fn thaw(&self) {
        *self.0.is_frozen.lock().unwrap() = false;
        Arc::clone(&self.0.bell).wake();
    }

    pub(crate) fn cut(&self) {
        let request = self.0.request.lock().unwrap().take();
        // Not while the mutex is held: its drop runs the crate's code.
        drop(request);
        Arc::clone(&self.0.bell).wake();
    }

    /// It was woken, and has not been polled since.
    pub(crate) fn is_woken(&self) -> bool {
        self.rung() > self.0.polled.load(Ordering::SeqCst)
    }

    /// When the request was last woken.
    pub(crate) fn rung(&self) -> u64 {
        self.0.bell.rung.load(Ordering::SeqCst)
    }
}

impl fmt::Debug for Leash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "woken: {}", self.is_woken())
    }
}

struct OnLeash(Arc<Held>);

impl Future for OnLeash {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let held = &self.0;
        *held.bell.task.lock().unwrap() = Some(context.waker().clone());
        let mut slot = held.request.lock().unwrap();
        let Some(request) = &mut *slot else {
            return Poll::Ready(());
        };
        if *held.is_frozen.lock().unwrap() {
            return Poll::Pending;
        }
        held.polled.store(tick(&held.bell.ticks), Ordering::SeqCst);
        let waker = Waker::from(Arc::clone(&held.bell));
        let polled = request.as_mut().poll(&mut Context::from_waker(&waker));
        if polled.is_ready() {
            slot.take();
        }
        polled
    }
}
