"""The recorded values of the original code, and reading its weights."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from benchmarks.common.parity import LOSSES, worst
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model.ganomaly import Ganomaly
from ganomaly_jax.model.pytorch import from_pytorch

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


class Recorded:
    """One file of recorded values, and our detector with its initial weights."""

    def __init__(self, path):
        with np.load(path) as file:
            self.values = dict(file)
        side, channels, latent, features, extra, *_ = (int(v) for v in self.values["meta"])
        self.detector = Ganomaly((side, side, channels), latent, features, extra)
        self.state = from_pytorch(self.detector, self.tensors("init/G/"), self.tensors("init/D/"))
        self.x = jnp.asarray(self.values["x"].transpose(0, 1, 3, 4, 2))

    def tensors(self, prefix):
        return {k.removeprefix(prefix): v for k, v in self.values.items() if k.startswith(prefix)}


@pytest.fixture(scope="module", params=["32x32x1", "32x32x3_extra1"])
def recorded(request):
    return Recorded(GOLDEN / f"reference_{request.param}.npz")


def images(tensor):
    return tensor.transpose(0, 2, 3, 1)


def test_every_tensor_of_the_first_step(recorded):
    detector, state, x = recorded.detector, recorded.state, recorded.x[0]
    first = recorded.tensors("step0/")

    @jax.jit
    def forward(state, x):
        variables = {"params": state.params["generator"], "batch_stats": state.batch_stats["generator"]}
        (x_hat, z, z_hat), _ = detector.generator.apply(variables, x, train=True, mutable=["batch_stats"])
        variables = {"params": state.params["discriminator"], "batch_stats": state.batch_stats["discriminator"]}
        (real, p_real), _ = detector.discriminator.apply(variables, x, train=True, mutable=["batch_stats"])
        (fake, p_fake), _ = detector.discriminator.apply(variables, x_hat, train=True, mutable=["batch_stats"])
        return x_hat, z, z_hat, real, fake, jax.nn.sigmoid(p_real), jax.nn.sigmoid(p_fake)

    names = ("fake", "latent_i", "latent_o", "feat_real", "feat_fake", "pred_real", "pred_fake")
    for name, ours in zip(names, forward(state, x), strict=True):
        theirs = first[name]
        theirs = theirs[:, :, 0, 0] if name.startswith("latent") else images(theirs) if theirs.ndim == 4 else theirs
        assert worst(ours, theirs) < 1e-4, name

    grads, _, losses = jax.jit(detector.gradients)(state, x)
    for ours, theirs in LOSSES.items():
        assert worst(losses[ours], first[theirs]) < 1e-4, ours
    # The recorded gradients go through the very conversion of the weights; batch norm's running values fill the rest.
    whole = {n: recorded.tensors(f"init/{n}/") | recorded.tensors(f"step0/grad/{n}/") for n in "GD"}
    theirs = from_pytorch(detector, whole["G"], whole["D"]).params
    jax.tree_util.tree_map_with_path(lambda path, a, b: _assert_close(path, a, b), grads, theirs)


def _assert_close(path, ours, theirs):
    assert worst(ours, theirs) < 1e-4, jax.tree_util.keystr(path)


def test_the_steps_and_the_scores_after_them(recorded):
    """The file with an extra layer has the losses of two steps, the other one five steps and what they end in."""
    detector = recorded.detector
    state, losses = jax.jit(lambda s, x: lax.scan(detector.update, s, x))(recorded.state, recorded.x)
    for ours, theirs in LOSSES.items():
        for step in range(len(recorded.x)):
            assert worst(losses[ours][step], recorded.values[f"step{step}/{theirs}"]) < 1e-3, (ours, step)
    final = recorded.tensors("eval/")
    if not final:
        assert detector.extra_layers and len(recorded.x) == 2
        return
    assert len(recorded.x) == 5
    score = jax.jit(detector.score)(detector.variables(state), recorded.x[0])
    assert worst(score, final["score"]) < 1e-2
    x_hat = jax.jit(detector.reconstruct)(detector.variables(state), recorded.x[0])
    assert worst(x_hat, images(final["fake"])) < 1e-2
    after = from_pytorch(detector, recorded.tensors("after5/G/"), recorded.tensors("after5/D/"))
    for ours, theirs in zip(jax.tree.leaves(state.batch_stats), jax.tree.leaves(after.batch_stats), strict=True):
        assert worst(ours, theirs) < 1e-2
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(after.params), strict=True):
        assert float(jnp.abs(ours - theirs).max()) < 5 * detector.learning_rate


@pytest.mark.parametrize("recorded", ["32x32x3_extra1"], indirect=True)  # it has all kinds of layers
def test_steps_in_float64_follow_the_record(recorded):
    """Without rounding of our own the recorded float32 losses are met to float32's own precision."""
    with jax.enable_x64(True):
        narrow = recorded.detector
        detector = Ganomaly(
            narrow.shape, narrow.latent_size, narrow.features, narrow.extra_layers, param_dtype=jnp.float64
        )
        state = from_pytorch(detector, recorded.tensors("init/G/"), recorded.tensors("init/D/"))
        update = jax.jit(detector.update)
        for step, x in enumerate(recorded.x):
            state, losses = update(state, jnp.asarray(x, jnp.float64))
            for ours, theirs in LOSSES.items():
                assert losses[ours].dtype == jnp.float64
                assert worst(losses[ours], recorded.values[f"step{step}/{theirs}"]) < 1e-5, (ours, step)


def test_weights_that_do_not_fit_are_refused(recorded):
    generator, discriminator = recorded.tensors("init/G/"), recorded.tensors("init/D/")
    detector = recorded.detector
    name = next(k for k in generator if k.endswith("conv.weight"))
    with pytest.raises(UserError, match="no tensor 'encoder1"):
        from_pytorch(detector, {k: v for k, v in generator.items() if k != name}, discriminator)
    with pytest.raises(UserError, match="has shape"):
        from_pytorch(detector, generator | {name: np.zeros((1, 2, 3, 4))}, discriminator)
    with pytest.raises(UserError, match="do not belong there"):
        from_pytorch(detector, generator | {"stray": np.zeros(3)}, discriminator)
    parallel = {f"module.{k}": v for k, v in generator.items()}
    jax.tree.map(
        np.testing.assert_array_equal, from_pytorch(detector, parallel, discriminator).params, recorded.state.params
    )
