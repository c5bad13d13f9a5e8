//! When a starting backend counts as ready.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};

use super::endpoint::Endpoint;
use super::error::{ProcessError, off_thread_call};
use super::files::Files;
use super::identity::ProcessIdentity;
use super::log;
use super::notify::Message;
use super::record::Record;
use super::sys::Notifications;
use crate::error::BoxError;
use crate::util::at_most_a_year;

/// The first and the longest pause between two looks at something that cannot tell when it changes.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);

/// How long a backend may go on beside another process that has its endpoint. Programs report that at once.
const TAKEN_LIMIT: Duration = Duration::from_secs(5);

/// What says that a starting backend is ready to serve.
///
/// A later look connects to the backend's endpoint. A backend without one counts as running as long as its process lives: no look
/// notices that it hangs.
///
/// # Examples
///
/// ```
/// use spawn_gate::process::{Endpoint, Ready};
///
/// let by_connection = Ready::accepts(Endpoint::Tcp(([127, 0, 0, 1], 7201).into()));
/// let by_protocol = Ready::notify().at(Endpoint::Unix("/run/indexer/socket".into()));
/// ```
#[derive(Clone)]
pub struct Ready {
    pub(super) sign: Sign,
    pub(super) endpoint: Option<Endpoint>,
}

#[derive(Clone)]
pub(super) enum Sign {
    Notify,
    Accepts,
    Line(String),
    Probe(Probe),
}

type Probe =
    Arc<dyn Fn() -> Pin<Box<dyn Future<Output = Result<bool, BoxError>> + Send>> + Send + Sync>;

impl Ready {
    /// Ready once it says so by the notify protocol of systemd: it gets `NOTIFY_SOCKET` and sends `READY=1`.
    ///
    /// `STATUS=` and `ERRNO=` are shown to whoever waits, `MAINPID=` names another process as the backend's, and
    /// `EXTEND_TIMEOUT_USEC=` extends the time for its start (not the gate's launch timeout). With
    /// `X_SPAWN_GATE_ENDPOINT=tcp:127.0.0.1:7201`, or `unix:PATH`, it says where it listens; otherwise use [`at`](Self::at).
    ///
    /// If the launching process is killed meanwhile, nobody is left to read `READY=1`: the backend is then found ready only if
    /// it is a Rust program with [`Instance`](super::Instance), and is otherwise [`Why::Starting`](super::Why::Starting). On
    /// Windows only such a program can be ready in this way, by its record.
    pub fn notify() -> Self {
        Self {
            sign: Sign::Notify,
            endpoint: None,
        }
    }

    /// Ready once it accepts connections at `endpoint`.
    ///
    /// If another process accepts there already, that does not count: the launch fails, with the backend's own words if it
    /// reports that, or else after five seconds.
    pub fn accepts(endpoint: impl Into<Endpoint>) -> Self {
        Self {
            sign: Sign::Accepts,
            endpoint: Some(endpoint.into()),
        }
    }

    /// Ready once it has written a line that contains `words` to standard output or standard error.
    pub fn line(words: impl Into<String>) -> Self {
        Self {
            sign: Sign::Line(words.into()),
            endpoint: None,
        }
    }

    /// Ready once `probe` returns true; false means not yet, and it is called again after a pause of at most 50 ms. An error ends
    /// the launch. If the launching process is killed meanwhile, the backend is [`Why::Starting`](super::Why::Starting) until
    /// it is stopped.
    pub fn probe<F, P>(probe: P) -> Self
    where
        F: Future<Output = Result<bool, BoxError>> + Send + 'static,
        P: Fn() -> F + Send + Sync + 'static,
    {
        Self {
            sign: Sign::Probe(Arc::new(move || Box::pin(probe()))),
            endpoint: None,
        }
    }

    /// Sets the endpoint, for a sign that does not report one.
    #[must_use]
    pub fn at(mut self, endpoint: impl Into<Endpoint>) -> Self {
        self.endpoint = Some(endpoint.into());
        self
    }
}

impl fmt::Debug for Ready {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match &self.sign {
            Sign::Notify => "notify",
            Sign::Accepts => "accepts",
            Sign::Line(words) => words,
            Sign::Probe(_) => "probe",
        };
        f.debug_struct("Ready")
            .field("sign", &sign)
            .field("endpoint", &self.endpoint)
            .finish()
    }
}

/// A backend that is starting.
pub(super) struct Start {
    /// The process that was started.
    pub(super) started: ProcessIdentity,
    pub(super) files: Files,
    pub(super) record: Record,
    pub(super) begun: Instant,
    /// How long it may take.
    pub(super) limit: Duration,
    /// When its time is over: later than the limit if it asked for more.
    pub(super) deadline: Instant,
    pub(super) notifications: Option<Notifications>,
    /// Another process accepted connections at the endpoint before the launch.
    pub(super) is_taken: bool,
    pub(super) main_pid: Option<u32>,
}

