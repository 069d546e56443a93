"""What the parts of faults.py share: `ganomaly` processes, one training without a fault, what is looked at after one.

All processes compute on the CPU: what fails here are processes, disks and files, not devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import timing
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.runs import checkpoint, sealed_pytree

PROGRAM = "import sys; from ganomaly_jax.cli import main; sys.exit(main.command())"
# Writes down to which step the loop has sent the device before it does so: the most that can have been computed.
_NOTING = """
import dataclasses, os
from ganomaly_jax.training import loop
def noted(training, *rest, run=loop.run):
    file = os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    compiled = training.compiled
    def send(state, first, counts):
        os.pwrite(file, b"%12d" % (first + counts).max(), 0)
        return compiled.advance(state, first, counts)
    training.compiled = dataclasses.replace(compiled, advance=send)
    return run(training, *rest)
loop.run = noted
"""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a part has found so far: `counts` by name, and each kind of defect with how often and the first of it."""

    counts: dict[str, Any] = dataclasses.field(default_factory=dict)
    defects: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)

    def count(self, name: str, times: int = 1) -> None:
        self.counts[name] = self.counts.get(name, 0) + times

    def highest(self, name: str, value: float) -> None:
        self.counts[name] = max(self.counts.get(name, 0), value)

    def defect(self, kind: str, example: str) -> None:
        self.defects.setdefault(kind, {"times": 0, "first": example})["times"] += 1


@dataclasses.dataclass(frozen=True)
class Bench:
    """What all parts share: a scratch folder, the training (`flags`), and the same training without a fault."""

    scratch: Path
    steps: int
    save_every: int
    limit_s: float
    """A process that takes longer hangs."""
    random: np.random.Generator
    flags: tuple[str, ...]
    start_s: float = 0.0
    """From the start of a process to its first step; then the loop; then calibration and evaluation."""
    loop_s: float = 0.0
    end_s: float = 0.0

    @property
    def whole(self) -> Path:
        """Returns the folder of the run without faults."""
        return self.scratch / "whole"

    @property
    def sent(self) -> Path:
        """Returns the file in which a training that is `noting` writes the step that it has sent to the device."""
        return self.scratch / "sent"

    def noting(self) -> str:
        return _NOTING.replace("FILE", repr(str(self.sent))) + PROGRAM

    def train(self, workdir: Path) -> list[str]:
        return ["train", *self.flags, "--workdir", str(workdir)]


@dataclasses.dataclass(frozen=True)
class Child:
    """A `ganomaly` process and the files that take what it prints."""

    process: subprocess.Popen[bytes]
    out: Path
    errors: Path

    def wait(self, seconds: float) -> int | None:
        """Waits for its exit code; None if it still runs after this long."""
        try:
            return self.process.wait(max(0.0, seconds))
        except subprocess.TimeoutExpired:
            return None

    def until(self, condition: Callable[[], Any], seconds: float) -> bool:
        """Waits and returns whether the condition held before the process ended or the time was over."""
        end = time.monotonic() + seconds
        while not condition():
            if self.process.poll() is not None or time.monotonic() > end:
                return bool(condition())
            time.sleep(0.005)
        return True

    def printed(self) -> str:
        return self.out.read_text(errors="replace")

    def complaint(self) -> str:
        return self.errors.read_text(errors="replace").strip()

    def one_sentence(self) -> bool:
        """Returns whether standard error is exactly one line of ours."""
        said = self.complaint()
        return said.startswith("ganomaly: ") and "\n" not in said


