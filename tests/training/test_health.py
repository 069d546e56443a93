"""Health worked by hand, its words, and trainings that stop early and go on to the same bits."""

import json  # noqa: I001
import re
import signal

import chex
import jax
import numpy as np
import pytest
from tests.support import TINY, blobs, tiny_config
from tests.training.test_trainer import assert_same_bits, final, quiet

from ganomaly_jax.core import validation
from ganomaly_jax.core.errors import DamagedError, StoppedError, UserError
from ganomaly_jax.evaluation import evaluate, predictions
from ganomaly_jax.parallel import processes
from ganomaly_jax.report import curve_plots
from ganomaly_jax.runs import checkpoint, diagnostics, history
from ganomaly_jax.training import health
from ganomaly_jax.training.early_stopping import EarlyStopping
from ganomaly_jax.training.trainer import train


def test_accuracy_is_the_share_of_logits_on_the_right_side():
    real, fake = np.array([1.0, 2.0, -1.0, 0.0]), np.array([-3.0, -0.1, 5.0, -1.0])
    assert float(health.accuracy(real, fake)) == pytest.approx((2 / 4 + 3 / 4) / 2)
    assert float(health.accuracy(real[:1], fake)) == pytest.approx((1 + 3 / 4) / 2), "the batches weigh the same"


def test_the_variance_is_that_from_image_to_image():
    x = np.zeros((2, 1, 2, 1))
    x[1, 0] = [[2.0], [4.0]]  # variances 1 and 4
    x_hat = np.full((2, 1, 2, 1), 7.0)  # bright and dark within an image, but the same for all
    x_hat[:, 0, 1] = -7
    assert float(health.variance_ratio(x, x_hat)) == 0
    x_hat[1, 0, 0] = 8.0  # variances 1 / 4 and 0
    assert float(health.variance_ratio(x, x_hat)) == pytest.approx(0.05)


def test_the_effective_rank_of_known_covariances():
    corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)
    assert health.effective_rank(corners + 5) == pytest.approx(2)
    assert health.effective_rank(corners * [1, 0]) == pytest.approx(1)
    # Eigenvalues 9 and 1: shares 0.9 and 0.1.
    assert health.effective_rank(corners * [3, 1]) == pytest.approx(np.exp(-0.9 * np.log(0.9) - 0.1 * np.log(0.1)))
    assert health.effective_rank(np.ones((5, 3), np.float32)) == 0
    assert health.effective_rank(np.random.default_rng(0).normal(size=(8, 100)).astype(np.float32)) < 7


def test_a_check_measures_the_model_that_scores_and_each_of_several(tiny):
    detector, state, _ = tiny
    images = blobs(12, 5)
    samples = [health.Sample(images, 0, 255, True), health.Sample(images[:7], 0, 200, False)]
    first = health.make_measure(detector, samples[:1])(state)[0]
    x = 2 * images.astype(np.float32) / 255 - 1
    x_hat, z, _ = detector.generator.apply(detector.variables(state), x, train=False)
    assert first[checkpoint.LOSS] == pytest.approx(float(np.abs(x - x_hat).mean()), rel=1e-5)
    assert first[diagnostics.VARIANCE] == pytest.approx(float(x_hat.var(0).sum() / x.var(0).sum()), rel=1e-4)
    assert first[diagnostics.RANK] == pytest.approx(health.effective_rank(np.asarray(z)), rel=1e-4)
    assert (first["images"], first["of"]) == (12, "calibration")
    other = jax.jit(TINY.init)(jax.random.key(3))
    both = jax.tree.map(lambda *leaves: np.stack(leaves), other, state, state)
    twice = health.make_measure(detector, [samples[1], samples[0]], stacked=True)(both)
    assert len(twice) == 2, "a model that only fills up the devices is not measured"
    for name in diagnostics.CURVES:
        assert twice[1][name] == pytest.approx(first[name], rel=1e-4)
    assert checkpoint.LOSS not in twice[0], "no loss of images that are trained on"
    assert (twice[0]["images"], twice[0]["of"]) == (7, "training")


def test_a_check_leaves_out_what_is_not_defined(tiny):
    detector, state, _ = tiny
    same = np.repeat(blobs(1, 5), 4, axis=0)
    assert diagnostics.VARIANCE not in health.make_measure(detector, [health.Sample(same, 0, 255, True)])(state)[0]
    broken = jax.tree.map(lambda leaf: leaf * np.float32(np.nan) if leaf.dtype == np.float32 else leaf, state)
    found = health.make_measure(detector, [health.Sample(blobs(4, 0), 0, 255, True)])(broken)[0]
    json.dumps(found, allow_nan=False)
    assert diagnostics.RANK not in found


