"""GANomaly for surfaces and parts that always lie the same way, under light that varies: solar cells, boards, textiles.

The paper's networks and training with averaged weights; the networks see the brightness of an image relative to its
mean. The score is a mean of three, each standardised on the calibration part: the squared residual of the image, its
brightness apart, outside the principal components of normal ones; the direction of the latent z beside its nearest
ones; and the reconstruction's residual by the covariance that it has on training images.

    ganomaly train DATA --config configs/surface.py --workdir W

Not where how bright an image is tells something, as in X-rays, nor for things anywhere in the image: that is what
configs/inspection.py is for. benchmarks/README.md has what it gives and how it was found.
"""

from ganomaly_jax.core.config import Config


def get_config() -> Config:
    config = Config()
    config.model.exposure = True
    config.optimizer.average = 0.99
    config.evaluate.score = "components+latent_angle+residual_mahalanobis"
    return config
