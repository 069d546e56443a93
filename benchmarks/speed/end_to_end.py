"""Seconds from the command to a trained and evaluated detector; files a second of `ganomaly predict`.

    python benchmarks/speed/end_to_end.py --source DIR --out benchmarks/speed/results/NAME

writes NAME.json and NAME.md, after each part anew. README.md beside this file says what is measured and how.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.common import command, prediction, timing
from benchmarks.common.command import Log
from benchmarks.speed.end_to_end_page import STAGES, markdown
from ganomaly_jax.core.errors import UserError

WORKS = ("train", "predict")
_DEFAULTS = {"config": str(timing.ROOT / "configs" / "mnist.py"), "files": 2000, "side": 256, "rounds": 5}
_QUICK = {"config": str(timing.ROOT / "configs" / "smoke.py"), "files": 600, "side": 64, "rounds": 2}
_SOME_FAILED = 3  # exit code of a verb that did its work, but for some inputs


@dataclasses.dataclass(frozen=True)
class Ran:
    """A command that has run: from when to when (seconds of the epoch), and what it printed when."""

    begin: float
    end: float
    lines: list[tuple[float, str]]

    def at(self, beginning: str) -> float:
        """Returns when the first line with this beginning was printed."""
        found = [at for at, line in self.lines if line.startswith(beginning)]
        if not found:
            raise UserError(f"the command did not print {beginning!r}: this benchmark does not know that version of it")
        return found[0]


def cli(arguments: Sequence[str], log: Log = lambda line: None) -> Ran:
    """Runs `python -m ganomaly_jax ...` in its own process.

    Raises:
      UserError: it failed; the message is its own.
    """
    call = [sys.executable, "-m", "ganomaly_jax", *arguments]
    environment = timing.environment() | {"PYTHONUNBUFFERED": "1"}  # each line comes when it is printed
    lines = []
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors:
        begin = time.time()
        process = subprocess.Popen(
            call, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8", errors="replace"
        )
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append((time.time(), line.rstrip()))
                log("  " + line.rstrip())
            code = process.wait()
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
            process.stdout.close()
        ran = Ran(begin, time.time(), lines)
        errors.seek(0)
        said = errors.read().strip().splitlines() or [f"exit code {code}"]
    if code not in (0, _SOME_FAILED):
        raise UserError(f"`ganomaly {arguments[0]}` failed: {said[-1].removeprefix('ganomaly: ')}")
    return ran


def start_seconds() -> float:
    """Measures how long a new process takes to import what training needs and to find the device."""
    timing.in_own_process("benchmarks.speed.end_to_end:ready", {})  # once for the disk
    begin = time.time()
    timing.in_own_process("benchmarks.speed.end_to_end:ready", {})
    return time.time() - begin


def ready() -> None:
    """Imports what `train` imports and finds the device; run in its own process, because it occupies the device."""
    import jax

    from ganomaly_jax.data import sources  # noqa: F401
    from ganomaly_jax.evaluation import evaluate  # noqa: F401
    from ganomaly_jax.training import trainer  # noqa: F401

    jax.local_devices()


def machine() -> dict[str, Any]:
    """Returns `timing.machine` with JAX's devices."""
    ready()
    return timing.machine()


def stages(ran: Ran, workdir: Path, start_s: float) -> dict[str, float]:
    """Divides the seconds of a `train` into stages, from its output and the times of its files.

    `start` is that of `start_seconds`; `data` ends when config.json is there: images read, split and hashed;
    `compilation`, of the first weights and the step, when it prints so; `training` with the last checkpoint;
    `calibration`, with the compilation of the scorer, when it prints the threshold; `evaluation`, with report and
    pictures, when the process ends.
    """
    checkpoints = [path.stat().st_mtime for path in (workdir / "checkpoints").rglob("*") if path.is_file()]
    read = (workdir / "config.json").stat().st_mtime
    marks = [
        min(ran.begin + start_s, read),  # measured in another process, it may have taken longer there
        read,
        ran.at("compiled"),
        max(checkpoints, default=ran.at("compiled")),
        ran.at("threshold"),
        ran.end,
    ]
    # Files have the clock of the kernel, which may be a tick behind.
    return {name: max(0.0, b - a) for name, a, b in zip(STAGES, [ran.begin, *marks], marks, strict=False)}


def train(options: argparse.Namespace, workdir: Path, log: Log) -> dict[str, Any]:
    """Trains and evaluates with an empty cache; then evaluates again, and trains one step, with a filled cache."""
    start_s = start_seconds()
    call = ["train", "--workdir", str(workdir), *options.flags]
    log("train and evaluate, compiling everything")
    ran = cli(call, log)
    cold = stages(ran, workdir, start_s)
    log("evaluate again")
    again = cli(["evaluate", "--workdir", str(workdir)])
    log("one step, with everything compiled")
    short = workdir.with_name("short")
    call = ["train", "--workdir", str(short), *options.flags, "--config.train.steps=1"]
    warm = stages(cli(call), short, start_s)
    warm["training"] = cold["training"]
    metrics, config = (json.loads((workdir / f"{name}.json").read_text("utf-8")) for name in ("metrics", "config"))
    trained = metrics["step"] * config["train"]["batch_size"]
    return {
        "total_s": ran.end - ran.begin,
        "total_compiled_before_s": sum(warm.values()),
        "stages_s": cold,
        "stages_compiled_before_s": warm,
        "evaluate_alone_s": again.end - again.begin,
        "steps": metrics["step"],
        "training_images_per_s": trained / cold["training"] if cold["training"] else None,
        "auroc": metrics["auroc"],
        "n_test": metrics["n_normal"] + metrics["n_anomalous"],
        "opening": next((line for _, line in ran.lines if " | parameters " in line), ""),
        "config": config,
    }


