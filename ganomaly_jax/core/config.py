"""The configuration of a run: all its keys, with their defaults and units.

The functions `get_config()` in `configs/` return a `Config`. The first line of each docstring below is the help that
`ganomaly config` shows.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Sequence

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.core.section import section


@section("data.sound")
class Sound:
    """How windows of recordings become spectrograms of `data.height` frequency bands and `data.width` frames."""

    rate: int = 0
    """Sampling rate in Hz that recordings are resampled to; 0: their own, the lowest if there are several.

    Required for arrays, whose rate is not stored.
    """
    channel: int = 0
    """Channel to use, counted from 1; 0: the mean of all channels."""
    frame: float = 0.0
    """Length of a spectrogram frame in seconds; 0: about 0.064.

    The default is a power of two of samples. It becomes shorter, down to an eighth, where it leaves fewer than 1,000
    normal windows, and longer where a band would contain no frequency.
    """
    hop: float = 0.0
    """Seconds from one frame to the next; 0: half of `data.sound.frame`."""
    stride: float = 0.0
    """Seconds from the start of one window to the next; 0: half a window.

    The default becomes shorter, down to an eighth of a window, where it leaves fewer than 1,000 normal windows.
    """
    low: float = 0.0
    """Lower end of the lowest frequency band, in Hz."""
    high: float = 0.0
    """Upper end of the highest frequency band, in Hz; 0: half the sampling rate."""
    scale: str = "mel"
    """Frequency scale on which the bands are equally wide: `mel` or `linear`.

    The mel scale is 2595 log10(1 + f / 700 Hz).
    """
    level: bool = True
    """Whether loudness counts; false: each window is scaled to the same power first."""


@section("data")
class Data:
    """Where the data come from, and how they become the arrays that the network takes.

    Images become [B, H, W, C] in [-1, 1], rows of sensors [B, D] or [B, T, D], and recordings [B, bands, frames, 1].
    """

    source: str = ""
    """Folder, file, or name of a data set: `tfds:NAME`, `mnist5k` or `elpv`.

    Files are npz, idx or array_record for images, csv or parquet for rows, and wav, flac and the like for sound.
    """
    kind: str = "auto"
    """Kind of data: `images`, `rows` of sensors, `sound`, or `auto`.

    With `auto`, csv and parquet files and arrays [N, D] are rows, wav, flac and the like are sound, and everything else
    is images. Arrays of windows [N, T, D] need `rows`, and arrays of recordings [N, S] need `sound`.
    """
    sound: Sound = dataclasses.field(default_factory=Sound)
    window: int = 0
    """Number of consecutive rows that are scored together; 0: each row by itself."""
    stride: int = 1
    """Rows from the start of one window to the next."""
    columns: str = ""
    """Names of the sensors, quoted as in a CSV file; empty: all numeric columns.

    With `-` before each name: all columns but these. For arrays: the names of their columns.
    """
    csv: str = "auto"
    """Format of ambiguous tables, such as `semicolon,decimal-comma` (docs/rows.md); `auto`: unknown."""
    missing: str = "refuse"
    """Treatment of missing sensor values: `refuse`, `last` or `mask`.

    `refuse` trains on no such row and gives it the verdict `invalid`; `last` repeats the value of the row before;
    `mask` takes the center of the sensor's range, which carries no information.
    """
    abnormal: str = ""
    """Class whose items are the anomalies; empty: the labels of the data decide."""
    height: int = 0
    """Height of the network's input in pixels, a power of two from 16 to 256; 0: automatic.

    Automatic is 32 where no image is larger than 32 pixels, and otherwise 64. For sound: frequency bands, by default
    32.
    """
    width: int = 0
    """Width of the network's input in pixels, a power of two from 16 to 256; 0: automatic.

    As `data.height`. For sound: frames, by default 32.
    """
    channels: int = 0
    """Channels of the network's input; 0: those of the data.

    A mixture of grey and colour images has 3. For rows: the number of sensors.
    """
    fit: str = "stretch"
    """How images of another size are resized: `stretch`, or `letterbox` (aspect ratio kept, padded)."""
    tile: int = 0
    """Side in pixels of square tiles that images are cut into: 16, 32, 64, 128 or 256; 0: no tiles.

    The network then takes tiles. `data.height` and `data.width` are those of the whole image, any number of at least
    one tile; 0: the median of the images.
    """
    overlap: float = 0.25
    """Overlap of neighbouring tiles: a share of their side below 1, or a number of pixels."""
    tile_score: str = "max"
    """Score of an image from those of its tiles: `max`, `mean`, or a quantile such as `0.9`."""
    low: float = 0.0
    """Pixel value that becomes -1; `low` and `high` both 0: automatic.

    Automatic is the range of the type for uint8 and uint16, and the smallest and largest value of the normal training
    images for floating point.
    """
    high: float = 0.0
    """Pixel value that becomes +1; `low` and `high` both 0: automatic."""
    test: float = 0.2
    """Share of the normal data held out for testing, where the data have no test part."""
    calibration: float = 0.1
    """Share of the normal training data held out for threshold and p-values; never trained on."""
    limit: int = 0
    """Train on at most this many normal items; 0: all."""
    stream: str = "auto"
    """Reading packed images and `tfds:NAME` on demand: `always`, `never` (in memory) or `auto`.

    `auto` reads them while needed if they would take more than a quarter of the free memory of host or device.
    """


@section("model")
class Model:
    """The detector and the size of its networks."""

    detector: str = "ganomaly"
    """Kind of detector: `ganomaly`, or `autoencoder`, which learns to undo noise and hidden patches."""
    latent_size: int = 100
    """Size of the latent vectors z and z_hat."""
    features: int = 64
    """Channels of the first convolution in generator and discriminator."""
    extra_layers: int = 0
    """Number of 3x3 convolutions added after the first layer, and mirrored in the decoder."""
    dtype: str = "float32"
    """Type that convolutions compute in: `float32` or `bfloat16`.

    Weights, statistics, losses and scores are float32 in either case.
    """
    embedding_size: int = 64
    """Size of the discriminator's embedding, used where `loss.contrast` is above 0."""
    exposure: bool = False
    """Whether the networks see brightness relative to the image's mean, so that lighting does not count.

    With brightness v and its mean m they see (v - m) / (v + m); images only.
    """
    network: str = "original"
    """Architecture: `original`, or `anomalib` in detectors imported from it, which cannot be trained."""
    noise: float = 0.2
    """Autoencoder: standard deviation of the Gaussian noise on its input, in units of [-1, 1]."""
    mask: float = 0.1
    """Autoencoder: share of its input that is hidden, in patches."""


