//! What the feature `tracing` records (promises 67 and 68): each row of the table in docs/design.md.

mod support;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::pending;
use std::sync::{Arc, Mutex};

use spawn_gate::{
    FileSpawnLock, InMemorySpawnLock, SpawnBudgetConfig, SpawnGate, SpawnGateBuilder,
    SpawnLockError,
};
use tokio::time::{advance, sleep, timeout};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Event, Level, Metadata, Subscriber};

use crate::support::script::Script;
use crate::support::scripted_lock::ScriptedLock;
use crate::support::{lead, seconds, until_held, until_waiting};

type Gate = SpawnGate<&'static str, u32>;

const KEY: &str = "indexer";

/// What a launcher says, and no log above DEBUG may repeat.
const SECRET: &str = "s3cret words of a launcher";

/// An event or a span, with its fields as text.
#[derive(Clone, Debug)]
struct Line {
    level: Level,
    name: String,
    fields: BTreeMap<&'static str, String>,
    /// The span that it is in.
    within: Option<u64>,
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        match field.name() {
            "message" => self.name = value,
            name => _ = self.fields.insert(name, value),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.fields.insert(field.name(), value.to_owned());
    }
}

#[derive(Debug, Default)]
struct Lines {
    events: Vec<Line>,
    spans: Vec<Line>,
    entered: Vec<u64>,
}

/// Collects what is recorded on the thread of a test.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Lines>>);

impl Subscriber for Log {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target() == "spawn_gate"
    }

    fn new_span(&self, attributes: &Attributes<'_>) -> Id {
        let lines = &mut *self.0.lock().unwrap();
        let mut span = Line::new(attributes.metadata(), &lines.entered);
        attributes.record(&mut span);
        lines.spans.push(span);
        Id::from_u64(lines.spans.len() as u64)
    }

    fn record(&self, span: &Id, values: &Record<'_>) {
        let at = span.into_u64() as usize - 1;
        values.record(&mut self.0.lock().unwrap().spans[at]);
    }

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let lines = &mut *self.0.lock().unwrap();
        let mut line = Line::new(event.metadata(), &lines.entered);
        event.record(&mut line);
        lines.events.push(line);
    }

    fn enter(&self, span: &Id) {
        self.0.lock().unwrap().entered.push(span.into_u64());
    }

    fn exit(&self, _: &Id) {
        self.0.lock().unwrap().entered.pop();
    }
}

impl Line {
    fn new(metadata: &Metadata<'_>, entered: &[u64]) -> Self {
        Self {
            level: *metadata.level(),
            name: metadata.name().to_owned(),
            fields: BTreeMap::new(),
            within: entered.last().copied(),
        }
    }

    fn names(&self) -> Vec<&'static str> {
        self.fields.keys().copied().collect()
    }
}

impl Log {
    fn start() -> (Self, DefaultGuard) {
        let log = Self::default();
        let guard = tracing::subscriber::set_default(log.clone());
        (log, guard)
    }

    /// The events so far, which are forgotten then.
    fn take(&self) -> Vec<Line> {
        std::mem::take(&mut self.0.lock().unwrap().events)
    }

    /// The events of this level so far.
    #[track_caller]
    fn only(&self, level: Level, name: &str) -> Line {
        let events = self.take();
        let found: Vec<_> = events.iter().filter(|event| event.level == level).collect();
        assert_eq!(found.len(), 1, "{events:#?}");
        assert_eq!(found[0].name, name);
        found[0].clone()
    }

    fn spans(&self) -> Vec<Line> {
        self.0.lock().unwrap().spans.clone()
    }
}

fn builder() -> SpawnGateBuilder<&'static str, u32> {
    Gate::builder(InMemorySpawnLock::new())
}

fn launches() -> Script {
    Script::launching(|_| async { Ok(77_077) })
}

fn fails() -> Script {
    Script::launching(|_| async { Err(SECRET.into()) })
}

