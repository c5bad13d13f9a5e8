//! Measures the paths, or those whose names contain the argument.

use peers::measure::Comparison;
use peers::paths::{fan_in, file_lock, leader, random_keys, refusal};
use peers::report;
use spawn_gate::BackendKey;

fn main() {
    let filter = std::env::args().nth(1).unwrap_or_default();
    type Path = (&'static str, fn(&str) -> Comparison);
    let paths: [Path; 9] = [
        ("100 followers", |path| fan_in::fan_in(path, 100)),
        ("1,000 followers", |path| fan_in::fan_in(path, 1_000)),
        ("10,000 followers", |path| fan_in::fan_in(path, 10_000)),
        ("leader", leader::leader::<BackendKey>),
        ("leader, `String` key", leader::leader::<String>),
        ("launch", leader::launch),
        ("random keys", random_keys::random_keys::<BackendKey>),
        ("refusal", refusal::refusal),
        ("file lock", file_lock::file_lock),
    ];
    for (name, path) in paths {
        if name.contains(&filter) {
            report::print(&path(name));
        }
    }
}
