//! Keys: the lock file name of a key is safe on every platform, unique, and always the same.

mod support;

use std::collections::HashSet;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Component, Path};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::prelude::*;
use spawn_gate::lock::LockName;
use spawn_gate::{
    Acquired, BackendKey, BrokerInstanceKey, FileSpawnLock, GateError, GateKey, InMemorySpawnLock,
    SpawnBeginError, SpawnBudgetConfig, SpawnCoordinator, SpawnGate, SpawnOutcome,
};

/// The shortest limit met in practice: an encrypted home directory.
const LONGEST_NAME: usize = 143;

/// Names that Windows takes for devices, with any extension and in any case.
const DEVICES: [&str; 10] = [
    "con", "prn", "aux", "nul", "com1", "com9", "lpt1", "lpt9", "conin$", "conout$",
];

fn private(service_name: &str) -> BrokerInstanceKey {
    BrokerInstanceKey::Private {
        service_name: service_name.into(),
    }
}

fn explicit(name: &str) -> BrokerInstanceKey {
    BrokerInstanceKey::Explicit { name: name.into() }
}

/// Why the name is not safe, if it is not.
fn flaw(name: &LockName) -> Option<&'static str> {
    let name = name.as_str();
    let components: Vec<_> = Path::new(name).components().collect();
    let stem = name.split('.').next().unwrap_or_default();
    let is_plain = |c: char| matches!(c, 'a'..='z' | '0'..='9' | '_' | '.' | '-');
    if !matches!(components[..], [Component::Normal(only)] if only == name) {
        Some("not one path component")
    } else if name.len() > LONGEST_NAME {
        Some("too long")
    } else if !name.chars().all(is_plain) {
        Some("holds more than a-z, 0-9, '_', '.' and '-'")
    } else if name.starts_with(['-', '.']) {
        Some("starts like an option or a hidden file")
    } else if name.ends_with('.') {
        Some("ends with a dot")
    } else if DEVICES.contains(&stem) {
        Some("a device of Windows")
    } else {
        None
    }
}

/// Texts that are trouble as file names, no two of them the same.
fn hostile() -> Vec<String> {
    let mut texts: Vec<String> = [
        "",
        ".",
        "..",
        "...",
        "/",
        "//",
        "\\",
        "\\\\server\\share",
        "C:",
        "C:\\",
        "../x",
        "x/../y",
        "a/b",
        "a\\b",
        "a_b",
        "a:b",
        "a-b",
        "-a",
        "--",
        "_",
        "\0",
        "a\0b",
        "a\nb",
        "a\rb",
        "\t",
        " ",
        "a ",
        " a",
        "a.",
        "a..",
        "a",
        "A",
        "ab",
        "Ab",
        "aB",
        "AB",
        "~",
        "*",
        "?",
        "$HOME",
        "%00",
        "%2e%2e",
        "é",
        "e\u{301}",
        "É",
        "ß",
        "ss",
        "SS",
        "ſ",
        "ı",
        "İ",
        "\u{202e}",
        "日本語",
        "🦀",
        "probe",
        "probe.lock",
        "con.txt",
        "aux.txt",
        "COM1",
        "nul ",
        "Con",
    ]
    .map(str::to_owned)
    .into();
    texts.extend(DEVICES.map(str::to_owned));
    let long = "x".repeat(10_000);
    texts.extend([
        format!("{long}y"),
        format!("{long}z"),
        "x".repeat(40),
        "x".repeat(41),
        "é".repeat(10_000),
        "\0".repeat(300),
        "/".repeat(300),
        long,
    ]);
    texts
}

/// Each hostile text as each field of a key.
fn hostile_backends() -> Vec<BackendKey> {
    let mut keys = vec![
        BackendKey::new(BrokerInstanceKey::Shared, "ab", "c"),
        BackendKey::new(BrokerInstanceKey::Shared, "a", "bc"),
        BackendKey::new(BrokerInstanceKey::Shared, "", "abc"),
        BackendKey::new(BrokerInstanceKey::Shared, "abc", ""),
        BackendKey::new(explicit("shared"), "s", "v"),
        BackendKey::new(private("shared"), "s", "v"),
        BackendKey::new(explicit("private:x"), "s", "v"),
        BackendKey::new(private("x"), "s", "v"),
    ];
    for text in hostile() {
        keys.extend([
            BackendKey::new(private(&text), "service", "version"),
            BackendKey::new(explicit(&text), "service", "version"),
            BackendKey::new(BrokerInstanceKey::Shared, &text, "version"),
            BackendKey::new(BrokerInstanceKey::Shared, "service", text),
        ]);
    }
    keys
}

fn names<K: GateKey>(keys: &[K]) -> Vec<LockName> {
    keys.iter().map(LockName::new).collect()
}

#[test]
fn every_hostile_key_has_a_safe_name() {
    for name in names(&hostile())
        .into_iter()
        .chain(names(&hostile_backends()))
    {
        assert_eq!(flaw(&name), None, "{name}");
    }
}