def record(step, accuracy, variance=0.8, rank=30.0, images=256):
    measured = {
        diagnostics.ACCURACY: accuracy,
        diagnostics.VARIANCE: variance,
        diagnostics.RANK: rank,
        checkpoint.LOSS: 0.1,
    }
    return {"step": step, "images": images, **measured}


def test_words_of_a_sick_training():
    records = [record(100, 1.0), record(1200, 0.8), {"step": 1250, "generator": 1.0}, record(1300, 0.99)]
    said = diagnostics.problems([*records, record(1400, 0.996, 0.12, 9.2)], 100)
    assert said == [
        "The discriminator has told 100% of real and reconstructed images apart since step 1,300: its loss no longer "
        "trains the generator.",
        "The reconstructions have collapsed: they vary only 12% as much as the inputs.",
        "The latent code uses only about 9 of its 100 dimensions.",
    ]


def test_words_of_a_healthy_training():
    assert diagnostics.problems([record(100, 1.0, 0.1, 2), record(200, 0.98, 0.26, 10.1)], 100) == []
    assert diagnostics.problems([], 100) == []
    assert diagnostics.problems([record(200, 0.5, rank=2.0, images=12)], 100) == [], (
        "12 images span 11 dimensions at most"
    )
    assert len(diagnostics.problems([record(200, 0.5, rank=1.05, images=12)], 100)) == 1
    broken = {
        "step": 3,
        diagnostics.ACCURACY: "high",
        diagnostics.VARIANCE: float("nan"),
        diagnostics.RANK: None,
        "images": "many",
    }
    assert diagnostics.problems([broken], 100) == []


def test_early_stopping():
    stopping = EarlyStopping()
    for step, loss in ((10, 0.5), (20, 0.4), (30, 0.4), (40, float("nan")), (50, 0.45)):
        stopping = stopping.after(step, loss)
    assert stopping == EarlyStopping(0.4, 20, 2)
    assert [stopping.is_over(patience) for patience in (0, 1, 2, 3)] == [False, True, True, False]
    assert stopping.after(60, 0.39) == EarlyStopping(0.39, 60, 0)
    assert EarlyStopping.from_meta({}) == EarlyStopping()
    assert EarlyStopping.from_meta(stopping.to_meta()) == stopping
    for wrong in (3, None, {}, {"smallest": "0", "step": 1, "looks": 0}, {"smallest": 0.5, "step": 1.5, "looks": 0}):
        with pytest.raises(DamagedError, match="state of early stopping"):
            EarlyStopping.from_meta({"waiting": wrong})


def test_the_interval_of_checks():
    assert [health.interval(*given) for given in ((7, 500), (0, 500), (0, 12))] == [7, 500, 100]


def settings(**values):
    return tiny_config(**{"steps": 60, "save_every": 8, "check_every": 4, "patience": 3} | values)


# What a model's calibration loss is made to be, by step: the smallest at 12, so that patience 3 ends at 24.
MADE = {4: 0.9, 8: 0.8, 12: 0.3, 16: 0.5, 20: 0.4, 24: 0.35, 28: 0.36, 32: 0.2}


@pytest.fixture
def made(monkeypatch):
    """Losses follow `MADE`; returns the steps at which they were measured."""
    seen = []

    def measure(state):
        seen.append(int(state.step))
        return [{checkpoint.LOSS: MADE.get(int(state.step), 0.5), "images": 9, "of": "calibration"}]

    monkeypatch.setattr(health, "make_measure", lambda *_: measure)
    return seen


def test_a_training_stops_early_and_says_when_and_why(tmp_path, arrays, made):
    said = []
    scorer = train(settings(), tmp_path, arrays, log=said.append)
    assert scorer.provenance["step"] == 24
    wanted = "stopped early at step 24 of 60.* in 3 checks since step 12, where it was 0.3.*train.patience=0 to"
    assert sum("stopped early" in line for line in said) == 1
    assert any(re.search(wanted, line) for line in said)
    assert made == [4, 8, 12, 16, 20, 24], "each step is measured once, whether it is saved or not"


def test_a_stopped_training_stops_at_the_same_step_through_an_interruption(tmp_path, arrays, made):
    train(settings(), tmp_path / "whole", arrays, log=quiet)
    add, calls = history.History.add_health, []

    def stop_at_20(self, step, values):
        add(self, step, values)
        if step == 20 and not calls:
            calls.append(step)
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history.History, "add_health", stop_at_20)
        with pytest.raises(StoppedError):
            train(settings(), tmp_path / "parts", arrays, log=quiet)
    assert calls
    # A step out of turn: its check counts for nothing.
    train(settings(steps=21), tmp_path / "parts", arrays, log=quiet)
    scorer = train(settings(), tmp_path / "parts", arrays, log=quiet)
    assert scorer.provenance["step"] == 24
    assert_same_bits(final(tmp_path / "parts"), final(tmp_path / "whole"))
    metas = [
        json.loads((tmp_path / name / "checkpoints" / "00000024" / "meta.json").read_text())["waiting"]
        for name in ("whole", "parts")
    ]
    assert metas[0] == metas[1] == {"smallest": 0.3, "step": 12, "looks": 3}


