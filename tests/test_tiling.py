"""Tiles: every pixel in one, put together again what was cut, an image judged by its tiles wherever it is scored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny_config
from PIL import Image

import ganomaly_jax
from ganomaly_jax import cli, config, explain, exporting, ganomaly, lazy, loader, run, tiled, tiling
from ganomaly_jax.errors import UserError
from ganomaly_jax.metrics import auroc
from ganomaly_jax.training import train

SIDE = 40


def textures(n, seed, defect=False):
    """Images [n, 40, 40, 1] uint8 of soft stripes; anomalous ones have a small square of another direction."""
    random = np.random.default_rng(seed)
    rows = np.arange(SIDE)[None, :, None]
    phase = random.uniform(0, 2 * np.pi, (n, 1, 1))
    stripes = 128 + 90 * np.sin(2 * np.pi * rows / 8 + phase) * np.ones((1, 1, SIDE))
    if defect:
        for i, (top, left) in enumerate(random.integers(0, SIDE - 6, (n, 2))):
            stripes[i, top : top + 6, left : left + 6] = stripes[i, top : top + 6, left : left + 6].T
    return np.clip(stripes + random.normal(0, 6, stripes.shape), 0, 255).astype(np.uint8)[..., None]


def settings(tile=16, **train_values):
    made = tiny_config(**train_values)
    made.data.height = made.data.width = SIDE if tile else 16
    made.data.tile, made.data.overlap = tile, 0.25
    return made


@pytest.fixture(scope="module")
def arrays():
    images = np.concatenate([textures(60, 0), textures(30, 1, defect=True)])
    return images, np.repeat([0, 1], [60, 30])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, arrays):
    workdir = tmp_path_factory.mktemp("tiles")
    return workdir, train(settings(steps=150, save_every=100), workdir, arrays, say=lambda line: None)


def test_it_learns(trained, arrays):
    print(trained[1](arrays[0][:4]), auroc(jnp.asarray(arrays[1]), jnp.asarray(trained[1](arrays[0]))))
