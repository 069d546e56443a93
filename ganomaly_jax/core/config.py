"""Every default of the project, once, with its unit. Plain dataclasses; `configs/*.py` return a `Config`.

The stored form is `config.json` in a run's folder: `to_dict` and `from_dict` turn one into the other.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import re
from collections.abc import Sequence

from ganomaly_jax.core.errors import UserError


@dataclasses.dataclass
class Sound:
    """How recordings become windows, what is judged together, and windows images: `data.height` bands of frequency,
    `data.width` frames."""

    rate: int = 0
    """Samples a second, Hz, that all recordings are brought to; 0: their own, of several the lowest. Of arrays: theirs,
    and has to be given."""
    channel: int = 0
    """The channel that is listened to, counted from 1; 0: the mean of all."""
    frame: float = 0.0
    """Seconds that a frame of the spectrogram looks at; 0: about 0.064, a power of two of samples; where that leaves
    fewer than 1,000 normal windows, shorter, down to an eighth; longer where a band would hold no frequency."""
    hop: float = 0.0
    """Seconds from frame to frame; 0: half of `frame`."""
    stride: float = 0.0
    """Seconds from the beginning of one window to that of the next; 0: half a window, down to an eighth of it where
    that leaves fewer than 1,000 normal windows."""
    low: float = 0.0
    """Hz at which the first band begins."""
    high: float = 0.0
    """Hz at which the last one ends; 0: half of `rate`."""
    scale: str = "mel"
    """Bands are equally wide on the mel scale, 2595 log10(1 + f / 700 Hz), or on a `linear` one, in Hz."""
    level: bool = True
    """Loudness counts; false: each window is brought to the same power first."""


@dataclasses.dataclass
class Data:
    """Where images come from and how they become `[B, H, W, C]` in [-1, 1]; or rows of sensors, and `[B(, T), D]`; or
    recordings of sound, and `[B, bands, frames, 1]`."""

    source: str = ""
    """A folder, a file (npz, idx, array_record; csv, parquet; wav, flac), `tfds:NAME`, `mnist5k` or `elpv`."""
    kind: str = "auto"
    """What the data are: `images`, `rows` of sensors, or `sound`; `auto`: rows where they come as csv, parquet or an
    array [N, D], sound where they come as wav, flac and the like, otherwise images. An array [N, T, D] of windows has
    to be called `rows`, one [N, S] of recordings `sound`."""
    sound: Sound = dataclasses.field(default_factory=Sound)
    window: int = 0
    """Rows, one after the other, that are judged together; 0: each row by itself."""
    stride: int = 1
    """Rows from the beginning of one window to that of the next."""
    columns: str = ""
    """Names of the sensors, with commas between, quoted as in a CSV file; each with - before it: all but these; empty:
    all columns of numbers. Of an array: what its columns are called."""
    missing: str = "refuse"
    """What becomes of a missing value of a sensor: `refuse` (no training on it, and a verdict `invalid`), `last` (the
    value of the row before it), `mask` (the sensor's centre, which says nothing)."""
    abnormal: str = ""
    """Class whose images are the anomalies; empty: the labels that the source itself has."""
    height: int = 0
    """Pixels, a power of two from 16 to 256; 0: 32 where no image is larger than 32, otherwise 64. Of sound: bands of
    frequency; 0: 32."""
    width: int = 0
    """Pixels, as `height`. Of sound: frames; 0: 32."""
    channels: int = 0
    """Channels of the network's input; 0: those of the data (3 where grey and colour are mixed). Of rows: sensors."""
    fit: str = "stretch"
    """How an image of another size is brought to height x width: `stretch` or `letterbox` (aspect kept, padded)."""
    tile: int = 0
    """Side in pixels of the square tiles that images of height x width are cut into, the network's input: 16, 32, 64,
    128 or 256. Height and width may then be any from that on, 0: the median of the images' own. 0: no tiles."""
    overlap: float = 0.25
    """Of neighbouring tiles: below 1 a share of their side, otherwise pixels."""
    tile_score: str = "max"
    """The score of an image from its tiles': `max`, `mean`, or a share such as `0.9`, that quantile of them."""
    low: float = 0.0
    """Pixel value that becomes -1. With low = high = 0: the range of the type (uint8, uint16), or, for floating
    point, the smallest and largest value of the normal training images."""
    high: float = 0.0
    """Pixel value that becomes +1."""
    test: float = 0.2
    """Share of the normal images kept for the test set, where the source has no split of its own."""
    calibration: float = 0.1
    """Share of the normal training images set aside for threshold and p-values; never trained on."""
    limit: int = 0
    """Train on at most this many normal images; 0: on all."""
    stream: str = "auto"
    """Pixels of packed images and tfds:NAME are in memory (`never`), or read while they are needed (`always`); `auto`:
    read where they would take more than a quarter of the free memory of the host or the device."""


@dataclasses.dataclass
class Model:
    """Size of the networks."""

    detector: str = "ganomaly"
    """`ganomaly`, or `autoencoder`, which is taught to undo noise and hidden patches."""
    latent_size: int = 100
    features: int = 64
    """Channels of the first convolution, of the generator and of the discriminator."""
    extra_layers: int = 0
    """3x3 convolutions added after the first layer (and mirrored in the decoder)."""
    dtype: str = "float32"
    """What the convolutions compute in: `float32` or `bfloat16`; weights, statistics, losses and scores are float32."""
    embedding_size: int = 64
    """Outputs of the discriminator's second head, which is there where `loss.contrast` is above 0."""
    exposure: bool = False
    """Whether the networks see the brightness v of an image relative to its mean m, (v - m) / (v + m), so that lamp,
    exposure or current do not count (`exposure.py`); images only."""
    network: str = "original"
    """`original`; a detector with weights of anomalib has `anomalib`, which is not for training."""
    noise: float = 0.2
    """Of the autoencoder: standard deviation of the Gaussian noise on what it is given, in units of [-1, 1]."""
    mask: float = 0.1
    """Of the autoencoder: share of what it is given that is hidden, in patches (`corruption.corrupt`)."""


@dataclasses.dataclass
class Loss:
    """Weights of the generator's three losses (equation 4 of arXiv 1805.06725), and of one of the discriminator's."""

    adversarial: float = 1.0
    contextual: float = 50.0
    encoder: float = 1.0
    contrast: float = 0.0
    """Of the discriminator's recognising two views of the same image (`losses.contrast`); 0: not asked (the paper)."""
    temperature: float = 0.2
    """Of that loss."""


@dataclasses.dataclass
class Optimizer:
    """Adam, the same for generator and discriminator."""

    learning_rate: float = 2e-4
    beta1: float = 0.5
    beta2: float = 0.999
    epsilon: float = 1e-8
    average: float = 0.0
    """Weights that score are an exponential moving average with this decay a step, a smaller one in the first steps,
    batch norm's statistics of the end taken afresh for them; 0: the last weights with their running statistics (the
    paper)."""


@dataclasses.dataclass
class Train:
    """Length of the training and what is kept of it."""

    batch_size: int = 64
    """Images a step over all devices; fewer where the training part is smaller than one batch."""
    epochs: int = 15
    steps: int = 0
    """Stop after this many steps; 0: after `epochs`."""
    save_every: int = 500
    """Steps that a kill costs at most: a checkpoint is begun at every multiple and half-way between, and written while
    the steps go on, the next waiting for it; one more is written at the end and at SIGINT or SIGTERM."""
    keep: int = 2
    """Last checkpoints kept; the one that reconstructs the calibration images best is kept beside them."""
    choose: str = "last"
    """The step whose weights the detector gets: `last` (the paper), or `best`, that kept one."""
    log_every: int = 10
    """Steps that one line of `history.jsonl` averages over."""
    picture_every: int = 5
    """Epochs between pictures of x and x_hat; 0: none."""
    check_every: int = 0
    """Steps between looks at normal images, held-out ones where there are any: their loss and the health of the
    training, a line each in `history.jsonl`; 0: every epoch, and at least 100."""
    patience: int = 0
    """Stop once so many looks have passed without a smaller loss on the calibration images; 0: never."""
    shift: int = 0
    """Pixels by which each image is moved at random, up to so many in both directions, edges repeated; 0: not."""
    flip: bool = False
    """Mirror each image left-right with probability 1/2."""


@dataclasses.dataclass
class Mesh:
    """The devices that a batch is spread over."""

    devices: int = 0
    """Local devices to use; 0: all of them. One model spreads each batch over them; members are dealt out."""
    transform: str = "shard_map"
    """How the step is spread: `shard_map`, or `pmap`, its elder (within one process)."""
    batch_norm_group: int = 0
    """Devices that pool their batches for batch norm; 0: all of them; 1: each its own, so that with 64 images a device
    it normalises as the paper does."""
    shard_from: int = 0
    """Weights and optimiser states of arrays with at least so many elements are divided over the devices; 0: each
    device holds all of them."""


@dataclasses.dataclass
class Members:
    """Independent models that are trained together, one for each class and seed; both empty: one model."""

    classes: str = ""
    """Classes that are abnormal in turn, with commas between, or `all`, whatever `data.abnormal` says; empty: that."""
    seeds: str = ""
    """Seeds with commas between, such as 0,1,2; empty: `seed` alone."""


@dataclasses.dataclass
class Evaluate:
    """Scores, threshold and what is shown."""

    score: str = "squared"
    """Distance of the two latents: `squared` (mean over the latent, the original code) or `l1` (the paper); or others,
    and sums of several, such as `latent_density+pixel`, see `scores.PARTS`. Of the autoencoder `squared` and `l1` are
    the mean squared and absolute error of the reconstruction."""
    false_positive_rate: float = 0.01
    """Share of normal images that may be flagged; the threshold follows from the calibration part."""
    threshold_by: str = "rate"
    """What sets the threshold: `rate`, the one above; `quantile`, that of the calibration scores; `tail`, the rate by
    a generalised Pareto fit to the highest of them, an extrapolation; `given`."""
    quantile: float = 0.99
    """Share of the calibration scores below the threshold, with `quantile`."""
    threshold: float = 0.0
    """The threshold, with `given`."""
    review: float = 0.0
    """Images that are not anomalous and have a p-value up to this get the verdict `review`; 0: none."""
    worst: int = 4
    """Worst false positives and as many worst false negatives that get a picture each."""
    partners: str = ""
    """Statistical detectors to compare with, fitted on the training part: `pca_t2`, `pca_q`, `mahalanobis`,
    `neighbours`, `forest` with commas between, or `all`; empty: none."""
    combine: str = "mean,maximum,stouffer"
    """How detector and partners are combined, where there are some; empty: not."""
    components: float = 0.9
    """Of the partners' PCA: below 1, the share of the variance that they reach; from 1, their number."""


@dataclasses.dataclass
class Config:
    """A whole run."""

    seed: int = 0
    """Weights, split, order of batches and augmentation follow from it."""
    data: Data = dataclasses.field(default_factory=Data)
    model: Model = dataclasses.field(default_factory=Model)
    loss: Loss = dataclasses.field(default_factory=Loss)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    train: Train = dataclasses.field(default_factory=Train)
    mesh: Mesh = dataclasses.field(default_factory=Mesh)
    members: Members = dataclasses.field(default_factory=Members)
    evaluate: Evaluate = dataclasses.field(default_factory=Evaluate)


SOUND_SCALES = ("mel", "linear")

# A run may go on with other values of these: they change how long it trains, what it keeps and what is shown of it,
# never what a step computes.
MAY_CHANGE = frozenset(
    {"train.epochs", "train.steps", "train.save_every", "train.keep", "train.choose", "train.log_every"}
    | {"train.picture_every", "train.check_every", "train.patience"}
    | {"mesh.devices", "mesh.transform", "mesh.shard_from"}
    | {"data.source"}  # moved data are the same data: their hash is compared
    | {"data.stream"}
    | {f"evaluate.{field.name}" for field in dataclasses.fields(Evaluate) if field.name != "score"}
)

# What `model.detector` may name, and its name in words.
DETECTORS = {"ganomaly": "GANomaly", "autoencoder": "Denoising autoencoder"}

# What `evaluate.partners` and `evaluate.combine` may name.
PARTNERS = ("pca_t2", "pca_q", "mahalanobis", "neighbours", "forest")
COMBINATIONS = ("mean", "maximum", "stouffer")

# What `evaluate.score` may name; `scores.PARTS` computes them.
SCORES = (
    *("squared", "l1", "pixel", "multiscale", "residual_mahalanobis", "residual_local"),
    *("latent_mahalanobis", "latent_neighbours", "latent_density", "latent_angle", "latent_angular_density"),
    *("embedding_mahalanobis", "embedding_neighbours", "embedding_density", "embedding_angle"),
    "embedding_angular_density",
    *("patches_small", "patches_medium", "patches_whole", "components"),
)

RESIDUAL = 2048
"""Numbers of an input, at most, whose residual has a covariance: its matrix is 16 MB then."""


def input_shape(data: Data) -> tuple[int, ...]:
    """What a network takes, as a resolved configuration says.

    (H, W, C) of images or their tiles, (bands, frames, 1) of sound, (D,) of rows or (T, D) of windows of them.
    """
    if data.kind != "rows":
        return data.tile or data.height, data.tile or data.width, data.channels
    return (data.window, data.channels) if data.window else (data.channels,)


def residual_down(shape: tuple[int, ...]) -> int:
    """By how much images of `shape` (H, W, C) are averaged down before their residual has a covariance; 1 for rows."""
    down = 1
    while len(shape) == 3 and math.prod(shape) > RESIDUAL * down**2 and not any(n % (2 * down) for n in shape[:2]):
        down *= 2
    return down


def items(data: Data) -> str:
    """What one of the data is called, in the plural."""
    if data.kind not in ("rows", "sound"):
        return "images"
    return "windows" if data.window or data.kind == "sound" else "rows"


def in_words(data: Data, text: str) -> str:
    """A sentence on images as one on what the data are."""
    if data.kind not in ("rows", "sound"):
        return text
    text = re.sub(r"(?<![\w/-])images(?![\w/-])", items(data), text)
    text = re.sub(r"(?<![\w/-])image(?![\w/-])", items(data)[:-1], text)
    return text.replace("NaN or infinite pixels", "missing or infinite values").replace("picture for all", "for all")


def score_parts(config: Config) -> tuple[str, ...]:
    """The names that `evaluate.score` joins by `+`; one may stand several times, and then counts so often."""
    return tuple(word.strip() for word in config.evaluate.score.split("+"))


def words(given: str, known: Sequence[str], key: str) -> tuple[str, ...]:
    """Words with commas between, each once; none where nothing is given.

    Raises:
      UserError: one that is not known.
    """
    found = tuple(dict.fromkeys(word.strip() for word in given.split(","))) if given.strip() else ()
    for word in found:
        if word not in known:
            near = difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]
            raise UserError(
                f"{key}={given!r}: {word!r} is unknown, the nearest is {near!r}; wanted some of {', '.join(known)} "
                "with commas between"
            )
    return found


def has_members(config: Config) -> bool:
    """Whether it asks for several models."""
    return bool(config.members.classes or config.members.seeds)


def member_classes(config: Config) -> list[str]:
    """The words of `members.classes`; `["all"]` is left to the data."""
    return [word.strip() for word in config.members.classes.split(",")] if config.members.classes else []


def member_seeds(config: Config) -> list[int]:
    """The seeds of the members.

    Raises:
      UserError: `members.seeds` holds something else than numbers from 0 to 2**32 - 1, or one of them twice.
    """
    if not config.members.seeds:
        return [config.seed]
    try:
        seeds = [int(word) for word in config.members.seeds.split(",")]
    except ValueError:
        seeds = []
    if not seeds or len(set(seeds)) < len(seeds) or not all(0 <= seed < 2**32 for seed in seeds):
        raise UserError(
            f"members.seeds={config.members.seeds!r}: wanted different numbers from 0 to {2**32 - 1} with commas "
            "between, such as 0,1,2"
        )
    return seeds
