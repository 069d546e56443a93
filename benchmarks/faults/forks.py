"""Runs of pytest in children of one warm process, each in its own copy of the repository.

JAX and the other libraries are imported once; a child imports only the package and its tests, which takes a fraction of
a second. No device is in use before the fork, so each child has its own.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

_LIBRARIES = ("jax", "jax.numpy", "flax.linen", "optax", "orbax.checkpoint", "chex", "scipy.stats", "scipy.optimize")
_LIBRARIES += ("jinja2", "pytest", "PIL.Image")
_OURS = ("ganomaly_jax", "benchmarks", "tests")
_POLL_S = 0.02

Work = Callable[[Path], Any]


def warm(scratch: Path) -> None:
    """Imports what every child needs, lowers the priority, and sets the shared cache of compiled programs."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(scratch / "compiled")}
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": "agg", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    for name in _LIBRARIES:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    os.nice(10)


def copies(root: Path, scratch: Path, count: int) -> list[Path]:
    """Copies the files that git knows, once for each child that runs at a time; compiled to bytecode."""
    names = subprocess.run(["git", "ls-files"], cwd=root, capture_output=True, text=True, check=True).stdout.split("\n")
    made = [scratch / f"copy{i}" / "repository" for i in range(count)]
    for tree in made:
        shutil.rmtree(tree, ignore_errors=True)
    for name in filter(None, names):
        if (root / name).is_file():
            (made[0] / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, made[0] / name)
    subprocess.run([sys.executable, "-m", "compileall", "-q", "ganomaly_jax"], cwd=made[0], check=True)
    for tree in made[1:]:
        shutil.copytree(made[0], tree)
    return made


def enter(tree: Path) -> None:
    """Makes a copy the one whose package and tests are imported."""
    os.chdir(tree)
    for name in [name for name in sys.modules if name.partition(".")[0] in _OURS]:
        del sys.modules[name]
    sys.path[:] = [str(tree), *(path for path in sys.path if not (Path(path) / "ganomaly_jax").is_dir())]
    os.environ["PYTHONPATH"] = str(tree)
    sys.dont_write_bytecode = False  # of rewritten tests; the package is compiled already


def _child(work: Work, tree: Path, answer: Path) -> None:
    """Does the work in a forked process and ends it."""
    os.setsid()
    output = os.open(answer.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    try:
        answer.write_text(json.dumps(work(tree)))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def each(
    jobs: Iterable[tuple[Any, float, Work]], trees: list[Path], idle: Callable[[], None] = lambda: None
) -> Iterator[tuple[Any, Any, float]]:
    """Does the work of each job in a child, as many at a time as there are copies.

    Args:
      jobs: (name, seconds after which the child is killed, work); `work(tree)` returns what JSON holds.
      trees: copies of the repository.
      idle: called while waiting.

    Yields:
      (name, what the work returned, seconds), as they end; None for a child that died, "timeout" for one killed.
    """
    left, free = iter(jobs), list(trees)
    running: dict[int, tuple[Any, float, float, Path]] = {}
    more = True
    while more or running:
        while more and free:
            job = next(left, None)
            if job is None:
                more = False
                break
            name, limit, work = job
            tree = free.pop()
            answer = tree.parent / "answer.json"
            answer.unlink(missing_ok=True)
            pid = os.fork()
            if not pid:
                _child(work, tree, answer)
            running[pid] = (name, time.monotonic(), limit, tree)
        for pid, (name, begin, limit, tree) in list(running.items()):
            seconds = time.monotonic() - begin
            ended, _ = os.waitpid(pid, os.WNOHANG)
            if not ended and seconds < limit:
                continue
            with contextlib.suppress(ProcessLookupError):  # and what it started
                os.killpg(pid, signal.SIGKILL)
            if not ended:
                os.waitpid(pid, 0)
            answer = tree.parent / "answer.json"
            found = json.loads(answer.read_text()) if answer.exists() else None if ended else "timeout"
            del running[pid]
            free.append(tree)
            yield name, found, seconds
        idle()
        time.sleep(_POLL_S)


def pytest_run(tree: Path, arguments: list[str], plugins: list[Any]) -> int:
    """Runs pytest in this process on a copy, without its cache, without xdist's processes, and returns its code."""
    import pytest

    options = ["-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-q", "-x", "--tb=short"]
    return int(pytest.main([*options, f"--basetemp={tree.parent / 'temporary'}", *arguments], plugins=plugins))
