//! The lease of one lock: granted, renewed until it is dropped, then revoked; and its loss.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use crate::attached::{Attached, Unconfirmed};
use crate::core::Core;
use crate::error::EtcdError;
use crate::grant::{Granted, grant};
use crate::wire::{KEEP_ALIVE, LeaseKeepAliveRequest, LeaseKeepAliveResponse};

/// A lease that is renewed. Dropping it revokes it, and with it deletes the lock that is attached to it.
pub(crate) struct RenewedLease {
    pub(crate) id: i64,
    /// How long it holds without a renewal.
    pub(crate) expires_in: Duration,
    state: watch::Receiver<State>,
    /// Something may be attached to it.
    is_needed: bool,
    /// A request to attach a lock to it may still be on its way.
    is_doubtful: bool,
    attached: Arc<Attached>,
    /// The end of the renewals.
    renewals: AbortHandle,
    core: Arc<Core>,
}

/// Until when it holds, by this process's clock; or why it does not.
#[derive(Clone, Debug)]
enum State {
    Until(Instant),
    Lost(Option<EtcdError>),
}

impl RenewedLease {
    /// Grants a lease. If the future is dropped, the lease is revoked.
    pub(crate) async fn grant(core: &Arc<Core>, deadline: Instant) -> Result<Self, EtcdError> {
        let unowned = Granted::new(core);
        let began = Instant::now();
        let granted = grant(core, unowned.id, core.config.expires_in, deadline).await?;
        // By the time of sending: the lease cannot end before that.
        let until = began + granted;
        let (sender, state) = watch::channel(State::Until(until));
        let id = unowned.keep();
        let attached = Arc::<Attached>::default();
        let renewing = renew(Arc::clone(core), id, granted, Arc::clone(&attached), sender);
        Ok(Self {
            id,
            expires_in: granted,
            state,
            is_needed: true,
            is_doubtful: false,
            attached,
            renewals: tokio::spawn(renewing).abort_handle(),
            core: Arc::clone(core),
        })
    }

    /// Ends the renewals of a lease that nothing is attached to any more, so that it expires by itself. A doubtful one is revoked.
    pub(crate) fn let_expire(mut self) {
        self.is_needed = self.is_doubtful;
    }

    /// A request to attach a lock to it was sent more than once, so one may arrive after the lock is released.
    pub(crate) fn doubt(&mut self) {
        self.is_doubtful = true;
    }

    /// The renewals up to now, for [`attach`](Self::attach).
    pub(crate) fn unconfirmed(&self) -> Unconfirmed {
        self.attached.unconfirmed()
    }

    /// Notes that the lock with this create revision is attached to it. `before`: the renewals before the request that created the
    /// lock; `term`: the term that it was answered in. Returns whether they are confirmed by that.
    pub(crate) fn attach(&self, lock: Vec<u8>, token: i64, before: Unconfirmed, term: u64) -> bool {
        let now = self.attached.unconfirmed();
        let _ = self.attached.lock.set((lock, token));
        now.count == 0 || (now == before && now.term == term)
    }

    /// The lock is about to be deleted by its holder. From now on, that it is gone is no loss.
    pub(crate) fn is_about_to_be_released(&self) {
        self.attached.is_releasing.store(true, Ordering::SeqCst);
    }

    /// The time that it holds for without another renewal; `Err` if it is lost.
    pub(crate) fn left(&self) -> Result<Duration, Option<EtcdError>> {
        match &*self.state.borrow() {
            State::Until(until) => match until.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => Ok(left),
                _ => Err(None),
            },
            State::Lost(error) => Err(error.clone()),
        }
    }

    /// Waits until it is lost. Holds no borrow of this.
    pub(crate) fn lost(&self) -> impl Future<Output = Option<EtcdError>> + Send + use<> {
        let mut state = self.state.clone();
        async move {
            let lost = state
                .wait_for(|state| matches!(state, State::Lost(_)))
                .await;
            match lost.as_deref() {
                Ok(State::Lost(error)) => error.clone(),
                // The thread has ended, so nobody renews it.
                _ => None,
            }
        }
    }
}

impl Drop for RenewedLease {
    fn drop(&mut self) {
        self.renewals.abort();
        // Even if it is lost: perhaps only the lock is.
        if self.is_needed {
            self.core.revoke(self.id);
        }
    }
}

/// Renews a lease each third of its time, until it is lost: refused, or not answered for as long as it holds by this process's
/// clock, less a margin for the flight to end in.
async fn renew(
    core: Arc<Core>,
    id: i64,
    granted: Duration,
    attached: Arc<Attached>,
    state: watch::Sender<State>,
) {
    let margin = granted / 16;
    loop {
        let State::Until(until) = *state.borrow() else {
            return;
        };
        let end = until - margin;
        let renewing = async {
            sleep_until(until - granted + granted / 3).await;
            renew_until(&core, id, &attached, end).await
        };
        let next = tokio::select! {
            // First: a process that was stopped for longer finds all of these at once.
            biased;
            () = sleep_until(end) => State::Lost(None),
            renewed = renewing => match renewed {
                Ok(until) => State::Until(until),
                Err(error) => State::Lost(Some(error)),
            },
        };
        state.send_replace(next);
    }
}

/// Returns until when the renewed lease holds. Tries again until that is answered and confirmed, or the time is over.
async fn renew_until(
    core: &Core,
    id: i64,
    attached: &Attached,
    end: Instant,
) -> Result<Instant, EtcdError> {
    loop {
        let began = Mutex::new(Instant::now());
        let answer = core
            .renewals
            .ask(end, async |endpoint| {
                *began.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
                let request = tokio_stream::once(LeaseKeepAliveRequest { id });
                let mut answers = endpoint.stream(KEEP_ALIVE, request).await?;
                let answer = answers.message().await;
                let answer = answer.map_err(|status| endpoint.stream_failed(&status))?;
                let answer: LeaseKeepAliveResponse =
                    answer.ok_or_else(|| endpoint.said_nothing())?;
                core.renewals.check(&endpoint, answer.header.as_ref())?;
                Ok(answer)
            })
            .await;
        let began = *began.lock().unwrap_or_else(PoisonError::into_inner);
        match answer {
            Ok(answer) if answer.ttl > 0 => {
                let term = answer.header.map_or(0, |header| header.raft_term);
                if attached.confirms(core, id, term, end).await? {
                    return Ok(began + Duration::from_secs(answer.ttl.cast_unsigned()));
                }
            }
            Ok(_) => return Err(EtcdError::LeaseGone { lease: id }),
            Err(EtcdError::LeaseGone { .. }) => return Err(EtcdError::LeaseGone { lease: id }),
            // What somebody must fix may be fixed before the lease expires.
            Err(_) => {}
        }
        sleep_until(Instant::now() + core.config.call_timeout / 4).await;
    }
}
