//! The ledger as a record in a lock file (promises 24 and 33): versions, size, fencing tokens, and the text for people.

use std::fs;
use std::time::Duration;

use sha2::{Digest, Sha256};
use spawn_gate::admin::{BackendEnd, Ledger, LedgerReading, inspect_spawn_lock};
use spawn_gate::budget::{SharedClock, WindowKind};
use spawn_gate::error::LockError;
use spawn_gate::{FileSpawnLock, GateError, SpawnBudgetConfig, SpawnLockError, acquire_spawn_lock};

use super::{Gate, KEY, WINDOW, builder, gate, lock_path};
use crate::support::lock_file::read_held;
use crate::support::step_clock::StepClock;
use crate::support::{fail_once, lead};

#[tokio::test]
async fn a_few_bytes_of_something_else_are_not_taken_for_a_new_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = lock_path(directory.path());
    drop(acquire_spawn_lock(&path).unwrap());
    for len in 1..=128 {
        fs::write(&path, vec![b'x'; len]).unwrap();
        let report = inspect_spawn_lock(&path).unwrap();
        assert_eq!(report.ledger, LedgerReading::Unreadable, "{len} bytes");
        let refused = gate(directory.path(), &StepClock::new()).acquire(KEY).await;
        assert!(
            matches!(refused, Err(GateError::BudgetExhausted(_))),
            "{len} bytes: {refused:?}"
        );
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_rewritten_as_a_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = lock_path(directory.path());
    drop(acquire_spawn_lock(&path).unwrap());
    fs::write(&path, [1; 128 + 2 * 1920]).unwrap();
    let refused = gate(directory.path(), &StepClock::new()).acquire(KEY).await;
    assert!(refused.is_err());
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.starts_with(b"spawn-gate: "));
    assert!(!bytes.contains(&1));
}

#[tokio::test]
async fn a_ledger_tells_how_many_attempts_were_charged_and_since_when() {
    for kind in [WindowKind::Fixed, WindowKind::Sliding] {
        let directory = tempfile::tempdir().unwrap();
        let clock = StepClock::new();
        let gate = builder(FileSpawnLock::new(directory.path()).unwrap(), &clock)
            .window_kind(kind)
            .build();
        let began = clock.now();
        for _ in 0..2 {
            fail_once(&gate, KEY).await;
            clock.advance(Duration::from_secs(5));
        }
        let report = inspect_spawn_lock(lock_path(directory.path())).unwrap();
        let LedgerReading::Found(ledger) = report.ledger else {
            panic!("{report:?}");
        };
        assert_eq!(ledger.attempts_charged(), 2);
        let oldest = ledger.oldest_attempt().unwrap();
        assert_eq!(oldest.unix.as_millis(), began.unix.as_millis(), "{kind:?}");
    }
    assert_eq!(Ledger::default().oldest_attempt(), None);
}

#[test]
fn a_time_without_all_its_milliseconds_is_no_time() {
    for time in ["1.5", "1.50", "1.5000", "1"] {
        let record = format!("window {time} 1\n").parse::<Ledger>();
        assert!(record.is_err(), "{time}: {record:?}");
    }
}

/// The text of this ledger after these reports.
fn after_ends(ledger: &str, ends: &[BackendEnd]) -> String {
    let mut ledger: Ledger = ledger.parse().unwrap();
    for end in ends {
        ledger.note_backend_end(end);
    }
    ledger.to_string()
}

#[test]
fn a_reported_end_counts_for_the_last_success_and_the_one_before_the_launch_in_progress_alone() {
    let failed = "launch 7\nwindow 1.000 2\ncharged 7 1.000\noutcome 7 failed 1.000 no\n";
    let launched =
        "launch 7\nwindow 1.000 2\nup-since 1.000\ncharged 7 1.000\noutcome 7 launched 1.000\n";
    let never_ended = "launch 7\nwindow 1.000 2\ncharged 7 1.000\n";
    let elder = format!("{launched}elder 5\n");
    for (ledger, launch) in [
        (failed, 7),
        (launched, 6),
        (never_ended, 7),
        (never_ended, 0),
        (&elder, 6),
    ] {
        let after = after_ends(ledger, &[BackendEnd::orderly(launch)]);
        assert_eq!(after, ledger, "the end of {launch}");
    }

    let newest =
        "launch 7\nwindow 1.000 1\ncharged 7 1.000\noutcome 7 launched 1.000\nended 7 orderly\n";
    let end = BackendEnd::orderly(7);
    assert_eq!(after_ends(launched, std::slice::from_ref(&end)), newest);
    assert_eq!(after_ends(launched, &[end.clone(), end]), newest);
    // The backend of the newest launch may be up, and become stable.
    let one_less = elder.replace("window 1.000 2", "window 1.000 1");
    assert_eq!(
        after_ends(&elder, &[BackendEnd::orderly(5)]),
        format!("{one_less}ended 5 orderly\n")
    );
}

