"""Milliseconds from images to scores beside onnxruntime and anomalib, cold start and sizes, in one run.

    python benchmarks/speed/latency.py --anomalib PYTHON --out benchmarks/speed/results/latency_cpu

writes NAME.json and NAME.md, after each case anew. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.common import command, timing
from benchmarks.common.command import Log
from benchmarks.speed import latency_make
from benchmarks.speed.latency_page import markdown
from benchmarks.speed.latency_sides import MODES, SIDES
from ganomaly_jax.core.errors import UserError

OURS = "ours"
PEER = "anomalib, PyTorch"
# The very network of the peer, which is what its own program is compared by; otherwise it is as `ours`.
IMPORTED = "ours, anomalib's weights"
# Whose scores have to be those of which side, to this share of the largest.
_SAME = {"StableHLO": OURS, "onnxruntime": OURS, IMPORTED: PEER, "anomalib, OpenVINO": PEER}
TOLERANCE = 1e-4
# Sides with a cache on the disk of what they compile: JAX's, and OpenVINO's.
_CACHED = (OURS, "StableHLO", "anomalib, OpenVINO")
_LEAST_CALLS = {"p95": 20, "p99": 100}
_DEFAULTS = {"batches": "1,8,64,512", "rounds": 3, "turn": 0.5, "starts": 2, "files_side": 256, "shape": "64x64x3"}
_QUICK = {"batches": "1,8", "rounds": 2, "turn": 0.05, "starts": 1, "files_side": 64, "shape": "32x32x3"}
_MOST_CALLS = 500
_SCRIPT = "import sys; from benchmarks import latency_sides; latency_sides.serve(*sys.argv[1:])"


class Worker:
    """A side in a process of its own, which sleeps while another one has its turn. `begun`: when it was started."""

    def __init__(self, python: str, side: str, artefacts: Path, images: Path, cache: Path) -> None:
        own = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(cache / "jax"), "TF_CPP_MIN_LOG_LEVEL": "2"}
        call = [python, "-W", "ignore", "-c", _SCRIPT, side, str(artefacts), str(images)]
        # Open as long as the process: `close` ends both.
        self._errors = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115
        self.begun = time.perf_counter()
        self._process = subprocess.Popen(
            call,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            cwd=cache,  # anomalib puts OpenVINO's cache into the working directory
            env=timing.environment() | own,
        )

    def ask(self, mode: str, batch: int, calls: int, warm: bool = True) -> dict[str, Any]:
        """Returns the answer of `latency_sides.serve`; with `warm`, an untimed call comes first.

        Raises:
          RuntimeError: the side failed, or its process has ended; the message is one line.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"mode": mode, "batch": batch, "calls": calls, "warm": warm}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            self._errors.seek(0)
            said = self._errors.read().strip().splitlines() or [f"exit code {code}"]
            raise RuntimeError(said[-1][:200])
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()


@contextlib.contextmanager
def worker(*arguments: Any) -> Iterator[Worker]:
    """Opens a `Worker` and closes it at the end."""
    made = Worker(*arguments)
    try:
        yield made
    finally:
        made.close()


def summarise(batch: int, turns: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, dict[str, Any]]:
    """Summarises each side from the seconds of every call, one list per turn.

    `p50`, `p95`, `p99` are milliseconds a call, None where too few calls were made to have one; `times_as_fast` is how
    many times as fast as this side ours is, the spread over the rounds of the ratio of their medians.
    """
    found = {}
    for name, rounds in turns.items():
        calls = np.concatenate([np.asarray(seconds) for seconds in rounds])
        quantiles = {key: float(np.quantile(calls, int(key[1:]) / 100) * 1000) for key in ("p50", "p95", "p99")}
        medians = [float(np.median(seconds)) for seconds in rounds]
        found[name] = {
            **{key: value if len(calls) >= _LEAST_CALLS.get(key, 1) else None for key, value in quantiles.items()},
            "images_per_s": batch * len(calls) / float(calls.sum()),
            "calls": len(calls),
            "ms_rounds": [1000 * median for median in medians],
            "times_as_fast": None,
        }
    if OURS in found:
        for name in found.keys() - {OURS}:
            found[name]["times_as_fast"] = timing.ratios(found[OURS]["ms_rounds"], found[name]["ms_rounds"])
    return found


