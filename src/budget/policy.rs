//! The rules of a budget: limit and window, how attempts age out, and when a success resets it.

use std::time::Duration;

/// The default maximum of attempts per key and window.
pub const DEFAULT_SPAWN_ATTEMPTS_PER_WINDOW: u32 = 3;

/// The default length of the window.
pub const DEFAULT_SPAWN_BUDGET_WINDOW: Duration = Duration::from_secs(30);

/// The maximum of attempts per key, and the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct SpawnBudgetConfig {
    /// The maximum of attempts in one window. Zero counts as 1.
    pub max_attempts: u32,
    /// Length of the window. Zero counts as one millisecond.
    pub window: Duration,
}

impl SpawnBudgetConfig {
    /// Creates a configuration; zero attempts become 1, a zero window becomes one millisecond.
    ///
    /// ```
    /// use std::time::Duration;
    /// use spawn_gate::budget::SpawnBudgetConfig;
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
    /// A window opens with the first attempt and ends as a whole. Cheap, but it can let through twice the maximum across the edge
    /// between two windows.
    #[default]
    Fixed,
    /// Each attempt ages out by itself, one window after its charge: at most the maximum in any span of that length.
    Sliding,
}

/// All rules of a key's budget.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct BudgetPolicy {
    pub(crate) config: SpawnBudgetConfig,
    pub(crate) kind: WindowKind,
    /// Time after which a success resets the budget; `None`: at once.
    pub(crate) stable_after: Option<Duration>,
    /// The count is in a ledger, which other processes change too.
    pub(crate) is_in_ledger: bool,
}
