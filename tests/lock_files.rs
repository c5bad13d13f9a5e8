//! Bad files, directories and file systems at the lock's path (promises 15 and 18): each is a typed error that names the path.
//! And the bytes of a lock file (promises 22 and 33).

mod support;

use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use spawn_gate::admin::{Ledger, LedgerReading, inspect_spawn_lock};
use spawn_gate::lock::FileKind;
use spawn_gate::{FileSpawnLock, SpawnLockError, acquire_spawn_lock};
use tempfile::TempDir;

use crate::support::lock_file::{locks, read_held, read_lock_holder, take, write_private};

const KEY: &str = "indexer";

fn directory() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// Why the lock is refused.
#[track_caller]
fn refusal(path: impl AsRef<Path>) -> SpawnLockError {
    reads_well(acquire_spawn_lock(path).unwrap_err())
}

/// Why the directory is refused.
#[track_caller]
fn directory_refusal(directory: impl Into<PathBuf>) -> SpawnLockError {
    reads_well(FileSpawnLock::new(directory).unwrap_err())
}

/// Checks the message, and that a retry is not said to help, as long as nobody has mended anything.
#[track_caller]
fn reads_well(error: SpawnLockError) -> SpawnLockError {
    assert!(!error.retry_helps(), "{error}");
    message_reads_well(error)
}

/// Checks that the message begins in lowercase, names the path, ends without a full stop and leaves its source to speak for
/// itself.
#[track_caller]
fn message_reads_well(error: SpawnLockError) -> SpawnLockError {
    let message = error.to_string();
    assert!(
        message.starts_with(|first: char| first.is_ascii_lowercase()),
        "{message}"
    );
    assert!(
        message.contains(&named(&error).display().to_string()),
        "{message}"
    );
    assert!(!message.ends_with('.'), "{message}");
    if let Some(source) = error.source() {
        assert!(!message.contains(&source.to_string()), "{message}");
    }
    error
}

/// The path that the error names.
fn named(error: &SpawnLockError) -> &Path {
    match error {
        SpawnLockError::Open { path, .. }
        | SpawnLockError::NotARegularFile { path, .. }
        | SpawnLockError::NotADirectory { path }
        | SpawnLockError::DirectoryChanged { path, .. }
        | SpawnLockError::Unsafe { path, .. }
        | SpawnLockError::ReadOnlyFilesystem { path, .. }
        | SpawnLockError::NameTooLong { path, .. }
        | SpawnLockError::Ledger { path, .. }
        | SpawnLockError::LedgerVersion { path, .. } => path,
        other => panic!("not expected here: {other:?}"),
    }
}

