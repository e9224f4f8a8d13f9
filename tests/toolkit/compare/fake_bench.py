"""A bench program that speaks the protocol of docs/guest.md, and can be told to break it: `fake_bench.py VICE…`.

The vices are the ways a technique may go wrong. One without a workload's name is shown at every run of it.
"""

from __future__ import annotations

import json
import os
import sys
import time

OPS_PER_BATCH = 10
BATCH_SECONDS = 20e-6


def say(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def spin(seconds: float) -> None:
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def flood(line: bytes) -> None:
    while True:
        os.write(1, line)


def fall_asleep() -> None:
    """Stops answering; tells the file FAKE_BENCH_ASLEEP that it has, and who."""
    told = os.environ.get("FAKE_BENCH_ASLEEP")
    if told:
        with open(told + ".part", "w", encoding="ascii") as file:
            file.write(str(os.getpid()))
        os.rename(told + ".part", told)
    time.sleep(60)


def main(vices: list[str]) -> None:
    if "dead-on-arrival" in vices:
        print("panic: no memory")
        sys.exit(7)
    if "mute" in vices:
        time.sleep(60)
    if "garbage" in vices:
        os.write(1, b"\xff\x00{]\n" + b"x" * 100_000 + b"\n{not json\n")
    print("text for people")
    say(ready="bench", workloads=["cpu", "call", "syscall", "cr"])
    checksums = 0
    for command in sys.stdin:
        words = command.split()
        if words == ["quit"]:
            return
        name, batches = words[1], int(words[2])
        vice = next((vice for vice in vices if vice.partition(":")[2] in ("", name)), "").partition(":")[0]
        if name == "cr":
            say(error="unsupported: a process has no control registers", workload=name)
            continue
        if vice == "refuse":
            say(error="no disk", workload=name)
            continue
        say(begin=name)
        if batches and vice == "die":
            print("kernel panic: a wild pointer\nrip=0")
            sys.stdout.flush()
            os.abort()
        if batches and vice == "sleep":
            fall_asleep()
        if batches and vice == "flood-text":
            flood(b"spam " * 2000 + b"\n")
        if batches and vice == "flood-json":
            flood(b'{"spam":1}\n' * 1000)
        if batches and vice == "flood-line":
            flood(b"{" * 10_000)
        if vice != "instant":
            spin(batches * BATCH_SECONDS)
        checksum = {"lie": "f" * 16, "waver": f"{checksums:016x}"}.get(vice, "00000000deadbeef")
        checksums += 1
        ops = batches * OPS_PER_BATCH
        if batches and vice == "boast":
            ops = 1 << 70
        say(end=name, checksum="none" if vice == "no-checksum" else checksum, ops=ops)


main(sys.argv[1:])
