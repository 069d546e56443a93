"""The scaling benchmark: collectives are read as they stand in the program, the model is its formula, reports whole."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.common import command, timing
from benchmarks.speed import collectives, scaling
from benchmarks.speed.scaling_page import APART, DIVIDED, GROUP, ONE, SPREAD, STRONG, WEAK
from ganomaly_jax.parallel import sharding

# Cut down from what XLA prints for a CPU, with the forms of other devices put in: pairs of start and done, tuples,
# groups that are counted, operands with their shape. Only the body and what it calls is the loop.
PROGRAM = """\
HloModule jit_chunk, is_scheduled=true, entry_computation_layout={(f32[8]{0}, s32[])->f32[8]{0}}, num_partitions=8

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%inner (p: f32[4,4]) -> f32[4,4] {
  %p = f32[4,4]{1,0:T(8,128)} parameter(0)
  %scatter = f32[4,2]{1,0} reduce-scatter(%p), channel_id=4, replica_groups=[1,8]<=[8], dimensions={1}, to_apply=%add
  ROOT %gather = f32[4,4]{1,0} all-gather(f32[4,2]{1,0} %scatter), channel_id=5, replica_groups=[1,8]<=[8]
}

%body (arg: (s32[], f32[8], bf16[3,5])) -> (s32[], f32[8], bf16[3,5]) {
  %arg = (s32[], f32[8]{0}, /*index=2*/bf16[3,5]{1,0}) parameter(0)
  %a = f32[8]{0} get-tuple-element(%arg), index=1
  %b = bf16[3,5]{1,0} get-tuple-element(%arg), index=2
  %both = (f32[8]{0}, bf16[3,5]{1,0}) all-reduce(%a, /*index=1*/%b), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %own = f32[8]{0} all-reduce(%a), channel_id=2, replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add
  %begun = f32[8]{0} all-reduce-start(%a), channel_id=3, replica_groups={}, to_apply=%add
  %ended = f32[8]{0} all-reduce-done(%begun)
  %square = f32[4,4]{1,0} constant({...})
  %called = f32[4,4]{1,0} call(%square), to_apply=%inner
  ROOT %out = (s32[], f32[8]{0}, bf16[3,5]{1,0}) tuple(%i, %ended, %b)
}

%condition (arg.1: (s32[], f32[8], bf16[3,5])) -> pred[] {
  ROOT %less = pred[] constant(true)
}

