"""What a training costs, told before; and one that does not fit."""

import jax  # noqa: I001
import pytest
from tests.support import TINY, blobs, tiny_config

from ganomaly_jax.cli import main
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.training import cost, trainer


def sized(batch_size=8):
    config = tiny_config(batch_size=batch_size)
    config.data.channels = 1
    return config


@pytest.fixture(scope="module")
def found():
    return cost.plan(sized())


def test_parameters_are_those_of_the_detector(found):
    params = jax.eval_shape(TINY.init, jax.random.key(0)).params
    assert found.parameters == {k: sum(a.size for a in jax.tree.leaves(v)) for k, v in params.items()}


def test_a_larger_batch_costs_more(found):
    larger = cost.plan(sized(32))
    assert larger.step_flops > 3 * found.step_flops
    assert larger.memory > found.memory
    assert larger.image_flops == found.image_flops


def test_augmentation_is_counted(found):
    moved = sized()
    moved.train.shift, moved.train.flip = 2, True
    assert cost.plan(moved).memory > found.memory  # the compiler's count of FLOPs moves with what it fuses


def test_the_largest_batch_follows_from_the_memory(found, monkeypatch):
    assert found.largest_batch >= 8
    monkeypatch.setattr(cost, "device_memory", lambda: found.memory * 4)
    smaller = cost.plan(sized())
    assert 8 <= smaller.largest_batch < found.largest_batch
    assert smaller.largest_batch & (smaller.largest_batch - 1) == 0
    monkeypatch.setattr(cost, "device_memory", lambda: None)
    assert cost.plan(sized()).largest_batch is None


@pytest.mark.parametrize(
    "said",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 99 bytes.",
        "INTERNAL: Error dispatching computation: Out of memory allocating 99 bytes.",
    ],
)
def test_out_of_memory_names_a_batch_that_fits(tmp_path, monkeypatch, said):
    def exhausted(*_):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(trainer.loop, "run", exhausted)
    with pytest.raises(UserError, match=r"batch of 8; a batch of 4 would fit: --config\.train\.batch_size=4"):
        trainer.train(sized(), tmp_path, blobs(40, 0), log=lambda line: None)
    monkeypatch.setattr(cost, "device_memory", lambda: 1000)
    with pytest.raises(UserError, match="not even a batch of 2"):
        trainer.train(sized(), tmp_path, blobs(40, 0), log=lambda line: None)


def test_the_verb(capsys):
    sizes = [f"--config.data.{name}=16" for name in ("height", "width")]
    model = ["--config.model.features=4", "--config.train.batch_size=8"]
    assert main.main(["plan", *sizes, *model, "--config.data.channels=1", "--config.mesh.devices=1"]) == 0
    printed = capsys.readouterr().out
    assert "GFLOP" in printed
    assert "largest batch" in printed
    assert main.main(["plan", *sizes, "--config.data.channels=0"]) == 2
    assert "expected all three" in capsys.readouterr().err