/// Promise 67.
#[tokio::test(start_paused = true)]
async fn a_launch_has_a_span_that_its_task_runs_in() {
    let (log, _guard) = Log::start();
    let gate = builder().build();
    let launcher = Script::launching(|_| async {
        tokio::task::yield_now().await;
        tracing::info!(target: "spawn_gate", "within");
        Ok(1)
    });
    let (led, joined) = tokio::join!(
        gate.launch(KEY, launcher.clone()),
        gate.launch(KEY, launcher)
    );
    assert!(led.is_ok() && joined.is_ok());
    let spans = log.spans();
    assert_eq!(spans.len(), 1, "the leader's only");
    let span = &spans[0];
    assert_eq!((&*span.name, span.level), ("launch", Level::INFO));
    assert_eq!(span.names(), ["attempt", "fencing_token", "key", "outcome"]);
    assert_eq!(span.fields["key"], KEY);
    assert_eq!(span.fields["attempt"], "1");
    assert_eq!(span.fields["outcome"], "launched");
    let events = log.take();
    for name in ["within", "launched"] {
        let event = events.iter().find(|event| event.name == name).unwrap();
        assert_eq!(event.within, Some(1), "{event:?}");
    }

    // A permit has one, too.
    gate.acquire(KEY).await.map(drop).unwrap();
    assert_eq!(log.spans()[1].fields["outcome"], "abandoned");
}

/// Promise 67.
#[tokio::test]
async fn the_span_of_a_permit_has_its_attempt_its_token_and_the_event_of_its_end() {
    let (log, _guard) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let file_lock = FileSpawnLock::new(directory.path()).unwrap();
    for gate in [builder().build(), Gate::builder(file_lock).build()] {
        lead(&gate, KEY).await.fail("no such program").await;
        let permit = lead(&gate, KEY).await;
        let span = log.spans().pop().unwrap();
        assert_eq!(span.fields["attempt"], "2");
        assert_eq!(
            span.fields["fencing_token"],
            permit.fencing_token().to_string()
        );
        log.take();
        permit.discovered(1).await;
        let (number, span) = (log.spans().len() as u64, log.spans().pop().unwrap());
        assert_eq!(span.fields["outcome"], "discovered");
        // Its caller settles it outside of the span.
        assert_eq!(log.only(Level::DEBUG, "discovered").within, Some(number));
    }
}

/// Promise 67.
#[tokio::test(start_paused = true)]
async fn the_span_of_a_permit_that_an_operator_ended_has_that_as_its_outcome() {
    let (log, _guard) = Log::start();
    let gate = builder().build();
    let permit = lead(&gate, KEY).await;
    assert!(gate.abort(KEY).await);
    permit.succeed(1).await.unwrap_err();
    assert_eq!(log.spans()[0].fields["outcome"], "aborted");
}

/// Promise 67.
#[tokio::test(start_paused = true)]
async fn launched_discovered_and_joined_have_their_levels() {
    let (log, _guard) = Log::start();
    let gate = builder().build();
    let slow = Script::launching(|_| async {
        sleep(seconds(1)).await;
        Ok(1)
    });
    // The request waits for both.
    let slow = slow.discovering(|_| async {
        sleep(seconds(1)).await;
        Ok(None)
    });
    let (led, joined) = tokio::join!(gate.launch(KEY, slow.clone()), gate.launch(KEY, slow));
    assert!(led.is_ok() && joined.is_ok());
    let events = log.take();
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.level, &*event.name))
        .collect();
    assert!(told.contains(&(Level::INFO, "launched")), "{told:?}");
    assert!(told.contains(&(Level::TRACE, "joined")), "{told:?}");
    assert_eq!(told.len(), 2);
    for event in &events {
        assert_eq!(event.names(), ["elapsed", "key"]);
        assert_eq!(event.fields["elapsed"], "2s");
        assert_eq!(event.fields["key"], KEY);
    }
    let found = launches().discovering(|_| async {
        sleep(seconds(3)).await;
        Ok(Some(1))
    });
    gate.launch(KEY, found).await.unwrap();
    let discovered = log.only(Level::DEBUG, "discovered");
    assert_eq!(discovered.names(), ["elapsed", "key"]);
    assert_eq!(discovered.fields["elapsed"], "3s");
    assert_eq!(discovered.fields["key"], KEY);
}

