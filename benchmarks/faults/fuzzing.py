"""A fuzzing campaign: every parser of the package on changed and arbitrary bytes, guided by coverage.

    python -m benchmarks.faults.fuzzing --minutes 60 --seed 0

needs atheris (`python -m pip install atheris`). README.md beside this file says what is done and what must hold. The
results of each target are written when it is done, and replace earlier ones of that target alone: a campaign may be run
in parts. The exit code is 1 where something did not hold.
"""

from __future__ import annotations

import argparse
import base64
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import command, timing
from benchmarks.common.command import Log
from benchmarks.faults.fuzz_targets import TARGETS
from ganomaly_jax.core.errors import UserError

OUT = "benchmarks/faults/results/fuzzing"
# Exit codes of a worker that an input has ended: those of libFuzzer, and that of the limit of CPU time.
_STOPPED = {70: "hang", 71: "memory", -signal.SIGPROF: "hang", -signal.SIGKILL: "memory"}
_LIBRARIES = ("atheris", "jax", "numpy", "pillow", "soundfile", "array_record", "starlette")
RUNS = ("images", "rows")
"""The folders of the two detectors."""
_SUMS, _LARGEST = ("seconds", "cpu_s", "inputs", "values"), ("branches", "slowest", "start_mib", "peak_mib")
# Outcomes of a target in the report, the most frequent ones.
_LISTED = 20
# Ends of a worker by a finding after which a target is given up.
_MOST_STOPS = 20


def prepare(scratch: Path) -> None:
    """Trains the two small detectors whose folders, states and servers are fuzzed."""
    import ganomaly_jax as gj

    random = np.random.default_rng(0)
    (scratch / "normal.csv").write_text("a,b\n" + "".join(f"{a},{b}\n" for a, b in random.normal(0, 1, (400, 2))))
    for name in RUNS:
        config = gj.Config()
        config.model.latent_size = config.model.features = 2
        config.mesh.devices, config.train.batch_size, config.train.steps = 1, 8, 4
        config.train.picture_every = config.train.check_every = 0
        given = None
        if name == "images":
            config.data.height = config.data.width = 16
            given = random.integers(0, 256, (60, 16, 16, 1), np.uint8)
        else:
            config.data.source, config.data.window, config.data.calibration = str(scratch / "normal.csv"), 4, 0.3
            config.evaluate.score = "pixel"
        gj.train(config, scratch / name, given, log=lambda line: None)


def fuzz(name: str, seconds: float, options: argparse.Namespace, scratch: Path, log: Log) -> dict[str, Any]:
    """Fuzzes one target and returns its entry of the report."""
    entry: dict[str, Any] = {
        "commit": timing.machine()["commit"],
        "date": command.begin("")["date"],
        "seed": options.seed,
    }
    entry |= dict.fromkeys(_SUMS, 0) | dict.fromkeys(_LARGEST, 0.0) | {"processes": 0, "outcomes": {}}
    kinds: dict[str, dict[str, Any]] = {}
    while entry["seconds"] < seconds - 1 and entry["processes"] <= _MOST_STOPS:
        code, found, data = _process(name, seconds - entry["seconds"], entry["processes"], options, scratch)
        entry["processes"] += 1
        entry |= {key: entry[key] + found[key] for key in _SUMS}
        entry |= {key: max(entry[key], found[key]) for key in _LARGEST}
        for said, times in found["outcomes"].items():
            entry["outcomes"][said] = entry["outcomes"].get(said, 0) + times
        for kind, finding in found["findings"].items():
            kinds.setdefault(kind, finding | {"times": 0})["times"] += finding["times"]
        if code:
            kind = _STOPPED.get(code, "crash")
            finding = {
                "kind": kind,
                "times": 1,
                "traceback": f"exit code {code}",
                "input": base64.b64encode(data).decode(),
            }
            kinds[f"{kind} {entry['processes']}"] = finding
            log(f"  {name}: {kind}, exit code {code}")
    entry |= {key: round(entry[key], 2) for key in (*_LARGEST, "seconds", "cpu_s")}
    entry["distinct_outcomes"] = len(entry["outcomes"])
    entry["outcomes"] = dict(sorted(entry["outcomes"].items(), key=lambda item: -item[1])[:_LISTED])
    return entry | {"findings": list(kinds.values())}