/// The deadline is over.
pub(super) struct Late;

impl Start {
    /// Waits for the sign.
    pub(super) async fn wait(&mut self, sign: &Sign) -> Result<Result<(), Late>, ProcessError> {
        let start = self.record.log_start;
        let mut pause = Pause::default();
        match sign {
            Sign::Notify => loop {
                let Some(notifications) = &self.notifications else {
                    return Ok(Err(Late));
                };
                let Ok(message) = timeout_at(self.deadline, notifications.next()).await else {
                    return Ok(Err(Late));
                };
                let message = message?;
                let is_ready = message.is_ready;
                self.note(message).await;
                if is_ready {
                    return Ok(Ok(()));
                }
            },
            Sign::Accepts => {
                let taken_until = Instant::now() + TAKEN_LIMIT;
                let Some(endpoint) = self.record.endpoint.clone() else {
                    return Ok(Err(Late));
                };
                loop {
                    match timeout_at(self.deadline, endpoint.probe()).await {
                        Err(_) => return Ok(Err(Late)),
                        Ok(Ok(())) if !self.is_taken => return Ok(Ok(())),
                        Ok(Ok(())) if Instant::now() >= taken_until => {
                            return Err(ProcessError::EndpointTaken {
                                endpoint,
                                words: log::last_words(&self.files, start).await,
                                log: self.files.log(),
                            });
                        }
                        Ok(Ok(())) => {}
                        // Nobody listens there now. Who does next is the backend. (Other errors, such as a shortage, do not say so.)
                        Ok(Err(error)) if is_free(&error) => self.is_taken = false,
                        Ok(Err(_)) => {}
                    }
                    if pause.is_over(self.deadline).await {
                        return Ok(Err(Late));
                    }
                }
            }
            Sign::Line(words) => loop {
                if log::has_line(&self.files, start, words).await {
                    return Ok(Ok(()));
                }
                if pause.is_over(self.deadline).await {
                    return Ok(Err(Late));
                }
            },
            Sign::Probe(probe) => loop {
                match timeout_at(self.deadline, probe()).await {
                    Err(_) => return Ok(Err(Late)),
                    Ok(Ok(true)) => return Ok(Ok(())),
                    Ok(Ok(false)) => {}
                    Ok(Err(source)) => {
                        return Err(ProcessError::Probe {
                            pid: self.started.pid,
                            source,
                        });
                    }
                }
                if pause.is_over(self.deadline).await {
                    return Ok(Err(Late));
                }
            },
        }
    }

    async fn note(&mut self, message: Message) {
        if let Some(extend) = message.extend {
            // It never shortens what the launcher allows.
            let extended = Instant::now() + at_most_a_year(extend);
            self.deadline = extended.max(self.begun + self.limit);
        }
        self.main_pid = message.main_pid.or(self.main_pid);
        self.record.endpoint = message.endpoint.or(self.record.endpoint.take());
        if message.status.is_some() && message.status != self.record.status {
            self.record.status = message.status.clone();
            let (launch, files) = (self.record.launch, self.files.clone());
            let status = message.status;
            // For people; the launch goes on without.
            let _ = off_thread_call(move || Record::note_status(&files, launch, status)).await;
        }
    }
}

/// Whether the error of a connection says that nobody listens.
fn is_free(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound
    )
}

/// Pauses that grow.
pub(super) struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST_PAUSE)
    }
}

impl Pause {
    /// Pauses. True, without a pause, once the deadline is over.
    pub(super) async fn is_over(&mut self, deadline: Instant) -> bool {
        if Instant::now() >= deadline {
            return true;
        }
        sleep(self.0).await;
        self.0 = (self.0 * 3 / 2).min(LONGEST_PAUSE);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shortage_does_not_say_that_an_endpoint_is_free() {
        use io::ErrorKind::{AddrNotAvailable, ConnectionRefused, NotFound, OutOfMemory, TimedOut};

        assert!(is_free(&ConnectionRefused.into()));
        assert!(is_free(&NotFound.into()));
        for other in [OutOfMemory, TimedOut, AddrNotAvailable] {
            assert!(!is_free(&other.into()), "{other}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn looks_are_at_most_50_ms_apart() {
        let deadline = Instant::now() + Duration::from_secs(2);
        let mut pause = Pause::default();
        let mut last = Instant::now();
        while !pause.is_over(deadline).await {
            // The timer of a clock that is paused counts whole milliseconds.
            assert!(last.elapsed() <= Duration::from_millis(51));
            last = Instant::now();
        }
        assert!(last >= deadline);
    }
}
