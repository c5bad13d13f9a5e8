//! The backend: it registers with the fencing token of its launch, and ends if a younger launch has registered one.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::path::Path;

use spawn_gate::BoxError;
use spawn_gate_etcd::EtcdSpawnLock;

use crate::host::{KEY, say};

/// The lines of all backends: `started TOKEN`, then `serves TOKEN` or `steps-back TOKEN`.
pub(crate) const JOURNAL: &str = "journal";

pub(crate) async fn run(endpoints: &str, scene: &str, token: &str) -> Result<(), BoxError> {
    let lock = EtcdSpawnLock::builder(endpoints.split(',')).build()?;
    note(scene, &format!("started {token}"))?;
    let address = format!("process {}", std::process::id());
    if !lock.register(&KEY, token.parse()?, address).await? {
        note(scene, &format!("steps-back {token}"))?;
        say("steps-back");
        return Ok(());
    }
    note(scene, &format!("serves {token}"))?;
    say("serves");
    // It serves until the one who launched it is gone.
    std::io::stdin().read_to_end(&mut Vec::new())?;
    Ok(())
}

fn note(scene: &str, line: &str) -> std::io::Result<()> {
    let path = Path::new(scene).join(JOURNAL);
    let mut journal = OpenOptions::new().create(true).append(true).open(path)?;
    journal.write_all(format!("{line}\n").as_bytes())
}
