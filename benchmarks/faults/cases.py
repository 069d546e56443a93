"""The faults of faults.py to processes, disks and artefacts, one function a part."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.faults.runs import (
    Bench,
    Child,
    Found,
    checkpoints,
    compare,
    ended_well,
    finish,
    ganomaly,
    last,
    unreadable,
)
from ganomaly_jax.core.errors import DamagedError, UserError
from ganomaly_jax.runs import sealed_pytree

SIGTERM_S = 10.0  # a process has to be gone by then
_LONGER = 1.3  # than a process lives by itself: some of those that are at the last step come to their end
_ROOM = 2**20  # bytes; a save asks for more, so a disk with less left is full for it


# Processes that are stopped.


def kills(bench: Bench, times: int, found: Found, tell: Callable[[], None]) -> None:
    """Sends SIGKILL at any moment of a process's life: what was saved is intact, and little is lost."""

    def drawn(left: float) -> float:
        loop_s = left * bench.loop_s
        if bench.random.integers(2):  # half of them in the loop, which is saving most of the time
            return float(bench.start_s + bench.random.uniform(0, loop_s))
        return float(bench.random.uniform(0, _LONGER * (bench.start_s + loop_s + bench.end_s)))

    with contextlib.closing(_stopped(bench, times, found, drawn)) as processes:
        for child, workdir, moment in processes:
            before = _hidden(workdir)
            if child.wait(moment) is not None:
                continue
            child.process.kill()
            child.process.wait()
            found.count("kills")
            hit = {path.parent for path in _hidden(workdir) - before}
            found.count("in_a_save_of_a_checkpoint", workdir / "checkpoints" in hit)
            found.count("in_a_save_of_the_detector", workdir in hit)
            found.count("before_the_first_step", "compiled in" not in child.printed())
            found.count("after_the_last_step", last(workdir) == bench.steps)
            unreadable(workdir, found)
            _count_lost(bench, workdir, found)
            tell()


def _count_lost(bench: Bench, workdir: Path, found: Found) -> None:
    """Counts steps sent to the device after the last checkpoint: the most that can be lost."""
    sent = bench.sent.read_bytes() if bench.sent.exists() else b""
    if not sent:  # it did not come to its first step
        return
    done = int(sent)
    lost = max(0, done - last(workdir))
    found.count("in_the_loop", last(workdir) < bench.steps)
    found.count("nothing_lost", lost == 0)
    found.highest("most_steps_lost", lost)
    if lost > bench.save_every:
        found.defect("more than a save interval lost", f"{lost} steps at step {done}, saving every {bench.save_every}")


def signals(bench: Bench, times: int, found: Found, tell: Callable[[], None]) -> None:
    """Sends SIGTERM at any moment of the loop: the process saves, says so and exits within 10 s."""

    def drawn(left: float) -> float:
        return float(bench.random.uniform(0, _LONGER * left * bench.loop_s))

    with contextlib.closing(_stopped(bench, times, found, drawn)) as processes:
        for child, workdir, moment in processes:
            # Its history is written anew as soon as the loop answers signals; before that there is nothing to save.
            history = workdir / "history.jsonl"
            before = _stamp(history)
            child.until(lambda path=history, before=before: _stamp(path) != before, bench.limit_s)
            if child.wait(moment) is not None:
                continue
            begin = time.monotonic()
            child.process.terminate()
            code = child.wait(bench.limit_s)
            took = time.monotonic() - begin
            child.process.kill()
            found.count("signals")
            found.highest("longest_until_gone_s", round(took, 2))
            if took > SIGTERM_S:
                found.defect("not gone within 10 s", f"{took:.1f} s, then exit code {code}")
            elif last(workdir) == bench.steps:
                found.count("after_the_last_step")  # nothing is left to save, the signal ends it as it ends any process
            elif code == 128 + signal.SIGTERM:
                found.count("saved_first")
                said = re.search(r"at step ([\d,]+)", child.complaint())
                if not child.one_sentence() or not said or int(said[1].replace(",", "")) != last(workdir):
                    found.defect("says something else than it saved", f"{child.complaint()!r}, step {last(workdir)}")
            else:
                found.defect(
                    "ends without saving", f"exit code {code}, step {last(workdir)}: {child.complaint()[-300:]}"
                )
            unreadable(workdir, found)
            tell()


