//! The broker and client processes of a scenario.

use std::net::SocketAddr;
use std::time::Duration;

use spawn_gate::BoxError;
use tokio::sync::mpsc;
use tokio::time::sleep;

use crate::client::{Answer, ask};
use crate::operator;
use crate::protocol::{BackendId, Refusal, Reply, Status};
use crate::scene::{POLL, Scene, within};
use crate::stage::Lifeline;

/// How long a broker waits for another one's launch unless a scenario is about that: longer than any may take.
const PATIENT: Duration = Duration::from_secs(40);

/// A broker process.
pub(crate) struct Broker {
    address: SocketAddr,
    lifeline: Lifeline,
    lines: mpsc::UnboundedReceiver<String>,
}

/// Client processes, and what is known of their clients.
pub(crate) struct Clients {
    lifelines: Vec<Lifeline>,
    lines: mpsc::UnboundedReceiver<String>,
    pub(crate) tally: Tally,
}

#[derive(Default)]
pub(crate) struct Tally {
    pub(crate) asked: usize,
    pub(crate) answers: Vec<BackendId>,
    /// The failure that each client heard first, before it asked again.
    pub(crate) failures: Vec<Refusal>,
    pub(crate) refusals: Vec<Refusal>,
}

impl Scene {
    /// Starts a broker process whose budgets have this window.
    pub(crate) async fn broker(&self, window: Duration) -> Result<Broker, BoxError> {
        self.impatient_broker(window, PATIENT).await
    }

    /// Starts as many of them.
    pub(crate) async fn brokers(
        &self,
        count: usize,
        window: Duration,
    ) -> Result<Vec<Broker>, BoxError> {
        let mut brokers = Vec::new();
        for _ in 0..count {
            brokers.push(self.broker(window).await?);
        }
        Ok(brokers)
    }

    /// Starts a broker process that waits only so long for another one's launch.
    pub(crate) async fn impatient_broker(
        &self,
        window: Duration,
        lock_timeout: Duration,
    ) -> Result<Broker, BoxError> {
        let (sender, mut lines) = mpsc::unbounded_channel();
        let args = [
            self.directory_arg()?,
            window.as_millis().to_string(),
            lock_timeout.as_millis().to_string(),
        ];
        let lifeline = self.stage.start("broker", args, sender).await?;
        let line = next_line("the broker", &mut lines).await?;
        let address = line.strip_prefix("listening ").unwrap_or(&line);
        Ok(Broker {
            address: address.parse()?,
            lifeline,
            lines,
        })
    }

    /// Stops a broker until what this returns is dropped.
    pub(crate) async fn stop(&self, broker: &Broker) -> Result<Lifeline, BoxError> {
        let (sender, mut lines) = mpsc::unbounded_channel();
        let args = [broker.pid().to_string()];
        let stopper = self.stage.start("stopper", args, sender).await?;
        next_line("the broker to stop", &mut lines).await?;
        Ok(stopper)
    }

