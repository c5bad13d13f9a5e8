//! A key that runs a test's code when the gate compares, clones, drops or names it.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use spawn_gate::GateKey;

#[derive(Clone)]
pub(crate) struct Key {
    name: &'static str,
    hook: Hook,
}

/// When a key runs its hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum On {
    Compare,
    Clone,
    Drop,
    Name,
}

struct Hook(Option<Arc<dyn Fn(On) + Send + Sync>>);

impl Hook {
    fn run(&self, on: On) {
        if let Some(hook) = &self.0 {
            hook(on);
        }
    }
}

/// Makes a key that runs nothing.
pub(crate) fn key(name: &'static str) -> Key {
    let hook = Hook(None);
    Key { name, hook }
}

impl Key {
    pub(crate) fn hooked(
        name: &'static str,
        on: On,
        hook: impl Fn() + Send + Sync + 'static,
    ) -> Self {
        let hook = move |now| {
            if now == on {
                hook();
            }
        };
        let hook = Hook(Some(Arc::new(hook)));
        Self { name, hook }
    }
}

impl Clone for Hook {
    fn clone(&self) -> Self {
        self.run(On::Clone);
        Self(self.0.clone())
    }
}

impl Drop for Hook {
    fn drop(&mut self) {
        self.run(On::Drop);
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hook.run(On::Compare);
        other.hook.run(On::Compare);
        self.name == other.name
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl GateKey for Key {
    fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
        self.hook.run(On::Name);
        visit(self.name.as_bytes());
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}