#[test]
fn no_two_keys_share_a_name_not_even_where_letter_case_does_not_count() {
    let strings = names(&hostile());
    let backends = names(&hostile_backends());
    let count = strings.len() + backends.len();
    let distinct: HashSet<String> = strings
        .iter()
        .chain(&backends)
        .map(|name| name.as_str().to_uppercase())
        .collect();
    assert_eq!(distinct.len(), count);
}

#[test]
fn a_text_has_the_same_name_whichever_string_type_holds_it() {
    let name = LockName::new(&"indexer");
    assert_eq!(LockName::new(&"indexer".to_owned()), name);
    assert_eq!(LockName::new(&Arc::<str>::from("indexer")), name);
}

/// Two versions of a program that run side by side must mean the same file.
#[test]
fn names_are_the_same_in_every_version() {
    assert_eq!(
        LockName::new(&"indexer").as_str(),
        "indexer-0a0109857a971cd0e2309c2a0338c930ab62070d616984293b6ae775f4b9c819.lock"
    );
    assert_eq!(
        LockName::new(&BackendKey::new(private("ci"), "Build-Cache", "1.11.20")).as_str(),
        "private_ci-build-cache-1_11_20-a07727c80d04dedc8903ad9d1c628c5b4fe70a92d0989fb96d3200ba540e46d1.lock"
    );
}

#[test]
fn a_person_can_tell_from_the_name_which_key_it_is() {
    let name = LockName::new(&BackendKey::new(
        BrokerInstanceKey::Shared,
        "indexer",
        "2.0",
    ));
    assert!(name.as_str().starts_with("shared-indexer-2_0-"));
    assert_eq!(name.to_string(), name.as_str());
}

#[tokio::test]
async fn hostile_keys_are_locked_side_by_side_each_in_a_file_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let inner = directory.path().join("locks");
    let locks = FileSpawnLock::new(&inner).unwrap();
    let before = fs::read_dir(&inner).unwrap().count();
    let (strings, backends) = (hostile(), hostile_backends());
    let mut leases = Vec::new();
    for key in &strings {
        assert_eq!(locks.path_of(key).parent(), Some(locks.directory()));
        leases.push(support::lock_file::try_acquire(&locks, key).await.unwrap());
    }
    // Not all at once: some systems give a process no more than 256 open files.
    for key in &backends {
        drop(support::lock_file::try_acquire(&locks, key).await.unwrap());
    }
    let made = fs::read_dir(&inner).unwrap().count() - before;
    assert_eq!(made, strings.len() + backends.len());
    let outside = fs::read_dir(directory.path()).unwrap().count();
    assert_eq!(outside, 1, "something was made beside the lock directory");
}

#[test]
fn an_instance_has_the_id_that_the_reference_system_gives_it() {
    assert_eq!(BrokerInstanceKey::Shared.id(), "shared");
    assert_eq!(private("ci").id(), "private:ci");
    assert_eq!(explicit("ci").id(), "explicit:ci");
    assert_eq!(explicit("").id(), "explicit:");
    assert_eq!(private("a:b").to_string(), "private:a:b");
}

#[tokio::test]
async fn a_key_stands_in_messages_on_one_short_line() {
    let key = format!("a\nb\u{1b}[31m\0{}", "x".repeat(10_000));
    let gate: SpawnGate<String, u16> = SpawnGate::builder(InMemorySpawnLock::new())
        .budget(SpawnBudgetConfig::new(1, Duration::from_secs(10)))
        .build();
    let Acquired::Led(permit) = gate.acquire(key.clone()).await.unwrap() else {
        panic!("joined");
    };
    let failed = permit.fail("no such program").await;
    let refused = gate.acquire(key).await.unwrap_err();
    assert!(matches!(refused, GateError::BudgetExhausted(_)));
    for message in [failed.to_string(), refused.to_string()] {
        assert!(!message.contains(char::is_control), "{message:?}");
        assert!(message.contains("a\\nb"), "{message:?}");
        assert!(message.len() < 300, "{message:?}");
    }
}

#[test]
fn a_field_in_a_message_has_sixty_characters_at_most_and_says_when_it_was_cut() {
    let shown = |name: &str| BackendKey::new(BrokerInstanceKey::Shared, name, "1.0").to_string();
    for character in ["x", "é", "🦀"] {
        let fits = character.repeat(60);
        assert_eq!(shown(&fits), format!("shared/{fits}/1.0"));
        let longer = character.repeat(61);
        assert_eq!(shown(&longer), format!("shared/{fits}…/1.0"));
    }
}

/// A key type as a user may write one: numbers, bytes and an optional part.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Shard {
    tenant: u32,
    table: Vec<u8>,
    replica: Option<u8>,
}

impl GateKey for Shard {
    fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(&self.tenant.to_be_bytes());
        visit(&self.table);
        if let Some(replica) = self.replica {
            visit(&[replica]);
        }
    }
}

