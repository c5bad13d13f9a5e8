//! Prints every spawn lock below a prefix in etcd: whether it is held, by whom, and how the last launch ended. It does not disturb
//! holders.
//!
//! ```console
//! $ cargo run --example etcd_locks -- http://127.0.0.1:2379 [PREFIX]
//! ```

use std::error::Error;

use spawn_gate::admin::{Ledger, LedgerReading};
use spawn_gate_etcd::{EtcdSpawnLock, KeyReport};

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let endpoints = args.next().ok_or("usage: etcd_locks ENDPOINT,… [PREFIX]")?;
    let mut builder = EtcdSpawnLock::builder(endpoints.split(','));
    if let Some(prefix) = args.next() {
        builder = builder.prefix(prefix);
    }
    let inspection = builder.build()?.inspect().await?;
    for report in &inspection.keys {
        print(report);
    }
    for key in &inspection.foreign {
        println!("{key}\n  written by another program");
    }
    Ok(())
}

fn print(report: &KeyReport) {
    println!("{}", report.name);
    match (report.held_by, report.pid) {
        (Some(token), Some(pid)) => println!("  held by process {pid}, with fencing token {token}"),
        (Some(token), None) => println!("  held, with fencing token {token}"),
        (None, _) => println!("  free"),
    }
    if let Some(age) = report.age {
        println!("  last change: {} s ago", age.as_secs());
    }
    match &report.ledger {
        LedgerReading::Found(ledger) => print_ledger(ledger, report.held_by.is_some()),
        _ => println!("  what is written there is no ledger"),
    }
}

fn print_ledger(ledger: &Ledger, is_held: bool) {
    println!("  attempts charged: {}", ledger.attempts_charged());
    if let Some(holder) = ledger.holder() {
        let host = holder.host.as_ref().map_or("?", |host| &host.name);
        let verb = if is_held {
            "launches"
        } else {
            "was killed, or gave up"
        };
        println!("  process {} of host {host} {verb}", holder.pid);
    }
    if let Some(last) = ledger.last_outcome() {
        match &last.failure {
            None => println!("  last that ended: {}, succeeded", last.launch),
            Some(why) => println!("  last that ended: {}, failed: {why}", last.launch),
        }
    }
    if let Some(lost) = ledger.lost_launch() {
        println!("  launch {lost} was cut short: it was killed, or given up");
    }
}
