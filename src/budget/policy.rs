//! How a budget behaves: how many attempts in which time, how they age out, and when a success resets it.

use std::time::Duration;

/// Attempts that a key has in one window unless configured otherwise.
pub const DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW: u32 = 3;

/// Length of the budget's window unless configured otherwise.
pub const DEFAULT_SPAWN_BUDGET_WINDOW: Duration = Duration::from_secs(30);

/// How many attempts a key has, and in which time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SpawnBudgetConfig {
    /// Most attempts in one window. Zero counts as 1.
    pub max_attempts: u32,
    /// Length of the window. Zero counts as one millisecond.
    pub window: Duration,
}

impl SpawnBudgetConfig {
    /// Creates a configuration; zero attempts become 1, a zero window becomes one millisecond.
    ///
    /// ```
    /// use std::time::Duration;
    /// use spawn_gate::SpawnBudgetConfig;
    ///
    /// let config = SpawnBudgetConfig::new(0, Duration::ZERO);
    /// assert_eq!((config.max_attempts, config.window), (1, Duration::from_millis(1)));
    /// ```
    pub fn new(max_attempts: u32, window: Duration) -> Self {
        Self {
            max_attempts: max_attempts.max(1),
            window: if window.is_zero() {
                Duration::from_millis(1)
            } else {
                window
            },
        }
    }
}

impl Default for SpawnBudgetConfig {
    /// Returns 3 attempts in 30 seconds.
    fn default() -> Self {
        Self::new(
            DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW,
            DEFAULT_SPAWN_BUDGET_WINDOW,
        )
    }
}

/// How attempts age out of the budget.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub enum WindowKind {
    /// A window opens with the first attempt and is forgotten as a whole when it ends. Cheap, but across the edge between
    /// two windows it can let through twice the maximum.
    #[default]
    Fixed,
    /// Each attempt ages out by itself, one window after it was charged: never more than the maximum in any span of that
    /// length.
    Sliding,
}

/// All that decides how a key's budget behaves.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BudgetPolicy {
    pub(crate) config: SpawnBudgetConfig,
    pub(crate) kind: WindowKind,
    /// A success resets the budget only after this long; `None`: at once.
    pub(crate) stable_after: Option<Duration>,
    /// The count that decides is a ledger's, which other processes change too.
    pub(crate) is_in_ledger: bool,
}
