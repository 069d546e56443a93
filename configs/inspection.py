"""GANomaly for things anywhere in an image, where what is odd is a part of it or a shape of its own: X-rays of baggage.

The paper's networks and training with averaged weights. The score is a mean of three, each standardised on the
calibration part: the squared residual of the image, its brightness apart, outside the principal components of normal
ones; the direction of the latent z beside its nearest ones; and, counted twice, how far the image's patches, contrast
normalised, are from patches of training images. The last alone, which needs no network, is better still on X-rays:

    ganomaly train DATA --config configs/inspection.py --workdir W
    ganomaly train DATA --config configs/inspection.py --config.evaluate.score=patches_medium --workdir W

configs/surface.py is for surfaces and parts that always lie the same way. benchmarks/README.md has what it gives and
how it was found.
"""

from ganomaly_jax.core.config import Config


def get_config() -> Config:
    config = Config()
    config.optimizer.average = 0.99
    config.evaluate.score = "components+latent_angle+patches_medium+patches_medium"
    return config
