//! The standard library's mutexes, atomics and hashers.

pub mod sync {
    pub use std::sync::{Arc, OnceLock, PoisonError};

    pub use shuttle::sync::{Mutex, MutexGuard};

    pub mod atomic {
        // Statistics decide nothing, so they need no schedule.
        pub use std::sync::atomic::AtomicU64;

        pub use shuttle::sync::atomic::{AtomicBool, Ordering};
    }
}

pub mod hash {
    use std::hash::DefaultHasher;
    pub use std::hash::{BuildHasher, Hash, Hasher};

    use shuttle::rand::{RngCore, thread_rng};

    /// Seeded by the schedule, so that two keys share a shard in some schedules, and in the same ones when they are replayed.
    #[derive(Clone, Debug)]
    pub struct RandomState(u64);

    impl RandomState {
        #[expect(clippy::new_without_default, reason = "the name that it stands for")]
        pub fn new() -> Self {
            Self(thread_rng().next_u64())
        }
    }

    impl BuildHasher for RandomState {
        type Hasher = DefaultHasher;

        fn build_hasher(&self) -> DefaultHasher {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(self.0);
            hasher
        }
    }
}