/// Promise 67.
#[tokio::test(start_paused = true)]
async fn failures_panics_and_timeouts_are_warnings() {
    let (log, _guard) = Log::start();
    let gate = builder()
        .budget(SpawnBudgetConfig::new(9, seconds(1000)))
        .follow_timeout(seconds(500))
        .build();
    let panics = Script::launching(|_| async { panic!("{SECRET}") });
    let hangs = Script::launching(|_| pending());
    let no_look = launches().discovering(|_| async { Err(SECRET.into()) });
    let looks = launches().discovering(|_| pending());
    let cases = [
        (fails(), "failed", "launch_failed", "launch", Some("1")),
        (panics, "panicked", "panicked", "launch", Some("2")),
        (hangs, "timed out", "launch_timeout", "launch", Some("3")),
        (no_look, "failed", "discover_failed", "discover", None),
        (looks, "timed out", "discover_timeout", "discover", None),
    ];
    for (launcher, name, error_type, stage, attempt) in cases {
        gate.launch(KEY, launcher).await.unwrap_err();
        let warning = log.only(Level::WARN, name);
        assert_eq!(warning.fields["key"], KEY);
        assert_eq!(warning.fields["error.type"], error_type);
        assert_eq!(warning.fields["stage"], stage);
        assert_eq!(
            warning.fields.get("attempt").map(|number| &**number),
            attempt
        );
    }
    drop(lead(&gate, KEY).await);
    let warning = log.only(Level::WARN, "failed");
    assert_eq!(warning.fields["error.type"], "abandoned");

    let _permit = lead(&gate, KEY).await;
    gate.acquire(KEY).await.unwrap_err();
    let warning = log.only(Level::WARN, "timed out");
    assert_eq!(warning.fields["error.type"], "follow_timeout");
    assert_eq!(warning.fields["stage"], "follow");
}

/// Promise 67.
#[tokio::test]
async fn a_failure_to_take_the_lock_has_the_stage_lock() {
    let (log, _guard) = Log::start();
    let broken = ScriptedLock::new(InMemorySpawnLock::new()).on_try(|_| async {
        let (path, source) = ("key.lock".into(), std::io::Error::other("i/o error"));
        Err(SpawnLockError::Lock { path, source })
    });
    let gate = Gate::builder(broken).build();
    gate.acquire(KEY).await.map(drop).unwrap_err();
    let warning = log.only(Level::WARN, "failed");
    assert_eq!(warning.fields["error.type"], "lock_failed");
    assert_eq!(warning.fields["stage"], "lock");

    // Another process fails meanwhile.
    let directory = tempfile::tempdir().unwrap();
    let process = || Gate::builder(FileSpawnLock::new(directory.path()).unwrap()).build();
    let (elsewhere, gate) = (process(), process());
    let holder = lead(&elsewhere, KEY).await;
    let failed = async {
        until_held(&gate, KEY).await;
        holder.fail("no such program").await;
    };
    tokio::join!(gate.launch(KEY, launches()), failed)
        .0
        .unwrap_err();
    let mut stages: Vec<_> = log
        .take()
        .into_iter()
        .filter(|event| event.level == Level::WARN)
        .map(|event| {
            (
                event.fields["error.type"].clone(),
                event.fields["stage"].clone(),
            )
        })
        .collect();
    stages.sort();
    let expected = [
        ("launch_failed", "launch"),
        ("launch_failed_elsewhere", "lock"),
    ];
    assert_eq!(
        stages,
        expected.map(|(error, stage)| (error.into(), stage.into()))
    );
}

/// Promise 67.
#[tokio::test(start_paused = true)]
async fn the_first_refusal_of_a_storm_is_a_warning_and_the_others_are_not() {
    let (log, _guard) = Log::start();
    let gate = builder()
        .budget(SpawnBudgetConfig::new(1, seconds(30)))
        .build();
    gate.launch(KEY, fails()).await.unwrap_err();
    log.take();
    // The first one checks the refusal in a flight, which is no failure.
    advance(seconds(2)).await;
    for _ in 0..5 {
        gate.launch(KEY, launches()).await.unwrap_err();
    }
    let refusals = log.take();
    let told: Vec<_> = refusals
        .iter()
        .map(|event| (event.level, &*event.name))
        .collect();
    let again = (Level::DEBUG, "refused again");
    assert_eq!(told, [(Level::WARN, "refused"), again, again, again, again]);
    for refusal in &refusals {
        assert_eq!(refusal.names(), ["key", "retry_after", "why"]);
        assert_eq!(refusal.fields["key"], KEY);
        assert_eq!(refusal.fields["retry_after"], "28s");
        assert_eq!(refusal.fields["why"], "launch_failed");
    }
}

