"""Checks of a configuration: before anything is loaded, and once the size of the data is known."""

from __future__ import annotations

import dataclasses
import difflib
import math

from ganomaly_jax.core import features, members
from ganomaly_jax.core.config import (
    BASELINES,
    COMBINATIONS,
    DETECTORS,
    RESIDUAL,
    SCORES,
    SOUND_SCALES,
    Config,
    Data,
    Loss,
    Sound,
    input_shape,
    residual_down,
    score_parts,
    words,
)
from ganomaly_jax.core.config_values import flatten, to_dict
from ganomaly_jax.core.errors import UserError

MOST_TILES = 2**14
"""Largest number of tiles of an image; a program for more takes minutes to compile."""
# The smallest and largest sizes of networks.
_SIZES = {
    "model.latent_size": (1, 2**16),
    "model.features": (1, 2**14),
    "model.extra_layers": (0, 64),
    "model.embedding_size": (1, 2**16),
}
# Keys that only one detector uses; with another they would be ignored silently.
_ONLY_OF = {
    "ganomaly": (*(f"loss.{field.name}" for field in dataclasses.fields(Loss)), "model.embedding_size"),
    "autoencoder": ("model.noise", "model.mask"),
}


def check(config: Config) -> None:
    """Checks the values of a configuration, before anything is loaded.

    Raises:
      UserError: a value cannot work; names the key, the value and what is expected.
    """

    def refuse_unless(valid: bool, path: str, expected: str) -> None:
        if not valid:
            raise UserError(f"{path}={flatten(to_dict(config))[path]!r}: expected {expected}")

    tile, one_model = config.data.tile, not members.requested(config)
    refuse_unless(tile in (0, 16, 32, 64, 128, 256), "data.tile", "16, 32, 64, 128, 256, or 0 for no tiles")
    refuse_unless(not tile or one_model, "data.tile", "0, because members are trained on whole images")
    refuse_unless(
        0 <= config.data.overlap < (tile or 256),
        "data.overlap",
        "a share below 1, or a number of pixels below data.tile",
    )
    refuse_unless(_combines(config.data.tile_score), "data.tile_score", "'max', 'mean', or a share from 0 to 1")
    for name in ("height", "width"):
        side = getattr(config.data, name)
        if tile:
            refuse_unless(side == 0 or tile <= side <= 2**14, f"data.{name}", f"{tile} (data.tile) to 16384, or 0")
        else:
            expected = "16, 32, 64, 128, 256, or 0 for automatic; larger images are cut into tiles by data.tile"
            refuse_unless(side in (0, 16, 32, 64, 128, 256), f"data.{name}", expected)
    refuse_unless(
        0 <= config.data.channels <= 2**20, "data.channels", "up to 1,048,576 channels, or 0 for those of the data"
    )
    _check_sound(config.data.sound)
    refuse_unless(
        config.data.window == 0 or 4 <= config.data.window <= 4096,
        "data.window",
        "4 to 4096 rows, or 0 for single rows",
    )
    refuse_unless(config.data.stride >= 1, "data.stride", "at least 1")
    refuse_unless(config.data.missing in ("refuse", "last", "mask"), "data.missing", "'refuse', 'last' or 'mask'")
    refuse_unless(config.data.fit in ("stretch", "letterbox"), "data.fit", "'stretch' or 'letterbox'")
    refuse_unless(
        config.data.low < config.data.high or config.data.low == config.data.high == 0,
        "data.high",
        "more than data.low",
    )
    refuse_unless(0 < config.data.test < 1, "data.test", "a share between 0 and 1")
    refuse_unless(0 <= config.data.calibration < 1, "data.calibration", "a share from 0 to below 1")
    refuse_unless(config.data.limit >= 0, "data.limit", "a number of items, or 0 for all")
    refuse_unless(config.data.stream in ("auto", "always", "never"), "data.stream", "'auto', 'always' or 'never'")
    refuse_unless(
        config.data.stream != "always" or one_model,
        "data.stream",
        "'never', because members share the data in memory",
    )
    refuse_unless(config.model.detector in DETECTORS, "model.detector", f"one of {', '.join(DETECTORS)}")
    refuse_unless(0 <= config.model.noise < float("inf"), "model.noise", "a standard deviation of 0 or more")
    refuse_unless(0 <= config.model.mask < 1, "model.mask", "a share from 0 to below 1")
    _check_own(config)
    for path, (least, most) in _SIZES.items():
        refuse_unless(least <= flatten(to_dict(config))[path] <= most, path, f"from {least} to {most:,}")
    refuse_unless(config.model.dtype in ("float32", "bfloat16"), "model.dtype", "'float32' or 'bfloat16'")
    refuse_unless(
        config.model.network == "original", "model.network", "'original'; 'anomalib' is for imported weights only"
    )
    refuse_unless(config.optimizer.learning_rate > 0, "optimizer.learning_rate", "more than 0")
    for name in ("beta1", "beta2"):
        refuse_unless(0 <= getattr(config.optimizer, name) < 1, f"optimizer.{name}", "from 0 to below 1")
    refuse_unless(config.train.batch_size >= 2, "train.batch_size", "at least 2, because batch norm needs a variance")
    for path in ("train.epochs", "train.save_every", "train.keep", "train.log_every"):
        refuse_unless(flatten(to_dict(config))[path] >= 1, path, "at least 1")
    refuse_unless(config.train.choose in ("last", "best"), "train.choose", "'last' or 'best'")
    refuse_unless(config.mesh.transform in ("shard_map", "pmap"), "mesh.transform", "'shard_map' or 'pmap'")
    for path in (
        *("train.steps", "train.picture_every", "train.check_every", "train.patience", "evaluate.worst"),
        *("mesh.devices", "mesh.batch_norm_group", "mesh.shard_from"),
    ):
        refuse_unless(flatten(to_dict(config))[path] >= 0, path, "0 or more")
    refuse_unless(
        not config.train.patience or config.data.calibration > 0,
        "train.patience",
        "0, or data.calibration above 0, because the checks use the calibration data",
    )
    refuse_unless(
        not config.train.patience or one_model,
        "train.patience",
        "0, because members cannot be stopped one by one",
    )
    # A side that is chosen automatically is at least 32 pixels.
    room = (tile or min(config.data.height or 32, config.data.width or 32)) // 2
    refuse_unless(0 <= config.train.shift < room, "train.shift", f"from 0 to {room - 1} pixels, less than half a side")
    check_score(config)
    words(config.evaluate.baselines, ("all", *BASELINES), "evaluate.baselines")
    words(config.evaluate.combine, COMBINATIONS, "evaluate.combine")
    refuse_unless(config.evaluate.components > 0, "evaluate.components", "a share below 1, or a number from 1")
    for path in ("loss.adversarial", "loss.contextual", "loss.encoder", "loss.contrast"):
        refuse_unless(flatten(to_dict(config))[path] >= 0, path, "0 or more")
    refuse_unless(config.loss.temperature > 0, "loss.temperature", "more than 0")
    refuse_unless(0 <= config.optimizer.average < 1, "optimizer.average", "from 0 to below 1")
    rate = config.evaluate.false_positive_rate
    refuse_unless(0 < rate < 1, "evaluate.false_positive_rate", "a rate between 0 and 1")
    ways = ("rate", "quantile", "tail", "given")
    refuse_unless(config.evaluate.threshold_by in ways, "evaluate.threshold_by", f"one of {', '.join(ways)}")
    refuse_unless(0 < config.evaluate.quantile <= 1, "evaluate.quantile", "a share above 0 up to 1")
    refuse_unless(abs(config.evaluate.threshold) < float("inf"), "evaluate.threshold", "a finite number")
    refuse_unless(0 <= config.evaluate.review < 1, "evaluate.review", "a rate from 0 to below 1, where 0 means never")
    members.seeds(config)
    classes = members.classes(config)
    refuse_unless(len(set(classes)) == len(classes) and "" not in classes, "members.classes", "different names")