def _stopped(
    bench: Bench, times: int, found: Found, drawn: Callable[[float], float]
) -> Iterator[tuple[Child, Path, float]]:
    """Yields training processes with the moment (seconds) to stop each; a training that ends is compared.

    `drawn` draws one for the share of the steps that are left; one that comes after its end lets the training end.
    Ends when `times` were stopped and the last training has come to its end.
    """
    stopped = trainings = 0
    while stopped < times:
        workdir = bench.scratch / f"stopped{trainings}"
        trainings += 1
        ended = False
        while not ended and stopped < times:
            left = 1 - last(workdir) / bench.steps
            bench.sent.unlink(missing_ok=True)
            with ganomaly(bench, bench.train(workdir), bench.noting()) as child:
                yield child, workdir, drawn(left)
                code = child.process.wait()
                ended = code not in (-signal.SIGKILL, -signal.SIGTERM, 128 + signal.SIGTERM)
                well = not ended or ended_well(bench, child, code, found)
            stopped += not ended or not well
        if not ended:
            finish(bench, workdir, found)
        elif well:
            compare(bench, workdir, found)
        found.count("temporary_files_left", sum(path.name.startswith(".") for path in workdir.rglob("*")))
        shutil.rmtree(workdir)


def _hidden(workdir: Path) -> set[Path]:
    return {path for folder in (workdir, workdir / "checkpoints") for path in folder.glob(".ganomaly-*")}


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        info = path.stat()
    except FileNotFoundError:
        return None
    return info.st_ino, info.st_mtime_ns, info.st_size


# Disks.


def disks(bench: Bench, times: int, found: Found, tell: Callable[[], None]) -> None:
    """Makes the disk full, or in turn read-only, from some moment of the training on."""
    mounts = can_mount(bench.scratch)
    chmod = "chmod" if os.geteuid() else "a file in the place of the folder"
    full = (_full if mounts else _limited, "tmpfs" if mounts else "RLIMIT_FSIZE")
    refusing = (_read_only if mounts else _refusing, "read-only mount" if mounts else chmod)
    found.counts.update(full_disk_is=full[1], read_only_is=refusing[1])
    for number in range(times):
        way, name = (full, refusing)[number % 2]
        _disk(bench, way, bench.scratch / f"disk{number}", name, found)
        tell()


def _disk(bench: Bench, way: Callable[..., Any], folder: Path, name: str, found: Found) -> None:
    folder.mkdir()
    workdir = folder / "run"
    late = float(bench.random.uniform(0, 0.5)) * bench.loop_s
    with contextlib.ExitStack() as stack:
        spoil = stack.enter_context(way(bench, folder))
        with ganomaly(bench, bench.train(workdir)) as child:
            child.until(lambda: last(workdir), bench.limit_s)
            child.wait(late)
            before, restore = checkpoints(workdir), spoil(child)
            code = child.wait(bench.limit_s)
            if code == 0:
                found.count("too_late")
            elif code is None:
                found.defect("hangs", f"{name}: still there after {bench.limit_s} s")
            else:
                found.count("refusals")
                if code != 2 or not child.one_sentence():
                    found.defect("not one sentence and exit code 2", f"{name}: {code}, {child.complaint()[-500:]}")
                sentence = re.sub(r"0\d{7}", "STEP", child.complaint().replace(str(folder), "..."))
                found.counts.setdefault("sentences", {}).setdefault(sentence[:300], 0)
                found.counts["sentences"][sentence[:300]] += 1
            restore()
        if before and last(workdir) < before[-1]:
            found.defect("checkpoints are gone", f"{name}: there were {before}, now {checkpoints(workdir)}")
        unreadable(workdir, found)
        finish(bench, workdir, found)
    shutil.rmtree(folder)


def can_mount(scratch: Path) -> bool:
    """Returns whether this process may mount file systems."""
    try:
        with _mounted(scratch / "try", "-t", "tmpfs", "-o", "size=1m", "tmpfs"):
            return True
    except UserError:
        return False


