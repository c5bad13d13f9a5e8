//! The charged attempts, in a fixed or a sliding window. Pure: `now` is passed in.

use std::iter::repeat_n;
use std::time::Duration;

use super::clock::TimePoint;
use super::policy::{BudgetPolicy, WindowKind};

/// The charges that still count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Charges<I> {
    None,
    /// A count in one window.
    Fixed {
        window_began: I,
        used: u32,
    },
    /// The time of each, oldest first.
    Sliding(Box<[I]>),
}

impl<I> Charges<I> {
    /// The number of charges, aged or not.
    pub(crate) fn used(&self) -> u32 {
        match self {
            Self::None => 0,
            Self::Fixed { used, .. } => *used,
            Self::Sliding(times) => u32::try_from(times.len()).unwrap_or(u32::MAX),
        }
    }

    /// When they were made, oldest first; for a fixed window, when that began.
    pub(crate) fn times(&self) -> &[I] {
        match self {
            Self::None => &[],
            Self::Fixed { window_began, .. } => std::slice::from_ref(window_began),
            Self::Sliding(times) => times,
        }
    }

    pub(crate) fn times_mut(&mut self) -> &mut [I] {
        match self {
            Self::None => &mut [],
            Self::Fixed { window_began, .. } => std::slice::from_mut(window_began),
            Self::Sliding(times) => times,
        }
    }
}

impl<I: TimePoint> Charges<I> {
    /// The maximum of charges, all at `now`.
    pub(crate) fn all_at(policy: &BudgetPolicy, now: I) -> Self {
        let all = Self::Fixed {
            window_began: now,
            used: policy.config.max_attempts,
        };
        all.of_kind(policy)
    }

    /// The same charges by another clock.
    pub(crate) fn by_clock<J>(&self, convert: impl Fn(I) -> J) -> Charges<J> {
        match self {
            Self::None => Charges::None,
            Self::Fixed { window_began, used } => Charges::Fixed {
                window_began: convert(*window_began),
                used: *used,
            },
            Self::Sliding(times) => Charges::Sliding(times.iter().copied().map(convert).collect()),
        }
    }

    /// The number of charges that have not aged at `now`.
    pub(crate) fn used_at(&self, policy: &BudgetPolicy, now: I) -> u32 {
        let window = policy.config.window;
        match self {
            Self::Fixed { window_began, .. } if now.since(*window_began) >= window => 0,
            Self::Sliding(times) => {
                let counting = times.iter().filter(|&&at| now.since(at) < window).count();
                u32::try_from(counting).unwrap_or(u32::MAX)
            }
            _ => self.used(),
        }
    }

    pub(crate) fn forget_aged(&mut self, policy: &BudgetPolicy, now: I) {
        if matches!(self, Self::None) {
            return;
        }
        if self.used_at(policy, now) == 0 {
            *self = Self::None;
        } else if let Self::Sliding(times) = self {
            let counts = |at: &I| now.since(*at) < policy.config.window;
            if !times.iter().all(counts) {
                *times = times.iter().copied().filter(counts).collect();
            }
        }
    }

    /// Time until an attempt is free; `None` if one is free now. Correct only after [`forget_aged`](Self::forget_aged), or while
    /// the maximum of charges has not aged.
    pub(crate) fn retry_after(&self, policy: &BudgetPolicy, now: I) -> Option<Duration> {
        let max = policy.config.max_attempts;
        if self.used() < max {
            return None;
        }
        let freed_by = match self {
            Self::None => return None,
            Self::Fixed { window_began, .. } => *window_began,
            // An attempt is free once the oldest of the newest `max` charges has aged.
            Self::Sliding(times) => times[times.len() - max as usize],
        };
        Some(policy.config.window.saturating_sub(now.since(freed_by)))
    }

    pub(crate) fn push(&mut self, policy: &BudgetPolicy, now: I) {
        let so_far = std::mem::replace(self, Self::None);
        *self = match (so_far.of_kind(policy), policy.kind) {
            (Self::Fixed { window_began, used }, _) => Self::Fixed {
                window_began,
                used: used.saturating_add(1),
            },
            (Self::Sliding(times), _) => {
                Self::Sliding(times.iter().copied().chain([now]).collect())
            }
            (Self::None, WindowKind::Fixed) => Self::Fixed {
                window_began: now,
                used: 1,
            },
            (Self::None, WindowKind::Sliding) => Self::Sliding(Box::new([now])),
        };
    }

    /// Converts them to this policy's kind of window: a process with another policy may have made them.
    fn of_kind(self, policy: &BudgetPolicy) -> Self {
        match (self, policy.kind) {
            (Self::Fixed { window_began, used }, WindowKind::Sliding) => {
                let used = used.min(policy.config.max_attempts);
                Self::Sliding(repeat_n(window_began, used as usize).collect())
            }
            (Self::Sliding(times), WindowKind::Fixed) => match times.first() {
                Some(&window_began) => Self::Fixed {
                    window_began,
                    used: u32::try_from(times.len()).unwrap_or(u32::MAX),
                },
                None => Self::None,
            },
            (same, _) => same,
        }
    }

    pub(crate) fn take_back_newest(&mut self) {
        self.take_back(0);
    }

    /// Takes back the charge before the `newer` newest ones, unless it has aged out.
    pub(crate) fn take_back(&mut self, newer: usize) {
        match self {
            Self::None => {}
            Self::Fixed { used, .. } if *used as usize > newer => *used -= 1,
            Self::Fixed { .. } => {}
            Self::Sliding(times) => {
                let mut left = times.to_vec();
                if let Some(taken) = left.len().checked_sub(newer + 1) {
                    left.remove(taken);
                }
                *times = left.into();
            }
        }
        if self.used() == 0 {
            *self = Self::None;
        }
    }
}