def predict(options: argparse.Namespace, workdir: Path, scratch: Path, log: Log) -> dict[str, Any]:
    """Measures files per second of the command, and of its parts with one decoding thread and with all."""
    if not workdir.exists():
        log("a detector of one step")
        cli(["train", "--workdir", str(workdir), *options.flags, "--config.train.steps=1"])
    folder, out = scratch / "pictures", scratch / "predictions.csv"
    log(f"making {options.files} files of {options.side} x {options.side}")
    size = prediction.write_pictures(folder, options.files, options.side)
    call = ["predict", str(folder), "--workdir", str(workdir), "--out", str(out), "--overwrite"]
    cli(call)  # the program may have to be compiled, the files be fetched from the disk
    log("predict")
    ran = cli(call)
    log("its parts")
    given = {"workdir": str(workdir), "folder": str(folder), "out": str(out), "rounds": options.rounds}
    try:
        parts = timing.in_own_process("benchmarks.common.prediction:measure", given, timeout_s=3600)
    except RuntimeError as error:
        raise UserError(f"the parts of predict could not be measured: {error}") from None
    return {
        "files": options.files,
        "side": options.side,
        "bytes_a_file": size / options.files,
        "command_s": ran.end - ran.begin,
        "command_files_per_s": options.files / (ran.end - ran.begin),
        **parts,
    }


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line; `flags` are passed to `train`."""
    parser = command.parser(__doc__, allow_abbrev=False, epilog="--config.KEY=VALUE goes to `ganomaly train`")
    parser.add_argument("--works", default="train,predict", help="of train, predict (default: both)")
    parser.add_argument("--config", help="what is trained (default: configs/mnist.py)")
    parser.add_argument("--source", help="the data, such as a folder of the four idx files (default: the config's)")
    parser.add_argument("--epochs", type=int, help="passes over the data (default: the config's, for MNIST 15)")
    parser.add_argument("--images", type=int, help="train on so many at most (default: all)")
    parser.add_argument("--files", type=int, help="JPEG files to predict (default: 2000)")
    parser.add_argument("--side", type=int, help="their height and width in pixels (default: 256)")
    parser.add_argument("--rounds", type=int, help="turns with one thread and with all (default: 5)")
    parser.add_argument("--quick", action="store_true", help="does it run: configs/smoke.py, 600 small files, 2 rounds")
    options, rest = parser.parse_known_args(argv)
    command.fill(options, _QUICK if options.quick else _DEFAULTS)
    options.works = options.works.split(",")
    if not set(options.works) <= set(WORKS):
        raise UserError(f"--works: got {','.join(options.works)}, expected train, predict or train,predict")
    command.at_least(options, 1, "epochs", "images", "files", "side", "rounds")
    for word in rest:
        if not (word.startswith("--config.") and "=" in word):
            raise UserError(f"{word!r} is not understood; --help lists what is, and --config.KEY=VALUE goes to train")
    options.flags = ["--config", options.config, *rest]
    options.flags += ["--data", options.source] if options.source else []
    options.flags += [f"--config.train.epochs={options.epochs}", "--config.train.steps=0"] if options.epochs else []
    options.flags += [f"--config.data.limit={options.images}"] if options.images else []
    return options


def run(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Runs the requested measurements, writing the two files after each, and returns the report."""
    load = command.load(log)
    names = ("works", "config", "source", "epochs", "images", "files", "side", "rounds", "quick", "flags")
    try:
        found = timing.in_own_process("benchmarks.speed.end_to_end:machine", {})
    except RuntimeError as error:
        raise UserError(f"JAX does not start: {error}") from None
    settings = {name: getattr(options, name) for name in names}
    report = command.begin("end_to_end", finished=False, machine=found, load_average=load, settings=settings)
    # Without paths of this machine.
    # No path of this machine goes into a report.
    instead = ({options.source: "DIR"} if options.source else {}) | {f"{timing.ROOT}{os.sep}": ""}
    write = functools.partial(command.write, report, options.out, markdown, instead)
    write()  # a folder that cannot be written to is found before anything is measured
    # An empty cache of compiled programs: what this machine has compiled before takes no part.
    with (
        tempfile.TemporaryDirectory(prefix="end-to-end-") as scratch,
        mock.patch.dict(os.environ, {"JAX_COMPILATION_CACHE_DIR": str(Path(scratch, "compiled"))}),
    ):
        workdir = Path(scratch, "run")
        for work in options.works:
            if work == "train":
                report[work] = train(options, workdir, log)
            else:
                report[work] = predict(options, workdir, Path(scratch), log)
            report["load_average"]["after"] = timing.load_average()
            report["finished"] = work == options.works[-1]
            write()
    return report


main = functools.partial(command.main, arguments, run, stopped="the files hold the parts that were measured")


if __name__ == "__main__":
    sys.exit(main())
