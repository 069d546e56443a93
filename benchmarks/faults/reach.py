"""Which lines of the package each test reaches, and how long it takes: a plugin of pytest.

Python 3.11 has no sys.monitoring, so lines are seen by sys.settrace, in the package's files alone. What a fixture of a
module or session reaches belongs to every test that uses it, not only to the first.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

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
