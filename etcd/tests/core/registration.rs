//! Backends that register with the fencing token of their launch.

use std::sync::Arc;

use spawn_gate::SpawnGate;
use tokio::task::JoinSet;

use crate::support::etcd::Etcd;
use crate::support::{Gate, KEY, led};

#[tokio::test]
async fn the_backend_of_an_elder_launch_cannot_register_over_a_younger_one() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let key = KEY.to_owned();
    assert_eq!(lock.registered(&key).await.unwrap(), None);
    let gate = || -> Gate { SpawnGate::builder(lock.clone()).build() };
    let elder = led(&gate()).await;
    // As if its lease had expired.
    let locks = etcd
        .keys()
        .into_iter()
        .find(|key| key.ends_with("/lock"))
        .unwrap();
    etcd.ctl(0, &["del", &locks]);
    let younger = led(&gate()).await;
    assert!(
        lock.register(&key, younger.fencing_token(), "younger:1")
            .await
            .unwrap()
    );
    assert!(
        !lock
            .register(&key, elder.fencing_token(), "elder:1")
            .await
            .unwrap()
    );
    let registered = lock.registered(&key).await.unwrap().unwrap();
    assert_eq!(registered.value, "younger:1");
    assert_eq!(registered.fencing_token, younger.fencing_token());
    // The same backend may register again, and another one of its launch may not.
    assert!(
        lock.register(&key, younger.fencing_token(), "younger:1")
            .await
            .unwrap()
    );
    assert!(
        !lock
            .register(&key, younger.fencing_token(), "younger:2")
            .await
            .unwrap()
    );
    assert_eq!(lock.inspect().await.unwrap().foreign, [""; 0]);
}

#[tokio::test]
async fn the_backend_of_an_elder_launch_cannot_register_before_the_younger_one_either() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = etcd.lock().await;
    let key = KEY.to_owned();
    let gate = || -> Gate { SpawnGate::builder(lock.clone()).build() };
    let elder = led(&gate()).await;
    let keys = etcd.keys();
    let held = keys.iter().find(|key| key.ends_with("/lock")).unwrap();
    etcd.ctl(0, &["del", held]);
    let younger = led(&gate()).await;
    let (elder, token) = (elder.fencing_token(), younger.fencing_token());
    // The younger one holds the lock; then it has launched and released it, and only its record is left.
    assert!(!lock.register(&key, elder, "elder:1").await.unwrap());
    younger.succeed(1).await.unwrap();
    assert!(!etcd.keys().iter().any(|key| key.ends_with("/lock")));
    assert!(!lock.register(&key, elder, "elder:1").await.unwrap());
    assert!(lock.register(&key, token, "younger:1").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_register_at_once_the_youngest_stays() {
    let Some(etcd) = Etcd::one() else { return };
    let lock = Arc::new(etcd.lock().await);
    let mut tasks = JoinSet::new();
    for token in 1..=40 {
        let lock = Arc::clone(&lock);
        tasks.spawn(async move { lock.register(&KEY, token, token.to_string()).await.unwrap() });
    }
    tasks.join_all().await;
    assert_eq!(lock.registered(&KEY).await.unwrap().unwrap().value, "40");
}
