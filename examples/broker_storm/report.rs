//! What a person sees: a timeline while it runs, a table at the end.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Longer lines would not fit on a terminal, and a line that wraps cannot be rewritten.
const LIVE_WIDTH: usize = 78;

/// Longer cells are cut in the table; differences are shown in full below it.
const CELL_WIDTH: usize = 38;

const GREEN: &str = "\x1b[32m";
const RED: &str = "\x1b[31m";
const BOLD: &str = "\x1b[1m";

/// What was expected, and what was seen.
#[derive(Debug)]
pub(crate) struct Check {
    expected: String,
    seen: String,
    holds: bool,
}

impl Check {
    /// Holds if both read the same.
    pub(crate) fn same(expected: impl Display, seen: impl Display) -> Self {
        let (expected, seen) = (expected.to_string(), seen.to_string());
        Self {
            holds: expected == seen,
            expected,
            seen,
        }
    }

    pub(crate) fn that(holds: bool, expected: impl Display, seen: impl Display) -> Self {
        Self {
            holds,
            ..Self::same(expected, seen)
        }
    }

    pub(crate) fn holds(&self) -> bool {
        self.holds
    }
}

pub(crate) struct Report {
    began: Instant,
    is_terminal: bool,
    has_colour: bool,
    live: Mutex<Live>,
}

/// The line that is rewritten.
struct Live {
    /// How many characters of it are to be wiped out.
    shown: usize,
    next: Instant,
}

impl Report {
    pub(crate) fn new() -> Self {
        let is_terminal = io::stdout().is_terminal();
        let began = Instant::now();
        Self {
            began,
            is_terminal,
            has_colour: is_terminal && std::env::var_os("NO_COLOR").is_none_or(|it| it.is_empty()),
            live: Mutex::new(Live {
                shown: 0,
                next: began,
            }),
        }
    }

    /// Writes a line of the timeline.
    pub(crate) fn event(&self, text: impl Display) {
        self.line(format_args!("{:>6.2} s    {text}", self.seconds()));
    }

    /// Begins a chapter of the timeline.
    pub(crate) fn heading(&self, text: impl Display) {
        let text = self.painted(BOLD, text);
        self.line(format_args!("{:>6.2} s  {text}", self.seconds()));
    }

    /// Shows how things stand: on a terminal in a line that is rewritten, otherwise now and then in a line of its own.
    pub(crate) fn progress(&self, text: impl FnOnce() -> String) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if now < live.next {
            return;
        }
        let text = format!("{:>6.2} s    … {}", self.seconds(), text());
        if self.is_terminal {
            live.next = now + Duration::from_millis(50);
            let text: String = text.chars().take(LIVE_WIDTH).collect();
            let wiped = live.shown;
            live.shown = text.chars().count();
            print(format_args!("\r{text:wiped$}"));
        } else {
            live.next = now + Duration::from_secs(1);
            print(format_args!("{text}\n"));
        }
    }

    /// Writes a line of its own.
    pub(crate) fn line(&self, text: impl Display) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let wiped = std::mem::take(&mut live.shown);
        // The first progress after a line of the timeline would only repeat it.
        live.next =
            Instant::now() + Duration::from_millis(if self.is_terminal { 50 } else { 1000 });
        if wiped > 0 {
            print(format_args!("\r{:wiped$}\r", ""));
        }
        print(format_args!("{text}\n"));
    }

    /// Writes the table, then each difference in full. Returns how many there are.
    pub(crate) fn table(&self, chapters: &[(&str, Vec<Check>)]) -> usize {
        let rule = "─".repeat(30 + 2 * CELL_WIDTH + 13);
        self.line("");
        self.row(["scenario", "expected", "seen"], "verdict");
        self.line(&rule);
        for (title, checks) in chapters {
            for (index, check) in checks.iter().enumerate() {
                let title = if index == 0 { *title } else { "" };
                let verdict = if check.holds {
                    self.painted(GREEN, "ok")
                } else {
                    self.painted(RED, "DIFFERS")
                };
                self.row([title, &check.expected, &check.seen], &verdict);
            }
        }
        self.line(&rule);

        let mut differences = 0;
        for (title, checks) in chapters {
            for check in checks.iter().filter(|check| !check.holds) {
                differences += 1;
                self.line(self.painted(RED, format_args!("{title}:")));
                self.line(format_args!("  expected  {}", check.expected));
                self.line(format_args!("  seen      {}", check.seen));
            }
        }
        let took = self.seconds();
        self.line(match differences {
            0 => self.painted(GREEN, format_args!("all as expected, in {took:.1} s")),
            _ => self.painted(
                RED,
                format_args!("differences: {differences}, in {took:.1} s"),
            ),
        });
        differences
    }

    fn row(&self, [title, expected, seen]: [&str; 3], verdict: &str) {
        let [expected, seen] = [expected, seen].map(|cell| {
            if cell.chars().count() > CELL_WIDTH {
                let cut: String = cell.chars().take(CELL_WIDTH - 1).collect();
                format!("{cut}…")
            } else {
                cell.to_owned()
            }
        });
        self.line(format_args!(
            "{title:<30}  {expected:<CELL_WIDTH$}  {seen:<CELL_WIDTH$}  {verdict}"
        ));
    }

    fn painted(&self, colour: &str, text: impl Display) -> String {
        if self.has_colour {
            format!("{colour}{text}\x1b[0m")
        } else {
            text.to_string()
        }
    }

    fn seconds(&self) -> f64 {
        self.began.elapsed().as_secs_f64()
    }
}

/// Writes to standard output. If its reader has gone away, the run goes on, so that all is cleaned up in the end.
fn print(text: impl Display) {
    let mut out = io::stdout().lock();
    // A reader that has gone away (`| head`) is no reason to leave the scenes undone.
    let _ = write!(out, "{text}").and_then(|()| out.flush());
}
