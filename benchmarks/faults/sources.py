"""The faults of faults.py to where images come from: slow files, files that go or fail while they are read."""

from __future__ import annotations

import csv
import dataclasses
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.common import timing
from benchmarks.faults.runs import Bench, Found, ganomaly
from ganomaly_jax.core.errors import UserError

_IMAGES = 40
# What a child does to itself before the verb: disks do not fail on request.
_PROGRAM = """
import errno, io, os, sys, time
from ganomaly_jax.cli import main
from ganomaly_jax.data import folders
from ganomaly_jax.data.images import decode, files
bad = sys.argv.pop(1).split(os.pathsep)
scan, opened = files.scan_folder, decode._opened
def after_listing(spoil):
    def scanned(folder):
        found = scan(folder)
        for path in bad:
            spoil(path)
        return found
    files.scan_folder = folders.scan_folder = scanned
def reading(kind, which):
    def opening(path):
        file = opened(path)
        if str(path) not in which:
            return file
        file.close()
        return io.BufferedReader(kind(path), 128)
    decode._opened = opening
class Slow(io.FileIO):
    def readinto(self, buffer):
        time.sleep(0.1)
        return super().readinto(buffer)
class Failing(io.FileIO):
    def readinto(self, buffer):
        if self.tell() >= 128:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().readinto(buffer)
def remade(make):
    def spoil(path):
        os.unlink(path)
        make(path)
    return spoil
SPOIL
sys.exit(main.command())
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """What happens to how many of the 40 files, what must be said of each, and how the verb must end."""

    name: str
    verb: str
    code: int
    spoil: str = ""
    bad: int = 5
    reason: str = ""
    """Empty: the files can be read."""
    pipe: str = ""
    """A named pipe of this name that nobody writes to, beside the images."""


_FAULTS = (
    ("files vanish after they were listed", "after_listing(os.unlink)", "no such file"),
    ("files fail while they are read", "reading(Failing, bad)", "input/output error"),
    ("files become named pipes", "after_listing(remade(os.mkfifo))", "not a regular file"),
    ("files become folders", "after_listing(remade(os.mkdir))", "a directory"),
    ("files are cut short", "after_listing(lambda path: os.truncate(path, 90))", "damaged image"),
    ("files are emptied", "after_listing(lambda path: os.truncate(path, 0))", "empty file"),
)
CASES = (
    *(Case(name, "predict", 3, spoil, reason=reason) for name, spoil, reason in _FAULTS),
    *(Case(name, "train", 0, spoil, reason=reason) for name, spoil, reason in _FAULTS),
    Case("every file is slow", "predict", 0, "reading(Slow, bad)", bad=_IMAGES),
    Case("every file is slow", "train", 0, "reading(Slow, bad)", bad=_IMAGES),
    Case("all files vanish after they were listed", "predict", 3, _FAULTS[0][1], bad=_IMAGES, reason="no such file"),
    Case("all files vanish after they were listed", "train", 2, _FAULTS[0][1], bad=_IMAGES, reason="no such file"),
    Case("a named pipe among the images", "predict", 3, bad=0, reason="not a regular file", pipe="pipe.png"),
    Case("a named pipe among the images", "train", 0, bad=0, reason="not a regular file", pipe="pipe.png"),
    Case("a named pipe in place of a .npz file", "train", 2, bad=0, pipe="data.npz"),
    Case("a named pipe in place of an idx file", "train", 2, bad=0, pipe="train-images-idx3-ubyte"),
)


def sources(bench: Bench, times: int, found: Found, tell: Callable[[], None]) -> None:
    """Runs this many cases in turn: each bad file is named, the rest is used, nothing hangs."""
    folder = bench.scratch / "images"
    _write_images(folder)
    with ganomaly(bench, _call(bench, "predict", folder)) as child:
        code = child.wait(bench.limit_s)
        if code != 0:
            raise UserError(f"predict does not work without any fault: exit code {code}, {child.complaint()[-300:]}")
    wanted = {name: float(row["score"]) for name, row in _rows(bench).items()}
    for number in range(times):
        again = bench.scratch / "spoiled"
        shutil.copytree(folder, again)
        _one(bench, CASES[number % len(CASES)], again, wanted, found)
        for made in (again, bench.scratch / "trained"):
            shutil.rmtree(made, ignore_errors=True)
        tell()


def _write_images(folder: Path) -> None:
    from PIL import Image

    folder.mkdir()
    for number, pixels in enumerate(timing.pictures(_IMAGES, (16, 16, 1))):
        Image.fromarray(pixels[..., 0]).save(folder / f"{number:02d}.png")


def _call(bench: Bench, verb: str, source: Path) -> list[str]:
    if verb == "predict":
        out = ["--out", str(bench.scratch / "predictions.csv"), "--overwrite"]
        return ["predict", str(source), "--workdir", str(bench.whole), *out]
    short = [f"--config.train.steps={bench.save_every}", "--config.train.batch_size=8"]
    return ["train", *bench.flags, *short, "--data", str(source), "--workdir", str(bench.scratch / "trained")]


def _rows(bench: Bench) -> dict[str, dict[str, str]]:
    with (bench.scratch / "predictions.csv").open(newline="") as file:
        return {Path(row["path"]).name: row for row in csv.DictReader(file)}


def _one(bench: Bench, case: Case, folder: Path, wanted: Mapping[str, float], found: Found) -> None:
    bad = [sorted(wanted)[i] for i in bench.random.choice(len(wanted), case.bad, replace=False)]
    if case.pipe:
        os.mkfifo(folder / case.pipe)
        bad = [case.pipe]
    source = folder / case.pipe if case.pipe.endswith(".npz") else folder
    spoiled = os.pathsep.join(str(folder / name) for name in bad)
    what = f"{case.verb}, {case.name}"
    found.count("cases")
    call = [spoiled, *_call(bench, case.verb, source)]
    with ganomaly(bench, call, _PROGRAM.replace("SPOIL", case.spoil)) as child:
        begin = time.monotonic()
        code = child.wait(bench.limit_s)
        found.highest("longest_case_s", round(time.monotonic() - begin, 1))
        said, printed = child.complaint(), child.printed()
        if code is None:
            found.defect("hangs", f"{what}: still there after {bench.limit_s:g} s")
        elif "Traceback" in said or (code == 2 and not child.one_sentence()):
            found.defect("a traceback, or more than a sentence", f"{what}: {said[-300:]}")
        elif code != case.code:
            found.defect("another exit code", f"{what}: {code}, expected {case.code}: {said[-300:]}")
        elif code != 2 and case.verb == "train" and case.reason:
            first = rf"{len(bad)} files? could not be read, the first: .*{re.escape(min(bad))}: .*{case.reason}"
            if not re.search(first, printed):
                found.defect("files are not named", f"{what}: {printed[:500]}")
        elif case.verb == "predict":
            _check_rows(_rows(bench), bad if case.reason else [], case.reason, wanted, what, found)


def _check_rows(
    rows: Mapping[str, Mapping[str, str]],
    bad: Sequence[str],
    reason: str,
    wanted: Mapping[str, float],
    what: str,
    found: Found,
) -> None:
    """Checks that every bad file has its reason, and every other the score that it has without a fault."""
    for name in wanted.keys() | set(bad):
        row = rows.get(name, {})
        if name in bad:
            right = row.get("verdict") == "invalid" and reason in row.get("reason", "")
        else:
            right = bool(row.get("score")) and math.isclose(float(row["score"]), wanted[name], rel_tol=1e-4)
        if not right:
            found.defect(
                "a row is not as it should be", f"{what}: {name}: {dict(row)}, without fault {wanted.get(name)}"
            )
