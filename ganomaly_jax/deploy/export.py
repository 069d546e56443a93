"""Export of the scoring function: StableHLO by `jax.export`, callable with jax and numpy alone, or ONNX.

An export is a folder: the program (`score.stablehlo` or `score.onnx`), optionally the weights beside it (`weights.npz`,
arrays only), `loader.py` that loads and calls it, and `manifest.json` with a hash of each file. It is written under a
temporary name, loaded and checked there, and renamed.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ganomaly_jax import __version__
from ganomaly_jax.core import atomic_folders, calls, sealed_folder
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.data.images.value_range import Range, scaled
from ganomaly_jax.deploy import export_runtime, modalities
from ganomaly_jax.runs import layout
from ganomaly_jax.scoring import scorer as scoring_scorer

PROGRAMS = {"stablehlo": "score.stablehlo", "onnx": "score.onnx"}
WEIGHTS = "weights.npz"
LOADER = "loader.py"
KIND = "ganomaly_jax export"
PLATFORMS = ("cpu", "cuda", "tpu")
SELF_CHECK_SIZE = 64
# Relative to the largest score of the self-check: two programs of the same computation differ by rounding only.
TOLERANCE = 1e-4


def export(
    source: scoring_scorer.Scorer | str | os.PathLike[str],
    out: str | os.PathLike[str],
    weights: str = "inside",
    form: str = "stablehlo",
    images: Any = None,
    value_range: Range | None = None,
) -> dict[str, Any]:
    """Writes the scoring function of a detector to a folder, completely or not at all.

    The program takes raw pixels `x` [b, H, W, C] in the training dtype (`manifest["input"]`), for any b, and returns a
    dict with `score` and `p_value` [b] float32, NaN for images with NaN or infinite pixels, as `Scorer.outputs`.

    Args:
      source: a `Scorer`, the folder of a finished run, or a detector folder.
      out: the folder to create; an earlier export there is replaced.
      weights: `inside` the program, or `beside` it in a file of their own (StableHLO only).
      form: `stablehlo`, for the platforms cpu, cuda and tpu; or `onnx` (extra `onnx`).
      value_range: for a detector of integer pixels: the program takes float32 in this range, such as (0, 1), instead.
        The manifest states it.
      images: images for the self-check, as for a call of the scorer. By default image files of the run's test set that
        still exist; generated images fill up to 64.

    Returns:
      The manifest.

    Raises:
      UserError: there is no detector, `out` holds something else, a package is missing, or the program does not
        reproduce the detector's scores. Nothing is written then.
      DamagedError: the detector is damaged.
    """
    call = "gj.export('runs/mine', 'exported')"
    calls.expect(
        (scoring_scorer.Scorer, *calls.PATH), f"the folder of a run or a gj.Scorer, as in {call}", source=source
    )
    calls.expect(calls.PATH, f"the folder to write, as in {call}", out=out)
    if form not in PROGRAMS:
        raise UserError(f"form {form!r}: expected one of {', '.join(PROGRAMS)}")
    if weights not in ("inside", "beside") or (form == "onnx" and weights == "beside"):
        raise UserError(f"weights {weights!r} with form {form!r}: expected 'inside', or 'beside' with 'stablehlo'")
    target = Path(os.path.realpath(out))
    _refuse_to_replace(target)
    live = source if isinstance(source, scoring_scorer.Scorer) else scoring_scorer.load(source)
    live = live.with_range(value_range)
    if form == "onnx" and (live.config.data.tile or not modalities.of(live).onnx):
        what = "tiles" if live.config.data.tile else live.words.kind
        raise UserError(f"a detector of {what} cannot be exported as ONNX: use the form stablehlo")
    if images is None and not isinstance(source, scoring_scorer.Scorer):
        images = _test_images(Path(source))
    write = _write_onnx if form == "onnx" else functools.partial(_write_stablehlo, beside=weights == "beside")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        atomic_folders.remove_leftovers(target.parent)
        with atomic_folders.temporary_folder(target.parent) as folder:
            written_by = write(folder, live)
            (folder / LOADER).write_bytes(Path(export_runtime.__file__).read_bytes())
            manifest = _manifest(live, folder, form, weights, written_by)
            _write_manifest(folder, manifest)
            # The files on disk are checked, by the loader beside them.
            manifest["self_check"] = _self_check(live, folder, images)
            _write_manifest(folder, manifest)
            atomic_folders.fsync_tree(folder)
            atomic_folders.move_into_place(folder, target)
            atomic_folders.fsync(target.parent)
    except OSError as error:
        raise UserError(f"{out} cannot be written: {error.strerror or error}; what was there is unchanged") from error
    return manifest


def describe(manifest: dict[str, Any], out: str | os.PathLike[str]) -> str:
    """Returns a description of an export in three lines."""
    checked, expected = manifest["self_check"], manifest["input"]
    size = sum(entry["size"] for entry in manifest["files"].values()) / 1e6
    return (
        f"{Path(out) / manifest['program']}: {size:.1f} MB including its loader, weights {manifest['weights']}\n"
        f"takes {expected['dtype']} [{', '.join(map(str, expected['shape']))}]; {LOADER} shows how to call it\n"
        f"self-check on {checked['images']} images ({checked['given']} of them real): scores differ "
        f"by at most {checked['largest_difference']:.1e}, the largest score being {checked['largest_score']:.3g}"
    )


def input_type(live: scoring_scorer.Scorer) -> np.dtype[Any]:
    """Returns the type of the pixels that the program of a detector takes."""
    return np.dtype(np.float32 if live.value_range else live.dtype)


def outputs(live: scoring_scorer.Scorer, variables: dict[str, Any], x: Any) -> dict[str, Any]:
    """Computes `Scorer.outputs` of raw pixels, or of floats in `live.value_range`."""
    return live.outputs(variables, scaled(x, live.value_range) if live.value_range else x)


def flat_function(
    live: scoring_scorer.Scorer,
) -> tuple[Callable[[dict[str, Any], Any], dict[str, Any]], dict[str, Any]]:
    """Returns (fn, weights): `fn(weights, x)` is `outputs`, `weights` a flat dict of arrays by `a/b/c`."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(live.variables)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two arrays of the detector have the same name")
    names = tuple(named)

    def function(weights: dict[str, Any], x: Any) -> dict[str, Any]:
        return outputs(live, jax.tree.unflatten(structure, [weights[name] for name in names]), x)

    return function, named


