//! The scenario in which brokers are killed, each in the middle of a launch.

use spawn_gate::BoxError;

use super::LONG;
use super::verdict::{all_answered, fencing_tokens, processes, refusal};
use crate::cast::Broker;
use crate::report::Check;
use crate::scene::Scene;

pub(super) async fn killed(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.hold_backends()?;
    let launching = scene.broker(LONG).await?;
    let others = scene.brokers(2, LONG).await?;
    begin_launch(scene, &launching, "search").await?;
    let clients = scene.clients((2, 30), &others, &["search"]).await?;
    scene
        .clients_wait_for(&launching, 60, &others, "search")
        .await?;
    scene.say("60 clients at two brokers wait for the launch of a third");
    launching.kill().await?;
    scene.backends_started(2).await?;
    scene.say("that one was killed, and one of the two launches in its place");
    let used = scene.status(&others[0], "search").await?.used;
    scene.release_backends()?;
    let tally = clients.finish(scene).await?;
    let started = scene.started()?;
    let grow = started.is_sorted_by(|one, next| one.launch < next.launch);

    // A success forgets what was used, so this takes a backend that never gets that far.
    scene.hold_backends()?;
    for _ in 0..3 {
        let broker = scene.broker(LONG).await?;
        begin_launch(scene, &broker, "mail").await?;
        broker.kill().await?;
    }
    scene.say("three more brokers were killed, one after the other, each in its launch");
    // One attempt more would not wait, but fail.
    scene.break_backends()?;
    scene.release_backends()?;
    let fresh = scene.broker(LONG).await?;
    let refusal = refusal(scene.ask(&fresh, "mail").await?)?;
    scene.say(format_args!("a client of a fresh one hears: {refusal}"));
    let attempts = scene.started_of("mail")?.len();
    Ok(vec![
        Check::same(
            "1 process more after the kill",
            format_args!("{} more after the kill", processes(started.len() - 1)),
        ),
        all_answered(60, &tally, &started[1..]),
        Check::that(grow, "fencing tokens grow", fencing_tokens(&started)),
        Check::same(
            "the killed attempt counts: 2 used",
            format_args!("the killed attempt counts: {used} used"),
        ),
        Check::same(
            "3 kills: 3 attempts",
            format_args!("3 kills: {attempts} attempts"),
        ),
        Check::same(
            "a fresh broker says: budget-exhausted",
            format_args!("a fresh broker says: {}", refusal.code),
        ),
    ])
}

/// Makes a broker launch a backend, which is held in its start-up. The client that asked for it has hung up since.
async fn begin_launch(scene: &Scene, broker: &Broker, service: &str) -> Result<(), BoxError> {
    let before = scene.started()?.len();
    let client = scene.clients((1, 1), [broker], &[service]).await?;
    scene.backends_started(before + 1).await?;
    client.hang_up(scene).await?;
    Ok(())
}