@contextlib.contextmanager
def _mounted(folder: Path, *options: str) -> Iterator[None]:
    folder.mkdir(exist_ok=True)
    _mount(*options, str(folder))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def _mount(*options: str) -> None:
    if shutil.which("mount") is None or subprocess.run(["mount", *options], capture_output=True).returncode:
        raise UserError(f"mount {' '.join(options)} is refused")


@contextlib.contextmanager
def _full(bench: Bench, folder: Path) -> Iterator[Callable[[Child], Callable[[], None]]]:
    filler = folder / "filler"

    def spoil(child: Child) -> Callable[[], None]:
        left = int(bench.random.integers(0, _ROOM))
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while (room := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize) > left:
                file.write(bytes(min(room - left, 2**20)))
        return filler.unlink

    with _mounted(folder, "-t", "tmpfs", "-o", "size=32m", "tmpfs"):
        yield spoil


@contextlib.contextmanager
def _limited(bench: Bench, folder: Path) -> Iterator[Callable[[Child], Callable[[], None]]]:
    def spoil(child: Child) -> Callable[[], None]:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(child.process.pid, resource.RLIMIT_FSIZE, (int(bench.random.integers(2**16, _ROOM)),) * 2)
        return lambda: None

    yield spoil


@contextlib.contextmanager
def _read_only(bench: Bench, folder: Path) -> Iterator[Callable[[Child], Callable[[], None]]]:
    where = str(folder / "run" / "checkpoints")

    def spoil(child: Child) -> Callable[[], None]:
        _mount("--bind", where, where)
        end = time.monotonic() + 10
        while True:
            try:
                _mount("-o", "remount,bind,ro", where)
                break
            except UserError:  # a file there is open for writing
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)
        return lambda: subprocess.run(["umount", "--lazy", where], check=True) and None

    yield spoil


@contextlib.contextmanager
def _refusing(bench: Bench, folder: Path) -> Iterator[Callable[[Child], Callable[[], None]]]:
    where, away = folder / "run" / "checkpoints", folder / "away"

    def spoil(child: Child) -> Callable[[], None]:
        if os.geteuid():
            where.chmod(0o555)
            return lambda: where.chmod(0o755)
        where.rename(away)  # root may write everywhere, but not below a file
        where.write_text("in the way")

        def restore() -> None:
            where.unlink()
            away.rename(where)

        return restore

    yield spoil


# Bits.


def flips(bench: Bench, times: int, found: Found, tell: Callable[[], None]) -> None:
    """Flips one bit or truncates a file in a checkpoint and in a detector: nothing may load."""
    from ganomaly_jax.scoring import scorer

    loads: dict[str, Callable[[Path], Any]] = {"checkpoint": sealed_pytree.read, "detector": scorer.load}
    folders = {"checkpoint": bench.whole / "checkpoints" / f"{bench.steps:08d}", "detector": bench.whole / "detector"}
    for kind, load in loads.items():
        copy = bench.scratch / f"flipped-{kind}"
        shutil.copytree(folders[kind], copy)
        files = sorted(path for path in copy.rglob("*") if path.is_file() and path.stat().st_size)
        for number in range(times):
            _flip(files[bench.random.integers(len(files))], copy, kind, load, bench.random, found)
            if number % 100 == 0:
                tell()
        load(copy)  # as it was again: what was refused was refused for the flip
    tell()


def _flip(
    path: Path, folder: Path, kind: str, load: Callable[[Path], Any], random: np.random.Generator, found: Found
) -> None:
    was = path.read_bytes()
    at, bit = int(random.integers(len(was))), int(random.integers(8))
    cut = bool(random.integers(2))
    path.write_bytes(was[:at] if cut else was[:at] + bytes([was[at] ^ 1 << bit]) + was[at + 1 :])
    what = f"{kind} {path.relative_to(folder)}, {f'cut to {at}' if cut else f'bit {bit} of byte {at}'} of {len(was)}"
    found.count(f"{kind}_{'cuts' if cut else 'flips'}")
    try:
        load(folder)
        found.defect("loads in silence", what)
    except DamagedError:
        found.count("refused_as_damaged")
    except Exception as error:
        found.defect("refused as something else", f"{what}: {type(error).__name__}: {error}"[:300])
    finally:
        path.write_bytes(was)
