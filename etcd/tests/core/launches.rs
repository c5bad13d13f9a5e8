//! Many hosts ask for one backend: one launch, one budget.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::support::etcd::Etcd;
use crate::support::host::Host;

fn journal(scene: &Path) -> Vec<String> {
    let text = fs::read_to_string(scene.join("journal")).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_cold_start_of_three_hosts_with_fifty_tasks_each_launches_once() {
    let Some(etcd) = Etcd::one() else { return };
    let scene = TempDir::new().unwrap();
    let start = |_| Host::start(&etcd, scene.path(), "callers 50");
    let mut hosts: Vec<Host> = (0..3).map(start).collect();
    let values: Vec<String> = hosts.iter_mut().map(|host| host.says("values")).collect();
    let journal = journal(scene.path());
    assert_eq!(journal.len(), 1, "{journal:?}");
    let token = journal[0].strip_prefix("launch ").unwrap();
    let expected = format!("[{}]", vec![token; 50].join(", "));
    assert_eq!(values, vec![expected; 3]);
}

#[test]
fn a_backend_that_always_fails_is_launched_three_times_and_all_callers_get_the_reason() {
    let Some(etcd) = Etcd::one() else { return };
    let scene = TempDir::new().unwrap();
    let start = |_| Host::start(&etcd, scene.path(), "failing 50");
    let mut hosts: Vec<Host> = (0..3).map(start).collect();
    for host in &mut hosts {
        for _ in 0..50 {
            let reason = host.says("refused");
            assert!(reason.contains("no such program"), "{reason}");
        }
    }
    let mut attempts = journal(scene.path());
    attempts.sort();
    assert_eq!(attempts, ["attempt 1", "attempt 2", "attempt 3"]);
}
