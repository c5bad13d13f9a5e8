//! The scenarios: each drives real processes, then holds what it expected against what was seen.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use rustix::process::Signal;
use spawn_gate::BoxError;
use spawn_gate_etcd::EtcdSpawnLock;

use crate::cluster::Cluster;
use crate::host::{BROKEN, CLIENTS};
use crate::network::Network;
use crate::report::{Check, Report};
use crate::stage::{Host, Scene};

/// Plays all scenarios. Returns whether all was as expected.
pub(crate) async fn play_all() -> Result<bool, BoxError> {
    let report = Report::new();
    let mut checks = Vec::new();
    report.event("a cold start: three hosts with 50 clients each");
    cold_start(&mut checks).await?;
    report.event("a backend that always fails");
    always_fails(&mut checks).await?;
    report.event("a member is killed while a host waits");
    member_killed(&mut checks).await?;
    report.event("a host is cut off from the cluster while it launches");
    cut_off(&mut checks).await?;
    report.event("a host is paused right before it starts its backend");
    paused(&mut checks).await?;
    Ok(report.table(&checks))
}

/// A cluster that answers.
async fn cluster() -> Result<Cluster, BoxError> {
    let cluster = Cluster::start()?;
    let lock = EtcdSpawnLock::builder(cluster.endpoints()).build()?;
    lock.check(Duration::from_secs(20)).await?;
    Ok(cluster)
}

fn hosts(cluster: &Cluster, scene: &Scene, count: usize) -> Result<Vec<Host>, BoxError> {
    let mut endpoints = cluster.endpoints();
    let mut start = || {
        // Each asks another member first.
        endpoints.rotate_left(1);
        Host::start(&endpoints.join(","), scene.path())
    };
    (0..count).map(|_| start()).collect()
}

fn shown(answers: &BTreeMap<String, usize>) -> String {
    answers
        .iter()
        .fold(String::new(), |mut text, (answer, count)| {
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to a string cannot fail.
            let _ = write!(text, "{separator}{count} {answer}");
            text
        })
}

/// Has the clients of all hosts ask at once. Returns what they were answered.
async fn all_ask(hosts: &mut [Host]) -> Result<String, BoxError> {
    for host in &mut *hosts {
        host.tell("clients").await?;
    }
    let mut all = BTreeMap::new();
    for host in hosts {
        for (answer, count) in host.answers().await? {
            *all.entry(answer).or_default() += count;
        }
    }
    Ok(shown(&all))
}

async fn cold_start(checks: &mut Vec<Check>) -> Result<(), BoxError> {
    let (cluster, scene) = (cluster().await?, Scene::new()?);
    let mut hosts = hosts(&cluster, &scene, 3)?;
    let answers = all_ask(&mut hosts).await?;
    let title = "1 cold start, 3 hosts";
    checks.push(Check::new(
        title,
        format_args!("{} served", 3 * CLIENTS),
        answers,
    ));
    checks.push(Check::new(
        title,
        "1 backend started",
        format_args!("{} backend started", scene.backends("started")),
    ));
    Ok(())
}

async fn always_fails(checks: &mut Vec<Check>) -> Result<(), BoxError> {
    let (cluster, scene) = (cluster().await?, Scene::new()?);
    std::fs::write(scene.path().join(BROKEN), "")?;
    let mut hosts = hosts(&cluster, &scene, 3)?;
    let answers = all_ask(&mut hosts).await?;
    let title = "2 a backend that always fails";
    let expected = format!("{} refused: no such program", 3 * CLIENTS);
    checks.push(Check::new(title, expected, answers));
    checks.push(Check::new(
        title,
        "3 attempts",
        format_args!("{} attempts", scene.attempts()),
    ));
    Ok(())
}