    /// Starts client processes, each with as many clients, spread over the brokers and services.
    pub(crate) async fn clients<'a>(
        &self,
        (processes, clients_each): (usize, usize),
        brokers: impl IntoIterator<Item = &'a Broker>,
        services: &[&str],
    ) -> Result<Clients, BoxError> {
        let brokers = brokers.into_iter().map(|it| it.address.to_string());
        let brokers: Vec<_> = brokers.collect();
        let args = [
            brokers.join(","),
            services.join(","),
            clients_each.to_string(),
        ];
        let (sender, lines) = mpsc::unbounded_channel();
        let mut lifelines = Vec::new();
        for _ in 0..processes {
            let lifeline = self.stage.start("clients", &args, sender.clone()).await?;
            lifelines.push(lifeline);
        }
        let mut clients = Clients {
            lifelines,
            lines,
            tally: Tally::default(),
        };
        let all = processes * clients_each;
        within("all clients to ask", async {
            while clients.tally.asked < all {
                clients
                    .next(self)
                    .await?
                    .then_some(())
                    .ok_or("clients ended early")?;
            }
            Ok(())
        })
        .await?;
        Ok(clients)
    }

    /// Asks as one more client.
    pub(crate) async fn ask(&self, broker: &Broker, service: &str) -> Result<Answer, BoxError> {
        within("an answer", ask(broker.address, service, || {})).await
    }

    /// Asks as an operator how a backend stands.
    pub(crate) async fn status(&self, broker: &Broker, service: &str) -> Result<Status, BoxError> {
        within("a status", operator::status(broker.address, service)).await
    }

    /// Resets a backend's budget as an operator.
    pub(crate) async fn reset(&self, broker: &Broker, service: &str) -> Result<(), BoxError> {
        within("a reset", operator::reset(broker.address, service)).await
    }

    /// Waits until so many clients at these brokers wait for the launch of another one.
    pub(crate) async fn clients_wait_for<'a>(
        &self,
        launching: &Broker,
        clients: usize,
        brokers: impl IntoIterator<Item = &'a Broker>,
        service: &str,
    ) -> Result<(), BoxError> {
        let brokers: Vec<_> = brokers.into_iter().collect();
        let all_wait = async {
            loop {
                let mut waiting = 0;
                for broker in &brokers {
                    let status = self.status(broker, service).await?;
                    if status.holder == Some(launching.pid()) {
                        waiting += status.waiting;
                    }
                }
                if waiting == clients {
                    return Ok(());
                }
                sleep(POLL).await;
            }
        };
        within("clients to wait for another broker", all_wait).await
    }

    fn directory_arg(&self) -> Result<String, BoxError> {
        let text = self.directory.to_str();
        Ok(text
            .ok_or("the temporary directory's path is not UTF-8")?
            .to_owned())
    }
}

impl Broker {
    pub(crate) fn pid(&self) -> u32 {
        self.lifeline.pid
    }

    /// Kills it, and waits until it is gone. The backends that it launched end by themselves.
    pub(crate) async fn kill(mut self) -> Result<(), BoxError> {
        self.lifeline.kill();
        within("the broker to be gone", async {
            while self.lines.recv().await.is_some() {}
            Ok(())
        })
        .await
    }
}

impl Clients {
    /// Waits until all clients are done.
    pub(crate) async fn finish(mut self, scene: &Scene) -> Result<Tally, BoxError> {
        within("all clients to be done", async {
            while self.next(scene).await? {}
            Ok(self.tally)
        })
        .await
    }

    /// Ends the client processes where they are, and waits until they are gone.
    pub(crate) async fn hang_up(mut self, scene: &Scene) -> Result<Tally, BoxError> {
        self.lifelines.clear();
        self.finish(scene).await
    }

    /// Counts what a client says next. Returns false when all have ended.
    async fn next(&mut self, scene: &Scene) -> Result<bool, BoxError> {
        let Some(line) = self.lines.recv().await else {
            return Ok(false);
        };
        let tally = &mut self.tally;
        if line == "asked" {
            tally.asked += 1;
        } else if let Some(backend) = line.strip_prefix("answered ") {
            tally.answers.push(backend.parse()?);
        } else if let Some(Ok(Reply::Refused(failure))) =
            line.strip_prefix("failed ").map(str::parse)
        {
            tally.failures.push(failure);
        } else if let Ok(Reply::Refused(refusal)) = line.parse() {
            tally.refusals.push(refusal);
        } else {
            return Err(format!("a client says: {line}").into());
        }
        let (asked, answered, refused) = (tally.asked, tally.answers.len(), tally.refusals.len());
        scene.stage.report.progress(|| {
            let started = scene.started().map_or(0, |started| started.len());
            format!(
                "clients: {asked} asked, {answered} answered, {refused} refused; backends started: {started}"
            )
        });
        Ok(true)
    }
}

async fn next_line(
    what: &str,
    lines: &mut mpsc::UnboundedReceiver<String>,
) -> Result<String, BoxError> {
    within(what, async {
        let line = lines.recv().await;
        line.ok_or_else(|| format!("waited for {what}, but its process has ended").into())
    })
    .await
}
