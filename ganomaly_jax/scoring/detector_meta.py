"""The metadata of a stored detector, `meta.json`: its contents, and the checks of untrusted values."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from ganomaly_jax.core import config_values, validation
from ganomaly_jax.core.config import Config, input_shape
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.scoring.calibration import Calibration

FORMAT = 1
_REQUIRED = frozenset({"format", "config", "dtype", "low", "high", "calibration", "residual_max", "provenance"})
_OPTIONAL = frozenset({"map_threshold", "columns"})


@dataclasses.dataclass(frozen=True)
class Meta:
    """Holds the fields of a `Scorer` that are not arrays, under the names that they have there."""

    config: Config
    dtype: str
    low: float | tuple[float, ...]
    high: float | tuple[float, ...]
    calibration: Calibration
    residual_max: float
    map_threshold: float
    provenance: dict[str, Any]
    feature_names: tuple[str, ...]


def to_dict(meta: Any) -> dict[str, Any]:
    """Returns metadata as stored, from a `Meta` or anything else with its fields, such as a `Scorer`."""
    return {
        "format": FORMAT,
        "config": config_values.to_dict(meta.config),
        "dtype": meta.dtype,
        "low": meta.low,
        "high": meta.high,
        "calibration": dataclasses.asdict(meta.calibration),
        "residual_max": meta.residual_max,
        "map_threshold": meta.map_threshold,
        "provenance": meta.provenance,
        **({"columns": meta.feature_names} if meta.feature_names else {}),
    }


def config_of(values: Any) -> Config:
    """Returns the configuration in stored metadata after checking format, keys and types.

    Raises:
      UserError: one of them is wrong.
    """
    values = _of_type(values, dict, "it")
    if values.get("format") != FORMAT or isinstance(values["format"], bool):
        raise UserError(f"its format is {values.get('format')!r:.50}, but this version reads {FORMAT}")
    _check_keys(values, _REQUIRED, _OPTIONAL, "")
    defaults = config_values.flatten(config_values.to_dict(Config()))
    stored = _of_type(values["config"], dict, "config")
    for path, value in config_values.flatten(stored).items():
        expected = type(defaults.get(path, value))
        if type(value) is not expected and not (expected is float and type(value) is int):
            raise UserError(f"{path} is {value!r:.50}, expected a {expected.__name__}")
    return config_values.from_dict(stored)


def from_dict(values: Any) -> Meta:
    """Returns stored metadata after checking every value; the inverse of `to_dict`.

    Raises:
      UserError: the format is unknown, or an entry is missing, unknown, of the wrong type or out of range.
    """
    config = config_of(values)
    validation.check_stored(config)
    validation.check_shape(config)
    dtype = _of_type(values["dtype"], str, "dtype")
    if dtype not in _DTYPES:
        raise UserError(f"dtype is {dtype!r:.50}, expected one of {', '.join(_DTYPES)}")
    low, high, names = values["low"], values["high"], _of_type(values.get("columns", []), list, "columns")
    shape, data = input_shape(config.data), config.data
    ranges = data.height if data.kind == "sound" else shape[-1] if len(shape) < 3 else 0
    low, high = _range(low, ranges, "low"), _range(high, ranges, "high")
    if not np.all(np.asarray(low) < np.asarray(high)):
        raise UserError("low is not below high")
    if len(names) not in (0, shape[-1]):
        raise UserError(f"columns has {len(names)} names of features, but its inputs have {shape[-1]}")
    residual_max = _number(values["residual_max"], "residual_max")
    return Meta(
        config,
        dtype,
        low,
        high,
        _calibration(_of_type(values["calibration"], dict, "calibration")),
        residual_max,
        # Older detectors store only the quantile of the differences on one scale, which is seldom smaller.
        _number(values.get("map_threshold", residual_max), "map_threshold"),
        _of_type(values["provenance"], dict, "provenance"),
        tuple(_of_type(name, str, "a name in columns") for name in names),
    )


_DTYPES = ("uint8", "uint16", "float16", "float32", "float64")


def _calibration(stored: dict[str, Any]) -> Calibration:
    fields = {field.name for field in dataclasses.fields(Calibration)}
    _check_keys(stored, frozenset({"threshold", "rate", "source"}), frozenset(fields), "calibration.")
    threshold, review = _number(stored["threshold"], "calibration.threshold"), stored.get("review")
    rate = _number(stored["rate"], "calibration.rate")
    if not 0 <= rate <= 1:
        raise UserError(f"calibration.rate is {rate:g}, expected a rate from 0 to 1")
    if review is not None and _number(review, "calibration.review") > threshold:
        raise UserError("calibration.review is above calibration.threshold")
    groups = _of_type(stored.get("groups", {}), dict, "calibration.groups")
    return Calibration(
        threshold,
        rate,
        _of_type(stored["source"], str, "calibration.source"),
        None if review is None else float(review),
        {name: _scores(scores) for name, scores in groups.items()},
    )


def check_scores(scores: np.ndarray) -> None:
    """Checks the calibration scores of a detector.

    Raises:
      UserError: they are not n sorted finite float32.
    """
    if scores.ndim != 1 or scores.dtype != np.float32 or not np.isfinite(scores).all() or (np.diff(scores) < 0).any():
        raise UserError(
            f"its calibration scores are {scores.dtype}{list(scores.shape)}, expected n sorted finite float32"
        )


def _scores(stored: Any) -> list[float]:
    """Returns the sorted scores of a group."""
    scores = [_number(score, "a score in calibration.groups") for score in _of_type(stored, list, "calibration.groups")]
    if not scores or scores != sorted(scores):
        raise UserError("calibration.groups has unsorted scores or none")
    return scores


def _range(stored: Any, count: int, name: str) -> float | tuple[float, ...]:
    """Returns a stored `low` or `high`: a number, or one for each of `count` sensors or bands."""
    if not isinstance(stored, list):
        return _number(stored, name)
    if not count or len(stored) != count:
        raise UserError(f"{name} has {len(stored)} values, expected {count or 'a number'}")
    return tuple(_number(value, name) for value in stored)


def _number(value: Any, name: str) -> float:
    """Returns a finite number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise UserError(f"{name} is {value!r:.50}, expected a finite number")
    return float(value)


def _of_type(value: Any, kind: type, name: str) -> Any:
    """Returns a value of the type."""
    if type(value) is not kind:
        raise UserError(f"{name} is {value!r:.50}, expected a {kind.__name__}")
    return value


def _check_keys(stored: Mapping[str, Any], required: frozenset[str], optional: frozenset[str], prefix: str) -> None:
    if missing := sorted(required - stored.keys()):
        raise UserError(f"{prefix}{missing[0]} is missing")
    if unknown := sorted(stored.keys() - required - optional):
        raise UserError(f"{prefix}{unknown[0]!r:.50} is unknown")
