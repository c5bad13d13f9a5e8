//! The texts of the scenarios' verdicts.

use std::fmt::Display;

use spawn_gate::BoxError;

use crate::cast::Tally;
use crate::client::Answer;
use crate::protocol::{BackendId, Refusal};
use crate::report::Check;

pub(super) fn refusal(answer: Answer) -> Result<Refusal, BoxError> {
    match answer {
        Answer::Refused(refusal) => Ok(refusal),
        Answer::Backend(backend, _) => Err(format!("not refused, but got {backend}").into()),
    }
}

pub(super) fn with_code(refusals: &[Refusal], code: &str) -> usize {
    refusals.iter().filter(|it| it.code == code).count()
}

pub(super) fn processes(count: usize) -> String {
    match count {
        1 => "1 process".to_owned(),
        _ => format!("{count} processes"),
    }
}

pub(super) fn fencing_tokens(started: &[BackendId]) -> String {
    let numbers: Vec<_> = started.iter().map(|it| it.launch.to_string()).collect();
    numbers.join(" < ")
}

/// Every client has an answer, and from one of these backends.
pub(super) fn all_answered(clients: usize, tally: &Tally, backends: &[BackendId]) -> Check {
    let known = tally.answers.iter().filter(|it| backends.contains(it));
    let expected = format!("{clients} answers from it");
    Check::same(&expected, format_args!("{} answers from it", known.count()))
}

/// The answer is from this backend.
pub(super) fn from_backend(
    expected: impl Display,
    answer: &Answer,
    backend: Option<&BackendId>,
) -> Check {
    let expected = expected.to_string();
    let seen = match answer {
        Answer::Backend(id, _) if Some(id) == backend => expected.clone(),
        Answer::Backend(id, _) => format!("an answer from {id}"),
        Answer::Refused(refusal) => refusal.to_string(),
    };
    Check::same(expected, seen)
}
