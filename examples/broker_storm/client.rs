//! The clients: ask a broker for a backend, then the backend itself for an answer.

use std::net::SocketAddr;
use std::time::Duration;

use spawn_gate::BoxError;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::protocol::{BackendId, Connection, Refusal, Reply, Request, What, ping};
use crate::role;

pub(crate) const VERSION: &str = "1.0";

const ANSWER_LIMIT: Duration = Duration::from_secs(15);

const PAUSE: Duration = Duration::from_millis(10);

/// How a client's request ended.
pub(crate) enum Answer {
    /// A live backend answered, at this address.
    Backend(BackendId, SocketAddr),
    Refused(Refusal),
}

/// Asks a broker for a backend, and that for an answer. `asked` is called when the broker was asked and has yet to reply.
pub(crate) async fn ask(
    broker: SocketAddr,
    service: &str,
    mut asked: impl FnMut(),
) -> Result<Answer, BoxError> {
    let request = async {
        loop {
            let mut connection = Connection::open(broker).await?;
            let hello = Request {
                what: What::Hello,
                service: service.to_owned(),
                version: VERSION.to_owned(),
            };
            connection.say(hello).await?;
            asked();
            let address = match connection.hear().await?.parse()? {
                Reply::Refused(refusal) => return Ok(Answer::Refused(refusal)),
                Reply::Negotiated(address) => address,
                other => return Err(format!("asked for a backend, heard {other}").into()),
            };
            match ping(address).await {
                Ok(pong) => {
                    let id = pong.strip_prefix("pong ").unwrap_or(&pong);
                    return Ok(Answer::Backend(id.parse()?, address));
                }
                // A backend can end between the broker's reply and this call: ask the broker again.
                Err(_) => sleep(PAUSE).await,
            }
        }
    };
    timeout(ANSWER_LIMIT, request)
        .await
        .map_err(|_| "no answer in time")?
}

/// Many clients in one process, spread over the brokers and services. Each says in a line how it fares; if the parent
/// process is gone (or wants them to hang up), they end where they are.
pub(crate) async fn run(
    brokers: &[SocketAddr],
    services: &[String],
    count: usize,
) -> Result<(), BoxError> {
    let mut clients = JoinSet::new();
    let each = brokers.iter().cycle().zip(services.iter().cycle());
    for (&broker, service) in each.take(count) {
        clients.spawn(one(broker, service.clone()));
    }
    tokio::select! {
        () = role::parent_gone() => {}
        _ = clients.join_all() => {}
    }
    Ok(())
}

async fn one(broker: SocketAddr, service: String) {
    let mut first_request = true;
    let mut asked = || {
        if std::mem::take(&mut first_request) {
            role::say("asked");
        }
    };
    let mut first_failure = true;
    loop {
        match ask(broker, &service, &mut asked).await {
            Ok(Answer::Backend(id, _)) => return role::say(format_args!("answered {id}")),
            // Clients are impatient. The storm that comes of it is what the budget is there for.
            Ok(Answer::Refused(refusal)) if refusal.code == "launch-failed" => {
                if std::mem::take(&mut first_failure) {
                    role::say(format_args!("failed {refusal}"));
                }
            }
            Ok(Answer::Refused(refusal)) => return role::say(refusal),
            Err(error) => return role::say(format_args!("error {error}")),
        }
    }
}
