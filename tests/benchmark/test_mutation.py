"""The mutants of a mutation run: what is changed, what never is, and which tests see them."""

import ast

import pytest

from benchmarks.faults import mutants, mutation, reach

SOURCE = '''"""Adds 1 to 2, and not more."""

from __future__ import annotations

LEAST: float = 0.5


def shares(values: list[int], count: int = 3, *, log=print) -> list[float]:
    """Returns 1 / 2 of the values."""
    if not values or count < 1:
        raise ValueError(f"got {count + 1}, expected more than " + "0")
    log("2 of 3", count + 1)
    found = [min(value, count) / 2 for value in values[1:count]]
    found.append(-values[0])
    if count:
        return found
    return divided(values, count)
'''


def changes(source):
    return {(one.operator, one.before, one.after) for one in mutants.every(source)}


def test_each_operator_finds_its_places_and_nothing_in_texts():
    wanted = {
        ("constant", "0.5", "1.5"),
        ("constant", "0.5", "0.0"),
        ("constant", "3", "4"),
        ("constant", "3", "0"),
        ("negation", "not values", "(values)"),
        ("and, or", "not values or count < 1", "(not values and count < 1)"),
        ("comparison", "count < 1", "(count <= 1)"),
        ("constant", "1", "2"),
        ("constant", "1", "0"),
        ("arithmetic", "min(value, count) / 2", "(min(value, count) * 2)"),
        ("min, max", "min(value, count)", "(max(value, count))"),
        ("constant", "2", "3"),
        ("constant", "2", "0"),
        ("off by one", "count", "(count + 1)"),
        ("removed statement", "found.append(-values[0])", "pass"),
        ("unary minus", "-values[0]", "(values[0])"),
        ("constant", "0", "1"),
        ("negation", "count", "(not count)"),
        ("removed statement", "return found", "pass"),
        ("swapped arguments", "divided(values, count)", "(divided(count, values))"),
    }
    raised = {one for one in changes(SOURCE) if one[1].startswith("raise")}
    assert {(one[0], one[2]) for one in raised} == {("removed statement", "pass")}
    assert changes(SOURCE) - raised == wanted


def test_a_change_is_made_at_its_place_alone():
    for one in mutants.every(SOURCE):
        after = mutants.applied(SOURCE, one)
        assert ast.dump(ast.parse(after)) != ast.dump(ast.parse(SOURCE)), one
        assert ast.get_docstring(ast.parse(after)) == "Adds 1 to 2, and not more."
        assert SOURCE.splitlines()[: one.line - 1] == after.splitlines()[: one.line - 1]
    assert "é" in mutants.applied('a = "é", 1\n', mutants.every('a = "é", 1\n')[0])  # columns are bytes


def test_the_draw_follows_the_seed_and_the_size_of_modules():
    sources = {"model/a.py": SOURCE, "model/b.py": SOURCE * 3, "model/c.py": "A = 1\n"}
    drawn = mutation.draw(sources, 16, 0)
    assert drawn == mutation.draw(sources, 16, 0) != mutation.draw(sources, 16, 1)
    counts = [sum(one.module == name for one in drawn) for name in sources]
    assert counts[2] == 1 and 2 * counts[0] < counts[1] <= 4 * counts[0]
    places = [(one.module, one.mutant.statement) for one in drawn]
    assert len(set(places)) == len(places)


def test_tests_are_chosen_by_the_lines_that_they_reach():
    def entry(seconds, lines, fixtures=(), passed=True):
        return {"seconds": seconds, "lines": {"model/a.py": lines}, "fixtures": list(fixtures), "passed": passed}

    tests = {
        "tests/model/test_a.py::slow": entry(3.0, [10, 13]),
        "tests/model/test_a.py::quick": entry(0.1, [13]),
        "tests/model/test_a.py::near": entry(0.1, [10]),
        "tests/model/test_a.py::fails": entry(0.0, [13], passed=False),
        "tests/model/test_a.py::fixed": entry(0.1, [], ["tests::made"]),
    }
    recorded = {"tests/model/test_a.py": {"tests": tests, "fixtures": {"tests::made": entry(9.0, [13])}}}
    known = reach.Reach(recorded)
    mutant = next(one for one in mutants.every(SOURCE) if one.line == 13)
    direct, others = known.of("model/a.py", mutant)
    assert [name.rpartition("::")[2] for name in direct] == ["quick", "slow", "fixed"]
    assert [name.rpartition("::")[2] for name in others] == ["near"]
    assert known.within(direct, 4.0) == direct[:2] and known.within(direct, 0.0) == direct[:1]
    assert known.seconds(direct) == pytest.approx(12.2)


def test_a_recorder_keeps_what_each_test_reaches(tmp_path, request):
    path = tmp_path / "a.py"
    path.write_text("def f(x):\n    if x:\n        return 1\n    return 2\n")
    found = {}
    exec(compile(path.read_text(), str(path), "exec"), found)
    recorder = reach.Recorder(tmp_path)

    def see(call):
        running = recorder.pytest_runtest_protocol(request.node)
        next(running)
        call()
        with pytest.raises(StopIteration):
            running.send(None)

    see(lambda: found["f"](0))
    assert recorder.tests[request.node.nodeid]["lines"] == {"a.py": [1, 2, 4]}
    see(lambda: found["f"](1))
    assert recorder.tests[request.node.nodeid]["lines"] == {"a.py": [1, 2, 3]}