/// Promise 67.
#[tokio::test(start_paused = true)]
async fn a_wait_for_the_lock_is_told_once_after_a_second() {
    let (log, _guard) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let gate = || Gate::builder(FileSpawnLock::new(directory.path()).unwrap());
    let holder = lead(&gate().build(), KEY).await;
    let waits = gate().lock_timeout(seconds(10)).build();
    waits.acquire(KEY).await.map(drop).unwrap_err();
    holder.refund().await;
    let events = log.take();
    let waiting: Vec<_> = events
        .iter()
        .filter(|event| event.level == Level::INFO)
        .collect();
    assert_eq!(waiting.len(), 1, "{events:#?}");
    assert_eq!(waiting[0].name, "waiting for the spawn lock");
    assert_eq!(waiting[0].names(), ["holder", "key", "waited"]);
    assert_eq!(waiting[0].fields["key"], KEY);
    assert!(waiting[0].fields["waited"].starts_with('1'));
    assert_eq!(waiting[0].within, Some(2), "its task runs in its span");
    let holder = &waiting[0].fields["holder"];
    assert!(
        holder.contains(&format!("process {}", std::process::id())),
        "{holder}"
    );
    let timed_out = events.iter().find(|event| event.level == Level::WARN);
    let timed_out = timed_out.unwrap();
    assert_eq!(timed_out.name, "timed out");
    assert_eq!(timed_out.fields["error.type"], "lock_timeout");
    assert_eq!(timed_out.fields["stage"], "lock");
}

/// Promise 67.
#[cfg(unix)]
#[tokio::test]
async fn a_lost_lock_is_an_error() {
    let (log, _guard) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let lock = FileSpawnLock::new(directory.path()).unwrap();
    let path = lock.path_of(&KEY);
    let gate: Gate = SpawnGate::builder(lock).build();
    let permit = lead(&gate, KEY).await;
    std::fs::remove_file(path).unwrap();
    let token = permit.fencing_token().to_string();
    permit.succeed(7).await.unwrap_err();
    let lost = log.only(Level::ERROR, "the spawn lock was lost");
    assert_eq!(lost.names(), ["fencing_token", "key"]);
    assert_eq!(lost.fields["key"], KEY);
    assert_eq!(lost.fields["fencing_token"], token);
}

/// Promise 67.
#[tokio::test(start_paused = true)]
async fn what_operators_do_is_told() {
    let (log, _guard) = Log::start();
    let gate = builder().drain_timeout(seconds(5)).build();
    lead(&gate, KEY).await.refund().await;
    let gone = log.only(Level::DEBUG, "leader gone, attempt refunded");
    assert_eq!(gone.names(), ["key"]);
    assert_eq!(gone.fields["key"], KEY);

    gate.reset(KEY).await.unwrap();
    assert_eq!(log.only(Level::INFO, "reset").fields["key"], KEY);

    let hangs = || Script::launching(|_| pending());
    timeout(seconds(1), gate.launch(KEY, hangs()))
        .await
        .unwrap_err();
    assert!(gate.abort(KEY).await);
    assert_eq!(log.only(Level::WARN, "aborted").fields["key"], KEY);

    timeout(seconds(1), gate.launch(KEY, hangs()))
        .await
        .unwrap_err();
    gate.close().await.unwrap_err();
    let events = log.take();
    let told: Vec<_> = events
        .iter()
        .map(|event| (event.level, &*event.name, &*event.fields["flights"]))
        .collect();
    let timed_out = "the drain timed out, flights were ended";
    assert_eq!(
        told,
        [(Level::INFO, "closed", "1"), (Level::WARN, timed_out, "1")]
    );
}

