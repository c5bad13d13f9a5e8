//! Pictures for the documentation: the metrics page and the log of a broker, in `docs/pictures`, which says how to make them.

use std::fmt::Write;
use std::fs::{self, File};
use std::path::Path;

use rustix::process::Signal;
use tokio::time::{sleep, timeout};

use crate::broker::{Broker, request};
use crate::{LIMIT, eventually};

/// Longer lines go on in the next line of the picture.
const COLUMNS: usize = 120;

/// Never reached: a start goes on until it is aborted.
const START_TIMEOUT: &str = "600000";

#[tokio::test]
#[ignore = "writes docs/pictures"]
async fn the_metrics_page_and_the_log_are_drawn() {
    let directory = tempfile::tempdir().unwrap();
    let [log, other_log] = ["log", "other_log"].map(|name| directory.path().join(name));
    let start = |log: &Path| {
        let log = File::create(log).unwrap();
        Broker::start_with(&directory, START_TIMEOUT, log.into())
    };
    let (other, mut broker) = (start(&other_log).await, start(&log).await);

    for _ in 0..2 {
        broker.backend("indexer").await;
    }
    for status in [502, 502, 502, 429] {
        assert_eq!(broker.get("/broken/1.0").await.status, status);
    }
    // The other broker launches what is never ready, and two clients of this one wait for that.
    let mut clients = Vec::new();
    for (broker, shown) in [
        (&other, "starting: "),
        (&broker, "lock for"),
        (&broker, "waiting: 2"),
    ] {
        let address = broker.address.clone();
        let client = async move { request(&address, "GET", "/slow/1.0").await.status };
        clients.push(tokio::spawn(client));
        let is_shown = async {
            while !broker.get("/admin").await.body.contains(shown) {
                sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        timeout(LIMIT, is_shown).await.expect(shown);
    }
    eventually(|| text_of(&log).contains("waiting for the spawn lock")).await;
    let page = broker.get("/metrics").await.body;
    assert_eq!(broker.post("/admin/broken/1.0/reset").await.status, 200);
    for broker in [&broker, &other] {
        broker.post("/admin/slow/1.0/abort").await;
    }
    for client in clients {
        assert_eq!(client.await.unwrap(), 503);
    }
    broker.signal(Signal::TERM);
    let ended = timeout(LIMIT, broker.process.wait()).await;
    assert!(ended.unwrap().unwrap().success());

    draw("metrics", page.lines().filter_map(metric).collect());
    draw("log", text_of(&log).lines().map(event).collect());
}

fn text_of(log: &Path) -> String {
    fs::read_to_string(log).unwrap()
}

/// The line of a page, without what differs from run to run. Of a histogram, the first and the last bucket.
fn metric(line: &str) -> Option<String> {
    let (series, _) = line.rsplit_once(' ')?;
    if series.contains("le=\"0.005\"") {
        return Some(format!("{series} …"));
    }
    let is_between = series.contains("le=\"") && !series.contains("+Inf");
    match series.contains("_sum{") {
        _ if is_between => None,
        true => Some(format!("{series} …")),
        false => Some(line.to_owned()),
    }
}

/// The line of a log, with the same times, numbers and paths in each run.
fn event(line: &str) -> String {
    let words = line.split(' ').enumerate().map(|(index, word)| {
        let (name, value) = word.split_once('=').unwrap_or(("", word));
        match name {
            "" if index == 0 => "2026-01-01T12:00:00.000000Z".to_owned(),
            "" if word.parse::<u32>().is_ok() => "4711".to_owned(),
            "" if word.parse::<f64>().is_ok() => "1.0".to_owned(),
            "fencing_token" => "fencing_token=1767268800000000".to_owned(),
            "elapsed" => "elapsed=25ms".to_owned(),
            "retry_after" => "retry_after=29.9s".to_owned(),
            "waited" => "waited=1s".to_owned(),
            "holder" => {
                let file = value.rsplit_once('/').unwrap().1;
                let key = file.rsplit_once('-').unwrap().0;
                format!("holder=/run/broker/{key}-….lock,")
            }
            _ => word.to_owned(),
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn draw(name: &str, lines: Vec<String>) {
    let pictures = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/pictures");
    fs::write(pictures.join(name).with_extension("svg"), svg(&lines)).unwrap();
}

/// No line is empty: the picture is also included in a page of documentation, where that would end it.
fn svg(lines: &[String]) -> String {
    let (mut rows, mut y) = (String::new(), 12);
    for line in lines {
        let color = match line {
            _ if line.starts_with('#') => "#8b949e",
            _ if line.contains(" WARN ") => "#e3b341",
            _ => "#d6dde4",
        };
        for (index, part) in wrapped(line).into_iter().enumerate() {
            y += 18;
            let (x, part) = (
                12 + 16 * index.min(1),
                part.replace('&', "&amp;").replace('<', "&lt;"),
            );
            writeln!(
                rows,
                "<text x=\"{x}\" y=\"{y}\" fill=\"{color}\">{part}</text>"
            )
            .unwrap();
        }
    }
    let (width, height) = (24 + COLUMNS * 8, y + 16);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"monospace\" font-size=\"13\">\n\
         <rect width=\"{width}\" height=\"{height}\" rx=\"6\" fill=\"#161b22\"/>\n{rows}</svg>\n"
    )
}

fn wrapped(line: &str) -> Vec<String> {
    let mut parts: Vec<String> = Vec::new();
    for word in line.split(' ') {
        match parts.last_mut() {
            Some(part) if part.chars().count() + word.chars().count() < COLUMNS => {
                part.push(' ');
                part.push_str(word);
            }
            _ => parts.push(word.to_owned()),
        }
    }
    parts
}