def check_stored(config: Config) -> None:
    """Checks the values of a detector's configuration, as `check`; it may be of an imported network.

    Raises:
      UserError: as `check`.
    """
    if config.model.network == "anomalib":
        config = dataclasses.replace(config, model=dataclasses.replace(config.model, network="original"))
    check(config)


def check_shape(config: Config) -> None:
    """Checks that the score can be computed for inputs of the resolved shape, and the number of their tiles.

    Raises:
      UserError: it cannot; the message names the score and what would work.
    """
    shape, names, tiles = input_shape(config.data), score_parts(config), _tile_count(config.data)
    if tiles > MOST_TILES:
        raise UserError(
            f"data.tile={config.data.tile}, data.overlap={config.data.overlap:g}: an image of {config.data.height} x "
            f"{config.data.width} pixels becomes {tiles:,} tiles, expected at most {MOST_TILES:,}; use larger tiles, "
            "less overlap or smaller images"
        )
    of_images = [name for name in names if name.startswith(("patches", "components")) or features.of_score(name)[0]]
    if of_images and len(shape) != 3:
        raise UserError(
            f"evaluate.score={config.evaluate.score!r}: {of_images[0]} is for images [H, W, C], but the "
            f"networks take inputs of shape {shape}; expected a score without {of_images[0]}, such as pixel or "
            "residual_mahalanobis"
        )
    residuals = [name for name in names if name.startswith("residual")]
    if residuals and math.prod(shape) > RESIDUAL * residual_down(shape) ** 2:
        raise UserError(
            f"evaluate.score={config.evaluate.score!r}: {residuals[0]} is for inputs of up to {RESIDUAL:,} numbers, "
            f"these have {' x '.join(map(str, shape))} = {math.prod(shape):,}; expected smaller ones, a shorter "
            "data.window, or another score, such as pixel or multiscale"
        )


