"""The benchmarks measure what they say: the peer is the original, turns alternate, reports are whole."""

import argparse
import importlib.util
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = ROOT / "tests" / "golden"
from benchmarks.common import (  # noqa: E402
    command,
    ours,
    table,
    timing,
)
from benchmarks.speed import members, throughput  # noqa: E402
from ganomaly_jax.model.ganomaly import Ganomaly  # noqa: E402
from ganomaly_jax.model.pytorch import from_pytorch  # noqa: E402
from ganomaly_jax.training import train_step  # noqa: E402

HAVE_TORCH = importlib.util.find_spec("torch") is not None
needs_torch = pytest.mark.skipif(not HAVE_TORCH, reason="the peer of the benchmarks, PyTorch, is not installed")
if HAVE_TORCH:
    import torch

    from benchmarks.common import pytorch_ganomaly

NAMES = {"err_g_adv": "adversarial", "err_g_con": "contextual", "err_g_enc": "encoder", "err_g": "generator"}
NAMES |= {"err_d": "discriminator"}


@pytest.fixture(autouse=True)
def one_thread(monkeypatch):
    """The networks are so small that threads only wait for each other; and with one the sums have one order."""
    monkeypatch.setattr(timing, "cores", lambda: 1)
    monkeypatch.setattr(command, "release", lambda: None)  # other tests go on with what is compiled
    if HAVE_TORCH:
        torch.set_num_threads(1)


def arrays(network):
    # Copies: jnp.asarray may share the memory of an array, and the next step changes it.
    return {name: value.numpy().copy() for name, value in network.state_dict().items()}


def worst(found, wanted):
    return float(np.abs(np.asarray(found) - np.asarray(wanted)).max() / np.abs(np.asarray(wanted)).max())


@needs_torch
@pytest.mark.parametrize("variant", ["eager", "channels_last"])
@pytest.mark.parametrize("name", ["32x32x1", "32x32x3_extra1"])
def test_the_peer_follows_the_record_of_the_original(name, variant):
    """In float64: in float32 another order of a sum moves the fifth step by 3e-3, with no fault anywhere."""
    with np.load(GOLDEN / f"reference_{name}.npz") as file:
        recorded = {key: torch.from_numpy(np.array(value)) for key, value in file.items()}

    def tensors(prefix):
        return {key.removeprefix(prefix): value for key, value in recorded.items() if key.startswith(prefix)}

    side, channels, latent, features, extra, *_ = recorded["meta"].tolist()
    peer = pytorch_ganomaly.make((side, side, channels), latent, features, extra, variant=variant)
    for prefix, network in (("init/G/", peer.generator), ("init/D/", peer.discriminator)):
        network.load_state_dict(tensors(prefix))
        network.double()
    step = pytorch_ganomaly.original_step if variant == "eager" else pytorch_ganomaly.shared_step
    for i, x in enumerate(recorded["x"].double()):
        losses = step(peer, x)
        for theirs, loss in NAMES.items():
            assert worst(losses[loss], recorded[f"step{i}/{theirs}"]) < 1e-5, (i, loss)
    if "eval/score" not in recorded:  # the file with an extra layer has two steps and not what five end in
        assert extra
        return
    found = arrays(peer.generator)
    checked = {key: value for key, value in tensors("after5/G/").items() if "num_batches" not in key}
    if variant == "eager":  # of the shared passes the discriminator's running statistics, which nothing reads, differ
        found |= arrays(peer.discriminator)
        checked |= {key: value for key, value in tensors("after5/D/").items() if "num_batches" not in key}
    for key, value in checked.items():
        assert worst(found[key], value) < 1e-4, key
    with torch.no_grad():
        for network in (peer.generator.eval(), pytorch_ganomaly.folded(peer.generator)):
            assert worst(pytorch_ganomaly.score(network, recorded["x"][0].double()), recorded["eval/score"]) < 1e-5


