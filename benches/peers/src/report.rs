//! Writes down what came out: all figures to the terminal, the medians and ratios into the README.

use std::fmt::Write;
use std::io;
use std::thread::available_parallelism;

use crate::flights::without;
use crate::measure::{Comparison, Line};
use crate::paths::crowd::Crowd;
use crate::paths::memory::Memory;
use crate::targets::{MOST_BYTES, MOST_IDLE_CALLS, TARGETS};
use crate::watchdog::Seen;

/// What came out of one run.
#[derive(Debug, Default)]
pub struct Findings {
    /// The paths on which all contenders for single flight were compared.
    pub flights: Vec<Comparison>,
    /// What was seen of them.
    pub seen: Vec<Seen>,
    /// The other paths.
    pub others: Vec<Comparison>,
    /// Crowds of processes, each with one question.
    pub crowds: Vec<Crowd>,
    /// System calls a second of a process that waits for a key, or why they were not counted.
    pub idle_calls: Option<Result<f64, String>>,
    /// What keys take.
    pub memory: Vec<Memory>,
}

/// Prints all figures.
pub fn print(findings: &Findings) {
    for comparison in findings.flights.iter().chain(&findings.others) {
        let (path, reference) = (&comparison.path, &comparison.reference);
        println!("\n{path} (ratios to {reference})");
        print_lines(&comparison.lines);
    }
    for crowd in &findings.crowds {
        let path = &crowd.path;
        println!("\n{path} (ratios to warm, without the 200 ms that the backend takes)");
        print_lines([&crowd.cold, &crowd.warm, &crowd.cold_cpu, &crowd.warm_cpu]);
    }
    println!();
    for seen in &findings.seen {
        let (name, flights, violations) = (seen.name, seen.flights, seen.violations);
        let most = seen.most_at_once;
        println!(
            "{name}: {violations} of {flights} flights ran beside another, at most {most} at once"
        );
    }
    if let Some(calls) = &findings.idle_calls {
        println!("{}", idle_line(calls));
    }
    for memory in &findings.memory {
        let (name, in_window, left) = (&memory.name, memory.in_window, memory.left);
        println!(
            "{name}: {in_window} bytes a key in its window, {left} bytes left when all are idle"
        );
    }
}

fn print_lines<'a>(lines: impl IntoIterator<Item = &'a Line>) {
    println!("    median    minimum      worst    ratio");
    for line in lines {
        let times = [line.median, line.minimum, line.worst].map(time);
        let [median, minimum, worst] = times;
        let (ratio, name) = (line.ratio, &line.name);
        println!("{median:>10} {minimum:>10} {worst:>10} {ratio:>7.2}x  {name}");
    }
}

const BEGIN: &str = "<!-- peers:begin -->";
const END: &str = "<!-- peers:end -->";

/// Writes the tables into the README, between its two markers.
///
/// # Errors
///
/// If it cannot be read or written, or has no such markers.
pub fn write_into_readme(findings: &Findings) -> io::Result<()> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/README.md");
    let readme = std::fs::read_to_string(path)?;
    let parts = readme.split_once(BEGIN);
    let parts = parts.and_then(|(before, rest)| Some((before, rest.split_once(END)?.1)));
    let Some((before, after)) = parts else {
        return Err(io::Error::other(format!("it has no {BEGIN} before {END}")));
    };
    let tables = markdown(findings);
    std::fs::write(path, format!("{before}{BEGIN}\n{tables}{END}{after}"))
}

fn markdown(findings: &Findings) -> String {
    let mut text = String::new();
    let cores = available_parallelism().map_or(0, usize::from);
    // Writing to a string cannot fail, here and below.
    let _ = writeln!(
        text,
        "Medians of one run on {cores} cores; in brackets the ratio, in the same rounds, to {}.\n",
        references(&findings.flights)
    );
    targets_table(&mut text, findings);
    flights_table(&mut text, findings);
    others_table(&mut text, findings);
    crowds_table(&mut text, findings);
    memory_table(&mut text, findings);
    text
}

fn targets_table(text: &mut String, findings: &Findings) {
    row(text, ["path", "", "beside", "to reach", "reached"]);
    row(text, ["---"; 5]);
    for target in TARGETS {
        let comparisons = findings.flights.iter().chain(&findings.others);
        let ratios = comparisons
            .filter(|comparison| comparison.path == target.path)
            .filter_map(|comparison| comparison.ratio(target.of, target.to));
        for ratio in ratios {
            let to_reach = format!("{:.2}x", target.at_most);
            let ratio = reached(format!("{ratio:.2}x"), ratio <= target.at_most);
            row(text, [target.path, target.of, target.to, &to_reach, &ratio]);
        }
    }
    if let Some(Ok(calls)) = findings.idle_calls {
        let is_reached = calls <= MOST_IDLE_CALLS;
        let (most, calls) = (format!("{MOST_IDLE_CALLS:.0}"), format!("{calls:.0}"));
        let calls = reached(calls, is_reached);
        row(
            text,
            [
                "system calls a second of a process that waits",
                "",
                "",
                &most,
                &calls,
            ],
        );
    }
    if let Some(memory) = findings.memory.first() {
        let is_reached = memory.in_window <= MOST_BYTES && memory.left == 0;
        let most = format!("{MOST_BYTES} / 0");
        let bytes = reached(
            format!("{} / {}", memory.in_window, memory.left),
            is_reached,
        );
        row(
            text,
            [
                "bytes a key in its window / left when idle",
                "",
                "",
                &most,
                &bytes,
            ],
        );
    }
    text.push('\n');
}

