//! What the gate has done so far, as a page for Prometheus. The names are those of OpenTelemetry's mapping.

use std::collections::BTreeMap;

use spawn_gate::admin::{DurationHistogram, Statistics};

pub(crate) fn page(now: &Statistics) -> String {
    let requests = numbers("how", now.requests.by_how());
    let launches = now.launches.iter().map(|(name, all)| (*name, all.count));
    let launches = numbers("outcome", launches);
    let flights = numbers("stage", now.active_flights.by_stage());
    let followers = vec![format!(" {}", now.active_followers)];
    let (took, waits) = (durations(&now.launches), durations(&now.lock_waits));
    metric("requests_total counter", requests)
        + &metric("launches_total counter", launches)
        + &metric("launch_duration_seconds histogram", took)
        + &metric("lock_wait_duration_seconds histogram", waits)
        + &metric("flight_active gauge", flights)
        + &metric("follower_active gauge", followers)
        + &metric(
            "lock_lost_total counter",
            vec![format!(" {}", now.locks_lost)],
        )
}

fn metric(name_and_type: &str, series: Vec<String>) -> String {
    let name = name_and_type.split(' ').next().unwrap_or_default();
    let line = |series| format!("spawn_gate_{name}{series}\n");
    let lines: String = series.into_iter().map(line).collect();
    format!("# TYPE spawn_gate_{name_and_type}\n{lines}")
}

fn numbers<'a>(label: &str, all: impl IntoIterator<Item = (&'a str, u64)>) -> Vec<String> {
    let line = |(value, number)| format!("{{{label}=\"{value}\"}} {number}");
    all.into_iter().map(line).collect()
}

fn durations(by_outcome: &BTreeMap<&str, DurationHistogram>) -> Vec<String> {
    let mut lines = Vec::new();
    for (outcome, all) in by_outcome {
        let (label, count) = (format!("outcome=\"{outcome}\""), all.count);
        for (bound, count) in all.cumulative() {
            let le = bound.as_secs_f64();
            lines.push(format!("_bucket{{{label},le=\"{le}\"}} {count}"));
        }
        lines.push(format!("_bucket{{{label},le=\"+Inf\"}} {count}"));
        lines.push(format!("_sum{{{label}}} {}", all.sum.as_secs_f64()));
        lines.push(format!("_count{{{label}}} {count}"));
    }
    lines
}
