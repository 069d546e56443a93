"""One process that fuzzes one target with atheris until its time is over or something kills it; fuzzing.py starts it.

What it has found is written every second, so that a hang or a crash in foreign code loses no more than that.
"""

from __future__ import annotations

import argparse
import base64
import collections
import json
import os
import random
import re
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Bytes of address space beyond what the process has at its start. Resident memory is bounded by the fuzzer.
_ADDRESS_SPACE = 2**33
# An input that waits for this many times its limit of CPU time hangs as well.
_WAITS = 10
_OUTCOMES = 2000


class Found:
    """What the inputs of one process came to."""

    def __init__(self, path: Path) -> None:
        """Begins with nothing, to be written to a file."""
        self.path, self.written = path, 0.0
        self.inputs = self.values = 0
        self.outcomes: collections.Counter[str] = collections.Counter()
        self.findings: dict[str, dict[str, Any]] = {}
        self.slowest = self.seconds = self.cpu_s = 0.0
        self.start_mib, self.peak_mib = memory_mib()
        self.begin, self.cpu = time.monotonic(), time.process_time()

    def write(self) -> None:
        """Writes the file, whole or not at all."""
        self.peak_mib = memory_mib()[1]
        self.seconds, self.cpu_s = time.monotonic() - self.begin, time.process_time() - self.cpu
        values = {name: value for name, value in vars(self).items() if name != "path"}
        beside = self.path.with_suffix(".tmp")
        beside.write_text(json.dumps(values))
        beside.replace(self.path)
        self.written = time.monotonic()


def memory_mib(*keys: str) -> tuple[float, ...]:
    """Returns figures of this process's memory in MiB, by default that held now and the most ever held."""
    held = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(held[key].split()[0]) / 1024 for key in keys or ("VmRSS", "VmHWM"))


def shortened(said: str) -> str:
    """Returns a message without names and numbers, so that messages of one kind are equal."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|/\S+|-?\d[\d.,]*", "#", said)[:80]


def described(error: BaseException, data: bytes) -> tuple[str, dict[str, Any]]:
    """Returns what tells a finding from others, and the finding."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "ganomaly_jax" in Path(frame.filename).parts] or frames[-1:]
    at = f"{Path(own[-1].filename).name}:{own[-1].lineno}"
    text = "".join(traceback.format_exception(error)).replace(f"{ROOT}{os.sep}", "")
    kind = f"{type(error).__name__} at {at}"
    return kind, {"kind": kind, "times": 1, "traceback": text[-4000:], "input": base64.b64encode(data).decode()}


def main() -> None:
    """Fuzzes; does not return."""
    parser = argparse.ArgumentParser()
    for name in ("target", "scratch", "images", "rows", "stats", "corpus", "current"):
        parser.add_argument(name)
    for name in ("--seconds", "--limit", "--memory", "--seed"):
        parser.add_argument(name, type=float, required=True)
    given = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["ganomaly_jax", "PIL", "soundfile", "zipfile", "numpy.lib"]):
        import warnings

        import jax

        from benchmarks.faults import fuzz_mutators, fuzz_target, fuzz_targets

        warnings.simplefilter("ignore")
        jax.config.update("jax_platforms", "cpu")
        target = fuzz_targets.TARGETS[given.target]
        opened = target.open(fuzz_target.Place(*map(Path, (given.scratch, given.images, given.rows))))
        for data in opened.seeds:  # imports and compiles everything
            fuzz_target.outcome(opened, data)
    for k, data in enumerate(opened.seeds):
        Path(given.corpus, f"seed-{k:03}").write_bytes(data)
    found, current = Found(Path(given.stats)), os.open(given.current, os.O_CREAT | os.O_RDWR)
    end = found.begin + given.seconds
    resource.setrlimit(resource.RLIMIT_AS, (int(memory_mib("VmSize")[0] * 2**20) + _ADDRESS_SPACE,) * 2)

    def one(data: bytes) -> None:
        begin = time.process_time()
        os.ftruncate(current, 0)
        os.pwrite(current, data, 0)
        signal.setitimer(signal.ITIMER_PROF, given.limit)  # ends this process, whatever it is in
        try:
            said = fuzz_target.outcome(opened, data)
            found.values += said == fuzz_target.VALUE
            if len(found.outcomes) < _OUTCOMES:
                found.outcomes[shortened(said)] += 1
        except (Exception, SystemExit) as error:
            kind, finding = described(error, data)
            found.findings.setdefault(kind, finding | {"times": 0})["times"] += 1
        signal.setitimer(signal.ITIMER_PROF, 0)
        found.inputs += 1
        found.slowest = max(found.slowest, time.process_time() - begin)
        now = time.monotonic()
        if now - found.written > 1 or now > end:
            found.write()
        if now > end:
            os._exit(0)

    def mutate(data: bytes, longest: int, seed: int) -> bytes:
        chance = random.Random(seed)

        def change(part: bytes) -> bytes:
            if chance.random() < 0.3:
                return fuzz_mutators.mutated_bytes(part, chance)
            return atheris.Mutate(part or b"\0", 2 * len(part) + 64)

        return target.mutate(data, chance, change)[:longest] if chance.random() < 0.6 else change(data)[:longest]

    found.write()
    options = [f"-seed={given.seed + 1:.0f}", f"-max_len={target.longest}", f"-timeout={_WAITS * given.limit:.0f}"]
    options += [f"-rss_limit_mb={found.start_mib + given.memory:.0f}", f"-artifact_prefix={given.current}-"]
    options += ["-close_fd_mask=3", "-reload=0", "-len_control=0", "-report_slow_units=1000"]
    atheris.Setup([sys.argv[0], *options, given.corpus], one, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
