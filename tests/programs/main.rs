//! The module `process` with programs that know nothing of it, unmodified, from Debian's packages: redis-server, postgres, etcd
//! and Python's `http.server`.
//!
//! This test binary starts itself again as the callers. A program that is not installed is skipped, which `--nocapture` shows;
//! with `REQUIRE_PROGRAMS=1` that is a failure.
#![cfg(all(target_os = "linux", feature = "process"))]

mod caller;
mod data;
mod postgres;
mod program;
mod promises;
mod request;
mod scene;

/// Makes a test of each promise for each program.
macro_rules! promises {
    ($($program:ident keeps $($promise:ident),+;)+) => {$(
        mod $program {
            $(
                #[tokio::test]
                async fn $promise() {
                    crate::promises::$promise(&crate::program::$program()).await;
                }
            )+
        }
    )+};
}

promises! {
    redis_by_notify keeps
        twenty_processes_at_once_start_one_and_each_uses_it,
        after_kill_9_the_next_call_starts_another,
        stop_ends_it_and_says_so,
        a_taken_port_is_a_failure_in_its_own_words;
    redis_by_tcp keeps
        twenty_processes_at_once_start_one_and_each_uses_it,
        after_kill_9_the_next_call_starts_another,
        stop_ends_it_and_says_so,
        a_taken_port_is_a_failure_in_its_own_words;
    // It takes over the path of its socket from whoever has it, so that cannot be taken.
    redis_by_unix_socket keeps
        twenty_processes_at_once_start_one_and_each_uses_it,
        after_kill_9_the_next_call_starts_another,
        stop_ends_it_and_says_so;
    postgres_by_line keeps
        twenty_processes_at_once_start_one_and_each_uses_it,
        after_kill_9_the_next_call_starts_another,
        stop_ends_it_and_says_so,
        a_taken_port_is_a_failure_in_its_own_words;
    etcd_by_probe keeps
        twenty_processes_at_once_start_one_and_each_uses_it,
        after_kill_9_the_next_call_starts_another,
        stop_ends_it_and_says_so,
        a_taken_port_is_a_failure_in_its_own_words;
    http_server_by_tcp keeps
        twenty_processes_at_once_start_one_and_each_uses_it,
        after_kill_9_the_next_call_starts_another,
        stop_ends_it_and_says_so,
        a_taken_port_is_a_failure_in_its_own_words;
}

/// Does nothing when the tests are run; a child that is started with a role in its environment plays it here.
#[test]
fn role() {
    caller::play_if_asked();
}
