//! The scenarios with one broker.

use std::time::Duration;

use spawn_gate::{BoxError, FileSpawnLock, acquire_spawn_lock};

use super::LONG;
use super::verdict::{all_answered, fencing_tokens, from_backend, processes, refusal, with_code};
use crate::broker::backend_key;
use crate::client::VERSION;
use crate::report::Check;
use crate::scene::Scene;

pub(super) async fn cold_start(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.hold_backends()?;
    let broker = scene.broker(LONG).await?;
    let clients = scene.clients((5, 60), [&broker], &["search"]).await?;
    scene.backends_started(1).await?;
    scene.say("300 clients in 5 processes wait while the backend starts");
    scene.release_backends()?;
    let tally = clients.finish(scene).await?;
    scene.say("all have their answer");
    let started = scene.started()?;
    Ok(vec![
        Check::same(processes(1), processes(started.len())),
        all_answered(300, &tally, &started),
    ])
}

pub(super) async fn three_services(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    let services = ["search", "mail", "thumbnails"];
    scene.hold_backends()?;
    let broker = scene.broker(LONG).await?;
    let clients = scene.clients((3, 40), [&broker], &services).await?;
    // None of them is let through yet: this returns only if no launch waits for another service's.
    scene.backends_started(3).await?;
    scene.say("120 clients wait, 3 backends start side by side");
    scene.release_backends()?;
    let tally = clients.finish(scene).await?;
    scene.say("all have their answer");
    let mut started = scene.started()?;
    let count = started.len();
    started.dedup_by_key(|backend| backend.service.clone());
    let each = services.map(|service| scene.started_of(service).map_or(0, |of| of.len()));
    Ok(vec![
        Check::same(processes(3), processes(count)),
        Check::same(
            "1 of each service",
            if each == [1, 1, 1] {
                "1 of each service".to_owned()
            } else {
                format!("{each:?} of the services")
            },
        ),
        all_answered(120, &tally, &started),
    ])
}

pub(super) async fn always_fails(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.break_backends()?;
    let broker = scene.broker(Duration::from_secs(4)).await?;
    let clients = scene.clients((2, 30), [&broker], &["search"]).await?;
    let storm = clients.finish(scene).await?;
    let started = scene.started()?;
    let attempts = started.len();
    let refused = with_code(&storm.refusals, "budget-exhausted");
    scene.say(format_args!(
        "60 clients asked again after each failure; backends started: {attempts}"
    ));

    let first = refusal(scene.ask(&broker, "search").await?)?;
    scene
        .let_pass(Duration::from_millis(500), "the next request")
        .await;
    let second = refusal(scene.ask(&broker, "search").await?)?;
    scene.say(format_args!("a client hears: {second}"));
    let idle = scene.started()?.len() - attempts;
    let shrinks = first.retry_after.saturating_sub(second.retry_after);

    scene.mend_backends()?;
    scene.let_pass(second.retry_after, "the retry").await;
    let answer = scene.ask(&broker, "search").await?;
    scene.say("the backend is mended, and a client retries when it was told to");
    let started = scene.started()?;
    let grow = started.is_sorted_by(|one, next| one.launch < next.launch);
    Ok(vec![
        Check::same("3 attempts", format_args!("{attempts} attempts")),
        Check::same(
            "60 clients refused: budget-exhausted",
            format_args!("{refused} clients refused: budget-exhausted"),
        ),
        Check::that(
            shrinks >= Duration::from_millis(500),
            "retry-after shrinks as time goes by",
            format_args!(
                "from {} ms to {} ms",
                first.retry_after.as_millis(),
                second.retry_after.as_millis()
            ),
        ),
        Check::same(
            "0 processes while refused",
            format_args!("{idle} processes while refused"),
        ),
        Check::same(
            "1 process after the window",
            format_args!(
                "{} after the window",
                processes(started.len() - attempts - idle)
            ),
        ),
        from_backend("the retry is answered", &answer, started.last()),
        Check::that(grow, "fencing tokens grow", fencing_tokens(&started)),
    ])
}

