"""GANomaly for surfaces and parts that always lie the same way, under varying light: solar cells, boards, textiles.

The paper's networks and training with averaged weights; the networks see the brightness of an image relative to its
mean. The score is the mean of three parts, each standardised on the calibration images: the squared residual of the
image, its brightness removed, outside the principal components of normal images; the direction of the latent z relative
to its nearest neighbours; and the reconstruction's residual by its covariance over training images.

    ganomaly train DATA --config surface --workdir W

Not for images whose brightness carries information, such as X-rays, nor for anomalies anywhere in the image:
configs/inspection.py is for those. benchmarks/accuracy/README.md has its results and how it was found.
"""

from ganomaly_jax import Config


def get_config() -> Config:
    config = Config()
    config.model.exposure = True
    config.optimizer.average = 0.99
    config.evaluate.score = "components+latent_angle+residual_mahalanobis"
    return config
