//! The scenarios: each drives real processes, then holds what it expected against what the backends' journal says.

use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::{BoxError, FileSpawnLock, acquire_spawn_lock};

use crate::broker::backend_key;
use crate::client::{Answer, VERSION};
use crate::protocol::{BackendId, Connection, Refusal};
use crate::report::Check;
use crate::scene::{Broker, Scene, Tally};
use crate::stage::Stage;

/// A budget window that no scenario sees the end of.
const LONG: Duration = Duration::from_secs(30);

pub(crate) const TITLES: [&str; 7] = [
    "1 cold start, 300 clients",
    "2 three services at once",
    "3 a backend that always fails",
    "4 clients hang up in mid-launch",
    "5 launch longer than its window",
    "6 lock file is replaced",
    "7 two brokers, one directory",
];

/// Plays one scenario. One that cannot be played to its end differs from what was expected, too.
pub(crate) async fn play(stage: &Arc<Stage>, index: usize) -> Vec<Check> {
    stage.report.heading(TITLES[index]);
    let played = async {
        let scene = &Scene::new(Arc::clone(stage), &format!("scenario-{}", index + 1))?;
        match index {
            0 => cold_start(scene).await,
            1 => three_services(scene).await,
            2 => always_fails(scene).await,
            3 => hang_ups(scene).await,
            4 => longer_than_window(scene).await,
            5 => lock_file_replaced(scene).await,
            _ => two_brokers(scene).await,
        }
    };
    played
        .await
        .unwrap_or_else(|error: BoxError| vec![Check::same("plays to its end", error)])
}

async fn cold_start(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.hold_backends()?;
    let broker = scene.broker(LONG).await?;
    let clients = scene.clients((5, 60), &[&broker], &["search"]).await?;
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

async fn three_services(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    let services = ["search", "mail", "thumbnails"];
    scene.hold_backends()?;
    let broker = scene.broker(LONG).await?;
    let clients = scene.clients((3, 40), &[&broker], &services).await?;
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

async fn always_fails(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.break_backends()?;
    let broker = scene.broker(Duration::from_secs(4)).await?;
    let clients = scene.clients((2, 30), &[&broker], &["search"]).await?;
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
        Check::that(grow, "launch numbers grow", launch_numbers(&started)),
    ])
}

async fn hang_ups(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.hold_backends()?;
    let broker = scene.broker(LONG).await?;
    let clients = scene.clients((3, 20), &[&broker], &["search"]).await?;
    scene.backends_started(1).await?;
    clients.hang_up(scene).await?;
    scene.say("60 clients have hung up while the backend starts");
    scene.release_backends()?;
    scene.backend_published().await?;
    scene.say("the backend is ready, with nobody waiting for it");
    let answer = scene.ask(&broker, "search").await?;
    let started = scene.started_of("search")?;

    // What was charged shows in what is left: the same with a launch that fails, then attempts until the budget is used up.
    scene.break_backends()?;
    scene.hold_backends()?;
    let clients = scene.clients((3, 20), &[&broker], &["mail"]).await?;
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

async fn longer_than_window(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    let window = Duration::from_secs(1);
    scene.hold_backends()?;
    let broker = scene.broker(window).await?;
    let early = scene.clients((1, 40), &[&broker], &["search"]).await?;
    scene.backends_started(1).await?;
    scene.say("40 clients wait while the backend starts");
    scene.let_pass(window * 3 / 2, "the window is over").await;
    let late = scene.clients((1, 40), &[&broker], &["search"]).await?;
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

async fn lock_file_replaced(scene: &Scene) -> Result<Vec<Check>, BoxError> {
    scene.hold_backends()?;
    let broker = scene.broker(LONG).await?;
    let clients = scene.clients((1, 20), &[&broker], &["search"]).await?;
    scene.backends_started(1).await?;
    let locks = FileSpawnLock::new(scene.directory.join("locks"))?;
    let lock_file = locks.path_of(&backend_key("search", VERSION));
    std::fs::remove_file(&lock_file)?;
    // The harm that is to be noticed: the broker holds the lock, and so could somebody else now.
    drop(acquire_spawn_lock(&lock_file)?);
    scene.say("the lock file was deleted and made anew while 20 clients wait for a launch");
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

async fn two_brokers(scene: &Scene) -> Result<Vec<Check>, BoxError> {
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

fn refusal(answer: Answer) -> Result<Refusal, BoxError> {
    match answer {
        Answer::Refused(refusal) => Ok(refusal),
        Answer::Backend(backend, _) => Err(format!("not refused, but got {backend}").into()),
    }
}

fn with_code(refusals: &[Refusal], code: &str) -> usize {
    refusals.iter().filter(|it| it.code == code).count()
}

fn processes(count: usize) -> String {
    match count {
        1 => "1 process".to_owned(),
        _ => format!("{count} processes"),
    }
}

fn launch_numbers(started: &[BackendId]) -> String {
    let numbers: Vec<_> = started.iter().map(|it| it.launch.to_string()).collect();
    numbers.join(" < ")
}

/// Every client has an answer, and from one of these backends.
fn all_answered(clients: usize, tally: &Tally, backends: &[BackendId]) -> Check {
    let known = tally.answers.iter().filter(|it| backends.contains(it));
    let expected = format!("{clients} answers from it");
    Check::same(&expected, format_args!("{} answers from it", known.count()))
}

/// The answer is from this backend.
fn from_backend(expected: impl Display, answer: &Answer, backend: Option<&BackendId>) -> Check {
    let expected = expected.to_string();
    let seen = match answer {
        Answer::Backend(id, _) if Some(id) == backend => expected.clone(),
        Answer::Backend(id, _) => format!("an answer from {id}"),
        Answer::Refused(refusal) => refusal.to_string(),
    };
    Check::same(expected, seen)
}
