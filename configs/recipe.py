"""GANomaly's three networks with a second objective for the discriminator, and a score of neighbours in its latents.

Differs from the paper: the discriminator also learns to recognise two views of the same image within a batch
(`loss.contrast`, 64 outputs beside its head), weights are averaged, and the score is the mean of two parts, each
standardised on the calibration images: the local density of the latent z among those of training images, and the angle
of the embedding to its nearest neighbours. Scoring takes one forward pass; the detector stores a third more weights.

    ganomaly train DATA --config recipe --workdir W

It was chosen among 30 sums of scores by synthetic anomalies made from held-out normal images of seven data sets
(blends, shuffled quarters, halves of two images, warps, blobs), with one seed and narrow networks;
benchmarks/accuracy/README.md has the results and what else was tried. A step takes about 1.5 times as long as the
paper's.
"""

from ganomaly_jax import Config


def get_config() -> Config:
    config = Config()
    config.loss.contrast = 1.0
    config.optimizer.average = 0.99
    config.evaluate.score = "latent_density+embedding_angle"
    return config