ENTRY %main (p0: f32[8]) -> f32[8] {
  %p0 = f32[8]{0} parameter(0)
  %before = f32[8]{0} all-reduce(%p0), channel_id=9, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %while = (s32[], f32[8]{0}, bf16[3,5]{1,0}) while(%tuple), condition=%condition, body=%body
  ROOT %result = f32[8]{0} get-tuple-element(%while), index=1
}
"""


@pytest.fixture(autouse=True)
def keep_programs(monkeypatch):
    monkeypatch.setattr(command, "release", lambda: None)  # other tests go on with what is compiled


def test_what_the_loop_sends_is_read_from_a_program():
    """Two all-reduces: 8 floats and 15 bfloat16 in one, 8 floats in the other; none within one device."""
    assert collectives.moved(PROGRAM) == {
        "all-reduce": {"operations": 2, "bytes": 32 + 30 + 32, "largest": 62},
        "reduce-scatter": {"operations": 1, "bytes": 64, "largest": 64},
        "all-gather": {"operations": 1, "bytes": 32, "largest": 32},
    }
    with pytest.raises(ValueError, match="cannot be read"):
        collectives.moved(PROGRAM.replace("all-reduce-start(%a)", "all-reduce-start(%nowhere)"))


def test_what_this_jax_compiles_is_read():
    """The means of 12 floats and of one in a loop of any length, on four devices."""
    mesh = sharding.local_mesh(4)

    def step(x, count):
        return lax.fori_loop(0, count, lambda i, x: lax.pmean(jnp.sin(x) + lax.pmean(x.sum(), "data"), "data"), x)

    program = sharding.data_parallel(step, mesh, (0, None))
    found = collectives.moved(program.lower(jnp.zeros((16, 3)), jnp.int32(3)).compile().as_text())
    assert found == {"all-reduce": {"operations": 2, "bytes": 4 * 12 + 4, "largest": 48}}


def test_the_model_by_hand():
    """8 MB in 4 operations among 8: 14 MB at 100 GB/s are 140 us, 4 x 3 exchanges of 10 us are 120."""
    link = collectives.Link("test", 100, 10, 8)
    found = {"all-reduce": {"operations": 4, "bytes": 8_000_000, "largest": 1}}
    assert collectives.sent(found, 8) == 14_000_000
    assert collectives.added_s(found, 8, link) == pytest.approx(260e-6)
    assert collectives.added_s(found, 1, link) == 0
    rows = collectives.predict({"way": found}, 1e-3, (link,), [8, 64])
    assert [row["devices"] for row in rows] == [8]  # the link takes no more
    assert rows[0]["efficiency"] == pytest.approx(1 / 1.26)
    others = {name: {"operations": 0, "bytes": 80, "largest": 0} for name in ("all-gather", "reduce-scatter")}
    assert collectives.sent(others, 8) == 80 * 7 + 70
    rows = collectives.predict({"way": found}, 1e-3, (collectives.Link("any", 100, 10),), [512])
    assert rows[0]["added_ms"] == pytest.approx(2 * 511 / 512 * 0.08 + 4 * 9 * 0.01)


def test_efficiency_and_collectives_are_taken_round_by_round():
    taken = {ONE: [0.1, 0.2], SPREAD: [0.5, 0.8], APART: [0.4, 0.5]}
    found = scaling.summarise(taken, 4)
    assert found["efficiency"][SPREAD]["min"] == pytest.approx(0.8)
    assert found["efficiency"][SPREAD]["max"] == pytest.approx(1)
    assert found["collectives_ms"][SPREAD]["min"] == pytest.approx(100)
    assert found["collectives_ms"][SPREAD]["max"] == pytest.approx(300)
    assert GROUP not in found["collectives_ms"]


def test_shares_of_the_loop_by_hand():
    """Two saves in 1,000 steps: 500 of 10 ms are 5 s, beside which a save of 100 ms waits for 1/51 and adds 1/11."""
    each = {"plain_ms": 10, "pause_ms": 100, "beside_ms": 500, "background_ms": 400}
    found = scaling.shares({name: {"median": value} for name, value in each.items()}, 1000)
    assert found["share_waiting"] == pytest.approx(1 / 51)
    assert found["share_added"] == pytest.approx(1 / 11)
    assert found["least_step_ms"] == pytest.approx(9.8)
    assert 100 / (500 * found["least_step_ms"] + 100) == pytest.approx(0.02)
    each["background_ms"] = 10_000  # a save must be over before the next one
    assert scaling.shares({n: {"median": v} for n, v in each.items()}, 1000)["least_step_ms"] == pytest.approx(20)


def test_from_end_to_end(tmp_path, monkeypatch):
    made, make = {}, scaling.side

    def once(way, devices, batch, options):
        """Eight images on two devices are a case of both kinds."""
        if (way, devices, batch) not in made:
            made[way, devices, batch] = make(way, devices, batch, options)
        return made[way, devices, batch]

    monkeypatch.setattr(scaling, "side", once)
    out = tmp_path / "out"
    call = ["--quick", "--out", str(out), "--rounds", "1", "--turn", "0.01", "--saves", "1", "--folder", str(tmp_path)]
    assert scaling.main([*call, "--step-ms", "2", "--accelerators", "2,8,64"]) == 0
    assert str(tmp_path) not in out.with_suffix(".json").read_text()
    report, page = json.loads(out.with_suffix(".json").read_text()), out.with_suffix(".md").read_text()
    assert [(case["kind"], case["devices"], case["batch"]) for case in report["cases"]] == [
        *((WEAK, 1, 4), (WEAK, 2, 8), (STRONG, 1, 8), (STRONG, 2, 8))
    ]
    assert not any(case["left_out"] for case in report["cases"])
    weak = report["cases"][1]
    options = scaling.arguments(["--quick", "--out", "x"])
    detector = scaling.ganomaly.Ganomaly(options.shape, options.latent, options.features)
    gradients = 4 * sum(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(detector.init, jax.random.key(0)).params))
    sent = {way: sum(row["bytes"] for row in found.values()) for way, found in weak["moved"].items()}
    operations = {way: sum(row["operations"] for row in found.values()) for way, found in weak["moved"].items()}
    assert weak["moved"][APART] == {}
    assert gradients < sent[GROUP] <= sent[SPREAD] < 1.5 * gradients
    assert operations[GROUP] < operations[SPREAD]
    assert sent[DIVIDED] > 0
    rows = {(row["way"], row["devices"]) for row in report["prediction"]["rows"]}
    assert rows == {(way, count) for way in (SPREAD, GROUP) for count in (2, 8, 64)} | {(DIVIDED, 2)}
    assert report["prediction"]["step_ms"] == 2
    assert report["checkpoint"]["bytes"] > 3 * gradients
    assert all(rate["median"] > 0 for rate in report["input"]["images_per_s"].values())
    streamed = report["input"]["streamed"]
    assert streamed["images_per_s"]["min"] > 0 and 0 <= streamed["waits"]["min"] <= streamed["waits"]["max"] < 1
    assert "read from disk meanwhile" in page
    for heading in ("Time", "Sent in a step", "Prediction", "Checkpoints", "Input"):
        assert f"## {heading}" in page
    assert "given by `--step-ms`: 2 ms" in page
    assert "Not finished" not in page
    assert list(tmp_path.iterdir()) == sorted([out.with_suffix(".json"), out.with_suffix(".md")])


def test_an_interruption_keeps_what_was_measured(tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(scaling, "feeding", interrupted)
    monkeypatch.setattr(timing, "rotate", lambda sides, steps, rounds: {name: [0.1] for name in sides})
    call = ["--quick", "--works", "input", "--turn", "0.01", "--out", str(tmp_path / "out")]
    assert scaling.main(call) == 130
    report = json.loads((tmp_path / "out.json").read_text())
    assert report["cases"][0]["ms"][ONE]["median"] == pytest.approx(100)
    assert not report["finished"]
    assert "Not finished" in (tmp_path / "out.md").read_text()
    assert "the files hold the cases that were measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--devices", "1,x"], "--devices: got '1,x', expected numbers of devices"),
        (["--devices", "1,64", "--global-batch", "64"], "--devices: got 64, and there are 8"),
        (["--global-batch", "7"], "--global-batch: got 7"),
        (["--step-ms", "nan"], "--step-ms: got nan, expected more than 0"),
        (["--latency-us", "5"], "expected --link-gb-s beside it"),
        (["--works", "weak,none"], "--works: got weak,none"),
        (["--folder", "absent/folder"], "--folder: got absent/folder"),
        (["--images", "3"], "--images: got 3, expected 4 or more"),
        (["--shape", "16x32x1"], "expected square images"),
    ],
)
def test_options_that_cannot_work_are_refused_in_a_sentence(tmp_path, capsys, given, said):
    assert scaling.main(["--quick", "--out", str(tmp_path / "out"), *given]) == 2
    assert said in capsys.readouterr().err


def test_a_link_of_ones_own(tmp_path):
    options = scaling.arguments(["--quick", "--out", "x", "--link-gb-s", "25"])
    found = {"all-reduce": {"operations": 1, "bytes": 1000, "largest": 1000}}
    case = {"kind": WEAK, "devices": 2, "moved": {SPREAD: found}}
    report = {"cases": [case], "step_ms": {"median": 1.0}}
    made = scaling.predicted(report, options)
    assert [(link["gb_s"], link["latency_us"]) for link in made["links"]] == [(25, 10)]
    assert not made["given"]
    assert made["rows"][0]["added_ms"] == pytest.approx(2 * 7 / 8 * 1000 / 25e9 * 1e3 + 0.01 * 3)
    assert scaling.predicted({"cases": []}, options) is None
    assert np.isfinite(made["rows"][-1]["efficiency"])
