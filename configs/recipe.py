"""GANomaly's three networks with a second objective for the discriminator, and a score of what is near in its latents.

Not the paper: the discriminator also learns to recognise two views of the same image among a batch (`loss.contrast`,
64 outputs beside its head), weights are averaged, and the score is the mean of two, each standardised on the
calibration part: the local density of the latent z among those of training images, and the angle of the embedding to
its nearest ones. One forward pass an image, and a third more network to keep.

    ganomaly train DATA --config configs/recipe.py --workdir W

Chosen among 30 sums of scores by synthetic anomalies made from held-out normals of seven sets (blends, shuffled
quarters, halves of two images, warps, blobs), one seed, with narrow networks; benchmarks/README.md has what was tried
and what it gives. A step takes about half as long again as the paper's.
"""

from ganomaly_jax.core.config import Config


def get_config() -> Config:
    config = Config()
    config.loss.contrast = 1.0
    config.optimizer.average = 0.99
    config.evaluate.score = "latent_density+embedding_angle"
    return config