#[track_caller]
fn is_open_error(error: &SpawnLockError, path: &Path, kind: io::ErrorKind) {
    let SpawnLockError::Open {
        path: named,
        source,
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!((&**named, source.kind()), (path, kind));
}

#[track_caller]
fn is_not_a_file(error: &SpawnLockError, path: &Path, kind: FileKind) {
    assert!(
        matches!(error, SpawnLockError::NotARegularFile { path: named, found } if named == path && *found == kind),
        "{error:?}"
    );
}

// What stands at the path.

#[test]
fn a_directory_at_the_path_is_no_lock_file() {
    let directory = directory();
    let path = directory.path().join("inner");
    fs::create_dir(&path).unwrap();
    is_not_a_file(&refusal(&path), &path, FileKind::Directory);
}

#[test]
fn a_lock_in_a_directory_that_is_not_there_is_refused_and_the_directory_named() {
    let directory = directory();
    let missing = directory.path().join("missing");
    let refused = refusal(missing.join("indexer.lock"));
    is_open_error(&refused, &missing, io::ErrorKind::NotFound);
    assert!(!missing.exists());
}

#[test]
fn a_lock_directory_that_is_a_file_is_refused_and_kept() {
    let directory = directory();
    let path = directory.path().join("locks");
    write_private(&path, b"not a directory");
    let refused = directory_refusal(&path);
    assert!(
        matches!(&refused, SpawnLockError::NotADirectory { path: named } if *named == path),
        "{refused:?}"
    );
    let inner = path.join("indexer.lock");
    for refused in [refusal(&inner), directory_refusal(&inner)] {
        assert!(
            matches!(&refused, SpawnLockError::NotADirectory { path: named } if *named == path),
            "{refused:?}"
        );
    }
    assert_eq!(fs::read(&path).unwrap(), b"not a directory");
}

#[test]
fn a_lock_directory_without_a_name_is_refused() {
    let refused = FileSpawnLock::new("").unwrap_err();
    is_open_error(&refused, Path::new(""), io::ErrorKind::InvalidInput);
    let source = refused.source().expect("the operating system is not asked");
    assert_eq!(source.to_string(), "the path is empty");
}

#[test]
fn a_lock_without_a_name_is_refused_in_words() {
    let refused = refusal("");
    assert_eq!(
        refused.to_string(),
        "cannot open an empty path for a spawn lock"
    );
}

#[test]
fn a_path_that_no_file_can_have_is_refused() {
    let directory = directory();
    let path = directory.path().join("in\0dexer.lock");
    is_open_error(&refusal(&path), &path, io::ErrorKind::InvalidInput);
    is_open_error(
        &directory_refusal(&path),
        &path,
        io::ErrorKind::InvalidInput,
    );
    let error = reads_well(read_lock_holder(&path).unwrap_err());
    is_open_error(&error, &path, io::ErrorKind::InvalidInput);
}

#[test]
fn a_name_longer_than_the_file_system_takes_is_named() {
    let directory = directory();
    let long = directory.path().join("x".repeat(300));
    let of_directory = refusal(long.join("indexer.lock"));
    for error in [refusal(&long), directory_refusal(&long), of_directory] {
        assert!(
            matches!(&error, SpawnLockError::NameTooLong { path, .. } if *path == long),
            "{error:?}"
        );
    }
}

#[test]
fn a_directory_that_serves_is_used_again_also_by_those_who_accept_any_file_system() {
    let directory = directory();
    let resolved = directory.path().canonicalize().unwrap();
    for _ in 0..2 {
        let locks = FileSpawnLock::new(directory.path()).unwrap();
        assert_eq!(locks.directory(), resolved);
    }
    FileSpawnLock::on_any_filesystem(directory.path()).unwrap();
}

#[test]
fn a_directory_whose_probe_file_is_held_serves_all_the_same() {
    let directory = directory();
    let _probing = acquire_spawn_lock(directory.path().join("probe.lock")).unwrap();
    FileSpawnLock::new(directory.path()).unwrap();
}

// What stands in the file.

/// Where the two slots for records begin, and how long each is. They are the same in all versions.
const SLOTS: [usize; 2] = [128, 128 + 1920];
const FILE_LEN: usize = 4096;

/// A record as this or another version writes it.
fn record(sequence: u64, version: u32, body: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(version.to_le_bytes());
    hash.update(sequence.to_le_bytes());
    hash.update(body);
    let sum: String = hash.finalize()[..16]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("record {sequence} version {version} checksum {sum}\n{body}")
}

/// A lock file with these two slots.
fn file_with(slots: [&str; 2]) -> Vec<u8> {
    let mut file = vec![0; FILE_LEN];
    for (slot, start) in slots.iter().zip(SLOTS) {
        file[start..start + slot.len()].copy_from_slice(slot.as_bytes());
    }
    file
}

/// A directory of locks where the lock file of [`KEY`] holds `content`.
fn locks_with(content: &[u8]) -> (TempDir, FileSpawnLock, PathBuf) {
    let (directory, locks) = locks();
    let path = locks.path_of(&KEY);
    write_private(&path, content);
    (directory, locks, path)
}

/// Takes and leaves the lock twice in a file that holds `content`, and checks that it works as one with a good record does.
async fn works_with(content: &[u8]) {
    let (_directory, locks, path) = locks_with(content);
    let longest = content.len().max(FILE_LEN) as u64;
    read_lock_holder(&path).unwrap();
    let mut last = 0;
    for _ in 0..2 {
        let held = take(&locks, KEY).await.unwrap();
        assert!(held.fencing_token() > last);
        last = held.fencing_token();
        let holder = read_lock_holder(&path).unwrap().unwrap();
        assert_eq!(holder.pid, std::process::id());
        assert!(matches!(
            take(&locks, KEY).await,
            Err(SpawnLockError::AlreadyLocked { .. })
        ));
        drop(held);
        assert_eq!(read_lock_holder(&path).unwrap(), None);
    }
    assert!(path.metadata().unwrap().len() <= longest, "it grew");
}

/// Bytes that look random and are the same in each run.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 1_u32;
    std::iter::repeat_with(|| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    })
    .take(len)
    .collect()
}

#[tokio::test]
async fn a_lock_works_whatever_stands_in_its_file() {
    let good = record(7, 1, "launch 8\nholder 4711 1763999999.123\nend\n");
    let contents = [
        Vec::new(),
        b"\0".to_vec(),
        b"\xff\xfe".to_vec(),
        b"record".to_vec(),
        noise(100),
        noise(FILE_LEN),
        noise(1 << 20),
        vec![0; 1 << 20],
        vec![b'\n'; FILE_LEN],
        file_with([&good.replace("4711", "4712"), ""]),
        file_with([
            "record 18446744073709551615 version 1 checksum 0\nend\n",
            "",
        ]),
        file_with(["record -1 version x\nend\n", "record  version \n"]),
        file_with([&record(7, 1, "launch many\nend\n"), ""]),
        file_with([&record(7, 1, "holder 1\nend\n"), &record(8, 1, "end\n")]),
        file_with([
            &record(7, 1, "holder 4294967295 18446744073709551615.000\nend\n"),
            "",
        ]),
        file_with([&record(u64::MAX, 1, "end\n"), ""]),
    ];
    for content in contents {
        works_with(&content).await;
    }
}

#[tokio::test]
async fn a_lock_works_wherever_its_record_was_cut_off() {
    let (_directory, locks, path) = locks_with(b"");
    drop(take(&locks, KEY).await.unwrap());
    let whole = fs::read(&path).unwrap();
    let cuts = (0..SLOTS[1] + 130).step_by(13);
    for cut in cuts.chain([whole.len() - 1]) {
        works_with(&whole[..cut]).await;
    }
}

#[tokio::test]
async fn a_file_that_was_written_once_never_grows() {
    let (_directory, locks, path) = locks_with(b"");
    drop(take(&locks, KEY).await.unwrap());
    let len = path.metadata().unwrap().len();
    for _ in 0..5 {
        drop(take(&locks, KEY).await.unwrap());
        assert_eq!(path.metadata().unwrap().len(), len);
    }
}