fn reached(value: String, is_reached: bool) -> String {
    match is_reached {
        true => value,
        false => format!("**{value}**, not reached"),
    }
}

/// Returns the references, each with the paths that it is one of.
fn references(comparisons: &[Comparison]) -> String {
    let groups = comparisons.chunk_by(|one, next| one.reference == next.reference);
    let groups = groups.map(|group| {
        let paths: Vec<&str> = group.iter().map(|of_group| &*of_group.path).collect();
        format!("{} ({})", group[0].reference, paths.join("; "))
    });
    groups.collect::<Vec<_>>().join(", ")
}

fn flights_table(text: &mut String, findings: &Findings) {
    let paths = findings
        .flights
        .iter()
        .map(|comparison| comparison.path.as_str());
    row(text, ["", "without", "at once"].into_iter().chain(paths));
    row(text, (0..findings.flights.len() + 3).map(|_| "---"));
    let Some(first) = findings.flights.first() else {
        return;
    };
    for name in first.lines.iter().map(|line| line.name.as_str()) {
        let seen = findings.seen.iter().filter(|seen| seen.name == name);
        let most = seen.map(|seen| seen.most_at_once).max();
        let most = most.map_or(String::new(), |most| most.to_string());
        let times = findings.flights.iter().map(|comparison| {
            let line = comparison.lines.iter().find(|line| line.name == name);
            line.map_or(String::new(), cell)
        });
        let head = [name.to_owned(), without(name).to_owned(), most];
        row(text, head.into_iter().chain(times));
    }
    text.push('\n');
}

fn others_table(text: &mut String, findings: &Findings) {
    row(text, ["", "", "median", "ratio", "worst"]);
    row(text, ["---"; 5]);
    for comparison in &findings.others {
        let mut path = &*comparison.path;
        for line in &comparison.lines {
            let ratio = format!("{:.2}x", line.ratio);
            let (median, worst) = (time(line.median), time(line.worst));
            row(text, [path, &line.name, &median, &ratio, &worst]);
            path = "";
        }
    }
    text.push('\n');
}

fn crowds_table(text: &mut String, findings: &Findings) {
    row(
        text,
        [
            "processes at once, one question each",
            "cold, ready after 200 ms",
            "worst",
            "warm, connect only",
            "(cold − 200 ms) / warm",
            "CPU time each, cold",
            "CPU time each, warm",
        ],
    );
    row(text, ["---"; 7]);
    for crowd in &findings.crowds {
        let ratio = format!("{:.2}x", crowd.cold.ratio);
        let processes = crowd.processes.to_string();
        let (cold, worst) = (time(crowd.cold.median), time(crowd.cold.worst));
        let [warm, cold_cpu, warm_cpu] =
            [&crowd.warm, &crowd.cold_cpu, &crowd.warm_cpu].map(|line| time(line.median));
        row(
            text,
            [processes, cold, worst, warm, ratio, cold_cpu, warm_cpu],
        );
    }
    text.push('\n');
}

fn memory_table(text: &mut String, findings: &Findings) {
    row(
        text,
        [
            "100,000 keys that failed once",
            "bytes a key in its window",
            "bytes left when all are idle",
        ],
    );
    row(text, ["---"; 3]);
    for memory in &findings.memory {
        let (in_window, left) = (memory.in_window.to_string(), memory.left.to_string());
        row(text, [&memory.name, &in_window, &left]);
    }
    if let Some(calls) = &findings.idle_calls {
        let _ = writeln!(text, "\n{}", idle_line(calls));
    }
}

fn row<C: AsRef<str>>(text: &mut String, cells: impl IntoIterator<Item = C>) {
    text.push('|');
    for cell in cells {
        let _ = write!(text, " {} |", cell.as_ref());
    }
    text.push('\n');
}

fn cell(line: &Line) -> String {
    format!("{} ({:.2}x)", time(line.median), line.ratio)
}

fn idle_line(calls: &Result<f64, String>) -> String {
    match calls {
        Ok(calls) => {
            format!("A process that waits for one key makes {calls:.0} system calls a second.")
        }
        Err(reason) => {
            format!("The system calls of a process that waits were not counted: {reason}.")
        }
    }
}

fn time(nanos: f64) -> String {
    match nanos {
        ..1e4 => format!("{nanos:.0} ns"),
        ..1e6 => format!("{:.1} µs", nanos / 1e3),
        _ => format!("{:.2} ms", nanos / 1e6),
    }
}