/// Promise 67.
#[tokio::test]
async fn the_reset_of_a_ledger_is_told() {
    let (log, _guard) = Log::start();
    let directory = tempfile::tempdir().unwrap();
    let gate = Gate::builder(FileSpawnLock::new(directory.path()).unwrap()).build();
    gate.reset(KEY).await.unwrap();
    let told = log.only(Level::INFO, "reset");
    assert_eq!(told.fields["key"], KEY);
}

/// Promise 67.
#[tokio::test(start_paused = true)]
async fn a_close_is_told_once_with_all_flights_and_with_those_that_were_ended() {
    let (log, _guard) = Log::start();
    let gate = builder().drain_timeout(seconds(5)).build();
    let hangs = Script::launching(|_| pending());
    let drains = Script::launching(|_| async {
        sleep(seconds(2)).await;
        Ok(1)
    });
    let close = async {
        gate.close().await.unwrap_err();
        gate.close().await.unwrap();
    };
    let (one, other, drained, ()) = tokio::join!(
        gate.launch("one", hangs.clone()),
        gate.launch("other", hangs),
        gate.launch("third", drains),
        close
    );
    assert!(one.unwrap_err().is_closed() && other.unwrap_err().is_closed());
    drained.unwrap();
    let events = log.take();
    let told: Vec<_> = events
        .iter()
        .map(|event| {
            let flights = event.fields.get("flights").map(|flights| &**flights);
            (event.level, &*event.name, flights)
        })
        .collect();
    let timed_out = "the drain timed out, flights were ended";
    assert_eq!(
        told,
        [
            (Level::INFO, "closed", Some("3")),
            (Level::INFO, "launched", None),
            (Level::WARN, timed_out, Some("2"))
        ]
    );
}

/// Promise 68.
#[tokio::test(start_paused = true)]
async fn neither_values_nor_a_launchers_words_are_told_above_debug() {
    let (log, _guard) = Log::start();
    let gate = builder()
        .budget(SpawnBudgetConfig::new(2, seconds(30)))
        .build();
    gate.launch(KEY, launches()).await.unwrap();
    let found = launches().discovering(|_| async { Ok(Some(77_077)) });
    gate.launch(KEY, found).await.unwrap();
    gate.launch(KEY, fails()).await.unwrap_err();
    let panics = Script::launching(|_| async { panic!("{SECRET}") });
    gate.launch(KEY, panics).await.unwrap_err();
    gate.acquire(KEY).await.map(drop).unwrap_err();
    advance(seconds(31)).await;
    let no_look = launches().discovering(|_| async { Err(SECRET.into()) });
    gate.launch(KEY, no_look).await.unwrap_err();

    let events = log.take();
    let all = [events.clone(), log.spans()].concat();
    assert!(
        all.iter()
            .all(|line| !format!("{line:?}").contains("77077"))
    );
    let has_words = |line: &&Line| format!("{line:?}").contains(SECRET);
    let with_words: Vec<_> = events.iter().filter(has_words).collect();
    assert_eq!(with_words.len(), 3);
    for event in with_words {
        assert_eq!(
            (event.level, &*event.name),
            (Level::DEBUG, "the error in full")
        );
        assert_eq!(event.names(), ["error", "error.type", "key"]);
        assert_eq!(event.fields["key"], KEY);
    }
    let above: Vec<_> = all
        .iter()
        .filter(|line| line.level < Level::DEBUG)
        .collect();
    assert!(!above.iter().any(has_words), "{above:#?}");
}

/// Promise 67: a follower of a leader that goes is told as a leader of its own.
#[tokio::test(start_paused = true)]
async fn each_leader_of_a_key_has_a_span_of_its_own() {
    let (log, _guard) = Log::start();
    let gate = builder().build();
    let first = lead(&gate, KEY).await;
    let second = gate.launch(KEY, launches());
    let given_back = async {
        until_waiting(&gate, KEY, 1).await;
        first.refund().await;
    };
    let (launched, ()) = tokio::join!(second, given_back);
    launched.unwrap();
    let outcomes: Vec<_> = log
        .spans()
        .iter()
        .map(|span| span.fields["outcome"].clone())
        .collect();
    assert_eq!(outcomes, ["leader_gone", "launched"]);
}
