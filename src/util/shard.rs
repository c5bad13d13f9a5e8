//! Sharding by key, so that requests for different keys rarely contend.

/// Picks one of `count` shards for a hash, by bits that a hash table does not use.
pub(crate) fn shard_index(hash: u64, count: usize) -> usize {
    (hash >> 32) as usize % count
}
