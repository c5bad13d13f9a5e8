//! The least that a lock in etcd needs, by `etcd-client`.

use std::time::{Duration, Instant};

use etcd_client::{Client, Compare, CompareOp, DeleteOptions, EventType, PutOptions, Txn, TxnOp};
use spawn_gate::BoxError;

const KEY: &str = "bare/lock";

pub(crate) struct Bare {
    client: Client,
    lease: i64,
}

impl Bare {
    pub(crate) async fn connect(endpoint: &str) -> Result<Self, BoxError> {
        let client = Client::connect([endpoint], None).await?;
        Ok(Self { client, lease: 0 })
    }

    /// Lease and transaction. Returns the create revision.
    pub(crate) async fn acquire(&mut self) -> Result<i64, BoxError> {
        self.grant().await?;
        self.create().await
    }

    /// Transaction and revocation.
    pub(crate) async fn settle(&mut self, token: i64) -> Result<(), BoxError> {
        self.delete(token).await?;
        self.client.lease_revoke(self.lease).await?;
        Ok(())
    }

    async fn grant(&mut self) -> Result<(), BoxError> {
        self.lease = self.client.lease_grant(10, None).await?.id();
        Ok(())
    }

    async fn create(&mut self) -> Result<i64, BoxError> {
        let put = TxnOp::put(KEY, "bare", Some(PutOptions::new().with_lease(self.lease)));
        let txn = Txn::new()
            .when([Compare::create_revision(KEY, CompareOp::Equal, 0)])
            .and_then([put]);
        let answer = self.client.txn(txn).await?;
        match (answer.succeeded(), answer.header()) {
            (true, Some(header)) => Ok(header.revision()),
            _ => Err("the lock is held".into()),
        }
    }

    async fn delete(&mut self, token: i64) -> Result<(), BoxError> {
        let txn = Txn::new()
            .when([Compare::create_revision(KEY, CompareOp::Equal, token)])
            .and_then([TxnOp::delete(KEY, None::<DeleteOptions>)]);
        match self.client.txn(txn).await?.succeeded() {
            true => Ok(()),
            false => Err("the lock is lost".into()),
        }
    }
}

/// From the release by the one to the lock of the other, which watches and has its lease.
pub(crate) async fn hand_over(one: &mut Bare, other: &mut Bare) -> Result<Duration, BoxError> {
    let token = one.acquire().await?;
    other.grant().await?;
    let mut watch = other.client.watch(KEY, None).await?;
    let waiting = async {
        while let Some(answer) = watch.message().await? {
            let is_free = answer
                .events()
                .iter()
                .any(|event| event.event_type() == EventType::Delete);
            if is_free {
                break;
            }
        }
        let token = other.create().await?;
        Ok::<_, BoxError>((token, Instant::now()))
    };
    let releasing = async {
        tokio::time::sleep(Duration::from_millis(30)).await;
        let began = Instant::now();
        one.delete(token).await?;
        Ok::<_, BoxError>(began)
    };
    let (waited, began) = tokio::join!(waiting, releasing);
    let ((token, ended), began) = (waited?, began?);
    one.client.lease_revoke(one.lease).await?;
    other.settle(token).await?;
    Ok(ended - began)
}
