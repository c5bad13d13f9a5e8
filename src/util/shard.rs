//! Sharding by key, so that requests for different keys rarely contend.

/// Picks one of `count` shards for a hash, by bits that a hash table does not use.
pub(crate) fn shard_index(hash: u64, count: usize) -> usize {
    (hash >> 32) as usize % count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_that_differ_in_their_upper_half_are_spread_over_all_shards() {
        let shards: Vec<_> = (0..16).map(|upper| shard_index(upper << 32, 16)).collect();
        assert_eq!(shards, (0..16).collect::<Vec<_>>());
        // A hash table picks its place by the lower bits.
        assert_eq!(shard_index(0xffff_ffff, 16), 0);
    }
}
