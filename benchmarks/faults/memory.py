"""Mutants in memory: every test is collected once, then a child is forked for each mutant and its functions replaced.

A child neither imports nor collects anything. It holds for changes inside functions; what acts on import, such as a
constant of a module, needs the change on disk and a new import.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any, NamedTuple

from benchmarks.faults import forks, mutants


class Job(NamedTuple):
    """Tests to be run on a mutant.

    Attributes:
      name: names the job.
      limit: seconds after which it hangs.
      module: the module that is changed, such as model/losses.py.
      mutant: the change.
      tests: node ids, in their order.
    """

    name: Any
    limit: float
    module: str
    mutant: mutants.Mutant
    tests: Sequence[str]


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for part in code.co_consts:
        if isinstance(part, CodeType):
            yield from _codes(part)


def _key(code: CodeType) -> tuple[str, int, bytes]:
    return code.co_qualname, code.co_firstlineno, code.co_linetable  # with columns: lambdas of one line differ


def replaced(path: Path, source: str, mutant: mutants.Mutant) -> bool:
    """Replaces the code of all functions of a module that are in memory by that of the mutant.

    Returns:
      False if that is not possible, because nothing but an import would show the change.
    """
    by_name: dict[str, tuple[list[CodeType], list[CodeType]]] = {}
    for side, text in enumerate((source, mutants.applied(source, mutant))):
        for code in _codes(compile(text, str(path), "exec", dont_inherit=True)):
            by_name.setdefault(code.co_qualname, ([], []))[side].append(code)
    pairs = [zip(old, new, strict=True) for old, new in by_name.values() if len(old) == len(new)]
    instead = {_key(old): new for pair in pairs for old, new in pair}
    found = [one for one in gc.get_objects() if type(one) is FunctionType and one.__code__.co_filename == str(path)]
    try:
        for function in found:
            function.__code__ = instead.get(_key(function.__code__), function.__code__)
    except ValueError:  # other variables of the function around it
        return False
    return bool(found)


class _Loop:
    """A plugin of pytest that forks in place of the loop over the tests."""

    def __init__(self, drive: Callable[[Any], None]) -> None:
        self.drive = drive

    def pytest_runtestloop(self, session: Any) -> bool:
        self.drive(session)
        return True


def run(
    jobs: Sequence[Job], trees: list[Path], sources: Mapping[str, str], make_plugin: Callable[[], Any]
) -> Iterator[tuple[Any, Any, float]]:
    """Runs the tests of each job in a child that has the mutant in memory.

    Args:
      jobs: what is to be done.
      trees: copies of the repository; the tests of the first are run, in as many children at a time as there are.
      sources: the sources by module.
      make_plugin: makes what sees the reports, with `failure` and `passed`.

    Yields:
      (name, {"code", "failure", "passed"}, seconds); None for a child that died, "timeout" for one that was killed, and
      "import" for a mutant that cannot be made in memory.
    """
    if not jobs:
        return
    reading, writing = os.pipe()
    server = os.fork()
    if not server:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            _serve(jobs, trees, sources, make_plugin, lambda line: print(json.dumps(line), file=pipe, flush=True))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        for line in pipe:
            place, found, seconds = json.loads(line)
            yield jobs[place].name, found, seconds
    os.waitpid(server, 0)


def _serve(
    jobs: Sequence[Job],
    trees: list[Path],
    sources: Mapping[str, str],
    make_plugin: Callable[[], Any],
    send: Callable[[Any], None],
) -> None:
    plugin = make_plugin()

    def drive(session: Any) -> None:
        from jax._src import xla_bridge

        assert not xla_bridge.backends_are_initialized(), "a test module uses a device when it is imported"
        items = {item.nodeid: item for item in session.items}

        def work_of(module: str, mutant: mutants.Mutant, tests: Sequence[str]) -> forks.Work:
            def work(tree: Path) -> Any:
                if not replaced(trees[0] / "ganomaly_jax" / module, sources[module], mutant):
                    return "import"
                session.config._tmp_path_factory._given_basetemp = tree.parent / "temporary"
                mine = [items[test] for test in tests if test in items]
                for item, after in zip(mine, [*mine[1:], None], strict=True):
                    item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                    if plugin.failure:
                        break
                return {"code": 0 if mine else 5, "failure": plugin.failure, "passed": plugin.passed}

            return work

        work = ((i, limit, work_of(*rest)) for i, (_, limit, *rest) in enumerate(jobs))
        for i, found, seconds in forks.each(work, trees):
            send([i, found, seconds])

    output = os.open(trees[0].parent / "server.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    forks.enter(trees[0])
    files = sorted({test.partition("::")[0] for job in jobs for test in job.tests})
    try:
        forks.pytest_run(trees[0], ["-s", *files], [plugin, _Loop(drive)])
    finally:
        sys.stdout.flush()