@section("loss")
class Loss:
    """Weights of the losses.

    The generator's three are those of equation 4 of arXiv 1805.06725.
    """

    adversarial: float = 1.0
    """Weight of the adversarial loss (feature matching)."""
    contextual: float = 50.0
    """Weight of the contextual loss, the absolute error of the reconstruction."""
    encoder: float = 1.0
    """Weight of the encoder loss, the distance of the two latents."""
    contrast: float = 0.0
    """Weight of the discriminator's contrastive loss, recognising two views of an image; 0: none (the paper)."""
    temperature: float = 0.2
    """Temperature of the contrastive loss."""


@section("optimizer")
class Optimizer:
    """Adam, with the same settings for generator and discriminator."""

    learning_rate: float = 2e-4
    """Learning rate."""
    beta1: float = 0.5
    """Decay of Adam's mean of gradients."""
    beta2: float = 0.999
    """Decay of Adam's mean of squared gradients."""
    epsilon: float = 1e-8
    """Constant in Adam's denominator."""
    average: float = 0.0
    """Decay a step of the moving average of weights used for scoring; 0: the last weights (the paper).

    The decay is smaller in the first steps. Batch statistics are recomputed for the averaged weights at the end.
    """


@section("train")
class Train:
    """How long the training runs, and what it stores."""

    batch_size: int = 64
    """Items a step, over all devices; fewer if the training set is smaller than one batch."""
    epochs: int = 15
    """Passes over the training set."""
    steps: int = 0
    """Stop after this many steps; 0: after `train.epochs`."""
    save_every: int = 500
    """Largest number of steps that a crash can lose.

    A checkpoint is started at every multiple of it and halfway between, and is written while the training goes on.
    Another is written at the end, and at SIGINT or SIGTERM.
    """
    keep: int = 2
    """Number of recent checkpoints kept, besides the one with the lowest calibration loss."""
    choose: str = "last"
    """Step whose weights the detector gets: `last` (the paper), or `best`, with the lowest calibration loss."""
    log_every: int = 10
    """Steps averaged in one line of `history.jsonl`."""
    picture_every: int = 5
    """Epochs between pictures of x and x_hat; 0: none."""
    check_every: int = 0
    """Steps between checks of loss and training health on held-out normal data; 0: automatic.

    Automatic is once an epoch, but not more often than every 100 steps. Each check is a line of `history.jsonl`.
    """
    patience: int = 0
    """Stop after this many checks without a lower loss on the calibration data; 0: never."""
    shift: int = 0
    """Augmentation: move each image by up to this many pixels in both directions, edges repeated; 0: off."""
    flip: bool = False
    """Augmentation: mirror each image left to right with probability 1/2."""


@section("mesh")
class Mesh:
    """The devices that the training uses."""

    devices: int = 0
    """Number of local devices to use; 0: all.

    One model spreads each batch over them; the members of a sweep are distributed among them.
    """
    transform: str = "shard_map"
    """How a step is parallelised: `shard_map`, or `pmap`, which is older and for a single process."""
    batch_norm_group: int = 0
    """Number of devices that share batch statistics; 0: all; 1: each has its own.

    With 1 and 64 images a device, batch norm normalises as in the paper.
    """
    shard_from: int = 0
    """Shard weights and optimizer states of arrays with at least this many elements; 0: replicate all."""


