"""GANomaly for anomalies anywhere in an image, a part of it or a shape of its own: X-rays of baggage.

The paper's networks and training with averaged weights. The score is the mean of three parts, each standardised on the
calibration images: the squared residual of the image, its brightness removed, outside the principal components of
normal images; the direction of the latent z relative to its nearest neighbours; and, counted twice, the distance of the
image's patches, contrast normalised, to patches of training images. On X-rays the last part alone, which needs no
network, is better still:

    ganomaly train DATA --config inspection --workdir W
    ganomaly train DATA --config inspection --config.evaluate.score=patches_medium --workdir W

configs/surface.py is for surfaces and parts that always lie the same way. benchmarks/accuracy/README.md has its results
and how it was found.
"""

from ganomaly_jax import Config


def get_config() -> Config:
    config = Config()
    config.optimizer.average = 0.99
    config.evaluate.score = "components+latent_angle+patches_medium+patches_medium"
    return config
