"""A mutation run: small faults in the sources, one at a time, and whether a test notices.

    python benchmarks/faults/mutation.py --out benchmarks/faults/results/mutation

writes NAME.json and NAME.md after every mutant anew; README.md beside this file says what is changed and how. The exit
code is 1 where fewer than `--least` of the mutants are noticed.
"""

from __future__ import annotations

import argparse
import ast
import collections
import dataclasses
import hashlib
import importlib
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from benchmarks.common import command, timing
from benchmarks.common.command import Log
from benchmarks.faults import forks, memory, mutants
from benchmarks.faults.reach import Reach, Recorder
from ganomaly_jax.core.errors import UserError

ROOMS = ("model", "scoring", "evaluation", "streaming")
REASONS = Path(__file__).with_name("survivors.json")
# Of no use here: they start other processes, which the recorder does not see, or check documents.
_WITHOUT = ("benchmark", "test_pods.py", "test_ray_engine.py", "test_page_browser.py", "test_http_fuzz.py")
_WITHOUT += ("test_http_process.py", "test_real_sets.py", "test_checkpoint_damage.py", "test_per_process.py")
_SLOWER = 5.0  # a run of tests hangs after so many times the recorded seconds, and _PATIENCE_S
_PATIENCE_S = 90.0


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A mutant of the run: `module`, such as model/losses.py, and the change."""

    module: str
    mutant: mutants.Mutant

    @property
    def key(self) -> str:
        """Returns what names it also after lines have moved."""
        one = self.mutant
        return _key((self.module, one.operator, _short(one.before), _short(one.after), one.source, one.column))


_KEY = ("module", "operator", "before", "after", "source", "column")


def _key(values: Sequence[Any]) -> str:
    return " | ".join(map(str, values))


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[: most - 3]}..."


# Mutants


def draw(sources: Mapping[str, str], count: int, seed: int) -> list[Drawn]:
    """Draws mutants of different statements, as many of each module as its share of all statements, at least one."""
    by_statement: dict[str, dict[tuple[int, int], list[mutants.Mutant]]] = {}
    for name, source in sources.items():
        for one in mutants.every(source):
            by_statement.setdefault(name, {}).setdefault(one.statement, []).append(one)
    whole = sum(map(len, by_statement.values()))
    drawn = []
    for name, statements in by_statement.items():
        wanted = min(max(1, round(count * len(statements) / whole)), len(statements))
        random = np.random.default_rng([seed, *name.encode()])  # whatever becomes of other modules
        for i in random.permutation(len(statements))[:wanted]:
            found = statements[sorted(statements)[i]]
            drawn.append(Drawn(name, found[random.integers(len(found))]))
    return drawn


# Tests


class First:
    """A plugin of pytest that keeps the first failure."""

    def __init__(self) -> None:
        """Makes one that has seen nothing."""
        self.failure: tuple[str, str] | None = None
        self.passed = 0

    def _see(self, report: Any) -> None:
        if report.failed and self.failure is None:
            crash = getattr(report.longrepr, "reprcrash", None)
            said = crash.message if crash else str(report.longrepr)
            self.failure = (report.nodeid, _short(said))
        self.passed += report.passed and getattr(report, "when", "") == "call"

    pytest_runtest_logreport = pytest_collectreport = _see


def work_of(drawn: Drawn | None, sources: Mapping[str, str], tests: Sequence[str]) -> forks.Work:
    """Returns the work of a child: with the mutant in its copy, the tests until one fails."""

    def work(tree: Path) -> dict[str, Any]:
        changed = tree.parent / "changed"
        if changed.exists():  # by the mutant before, which may have been killed
            name, stamp = json.loads(changed.read_text())
            (tree / "ganomaly_jax" / name).write_text(sources[name])
            os.utime(tree / "ganomaly_jax" / name, ns=(stamp, stamp))  # of its bytecode
            changed.unlink()
        if drawn is not None:
            path = tree / "ganomaly_jax" / drawn.module
            changed.write_text(json.dumps([drawn.module, path.stat().st_mtime_ns]))
            path.write_text(mutants.applied(sources[drawn.module], drawn.mutant))
            os.utime(path, (1e9, 1e9))  # never that of any bytecode
        first = First()
        forks.enter(tree)
        code = forks.pytest_run(tree, list(tests), [first])
        if code == 4 and first.failure is None:  # not even conftest.py can be imported, or there are no such tests
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                try:
                    importlib.import_module("tests.conftest")
                except Exception as error:
                    first.failure = ("the import", _short(str(error)))
        return {"code": code, "failure": first.failure, "passed": first.passed}

    return work


# The run


def sources_of(root: Path) -> dict[str, str]:
    """Returns the sources of the modules of `ROOMS`, by their names below the package."""
    found = sorted(path for room in ROOMS for path in (root / "ganomaly_jax" / room).glob("*.py"))
    return {path.relative_to(root / "ganomaly_jax").as_posix(): path.read_text(encoding="utf-8") for path in found}


def record(trees: list[Path], kept: Path, log: Log) -> dict[str, Any]:
    """Returns what each test file reaches, from a whole recording if there is one; each in a process of its own."""
    whole, unfinished = kept.with_suffix(".json"), kept.with_suffix(".part")
    if whole.exists():
        return dict(json.loads(whole.read_text()))
    recorded: dict[str, Any] = json.loads(unfinished.read_text()) if unfinished.exists() else {}
    files = sorted(path.relative_to(trees[0]).as_posix() for path in (trees[0] / "tests").glob("*/**/test_*.py"))
    left = [name for name in files if name not in recorded and not any(part in name for part in _WITHOUT)]

    def job(name: str) -> tuple[str, float, forks.Work]:
        def work(tree: Path) -> dict[str, Any]:
            recorder = Recorder(tree / "ganomaly_jax")
            forks.enter(tree)
            forks.pytest_run(tree, ["--maxfail=1000", name], [recorder])
            return {"tests": recorder.tests, "fixtures": recorder.fixtures}

        return name, 1800.0, work

    for name, found, seconds in forks.each(map(job, left), trees):
        recorded[name] = found if isinstance(found, dict) else {"tests": {}, "fixtures": {}}
        log(f"{name}: {len(recorded[name]['tests'])} tests in {seconds:.0f} s")
        unfinished.write_text(json.dumps(recorded))
    unfinished.rename(whole)
    return recorded


def run(options: argparse.Namespace, log: Log) -> dict[str, Any]:
    """Runs the mutants, writing the two files after each, and returns the report."""
    scratch = Path(options.scratch)
    scratch.mkdir(parents=True, exist_ok=True)
    machine = {name: value for name, value in timing.machine().items() if name in ("commit", "processor", "cores")}
    settings = {name: getattr(options, name) for name in ("count", "seed", "rooms", "budget")}
    report = command.begin("mutation", machine=machine, settings=settings, mutants=[], finished=False)
    forks.warm(scratch)  # after `machine`, which opens a device
    trees = forks.copies(timing.ROOT, scratch, options.jobs)
    sources = sources_of(trees[0])
    reach = Reach(record(trees, Path(options.reach or scratch / "reach.json"), log))
    drawn = draw(sources, options.count, options.seed)
    drawn = [one for one in drawn if one.module.partition("/")[0] in options.rooms]
    reasons = json.loads(REASONS.read_text()) if REASONS.exists() else {}
    rows = {one: _row(one, reasons) for one in drawn}
    report["mutants"] = list(rows.values())
    before = _earlier(options.earlier) if options.earlier else {}
    for one in drawn:
        known = before.get(one.key, {})
        if known.get("proof") and known["proof"] == proof(trees[0], one.module, one.mutant, known["test"]):
            rows[one] |= {name: known[name] for name in ("outcome", "test", "said", "proof", "commit", "seconds")}
    jobs = list(_jobs(drawn, reach, options.budget, {key: row["test"] for key, row in before.items()}))
    np.random.default_rng(0).shuffle(jobs)
    for stage in (0, 1):
        left = [job for job in jobs if job.name[0] == stage and rows[job.name[1]]["outcome"] != "killed"]
        for (_, one), found, seconds in _outcomes(left, trees, sources):
            _note(rows[one], found, seconds)
            if rows[one]["outcome"] == "killed":
                rows[one] |= {"proof": proof(trees[0], one.module, one.mutant, rows[one]["test"])}
                rows[one] |= {"commit": machine["commit"]}
            log(f"{_progress(report)}: {rows[one]['outcome']} by {rows[one].get('test', '-')}: {one.key}")
            command.write(report, options.out, markdown)
    _control(rows, sources, reach, trees, log)
    report["finished"] = True
    command.write(report, options.out, markdown)
    return report


def _row(one: Drawn, reasons: Mapping[str, str]) -> dict[str, Any]:
    at = {"module": one.module, "line": one.mutant.line, "operator": one.mutant.operator}
    change = {"before": _short(one.mutant.before), "after": _short(one.mutant.after)}
    change |= {"source": one.mutant.source, "column": one.mutant.column}
    return at | change | {"outcome": "not reached", "tests": 0, "seconds": 0.0, "reason": reasons.get(one.key, "")}


def _earlier(path: str) -> dict[str, Any]:
    """Returns what an earlier run says of the mutants that it killed, by their key."""
    rows = json.loads(Path(path).read_text())["mutants"]
    return {_key([row[name] for name in _KEY]): row for row in rows if row["outcome"] == "killed"}


def proof(tree: Path, module: str, mutant: mutants.Mutant, test: str) -> str:
    """Returns a hash of a mutant's function and of a test: while both are the same, it need not be killed again."""
    path, name = tree / test.partition("::")[0], test.rpartition("::")[2].partition("[")[0]
    if not path.is_file():
        return ""
    first, last = mutant.function or (1, None)
    changed = (tree / "ganomaly_jax" / module).read_text(encoding="utf-8").splitlines()[first - 1 : last]
    source = path.read_text(encoding="utf-8")
    found = [part for part in ast.walk(ast.parse(source)) if getattr(part, "name", "") == name]
    texts = ["\n".join(changed), *(ast.get_source_segment(source, part) or "" for part in found)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16] if found else ""