#[tokio::test]
async fn a_key_type_of_the_users_own_works_with_the_gate() {
    let directory = tempfile::tempdir().unwrap();
    let gate: SpawnGate<Shard, u16> = SpawnGate::new(directory.path().join("locks")).unwrap();
    let shard = |table: &[u8]| Shard {
        tenant: 7,
        table: table.into(),
        replica: None,
    };
    let Acquired::Led(one) = gate.acquire(shard(b"\xff/..")).await.unwrap() else {
        panic!("joined");
    };
    let Acquired::Led(other) = gate.acquire(shard(b"")).await.unwrap() else {
        panic!("joined");
    };
    assert_eq!((one.key(), other.key()), (&shard(b"\xff/.."), &shard(b"")));
    one.succeed(1).await.unwrap();
    other.succeed(2).await.unwrap();
}

/// A key that can be cloned so many times, and panics the next time.
#[derive(Debug)]
struct Fragile(Arc<AtomicU32>);

impl Fragile {
    fn after(clones: u32) -> Self {
        Self(Arc::new(AtomicU32::new(clones)))
    }
}

impl Clone for Fragile {
    fn clone(&self) -> Self {
        assert_ne!(self.0.load(Ordering::SeqCst), 0, "scripted");
        self.0.fetch_sub(1, Ordering::SeqCst);
        Self(Arc::clone(&self.0))
    }
}

impl PartialEq for Fragile {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Fragile {}

impl Hash for Fragile {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

impl GateKey for Fragile {
    fn fields(&self, visit: &mut dyn FnMut(&[u8])) {
        visit(b"fragile");
    }
}

#[tokio::test(start_paused = true)]
async fn a_key_whose_clone_panics_does_not_keep_the_next_request_waiting() {
    for clones in 0.. {
        let gate: SpawnGate<Fragile, u16> = SpawnGate::builder(InMemorySpawnLock::new()).build();
        let first = tokio::spawn({
            let gate = gate.clone();
            async move {
                drop(gate.acquire(Fragile::after(clones)).await);
                gate.snapshots().await;
                gate.reset(Fragile::after(clones)).await
            }
        });
        let panicked = first.await.is_err();
        let asked = tokio::time::Instant::now();
        let next = gate.acquire(Fragile::after(u32::MAX)).await;
        assert!(matches!(next, Ok(Acquired::Led(_))), "{clones}: {next:?}");
        assert_eq!(asked.elapsed(), Duration::ZERO, "{clones}");
        if !panicked {
            break;
        }
    }
}

#[test]
fn a_key_type_of_the_users_own_works_with_the_coordinator_without_any_trait_of_this_crate() {
    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    struct Tenant(u32);

    let mut coordinator = SpawnCoordinator::new();
    let now = Instant::now();
    coordinator.try_begin(Tenant(1), now).unwrap();
    coordinator.try_begin(Tenant(2), now).unwrap();
    assert_eq!(
        coordinator.try_begin(Tenant(1), now),
        Err(SpawnBeginError::AlreadyInProgress)
    );
    coordinator.finish(&Tenant(1), SpawnOutcome::Success, now);
    assert!(!coordinator.snapshot(Tenant(1), now).in_flight);
    assert!(coordinator.snapshot(Tenant(2), now).in_flight);
}

/// Any text, or one of a few that only differ in where a field ends or in letter case.
fn text() -> impl Strategy<Value = String> {
    prop_oneof![any::<String>(), "[aA:/.-]{0,3}"]
}

fn backend_key() -> impl Strategy<Value = BackendKey> {
    let instance = prop_oneof![
        Just(BrokerInstanceKey::Shared),
        text().prop_map(|service_name| BrokerInstanceKey::Private { service_name }),
        text().prop_map(|name| BrokerInstanceKey::Explicit { name }),
    ];
    (instance, text(), text())
        .prop_map(|(instance, service, version)| BackendKey::new(instance, service, version))
}

fn shard() -> impl Strategy<Value = Shard> {
    let byte = || prop_oneof![any::<u8>(), Just(0)];
    (0..3u32, vec(byte(), 0..4), proptest::option::of(byte())).prop_map(
        |(tenant, table, replica)| Shard {
            tenant,
            table,
            replica,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn any_backend_key_has_a_safe_name_that_only_an_equal_key_shares(
        one in backend_key(), other in backend_key(),
    ) {
        let (name, others) = (LockName::new(&one), LockName::new(&other));
        prop_assert_eq!(flaw(&name), None, "{}", name);
        prop_assert_eq!(name == others, one == other);
    }

    #[test]
    fn any_key_of_the_users_own_has_a_safe_name_that_only_an_equal_key_shares(
        one in shard(), other in shard(),
    ) {
        let (name, others) = (LockName::new(&one), LockName::new(&other));
        prop_assert_eq!(flaw(&name), None, "{}", name);
        prop_assert_eq!(name == others, one == other);
    }
}