async fn member_killed(checks: &mut Vec<Check>) -> Result<(), BoxError> {
    let (mut cluster, scene) = (cluster().await?, Scene::new()?);
    let mut hosts = hosts(&cluster, &scene, 3)?;
    hosts[0].tell("hold").await?;
    hosts[0].says("holds").await?;
    for host in &mut hosts[1..] {
        host.tell("clients").await?;
    }
    // The member that the second host asks.
    cluster.kill(2);
    hosts[0].tell("start").await?;
    let title = "3 a member is killed";
    checks.push(Check::new(title, "serves", hosts[0].says("backend").await?));
    checks.push(Check::new(
        title,
        "success",
        hosts[0].says("settled").await?,
    ));
    for host in &mut hosts[1..] {
        let answers = host.answers().await?;
        checks.push(Check::new(
            title,
            format_args!("{CLIENTS} served"),
            shown(&answers),
        ));
    }
    checks.push(Check::new(
        title,
        "1 backend started",
        format_args!("{} backend started", scene.backends("started")),
    ));
    cluster.start_member(2)
}

async fn cut_off(checks: &mut Vec<Check>) -> Result<(), BoxError> {
    let (cluster, scene) = (cluster().await?, Scene::new()?);
    let network = Network::new(&cluster.ports()).await?;
    let mut elder = Host::start(&network.endpoints(), scene.path())?;
    elder.tell("hold").await?;
    elder.says("holds").await?;
    let mut younger = hosts(&cluster, &scene, 1)?;
    younger[0].tell("hold").await?;
    network.cut();
    let title = "4 a host is cut off";
    // First the one, and only then the other.
    checks.push(Check::new(
        title,
        "the elder learns of it: true",
        format_args!("the elder learns of it: {}", elder.says("lost").await?),
    ));
    checks.push(Check::new(
        title,
        "attempt 2 of the younger",
        format_args!("attempt {} of the younger", younger[0].says("holds").await?),
    ));
    younger[0].tell("start").await?;
    checks.push(Check::new(
        title,
        "serves",
        younger[0].says("backend").await?,
    ));
    checks.push(Check::new(
        title,
        "success",
        younger[0].says("settled").await?,
    ));
    network.mend();
    elder.tell("start").await?;
    late(checks, title, &mut elder, &scene).await
}

async fn paused(checks: &mut Vec<Check>) -> Result<(), BoxError> {
    let (cluster, scene) = (cluster().await?, Scene::new()?);
    let mut hosts = hosts(&cluster, &scene, 2)?;
    hosts[0].tell("hold").await?;
    hosts[0].says("holds").await?;
    hosts[0].signal(Signal::STOP)?;
    hosts[1].tell("hold").await?;
    let title = "5 a host is paused";
    checks.push(Check::new(
        title,
        "attempt 2 of the younger",
        format_args!("attempt {} of the younger", hosts[1].says("holds").await?),
    ));
    hosts[1].tell("start").await?;
    checks.push(Check::new(title, "serves", hosts[1].says("backend").await?));
    hosts[0].signal(Signal::CONT)?;
    checks.push(Check::new(
        title,
        "the elder learns of it: true",
        format_args!("the elder learns of it: {}", hosts[0].says("lost").await?),
    ));
    checks.push(Check::new(
        title,
        "success",
        hosts[1].says("settled").await?,
    ));
    hosts[0].tell("start").await?;
    late(checks, title, &mut hosts[0], &scene).await
}

/// The elder starts its backend all the same, late.
async fn late(
    checks: &mut Vec<Check>,
    title: &'static str,
    elder: &mut Host,
    scene: &Scene,
) -> Result<(), BoxError> {
    let backend = elder.says("backend").await?;
    checks.push(Check::new(
        title,
        "the backend of a younger launch serves",
        backend,
    ));
    checks.push(Check::new(title, "lock_lost", elder.says("settled").await?));
    let seen = [
        scene.backends("started"),
        scene.backends("serves"),
        scene.backends("steps-back"),
    ];
    checks.push(Check::new(
        title,
        "2 started, 1 serves, 1 steps back",
        format_args!(
            "{} started, {} serves, {} steps back",
            seen[0], seen[1], seen[2]
        ),
    ));
    Ok(())
}
