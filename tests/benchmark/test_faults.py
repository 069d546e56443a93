"""The fault campaign in short: real processes are killed, stopped and refused, and what it counts can fail."""

import dataclasses
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from benchmarks.faults import campaign as faults
from benchmarks.faults import cases as fault_cases
from benchmarks.faults import runs as fault_runs
from benchmarks.faults import sources as fault_sources
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.runs import sealed_pytree

# `ganomaly train` without the evaluation at its end, whose report takes as long as everything else together.
PROGRAM = (
    "import sys; from ganomaly_jax.cli import evaluate, main; "
    "evaluate.evaluate_run_and_print = lambda *_, **__: None; sys.exit(main.main())"
)

PARTS = ("kills", "disks", "flips", "signals")
# `ganomaly predict` that reads nothing: every file of the folder has a score, and whatever happened there is no matter.
CARELESS = """
import csv, os, sys
if ".png" in sys.argv[1]: sys.argv.pop(1)
with open(sys.argv[sys.argv.index("--out") + 1], "w") as file:
    csv.writer(file).writerows([("path", "score", "verdict", "reason")])
    csv.writer(file).writerows((name, 0.5, "normal", "") for name in sorted(os.listdir(sys.argv[2])))
"""


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    """The exit code, report and page of a kill, a full disk, 20 flips and a SIGTERM."""
    folder = tmp_path_factory.mktemp("faults")
    out = str(folder / "out")
    call = ["--out", out, "--parts", ",".join(PARTS), "--kills", "1", "--disks", "1", "--flips", "20", "--signals", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
        patch.setattr(fault_runs, "PROGRAM", PROGRAM)
        # The training without a fault is the one that compiles, so how long the others take is guessed.
        patch.setattr(fault_runs, "compile_all", lambda bench: None)
        whole = fault_runs.prepare
        times = {"start_s": 3.0, "loop_s": 0.5, "end_s": 0.5}
        patch.setattr(fault_runs, "prepare", lambda bench: dataclasses.replace(whole(bench), **times))
        code = faults.main([*call, "--steps", "32", "--save-every", "8"])
    report = json.loads(Path(f"{out}.json").read_text())
    assert str(folder) not in json.dumps(report)
    return code, report, Path(f"{out}.md").read_text()


def test_nothing_is_lost_by_faults(campaign):
    code, report, page = campaign
    found = report["found"]
    assert {part: entry["defects"] for part, entry in found.items()} == {part: {} for part in PARTS}
    assert all(entry["finished"] for entry in found.values())
    assert code == 0
    counts = {part: entry["counts"] for part, entry in found.items()}
    assert counts["flips"]["refused_as_damaged"] == 40
    assert counts["kills"]["trainings_compared"] >= 1
    assert counts["signals"].get("longest_until_gone_s", 0) <= fault_cases.SIGTERM_S
    assert counts["disks"]["trainings_compared"] == 1
    assert "| kills | 1 |" in page


@pytest.fixture
def bench(tmp_path):
    """A bench whose training without a fault is two small artefacts and a history."""
    made = fault_runs.Bench(tmp_path, 4, 2, 1.0, np.random.default_rng(0), ())
    for folder in ("checkpoints/00000002", "checkpoints/00000004", "detector"):
        sealed_pytree.write(made.whole / folder, {"a": {"b": np.arange(4.0)}}, {})
    (made.whole / "history.jsonl").write_text('{"step": 4, "D": 0.5, "images_per_second": 3}\n')
    shutil.copytree(made.whole, tmp_path / "other")
    return made


def test_another_bit_another_step_and_another_history_are_seen(bench):
    other = bench.scratch / "other"

    def defects():
        found = fault_runs.Found()
        fault_runs.compare(bench, other, found)
        fault_runs.unreadable(other, found)
        return set(found.defects)

    assert defects() == set()
    (other / "history.jsonl").write_text('{"step": 4, "D": 0.25}\n')
    assert defects() == {"other history"}
    sealed_pytree.write(other / "detector", {"a": {"b": np.nextafter(np.arange(4.0), 9)}}, {})
    assert defects() == {"other history", "other weights"}
    (other / "checkpoints" / "00000004" / "meta.json").write_text("{} ")
    shutil.rmtree(other / "detector")
    shutil.copytree(bench.whole / "detector", other / "detector")
    found = fault_runs.Found()
    fault_runs.unreadable(other, found)
    assert found.defects["unreadable"]["times"] == 1
    shutil.rmtree(other / "checkpoints" / "00000004")
    assert "not at its last step" in defects()


def test_a_loader_that_takes_damage_is_seen(bench):
    path = bench.whole / "detector" / "meta.json"
    was, found = path.read_bytes(), fault_runs.Found()
    fault_cases._flip(path, path.parent, "detector", lambda folder: None, bench.random, found)
    assert set(found.defects) == {"loads in silence"}
    fault_cases._flip(path, path.parent, "detector", lambda folder: json.loads("?"), bench.random, found)
    assert set(found.defects) == {"loads in silence", "refused as something else"}
    assert path.read_bytes() == was


def test_more_than_an_interval_is_seen(bench):
    for sent, seen in ((6, False), (7, True)):
        bench.sent.write_bytes(b"%12d" % sent)
        found = fault_runs.Found()
        fault_cases._count_lost(bench, bench.scratch / "other", found)
        assert found.counts["most_steps_lost"] == sent - 4
        assert ("more than a save interval lost" in found.defects) == seen
    bench.sent.write_bytes(b"")  # killed after the loop began, before its first step
    found = fault_runs.Found()
    fault_cases._count_lost(bench, bench.scratch / "other", found)
    assert found == fault_runs.Found()


def test_disks_where_nothing_may_be_mounted(bench, monkeypatch):
    """The other ways refuse too, and give back what was there."""
    monkeypatch.setattr(fault_cases.shutil, "which", lambda name: None)
    assert not fault_cases.can_mount(bench.scratch)
    folder = bench.scratch / "disk"
    sealed_pytree.write(folder / "run" / "checkpoints" / "00000002", {"a": np.ones(2)}, {})
    with fault_cases._refusing(bench, folder) as spoil:
        restore = spoil(None)
        with pytest.raises(UserError, match="cannot write"):
            sealed_pytree.write(folder / "run" / "checkpoints" / "00000004", {"a": np.ones(2)}, {})
        restore()
    sealed_pytree.write(folder / "run" / "checkpoints" / "00000004", {"a": np.ones(2)}, {})


def test_rows_that_are_wrong_are_seen():
    def seen(row):
        found = fault_runs.Found()
        fault_sources._check_rows({"a": row}, ["a"], "no such file", {"a": 0.5}, "predict", found)
        fault_sources._check_rows({"a": row}, [], "", {"a": 0.5}, "predict", found)
        return found.defects["a row is not as it should be"]["times"]

    assert seen({"verdict": "invalid", "reason": "no such file"}) == 1
    assert seen({"verdict": "normal", "score": "0.5"}) == 1
    assert seen({"verdict": "invalid", "reason": "who knows"}) == 2


def test_a_predict_that_does_not_look_is_seen(bench, monkeypatch):
    """What the cases do to the real one is no part of this short version."""
    monkeypatch.setattr(fault_runs, "PROGRAM", CARELESS)
    monkeypatch.setattr(fault_sources, "_PROGRAM", CARELESS)
    bench, found = dataclasses.replace(bench, limit_s=30.0), fault_runs.Found()
    fault_sources.sources(bench, 1, found, lambda: None)
    assert found.counts["cases"] == 1
    assert found.defects["another exit code"]["first"].startswith("predict, files vanish after they were listed: 0")


def test_a_process_that_hangs_is_seen_and_ended(bench):
    os.mkfifo(bench.scratch / "pipe")
    with fault_runs.ganomaly(bench, [str(bench.scratch / "pipe")], "import sys; open(sys.argv[1])") as child:
        found = fault_runs.Found()
        assert not fault_runs.ended_well(bench, child, child.wait(0.1), found)
    assert set(found.defects) == {"hangs"}
    assert child.process.returncode == -9


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--parts", "kills,floods", "expected some of kills,disks,flips,sources,signals"),
        ("--parts", "kills,kills", "each once"),
        ("--kills", "0", "expected 1 or more"),
        ("--limit", "nan", "more than 0"),
        ("--steps", "5", "at least two saves"),
        ("--seed", "-1", "expected 0 or more"),
    ],
)
def test_options_are_checked(option, value, said, tmp_path, capsys):
    assert faults.main(["--out", str(tmp_path / "out"), option, value]) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ctrl_c_leaves_what_was_found(tmp_path, monkeypatch, capsys):
    def interrupted(bench, times, found, tell):
        found.count("kills")
        tell()
        raise KeyboardInterrupt

    monkeypatch.setattr(fault_runs, "compile_all", lambda bench: None)
    monkeypatch.setattr(fault_runs, "prepare", lambda bench: bench)
    monkeypatch.setitem(faults.PARTS, "kills", interrupted)
    assert faults.main(["--out", str(tmp_path / "out"), "--parts", "kills"]) == 130
    entry = json.loads((tmp_path / "out.json").read_text())["found"]["kills"]
    assert (entry["counts"], entry["finished"]) == ({"kills": 1}, False)
    assert "200, not finished" in (tmp_path / "out.md").read_text()
