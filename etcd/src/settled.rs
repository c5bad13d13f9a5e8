//! Whether a lock is still held, or was released with its last record.

use spawn_gate::admin::Ledger;

use crate::error::EtcdError;
use crate::record::Record;
use crate::state::KeyState;

/// The record that was sent with the release.
#[derive(Clone)]
pub(crate) struct Last {
    pub(crate) text: Vec<u8>,
    /// It tells that the launch of this lock has succeeded.
    pub(crate) is_success: bool,
    /// The mod revision of the record before it.
    pub(crate) after: i64,
}

/// Whether the lock is the one with this token.
pub(crate) fn is_held(state: &KeyState, token: i64) -> bool {
    let lock = state.lock.as_ref();
    lock.is_some_and(|lock| lock.create_revision == token)
}

/// Whether the last record was written, and with it the lock of this token was released. Another holder may have kept it in a record
/// of its own since.
pub(crate) fn is_settled(state: &KeyState, token: i64, last: Option<&Last>) -> bool {
    let (Some(last), Some(record)) = (last, &state.record) else {
        return false;
    };
    if record.mod_revision <= last.after {
        return false;
    }
    let kept = || Record::parse(record).ok()?.into_ledger();
    record.value == last.text
        || (last.is_success && kept().is_some_and(|kept| is_success(&kept, token.cast_unsigned())))
}

/// Whether the ledger tells that this launch was the last one and has succeeded.
pub(crate) fn is_success(ledger: &Ledger, token: u64) -> bool {
    let last = ledger.last_outcome();
    last.is_some_and(|last| last.launch == token && last.failure.is_none())
}

pub(crate) fn gone(state: &KeyState) -> EtcdError {
    EtcdError::LeaseGone {
        lease: state.lock.as_ref().map_or(0, |lock| lock.lease),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::record::record_text;
    use crate::wire::KeyValue;

    const TOKEN: i64 = 7;

    const SUCCESS: &str = "outcome TOKEN launched 1795548340.220\n";

    fn ledger(outcome: &str) -> Ledger {
        format!("launch {TOKEN}\n{outcome}").parse().unwrap()
    }

    fn state(text: Vec<u8>, mod_revision: i64) -> KeyState {
        let mut state = KeyState::default();
        state.record = Some(KeyValue {
            value: text,
            mod_revision,
            ..KeyValue::default()
        });
        state
    }

    #[test]
    fn only_a_record_that_was_written_after_the_one_before_it_settles() {
        let last = Last {
            text: record_text(Duration::ZERO, &ledger("")),
            is_success: false,
            after: 20,
        };
        let is_settled = |at| is_settled(&state(last.text.clone(), at), TOKEN, Some(&last));
        assert!(is_settled(21));
        assert!(!is_settled(20));
        let other = state(record_text(Duration::ZERO, &ledger("charged 7\n")), 21);
        assert!(!super::is_settled(&other, TOKEN, Some(&last)));
        assert!(!super::is_settled(&other, TOKEN, None));
    }

    #[test]
    fn a_success_that_the_next_holder_has_kept_is_settled() {
        let with_success = SUCCESS.replace("TOKEN", "7");
        let last = Last {
            text: record_text(Duration::ZERO, &ledger(&with_success)),
            is_success: true,
            after: 20,
        };
        assert!(is_success(&ledger(&with_success), 7));
        let kept: Ledger = format!("launch 9\n{with_success}").parse().unwrap();
        let kept = state(record_text(Duration::from_secs(3), &kept), 25);
        assert!(is_settled(&kept, TOKEN, Some(&last)));
        let of_another = format!("launch 9\n{}", SUCCESS.replace("TOKEN", "9"));
        let of_another = state(
            record_text(Duration::ZERO, &of_another.parse().unwrap()),
            25,
        );
        assert!(!is_settled(&of_another, TOKEN, Some(&last)));
    }
}
