//! A key with its hash, which is computed once for each request: it picks the shard and the place in its table.

use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher};

/// A key whose hash is known.
#[derive(Clone, Debug)]
pub(crate) struct Hashed<K> {
    pub(crate) key: K,
    hash: u64,
}

/// For maps whose keys are hashed already.
pub(crate) type BuildPassOn = BuildHasherDefault<PassOn>;

/// Passes on the one number that it is given.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct PassOn(u64);

impl<K: Hash> Hashed<K> {
    pub(crate) fn new(key: K, hasher: &impl BuildHasher) -> Self {
        Self {
            hash: hasher.hash_one(&key),
            key,
        }
    }

    /// Picks one of `count`.
    pub(crate) fn shard(&self, count: usize) -> usize {
        shard(self.hash, count)
    }
}

/// Picks one of `count`, by other bits of a hash than a map looks at.
pub(crate) fn shard(hash: u64, count: usize) -> usize {
    (hash >> 32) as usize % count
}

impl<K: PartialEq> PartialEq for Hashed<K> {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.key == other.key
    }
}

impl<K: Eq> Eq for Hashed<K> {}

impl<K> Hash for Hashed<K> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl Hasher for PassOn {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Never with the keys of this crate; it must be no worse than slow.
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
}