def differences(scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Returns {side: largest deviation of its scores from the expected ones, relative to the largest of these}."""
    return {
        name: float(np.abs(np.subtract(scores[name], scores[other])).max() / np.abs(scores[other]).max())
        for name, other in _SAME.items()
        if name in scores and other in scores
    }


def measure(workers: dict[str, Worker], mode: str, batch: int, options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures one case: warms up every side, then runs the rounds. A side that fails is closed and left out."""
    case: dict[str, Any] = {"mode": mode, "batch": batch, "left_out": {}}
    turns: dict[str, list[list[float]]] = {}
    calls: dict[str, int] = {}
    scores = {}

    def asked(name: str, count: int) -> list[float]:
        try:
            # Where one call fills a turn, what the side before left in the caches is nothing beside it.
            answer = workers[name].ask(mode, batch, count, warm=calls.get(name) != 1)
        except RuntimeError as error:
            case["left_out"][name] = str(error)
            log(f"  {name} left out: {error}")
            turns.pop(name, None)
            workers.pop(name).close()
            return []
        scores.setdefault(name, answer["scores"])
        case.setdefault("notes", {})[name] = answer["note"]
        options.versions[name] = answer["versions"]
        return answer["seconds"]

    for name in list(workers):
        if (name != IMPORTED or mode == "device") and (seconds := asked(name, 1)):
            calls[name] = min(_MOST_CALLS, max(1, round(options.turn / min(seconds))))
            turns[name] = []
    for _ in range(options.rounds):
        for name in list(turns):
            time.sleep(timing.PAUSE_S)
            if seconds := asked(name, calls[name]):
                turns[name].append(seconds)
    case["sides"] = summarise(batch, turns)
    case["differences"] = differences(scores)
    if mode == "device":  # of the very same pixels; otherwise images were resized by each side's own means
        for name, difference in case["differences"].items():
            if not difference <= TOLERANCE:
                raise UserError(f"{name} gives other scores than {_SAME[name]}: they differ by {difference:.1e}")
    return case


def cold_starts(
    sides: Sequence[str], pythons: Mapping[str, str], artefacts: Path, images: Path, scratch: Path, starts: int
) -> dict[str, dict[str, list[float]]]:
    """Measures seconds from process start to the score of one file: {side: {`empty`, `filled`: a list of starts}}.

    With an empty cache of compiled programs, and with the one that this filled. Sides take turns.
    """
    found: dict[str, dict[str, list[float]]] = {name: {"empty": [], "filled": []} for name in sides}
    for _ in range(starts):
        for name in sides:
            cache = scratch / "cold"
            cache.mkdir()
            for state in ("empty", "filled") if name in _CACHED else ("empty",):
                with worker(pythons[name], name, artefacts, images, cache) as started:
                    started.ask("files", 1, 0)
                    found[name][state].append(time.perf_counter() - started.begun)
            shutil.rmtree(cache)
    return found


def make(options: argparse.Namespace, artefacts: Path, images: Path, log: Log) -> tuple[dict[str, str], dict[str, str]]:
    """Writes what the sides load and score; returns ({side: interpreter}, {side that is left out: reason})."""
    left_out = dict.fromkeys(set(SIDES) - set(options.only), "not asked for")
    pythons = {name: sys.executable for name in SIDES}
    side, sizes = options.shape[0], {"features": options.features, "latent": options.latent}
    own = functools.partial(timing.in_own_process, timeout_s=600)
    count = max(max(options.batches), 8)
    log(f"making {count} images of {options.files_side} x {options.files_side}, and what is loaded")
    try:
        given = {"folder": str(images), "count": count, "side": options.files_side, "shape": options.shape}
        options.bytes_a_file = own("benchmarks.speed.latency_make:images", given)
        failed = own("benchmarks.speed.latency_make:ours", {"folder": str(artefacts), "shape": options.shape, **sizes})
    except RuntimeError as error:
        raise UserError(f"nothing can be measured: {error}") from None
    theirs = [name for name in options.only if "anomalib" in name]
    if theirs:
        try:
            if options.shape[2] != 3:
                raise RuntimeError("its network is for three channels")
            given = {"folder": str(artefacts), "side": side, **sizes}
            failed |= own("benchmarks.speed.latency_make:anomalib", given, python=options.anomalib)
            pythons |= {name: options.anomalib for name in theirs if name != IMPORTED}
            if IMPORTED in theirs:
                own("benchmarks.speed.latency_make:imported", {"folder": str(artefacts), "side": side})
        except RuntimeError as error:
            failed |= dict.fromkeys(theirs, str(error))
    for name, (_, folder) in SIDES.items():
        if why := failed.get(name, failed.get(folder)):
            left_out.setdefault(name, why)
    for name in set(left_out) & set(options.only):
        log(f"  {name} left out: {left_out[name]}")
    return {name: python for name, python in pythons.items() if name not in left_out}, left_out


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--anomalib", default=sys.executable, help="an interpreter that has it (default: this one)")
    parser.add_argument("--only", help=f"of the sides {'; '.join(SIDES)}, with ; between (default: all)")
    parser.add_argument("--modes", default=",".join(MODES), help="of device, arrays, files (default: all)")
    parser.add_argument("--batches", help=f"images a call, a case each (default: {_DEFAULTS['batches']})")
    parser.add_argument("--shape", help=f"the network's input (default: {_DEFAULTS['shape']})")
    parser.add_argument("--features", type=int, default=64, help="width of the networks (default: 64)")
    parser.add_argument("--latent", type=int, default=100, help="size of the latent (default: 100)")
    parser.add_argument("--files-side", type=int, help="height and width of raw arrays and files (default: 256)")
    parser.add_argument("--rounds", type=int, help="turns of each side (default: 3)")
    parser.add_argument("--turn", type=float, help="seconds that a turn takes about, a call at least (default: 0.5)")
    parser.add_argument("--starts", type=int, help="cold starts of each side, 0 for none (default: 2)")
    parser.add_argument("--quick", action="store_true", help="does it run: 32x32x3, 1 and 8 images, 2 short rounds")
    options = parser.parse_args(argv)
    command.fill(options, _QUICK if options.quick else _DEFAULTS)
    options.batches = command.numbers(options.batches, "--batches")
    options.shape = list(command.square(options.shape))
    options.modes = options.modes.split(",")
    options.only = [name.strip() for name in options.only.split(";")] if options.only else list(SIDES)
    for got, known, option in ((options.modes, MODES, "--modes"), (options.only, SIDES, "--only")):
        if not set(got) <= set(known):
            raise UserError(f"{option}: got {got}, expected some of {list(known)}")
    command.at_least(options, 1, "rounds", "features", "latent", "files_side")
    command.at_least(options, 0, "starts")
    command.seconds(options, "turn")
    return options


def run(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures every case, then cold starts, writing the two files after each, and returns the report."""
    load = command.load(log)
    try:
        machine = timing.in_own_process("benchmarks.speed.end_to_end:machine", {})
    except RuntimeError as error:
        raise UserError(f"JAX does not start: {error}") from None
    options.versions = {}
    names = ("shape", "features", "latent", "files_side", "batches", "modes", "rounds", "starts", "quick")
    settings = {name: getattr(options, name) for name in names} | {"turn_s": options.turn}
    report = command.begin("latency", finished=False, machine=machine, load_average=load, settings=settings, cases=[])
    write = functools.partial(command.write, report, options.out, markdown)
    report |= {"left_out": {}, "sizes": {}, "cold_start_s": {}, "versions": options.versions}
    write()  # a folder that cannot be written to is found before anything is measured
    with tempfile.TemporaryDirectory(prefix="latency-") as folder, contextlib.ExitStack() as stack:
        scratch = Path(folder)
        artefacts, images, cache = (scratch / name for name in ("artefacts", "images", "cache"))
        for path in (artefacts, images, cache):
            path.mkdir()
        # What is compiled while the exports are checked, the workers need not compile again.
        stack.enter_context(mock.patch.dict(os.environ, {"JAX_COMPILATION_CACHE_DIR": str(cache / "jax")}))
        pythons, report["left_out"] = make(options, artefacts, images, log)
        report["sizes"] = latency_make.sizes(str(artefacts))
        settings["bytes_a_file"] = options.bytes_a_file
        workers = {name: Worker(python, name, artefacts, images, cache) for name, python in pythons.items()}
        stack.callback(lambda: [made.close() for made in workers.values()])
        for mode in options.modes:
            for batch in options.batches:
                log(f"{mode}, {batch}")
                case = measure(workers, mode, batch, options, log)
                for name, found in case["sides"].items():
                    log(f"  {name}: {found['p50']:.4g} ms, {found['images_per_s']:,.0f} images/s")
                report["cases"].append(case)
                report["load_average"]["after"] = timing.load_average()
                write()
        sides = [name for name in workers if name != IMPORTED]
        while workers:
            workers.popitem()[1].close()
        log("cold starts")
        report["cold_start_s"] = cold_starts(sides, pythons, artefacts, images, scratch, options.starts)
        report["finished"] = True
        report["load_average"]["after"] = timing.load_average()
        write()
    return report


main = functools.partial(command.main, arguments, run)


if __name__ == "__main__":
    sys.exit(main())
