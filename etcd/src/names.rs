//! The names of a key's entries in etcd.

use spawn_gate::GateKey;
use spawn_gate::lock::LockName;

/// The entries of one key are `PREFIX/NAME/lock`, `…/record`, `…/ended` and `…/backend`, where `NAME.lock` would be the
/// name of its lock file. So one range reads them all, and one watch tells their changes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Names {
    base: String,
}

impl Names {
    pub(crate) fn new<K: GateKey>(prefix: &str, key: &K) -> Self {
        let name = LockName::new(key);
        let name = name.as_str().trim_end_matches(".lock");
        Self {
            base: format!("{prefix}/{name}/"),
        }
    }

    /// The names of a key by what its entries begin with.
    pub(crate) fn of_base(base: String) -> Self {
        Self { base }
    }

    /// The name in errors and reports.
    pub(crate) fn shown(&self) -> &str {
        self.base.trim_end_matches('/')
    }

    pub(crate) fn lock(&self) -> Vec<u8> {
        format!("{}{LOCK}", self.base).into_bytes()
    }

    pub(crate) fn record(&self) -> Vec<u8> {
        format!("{}{RECORD}", self.base).into_bytes()
    }

    pub(crate) fn ended(&self) -> Vec<u8> {
        format!("{}{ENDED}", self.base).into_bytes()
    }

    pub(crate) fn backend(&self) -> Vec<u8> {
        format!("{}{BACKEND}", self.base).into_bytes()
    }

    /// The begin and the end of the range of all entries.
    pub(crate) fn range(&self) -> (Vec<u8>, Vec<u8>) {
        range_below(&self.base)
    }

    /// Which entry of this key that is.
    pub(crate) fn entry(&self, key: &[u8]) -> Option<Entry> {
        match split(key)? {
            (base, entry) if base == self.base => Some(entry),
            _ => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Lock,
    Record,
    Ended,
    Backend,
}

const LOCK: &str = "lock";
const RECORD: &str = "record";
const ENDED: &str = "ended";
const BACKEND: &str = "backend";

/// Splits the key of an entry into its base and the entry. `None` if it is another program's.
pub(crate) fn split(key: &[u8]) -> Option<(&str, Entry)> {
    let key = std::str::from_utf8(key).ok()?;
    let end = key.rfind('/')? + 1;
    let entry = match &key[end..] {
        LOCK => Entry::Lock,
        RECORD => Entry::Record,
        ENDED => Entry::Ended,
        BACKEND => Entry::Backend,
        _ => return None,
    };
    Some((&key[..end], entry))
}

/// The range of all keys that begin with `base`, which ends with `/`.
pub(crate) fn range_below(base: &str) -> (Vec<u8>, Vec<u8>) {
    let begin = base.as_bytes().to_vec();
    let mut end = begin.clone();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    (begin, end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_of_any_bytes_has_its_entries_in_one_range() {
        for key in ["", "/", "../x", "a\0b", "ü/%2f\n", &"x".repeat(5000)] {
            let names = Names::new("gate", &key.to_owned());
            let (begin, end) = names.range();
            for (name, entry) in [
                (names.lock(), Entry::Lock),
                (names.record(), Entry::Record),
                (names.ended(), Entry::Ended),
                (names.backend(), Entry::Backend),
            ] {
                assert!(begin < name && name < end, "{key:?}");
                assert_eq!(names.entry(&name), Some(entry), "{key:?}");
                assert!(name.len() < 140, "{key:?}");
            }
        }
    }

    #[test]
    fn entries_of_other_keys_are_not_of_this_one() {
        let names = Names::new("gate", &"a");
        assert_eq!(names.entry(&Names::new("gate", &"b").lock()), None);
        assert_eq!(names.entry(b"gate/other"), None);
    }
}
