#!/usr/bin/env python3
"""Breaks the crate's source in one way at a time, in a copy, and shows that a scenario notices each.

    schedules/mutations.py [WORD ...]    all mutations, or those with one of the words in their name

Exits with 1 if one survives, or if its place in the source is not found any more. SCHEDULES sets the schedules of each scenario (2000).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
SOURCE = os.path.join(os.path.dirname(HERE), "src")

# Name, then file, what stands there, and what is put in its place. It stands there once, or as often as a fourth value says.
MUTATIONS = [
    ("flight ended by key instead of number", [(
        "budget/decision.rs",
        "if !self.is_in_flight(flight) {",
        "if flight.get() == 0 || self.in_flight.is_none() {",
    )]),
    ("refund that gives nothing back", [(
        "budget/key_budget.rs",
        "Settlement::Refund => self.charges.take_back_newest(),",
        "Settlement::Refund => {}",
    )]),
    ("no refund after a lost lock", [(
        "flight/leader.rs",
        "None => this.flight.refund(),",
        "None => {}",
    )]),
    ("close that does not wait", [(
        "gate/admin.rs",
        "if outcome.outcome(deadline).await.is_none() {",
        "if deadline < Instant::now() && outcome.outcome(deadline).await.is_none() {",
    )]),
    ("close looked at before the shard is locked", [(
        "flight/registry.rs",
        "        if self.is_closed.load(Ordering::SeqCst) {\n            return Err(GateError::Closed);\n        }\n",
        "",
    ), (
        "gate/mod.rs",
        "            let shard = self.shared.registry.shard(hash).await;\n",
        "            if self.shared.registry.is_closed() {\n                return Err(GateError::Closed);\n            }\n"
        "            let shard = self.shared.registry.shard(hash).await;\n",
        2,
    )]),
    ("leader whose drop publishes nothing", [(
        "flight/ending.rs",
        "if !self.flight.end(policy, ended(), false, update, record) {",
        "let _ = (policy, update, record);\n            if false {",
    )]),
    ("dropped caller that nobody notices", [(
        "gate/detached.rs",
        "return Poll::Ready(Err(Outcome::LeaderGone));",
        "{}",
    )]),
    ("unclaimed permit kept", [(
        "gate/detached.rs",
        "lazy_timeout(UNCOLLECTED_FOR, collected_or_ended)",
        "lazy_timeout(UNCOLLECTED_FOR * 1000, collected_or_ended)",
    )]),
    ("outcome published before the flight has ended", [(
        "flight/handle.rs",
        "        let mut state = self.entry.state();\n        let key_state = &mut state.key_state;\n        if !key_state.end(",
        "        record(&outcome);\n"
        "        let early = self.step(|flight| flight.followers.take()).flatten();\n"
        "        if let Some(followers) = early {\n            followers.publish(outcome);\n        }\n"
        "        let mut state = self.entry.state();\n        let key_state = &mut state.key_state;\n        if !key_state.end(",
    ), (
        "flight/handle.rs",
        "        record(&outcome);\n"
        "        if let Some(followers) = ended.and_then(|flight| flight.followers) {\n            followers.publish(outcome);\n        }\n",
        "        drop(ended);\n",
    )]),
    ("lock released after the followers were woken", [(
        "flight/ending.rs",
        "drop(self.held.take());\n        self.has_ended = true;\n",
        "let _held = self.held.take();\n        self.has_ended = true;\n",
    )]),
    ("reset that lets the flight in progress count", [(
        "budget/decision.rs",
        "        self.budget.reset();\n        self.is_charged = false;\n",
        "        self.budget.reset();\n        if self.is_charged {\n            self.budget.charges = super::charges::Charges::Fixed {\n"
        "                window_began: Instant::now(),\n                used: 1,\n            };\n        }\n",
    )]),
    ("key forgotten in flight", [(
        "budget/decision.rs",
        "self.in_flight.is_none() && self.budget.is_blank()",
        "self.budget.is_blank()",
    )]),
    ("every refusal the first", [(
        "budget/decision.rs",
        "!std::mem::replace(&mut self.has_refused, true)",
        "true",
    ), (
        "budget/decision.rs",
        "first: !self.has_refused,",
        "first: true,",
    )]),
    ("abort that forgets who holds the permit", [(
        "flight/in_progress.rs",
        "self.is_with_caller = self.interrupt.is_none();",
        "self.is_with_caller = false;",
    )]),
    ("abort that does not wake the leader", [(
        "flight/handle.rs",
        "leader.wake();",
        "drop(leader);",
    )]),
    ("abort noticed only after the launch", [(
        "flight/script.rs",
        "let interrupted = flight.poll_interrupted(context);\n            interrupted.map(|error| Err(Outcome::Failed(error)))",
        "let _ = (flight, context);\n            Poll::Pending",
    )]),
]


def mutate(tree, changes):
    for path, there, instead, *times in changes:
        path = os.path.join(tree, path)
        with open(path) as file:
            source = file.read()
        if source.count(there) != (times or [1])[0]:
            return f"{there!r} stands {source.count(there)} times in {path}"
        with open(path, "w") as file:
            file.write(source.replace(there, instead))
    return None


def explore(tree, target):
    """The verdict on a source, and the scenarios that noticed."""
    environment = dict(os.environ, CARGO_TARGET_DIR=target, RUST_BACKTRACE="0", SCHEDULES_SOURCE=tree)
    environment.setdefault("SCHEDULES", "2000")
    command = ["cargo", "test", "-j1", "--release", "--test", "schedules"]
    built = subprocess.run(command + ["--no-run"], cwd=HERE, env=environment, capture_output=True, text=True)
    if built.returncode != 0:
        return "does not build", built.stderr[-2000:]
    try:
        run = subprocess.run(command, cwd=HERE, env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "noticed", "it hangs"
    if run.returncode == 0:
        return "survives", ""
    noticed = re.findall(r"^test (\S+) \.\.\. FAILED$", run.stdout, re.MULTILINE)
    return "noticed", ", ".join(noticed) or run.stderr.strip().splitlines()[-1]


def main():
    words = sys.argv[1:] or [""]
    chosen = [mutation for mutation in MUTATIONS if any(word in mutation[0] for word in words)]
    is_bad = False
    with tempfile.TemporaryDirectory() as directory:
        target = os.environ.get("MUTATIONS_TARGET_DIR", os.path.join(directory, "target"))
        for place, (name, changes) in enumerate([("nothing", [])] + chosen):
            # A new path each time, so that the build script runs again.
            tree = os.path.join(directory, f"source-{place}")
            shutil.copytree(SOURCE, tree)
            missing = mutate(tree, changes)
            verdict, why = ("not found", missing) if missing else explore(tree, target)
            expected = "noticed" if changes else "survives"
            is_bad |= verdict != expected
            print(f"| {name} | {verdict} | {why} |", flush=True)
    sys.exit(is_bad)


if __name__ == "__main__":
    main()