def _process(
    name: str, seconds: float, stops: int, options: argparse.Namespace, scratch: Path
) -> tuple[int, dict[str, Any], bytes]:
    """Runs one worker; returns its exit code, what it found, and the input that it was at."""
    folder = scratch / name
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("scratch", "corpus"):
        (folder / part).mkdir(parents=True)
    stats, current, said = (folder / part for part in ("stats.json", "current", "said"))
    call = [sys.executable, "-m", "benchmarks.faults.fuzz_worker", name, str(folder / "scratch")]
    call += [*(str(scratch / run) for run in RUNS), str(stats), str(folder / "corpus"), str(current)]
    call += [f"--seconds={seconds}", f"--limit={options.limit}", f"--memory={options.memory}"]
    call += [f"--seed={options.seed + stops}"]
    with said.open("wb") as output:
        code = subprocess.run(call, cwd=timing.ROOT, stdout=output, stderr=output, check=False).returncode
    text = said.read_text(errors="replace")
    if not stats.exists():
        raise UserError(f"target {name} did not begin (exit code {code}):\n{text[-3000:]}")
    branches = max(map(int, re.findall(r"cov: (\d+)", text)), default=0)
    return code, json.loads(stats.read_text()) | {"branches": branches}, current.read_bytes()


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page."""
    machine, entries = report["machine"], report["targets"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items() if version)
    total = {key: sum(entry[key] for entry in entries.values()) for key in _SUMS}
    findings = [(name, finding) for name, entry in entries.items() for finding in entry["findings"]]
    lines = [
        "# Fuzzing: what parsers make of changed and arbitrary bytes",
        "",
        f"{report['date']}, {machine['processor']}, {machine['cores']} cores, Python {machine['python']}; {versions}. "
        f"Seed {report['settings']['seed']}; an input hangs after {report['settings']['limit']:g} s of CPU time, and "
        f"explodes at {report['settings']['memory']:g} MiB. {total['inputs']:,} inputs in "
        f"{total['seconds'] / 60:.0f} minutes, {total['cpu_s'] / 60:.0f} of them CPU time, {len(findings)} findings.",
        "",
        *command.table(
            "target | commit | minutes | CPU minutes | inputs | of them valid | distinct outcomes | branches | "
            "slowest, CPU s | peak above start, MiB | tracebacks | hangs | crashes, memory"
        ),
    ]
    for name, entry in entries.items():
        kinds = [finding["kind"] for finding in entry["findings"]]
        hangs, others = kinds.count("hang"), sum(kind in ("crash", "memory") for kind in kinds)
        cells = [name, entry["commit"] or "unknown", f"{entry['seconds'] / 60:.1f}", f"{entry['cpu_s'] / 60:.1f}"]
        cells += [
            f"{entry['inputs']:,}",
            f"{entry['values']:,}",
            f"{entry['distinct_outcomes']}",
            f"{entry['branches']}",
        ]
        cells += [f"{entry['slowest']:.2f}", f"{entry['peak_mib'] - entry['start_mib']:.0f}"]
        lines.append(f"| {' | '.join([*cells, str(len(kinds) - hangs - others), str(hangs), str(others)])} |")
    lines += ["", "What did not hold:" if findings else "All of it held."] + [""] * bool(findings)
    lines += [f"- {name}: {one['kind']}, {one['times']} times" for name, one in findings]
    return "\n".join([*lines, ""])


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", default=OUT, help="where the results go: OUT.json and OUT.md (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60, help="of all targets together (default: %(default)s)")
    parser.add_argument("--targets", default=",".join(TARGETS), help="some of them, with commas between (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the changes (default: %(default)s)")
    parser.add_argument(
        "--limit", type=float, default=30, help="CPU seconds until an input hangs (default: %(default)s)"
    )
    parser.add_argument("--memory", type=float, default=1024, help="MiB that inputs may add (default: %(default)s)")
    options = parser.parse_args(argv)
    options.targets = [name.strip() for name in options.targets.split(",")]
    unknown = [name for name in options.targets if name not in TARGETS]
    if unknown or len(set(options.targets)) < len(options.targets):
        raise UserError(f"--targets: got {','.join(options.targets)}, expected some of {','.join(TARGETS)}, each once")
    command.seconds(options, "limit", "memory", "minutes")
    command.at_least(options, 0, "seed")
    if importlib.util.find_spec("atheris") is None:
        raise UserError("fuzzing needs atheris: python -m pip install atheris")
    return options


def run(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Fuzzes the targets one after another and writes the two files after each."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    settings = {key: getattr(options, key) for key in ("minutes", "seed", "limit", "memory")}
    before = Path(f"{options.out}.json")
    targets = json.loads(before.read_text())["targets"] if before.exists() else {}
    versions = timing.versions(_LIBRARIES)
    report = command.begin("fuzzing", machine=timing.machine(), versions=versions, settings=settings, targets=targets)
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="fuzzing-", dir=memory) as scratch:
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", f"{scratch}/cache")
        log("training two detectors")
        prepare(Path(scratch))
        for name in options.targets:
            entry = fuzz(name, options.minutes * 60 / len(options.targets), options, Path(scratch), log)
            done = {key: value for key, value in targets.items() if key != name} | {name: entry}
            report["targets"] = targets = {key: done[key] for key in TARGETS if key in done}
            command.write(report, options.out, markdown, {f"{timing.ROOT}{os.sep}": "", scratch: "SCRATCH"})
            log(f"{name}: {entry['inputs']:,} inputs, {len(entry['findings'])} findings")
            for finding in entry["findings"]:
                log(f"  {finding['kind']}, {finding['times']} times")
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, 1 if an expectation did not hold."""
    broken: list[str] = []

    def counted(options: argparse.Namespace, log: Log) -> None:
        targets = run(options, log)["targets"]
        broken.extend(name for name in options.targets if targets[name]["findings"])

    return command.main(arguments, counted, argv, "the files hold the targets until then") or int(bool(broken))


if __name__ == "__main__":
    sys.exit(main())