@section("members")
class Members:
    """Independent models that are trained together, one for each class and seed; both empty: a single model."""

    classes: str = ""
    """Classes that are anomalous in turn, separated by commas, or `all`; empty: `data.abnormal` alone."""
    seeds: str = ""
    """Seeds separated by commas, such as `0,1,2`; empty: `seed` alone."""


@section("evaluate")
class Evaluate:
    """Scores, threshold, and what the report shows."""

    score: str = "squared"
    """Anomaly score: `squared`, `l1`, or others and their sums, such as `latent_density+pixel`.

    `squared` is the mean squared difference of the two latents (the original code), `l1` the mean absolute difference
    (the paper). For the autoencoder they are the errors of the reconstruction. docs/scores.md has the others.
    """
    false_positive_rate: float = 0.01
    """Share of normal data that may be flagged; the threshold follows from the calibration data."""
    threshold_by: str = "rate"
    """Method that sets the threshold: `rate`, `quantile`, `tail` or `given`.

    `rate` is `evaluate.false_positive_rate`, `quantile` is `evaluate.quantile` of the calibration scores, `tail`
    extrapolates the rate by a generalised Pareto fit to the highest of them, and `given` is `evaluate.threshold`.
    """
    quantile: float = 0.99
    """Share of the calibration scores below the threshold, with `threshold_by=quantile`."""
    threshold: float = 0.0
    """The threshold itself, with `threshold_by=given`."""
    review: float = 0.0
    """Give the verdict `review` to p-values up to this that are not anomalous; 0: never."""
    worst: int = 4
    """Number of worst false positives, and of worst false negatives, that get a picture."""
    baselines: str = ""
    """Statistical baselines to compare with, separated by commas, or `all`; empty: none.

    `pca_t2`, `pca_q`, `mahalanobis`, `neighbours` and `forest`, fitted on the training data.
    """
    combine: str = "mean,maximum,stouffer"
    """How detector and baselines are combined, where there are baselines; empty: not at all."""
    components: float = 0.9
    """Principal components of the baselines: the share of variance they explain if below 1, else their number."""


@section("")
class Config:
    """The configuration of a run."""

    seed: int = 0
    """Seed of weights, split, order of batches and augmentation."""
    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    loss: Loss = dataclasses.field(default_factory=Loss)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    train: Train = dataclasses.field(default_factory=Train)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    members: Members = dataclasses.field(default_factory=Members)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)


SOUND_SCALES = ("mel", "linear")

# Values of `model.detector`, and their names in texts.
DETECTORS = {"ganomaly": "GANomaly", "autoencoder": "Denoising autoencoder"}

# Values of `evaluate.baselines` and `evaluate.combine`.
BASELINES = ("pca_t2", "pca_q", "mahalanobis", "neighbours", "forest")
COMBINATIONS = ("mean", "maximum", "stouffer")

# Values of `evaluate.score`; `scores.PARTS` computes them.
SCORES = (
    *("squared", "l1", "pixel", "multiscale", "residual_mahalanobis", "residual_local"),
    *("latent_mahalanobis", "latent_neighbours", "latent_density", "latent_angle", "latent_angular_density"),
    *("embedding_mahalanobis", "embedding_neighbours", "embedding_density", "embedding_angle"),
    "embedding_angular_density",
    *("patches_small", "patches_medium", "patches_whole", "components"),
    *("efficientnet_patches", "efficientnet_angle"),
)

RESIDUAL = 2048
"""Largest number of values of an input whose residual gets a covariance: its matrix then has 16 MB."""


def input_shape(data: Data) -> tuple[int, ...]:
    """Returns the shape of one input of the network, from the sizes in a resolved configuration.

    Returns:
      (H, W, C) for images or their tiles, (bands, frames, 1) for sound, (T, D) for windows of T = `data.window` rows
      with D = `data.channels` sensors, or (D,) for single rows.
    """
    if data.tile or data.height or data.width:
        return data.tile or data.height, data.tile or data.width, data.channels
    return (data.window, data.channels) if data.window else (data.channels,)


def residual_down(shape: tuple[int, ...]) -> int:
    """Returns the factor by which residuals of `shape` (H, W, C) are averaged down for a covariance; 1 for rows."""
    down = 1
    while len(shape) == 3 and math.prod(shape) > RESIDUAL * down**2 and not any(n % (2 * down) for n in shape[:2]):
        down *= 2
    return down


def score_parts(config: Config) -> tuple[str, ...]:
    """Returns the names joined by `+` in `evaluate.score`; a repeated name counts as often as it is repeated."""
    return tuple(word.strip() for word in config.evaluate.score.split("+"))


def words(text: str, known: Sequence[str], key: str) -> tuple[str, ...]:
    """Returns the words of a comma-separated list, each once.

    Args:
      text: the list; empty for no words.
      known: the words that may occur.
      key: name of the option, for the message.

    Raises:
      UserError: a word is unknown.
    """
    unique = tuple(dict.fromkeys(word.strip() for word in text.split(","))) if text.strip() else ()
    for word in unique:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]
            raise UserError(
                f"{key}={text!r}: {word!r} is unknown, the nearest is {near!r}; expected some of {', '.join(known)}, "
                "separated by commas"
            )
    return unique