pub(super) async fn hang_ups(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.hold_backends()?;
    let broker = scene.broker(LONG).await?;
    let clients = scene.clients((3, 20), [&broker], &["search"]).await?;
    scene.backends_started(1).await?;
    clients.hang_up(scene).await?;
    scene.say("60 clients have hung up while the backend starts");
    scene.release_backends()?;
    scene.backend_is_ready("search").await?;
    scene.say("the backend is ready, with nobody waiting for it");
    let answer = scene.ask(&broker, "search").await?;
    let started = scene.started_of("search")?;

    // What was charged shows in what is left: the same with a launch that fails, then attempts until the budget is used up.
    scene.break_backends()?;
    scene.hold_backends()?;
    let clients = scene.clients((3, 20), [&broker], &["mail"]).await?;
    scene.backends_started(2).await?;
    clients.hang_up(scene).await?;
    scene.release_backends()?;
    for _ in 0..10 {
        if refusal(scene.ask(&broker, "mail").await?)?.code == "budget-exhausted" {
            break;
        }
    }
    let attempts = scene.started_of("mail")?.len();
    scene.say("60 hung up on a launch that fails, and one client retried until it was refused");
    Ok(vec![
        Check::same(processes(1), processes(started.len())),
        from_backend("a later client gets it", &answer, started.first()),
        Check::same(
            "1 attempt charged, 2 left",
            format_args!("1 attempt charged, {} left", attempts.saturating_sub(1)),
        ),
    ])
}

pub(super) async fn longer_than_window(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    let window = Duration::from_secs(1);
    scene.hold_backends()?;
    let broker = scene.broker(window).await?;
    let early = scene.clients((1, 40), [&broker], &["search"]).await?;
    scene.backends_started(1).await?;
    scene.say("40 clients wait while the backend starts");
    scene.let_pass(window * 3 / 2, "the window is over").await;
    let late = scene.clients((1, 40), [&broker], &["search"]).await?;
    scene.say("the window of 1 s is over, 40 more ask while it still starts");
    scene.release_backends()?;
    let mut tally = early.finish(scene).await?;
    tally.answers.extend(late.finish(scene).await?.answers);
    let started = scene.started()?;
    Ok(vec![
        Check::same(processes(1), processes(started.len())),
        all_answered(80, &tally, &started),
    ])
}

pub(super) async fn lock_file_replaced(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.hold_backends()?;
    let broker = scene.broker(LONG).await?;
    let clients = scene.clients((1, 20), [&broker], &["search"]).await?;
    scene.backends_started(1).await?;
    let locks = FileSpawnLock::new(scene.directory.join("locks"))?;
    let lock_file = locks.path_of(&backend_key("search", VERSION));
    std::fs::rename(&lock_file, lock_file.with_extension("old"))?;
    // The harm that is to be noticed: the broker holds the lock, and so could somebody else now.
    drop(acquire_spawn_lock(&lock_file)?);
    scene.say("the lock file was moved away and made anew while 20 clients wait for a launch");
    scene.release_backends()?;
    let tally = clients.finish(scene).await?;
    let told = with_code(&tally.refusals, "lock-lost");
    let path = lock_file.display().to_string();
    let named = tally.refusals.iter().filter(|it| it.reason.contains(&path));
    let named = named.count();
    if let Some(refusal) = tally.refusals.first() {
        scene.say(format_args!("a client hears: {refusal}"));
    }
    let answer = scene.ask(&broker, "search").await?;
    let started = scene.started()?;
    Ok(vec![
        Check::same(
            "20 clients refused: lock-lost",
            format_args!("{told} clients refused: lock-lost"),
        ),
        Check::same(
            "20 hear which file it is",
            format_args!("{named} hear which file it is"),
        ),
        Check::same(processes(2), processes(started.len())),
        from_backend("a later client gets the second", &answer, started.get(1)),
    ])
}
