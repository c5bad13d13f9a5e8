//! Splitting what is kept by key, so that those who ask for different keys seldom meet.

/// Picks one of `count` for a hash, by other bits than a hash table looks at.
pub(crate) fn shard(hash: u64, count: usize) -> usize {
    (hash >> 32) as usize % count
}