@needs_torch
def test_the_peer_and_ours_compute_the_same_where_nothing_is_recorded():
    torch.manual_seed(0)
    shape = (64, 64, 3)
    detector, x = Ganomaly(shape, 4, 4), timing.pictures(4, shape) / np.float32(127.5) - 1
    peers = [pytorch_ganomaly.make(shape, 4, 4, variant=variant) for variant in ("eager", "channels_last")]
    for name in ("generator", "discriminator"):
        getattr(peers[1], name).load_state_dict(getattr(peers[0], name).state_dict())
    state = from_pytorch(detector, arrays(peers[0].generator), arrays(peers[0].discriminator))
    losses = jax.jit(lambda state, x: detector.gradients(state, x)[2])(state, jnp.asarray(x))
    for peer, step in zip(peers, (pytorch_ganomaly.original_step, pytorch_ganomaly.shared_step), strict=True):
        theirs = step(peer, torch.from_numpy(x.transpose(0, 3, 1, 2).copy()))
        for name, loss in losses.items():
            assert worst(loss, theirs[name]) < 1e-4, name


@needs_torch
def test_a_discriminator_that_has_won_is_drawn_afresh():
    peer = pytorch_ganomaly.make((16, 16, 1), 4, 4)
    head = peer.discriminator.classifier[0].weight
    # Certain of both: what has no spread is real (padding gives the generated images some).
    peer.discriminator.forward = lambda x: ((x.flatten(1).std(1) == 0).float() + 0 * head.sum(), x)
    before = head.detach().clone()
    losses = pytorch_ganomaly.original_step(peer, torch.ones(2, 1, 16, 16))
    assert losses["discriminator"] < 1e-5
    assert worst(head.detach(), before) > 0.05  # Adam's first step moves by 2e-4, a hundredth


@needs_torch
def test_the_variants_of_a_device():
    assert pytorch_ganomaly.tuned("cpu") == ["contiguous", "channels_last", "compile"]
    assert "compile" not in pytorch_ganomaly.tuned("cpu", compiled=False)
    assert {"graph", "compile_graph"} <= set(pytorch_ganomaly.tuned("cuda"))


def fake(log, name, finite=True):
    facts = {"flops": 1e6, "flops_before": 1e6, "memory": {"total": 1}}
    return timing.Side(lambda steps: log.append((name, steps)), lambda: finite, 0.5, facts=facts)


def test_turns_are_taken_in_strict_rotation(monkeypatch):
    log = []
    monkeypatch.setattr(timing, "seconds", lambda side, steps: side.run(steps) or 0.5 * steps)
    taken = timing.rotate({"a": fake(log, "a"), "b": fake(log, "b")}, {"a": 3, "b": 1}, 3)
    assert log == [("a", 1), ("a", 3), ("b", 1), ("b", 1)] * 3  # each turn after a step that is not timed
    assert taken == {"a": [0.5] * 3, "b": [0.5] * 3}  # seconds a step


def test_our_side_does_as_many_steps_as_it_is_asked_to(monkeypatch):
    done = []

    def make_steps(detector, low, high):
        def counting(state, images, index, count):
            jax.debug.callback(lambda count: done.append(int(count)), count)
            return state, jnp.zeros((len(index), 5)) + count

        return counting

    monkeypatch.setattr(train_step, "make_steps", make_steps)
    side = ours.side("train", (16, 16, 1), 2, images=4, latent=2, features=2)
    side.run(300)
    jax.effects_barrier()
    assert done == [128, 128, 44] and side.finite()


def test_our_side_computes_in_the_type_asked_for(monkeypatch):
    made = []
    monkeypatch.setattr(ours, "_scoring", lambda detector, *_: made.append(detector) or fake([], "ours"))
    for bfloat16 in (False, True):
        ours.side("score", (16, 16, 1), 2, bfloat16=bfloat16)
    assert [detector.compute_dtype for detector in made] == ["float32", "bfloat16"]


@needs_torch
@pytest.mark.parametrize(("variant", "step"), [("eager", "original_step"), ("contiguous", "shared_step")])
def test_the_peers_side_does_too_and_on_scaled_images(monkeypatch, variant, step):
    done = []
    monkeypatch.setattr(pytorch_ganomaly, step, lambda peer, x, *_: done.append(x) or {"generator": torch.zeros(())})
    side = pytorch_ganomaly.side("train", (16, 16, 1), 2, variant, images=4, latent=2, features=2)
    done.clear()
    side.run(7)
    assert len(done) == 7 and done[0].shape == (2, 1, 16, 16)
    unit = timing.pictures(4, (16, 16, 1)) / 127.5 - 1
    assert all(np.abs(unit[..., 0] - image.numpy()).max((1, 2)).min() < 1e-6 for x in done for image in x[:, 0])