def lower(live: scoring_scorer.Scorer, beside: bool = False) -> jax.export.Exported:
    """Exports the program of x [b, H, W, C], or with `beside` of a flat dict of weights and x, without writing it."""
    function, named = flat_function(live)
    x = _argument(live)
    if beside:
        shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in named.items()}
        return jax.export.export(jax.jit(function), platforms=PLATFORMS)(shapes, x)
    return jax.export.export(jax.jit(functools.partial(function, named)), platforms=PLATFORMS)(x)


def _argument(live: scoring_scorer.Scorer) -> jax.ShapeDtypeStruct:
    """Returns shape and type of what the program takes, with a symbolic batch size."""
    (size,) = jax.export.symbolic_shape("b")
    return jax.ShapeDtypeStruct((size, *live.input_shape), input_type(live))


def _write_stablehlo(folder: Path, live: scoring_scorer.Scorer, beside: bool) -> dict[str, str]:
    """Writes the program, and perhaps the weights; returns the versions that wrote it."""
    if importlib.util.find_spec("flatbuffers") is None:
        raise UserError("an export needs flatbuffers: pip install 'ganomaly-jax[export]'")
    program = lower(live, beside)
    (folder / PROGRAMS["stablehlo"]).write_bytes(program.serialize())
    if beside:
        with (folder / WEIGHTS).open("wb") as file:
            np.savez(file, **flat_function(live)[1])
    return {
        "jax": jax.__version__,
        "jaxlib": metadata.version("jaxlib"),
        "calling_convention": str(program.calling_convention_version),
    }


def _write_onnx(folder: Path, live: scoring_scorer.Scorer) -> dict[str, str]:
    """Writes the program; returns the versions that wrote it."""
    from ganomaly_jax.deploy import onnx

    return onnx.write(folder / PROGRAMS["onnx"], functools.partial(outputs, live, live.variables), _argument(live))


