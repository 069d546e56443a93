"""A stream of sensors judged as it comes: latency from row to verdict, rows a second, memory, many streams at once.

    python benchmarks/speed/stream.py --source DIR/tep/tep_f32.npz --out benchmarks/speed/results/stream_DEVICE

writes NAME.json and NAME.md. The monitor is the command itself, in a process of its own that may use one core alone;
what feeds it and reads its verdicts uses another. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.accuracy import process
from benchmarks.common import command, timing
from benchmarks.common.command import Log
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.rows import tables

WINDOWS = {"rows": 0, "windows of 20": 20}
AIM_MS = 5.0
"""p99 of the time from row to verdict that is aimed at, for 52 sensors on one core."""
_EVERY = 50_000
# Rows between measurements of memory.


def settings_of(window: int, source: str, columns: Sequence[str]) -> config.Config:
    """Returns a small training with the sizes of configs/rows.py; detection is not measured here."""
    settings = config.Config()
    settings.data.source, settings.data.kind, settings.data.window = source, "rows", window
    settings.data.columns = tables.as_text(columns)
    settings.data.calibration, settings.data.test = 0.3, 0.01
    settings.model.latent_size, settings.model.features = 16, 32
    settings.optimizer.learning_rate = 1e-3
    settings.evaluate.score = "pixel"
    settings.train.steps, settings.train.picture_every = 300, 0
    return settings


def write_csv(path: Path, x: np.ndarray, columns: Sequence[str]) -> None:
    lines = [",".join(columns), *(",".join(map(repr, row)) for row in x.tolist())]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def rows_of(runs: Mapping[str, np.ndarray]) -> list[bytes]:
    """Returns all test runs as lines without their time, with a comma before the first value."""
    x = np.concatenate([runs[f"test_{i:02d}"] for i in range(process.FAULTS + 1)])
    return [("," + ",".join(map(repr, row)) + "\n").encode() for row in x.tolist()]


def stream_of(columns: Sequence[str], rows: Sequence[bytes]) -> Iterator[bytes]:
    """Yields the header, then the rows repeatedly, with increasing times."""
    yield ("time," + ",".join(columns) + "\n").encode()
    for i, row in enumerate(itertools.cycle(rows)):
        yield str(i).encode() + row


def _on(core: int) -> list[str]:
    """Returns the prefix of a command that restricts it to this core."""
    return ["taskset", "-c", str(core)]


class Monitor:
    """The command, on one core; `lines` are its verdicts with the time at which each was read."""

    def __init__(self, workdir: Path, core: int, *flags: str, keep: bool = True) -> None:
        call = [*_on(core), sys.executable, "-m", "ganomaly_jax", "monitor", "--workdir", str(workdir), *flags]
        self.lines: list[tuple[float, dict[str, Any]]] = []
        self.verdicts, self.first = 0, 0.0
        self.process = subprocess.Popen(
            call,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=timing.ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        self._reader = threading.Thread(target=self._read, args=(keep,), daemon=True)
        self._reader.start()

    def _read(self, keep: bool) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            now = time.perf_counter()
            if b'"verdict"' not in line:
                continue
            self.first = self.first or now
            self.verdicts += 1
            if keep:
                self.lines.append((now, json.loads(line)))

    def write(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def wait_for(self, verdicts: int) -> None:
        """Waits for this many verdicts; raises UserError if the process ends before."""
        while self.verdicts < verdicts:
            if self.process.poll() is not None:
                raise UserError(f"the monitor ended with exit code {self.process.returncode}")
            time.sleep(0.001)

    def rss(self) -> int:
        """Returns the bytes of memory that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return int(status.split("VmRSS:")[1].split()[0]) * 1024

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(120)
        self._reader.join(10)