def test_a_turn_has_as_many_steps_as_fit(monkeypatch):
    monkeypatch.setattr(timing, "seconds", lambda side, steps: 0.01 * steps)
    assert timing.steps_a_turn(fake([], "a"), 1.0) == (100, pytest.approx(0.01))
    monkeypatch.setattr(timing, "seconds", lambda side, steps: 30.0 * steps)
    assert timing.steps_a_turn(fake([], "a"), 1.0) == (1, 30.0)


def test_figures_of_a_case_by_hand():
    taken = {"ours": [0.1, 0.2, 0.1], "eager": [0.4, 0.4, 0.2], "compile": [0.1, 0.3, 0.3], "channels_last": [0.25] * 3}
    found = throughput.summarise(10, taken, 5e9, 2e11)
    assert found["tuned"] == "channels_last"
    assert found["sides"]["ours"]["images_per_s"] == pytest.approx(100)
    assert found["sides"]["ours"]["ms_rounds"] == pytest.approx([100, 200, 100])
    assert found["ratio_eager"]["median"] == pytest.approx(2)  # rounds 4, 2, 2
    assert (found["ratio_eager"]["min"], found["ratio_eager"]["max"]) == (pytest.approx(2), pytest.approx(4))
    assert found["ratio_tuned"]["median"] == pytest.approx(2.5)  # rounds 2.5, 1.25, 2.5
    assert found["flops_per_s"] == pytest.approx(5e10)
    assert found["share_of_matmul_peak"] == pytest.approx(0.25)
    alone = throughput.summarise(10, {"ours": [0.1]}, 5e9, None)
    assert alone["tuned"] is alone["ratio_eager"] is alone["ratio_tuned"] is alone["share_of_matmul_peak"] is None


def options(tmp_path, *more):
    small = ["--shapes", "16x16x1", "--batches", "4", "--features", "4", "--latent", "4", "--quick", "--turn", "0.01"]
    small += ["--skip-compile"] if HAVE_TORCH else ["--ours-alone"]
    return ["--out", str(tmp_path / "results" / "here"), *small, *more]