def _jobs(drawn: Sequence[Drawn], reach: Reach, budget: float, before: Mapping[str, str]) -> Iterator[memory.Job]:
    """Yields what is to be run, named (stage, mutant): first the quickest tests, in the next stage all others."""
    for one in drawn:
        direct, others = reach.of(one.module, one.mutant)
        first = [test for test in (*direct, *others) if test == before.get(one.key)]
        direct, others = (first + [test for test in direct if test not in first], [t for t in others if t not in first])
        quick = reach.within(direct, budget)
        for stage, tests in enumerate((quick, [*direct[len(quick) :], *others])):
            if tests:
                limit = _PATIENCE_S + _SLOWER * reach.seconds(tests)
                yield memory.Job((stage, one), limit, one.module, one.mutant, tests)


def _outcomes(
    jobs: Sequence[memory.Job], trees: list[Path], sources: Mapping[str, str]
) -> Iterator[tuple[Any, Any, float]]:
    """Yields (name, what came of it, seconds): in memory where a function is changed, otherwise on disk."""
    on_disk = [job for job in jobs if not job.mutant.function]
    by_name = {job.name: job for job in jobs if job.mutant.function}
    for name, found, seconds in memory.run(list(by_name.values()), trees, sources, First):
        if found == "import":
            on_disk.append(by_name[name])
        else:
            yield name, found, seconds
    work = ((job.name, job.limit, work_of(job.name[1], sources, job.tests)) for job in on_disk)
    yield from forks.each(work, trees)