#[tokio::test]
async fn a_ledger_of_a_newer_version_is_an_error_and_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = lock_path(directory.path());
    drop(acquire_spawn_lock(&path).unwrap());
    // SHA-256 of the version (4 bytes), the number (8 bytes), both little endian, and the lines after the first.
    let mut hash = Sha256::new();
    hash.update(2_u32.to_le_bytes());
    hash.update(5_u64.to_le_bytes());
    hash.update(b"as they write it then\nend\n");
    let sum: String = hash.finalize()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let record = format!("record 5 version 2 checksum {sum}\nas they write it then\nend\n");
    let contents = format!("{:128}{record:\0<3840}", "");
    fs::write(&path, &contents).unwrap();

    let error = gate(directory.path(), &StepClock::new())
        .acquire(KEY)
        .await
        .unwrap_err();
    let GateError::Lock(LockError { source, .. }) = &error else {
        panic!("{error:?}");
    };
    assert!(matches!(
        &**source,
        SpawnLockError::LedgerVersion { path: named, found: 2, supported: 1 } if *named == path
    ));
    assert!(!error.retry_helps());
    assert_eq!(fs::read_to_string(&path).unwrap(), contents);
}

#[tokio::test]
async fn without_a_ledger_each_process_counts_for_itself_and_nothing_is_written() {
    let directory = tempfile::tempdir().unwrap();
    let gate = || {
        Gate::builder(
            FileSpawnLock::new(directory.path())
                .unwrap()
                .without_ledger(),
        )
        .budget(SpawnBudgetConfig::new(1, WINDOW))
        .build()
    };
    let one = gate();
    fail_once(&one, KEY).await;
    assert!(one.acquire(KEY).await.is_err());
    let first = lead(&gate(), KEY).await;
    assert_eq!(first.attempt_number(), 1);
    let token = first.fencing_token();
    first.fail("again").await;
    assert!(lead(&gate(), KEY).await.fencing_token() > token);
    assert_eq!(fs::metadata(lock_path(directory.path())).unwrap().len(), 0);
}

#[tokio::test]
async fn the_lock_file_never_grows_and_no_other_file_appears() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let gate = gate(directory.path(), &clock);
    let mut sizes = Vec::new();
    for _ in 0..50 {
        lead(&gate, KEY).await.fail("m".repeat(100_000)).await;
        gate.reset(KEY).await.unwrap();
        sizes.push(fs::metadata(lock_path(directory.path())).unwrap().len());
    }
    sizes.dedup();
    assert_eq!(sizes.len(), 1);
    assert!(sizes[0] <= 4096);
    // The lock file and the one by which the directory was tried.
    assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 2);
}

#[tokio::test]
async fn the_fencing_token_grows_from_process_to_process_also_when_the_file_was_deleted_or_the_clock_set_back()
 {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let mut last = 0;
    for round in 0..20 {
        let gate = gate(directory.path(), &clock);
        let permit = lead(&gate, KEY).await;
        assert!(permit.fencing_token() > last, "round {round}");
        last = permit.fencing_token();
        permit.succeed(1).await.unwrap();
        if round % 5 == 4 {
            fs::remove_file(lock_path(directory.path())).unwrap();
        }
        clock.set(|now| now.unix -= Duration::from_secs(60));
    }
}

#[tokio::test]
async fn a_person_can_read_the_lock_file() {
    let directory = tempfile::tempdir().unwrap();
    let clock = StepClock::new();
    let gate = gate(directory.path(), &clock);
    fail_once(&gate, KEY).await;
    let held = lead(&gate, KEY).await;
    let text = String::from_utf8(read_held(&lock_path(directory.path()))).unwrap();
    let pid = std::process::id();
    let token = held.fencing_token();
    for line in [
        "window 1800000000.000/5000.000 2".to_owned(),
        format!("holder {pid} 1800000000.000/5000.000"),
        format!("launch {token}"),
        "failed 1800000000.000/5000.000 no such program".to_owned(),
    ] {
        assert!(text.contains(&line), "{line}\n{text}");
    }
    let report = inspect_spawn_lock(lock_path(directory.path())).unwrap();
    assert!(report.is_held);
    assert_eq!(report.holder().unwrap().pid, pid);
}
