//! A flight in progress: its stages, and what ends it.

use std::sync::Arc;
use std::task::Waker;

use tokio::time::Instant;

use super::outcome::{OutcomeReceiver, OutcomeSender};
use crate::error::{GateError, Stage};
use crate::lock::LockHolder;

/// A flight in progress, with its stages:
///
/// ```text
/// Discover ⇄ Lock ──→ Launch        each may end: launched, discovered, failed, leader gone
/// ```
///
/// `F` is the flight as others refer to it.
#[derive(Debug)]
pub(super) struct InProgress<F, T> {
    pub(super) stage: Stage,
    pub(super) began: Instant,
    /// The attempt's number for snapshots. In a ledger it differs from that in this process's count.
    pub(super) attempt_number: Option<u32>,
    pub(super) waiting_for: Option<Arc<LockHolder>>,
    /// Whether the leader's caller is waiting for the leader's task.
    pub(super) has_asker: bool,
    /// A caller holds the permit, so no task can end the flight.
    pub(super) is_with_caller: bool,
    /// The error to end the flight with, and the task to wake for it.
    pub(super) interrupt: Option<GateError>,
    pub(super) leader: Option<Waker>,
    /// Created for the first follower.
    pub(super) followers: Option<OutcomeSender<F, T>>,
}

impl<F, T> InProgress<F, T> {
    /// `has_asker`: a task leads, and the caller waits for that.
    pub(super) fn new(has_asker: bool, now: Instant) -> Box<Self> {
        Box::new(Self {
            stage: Stage::Lock,
            began: now,
            attempt_number: None,
            waiting_for: None,
            has_asker,
            is_with_caller: false,
            interrupt: None,
            leader: None,
            followers: None,
        })
    }

    pub(super) fn follow(&mut self, flight: impl FnOnce() -> F) -> OutcomeReceiver<F, T> {
        self.followers
            .get_or_insert_with(|| OutcomeSender::new(flight()))
            .subscribe()
    }

    pub(super) fn begin_launch(&mut self) -> Option<GateError> {
        if self.interrupt.is_none() {
            self.stage = Stage::Launch;
            self.waiting_for = None;
        }
        self.interrupt.clone()
    }

    pub(super) fn hand_to_caller(&mut self) -> Option<GateError> {
        self.is_with_caller = self.interrupt.is_none();
        self.interrupt.clone()
    }

    pub(super) fn waiting(&self) -> usize {
        self.followers() + usize::from(self.has_asker)
    }

    pub(super) fn followers(&self) -> usize {
        self.followers.as_ref().map_or(0, OutcomeSender::count)
    }
}