def _note(row: dict[str, Any], found: Any, seconds: float) -> None:
    row["seconds"] = round(row["seconds"] + seconds, 1)
    if not isinstance(found, dict):
        row |= {"outcome": "killed", "test": "the process", "said": "hangs" if found else "died"}
        return
    row["tests"] += found["passed"]
    if found["failure"]:
        row |= {"outcome": "killed", "test": found["failure"][0], "said": found["failure"][1]}
    elif found["code"]:  # such as tests that are not there
        row |= {"outcome": "in doubt", "said": f"exit code {found['code']}"}
    else:
        row["outcome"] = "survived"


def _control(
    rows: Mapping[Drawn, dict[str, Any]], sources: Mapping[str, str], reach: Reach, trees: list[Path], log: Log
) -> None:
    """Runs every test that killed a mutant without any: one that fails then proves nothing."""
    files: dict[str, set[str]] = collections.defaultdict(set)
    for row in rows.values():
        if row.get("test") in reach.cost:
            files[row["test"].partition("::")[0]].add(row["test"])
    jobs = ((name, 1800.0, work_of(None, sources, sorted(tests))) for name, tests in files.items())
    for name, found, _ in forks.each(jobs, trees):
        if not isinstance(found, dict) or found["failure"]:
            log(f"{name} fails without a mutant: {found}")
            for row in rows.values():
                row |= {"outcome": "in doubt"} if row.get("test", "").startswith(f"{name}::") else {}