/// Far beyond any clock, so it can only come from the record.
const FAR: u64 = 1 << 62;

fn launch(number: u64) -> String {
    format!("launch {number}\nend\n")
}

#[tokio::test]
async fn of_two_records_the_one_with_the_higher_number_counts() {
    for slots in [
        [
            &record(8, 1, &launch(FAR)),
            &record(9, 1, &launch(FAR + 10)),
        ],
        [
            &record(10, 1, &launch(FAR + 10)),
            &record(9, 1, &launch(FAR)),
        ],
    ] {
        let (_directory, locks, _) = locks_with(&file_with(slots.map(|slot| &**slot)));
        let token = take(&locks, KEY).await.unwrap().fencing_token();
        assert_eq!(token, FAR + 11);
    }
}

#[tokio::test]
async fn a_write_that_was_cut_short_leaves_the_record_before_it() {
    let newest = record(9, 1, &launch(FAR + 10));
    for len in 0..newest.len() {
        let file = file_with([&record(8, 1, &launch(FAR)), &newest[..len]]);
        let (_directory, locks, _) = locks_with(&file);
        let token = take(&locks, KEY).await.unwrap().fencing_token();
        assert_eq!(token, FAR + 1, "cut at {len}");
    }
}

#[tokio::test]
async fn a_record_whose_checksum_is_wrong_is_not_believed() {
    let right = record(
        9,
        1,
        &format!("holder 4711 1763999999.123\n{}", launch(FAR + 10)),
    );
    let wrong = right.replace("4711", "4712");
    let (_directory, locks, path) = locks_with(&file_with([&record(8, 1, &launch(FAR)), &wrong]));
    let LedgerReading::Found(believed) = inspect_spawn_lock(&path).unwrap().ledger else {
        panic!("the record before it is right");
    };
    assert_eq!((believed.fencing_token(), believed.holder()), (FAR, None));
    let token = take(&locks, KEY).await.unwrap().fencing_token();
    assert_eq!(token, FAR + 1);
}

#[tokio::test]
async fn a_writer_leaves_the_newest_record_alone() {
    let records = [7, 8, 9].map(|sequence| record(sequence, 1, &launch(sequence)));
    let slot = |file: &[u8], index: usize| file[SLOTS[index]..][..1920].to_vec();
    for (slots, newest) in [
        ([&records[1], &records[0]], 0),
        ([&records[1], &records[2]], 1),
    ] {
        let content = file_with(slots.map(|slot| &**slot));
        let (_directory, locks, path) = locks_with(&content);
        let _held = take(&locks, KEY).await.unwrap();
        let written = read_held(&path);
        assert!(slot(&written, newest) == slot(&content, newest));
        assert!(slot(&written, 1 - newest) != slot(&content, 1 - newest));
    }
}

#[tokio::test]
async fn each_write_of_a_lease_leaves_the_record_before_it_alone() {
    let (_directory, locks, path) = locks_with(b"");
    let mut held = take(&locks, KEY).await.unwrap();
    let mut before = read_held(&path);
    for (launch, rewritten) in [(1, 0), (2, 1), (3, 0)] {
        let ledger: Ledger = format!("launch {launch}\n").parse().unwrap();
        held.write_ledger(&ledger).await.unwrap();
        let after = read_held(&path);
        let changed = SLOTS.map(|start| after[start..][..1920] != before[start..][..1920]);
        assert_eq!(changed, [rewritten == 0, rewritten == 1], "write {launch}");
        before = after;
    }
}

#[tokio::test]
async fn lines_of_a_record_that_are_not_known_are_passed_over() {
    let record = record(8, 1, &format!("colour blue\nlaunch {FAR}\n\nend\n"));
    let (_directory, locks, _) = locks_with(&file_with([&record, ""]));
    let token = take(&locks, KEY).await.unwrap().fencing_token();
    assert_eq!(token, FAR + 1);
}

#[tokio::test]
async fn the_record_of_a_newer_version_is_refused_and_kept() {
    let newer = record(9, 2, "whatever\nend\n");
    let content = file_with([&record(8, 1, &launch(FAR)), &newer]);
    let (_directory, locks, path) = locks_with(&content);
    for error in [
        take(&locks, KEY).await.map(drop).unwrap_err(),
        read_lock_holder(&path).map(drop).unwrap_err(),
    ] {
        let error = reads_well(error);
        assert!(
            matches!(&error, SpawnLockError::LedgerVersion { path: named, found: 2, supported: 1 } if *named == path),
            "{error:?}"
        );
    }
    drop(acquire_spawn_lock(&path).unwrap());
    assert_eq!(fs::read(&path).unwrap(), content);
}

#[tokio::test]
async fn the_file_says_in_words_what_it_is() {
    let (_directory, locks, path) = locks_with(b"");
    let held = take(&locks, KEY).await.unwrap();
    assert!(read_lock_holder(&path).unwrap().is_some());
    let text = String::from_utf8(read_held(&path)).unwrap();
    let holder = format!("\nholder {} ", std::process::id());
    assert!(text.contains(&holder), "{text}");
    drop(held);
    let text = fs::read_to_string(&path).unwrap();
    assert!(text.starts_with("spawn-gate: "), "{text}");
}

#[cfg(unix)]
mod unix {
    //! What only Unix has: kinds of files, owners and modes, and a user who is not root.