@contextlib.contextmanager
def ganomaly(bench: Bench, arguments: Sequence[str], program: str = "") -> Iterator[Child]:
    """Runs `ganomaly VERB ...` during the block; it is killed if it is still running at the end."""
    environment = {"JAX_COMPILATION_CACHE_DIR": str(bench.scratch / "compiled"), **timing.environment()}
    environment |= {"JAX_PLATFORMS": "cpu", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    out, errors = bench.scratch / "out", bench.scratch / "errors"
    with out.open("wb") as a, errors.open("wb") as b:
        call = [sys.executable, "-c", program or PROGRAM, *arguments, "--no-huge-pages"]
        # In a session of its own: Ctrl-C stops the campaign, which stops the process.
        process = subprocess.Popen(call, stdout=a, stderr=b, env=environment, start_new_session=True)
    try:
        yield Child(process, out, errors)
    finally:
        process.kill()
        process.wait()


def compile_all(bench: Bench) -> None:
    """Fills JAX's cache with a short training, which is discarded."""
    with ganomaly(bench, [*bench.train(bench.scratch / "cold"), f"--config.train.steps={bench.save_every}"]) as child:
        _must_work(child, bench)
    shutil.rmtree(bench.scratch / "cold")


def prepare(bench: Bench) -> Bench:
    """Trains without a fault and returns the bench, with the time that it took.

    Raises:
      UserError: it does not even work without a fault.
    """
    begin = time.monotonic()
    with ganomaly(bench, bench.train(bench.whole)) as child:
        child.until(lambda: "compiled in" in child.printed(), bench.limit_s)
        started = time.monotonic()
        child.until(lambda: last(bench.whole) == bench.steps, bench.limit_s)
        looped = time.monotonic()
        _must_work(child, bench)
    ended = time.monotonic()
    return dataclasses.replace(bench, start_s=started - begin, loop_s=looped - started, end_s=ended - looped)


def _must_work(child: Child, bench: Bench) -> None:
    code = child.wait(bench.limit_s)
    if code != 0:
        said = child.complaint().splitlines()[-1:] or [f"exit code {code}"]
        raise UserError(f"the training does not end well without any fault: {said[0]}; longest time {bench.limit_s} s")


# What is looked at after a fault.


def checkpoints(workdir: Path) -> list[int]:
    return checkpoint.steps(workdir / "checkpoints")


def last(workdir: Path) -> int:
    return max(checkpoints(workdir), default=0)


def losses(workdir: Path) -> list[dict[str, Any]]:
    """Returns the complete lines of history.jsonl, without their speed."""
    lines = []
    with contextlib.suppress(FileNotFoundError):
        for line in (workdir / "history.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):
                lines.append({name: value for name, value in json.loads(line).items() if name != "images_per_second"})
    return lines


def unreadable(workdir: Path, found: Found) -> None:
    """Counts the checkpoints (and the detector); each must load."""
    for folder in [workdir / "checkpoints" / f"{step:08d}" for step in checkpoints(workdir)] + [workdir / "detector"]:
        if folder.exists():
            found.count("folders_read_back")
            try:
                sealed_pytree.read(folder)
            except Exception as error:
                found.defect("unreadable", f"{folder.relative_to(workdir)}: {type(error).__name__}: {error}"[:300])


def compare(bench: Bench, workdir: Path, found: Found) -> None:
    """Compares a finished training with the one without a fault, which it must equal bit for bit."""
    found.count("trainings_compared")
    if last(workdir) != bench.steps:
        found.defect("not at its last step", f"step {last(workdir)} of {bench.steps}")
        return
    for name in (f"checkpoints/{bench.steps:08d}", "detector"):
        one, other = (_flat(sealed_pytree.read(folder / name)[0]) for folder in (bench.whole, workdir))
        wrong = [key for key in one | other if not _same(one.get(key), other.get(key))]
        if wrong:
            found.defect("other weights", f"{name}: {len(wrong)} of {len(one)} arrays, the first {wrong[0]}")
    mine, wanted = losses(workdir), losses(bench.whole)
    if mine != wanted:
        same = next((i for i, (one, other) in enumerate(zip(mine, wanted, strict=False)) if one != other), "the end")
        found.defect("other history", f"{len(mine)} lines, expected {len(wanted)}, different from line {same} on")


def _flat(tree: Any, name: str = "") -> dict[str, np.ndarray]:
    if not isinstance(tree, dict):
        return {name: np.asarray(tree)}
    return {key: leaf for branch, part in tree.items() for key, leaf in _flat(part, f"{name}/{branch}").items()}


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    return a is not None and b is not None and a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def finish(bench: Bench, workdir: Path, found: Found) -> None:
    """Continues to the end without a further fault, and compares."""
    with ganomaly(bench, bench.train(workdir)) as child:
        if ended_well(bench, child, child.wait(bench.limit_s), found):
            compare(bench, workdir, found)


def ended_well(bench: Bench, child: Child, code: int | None, found: Found) -> bool:
    if code is None:
        found.defect("hangs", f"still there after {bench.limit_s} s: {child.printed()[-200:]!r}")
    elif code:
        found.defect("does not go on", f"exit code {code}: {child.complaint()[-300:]}")
    return code == 0
