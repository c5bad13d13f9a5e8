//! What a scenario works with: its directory, its brokers and clients, and the journal of the backends that were started.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use spawn_gate::BoxError;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::backend::{BROKEN, HOLD, JOURNAL};
use crate::client::{Answer, ask};
use crate::protocol::{BackendId, Refusal, Reply};
use crate::stage::{Lifeline, Stage};

/// No single wait of a scenario is longer.
const WAIT_LIMIT: Duration = Duration::from_secs(10);

const POLL: Duration = Duration::from_millis(10);

pub(crate) struct Scene {
    stage: Arc<Stage>,
    pub(crate) directory: PathBuf,
}

/// A broker process.
pub(crate) struct Broker {
    pub(crate) address: SocketAddr,
    _lifeline: Lifeline,
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
    pub(crate) refusals: Vec<Refusal>,
}

impl Scene {
    pub(crate) fn new(stage: Arc<Stage>, name: &str) -> io::Result<Self> {
        Ok(Self {
            directory: stage.directory(name)?,
            stage,
        })
    }

    /// Writes a line of the timeline.
    pub(crate) fn say(&self, text: impl std::fmt::Display) {
        self.stage.report.event(text);
    }

    /// From now on, backends that start are not done with it until they are released.
    pub(crate) fn hold_backends(&self) -> io::Result<()> {
        File::create(self.directory.join(HOLD)).map(drop)
    }

    pub(crate) fn release_backends(&self) -> io::Result<()> {
        fs::remove_file(self.directory.join(HOLD))
    }

    /// From now on, backends fail to start until they are mended.
    pub(crate) fn break_backends(&self) -> io::Result<()> {
        File::create(self.directory.join(BROKEN)).map(drop)
    }

    pub(crate) fn mend_backends(&self) -> io::Result<()> {
        fs::remove_file(self.directory.join(BROKEN))
    }

    /// All backends that were started, by their own account.
    pub(crate) fn started(&self) -> Result<Vec<BackendId>, BoxError> {
        match fs::read_to_string(self.directory.join(JOURNAL)) {
            Ok(text) => text.lines().map(str::parse).collect(),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.into()),
        }
    }

    /// The backends of one service that were started.
    pub(crate) fn started_of(&self, service: &str) -> Result<Vec<BackendId>, BoxError> {
        let mut started = self.started()?;
        started.retain(|backend| backend.service == service);
        Ok(started)
    }

    /// Waits until `count` backends were started. They may have yet to become ready.
    pub(crate) async fn backends_started(&self, count: usize) -> Result<(), BoxError> {
        self.wait_until("a backend to start", || Ok(self.started()?.len() >= count))
            .await
    }

    /// Waits until a launched backend can be found by other brokers.
    pub(crate) async fn backend_published(&self) -> Result<(), BoxError> {
        self.wait_until("a backend to be published", || {
            for entry in fs::read_dir(&self.directory)? {
                if entry?.path().extension().is_some_and(|it| it == "endpoint") {
                    return Ok(true);
                }
            }
            Ok(false)
        })
        .await
    }

    async fn wait_until(
        &self,
        what: &str,
        mut done: impl FnMut() -> Result<bool, BoxError>,
    ) -> Result<(), BoxError> {
        let polling = async {
            while !done()? {
                self.stage.report.progress(|| format!("waiting for {what}"));
                sleep(POLL).await;
            }
            Ok(())
        };
        within(what, polling).await
    }

    /// Lets time pass where that is the point of the scenario.
    pub(crate) async fn let_pass(&self, time: Duration, why: &str) {
        let until = Instant::now() + time;
        while Instant::now() < until {
            let left = until - Instant::now();
            let shown = || format!("{:.1} s until {why}", left.as_secs_f64());
            self.stage.report.progress(shown);
            sleep_until(until.min(Instant::now() + POLL)).await;
        }
    }

    /// Starts a broker process whose budgets have this window.
    pub(crate) async fn broker(&self, window: Duration) -> Result<Broker, BoxError> {
        let (sender, mut lines) = mpsc::unbounded_channel();
        let args = [self.directory_arg()?, window.as_millis().to_string()];
        let lifeline = self.stage.start("broker", args, sender).await?;
        let line = within("the broker", async {
            lines.recv().await.ok_or_else(|| "the broker ended".into())
        })
        .await?;
        let address = line.strip_prefix("listening ").unwrap_or(&line);
        Ok(Broker {
            address: address.parse()?,
            _lifeline: lifeline,
        })
    }

    /// Starts client processes, each with as many clients, spread over the brokers and services.
    pub(crate) async fn clients(
        &self,
        (processes, clients_each): (usize, usize),
        brokers: &[&Broker],
        services: &[&str],
    ) -> Result<Clients, BoxError> {
        let brokers: Vec<_> = brokers.iter().map(|it| it.address.to_string()).collect();
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

    fn directory_arg(&self) -> Result<String, BoxError> {
        let text = self.directory.to_str();
        Ok(text
            .ok_or("the temporary directory's path is not UTF-8")?
            .to_owned())
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

async fn within<T>(
    what: &str,
    future: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    match timeout(WAIT_LIMIT, future).await {
        Ok(done) => done,
        Err(_) => Err(format!("waited {WAIT_LIMIT:?} for {what}").into()),
    }
}
