#!/usr/bin/env python3
"""repair.py LUMEOFS CLUSTER-DIR ROUNDS SECONDS FILL-MIB: foreground work without and with a drain under way.

Each figure has a drain of its own, of another datanode each time, so that the same amount is moved. Ends with 1 if one
was over before what was measured beside it.
"""
import json
import statistics
import subprocess
import sys
import time

lumeofs, cluster = sys.argv[1:3]
rounds, seconds, fill = map(int, sys.argv[3:])
mount = f"{cluster}/mnt"
MOVED_SECONDS = 900
FIGURES = {
    "write_1m": ("MiB/s", "write", ["--rw=write", "--bs=1m", "--size=256m", "--name=written"]),
    "randread_4k": ("IOPS", "read", ["--rw=randread", "--bs=4k", "--direct=1", f"--size={fill}m", "--name=filled"]),
}


def admin(*arguments):
    command = [lumeofs, "admin", "--json", "--dir", cluster, *arguments]
    return json.loads(subprocess.check_output(command))


def fio(*arguments):
    command = ["fio", "--output-format=json", f"--directory={mount}", "--fallocate=none", *arguments]
    text = subprocess.check_output(command, text=True)
    return json.loads(text[text.index("{"):])["jobs"][0]


def measure(name):
    unit, side, arguments = FIGURES[name]
    job = fio(*arguments, "--time_based", f"--runtime={seconds}")
    assert job["error"] == 0, job["error"]
    return job[side]["bw"] / 1024 if unit == "MiB/s" else job[side]["iops"]


def replicas(node):
    return next(row["replicas"] for row in admin("node", "list") if row["id"] == node)


def is_whole():
    status = admin("status")
    return status["groups"] == status["groups_in_sync"]


def wait(what, done):
    late = time.monotonic() + MOVED_SECONDS
    while not done():
        if time.monotonic() > late:
            sys.exit(f"not within {MOVED_SECONDS} s: {what}")
        time.sleep(0.5)


def beside_a_drain(name, node):
    """The figure while a datanode is drained; whether the drain outlasted it."""
    begun = time.monotonic()
    admin("node", "drain", str(node), "--no-wait")
    found = measure(name)
    lasted = replicas(node) > 0
    wait(f"datanode {node} is empty", lambda: replicas(node) == 0 and is_whole())
    print(f"# {name}: datanode {node} was empty after {time.monotonic() - begun:.0f} s", flush=True)
    admin("node", "undrain", str(node))
    return found, lasted


wait("all groups are in sync", is_whole)
fio("--rw=write", "--bs=1m", f"--size={fill}m", "--name=filled", "--end_fsync=1")
nodes = [row["id"] for row in admin("node", "list")]
alone, beside = ({name: [] for name in FIGURES} for _ in range(2))
drains, cut_short = 0, 0
for number in range(rounds):
    for name in FIGURES:
        # In turn first and second, so that what the machine does meanwhile meets both alike.
        for with_drain in (number % 2 == 1, number % 2 == 0):
            if not with_drain:
                alone[name].append(measure(name))
                continue
            # The one that was drained last has nothing: it takes what this one has.
            found, lasted = beside_a_drain(name, nodes[drains % len(nodes)])
            beside[name].append(found)
            drains += 1
            cut_short += not lasted

print(f"{'':14}{'unit':8}{'alone':>10}{'drain':>10}{'ratio':>8}")
for name, (unit, _, _) in FIGURES.items():
    quiet, busy = statistics.median(alone[name]), statistics.median(beside[name])
    print(f"{name:14}{unit:8}{quiet:>10.1f}{busy:>10.1f}{busy / quiet:>8.2f}")
if cut_short:
    sys.exit(f"{cut_short} of {drains} drains were over too early: give a larger --fill or fewer --seconds")
