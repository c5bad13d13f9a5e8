//! The scenarios with several brokers that share a directory, and so their backends, locks and budgets.

use std::time::{Duration, Instant};

use spawn_gate::BoxError;
use tokio::time::sleep;

use super::LONG;
use super::verdict::{all_answered, from_backend, processes, refusal, with_code};
use crate::backend::BROKEN_SAYS;
use crate::cast::Broker;
use crate::client::Answer;
use crate::protocol::{Connection, Refusal};
use crate::report::Check;
use crate::scene::{POLL, Scene, within};

pub(super) async fn cold_start(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.hold_backends()?;
    let brokers = scene.brokers(4, LONG).await?;
    let clients = scene.clients((4, 50), &brokers, &["search"]).await?;
    scene.backends_started(1).await?;
    scene.say("200 clients wait, 50 at each broker");
    scene.release_backends()?;
    let tally = clients.finish(scene).await?;
    let started = scene.started()?;
    scene.say("all have their answer");

    crash(scene, &brokers[0]).await?;
    scene.say("the backend crashed, its record is still there; 80 more clients ask");
    let clients = scene.clients((2, 40), &brokers, &["search"]).await?;
    let tally_after = clients.finish(scene).await?;
    let restarted = &scene.started()?[started.len()..];
    Ok(vec![
        Check::same(processes(1), processes(started.len())),
        all_answered(200, &tally, &started),
        Check::same(
            "1 process more after its crash",
            format_args!("{} more after its crash", processes(restarted.len())),
        ),
        all_answered(80, &tally_after, restarted),
    ])
}

/// Makes the running backend of `search` crash, and waits until it is gone.
async fn crash(scene: &Scene, broker: &Broker) -> Result<(), BoxError> {
    let Answer::Backend(_, address) = scene.ask(broker, "search").await? else {
        return Err("there is no backend to crash".into());
    };
    within("a backend to crash", async {
        let mut backend = Connection::open(address).await?;
        backend.say("crash").await?;
        backend.hung_up().await;
        Ok(())
    })
    .await
}

pub(super) async fn always_fails(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.break_backends()?;
    scene.hold_backends()?;
    let launching = scene.broker(LONG).await?;
    let others = scene.brokers(3, LONG).await?;
    let at_launching = scene.clients((1, 20), [&launching], &["search"]).await?;
    scene.backends_started(1).await?;
    let at_others = scene.clients((3, 20), &others, &["search"]).await?;
    scene
        .clients_wait_for(&launching, 60, &others, "search")
        .await?;
    scene.say("20 clients wait at the broker that launches, 60 at three others");
    scene.release_backends()?;
    let at_launching = at_launching.finish(scene).await?;
    let at_others = at_others.finish(scene).await?;
    let attempts = scene.started()?.len();
    scene.say(format_args!(
        "all asked again after each failure; backends started: {attempts}"
    ));
    if let Some(failure) = at_others.failures.first() {
        scene.say(format_args!("a client elsewhere hears: {failure}"));
    }

    // What the backend said, by way of a broker that started none so far.
    let shared = |failure: &&Refusal| {
        failure.reason.contains("another launch of") && failure.reason.contains(BROKEN_SAYS)
    };
    let heard = at_others.failures.iter().filter(shared).count();
    let refusals = [at_launching.refusals, at_others.refusals].concat();
    let refused = with_code(&refusals, "budget-exhausted");
    let told_when = |it: &&Refusal| !it.retry_after.is_zero() && it.retry_after <= LONG;
    let told_when = refusals.iter().filter(told_when).count();
    Ok(vec![
        Check::same("3 attempts", format_args!("{attempts} attempts")),
        Check::same(
            "60 hear its failure elsewhere",
            format_args!("{heard} hear its failure elsewhere"),
        ),
        Check::same(
            "80 clients refused: budget-exhausted",
            format_args!("{refused} clients refused: budget-exhausted"),
        ),
        Check::same(
            "80 are told when to retry",
            format_args!("{told_when} are told when to retry"),
        ),
    ])
}

/// By then, a reset at one broker was noticed at the others: they look once a second, and a busy machine may be slow.
const RESET_LIMIT: Duration = Duration::from_secs(3);

pub(super) async fn operator_resets(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.break_backends()?;
    let (one, other) = (scene.broker(LONG).await?, scene.broker(LONG).await?);
    let clients = scene.clients((2, 20), [&one, &other], &["search"]).await?;
    let storm = clients.finish(scene).await?;
    scene.mend_backends()?;
    let used_up = scene.started()?.len();
    let refusals = [
        refusal(scene.ask(&one, "search").await?)?,
        refusal(scene.ask(&other, "search").await?)?,
    ];
    scene.say("the budget is used up; the backend was mended, but both brokers refuse");

    scene.reset(&one, "search").await?;
    let reset = Instant::now();
    scene.say("an operator resets it at one broker, a client asks the other one again and again");
    let answer = loop {
        match scene.ask(&other, "search").await? {
            Answer::Refused(_) if reset.elapsed() < RESET_LIMIT => sleep(POLL).await,
            answer => break answer,
        }
    };
    let took = reset.elapsed().as_secs_f64();
    scene.say(format_args!("after {took:.1} s it is not refused any more"));
    let answer_of_one = scene.ask(&one, "search").await?;
    let started = &scene.started()?[used_up..];
    Ok(vec![
        Check::same(
            "40 clients refused: budget-exhausted",
            format_args!(
                "{} clients refused: budget-exhausted",
                with_code(&storm.refusals, "budget-exhausted")
            ),
        ),
        Check::same(
            "2 brokers refuse before the reset",
            format_args!(
                "{} brokers refuse before the reset",
                with_code(&refusals, "budget-exhausted")
            ),
        ),
        Check::same(
            "1 process after the reset",
            format_args!("{} after the reset", processes(started.len())),
        ),
        from_backend("the other broker launched it", &answer, started.first()),
        from_backend(
            "the first one gives it out, too",
            &answer_of_one,
            started.first(),
        ),
    ])
}
