//! Users and passwords.

use std::time::Duration;

use spawn_gate::SpawnGate;
use spawn_gate_etcd::EtcdError;

use crate::support::etcd::{Etcd, PATIENCE};
use crate::support::{Gate, led};

fn with_users(etcd: &Etcd) {
    for args in [
        "user add root:secret",
        "user add broker:launch",
        "user add guest:look",
        "role add gate",
        "role grant-permission gate --prefix=true readwrite gates/",
        "user grant-role broker gate",
        "auth enable",
    ] {
        etcd.ctl(0, &args.split(' ').collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_user_needs_the_right_password_and_the_right_to_the_prefix() {
    let Some(etcd) = Etcd::one() else { return };
    etcd.lock().await;
    with_users(&etcd);
    let builder = || etcd.builder().prefix("gates");
    let check = async |builder: spawn_gate_etcd::EtcdSpawnLockBuilder| {
        builder.build().unwrap().check(PATIENCE).await
    };
    check(builder().user("broker", "launch")).await.unwrap();
    for (wrong, builder) in [
        ("no user", builder()),
        ("password", builder().user("broker", "guess")),
        ("name", builder().user("nobody", "launch")),
    ] {
        let error = check(builder).await.unwrap_err();
        assert!(
            matches!(error, EtcdError::Unauthenticated { .. }),
            "{wrong}: {error}"
        );
        assert!(!error.retry_helps());
    }
    for (wrong, builder) in [
        ("user", builder().user("guest", "look")),
        (
            "prefix",
            builder().user("broker", "launch").prefix("others"),
        ),
    ] {
        let error = check(builder).await.unwrap_err();
        assert!(
            matches!(error, EtcdError::PermissionDenied { .. }),
            "{wrong}: {error}"
        );
        assert!(!error.retry_helps());
    }
}

#[tokio::test]
async fn a_token_that_expires_during_a_launch_is_replaced() {
    let Some(mut etcd) = Etcd::one() else { return };
    etcd.lock().await;
    with_users(&etcd);
    let lock = etcd
        .builder()
        .prefix("gates")
        .expires_in(Duration::from_secs(30))
        .user("broker", "launch")
        .build()
        .unwrap();
    let gate: Gate = SpawnGate::builder(lock.clone()).build();
    let permit = led(&gate).await;
    // A member forgets the tokens that it gave when it ends.
    etcd.kill(0);
    etcd.start_member(0);
    lock.check(PATIENCE).await.unwrap();
    permit.succeed(1).await.unwrap();
    led(&gate).await.succeed(2).await.unwrap();
}
