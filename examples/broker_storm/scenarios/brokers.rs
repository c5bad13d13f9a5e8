//! The scenarios with several brokers that share a directory, and so their backends, locks and budgets.

use spawn_gate::BoxError;

use super::LONG;
use super::verdict::{all_answered, from_backend, processes};
use crate::cast::Broker;
use crate::client::Answer;
use crate::protocol::Connection;
use crate::report::Check;
use crate::scene::Scene;

pub(super) async fn two_brokers(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.hold_backends()?;
    let (one, other) = (scene.broker(LONG).await?, scene.broker(LONG).await?);
    let clients = scene.clients((4, 50), &[&one, &other], &["search"]).await?;
    scene.backends_started(1).await?;
    scene.say("200 clients wait, 100 at each broker");
    scene.release_backends()?;
    let tally = clients.finish(scene).await?;
    let started = scene.started()?;
    scene.say("all have their answer");

    crash(scene, &one).await?;
    scene.say("the backend crashed, its endpoint file is still there");
    let answers = [
        scene.ask(&other, "search").await?,
        scene.ask(&one, "search").await?,
    ];
    let restarted = scene.started()?;
    Ok(vec![
        Check::same(processes(1), processes(started.len())),
        all_answered(200, &tally, &started),
        Check::same(
            "1 process more after its crash",
            format_args!(
                "{} more after its crash",
                processes(restarted.len() - started.len())
            ),
        ),
        from_backend("both brokers give it out", &answers[0], restarted.get(1)),
        from_backend("both brokers give it out", &answers[1], restarted.get(1)),
    ])
}

/// Makes the running backend of `search` crash, and waits until it is gone.
async fn crash(scene: &Scene, broker: &Broker) -> Result<(), BoxError> {
    let Answer::Backend(_, address) = scene.ask(broker, "search").await? else {
        return Err("there is no backend to crash".into());
    };
    let mut backend = Connection::open(address).await?;
    backend.say("crash").await?;
    backend.hung_up().await;
    Ok(())
}
