//! The operator: asks a broker for the state of a backend, and resets its budget once the cause is fixed.

use std::net::SocketAddr;

use spawn_gate::BoxError;

use crate::client::VERSION;
use crate::protocol::{Connection, Reply, Request, Status, What};

pub(crate) async fn status(broker: SocketAddr, service: &str) -> Result<Status, BoxError> {
    match request(broker, What::Status, service).await? {
        Reply::Status(status) => Ok(status),
        other => Err(format!("asked for the status, heard {other}").into()),
    }
}

pub(crate) async fn reset(broker: SocketAddr, service: &str) -> Result<(), BoxError> {
    match request(broker, What::Reset, service).await? {
        Reply::Done => Ok(()),
        other => Err(format!("asked for a reset, heard {other}").into()),
    }
}

async fn request(broker: SocketAddr, what: What, service: &str) -> Result<Reply, BoxError> {
    let mut connection = Connection::open(broker).await?;
    let request = Request {
        what,
        service: service.to_owned(),
        version: VERSION.to_owned(),
    };
    connection.say(request).await?;
    connection.hear().await?.parse()
}