def test_a_stopped_training_stays_stopped_and_goes_on_without_patience(tmp_path, arrays, made):
    train(settings(), tmp_path, arrays, log=quiet)
    before = len(made)
    said = []
    assert train(settings(), tmp_path, arrays, log=said.append).provenance["step"] == 24
    assert len(made) == before
    assert any("ended before by train.patience=3" in line for line in said)
    assert any("stopped early at step 24" in line for line in said)
    assert train(settings(patience=4), tmp_path, arrays, log=quiet).provenance["step"] == 28
    said.clear()
    assert train(settings(patience=0, steps=40), tmp_path, arrays, log=said.append).provenance["step"] == 40
    assert not any("stopped early" in line for line in said)
    train(settings(patience=0, steps=40), tmp_path / "never", arrays, log=quiet)
    assert_same_bits(final(tmp_path), final(tmp_path / "never"))


def test_the_best_of_a_stopped_training_is_that_of_its_smallest_loss(tmp_path, arrays, made):
    """Step 12 is no multiple of `save_every`: it is saved because it is the best so far."""
    said = []
    scorer = train(settings(choose="best"), tmp_path, arrays, log=said.append)
    assert any("that of step 12" in line for line in said)
    stored = checkpoint.restore(tmp_path / "checkpoints", None, 12)[1]
    chex.assert_trees_all_equal(scorer.variables["detector"]["params"], stored["params"]["generator"])


def test_patience_without_held_out_images_or_with_members_is_refused(tmp_path):
    none = settings()
    none.data.calibration = 0.0
    with pytest.raises(UserError, match=r"train\.patience=3: expected 0, or data\.calibration above 0"):
        train(none, tmp_path, blobs(40, 0), log=quiet)
    several = settings()
    several.members.seeds = "0,1"
    with pytest.raises(UserError, match=r"train\.patience=3: expected 0, because members cannot"):
        validation.check(several)
    assert not list(tmp_path.iterdir())


def test_without_held_out_images_health_is_that_of_the_training_ones(tmp_path):
    run = tiny_config(steps=6, save_every=100, check_every=4)
    run.data.calibration = 0.0
    train(run, tmp_path, blobs(40, 0), log=quiet)
    looks = [one for one in history.read(tmp_path / "history.jsonl") if "images" in one]
    assert [look["step"] for look in looks] == [4, 6]
    assert all(look["of"] == "training" and checkpoint.LOSS not in look for look in looks)
    assert all(0 <= look[diagnostics.ACCURACY] <= 1 for look in looks)
    assert "calibration_loss" not in json.loads((tmp_path / "checkpoints" / "00000006" / "meta.json").read_text())


def test_the_evaluation_and_the_report_tell_of_it(trained, arrays, tmp_path, monkeypatch):
    workdir, _ = trained
    said = ["The latent code uses only about 9 of its 100 dimensions."]
    monkeypatch.setattr(
        diagnostics, "problems", lambda records, latent_size: said if list(records) and latent_size == 4 else []
    )
    monkeypatch.setattr(evaluate, "_report", lambda *_: None)
    monkeypatch.setattr(evaluate.run_folder, "write_json", lambda path, values: None)
    monkeypatch.setattr(predictions, "write", lambda *_: None)
    found = evaluate.evaluate(workdir, arrays=arrays).metrics
    assert said[0] in found["warnings"]
    assert set(found["health"]) == set(diagnostics.CURVES)
    assert found["health"][diagnostics.RANK] >= 1


def test_the_health_is_drawn_and_the_losses_are_the_same_beside_it(tmp_path):
    path, png = tmp_path / "history.jsonl", tmp_path / "health.png"
    losses = [{"step": step, "encoder": 1 / step} for step in (100, 200)]
    path.write_text("".join(json.dumps(one) + "\n" for one in losses))
    assert curve_plots.health(path, png) is None
    curve_plots.losses(path, tmp_path / "losses.png")
    alone = (tmp_path / "losses.png").read_bytes()
    looks = [record(100, 0.9), record(200, 1.0), {"step": 200, diagnostics.STOPPED: "It stopped."}]
    path.write_text("".join(json.dumps(one) + "\n" for one in losses + looks))
    assert curve_plots.health(path, png) == png
    assert curve_plots.losses(path, tmp_path / "losses.png").read_bytes() == alone
    assert diagnostics.problems(losses + looks, 100)[0] == "It stopped."


def test_process_0_has_the_say():
    assert processes.broadcast(0.1) == 0.1
    assert np.isnan(processes.broadcast(float("nan")))
