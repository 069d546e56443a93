"""Resuming at any step is the uninterrupted training, bit for bit."""

import tempfile
from pathlib import Path

import chex
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ganomaly_jax.runs import checkpoint, sealed_pytree
from ganomaly_jax.training import finalize, step_programs
from ganomaly_jax.training.trainer import train
from tests.support import blobs, tiny_config

IMAGES, STEPS = blobs(40, 0), 14  # 36 to train on, 4 steps of 8 an epoch


def trained_to(steps, workdir):
    """Trains in a folder until so many steps are done; returns every array of the last checkpoint."""
    train(tiny_config(steps=steps, save_every=100, check_every=0), workdir, IMAGES, log=lambda line: None)
    root = Path(workdir) / "checkpoints"
    assert checkpoint.steps(root)[-1] == steps
    return sealed_pytree.read(root / f"{steps:08}")[0]


@pytest.fixture(scope="module")
def compiled_once():
    """The step of all these trainings is one program; detectors are not made of them."""
    programs, compile_step = [], step_programs._compile

    def cached(*given):
        if not programs:
            programs.append(compile_step(*given))
        return programs[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_programs, "_compile", cached)
        patch.setattr(finalize, "finish", lambda *given: None)
        yield


@pytest.fixture(scope="module")
def whole(compiled_once, tmp_path_factory):
    return trained_to(STEPS, tmp_path_factory.mktemp("whole"))


@settings(max_examples=4)
@given(stops=st.lists(st.integers(1, STEPS - 1), min_size=1, max_size=2, unique=True).map(sorted))
def test_stopped_at_any_steps_it_ends_at_the_same_bits(whole, stops):
    with tempfile.TemporaryDirectory() as workdir:
        for steps in stops:
            trained_to(steps, workdir)
        chex.assert_trees_all_equal(trained_to(STEPS, workdir), whole, strict=True)