def _manifest(
    live: scoring_scorer.Scorer, folder: Path, form: str, weights: str, written_by: dict[str, str]
) -> dict[str, Any]:
    """Returns the manifest of the files in `folder`."""
    one = jax.ShapeDtypeStruct((1, *live.input_shape), input_type(live))
    found = jax.eval_shape(live.outputs, live.variables, one)
    low, high = live.value_range or (live.low, live.high)
    return {
        "kind": KIND,
        "format": 1,
        "program": PROGRAMS[form],
        "weights": weights,
        "platforms": list(PLATFORMS) if form == "stablehlo" else [],
        "files": {
            path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "size": path.stat().st_size}
            for path in sorted(folder.iterdir())
        },
        "input": {
            "shape": ["b", *live.input_shape],
            "dtype": str(input_type(live)),
            "low": low,
            "high": high,
            "fit": live.config.data.fit,
            **modalities.of(live).fields(live),
        },
        "output": {
            name: {"shape": ["b", *value.shape[1:]], "dtype": str(value.dtype)} for name, value in found.items()
        },
        "arrays": {
            name: {"shape": list(array.shape), "dtype": str(array.dtype)}
            for name, array in flat_function(live)[1].items()
        },
        "threshold": live.threshold,
        "false_positive_rate": live.calibration.rate,
        "calibration": live.calibration.source,
        "versions": {"ganomaly-jax": __version__, "numpy": np.__version__, **written_by},
        "provenance": live.provenance,
    }


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Writes the manifest with `sha256`, the hash of its other entries, so that changes are detected."""
    manifest.pop("sha256", None)
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / sealed_folder.MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False), encoding="utf-8")


def _self_check(live: scoring_scorer.Scorer, folder: Path, images: Any) -> dict[str, Any]:
    """Compares scores of the detector and of the export on 64 images, and returns the largest differences.

    Raises:
      UserError: they differ by more than rounding, or the program does not run.
    """
    count = min(SELF_CHECK_SIZE, live.block)
    generated = modalities.of(live).generate(live, count)
    real = np.zeros((0, *live.input_shape), live.dtype)
    if images is not None:
        real = live.as_input(images[:count])
        real = (
            real[np.isfinite(real).all(tuple(range(1, real.ndim)))].astype(live.dtype)
            if real.dtype == live.dtype
            else real[:0]
        )
    x = np.concatenate([real, generated[len(real) :]])
    expected = live.judge(x)
    if live.value_range:
        low, high = live.value_range
        x = np.asarray(low + (live.unit(jax.numpy.asarray(x)) + 1) / 2 * (high - low), np.float32)
    try:
        score, _ = export_runtime.load(folder)
        exported = {name: np.asarray(value) for name, value in score(x).items()}
    except Exception as error:  # errors of XLA or onnxruntime
        what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"the exported program does not run here ({what}): nothing was written") from error
    difference = float(np.abs(exported["score"] - expected.scores).max())
    largest = float(np.abs(expected.scores).max())
    if not difference <= TOLERANCE * max(largest, 1e-30):
        raise UserError(
            f"the exported program differs from the live detector by {difference:g} where the largest score is "
            f"{largest:g}: nothing was written; please report this with the versions of jax and jaxlib"
        )
    return {
        "images": len(x),
        "given": len(real),
        "largest_difference": difference,
        "largest_score": largest,
        "largest_p_value_difference": float(np.abs(exported["p_value"] - expected.p_values).max()),
        "platform": jax.default_backend(),
    }


def _test_images(workdir: Path) -> Sequence[Path] | None:
    """Returns image files of the run's test set that still exist, spread over it; None if there are none."""
    import csv

    try:
        with (workdir / layout.PREDICTIONS).open(encoding="utf-8", newline="") as file:
            paths = [Path(row["path"]) for row in csv.DictReader(file) if row["verdict"] != "invalid"]
    except (OSError, KeyError, ValueError):
        return None
    existing = [path for path in paths[:: max(1, len(paths) // SELF_CHECK_SIZE)][:SELF_CHECK_SIZE] if path.is_file()]
    return existing or None


def _refuse_to_replace(target: Path) -> None:
    """Raises a UserError if `target` exists and is not an earlier export."""
    if not os.path.lexists(target):
        return
    names = {entry.name for entry in target.iterdir()} if target.is_dir() else {""}
    if not names:
        return
    try:
        kind = json.loads((target / sealed_folder.MANIFEST).read_bytes()).get("kind")
    except (OSError, ValueError, AttributeError):
        kind = None
    if kind != KIND or not names <= {sealed_folder.MANIFEST, LOADER, WEIGHTS, "__pycache__", *PROGRAMS.values()}:
        raise UserError(
            f"{target} exists and is not just an export: choose a new or empty folder, or an earlier export"
        )
