#!/usr/bin/env python3
"""caches.py LUMEOFS MOUNT OTHER-MOUNT MEMORY-MOUNT ROUNDS: what the caches of a mount cost, beside a filesystem in memory.

Prints medians over rounds in which both take turns, and for what is warm how often a server was asked.
"""
import json
import os
import statistics
import subprocess
import sys
import time

lumeofs, mount, other, memory, rounds = *sys.argv[1:5], int(sys.argv[5])
FILES, PASSES = 500, 4


def row(name, value, unit, bound=""):
    print(f"{name:34}{value:>12}  {unit:10}{bound}", flush=True)


def asked():
    """Queries of both mounts that went to the leader, and requests of data."""
    total = 0
    for place in (mount, other):
        counters = json.loads(subprocess.check_output([lumeofs, "stats", place, "--json"]))["counters"]
        total += sum(value for name, value in counters.items() if name.startswith("queries_total") and "leader" in name)
        total += counters.get("cache_missed_bytes_total", 0)
    return int(total)


def prepare(root):
    os.makedirs(f"{root}/warm", exist_ok=True)
    for index in range(FILES):
        with open(f"{root}/warm/f{index:04d}", "wb") as file:
            file.write(b"x" * 4096)


def stat(root):
    for index in range(FILES):
        os.stat(f"{root}/warm/f{index:04d}")
    return FILES


def read(root):
    for index in range(FILES):
        file = os.open(f"{root}/warm/f{index:04d}", os.O_RDONLY)
        assert len(os.read(file, 8192)) == 4096
        os.close(file)
    return FILES


def listing(root):
    for _ in range(20):
        assert len(os.listdir(f"{root}/warm")) == FILES
    return 20


def timed(work, root):
    begun = time.perf_counter()
    for _ in range(PASSES):
        count = work(root)
    return (time.perf_counter() - begun) / PASSES / count * 1e6


def warm():
    for root in (mount, memory):
        prepare(root)
    os.sync()
    for name, work in (("stat", stat), ("open+read 4 KiB", read), ("readdir of 500", listing)):
        for root in (mount, memory):
            work(root)
        before = asked()
        ours, theirs = zip(*((timed(work, mount), timed(work, memory)) for _ in range(rounds)))
        ratio = statistics.median(ours) / statistics.median(theirs)
        row(f"warm {name}", f"{statistics.median(ours):.1f}", "us", f"memory {statistics.median(theirs):.1f}, ratio {ratio:.2f}")
        row(f"  asked of servers meanwhile", asked() - before, "")


def chmod_takes(path, observe):
    times = []
    for turn in range(100):
        if observe:
            os.stat(f"{other}/{path}")
        begun = time.perf_counter()
        os.chmod(f"{mount}/{path}", 0o600 + turn % 2)
        times.append((time.perf_counter() - begun) * 1e3)
    return statistics.median(times)


def recalls():
    with open(f"{mount}/observed", "wb") as file:
        file.write(b"x")
        os.fsync(file.fileno())
    alone, observed, dirty = [], [], []
    for _ in range(rounds):
        # Whoever looked before has a lease no longer.
        os.rename(f"{mount}/observed", f"{mount}/again")
        os.rename(f"{mount}/again", f"{mount}/observed")
        with open(f"{mount}/alone", "wb") as file:
            os.fsync(file.fileno())
        alone.append(chmod_takes("alone", False))
        observed.append(chmod_takes("observed", True))
        for turn in range(50):
            # A new file each time: two that write to one share it.
            with open(f"{mount}/dirty{turn}", "wb") as file:
                file.write(b"x" * 4096)
            begun = time.perf_counter()
            assert os.stat(f"{other}/dirty{turn}").st_size == 4096
            dirty.append((time.perf_counter() - begun) * 1e3)
            os.unlink(f"{mount}/dirty{turn}")
    row("invalidation of a shared lease", f"{statistics.median(observed) - statistics.median(alone):.2f}", "ms",
        f"chmod with an observer less chmod without: {statistics.median(observed):.2f}, {statistics.median(alone):.2f}")
    row("stat of a file that is dirty there", f"{statistics.median(dirty):.2f}", "ms")


def ping_pong():
    with open(f"{mount}/ball", "wb") as file:
        file.write((0).to_bytes(8, "big"))
    players = [os.open(f"{place}/ball", os.O_RDWR) for place in (mount, other)]
    rates = []
    for _ in range(rounds):
        begun, turns = time.perf_counter(), 0
        while time.perf_counter() - begun < 2:
            player = players[turns % 2]
            number = int.from_bytes(os.pread(player, 8, 0), "big")
            os.pwrite(player, (number + 1).to_bytes(8, "big"), 0)
            turns += 1
        rates.append(turns / (time.perf_counter() - begun))
    row("ping-pong of read and write", f"{statistics.median(rates):.0f}", "turns/s")


warm()
recalls()
ping_pong()
