//! Prints every spawn lock of a directory: whether it is held, by whom, since when, and how the last launch ended. It does not
//! disturb holders.
//!
//! ```console
//! $ cargo run --example spawn_locks -- DIRECTORY
//! ```

use std::error::Error;
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
    for path in locks {
        println!("{}", path.display());
        match inspect_spawn_lock(&path) {
            Ok(report) => print_report(&report),
            // One bad file does not hide the others.
            Err(error) => println!("  {error}"),
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

fn print_report(report: &LockReport) {
    match report.holder() {
        Some(holder) => println!(
            "  held, taken by process {} {}",
            holder.pid,
            ago(holder.since)
        ),
        None if report.is_held => println!("  held, by whom is not written there"),
        None => println!("  free"),
    }
    match &report.ledger {
        LedgerReading::Found(ledger) => {
            // For how long they count, the gates know and the ledger does not.
            if let Some(oldest) = ledger.oldest_attempt() {
                let (count, at) = (ledger.attempts_charged(), ago(oldest.system_time()));
                println!("  attempts charged: {count}, the oldest {at}");
            }
            if let Some(last) = ledger.last_outcome() {
                let at = ago(last.at.system_time());
                match &last.failure {
                    None => println!("  last that ended: {}, succeeded {at}", last.launch),
                    Some(why) => println!("  last that ended: {}, failed {at}: {why}", last.launch),
                }
            }
            let gone = ledger.holder().filter(|_| !report.is_held);
            if let Some(holder) = gone {
                println!("  process {} was killed here, or gave up", holder.pid);
            }
            if let Some(lost) = ledger.lost_launch() {
                println!("  launch {lost} was cut short: it was killed, or given up");
            }
        }
        _ => println!("  what is written there is no ledger"),
    }
}

fn ago(time: SystemTime) -> String {
    match time.elapsed() {
        Ok(age) => format!("{:.1} s ago", age.as_secs_f64()),
        Err(_) => "in the future, by this clock".to_owned(),
    }
}