def latency(workdir: Path, core: int, lines: Iterator[bytes], rows: int, rate: float, window: int) -> dict[str, Any]:
    """Measures ms from writing a row to reading its verdict at a steady rate, also as the monitor reports it."""
    watched = Monitor(workdir, core)
    warm = max(window, 1) + 50
    written = {}
    watched.write(next(lines))
    for _ in range(warm):
        watched.write(next(lines))
    watched.wait_for(warm - max(window, 1) + 1)
    begin = time.perf_counter()
    for i in range(rows):
        due = begin + i / rate
        while (left := due - time.perf_counter()) > 0:
            time.sleep(left)
        written[warm + 1 + i] = time.perf_counter()
        watched.write(next(lines))
    watched.wait_for(warm - max(window, 1) + 1 + rows)
    watched.close()
    seen = [(now - written[one["row"]]) * 1e3 for now, one in watched.lines if one["row"] in written]
    own = [one["latency_ms"] for _, one in watched.lines if one["row"] in written]
    return {"rows": rows, "rate": rate, "ms": percentiles(seen), "own_ms": percentiles(own)}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Returns p50, p99, p99.9 and the maximum."""
    found = np.quantile(np.asarray(values), (0.5, 0.99, 0.999, 1.0)).tolist()
    return dict(zip(("p50", "p99", "p999", "max"), found, strict=True))


def flood(
    workdir: Path, core: int, lines: Iterator[bytes], rows: int, flags: Sequence[str], log: Log
) -> dict[str, Any]:
    """Measures the most rows per second that it accepts, and its memory from time to time."""
    watched = Monitor(workdir, core, *flags, keep=False)
    watched.write(next(lines))
    memory, done = [], 0
    watched.write(b"".join(itertools.islice(lines, 100)))
    watched.wait_for(80)
    time.sleep(0.2)  # the last of these as well, whatever the window
    begin, before = time.perf_counter(), watched.verdicts
    while done < rows:
        some = min(500, rows - done)
        watched.write(b"".join(itertools.islice(lines, some)))
        done += some
        if done % _EVERY == 0 or done == rows:
            watched.wait_for(max(done - 500, 0))
            memory.append([done, watched.rss()])
            log(f"{done:,} rows, {done / (time.perf_counter() - begin):,.0f} a second, {memory[-1][1] / 2**20:.1f} MiB")
    watched.wait_for(before + rows)  # each of them has its verdict
    taken = time.perf_counter() - begin
    watched.close()
    return {"rows": rows, "verdicts": watched.verdicts - before, "seconds": taken, "memory": memory}


def side_by_side(workdir: str, streams: int, rounds: int) -> dict[str, Any]:
    """Measures, in this process, milliseconds per step of many streams in one program, one row each."""
    import jax

    jax.config.update("jax_platforms", "cpu")
    from ganomaly_jax.scoring import scorer as scoring_scorer
    from ganomaly_jax.streaming import compiled_step

    scorer = scoring_scorer.load(workdir)
    begin = time.perf_counter()
    many = compiled_step.compile_streams(scorer, streams)
    compiled = time.perf_counter() - begin
    centre = (np.asarray(scorer.low) + np.asarray(scorer.high)) / 2
    spread = (np.asarray(scorer.high) - np.asarray(scorer.low)) / 2
    x = np.random.default_rng(0).normal(centre, spread, (8, streams, len(centre))).astype(np.float32)
    taken = []
    for i in range(rounds + 20):
        begin = time.perf_counter()
        many, found = compiled_step.advance(many, x[i % 8])
        taken.append((time.perf_counter() - begin) * 1e3)
    if not np.isfinite(found["score"]).all():
        raise UserError("some of the scores are not finite")
    held = taken[20:]
    return {
        "streams": streams,
        "ms": percentiles(held),
        "rows_a_second": streams / np.mean(held) * 1e3,
        "compile_s": compiled,
    }


def measure(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures everything, for each of `WINDOWS`."""
    from ganomaly_jax.training import trainer

    runs = process.read(options.source)
    columns = [f"sensor_{i}" for i in range(runs["train_00"].shape[1])]
    rows = rows_of(runs)
    feeder, core = options.cores
    os.sched_setaffinity(0, {feeder})
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        normal = Path(folder) / "normal.csv"
        write_csv(normal, runs["train_00"], columns)
        for name, window in WINDOWS.items():
            workdir = Path(folder) / f"run_{window}"
            trainer.train(settings_of(window, str(normal), columns), workdir, log=lambda line: None)
            own: dict[str, Any] = {}
            for rate in options.rates:
                own[f"{rate:g}"] = latency(workdir, core, stream_of(columns, rows), options.rows, rate, window)
                ms = own[f"{rate:g}"]["ms"]
                log(f"{name}, {rate:g} rows/s: p50 {ms['p50']:.2f} ms, p99 {ms['p99']:.2f} ms")
            state = ["--state", str(Path(folder) / f"state_{window}.json")]
            most = options.flood if not window else min(options.flood, options.flood_windows)
            flooded = flood(workdir, core, stream_of(columns, rows), most, state, log)
            own_process = [sys.executable, __file__, "--out", "none"]
            call = [*_on(core), *own_process, "--side-by-side", str(workdir), str(options.streams)]
            ran = subprocess.run(call, capture_output=True, text=True, check=False)
            if ran.returncode:
                raise UserError(f"the streams side by side: {ran.stderr[-500:]}")
            many = json.loads(ran.stdout.splitlines()[-1])
            log(f"{name}, {options.streams} streams: p50 {many['ms']['p50']:.1f} ms a step")
            found[name] = {"latency": own, "flood": flooded, "many": many}
    return found


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page."""
    found, settings = report["found"], report["settings"]
    lines = [
        *command.opening(report, "A stream of 52 sensors", packages=("jax", "flax", "numpy")),
        "Tennessee Eastman, all 22 test runs one after the other, as CSV through a pipe into `ganomaly monitor`, which "
        "may use one core; another feeds it. Each verdict has its score, p-value and the three sensors that contribute "
        "most; drift and the checks of the sensors are on. Latent 16, 32 features, score `pixel`.",
        "",
        "From the row written to its verdict read by the other process, milliseconds:",
        "",
        *command.table("judged | rows a second | rows | p50 | p99 | p99.9 | longest | p99 in the monitor itself"),
    ]
    for name, own in found.items():
        for rate, one in own["latency"].items():
            ms = one["ms"]
            lines.append(
                f"| {name} | {rate} | {one['rows']:,} | {ms['p50']:.2f} | {ms['p99']:.2f} | {ms['p999']:.2f} | "
                f"{ms['max']:.2f} | {one['own_ms']['p99']:.2f} |"
            )
    worst = max(one["ms"]["p99"] for own in found.values() for one in own["latency"].values())
    lines += ["", f"Aim: p99 below {AIM_MS:g} ms; the highest here is {worst:.2f} ms.", "", "As fast as it goes:", ""]
    lines += command.table("judged | rows | rows a second | MiB at 50,000 rows | most after it | at the end")
    for name, own in found.items():
        one = own["flood"]
        held = [size / 2**20 for _, size in one["memory"]]
        lines.append(
            f"| {name} | {one['rows']:,} | {one['rows'] / one['seconds']:,.0f} | {held[0]:.1f} | {max(held):.1f} | "
            f"{held[-1]:.1f} |"
        )
    lines += ["", "Memory (VmRSS, MiB) by rows: "]
    for name, own in found.items():
        each = [f"{done:,}: {size / 2**20:.1f}" for done, size in own["flood"]["memory"]]
        lines[-1] += f"{name}: {'; '.join(each)}. "
    lines += [
        "",
        f"{settings['streams']:,} streams in one program on one core, a row each at a time, scores and p-values:",
        "",
    ]
    lines += command.table("judged | p50 ms a step | p99 | rows a second in all")
    for name, own in found.items():
        one = own["many"]
        lines.append(f"| {name} | {one['ms']['p50']:.1f} | {one['ms']['p99']:.1f} | {one['rows_a_second']:,.0f} |")
    return "\n".join(line.rstrip() for line in lines) + "\n"


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--source", help="the npz of the process, as in process.py")
    parser.add_argument("--rows", type=int, default=3000, help="for the latency, at each rate (default: %(default)s)")
    parser.add_argument("--rates", default="10,100", help="rows a second (default: %(default)s)")
    parser.add_argument("--flood", type=int, default=1_000_000, help="rows for the memory (default: %(default)s)")
    parser.add_argument("--flood-windows", type=int, default=100_000, help="the same, windows (default: %(default)s)")
    parser.add_argument("--streams", type=int, default=1000, help="side by side (default: %(default)s)")
    parser.add_argument("--cores", default="0,1", help="which feeds and which judges (default: %(default)s)")
    parser.add_argument("--side-by-side", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    command.at_least(options, 100, "rows", "flood", "flood_windows")
    command.at_least(options, 1, "streams")
    options.rates = [float(rate) for rate in command.numbers(options.rates, "--rates")]
    try:
        feeder, core = map(int, options.cores.split(","))
    except ValueError:
        raise UserError(f"--cores: got {options.cores!r}, expected two numbers with a comma between") from None
    if not options.side_by_side and not {feeder, core} <= os.sched_getaffinity(0):
        raise UserError(f"--cores: got {options.cores}, there are {sorted(os.sched_getaffinity(0))}")
    options.cores = [feeder, core]
    if not options.source and not options.side_by_side:
        raise UserError("--source: expected the npz of the process")
    return options


def run(options: argparse.Namespace, log: Log) -> None:
    """Measures and writes the files."""
    load, machine, allowed = command.load(log), timing.machine(), os.sched_getaffinity(0)
    try:
        found = measure(options, log)
    finally:
        os.sched_setaffinity(0, allowed)
    load["after"] = timing.load_average()
    kept = {name: value for name, value in vars(options).items() if name not in ("source", "out", "side_by_side")}
    report = command.begin("stream", machine=machine, load_average=load, settings=kept, found=found)
    command.write(report, options.out, markdown)


def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    if "--side-by-side" in given:
        options = arguments(given)
        print(json.dumps(side_by_side(options.side_by_side[0], int(options.side_by_side[1]), 200)))
        return 0
    return command.main(arguments, run, argv, stopped="the files are written only at the end")


if __name__ == "__main__":
    sys.exit(main())
