"""A whole training on packed images that exceed the memory it may take: what it holds at most, step by step to the end.

    python benchmarks/speed/bounded.py --out benchmarks/speed/results/bounded_cpu

packs a set larger than `--limit-gib`, trains on it under that limit (`ulimit -v`), with calibration, evaluation and
report, once read on demand and once held in memory, and writes NAME.json and NAME.md. README.md beside this file says
what is measured.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.common import command, timing
from benchmarks.common.command import Log
from ganomaly_jax.core import config
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data import pack

STREAMED, HELD = "auto", "never"  # values of data.stream
_SHARD_BYTES = 2**28
_POLL_S = 0.05
_LIMITED = """import resource, sys
resource.setrlimit(resource.RLIMIT_AS, ({0}, {0}))
from ganomaly_jax.cli import main
sys.exit(main.command())
"""
# What the kernel says of a process, in KiB: the most memory that it held, the most addresses, and without files.
_FIELDS = {"VmHWM": "peak_rss", "VmPeak": "peak_addresses", "RssAnon": "peak_anonymous"}


def packed(folder: Path, options: argparse.Namespace, log: Log) -> tuple[int, int]:
    """Packs shards into the folder with `ganomaly pack` and returns (images, bytes); every 50th image is anomalous."""
    height, width, _ = options.shape
    each = max(_SHARD_BYTES // int(np.prod(options.shape)), 1)
    shards = -(-int(options.set_gib * 2**30) // (each * int(np.prod(options.shape))))
    base, array = timing.pictures(each, options.shape), folder / "part.npz"
    labels = (np.arange(each) % 50 == 0).astype(int)
    count = size = 0
    for k in range(shards):
        # Other pixels in every image, so that hardly two records are alike.
        flipped = base ^ np.random.default_rng(k).integers(0, 256, (each, 1, 1, options.shape[2]), np.uint8)
        np.savez(array, images=flipped, labels=labels)
        name = folder / f"set.array_record-{k:05}-of-{shards:05}"
        found = pack.pack(config.Data(source=str(array), height=height, width=width), name)
        count, size = count + found.count, size + found.count * int(np.prod(found.shape))
    array.unlink()
    log(f"packed {count:,} images, {size / 2**30:.2f} GiB in {shards} shards")
    return count, size


def trained(way: str, data: Path, workdir: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Runs `ganomaly train` under the limit and returns exit code, seconds, peaks in bytes and the last line."""
    height, width, channels = options.shape
    values = {"data.stream": way, "train.steps": options.steps, "train.batch_size": options.batch}
    values |= {"data.height": height, "data.width": width, "data.channels": channels}
    values |= {"model.features": options.features, "model.latent_size": 8, "train.save_every": options.steps // 2}
    limit, said = int(options.limit_gib * 2**30), workdir.with_suffix(".txt")
    call = [sys.executable, "-W", "ignore", "-c", _LIMITED.format(limit), "train", "--data", str(data)]
    call += ["--workdir", str(workdir), *(f"--config.{name}={value}" for name, value in values.items())]
    path = os.pathsep.join([str(timing.ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"}
    peaks = dict.fromkeys(_FIELDS.values(), 0)
    begin = time.monotonic()
    with said.open("wb") as out:
        process = subprocess.Popen(call, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                _look(process.pid, peaks)
                time.sleep(_POLL_S)
        finally:
            process.kill()
            process.wait()
    lines = said.read_text(errors="replace").strip().splitlines()
    scored = workdir / "predictions.csv"
    return peaks | {
        "exit_code": process.returncode,
        "seconds": round(time.monotonic() - begin, 1),
        "read_meanwhile": any("read while it trains" in line for line in lines),
        "scored": sum(1 for _ in scored.open()) - 1 if scored.exists() else 0,
        "last_line": lines[-1].replace(str(data), "the set").replace(str(workdir), "run") if lines else "",
    }


def _look(pid: int, peaks: dict[str, int]) -> None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:  # it has just ended
        return
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name in _FIELDS:
            peaks[_FIELDS[name]] = max(peaks[_FIELDS[name]], int(value.split()[0]) * 1024)


def broken(report: Mapping[str, Any]) -> list[str]:
    """Returns sentences on the expectations that did not hold."""
    found, said = report["found"], []
    if report["bytes"] <= report["settings"]["limit_gib"] * 2**30:
        said.append("the set is not larger than the limit")
    if STREAMED in found and (found[STREAMED]["exit_code"] or not found[STREAMED]["read_meanwhile"]):
        said.append(f"read on demand it did not come to its end: {found[STREAMED]['last_line']}")
    if HELD in found and found[HELD]["exit_code"] != 2:
        said.append(f"held in memory: exit code {found[HELD]['exit_code']}, expected one sentence and 2")
    return said


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page."""
    settings, machine, loads = report["settings"], report["machine"], report["load_average"]
    kind = "x".join(map(str, settings["shape"]))
    lines = [
        f"# A set larger than memory ({machine['processor']}, {machine['cores']} cores)",
        "",
        f"{report['date']}, commit {machine['commit'] or 'unknown'}; jax {machine['versions'].get('jax')}, on the CPU; "
        f"load average {loads['before'][0]} before, {loads['after'][0]} after.",
        "",
        f"{report['images']:,} packed images of {kind}, **{report['bytes'] / 2**30:.2f} GiB**, and `ganomaly train` "
        f"with **{settings['limit_gib']:g} GiB** of address space (`ulimit -v`), imports and compiler included: "
        f"{settings['steps']} steps of {settings['batch']}, {settings['features']} features, then calibration, "
        "evaluation and report.",
        "",
        *command.table(
            "`data.stream` | exit code | images scored | most memory held, MiB | of it not files, MiB | "
            "most addresses, MiB | s | its last line"
        ),
    ]
    for way, found in report["found"].items():
        sizes = [f"{found[name] / 2**20:,.0f}" for name in ("peak_rss", "peak_anonymous", "peak_addresses")]
        cells = [f"`{way}`", found["exit_code"], f"{found['scored']:,}", *sizes, found["seconds"], found["last_line"]]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    wrong = broken(report)
    return "\n".join([*lines, "", "What did not hold:" if wrong else "All of it held.", *(f"- {w}" for w in wrong), ""])


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--set-gib", type=float, default=4.0, help="GiB of packed pixels (default: %(default)s)")
    parser.add_argument("--limit-gib", type=float, default=3.5, help="of address space (default: %(default)s)")
    parser.add_argument("--shape", default="64x64x3", help="HEIGHTxWIDTHxCHANNELS (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="of the training (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="images a step (default: %(default)s)")
    parser.add_argument("--features", type=int, default=4, help="width of the networks (default: %(default)s)")
    parser.add_argument("--folder", help="where the set is put (default: the system's temporary folder)")
    options = parser.parse_args(argv)
    options.shape = command.square(options.shape)
    command.at_least(options, 2, "steps", "batch")
    command.at_least(options, 1, "features")
    if not 0 < options.limit_gib < options.set_gib:
        raise UserError(f"--set-gib {options.set_gib:g}: expected more than --limit-gib, {options.limit_gib:g}")
    return options


def run(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Measures both ways, writing the two files after each, and returns the report."""
    settings = {name: value for name, value in vars(options).items() if name not in ("out", "folder")}
    report = command.begin(
        "bounded", machine=timing.machine(), settings=settings, load_average=command.load(), found={}
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as scratch:
        data = Path(scratch) / "set"
        data.mkdir()
        report["images"], report["bytes"] = packed(data, options, log)
        for way in (STREAMED, HELD):
            found = report["found"][way] = trained(way, data, Path(scratch) / f"run_{way}", options)
            log(f"data.stream={way}: exit code {found['exit_code']}, {found['peak_rss'] / 2**20:,.0f} MiB held at most")
            report["load_average"]["after"] = timing.load_average()
            command.write(report, options.out, markdown, {scratch: "..."})
    return report


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, 1 if an expectation did not hold."""
    wrong: list[str] = []
    return command.main(arguments, lambda options, log: wrong.extend(broken(run(options, log))), argv) or int(
        bool(wrong)
    )


if __name__ == "__main__":
    sys.exit(main())
