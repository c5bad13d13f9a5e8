#!/usr/bin/env python3
"""Breaks the crate in one way at a time, in a copy of the tree, and shows that the simulation notices each.

    tests/simulation/mutations.py [WORD]    all mutations, or those with WORD in their name

Exits with 1 if one survives, or if its place in the source is not found any more. SIMULATION_SEEDS sets the seeds of each mode (100).
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))

# Name, then file, what stands there once, and what is put in its place.
MUTATIONS = [
    ("flight ended by key instead of number", [(
        "src/budget/decision.rs",
        "if !self.is_in_flight(flight) {",
        "if flight.get() == 0 || self.in_flight.is_none() {",
    )]),
    ("refund that gives nothing back", [(
        "src/budget/key_budget.rs",
        "Settlement::Refund => self.charges.take_back_newest(),",
        "Settlement::Refund => {}",
    )]),
    ("no verify before the launch", [(
        "src/flight/script.rs",
        "Ok(()) => leader.verify().await,",
        "Ok(()) => Ok(()),",
    )]),
    ("no verify before a launch that begins at once", [(
        "src/flight/steps.rs",
        "        verified?;\n",
        "        drop(verified);\n",
    )]),
    ("no verify before the outcome", [(
        "src/lock/traits.rs",
        "self.verify().await?;\n        match ledger {",
        "match ledger {",
    ), (
        "src/flight/held_lock.rs",
        "None => self.lease.settle_now(),",
        "None => Some(Ok(())),",
    )]),
    ("failure not shared", [(
        "src/flight/outcome.rs",
        "Self::Failed(error) => Err(error),",
        "Self::Failed(GateError::Launch(_)) => Ok(None),\n            Self::Failed(error) => Err(error),",
    )]),
    ("window that rolls over mid-launch admitting another", [(
        "src/budget/decision.rs",
        "if let Some(flight) = self.in_flight {\n            return Admission::Follow(flight);",
        "if let Some(flight) = self.in_flight.filter(|_| {\n"
        "            let began = self.checked_at.unwrap_or(now);\n"
        "            now.saturating_duration_since(began) < policy.config.window\n"
        "        }) {\n            return Admission::Follow(flight);",
    )]),
    ("unclaimed permit kept", [(
        "src/gate/detached.rs",
        "lazy_timeout(UNCOLLECTED_FOR, collected_or_ended)",
        "lazy_timeout(UNCOLLECTED_FOR * 1000, collected_or_ended)",
    )]),
    ("charge not written as the lock is taken", [(
        "src/ledger/session.rs",
        "Verdict::Charged(_) | Verdict::Look => Some(",
        "Verdict::Charged(_) => None,\n            Verdict::Look => Some(",
    )]),
    ("charge not written after a look", [(
        "src/flight/steps.rs",
        "Some(held) => held.write_ledger().await,",
        "Some(_) => Ok(()),",
    )]),
    ("close that does not wait", [(
        "src/gate/admin.rs",
        "if outcome.outcome(deadline).await.is_none() {",
        "if deadline < Instant::now() && outcome.outcome(deadline).await.is_none() {",
    )]),
    ("every refusal the first", [(
        "src/budget/decision.rs",
        "!std::mem::replace(&mut self.has_refused, true)",
        "true",
    ), (
        "src/budget/decision.rs",
        "first: !self.has_refused,",
        "first: true,",
    )]),
    ("no refusal the first", [(
        "src/budget/decision.rs",
        "!std::mem::replace(&mut self.has_refused, true)",
        "false",
    ), (
        "src/budget/decision.rs",
        "first: !self.has_refused,",
        "first: false,",
    )]),
    ("lock released after the followers were woken", [(
        "src/flight/ending.rs",
        "drop(self.held.take());\n        self.has_ended = true;\n",
        "let _held = self.held.take();\n        self.has_ended = true;\n",
    )]),
    ("a dropped waiter that goes on waiting", [(
        "src/gate/detached.rs",
        "return Poll::Ready(Err(Outcome::LeaderGone));",
        "{}",
    )]),
    ("a key forgotten in flight", [(
        "src/budget/decision.rs",
        "self.in_flight.is_none() && self.budget.is_blank()",
        "self.budget.is_blank()",
    )]),
    ("no second look with the lock", [(
        "src/ledger/session.rs",
        "(newest_holder.is_none() || known.holder_at_look != newest_holder)",
        "newest_holder.is_none()",
    )]),
    ("retry_after half as long", [(
        "src/budget/charges.rs",
        "Some(policy.config.window.saturating_sub(now.since(freed_by)))",
        "Some(policy.config.window.saturating_sub(now.since(freed_by)) / 2)",
    )]),
]


def mutate(tree, changes):
    for path, there, instead in changes:
        path = os.path.join(tree, path)
        with open(path) as file:
            source = file.read()
        if source.count(there) != 1:
            return f"{there!r} stands {source.count(there)} times in {path}"
        with open(path, "w") as file:
            file.write(source.replace(there, instead))
    return None


def simulate(tree, target):
    """The verdict on a tree, and the first seed that noticed."""
    # Without the crate's own tests, and without warnings of what a mutation leaves unused.
    environment = dict(os.environ, CARGO_TARGET_DIR=target, RUSTFLAGS="-Awarnings", RUST_BACKTRACE="0")
    environment.setdefault("SIMULATION_SEEDS", "100")
    environment["CARGO_PROFILE_TEST_DEBUG"] = environment["CARGO_PROFILE_DEV_DEBUG"] = "false"
    command = ["cargo", "test", "-j1", "--test", "simulation", "keep_every_promise"]
    built = subprocess.run(command + ["--no-run"], cwd=tree, env=environment, capture_output=True, text=True)
    if built.returncode != 0:
        return "does not build", built.stderr[-2000:]
    try:
        run = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        return "noticed", "it hangs"
    if run.returncode == 0:
        return "survives", ""
    seeds = re.findall(r"^((?:scripted|real):\d+) (.*)$", run.stdout, re.MULTILINE)
    if not seeds:
        return "noticed", run.stdout.strip().splitlines()[-1]
    return "noticed", f"{len(seeds)} seeds, {seeds[0][0]} {seeds[0][1][:70]}"


def main():
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    chosen = [mutation for mutation in MUTATIONS if word in mutation[0]]
    is_bad = False
    with tempfile.TemporaryDirectory() as directory:
        target = os.environ.get("MUTATIONS_TARGET_DIR", os.path.join(directory, "target"))
        for name, changes in [("nothing", [])] + chosen:
            tree = os.path.join(directory, "tree")
            shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns("target", ".git"))
            # Copies are as old as what was copied: without this, the build before it would pass for up to date.
            os.utime(os.path.join(tree, "src", "lib.rs"))
            missing = mutate(tree, changes)
            verdict, why = ("not found", missing) if missing else simulate(tree, target)
            expected = "noticed" if changes else "survives"
            is_bad |= verdict != expected
            print(f"| {name} | {verdict} | {why} |", flush=True)
            shutil.rmtree(tree)
    sys.exit(is_bad)


if __name__ == "__main__":
    main()