def test_one_command_writes_a_whole_report(tmp_path, capsys):
    assert throughput.main(options(tmp_path)) == 0
    said = capsys.readouterr().out
    assert "[1/2] train 16x16x1, batch 4" in said and "[2/2] score 16x16x1, batch 4" in said

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    text = (tmp_path / "results" / "here.json").read_text()
    report = json.loads(text, parse_constant=refuse)
    assert report["finished"] and report["benchmark"] == "throughput"
    assert {"jax", "flax", "optax", "numpy"} <= set(report["machine"]["versions"])
    assert report["machine"]["cores"] == 1 and report["machine"]["jax"]["platform"] == "cpu"
    assert len(report["load_average"]["before"]) == 3
    rates = report["matmul_flops_per_s"]
    assert all(rate > 1e6 for library in rates.values() for rate in library.values())
    assert set(rates) == ({"jax", "torch"} if HAVE_TORCH else {"jax"})
    assert [case["work"] for case in report["cases"]] == ["train", "score"]
    sides = {"ours", "eager", "contiguous", "channels_last"} if HAVE_TORCH else {"ours"}
    detector = Ganomaly((16, 16, 1), 4, 4)
    state = jax.eval_shape(detector.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((4, 16, 16, 1), jnp.float32)
    expected = {
        "train": jax.jit(detector.update).lower(state, x),
        "score": jax.jit(detector.score).lower(detector.variables(state), x),
    }
    for case in report["cases"]:
        assert case["status"] == "measured" and not case["left_out"]
        assert case["shape"] == [16, 16, 1] and case["batch"] == 4
        assert set(case["sides"]) == sides
        for found in case["sides"].values():
            assert len(found["ms_rounds"]) == case["rounds"] == 2
            assert 0 < found["ms"]["min"] <= found["ms"]["median"] <= found["ms"]["max"]
            assert found["steps_a_turn"] >= 1 and found["images_per_s"] > 0 and found["compile_s"] > 0
        # XLA counts the loop's body once, so this is one step: the update with gathering and scaling.
        assert 0.9 < case["flops_before_optimisation"] / expected[case["work"]].cost_analysis()["flops"] < 1.2
        assert case["program_bytes"]["total"] > 0
    rows = [line for line in (tmp_path / "results" / "here.md").read_text().splitlines() if " | 16x16x1 | 4 | " in line]
    assert [row.split(" | ")[0] for row in rows] == ["| train", "| score"]
    assert {row.count("|") for row in rows} == {table.row(report["cases"][0]).count("|") + 2}


@pytest.fixture
def faked(monkeypatch):
    """`measure` over pretended sides: {name: a side, or the error that making it raises}."""

    def measure(sides, batch=4, **more):
        def make(name):
            def made():
                if isinstance(sides[name], Exception):
                    raise sides[name]
                return sides[name]

            return made

        monkeypatch.setattr(throughput, "_plans", lambda *_: {name: ("module", make(name), {}) for name in sides})
        values = {"memory": [], "turn": 1e-9, "limit": 10.0, "rounds": 2, "peaks": {}, "dtype": "float32"} | more
        return throughput.measure(
            "train", (16, 16, 1), batch, argparse.Namespace(latent=4, features=4, **values), lambda line: None
        )

    return measure


def test_what_cannot_run_is_a_row_that_says_so(faked):
    log = []
    error = RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes")
    case = faked({"ours": error, "eager": fake(log, "eager")})
    assert case["status"] == "out of memory" and not log
    assert "| out of memory |" in table.row(case)
    case = faked({"ours": fake(log, "ours"), "eager": MemoryError(), "compile": RuntimeError("no\ncompiler")})
    assert case["left_out"] == {"eager": "out of memory", "compile": "RuntimeError: no compiler"}
    assert case["status"] == "measured" and case["tuned"] is None and list(case["sides"]) == ["ours"]
    assert table.row(case).split(" | ")[4] == "out of memory"
    case = faked({"ours": fake(log, "ours"), "eager": fake(log, "eager", finite=False)})
    assert case["left_out"] == {"eager": "its numbers are not finite"} and list(case["sides"]) == ["ours"]


def test_memory_is_measured_of_ours_the_original_and_the_best(faked, monkeypatch):
    asked = []
    monkeypatch.setattr(timing, "in_own_process", lambda function, call: asked.append(call["steps"]) or {"host": 2**20})
    log = []
    sides = {name: fake(log, name) for name in ("ours", "eager", "contiguous", "channels_last")}
    case = faked(sides, memory=[4])
    assert len(asked) == 3
    with_memory = {name for name, found in case["sides"].items() if found["peak_memory"]}
    assert with_memory == {"ours", "eager", case["tuned"]}
    assert table.row(case).endswith("| 1 / 1 / 1")
    faked(sides, memory=[64])
    assert len(asked) == 3


def test_a_process_that_cannot_measure_memory_takes_nothing_else_with_it(faked, monkeypatch):
    def refuse(function, call):
        raise RuntimeError(reason)

    monkeypatch.setattr(timing, "in_own_process", refuse)
    sides = {name: fake([], name) for name in ("ours", "eager", "contiguous")}
    reason = "it took longer than 900 s"
    case = faked(sides, memory=[4])
    assert set(case["sides"]) == set(sides) and not case["left_out"]
    reason = "out of memory: the system ended it"
    assert faked(sides, memory=[4])["status"] == "out of memory"


def test_a_case_that_fails_is_a_row_and_the_next_one_runs(tmp_path, monkeypatch):
    def measure(work, shape, batch, options, log):
        raise ValueError("strange")

    monkeypatch.setattr(throughput, "measure", measure)
    assert throughput.main(options(tmp_path, "--ours-alone")) == 0
    report = json.loads((tmp_path / "results" / "here.json").read_text())
    assert [case["status"] for case in report["cases"]] == ["failed", "failed"] and report["finished"]
    assert "the case: ValueError: strange (train 16x16x1 4, score" in (tmp_path / "results" / "here.md").read_text()


def test_a_stopped_run_keeps_what_it_has(tmp_path, monkeypatch, capsys):
    def measure(work, shape, batch, options, log):
        if work == "score":
            raise KeyboardInterrupt
        return {"work": work, "shape": shape, "batch": batch, "status": "out of memory", "left_out": {}}

    monkeypatch.setattr(throughput, "measure", measure)
    assert throughput.main(options(tmp_path, "--ours-alone")) == 130
    assert "stopped" in capsys.readouterr().err
    report = json.loads((tmp_path / "results" / "here.json").read_text())
    assert len(report["cases"]) == 1 and not report["finished"]
    assert "Not finished" in (tmp_path / "results" / "here.md").read_text()


def test_a_place_that_cannot_be_written_to_is_found_first(tmp_path, monkeypatch, capsys):
    (tmp_path / "results").write_text("a file where the folder would be")
    monkeypatch.setattr(throughput, "measure", lambda *_: pytest.fail("measured first"))
    assert throughput.main(options(tmp_path, "--ours-alone")) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_without_torch_one_sentence(tmp_path, monkeypatch, capsys):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "torch" else found(name, *a))
    assert throughput.main([a for a in options(tmp_path) if a != "--ours-alone"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: PyTorch") and "--ours-alone" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--shapes", "32x32"], "expected square images"),
        (["--shapes", "32x64x1"], "expected square images"),
        (["--shapes", "48x48x1"], "height and width"),
        (["--batches", "0"], "from 1"),
        (["--batches", "1,many"], "from 1"),
        (["--rounds", "0"], "--rounds"),
        (["--works", "train,sleep"], "--works"),
        (["--memory", "some"], "--memory"),
        (["--device", "gpu"], "finds none"),
    ],
)
def test_bad_arguments_are_one_sentence(tmp_path, capsys, arguments, words):
    assert throughput.main([*options(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_memory_of_a_process_is_its_own():
    held = np.ones(40_000_000)  # 320 MB here, none of it there
    peak = timing.in_own_process("benchmarks.common.timing:host_peak", {})
    assert 2**20 < peak < held.nbytes < timing.host_peak()
    with pytest.raises(RuntimeError, match="No module named"):
        timing.in_own_process("benchmarks.nothing:at_all", {})


def test_pictures_are_pictures():
    x = timing.pictures(300, (16, 16, 3))
    assert x.shape == (300, 16, 16, 3) and x.dtype == np.uint8
    np.testing.assert_array_equal(x[:44], x[256:])
    assert np.ptp(x[0]) > 60 and (x[0] != x[1]).mean() > 0.5
    # Smooth but for the noise: neighbours are alike.
    assert np.abs(np.diff(x.astype(int), axis=1)).mean() < 0.5 * x.std()


def test_operations_by_definition_are_those_of_the_reference():
    """GFLOP of a training step of 64, and MFLOP to score an image, each pass once, as counted independently."""
    for shape, step, image in (((32, 32, 1), 35.3, 105), ((32, 32, 3), 36.1, 108), ((64, 64, 3), 212, 628)):
        assert ours.operations("train", shape, 64, 100, 64) / 1e9 == pytest.approx(step, rel=2e-3)
        assert ours.operations("score", shape, 1, 100, 64) / 1e6 == pytest.approx(image, rel=5e-3)


def test_members_benchmark_from_end_to_end(tmp_path, capsys):
    call = ["--out", str(tmp_path / "m"), "--members", "2", "--shape", "16x16x1", "--batch", "4"]
    call += ["--features", "4", "--latent", "4", "--rounds", "2", "--turn", "0.01"]
    assert members.main(call) == 0
    report = json.loads((tmp_path / "m.json").read_text())
    (case,) = report["cases"]
    assert set(case["ms"]) == {"alone", "loop", "vmap"}
    assert all(found["median"] > 0 for found in case["ratios"].values())
    assert case["left_out"] == {}
    assert "| 2 | loop |" in (tmp_path / "m.md").read_text()
    for wrong, match in ((["--members", "x"], "--members"), (["--batch", "1"], "--batch: got 1, expected 2 or more")):
        assert members.main([*call, *wrong]) == 2
        assert match in capsys.readouterr().err


def test_both_ways_of_the_members_compute_the_same():
    detector = Ganomaly((16, 16, 1), 4, 4)
    states = jax.jit(jax.vmap(detector.init))(jax.random.split(jax.random.key(0), 3))
    pixels = timing.pictures(16, detector.shape)
    index = np.random.default_rng(0).integers(0, 16, (3, 4, 4), np.int32)
    rest = np.full(3, 2, np.int32), np.tile(np.float32([0, 255]), (3, 1)), np.arange(3, dtype=np.uint32)
    ways = train_step.make_member_steps(detector, lambda seed: None), members.vmapped(detector)
    one, other = (jax.jit(way)(states, pixels, index, *rest) for way in ways)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


def test_members_are_summarised_as_by_hand():
    found = members.summarise({"alone": [0.2, 0.4], "loop": [0.1, 0.1]})
    assert found["ms"]["loop"]["median"] == pytest.approx(100)
    assert found["ratios"]["loop"]["median"] == pytest.approx(3)
    assert set(found["ratios"]) == {"loop"}
