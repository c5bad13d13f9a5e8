//! Prints every spawn lock of a directory: whether it is held, by whom, since when, and how the last launch ended. It does not
//! disturb holders.
//!
//! ```console
//! $ cargo run --example spawn_locks -- DIRECTORY
//! ```

use std::error::Error;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use spawn_gate::admin::{LedgerReading, LockReport, inspect_spawn_lock};

fn main() -> Result<(), Box<dyn Error>> {
    let directory = std::env::args_os()
        .nth(1)
        .ok_or("usage: spawn_locks DIRECTORY")?;
    let mut locks = lock_files(Path::new(&directory))
        .map_err(|error| format!("cannot list {}: {error}", Path::new(&directory).display()))?;
    locks.sort();
    // Not `println`, which panics if nobody reads it any more.
    match print(&locks, &mut io::stdout().lock()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        printed => Ok(printed?),
    }
}

fn print(locks: &[PathBuf], out: &mut impl Write) -> io::Result<()> {
    for path in locks {
        writeln!(out, "{}", path.display())?;
        match inspect_spawn_lock(path) {
            Ok(report) => print_report(&report, out)?,
            // One bad file does not hide the others.
            Err(error) => writeln!(out, "  {error}")?,
        }
    }
    Ok(())
}

fn lock_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let path = entry?.path();
        if path
            .extension()
            .is_some_and(|extension| extension == "lock")
        {
            paths.push(path);
        }
    }
    Ok(paths)
}

fn print_report(report: &LockReport, out: &mut impl Write) -> io::Result<()> {
    match report.holder() {
        Some(holder) => {
            let since = ago(holder.since);
            writeln!(out, "  held, taken by process {} {since}", holder.pid)?;
        }
        None if report.is_held => writeln!(out, "  held, by whom is not written there")?,
        None => writeln!(out, "  free")?,
    }
    match &report.ledger {
        LedgerReading::Found(ledger) => {
            // For how long they count, the gates know and the ledger does not.
            if let Some(oldest) = ledger.oldest_attempt() {
                let (count, at) = (ledger.attempts_charged(), ago(oldest.system_time()));
                writeln!(out, "  attempts charged: {count}, the oldest {at}")?;
            }
            if let Some(last) = ledger.last_outcome() {
                let at = ago(last.at.system_time());
                match &last.failure {
                    None => writeln!(out, "  last that ended: {}, succeeded {at}", last.launch)?,
                    Some(why) => writeln!(
                        out,
                        "  last that ended: {}, failed {at}: {why}",
                        last.launch
                    )?,
                }
            }
            let gone = ledger.holder().filter(|_| !report.is_held);
            if let Some(holder) = gone {
                writeln!(out, "  process {} was killed here, or gave up", holder.pid)?;
            }
            if let Some(lost) = ledger.lost_launch() {
                writeln!(
                    out,
                    "  launch {lost} was cut short: it was killed, or given up"
                )?;
            }
        }
        _ => writeln!(out, "  what is written there is no ledger")?,
    }
    Ok(())
}

fn ago(time: SystemTime) -> String {
    match time.elapsed() {
        Ok(age) => format!("{:.1} s ago", age.as_secs_f64()),
        Err(_) => "in the future, by this clock".to_owned(),
    }
}
