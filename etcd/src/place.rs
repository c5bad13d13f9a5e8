//! The lease that a record is attached to, and the record's place on its time line.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::core::Core;
use crate::error::EtcdError;
use crate::grant::RecordLease;
use crate::wire::KeyValue;

/// Where the record is on the time line of its lease.
#[derive(Clone, Copy)]
pub(crate) struct Place {
    pub(crate) lease: i64,
    position: Duration,
    at: Instant,
}

impl Place {
    /// The age of the lease.
    pub(crate) fn now(&self) -> Duration {
        self.position + self.at.elapsed()
    }
}

/// The places of a record while its lock is held. The record moves to a lease of its own with the first charge, so that the age of
/// the charge is exact; otherwise it stays, so that the age of older charges is not rounded anew.
#[derive(Default)]
pub(crate) struct Places {
    /// The lease of the record that was found or written last.
    place: Option<Place>,
    /// The lease for the record with the next charge.
    fresh: Option<RecordLease>,
    /// The lease that the record is about to leave.
    leaving: Option<i64>,
    /// The lease that the record has left, so nothing is attached to it.
    left_behind: Option<i64>,
    /// The lease of `place`, if it was granted for this holder: the record may be attached to it, or not.
    own: Option<i64>,
}

impl Places {
    /// `fresh`: the lease for the record with a charge.
    pub(crate) fn new(fresh: RecordLease) -> Self {
        Self {
            fresh: Some(fresh),
            ..Self::default()
        }
    }

    /// The record was found on this lease, which has this age.
    pub(crate) fn found(&mut self, lease: i64, position: Duration) {
        if lease != 0 {
            self.place = Some(Place {
                lease,
                position,
                at: Instant::now(),
            });
        }
    }

    /// The next record gets a new lease in any case.
    pub(crate) fn leave(&mut self) {
        self.leaving = self.place.take().map(|place| place.lease);
    }

    /// The lease of the record is gone.
    pub(crate) fn forget(&mut self) {
        self.place = None;
        self.own = None;
    }

    /// The record was written at its next place.
    pub(crate) fn moved(&mut self) {
        self.left_behind = self.leaving.take().or(self.left_behind);
    }

    /// Revokes the lease that the record has left. Nothing is attached to it; nothing must be taken back from now on.
    pub(crate) fn revoke_left_behind(&mut self, core: &Arc<Core>) {
        if let Some(left_behind) = self.left_behind.take() {
            core.revoke(left_behind);
        }
    }

    /// Revokes the lease that was granted for this holder's record, unless the record that was found is attached to it. This holder
    /// writes nothing more.
    pub(crate) fn revoke_unused(&mut self, core: &Arc<Core>, found: Option<&KeyValue>) {
        let used = found.map_or(0, |found| found.lease);
        if let Some(own) = self.own.take().filter(|&own| own != used) {
            core.revoke(own);
        }
    }

    /// The place for the next record.
    pub(crate) async fn next(
        &mut self,
        core: &Arc<Core>,
        is_charged: bool,
        deadline: Instant,
    ) -> Result<Place, EtcdError> {
        let is_old = |place: &Place| place.now() > core.config.kept_for / 2;
        let moves = (self.fresh.is_some() && is_charged) || self.place.as_ref().is_some_and(is_old);
        if let Some(place) = self.place.filter(|_| !moves) {
            return Ok(place);
        }
        let lease = match self.fresh.take() {
            Some(lease) => lease,
            None => RecordLease::grant(core, deadline).await?,
        };
        self.leaving = self.place.map(|place| place.lease).or(self.leaving);
        let at = lease.began;
        let lease = lease.into_id();
        self.own = Some(lease);
        // By the time when the grant was sent, so that the record never seems older than it is.
        Ok(*self.place.insert(Place {
            position: Duration::ZERO,
            at,
            lease,
        }))
    }
}