# The page


def _counts(rows: Sequence[Mapping[str, Any]], name: str) -> dict[str, tuple[int, int]]:
    """Returns (killed, all) by module or operator."""
    found: dict[str, tuple[int, int]] = {}
    for row in rows:
        killed, whole = found.get(row[name], (0, 0))
        found[row[name]] = (killed + (row["outcome"] == "killed"), whole + 1)
    return dict(sorted(found.items()))


def _progress(report: Mapping[str, Any]) -> str:
    outcomes = collections.Counter(row["outcome"] for row in report["mutants"])
    return ", ".join(f"{name} {count}" for name, count in sorted(outcomes.items()))


def _share(rows: Sequence[Mapping[str, Any]]) -> float:
    """Returns the share of the mutants that are killed, of those that are not marked as equivalent; 1 for none."""
    counted = [row["outcome"] == "killed" for row in rows if not (row["reason"] or "").startswith("equivalent")]
    return sum(counted) / len(counted) if counted else 1.0


def markdown(report: Mapping[str, Any]) -> str:
    """Formats the report as a page."""
    rows = report["mutants"]
    killed = sum(row["outcome"] == "killed" for row in rows)
    left = [row for row in rows if row["outcome"] != "killed"]
    lines = [
        "# Mutants and the tests that notice them",
        "",
        f"{report['date']}, commit {report['machine']['commit'] or 'unknown'}; seed {report['settings']['seed']}. "
        f"{killed} of {len(rows)} killed ({killed / max(len(rows), 1):.1%}), {_share(rows):.1%} of those that are not "
        "equivalent." + " Not finished." * (not report["finished"]),
    ]
    for name in ("operator", "module"):
        lines += ["", *command.table(f"{name} | killed | of")]
        lines += [f"| {key} | {found} | {whole} |" for key, (found, whole) in _counts(rows, name).items()]
    lines += ["", "## Survivors", "", *command.table("where | before | after | reason")]
    for row in left:
        cells = (f"{row['module']}:{row['line']}", f"`{row['before']}`", f"`{row['after']}`", row["reason"] or "none")
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join([*lines, ""])


def arguments(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses and checks the command line."""
    parser = command.parser(__doc__)
    parser.add_argument("--count", type=int, default=250, help="mutants, about (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="draws them (default: %(default)s)")
    parser.add_argument("--rooms", default=",".join(ROOMS), help="some of them, with commas between (default: all)")
    parser.add_argument("--budget", type=float, default=60, help="seconds of tests before others (default: 60)")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time (default: %(default)s)")
    parser.add_argument("--least", type=float, default=0.95, help="share to be noticed (default: %(default)s)")
    parser.add_argument("--scratch", default="/tmp/mutation", help="copies, compiled programs (default: %(default)s)")
    parser.add_argument("--reach", help="a recording of which tests reach which lines (default: SCRATCH/reach.json)")
    parser.add_argument("--earlier", help="an earlier NAME.json: what it killed comes first, or stays killed")
    options = parser.parse_args(argv)
    options.rooms = [room.strip() for room in options.rooms.split(",")]
    if not set(options.rooms) <= set(ROOMS):
        raise UserError(f"--rooms: got {','.join(options.rooms)}, expected some of {','.join(ROOMS)}")
    command.at_least(options, 1, "count", "jobs")
    command.at_least(options, 0, "seed")
    command.seconds(options, "budget")
    return options


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command and returns its exit code, 1 if too few mutants are noticed."""
    enough = []

    def counted(options: argparse.Namespace, log: Log) -> None:
        rows = run(options, log)["mutants"]
        enough.append(_share(rows) >= options.least)

    return command.main(arguments, counted, argv) or int(not all(enough))


if __name__ == "__main__":
    sys.exit(main())