def _tile_count(data: Data) -> int:
    """Returns the number of tiles of an image of the resolved size; 0 without tiles."""
    if not data.tile:
        return 0
    step = max(data.tile - round(data.overlap * data.tile if data.overlap < 1 else data.overlap), 1)
    return math.prod(-(-(side - data.tile) // step) + 1 for side in (data.height, data.width))


def _combines(word: str) -> bool:
    """Returns whether a word names a way to combine the scores of tiles."""
    try:
        return word in ("max", "mean") or 0 <= float(word) <= 1
    except ValueError:
        return False


def _check_own(config: Config) -> None:
    """Refuses values for keys that the chosen detector does not use, unless they are the defaults."""
    values, defaults = flatten(to_dict(config)), flatten(to_dict(Config()))
    for owner, paths in _ONLY_OF.items():
        for path in paths if owner != config.model.detector else ():
            if values[path] != defaults[path]:
                raise UserError(
                    f"{path}={values[path]!r} is for model.detector={owner!r}, {config.model.detector!r} ignores it: "
                    f"expected {defaults[path]!r}, its default, or the other detector"
                )


def check_score(config: Config) -> None:
    """Checks that the detector can compute the parts of the score.

    Raises:
      UserError: a name is not a score, or the detector cannot compute it.
    """
    setting = f"evaluate.score={config.evaluate.score!r}"
    for name in score_parts(config):
        known = features.all_scores()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            raise UserError(
                f"{setting}: {name!r} is not a score, the nearest is {near!r}; expected one or several of "
                f"{', '.join(known)}, joined by +. Scores of custom features must first be "
                "registered with ganomaly_jax.register_features"
            )
        if name.startswith("embedding") and config.model.detector != "ganomaly":
            raise UserError(
                f"{setting}: {name} needs a discriminator's embedding, and model.detector={config.model.detector!r} "
                f"has none; expected some of {', '.join(s for s in SCORES if not s.startswith('embedding'))}"
            )
        if name.startswith("embedding") and not config.loss.contrast:
            raise UserError(
                f"{setting}: {name} needs the discriminator's embedding, which loss.contrast=0 leaves out; "
                "expected loss.contrast above 0, such as 1"
            )


def _check_sound(sound: Sound) -> None:
    """Refuses values that cannot work for any recordings."""
    for name in ("rate", "channel", "frame", "hop", "stride", "low", "high"):
        value = getattr(sound, name)
        if not (math.isfinite(value) and value >= 0):
            raise UserError(f"data.sound.{name}={value!r}: expected a number of at least 0, where 0 means automatic")
    if sound.scale not in SOUND_SCALES:
        raise UserError(f"data.sound.scale={sound.scale!r}: expected {' or '.join(SOUND_SCALES)}")
    if sound.high and sound.high <= sound.low:
        raise UserError(f"data.sound.high={sound.high:g}: expected more than data.sound.low={sound.low:g} Hz, or 0")
