//! The scenario in which a broker is stopped in the middle of a launch and continues later.

use std::time::Duration;

use spawn_gate::BoxError;

use super::LONG;
use super::verdict::{all_answered, from_backend, processes, refusal};
use crate::report::Check;
use crate::scene::Scene;

pub(super) async fn stopped(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.hold_backends()?;
    let launching = scene.broker(LONG).await?;
    let patient = scene.broker(LONG).await?;
    let impatient = scene
        .impatient_broker(LONG, Duration::from_millis(500))
        .await?;
    let at_launching = scene.clients((1, 20), [&launching], &["search"]).await?;
    scene.backends_started(1).await?;
    let at_patient = scene.clients((1, 40), [&patient], &["search"]).await?;
    scene
        .clients_wait_for(&launching, 40, [&patient], "search")
        .await?;
    let stopped = scene.stop(&launching).await?;
    scene.say("the broker that launches is stopped; 20 clients wait there, 40 at another one");
    // The backend becomes ready now, but its broker cannot tell anybody, and nobody takes its lock from it.
    scene.release_backends()?;
    let told = refusal(scene.ask(&impatient, "search").await?)?;
    scene.say(format_args!(
        "a client of an impatient broker hears: {told}"
    ));
    let holder = format!("which process {} took", launching.pid());

    drop(stopped);
    let mut tally = at_launching.finish(scene).await?;
    tally
        .answers
        .extend(at_patient.finish(scene).await?.answers);
    scene.say("the broker goes on, and all have their answer");
    let answer = scene.ask(&impatient, "search").await?;
    let started = scene.started()?;
    Ok(vec![
        Check::same(
            "refused meanwhile: timeout",
            format_args!("refused meanwhile: {}", told.code),
        ),
        Check::that(
            told.reason.contains(&holder),
            "and told who holds the lock",
            &told.reason,
        ),
        Check::same(processes(1), processes(started.len())),
        all_answered(60, &tally, &started),
        from_backend("a later client gets it", &answer, started.first()),
    ])
}
