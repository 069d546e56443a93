"""The demo with a denoising autoencoder in place of GANomaly: half the network, one loss, no discriminator.

    ganomaly train --config configs/autoencoder.py --workdir runs/autoencoder

Digits, size, length and rate are those of configs/mnist5k.py.
"""

from ganomaly_jax import Config
from ganomaly_jax.demo import get_config as demo


def get_config() -> Config:
    config = demo()
    config.model.detector = "autoencoder"
    return config