    use spawn_gate::{Acquired, SpawnGate};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
    use std::os::unix::net::UnixListener;
    use std::os::unix::process::CommandExt;
    use std::process::Command;
    use std::sync::mpsc;
    use std::thread;
    use std::time::Duration;

    use spawn_gate::lock::Unsafety;

    use super::*;

    pub(super) fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn mode(path: &Path) -> u32 {
        path.metadata().unwrap().mode() & 0o7777
    }

    fn is_root() -> bool {
        rustix::process::geteuid().is_root()
    }

    /// Turns a call that hangs into a failure.
    fn soon<R: Send + 'static>(call: impl FnOnce() -> R + Send + 'static) -> R {
        let (done, is_done) = mpsc::channel();
        thread::spawn(move || done.send(call()));
        is_done
            .recv_timeout(Duration::from_secs(60))
            .expect("it hangs")
    }

    #[track_caller]
    fn is_writable_by_others(error: &SpawnLockError, path: &Path, mode: u32) {
        assert!(
            matches!(
                error,
                SpawnLockError::Unsafe { path: named, problem: Unsafety::Writable { mode: found } }
                    if named == path && *found == mode
            ),
            "{error:?}"
        );
    }

    #[test]
    fn a_link_is_not_followed_and_what_it_points_to_is_neither_made_nor_changed() {
        let directory = directory();
        let (link, target) = (directory.path().join("link"), directory.path().join("to"));
        symlink(&target, &link).unwrap();
        is_not_a_file(&refusal(&link), &link, FileKind::Symlink);
        assert!(!target.exists());

        write_private(&target, b"precious");
        is_not_a_file(&refusal(&link), &link, FileKind::Symlink);
        assert_eq!(fs::read(&target).unwrap(), b"precious");
        drop(acquire_spawn_lock(&target).unwrap());

        let error = reads_well(read_lock_holder(&link).unwrap_err());
        assert_eq!(named(&error), link);
    }

    #[test]
    fn a_link_to_itself_is_no_lock_file() {
        let directory = directory();
        let link = directory.path().join("link");
        symlink(&link, &link).unwrap();
        is_not_a_file(&refusal(&link), &link, FileKind::Symlink);
    }

    #[test]
    fn a_fifo_is_refused_without_waiting_for_its_other_end() {
        let directory = directory();
        let path = directory.path().join("fifo");
        let made = Command::new("mkfifo")
            .args(["-m", "600"])
            .arg(&path)
            .status();
        assert!(made.unwrap().success());
        let refused = soon({
            let path = path.clone();
            move || refusal(path)
        });
        is_not_a_file(&refused, &path, FileKind::Fifo);
        let error = soon({
            let path = path.clone();
            move || reads_well(read_lock_holder(path).unwrap_err())
        });
        assert_eq!(named(&error), path);
    }

    #[test]
    fn a_socket_is_no_lock_file() {
        let directory = directory();
        let path = directory.path().join("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        chmod(&path, 0o600);
        is_not_a_file(&refusal(&path), &path, FileKind::Socket);
    }

    #[test]
    fn a_device_is_no_lock_file() {
        for path in ["/dev/null", "/dev/zero", "/dev/tty"].map(Path::new) {
            is_not_a_file(&refusal(path), path, FileKind::Device);
        }
    }

    #[test]
    fn a_directory_is_no_record_to_read() {
        let directory = directory();
        let error = reads_well(read_lock_holder(directory.path()).unwrap_err());
        assert_eq!(named(&error), directory.path());
    }

    #[test]
    fn two_names_of_one_file_are_one_lock() {
        let directory = directory();
        let (one, other) = (directory.path().join("one"), directory.path().join("other"));
        let _held = acquire_spawn_lock(&one).unwrap();
        fs::hard_link(&one, &other).unwrap();
        assert!(matches!(
            acquire_spawn_lock(&other),
            Err(SpawnLockError::AlreadyLocked { path }) if path == other
        ));
    }

    #[test]
    fn a_lock_file_that_others_can_write_to_is_refused_until_that_is_mended() {
        let directory = directory();
        let path = directory.path().join("indexer.lock");
        for mode in [0o666, 0o660, 0o602, 0o620] {
            write_private(&path, b"");
            chmod(&path, mode);
            is_writable_by_others(&refusal(&path), &path, mode);
            assert_eq!(self::mode(&path), mode);
        }
        for mode in [0o644, 0o640, 0o604] {
            chmod(&path, mode);
            drop(acquire_spawn_lock(&path).unwrap());
            assert_eq!(self::mode(&path), 0o600);
        }
    }

    #[test]
    fn a_directory_that_others_can_write_to_is_refused_and_nothing_is_made_in_it() {
        let directory = directory();
        for mode in [0o777, 0o775, 0o757, 0o770, 0o1777] {
            chmod(directory.path(), mode);
            let refused = refusal(directory.path().join("indexer.lock"));
            is_writable_by_others(&refused, directory.path(), mode);
            let refused = directory_refusal(directory.path());
            is_writable_by_others(&refused, directory.path(), mode);
            assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
            assert_eq!(self::mode(directory.path()), mode);
        }
        chmod(directory.path(), 0o755);
        FileSpawnLock::new(directory.path()).unwrap();
    }

    #[test]
    fn a_lock_directory_is_made_for_its_user_alone_and_so_are_its_parents() {
        let directory = directory();
        let inner = directory.path().join("a/b/locks");
        FileSpawnLock::new(&inner).unwrap();
        for made in ["a", "a/b", "a/b/locks"] {
            assert_eq!(mode(&directory.path().join(made)), 0o700, "{made}");
        }
    }

    #[test]
    fn a_directory_that_was_there_keeps_its_mode() {
        let directory = directory();
        chmod(directory.path(), 0o755);
        FileSpawnLock::new(directory.path()).unwrap();
        assert_eq!(mode(directory.path()), 0o755);
    }

    /// Locks in a directory whose parent they made, too.
    fn made_locks() -> (TempDir, FileSpawnLock) {
        let outer = directory();
        let locks = FileSpawnLock::new(outer.path().join("made/locks")).unwrap();
        (outer, locks)
    }

    #[tokio::test]
    async fn a_lock_directory_that_was_removed_is_made_again_for_every_launch_and_reset() {
        let (outer, locks) = made_locks();
        let gate: SpawnGate<&str, u32> = SpawnGate::builder(locks.clone()).build();
        for removed in ["made/locks", "made"] {
            fs::remove_dir_all(outer.path().join(removed)).unwrap();
            let Acquired::Led(permit) = gate.acquire(KEY).await.unwrap() else {
                panic!("it does not lead");
            };
            permit.fail("no such program").await;
            assert_eq!(mode(locks.directory()), 0o700);
            fs::remove_dir_all(outer.path().join(removed)).unwrap();
            gate.reset(KEY).await.unwrap();
            assert_eq!(mode(locks.directory().parent().unwrap()), 0o700);
        }
    }

    #[tokio::test]
    async fn only_what_was_made_here_is_made_again_and_only_at_its_place() {
        let (outer, made) = made_locks();
        let locks = FileSpawnLock::new(made.directory()).unwrap();
        fs::remove_dir_all(outer.path().join("made")).unwrap();
        let error = reads_well(take(&locks, KEY).await.unwrap_err());
        is_open_error(&error, locks.directory(), io::ErrorKind::NotFound);

        let elsewhere = directory();
        symlink(elsewhere.path(), outer.path().join("made")).unwrap();
        let error = take(&made, KEY).await.unwrap_err();
        assert!(
            error.source().unwrap().to_string().contains("link"),
            "{error:?}"
        );
        assert_eq!(fs::read_dir(elsewhere.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_lock_directory_that_was_made_anew_unsafely_is_refused_in_words() {
        let (_outer, locks) = made_locks();
        fs::remove_dir_all(locks.directory()).unwrap();
        fs::create_dir(locks.directory()).unwrap();
        chmod(locks.directory(), 0o775);
        let error = reads_well(take(&locks, KEY).await.unwrap_err());
        let message = error.to_string();
        assert!(
            message.contains("made anew or changed while in use"),
            "{message}"
        );
        assert!(message.contains("has mode 0775"), "{message}");
        assert_eq!(mode(locks.directory()), 0o775);
        chmod(locks.directory(), 0o755);
        drop(take(&locks, KEY).await.unwrap());
    }

    #[tokio::test]
    async fn what_was_given_to_a_group_is_taken_back() {
        let (_outer, locks) = made_locks();
        drop(take(&locks, KEY).await.unwrap());
        let give = || {
            chmod(&locks.path_of(&KEY), 0o660);
            chmod(&locks.directory().join("probe.lock"), 0o660);
            chmod(locks.directory(), 0o2770);
        };
        give();
        drop(take(&locks, KEY).await.unwrap());
        assert_eq!(mode(locks.directory()), 0o2750);
        assert_eq!(mode(&locks.path_of(&KEY)), 0o600);
        // Also before the first launch of a process.
        give();
        FileSpawnLock::new(locks.directory()).unwrap();
        assert_eq!(mode(locks.directory()), 0o2750);
        assert_eq!(mode(&locks.directory().join("probe.lock")), 0o600);
    }

    #[tokio::test]
    async fn what_was_given_to_everybody_is_refused() {
        let (_outer, locks) = made_locks();
        drop(take(&locks, KEY).await.unwrap());
        for mode in [0o777, 0o1777, 0o1770] {
            chmod(locks.directory(), mode);
            drop(reads_well(take(&locks, KEY).await.unwrap_err()));
            assert_eq!(self::mode(locks.directory()), mode);
        }
        chmod(locks.directory(), 0o700);
        chmod(&locks.path_of(&KEY), 0o666);
        let error = reads_well(take(&locks, KEY).await.unwrap_err());
        is_writable_by_others(&error, &locks.path_of(&KEY), 0o666);
    }

    /// Only root can make another user's file, so this is left out for others.
    #[tokio::test]
    async fn a_group_directory_with_another_users_files_is_refused_in_words() {
        if !is_root() {
            return skipped("only root can give files away");
        }
        let (_outer, locks) = made_locks();
        let foreign = locks.directory().join("foreign");
        write_private(&foreign, b"");
        chown(&foreign, Some(4711), None).unwrap();
        chmod(locks.directory(), 0o2770);
        let error = reads_well(take(&locks, KEY).await.unwrap_err());
        assert!(
            error.to_string().contains("holds files of user 4711"),
            "{error}"
        );
        assert_eq!(mode(locks.directory()), 0o2770);
    }

    #[test]
    fn a_link_to_a_lock_directory_leads_to_the_same_locks() {
        let directory = directory();
        let (inner, link) = (
            directory.path().join("locks"),
            directory.path().join("link"),
        );
        FileSpawnLock::new(&inner).unwrap();
        symlink(&inner, &link).unwrap();
        FileSpawnLock::new(&link).unwrap();
        let _held = acquire_spawn_lock(inner.join("indexer.lock")).unwrap();
        assert!(matches!(
            acquire_spawn_lock(link.join("indexer.lock")),
            Err(SpawnLockError::AlreadyLocked { .. })
        ));
    }

    #[test]
    fn a_link_to_no_directory_is_refused_and_nothing_is_made_where_it_points() {
        let directory = directory();
        let (link, target) = (directory.path().join("link"), directory.path().join("to"));
        symlink(&target, &link).unwrap();
        let refused = directory_refusal(&link);
        assert!(
            matches!(&refused, SpawnLockError::NotADirectory { path } if *path == link),
            "{refused:?}"
        );
        let refused = directory_refusal(link.join("locks"));
        assert!(
            matches!(&refused, SpawnLockError::NotADirectory { path } if *path == link),
            "{refused:?}"
        );
        assert!(!target.exists());
    }

    #[test]
    fn a_path_longer_than_the_system_takes_is_named() {
        let directory = directory();
        let deep = directory.path().join("x/".repeat(3000));
        let error = refusal(deep.join("indexer.lock"));
        assert!(
            matches!(error, SpawnLockError::NameTooLong { .. }),
            "{error:?}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_system_where_nothing_can_be_made_is_refused() {
        for directory in ["/proc/self", "/sys/kernel"].map(Path::new) {
            if !directory.is_dir() {
                skipped(&format!("there is no {}", directory.display()));
                continue;
            }
            let path = directory.join("indexer.lock");
            assert!(matches!(
                refusal(&path),
                SpawnLockError::Open { path: named, .. } | SpawnLockError::ReadOnlyFilesystem { path: named, .. }
                    if named == path
            ));
            directory_refusal(directory);
            directory_refusal(directory.join("locks"));
        }
        let link = Path::new("/proc/self/exe");
        is_not_a_file(&refusal(link), link, FileKind::Symlink);
    }

    /// Only root can give files away, so this is left out for others.
    #[test]
    fn what_belongs_to_another_user_is_refused() {
        if !is_root() {
            return skipped("only root can give a file away");
        }
        const OTHER: u32 = 65534;
        let directory = directory();
        let path = directory.path().join("indexer.lock");
        write_private(&path, b"");
        chown(&path, Some(OTHER), None).unwrap();
        let is_owner_problem = |error: &SpawnLockError, path: &Path| {
            matches!(
                error,
                SpawnLockError::Unsafe { path: named, problem: Unsafety::Owner { owner: OTHER, user: 0 } }
                    if named == path
            )
        };
        let error = refusal(&path);
        assert!(is_owner_problem(&error, &path), "{error:?}");
        fs::remove_file(&path).unwrap();

        chown(directory.path(), Some(OTHER), None).unwrap();
        for error in [refusal(&path), directory_refusal(directory.path())] {
            assert!(is_owner_problem(&error, directory.path()), "{error:?}");
        }
        assert!(!path.exists());
    }

    /// Says on the terminal that a test did not do its work. (What a test prints is not shown when it passes.)
    pub(super) fn skipped(why: &str) {
        use std::io::Write;
        let _ = writeln!(io::stderr(), "skipped: {why}");
    }

    /// In a child that runs one of these tests again: the directory that it is to use, and that it was started in.
    const DIRECTORY: &str = "SPAWN_GATE_TEST_DIRECTORY";

    fn given_directory() -> Option<PathBuf> {
        std::env::var_os(DIRECTORY).map(PathBuf::from)
    }

    /// Runs a test of this file again, in a child process that uses `directory`.
    fn run_again(test: &str, mut program: Command, directory: &Path) {
        let output = program
            .args(["--exact", test])
            .env(DIRECTORY, directory)
            .current_dir(directory)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains("1 passed"), "{text}");
    }

    #[test]
    fn a_path_that_is_a_mere_name_is_one_in_the_current_directory() {
        let test = "unix::a_path_that_is_a_mere_name_is_one_in_the_current_directory";
        let Some(current) = given_directory() else {
            let program = Command::new(std::env::current_exe().unwrap());
            return run_again(test, program, directory().path());
        };
        drop(acquire_spawn_lock("indexer.lock").unwrap());
        assert!(current.join("indexer.lock").exists());
        chmod(&current, 0o777);
        is_writable_by_others(&refusal("indexer.lock"), Path::new("."), 0o777);
    }

    /// Runs the body in a directory of a user who is not root. If this process is root, the test runs again in a child
    /// process of another user, since file modes say nothing to root; beside that directory, which stands in one of root's,
    /// the user has a lock file then.
    fn as_ordinary_user(test: &str, body: impl FnOnce(&Path)) {
        const SOMEBODY: u32 = 65534;
        if let Some(given) = given_directory() {
            return body(&given);
        }
        if !is_root() {
            return body(directory().path());
        }
        let outer = directory();
        chmod(outer.path(), 0o755);
        // That user may be unable to reach this program where it is. It is copied by another process: of a descriptor that
        // this one had open for writing, children that other tests start at this moment would have duplicates for a while,
        // and a program that somebody can write to cannot be run.
        let program = outer.path().join("test");
        let copied = Command::new("cp")
            .arg(std::env::current_exe().unwrap())
            .arg(&program)
            .status();
        assert!(copied.unwrap().success());
        chmod(&program, 0o755);
        let (inner, lock_file) = (outer.path().join("inner"), outer.path().join("own.lock"));
        fs::create_dir(&inner).unwrap();
        write_private(&lock_file, b"");
        for owned in [&inner, &lock_file] {
            chown(owned, Some(SOMEBODY), Some(SOMEBODY)).unwrap();
        }
        let mut program = Command::new(&program);
        program.uid(SOMEBODY).gid(SOMEBODY);
        run_again(test, program, &inner);
    }

    #[test]
    fn a_directory_that_cannot_be_written_to_is_refused_and_serves_once_it_can() {
        let test = "unix::a_directory_that_cannot_be_written_to_is_refused_and_serves_once_it_can";
        as_ordinary_user(test, |directory| {
            chmod(directory, 0o555);
            let path = directory.join("indexer.lock");
            let denied = io::ErrorKind::PermissionDenied;
            is_open_error(&refusal(&path), &path, denied);
            let probe = directory.join("probe.lock");
            is_open_error(&directory_refusal(directory), &probe, denied);
            let inner = directory.join("locks");
            is_open_error(&directory_refusal(&inner), &inner, denied);
            chmod(directory, 0o755);
            drop(acquire_spawn_lock(&path).unwrap());
        });
    }

    #[test]
    fn a_lock_file_that_cannot_be_written_to_is_refused() {
        let test = "unix::a_lock_file_that_cannot_be_written_to_is_refused";
        as_ordinary_user(test, |directory| {
            let path = directory.join("indexer.lock");
            write_private(&path, b"");
            for mode in [0o400, 0o200, 0o000] {
                chmod(&path, mode);
                is_open_error(&refusal(&path), &path, io::ErrorKind::PermissionDenied);
            }
        });
    }

    /// Only root can make such a directory, so this is left out for others.
    #[test]
    fn a_directory_of_roots_serves_whoever_has_a_lock_file_in_it() {
        let test = "unix::a_directory_of_roots_serves_whoever_has_a_lock_file_in_it";
        if !is_root() && given_directory().is_none() {
            return skipped("only root can make a directory of root's");
        }
        as_ordinary_user(test, |directory| {
            let of_root = directory.parent().unwrap();
            drop(acquire_spawn_lock(of_root.join("own.lock")).unwrap());
            let other = of_root.join("other.lock");
            is_open_error(&refusal(&other), &other, io::ErrorKind::PermissionDenied);
        });
    }
}

#[cfg(target_os = "linux")]
mod mounted {
    //! File systems that are read-only or full. Each test runs again in a child process with a mount of its own, which
    //! ends with the child.

    use spawn_gate::{Acquired, GateError, SpawnGate};
    use std::process::Command;

    use super::*;

    /// In the child: where the file system is mounted.
    const MOUNTED: &str = "SPAWN_GATE_TEST_MOUNTED";

    /// Shell words: options, where to mount, then the command to run.
    const MOUNT_AND_RUN: &str = r#"mount -t tmpfs -o "$1" none "$2" || exit; shift 2; exec "$@""#;

    /// Runs the body on a file system in memory. Where none can be mounted (in many containers), the test is left out.
    fn on_tmpfs(test: &str, options: &str, body: impl FnOnce(&Path)) {
        if let Some(mounted) = std::env::var_os(MOUNTED) {
            return body(Path::new(&mounted));
        }
        let directory = directory();
        let mut unshare = Command::new("unshare");
        unshare.arg("--mount");
        if !rustix::process::geteuid().is_root() {
            unshare.arg("--map-root-user");
        }
        let output = unshare
            .args(["--", "sh", "-c", MOUNT_AND_RUN, "sh"])
            .arg(format!("mode=0700,{options}"))
            .arg(directory.path())
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(MOUNTED, directory.path())
            .output();
        let output = match output {
            Ok(output) => output,
            Err(error) => return unix::skipped(&format!("cannot run unshare: {error}")),
        };
        let text = String::from_utf8_lossy(&output.stdout);
        if !text.contains("running") {
            let why = String::from_utf8_lossy(&output.stderr);
            return unix::skipped(&format!("cannot mount a file system: {why}"));
        }
        assert!(text.contains("1 passed"), "{text}");
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap()
    }

    /// Takes what room there is, into a file of the directory.
    fn fill(directory: &Path) -> PathBuf {
        let filler = directory.join("filler");
        let full = fs::write(&filler, vec![1; 1 << 20]).unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        filler
    }

    #[track_caller]
    fn is_read_only(error: &SpawnLockError, path: &Path) {
        assert!(
            matches!(error, SpawnLockError::ReadOnlyFilesystem { path: named, .. } if named == path),
            "{error:?}"
        );
    }

    #[test]
    fn a_read_only_file_system_is_named() {
        on_tmpfs(
            "mounted::a_read_only_file_system_is_named",
            "ro",
            |directory| {
                let path = directory.join("indexer.lock");
                is_read_only(&refusal(&path), &path);
                is_read_only(&directory_refusal(directory), &directory.join("probe.lock"));
                let inner = directory.join("locks");
                is_read_only(&directory_refusal(&inner), &inner);
            },
        );
    }

    #[test]
    fn a_file_system_that_became_read_only_is_named_also_for_files_that_are_there() {
        let test =
            "mounted::a_file_system_that_became_read_only_is_named_also_for_files_that_are_there";
        on_tmpfs(test, "rw", |directory| {
            let locks = FileSpawnLock::new(directory).unwrap();
            let path = locks.path_of(&KEY);
            let runtime = runtime();
            drop(runtime.block_on(take(&locks, KEY)).unwrap());
            let remount = Command::new("mount")
                .args(["-o", "remount,bind,ro"])
                .arg(directory)
                .status();
            assert!(remount.unwrap().success());
            is_read_only(&refusal(&path), &path);
            let error = reads_well(runtime.block_on(take(&locks, KEY)).unwrap_err());
            is_read_only(&error, &path);
            assert_eq!(read_lock_holder(&path).unwrap(), None);
        });
    }

    #[test]
    fn a_directory_that_became_read_only_is_accepted_to_find_backends_and_refuses_each_launch() {
        let test = "mounted::a_directory_that_became_read_only_is_accepted_to_find_backends_and_refuses_each_launch";
        on_tmpfs(test, "rw", |directory| {
            let locks = FileSpawnLock::new(directory).unwrap();
            let path = locks.path_of(&KEY);
            let runtime = runtime();
            drop(runtime.block_on(take(&locks, KEY)).unwrap());
            let remount = Command::new("mount")
                .args(["-o", "remount,bind,ro"])
                .arg(directory)
                .status();
            assert!(remount.unwrap().success());
            let locks = FileSpawnLock::new(directory).unwrap();
            let error = reads_well(runtime.block_on(take(&locks, KEY)).unwrap_err());
            is_read_only(&error, &path);
        });
    }

    #[test]
    fn a_full_file_system_is_named_holds_no_lock_and_serves_once_there_is_room() {
        let test =
            "mounted::a_full_file_system_is_named_holds_no_lock_and_serves_once_there_is_room";
        on_tmpfs(test, "size=16k", |directory| {
            let locks = FileSpawnLock::new(directory).unwrap();
            let path = locks.path_of(&KEY);
            let filler = fill(directory);
            let runtime = runtime();
            let error = passes(runtime.block_on(take(&locks, KEY)).unwrap_err());
            let SpawnLockError::Ledger {
                path: named,
                source,
            } = &error
            else {
                panic!("{error:?}");
            };
            assert_eq!((named, source.kind()), (&path, io::ErrorKind::StorageFull));
            drop(acquire_spawn_lock(&path).unwrap());
            assert_eq!(read_lock_holder(&path).unwrap(), None);

            fs::remove_file(filler).unwrap();
            let _held = runtime.block_on(take(&locks, KEY)).unwrap();
            assert!(read_lock_holder(&path).unwrap().is_some());
        });
    }

    #[test]
    fn a_full_file_system_is_told_at_once_and_charges_nothing() {
        let test = "mounted::a_full_file_system_is_told_at_once_and_charges_nothing";
        on_tmpfs(test, "size=16k", |directory| {
            let locks = FileSpawnLock::new(directory).unwrap();
            let gate: SpawnGate<&str, u32> = SpawnGate::builder(locks).build();
            let filler = fill(directory);
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let error = gate.acquire(KEY).await.unwrap_err();
                assert!(matches!(error, GateError::Lock(_)), "{error:?}");
                assert!(error.retry_helps());
                assert_eq!(gate.snapshot(KEY).await.budget.attempts_used, 0);
                fs::remove_file(filler).unwrap();
                let Ok(Acquired::Led(permit)) = gate.acquire(KEY).await else {
                    panic!("it does not lead");
                };
                assert_eq!(permit.attempt_number(), 1);
            });
        });
    }

    #[test]
    fn a_lock_that_was_taken_once_needs_no_more_room() {
        let test = "mounted::a_lock_that_was_taken_once_needs_no_more_room";
        on_tmpfs(test, "size=16k", |directory| {
            let locks = FileSpawnLock::new(directory).unwrap();
            let runtime = runtime();
            let token = runtime.block_on(take(&locks, KEY)).unwrap().fencing_token();
            fill(directory);
            let held = runtime.block_on(take(&locks, KEY)).unwrap();
            assert!(held.fencing_token() > token);
            let path = locks.path_of(&KEY);
            assert!(read_lock_holder(&path).unwrap().is_some());
            drop(held);
            assert_eq!(read_lock_holder(&path).unwrap(), None);
        });
    }

    #[test]
    fn a_file_system_with_no_room_for_another_file_is_named() {
        let test = "mounted::a_file_system_with_no_room_for_another_file_is_named";
        on_tmpfs(test, "nr_inodes=2", |directory| {
            // The directory is one; the file with which the new directory of locks is tried is the other.
            let locks = FileSpawnLock::new(directory).unwrap();
            let path = locks.path_of(&KEY);
            let error = passes(runtime().block_on(take(&locks, KEY)).unwrap_err());
            is_open_error(&error, &path, io::ErrorKind::StorageFull);
            let error = passes(acquire_spawn_lock(&path).unwrap_err());
            is_open_error(&error, &path, io::ErrorKind::StorageFull);
        });
    }

    /// Checks the message, and that a retry is said to help: something is short, which passes.
    #[track_caller]
    fn passes(error: SpawnLockError) -> SpawnLockError {
        assert!(error.retry_helps(), "{error}");
        message_reads_well(error)
    }
}
