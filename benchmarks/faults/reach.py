"""Which lines of the package each test reaches, and how long it takes: a plugin of pytest, and what it recorded.

Python 3.11 has no sys.monitoring, so lines are seen by sys.settrace, in the package's files alone. What a fixture of a
module or session reaches belongs to every test that uses it, not only to the first.
"""

from __future__ import annotations

import collections
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from benchmarks.faults.mutants import Mutant

# Tests of another room come as late as if they took so many times as long.
_ELSEWHERE = 3.0

Lines = dict[str, set[int]]


class Recorder:
    """Collects, for each test and each shared fixture, the lines that it reached and its seconds.

    Attributes:
      tests: by node id, {"seconds", "fixtures", "lines", "passed"}.
      fixtures: by name and place, {"seconds", "lines"}.
    """

    def __init__(self, package: Path) -> None:
        """Makes a recorder of the files below `package`."""
        self.tests: dict[str, dict[str, Any]] = {}
        self.fixtures: dict[str, dict[str, Any]] = {}
        self._prefix = f"{package}/"
        self._lines: Lines = {}
        self._inside: list[float] = [0.0]

    def _called(self, frame: FrameType, event: str, arg: Any) -> Any:
        name = frame.f_code.co_filename
        if not name.startswith(self._prefix):
            return None
        seen = self._lines.setdefault(name.removeprefix(self._prefix), set())
        seen.add(frame.f_lineno)

        def line(frame: FrameType, event: str, arg: Any) -> Any:
            seen.add(frame.f_lineno)
            return line

        return line

    def _begin(self) -> tuple[Lines, float]:
        before, self._lines = self._lines, {}
        self._inside.append(0.0)
        threading.settrace(self._called)
        sys.settrace(self._called)
        return before, time.perf_counter()

    def _end(self, begun: tuple[Lines, float]) -> dict[str, Any]:
        """Returns what was reached since; the time of fixtures inside it is their own."""
        found, (self._lines, start) = self._lines, begun
        whole = time.perf_counter() - start
        own = whole - self._inside.pop()
        self._inside[-1] += whole
        return {"seconds": round(own, 3), "lines": {name: sorted(lines) for name, lines in found.items()}}

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: Any) -> Iterator[None]:
        """Sees a test from its setup to its teardown."""
        begun = self._begin()
        try:
            return (yield)
        finally:
            sys.settrace(None)
            found = self.tests.setdefault(item.nodeid, {"passed": True}) | self._end(begun)
            defined = item._fixtureinfo.name2fixturedefs
            shared = [d for name in item._fixtureinfo.names_closure for d in defined.get(name, ())[-1:]]
            found["fixtures"] = [_key(d) for d in shared if d.scope != "function"]
            self.tests[item.nodeid] = found

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[Any]:
        """Sees a fixture that several tests share being made."""
        if fixturedef.scope == "function":
            return (yield)
        begun = self._begin()
        try:
            return (yield)
        finally:
            found, known = self._end(begun), self.fixtures.setdefault(_key(fixturedef), {"seconds": 0.0, "lines": {}})
            known["seconds"] = max(known["seconds"], found["seconds"])
            for name, lines in found["lines"].items():  # the union over its parameters
                known["lines"][name] = sorted({*known["lines"].get(name, ()), *lines})

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Notes that a test did not pass; such a test kills no mutant."""
        if not report.passed:
            self.tests.setdefault(report.nodeid, {})["passed"] = False


def _key(fixturedef: Any) -> str:
    return f"{fixturedef.baseid}::{fixturedef.argname}"


class Reach:
    """What a recording says: which tests reach a line, and what they cost."""

    def __init__(self, recorded: Mapping[str, Any]) -> None:
        """Makes it of {test file: {"tests", "fixtures"}}, see `reach.Recorder`."""
        self.cost: dict[str, float] = {}
        self.fixtures: dict[str, dict[str, float]] = {}
        self.lines: dict[str, dict[str, set[int]]] = collections.defaultdict(dict)
        for found in recorded.values():
            for test, entry in found["tests"].items():
                if not entry.get("passed") or "lines" not in entry:
                    continue
                shared = {name: found["fixtures"][name] for name in entry["fixtures"] if name in found["fixtures"]}
                self.cost[test] = entry["seconds"]
                self.fixtures[test] = {name: fixture["seconds"] for name, fixture in shared.items()}
                for part in (entry, *shared.values()):
                    for module, lines in part["lines"].items():
                        self.lines[module].setdefault(test, set()).update(lines)

    def ordered(self, tests: Sequence[str], room: str) -> list[str]:
        """Returns tests, quickest first, those of the room earlier."""

        def late(test: str) -> float:
            own = self.cost[test] + sum(self.fixtures[test].values())
            return (own + 0.05) * (1.0 if test.startswith(f"tests/{room}/") else _ELSEWHERE)

        return sorted(tests, key=late)

    def of(self, module: str, mutant: Mutant) -> tuple[list[str], list[str]]:
        """Returns the tests that reach a mutant's statement, and others that may: of its function, or of its module."""
        reaching, room = self.lines.get(module, {}), module.partition("/")[0]
        spans = [mutant.statement] if mutant.function else []
        spans += [mutant.function] if mutant.function else [(0, 10**9)]
        found: list[str] = []
        parts = []
        for first, last in spans:
            here = [test for test, lines in reaching.items() if any(first <= line <= last for line in lines)]
            parts.append(self.ordered([test for test in here if test not in found], room))
            found += here
        return (parts[0], parts[1]) if len(parts) > 1 else (parts[0], [])

    def seconds(self, tests: Sequence[str]) -> float:
        """Returns how long tests take together, shared fixtures once a file."""
        shared = {(test.partition("::")[0], name): s for test in tests for name, s in self.fixtures[test].items()}
        return sum(self.cost[test] for test in tests) + sum(shared.values())

    def within(self, tests: Sequence[str], budget: float) -> list[str]:
        """Returns the first of the tests that take this many seconds together, at least one."""
        taken: list[str] = []
        for test in tests:
            if taken and self.seconds([*taken, test]) > budget:
                break
            taken.append(test)
        return taken
