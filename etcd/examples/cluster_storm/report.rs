//! What a person sees: a timeline while it runs, a table at the end.

use std::fmt::Display;
use std::time::Instant;

/// What was expected, and what was seen.
pub(crate) struct Check {
    title: &'static str,
    expected: String,
    seen: String,
}

impl Check {
    pub(crate) fn new(title: &'static str, expected: impl Display, seen: impl Display) -> Self {
        Self {
            title,
            expected: expected.to_string(),
            seen: seen.to_string(),
        }
    }

    fn holds(&self) -> bool {
        self.expected == self.seen
    }
}

pub(crate) struct Report(Instant);

impl Report {
    pub(crate) fn new() -> Self {
        Self(Instant::now())
    }

    /// Writes a line of the timeline.
    pub(crate) fn event(&self, text: impl Display) {
        println!("{:>6.2} s  {text}", self.0.elapsed().as_secs_f64());
    }

    /// Writes the table. Returns whether all is as expected.
    pub(crate) fn table(&self, checks: &[Check]) -> bool {
        let widest = |text: fn(&Check) -> &str| {
            let widths = checks.iter().map(|check| text(check).chars().count());
            widths.max().unwrap_or_default()
        };
        let (expected, seen) = (widest(|check| &check.expected), widest(|check| &check.seen));
        println!();
        let mut title = "";
        for check in checks {
            let shown = if check.title == title {
                ""
            } else {
                check.title
            };
            title = check.title;
            let verdict = if check.holds() { "ok" } else { "DIFFERS" };
            println!(
                "{shown:<30}  {:<expected$}  {:<seen$}  {verdict}",
                check.expected, check.seen
            );
        }
        let differences = checks.iter().filter(|check| !check.holds()).count();
        let seconds = self.0.elapsed().as_secs_f64();
        match differences {
            0 => println!("all as expected, in {seconds:.1} s"),
            _ => println!("differences: {differences}, in {seconds:.1} s"),
        }
        differences == 0
    }
}
