//! The template for brokers: statuses, the admin page, and an end that leaves nothing.

use std::process::Stdio;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::system::lives;
use crate::{LIMIT, eventually, example};

pub(crate) struct Broker {
    pub(crate) process: Child,
    pub(crate) address: String,
}

impl Broker {
    async fn start(directory: &TempDir) -> Self {
        Self::start_with(directory, "2000", Stdio::inherit()).await
    }

    /// Starts a broker whose backends may take so many milliseconds to start, and which writes its log there.
    pub(crate) async fn start_with(directory: &TempDir, start_timeout: &str, log: Stdio) -> Self {
        let mut process = Command::new(example("broker"))
            .arg(directory.path().join("broker"))
            .arg("127.0.0.1:0")
            .env("BROKER_START_TIMEOUT_MS", start_timeout)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        timeout(LIMIT, output.read_line(&mut line))
            .await
            .unwrap()
            .unwrap();
        let address = line
            .trim_end()
            .strip_prefix("listening on ")
            .unwrap()
            .to_owned();
        Self { process, address }
    }

    pub(crate) async fn get(&self, path: &str) -> Response {
        request(&self.address, "GET", path).await
    }

    pub(crate) async fn post(&self, path: &str) -> Response {
        request(&self.address, "POST", path).await
    }

    /// Asks the broker for a backend, and that for its greeting.
    pub(crate) async fn backend(&self, service: &str) -> (u32, String) {
        let redirect = self.get(&format!("/{service}/1.0")).await;
        assert_eq!(redirect.status, 307, "{redirect:?}");
        let place = redirect.header("location").unwrap();
        let address = place
            .trim_start_matches("http://")
            .trim_end_matches('/')
            .to_owned();
        let greeting = request(&address, "GET", "/").await.body;
        let pid = greeting
            .split("process ")
            .nth(1)
            .unwrap()
            .split(',')
            .next()
            .unwrap();
        (pid.parse().unwrap(), greeting)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = self.process.id().unwrap();
        kill_process(Pid::from_raw(pid as i32).unwrap(), signal).unwrap();
    }
}

#[derive(Debug)]
pub(crate) struct Response {
    pub(crate) status: u16,
    head: String,
    pub(crate) body: String,
}

impl Response {
    fn header(&self, name: &str) -> Option<&str> {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines
            .filter(|(found, _)| found.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .next()
    }
}

pub(crate) async fn request(address: &str, method: &str, path: &str) -> Response {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let head =
            format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n");
        stream.write_all(head.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        std::io::Result::Ok(text)
    };
    let text = timeout(LIMIT, exchange)
        .await
        .expect("no response")
        .unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    Response {
        status: head.split(' ').nth(1).unwrap().parse().unwrap(),
        head: head.to_owned(),
        body: body.to_owned(),
    }
}

#[tokio::test]
async fn all_clients_of_two_brokers_get_one_backend() {
    let directory = tempfile::tempdir().unwrap();
    let brokers = [
        Broker::start(&directory).await,
        Broker::start(&directory).await,
    ];
    let mut clients = JoinSet::new();
    for client in 0..40 {
        let address = brokers[client % 2].address.clone();
        clients.spawn(async move { request(&address, "GET", "/indexer/1.0").await });
    }
    let mut places = clients.join_all().await.into_iter().map(|response| {
        assert_eq!(response.status, 307, "{response:?}");
        response.header("location").unwrap().to_owned()
    });
    let first = places.next().unwrap();
    assert!(places.all(|place| place == first));
}

#[tokio::test]
async fn an_error_is_a_status_that_says_when_to_retry() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(&directory).await;
    assert_eq!(broker.get("/nothing/1.0").await.status, 404);
    for _ in 0..3 {
        let failed = broker.get("/broken/1.0").await;
        assert_eq!(failed.status, 502, "{failed:?}");
        assert!(failed.body.contains("its index is broken"), "{failed:?}");
    }
    let refused = broker.get("/broken/1.0").await;
    assert_eq!(refused.status, 429, "{refused:?}");
    let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds));
    assert!(
        broker
            .get("/admin")
            .await
            .body
            .contains("shared/broken/1.0: 3 of 3 attempts used")
    );
    assert_eq!(broker.post("/admin/broken/1.0/reset").await.status, 200);
    assert_eq!(broker.get("/broken/1.0").await.status, 502);
    assert_eq!(broker.get("/slow/1.0").await.status, 504);
}

#[tokio::test]
async fn a_backend_ends_with_its_broker_however_that_ends() {
    let directory = tempfile::tempdir().unwrap();
    let mut broker = Broker::start(&directory).await;
    let (stopped, _) = broker.backend("search").await;
    assert_eq!(
        broker.post("/admin/search/1.0/stop").await.body,
        format!("stopped process {stopped}\n")
    );
    assert!(!lives(stopped));

    let (pid, _) = broker.backend("indexer").await;
    broker.signal(Signal::TERM);
    assert!(
        timeout(LIMIT, broker.process.wait())
            .await
            .unwrap()
            .unwrap()
            .success()
    );
    eventually(|| !lives(pid)).await;

    let mut broker = Broker::start(&directory).await;
    let (pid, _) = broker.backend("indexer").await;
    broker.signal(Signal::KILL);
    timeout(LIMIT, broker.process.wait())
        .await
        .unwrap()
        .unwrap();
    eventually(|| !lives(pid)).await;
}

/// Promise 70.
#[tokio::test]
async fn the_metrics_page_has_the_statistics_of_the_gate() {
    let directory = tempfile::tempdir().unwrap();
    let broker = Broker::start(&directory).await;
    broker.backend("indexer").await;
    broker.backend("indexer").await;
    assert_eq!(broker.get("/broken/1.0").await.status, 502);
    let page = broker.get("/metrics").await;
    assert_eq!(page.status, 200);
    for line in [
        "# TYPE spawn_gate_requests_total counter",
        "spawn_gate_requests_total{how=\"led\"} 1",
        "spawn_gate_requests_total{how=\"discovered\"} 1",
        "spawn_gate_requests_total{how=\"failed\"} 1",
        "spawn_gate_launches_total{outcome=\"launched\"} 1",
        "spawn_gate_launches_total{outcome=\"launch_failed\"} 1",
        "spawn_gate_flight_active{stage=\"launch\"} 0",
        "spawn_gate_follower_active 0",
        "spawn_gate_lock_lost_total 0",
        "# TYPE spawn_gate_launch_duration_seconds histogram",
        "spawn_gate_launch_duration_seconds_bucket{outcome=\"launched\",le=\"120\"} 1",
        "spawn_gate_launch_duration_seconds_bucket{outcome=\"launched\",le=\"+Inf\"} 1",
        "spawn_gate_launch_duration_seconds_count{outcome=\"launched\"} 1",
        "spawn_gate_lock_wait_duration_seconds_count{outcome=\"acquired\"} 2",
    ] {
        assert!(
            page.body.lines().any(|found| found == line),
            "{line}\n{}",
            page.body
        );
    }
    assert!(
        !page.body.contains("indexer"),
        "a key is no label: {}",
        page.body
    );
}
