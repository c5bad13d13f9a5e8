//! Key types, and the lock file name of a key.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::util::hex;

/// Names one backend to a [`SpawnGate`](crate::SpawnGate).
///
/// Implemented for strings, integers and [`BackendKey`]. For a type of your own, implement one method: it visits, in a fixed
/// order, the fields that tell two backends apart. They determine the lock's file name ([`LockName`]) and the key's text in
/// errors.
///
/// Unequal keys must have different fields, or they share one spawn lock. Fields may contain any bytes, and may be empty.
///
/// # Examples
///
/// ```
/// use spawn_gate::lock::LockName;
/// use spawn_gate::GateKey;
///
/// #[derive(Clone, Debug, PartialEq, Eq, Hash)]
/// struct Database {
///     tenant: u32,
///     engine: String,
/// }
///
/// impl GateKey for Database {
///     fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
///         visit(self.tenant.to_string().as_bytes());
///         visit(self.engine.as_bytes());
///     }
/// }
///
/// let key = Database { tenant: 7, engine: "../postgres".into() };
/// assert!(LockName::new(&key).as_str().starts_with("7-___postgres-"));
/// ```
pub trait GateKey: Clone + Eq + Hash + Send + Sync + 'static {
    /// Calls `visit` once for each field, always in the same order.
    fn fields(&self, visit: &mut dyn FnMut(&[u8]));
}

impl GateKey for String {
    fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(self.as_bytes());
    }
}

impl GateKey for &'static str {
    fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(self.as_bytes());
    }
}

impl GateKey for Arc<str> {
    fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(self.as_bytes());
    }
}

/// Visits integers as decimal text, so that the name of the lock file shows the number.
macro_rules! integer_keys {
    ($($integer:ty),*) => {$(
        impl GateKey for $integer {
            fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
                visit(self.to_string().as_bytes());
            }
        }
    )*};
}

integer_keys!(
    u8, u16, u32, u64, u128, usize, i8, i16, i32, i64, i128, isize
);

/// Names the broker that a backend belongs to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub enum BrokerInstanceKey {
    /// The broker that all services of a user share.
    Shared,
    /// The broker of one service.
    Private {
        /// The service that the broker serves.
        service_name: String,
    },
    /// A broker with an explicit name.
    Explicit {
        /// The broker's name.
        name: String,
    },
}

const SHARED: &str = "shared";

impl BrokerInstanceKey {
    /// Returns the instance as text: `shared`, `private:NAME` or `explicit:NAME`.
    ///
    /// ```
    /// use spawn_gate::BrokerInstanceKey;
    ///
    /// assert_eq!(BrokerInstanceKey::Shared.id(), "shared");
    /// assert_eq!(BrokerInstanceKey::Explicit { name: "ci".into() }.id(), "explicit:ci");
    /// ```
    pub fn id(&self) -> String {
        match self {
            Self::Shared => SHARED.to_owned(),
            Self::Private { service_name } => format!("private:{service_name}"),
            Self::Explicit { name } => format!("explicit:{name}"),
        }
    }
}

impl fmt::Display for BrokerInstanceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.id())
    }
}

/// Names one backend of a broker: the broker instance, the service and its version.
///
/// ```
/// use spawn_gate::{BackendKey, BrokerInstanceKey};
///
/// let key = BackendKey::new(BrokerInstanceKey::Shared, "build-cache", "1.11.20");
/// assert_eq!(key.service_name, "build-cache");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct BackendKey {
    /// The broker instance that owns the backend.
    pub instance: BrokerInstanceKey,
    /// The service's name.
    pub service_name: String,
    /// The service's version.
    pub service_version: String,
}

impl BackendKey {
    /// Creates a key.
    pub fn new(
        instance: BrokerInstanceKey,
        service_name: impl Into<String>,
        service_version: impl Into<String>,
    ) -> Self {
        Self {
            instance,
            service_name: service_name.into(),
            service_version: service_version.into(),
        }
    }
}

impl fmt::Display for BackendKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&key_label(self))
    }
}

impl GateKey for BackendKey {
    fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
        match &self.instance {
            BrokerInstanceKey::Shared => visit(SHARED.as_bytes()),
            named => visit(named.id().as_bytes()),
        }
        visit(self.service_name.as_bytes());
        visit(self.service_version.as_bytes());
    }
}

/// The file name of a key's spawn lock.
///
/// A readable part (up to 40 characters of the key's fields, lowercase, everything but `a-z`, `0-9` and `-` replaced by
/// `_`), then the SHA-256 of the exact fields, then `.lock`; 110 bytes at most. So the name is one path component on every
/// platform, whatever the key contains; two keys never share a name, also on file systems that ignore case or normalize
/// Unicode; and it is never a device name of Windows. The shortest limit known from practice is 143 bytes, on an encrypted home
/// directory.
///
/// ```
/// use spawn_gate::lock::LockName;
///
/// let upper = LockName::new(&"Cache/1.0");
/// let lower = LockName::new(&"cache/1.0");
/// assert!(upper.as_str().starts_with("cache_1_0-"));
/// assert_ne!(upper, lower);
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct LockName(String);

/// Length of the readable part of a lock's file name.
const READABLE_CHARS: usize = 40;

impl LockName {
    /// Returns the name for `key`; the same key always gives the same name, in every process and version.
    pub fn new<K: GateKey>(key: &K) -> Self {
        // As bytes, all of them ASCII.
        let mut name = Vec::with_capacity(READABLE_CHARS + 70);
        let mut hash = Sha256::new();
        key.fields(&mut |field| {
            // The length goes first: ("ab", "c") and ("a", "bc") are different keys.
            hash.update((field.len() as u64).to_le_bytes());
            hash.update(field);
            if !name.is_empty() {
                name.push(b'-');
            }
            for byte in field.iter().take(READABLE_CHARS) {
                name.push(match byte.to_ascii_lowercase() {
                    plain @ (b'a'..=b'z' | b'0'..=b'9') => plain,
                    b'-' if !name.is_empty() => b'-',
                    _ => b'_',
                });
            }
            name.truncate(READABLE_CHARS);
        });
        if name.is_empty() {
            name.push(b'_');
        }
        name.push(b'-');
        name.extend_from_slice(&hex::<64>(&hash.finalize()));
        name.extend_from_slice(b".lock");
        Self(String::from_utf8_lossy(&name).into_owned())
    }

    /// Returns the file name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LockName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Characters of each field in a key's label.
const LABEL_CHARS: usize = 60;

/// Returns the key as text for messages: its fields joined by `/`, control characters escaped, long fields cut.
pub(crate) fn key_label<K: GateKey>(key: &K) -> String {
    let mut label = String::new();
    let mut first = true;
    key.fields(&mut |field| {
        if !std::mem::take(&mut first) {
            label.push('/');
        }
        let shown = &field[..field.len().min(4 * LABEL_CHARS)];
        let text = String::from_utf8_lossy(shown);
        let mut chars = text.chars();
        label.extend(
            chars
                .by_ref()
                .take(LABEL_CHARS)
                .flat_map(char::escape_debug),
        );
        if chars.next().is_some() || shown.len() < field.len() {
            label.push('…');
        }
    });
    label
}
