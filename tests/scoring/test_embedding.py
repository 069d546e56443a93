"""The scoring function inside other programs: the examples of docs/export.md, run as they stand there."""

import re  # noqa: I001
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.support import assert_scores_close, blobs

ROOT = Path(__file__).resolve().parents[2]


def examples():
    text = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    section = text.partition("## Inside another JAX program")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture(scope="module")
def names(trained):
    """What the examples leave behind."""
    pytest.importorskip("grain", reason="one of the examples needs the extra `data`")
    found = {"scorer": trained[1], "images": blobs(16, 3)}
    blocks = examples()
    assert len(blocks) == 5
    for block in blocks:
        exec(compile(block, "<docs/export.md>", "exec"), found)  # not a path: grain would read Python there
    return found


@pytest.fixture(scope="module")
def expected(trained):
    return trained[1](blobs(16, 3))


def test_jit_vmap_and_grad(names, expected):
    for name in ("scores", "one_by_one"):
        assert_scores_close(names["scorer"], names["images"], names[name], expected)
    assert names["slope"].shape == names["unit"].shape
    # Against finite differences, in the direction of the slope itself.
    fn, variables, unit, slope = (names[name] for name in ("fn", "variables", "unit", "slope"))
    total = jax.jit(lambda x: fn(variables, x).sum())
    step = 1e-2 / jnp.linalg.norm(slope)
    measured = (total(unit + step * slope) - total(unit - step * slope)) / (2 * step)
    np.testing.assert_allclose(measured, jnp.vdot(slope, slope), rtol=0.05)


def test_scan_and_map(names, expected):
    for name in ("scanned", "mapped"):
        assert_scores_close(names["scorer"], names["images"], names[name].reshape(-1), expected)
    np.testing.assert_allclose(names["worst"], expected.max(), rtol=1e-4)


def test_a_flax_module(names, expected):
    assert set(names["state"]) == {"detector", "params"}
    dense = names["state"]["params"]["Dense_0"]
    np.testing.assert_allclose(names["weighted"], expected * dense["kernel"][0, 0] + dense["bias"], rtol=1e-4)


def test_a_grain_pipeline(names, expected):
    assert_scores_close(names["scorer"], names["images"][:4], names["first"]["score"], expected[:4])
    assert names["first"]["image"].shape == (4, 16, 16, 1)
    assert len(names["pipeline"]) == 4


def test_eight_devices(names, expected):
    for name in ("sharded", "by_shard_map"):
        assert_scores_close(names["scorer"], names["images"], names[name], expected)
        assert names[name].sharding.is_equivalent_to(names["split"], 1)
        assert {shard.data.shape for shard in names[name].addressable_shards} == {(2,)}
    text = jax.jit(names["fn"]).lower(names["everywhere"], names["placed"]).compile().as_text()
    assert not re.search(r"all-gather|all-reduce|all-to-all|collective-permute", text)


def test_nothing_calls_back_to_the_host(trained):
    function, variables = trained[1].function()
    text = str(jax.make_jaxpr(function)(variables, blobs(2, 3)))
    assert "conv_general_dilated" in text
    assert "callback" not in text
