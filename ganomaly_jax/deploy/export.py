"""The scoring function as a file: StableHLO by `jax.export`, callable with jax and numpy alone, or ONNX.

An export is a folder: the program (`score.stablehlo` or `score.onnx`), the weights beside it where asked for
(`weights.npz`: arrays only, numpy refuses pickles in it), `loader.py` that loads and calls it, and `manifest.json` with
a hash of each file. It is written beside its place, loaded and checked there, and renamed.
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
from ganomaly_jax.core import sealed_folder
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.deploy import export_runtime, modalities
from ganomaly_jax.runs import layout
from ganomaly_jax.scoring import scorer as scoring_scorer

PROGRAMS = {"stablehlo": "score.stablehlo", "onnx": "score.onnx"}
WEIGHTS = "weights.npz"
LOADER = "loader.py"
KIND = "ganomaly_jax export"
PLATFORMS = ("cpu", "cuda", "tpu")
CHECKED = 64
# Of the largest score of the self-check. Two programs for the same sums round differently; nothing else may differ.
TOLERANCE = 1e-4


def export(
    source: scoring_scorer.Scorer | str | os.PathLike[str],
    out: str | os.PathLike[str],
    weights: str = "inside",
    form: str = "stablehlo",
    images: Any = None,
) -> dict[str, Any]:
    """Write the scoring function of a detector to a folder, which is there whole or not at all.

    The program takes raw pixels `x` [b, H, W, C] of the training type (`manifest["input"]`), any b, and returns what
    `Scorer.outputs` does: a dict with `score` and `p_value` [b] float32, NaN where a pixel is NaN or infinite.

    Args:
      source: a `Scorer`, the folder of a finished run, or a detector folder.
      out: the folder to make; an earlier export there is replaced.
      weights: `inside` the program, or `beside` it in a file of their own (StableHLO only).
      form: `stablehlo`, for the platforms cpu, cuda and tpu; or `onnx` (extra `onnx`).
      images: for the self-check, as a call of the scorer takes them; without any, image files that the run tested on,
        where they are still there. Generated ones make up the 64.

    Returns:
      The manifest.

    Raises:
      UserError: no detector; something else is at `out`; a package is absent; or the program that was written does not
        give the scores of the live detector. Nothing is written then.
      DamagedError: the detector is damaged.
    """
    if form not in PROGRAMS:
        raise UserError(f"an export as {form!r}: wanted one of {', '.join(PROGRAMS)}")
    if weights not in ("inside", "beside") or (form == "onnx" and weights == "beside"):
        raise UserError(f"weights {weights!r} as {form}: wanted 'inside', or for stablehlo 'beside'")
    target = Path(os.path.realpath(out))
    _refuse_to_replace(target)
    live = source if isinstance(source, scoring_scorer.Scorer) else scoring_scorer.load(source)
    if form == "onnx" and (live.config.data.tile or not modalities.of(live).onnx):
        what = "tiles" if live.config.data.tile else live.words.kind
        raise UserError(f"a detector of {what} as ONNX is not known to work: wanted the form stablehlo")
    if images is None and not isinstance(source, scoring_scorer.Scorer):
        images = _tested_on(Path(source))
    write = _write_onnx if form == "onnx" else functools.partial(_write_stablehlo, beside=weights == "beside")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        sealed_folder.remove_leftovers(target.parent)
        with sealed_folder.temporary_folder(target.parent) as folder:
            written_by = write(folder, live)
            (folder / LOADER).write_bytes(Path(export_runtime.__file__).read_bytes())
            manifest = _manifest(live, folder, form, weights, written_by)
            _write_manifest(folder, manifest)
            # What is checked is what lies there, by its own loader.
            manifest["self_check"] = _self_check(live, folder, images)
            _write_manifest(folder, manifest)
            sealed_folder.fsync_tree(folder)
            sealed_folder.move_into_place(folder, target)
            sealed_folder.fsync(target.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {out}: {error.strerror or error}; everything that was there is intact"
        ) from error
    return manifest


def describe(manifest: dict[str, Any], out: str | os.PathLike[str]) -> str:
    """What was written and checked, in three lines."""
    checked, given = manifest["self_check"], manifest["input"]
    size = sum(entry["size"] for entry in manifest["files"].values()) / 1e6
    return (
        f"{Path(out) / manifest['program']}: {size:.1f} MB with its loader, weights {manifest['weights']}\n"
        f"takes {given['dtype']} [{', '.join(map(str, given['shape']))}]; {LOADER} shows how to call it\n"
        f"self-check on {checked['images']} images ({checked['given']} of them given or the run's own): scores differ "
        f"by at most {checked['largest_difference']:.1e}, the largest score being {checked['largest_score']:.3g}"
    )


def flat_function(
    live: scoring_scorer.Scorer,
) -> tuple[Callable[[dict[str, Any], Any], dict[str, Any]], dict[str, Any]]:
    """(fn, weights): `fn(weights, x)` is `Scorer.outputs` with its arrays in one flat dict, `a/b/c` to array."""
    leaves, structure = jax.tree_util.tree_flatten_with_path(live.variables)
    named = {jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf) for path, leaf in leaves}
    if len(named) != len(leaves):
        raise ValueError("two arrays of the detector have the same name")
    names = tuple(named)

    def function(weights: dict[str, Any], x: Any) -> dict[str, Any]:
        return live.outputs(jax.tree.unflatten(structure, [weights[name] for name in names]), x)

    return function, named


def lower(live: scoring_scorer.Scorer, beside: bool = False) -> jax.export.Exported:
    """The program, not yet written: of x [b, H, W, C], or with `beside` of a flat dict of weights and x."""
    function, named = flat_function(live)
    (size,) = jax.export.symbolic_shape("b")
    x = jax.ShapeDtypeStruct((size, *live.input_shape), np.dtype(live.dtype))
    if beside:
        shapes = {name: jax.ShapeDtypeStruct(array.shape, array.dtype) for name, array in named.items()}
        return jax.export.export(jax.jit(function), platforms=PLATFORMS)(shapes, x)
    return jax.export.export(jax.jit(functools.partial(function, named)), platforms=PLATFORMS)(x)


def _write_stablehlo(folder: Path, live: scoring_scorer.Scorer, beside: bool) -> dict[str, str]:
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
    from ganomaly_jax.deploy import onnx

    return onnx.write(folder / PROGRAMS["onnx"], live)


def _manifest(
    live: scoring_scorer.Scorer, folder: Path, form: str, weights: str, written_by: dict[str, str]
) -> dict[str, Any]:
    one = jax.ShapeDtypeStruct((1, *live.input_shape), np.dtype(live.dtype))
    outputs = jax.eval_shape(live.outputs, live.variables, one)
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
            "dtype": live.dtype,
            "low": live.low,
            "high": live.high,
            "fit": live.config.data.fit,
            **modalities.of(live).fields(live),
        },
        "output": {
            name: {"shape": ["b", *value.shape[1:]], "dtype": str(value.dtype)} for name, value in outputs.items()
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
    """With `sha256`, the hash of the rest of it, so that a threshold cannot change unseen."""
    manifest.pop("sha256", None)
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / sealed_folder.MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False), encoding="utf-8")


def _self_check(live: scoring_scorer.Scorer, folder: Path, images: Any) -> dict[str, Any]:
    """Live and exported scores of 64 images: the largest differences.

    Raises:
      UserError: they differ by more than rounding.
    """
    count = min(CHECKED, live.block)
    generated = modalities.of(live).generate(live, count)
    given = np.zeros((0, *live.input_shape), live.dtype)
    if images is not None:
        given = live.as_input(images[:count])
        given = (
            given[np.isfinite(given).all(tuple(range(1, given.ndim)))].astype(live.dtype)
            if given.dtype == live.dtype
            else given[:0]
        )
    x = np.concatenate([given, generated[len(given) :]])
    expected = live.judge(x)
    try:
        score, _ = export_runtime.load(folder)
        found = {name: np.asarray(value) for name, value in score(x).items()}
    except Exception as error:  # of XLA or onnxruntime
        what = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"the exported program does not run here ({what}): nothing was written") from error
    difference = float(np.abs(found["score"] - expected.scores).max())
    largest = float(np.abs(expected.scores).max())
    if not difference <= TOLERANCE * max(largest, 1e-30):
        raise UserError(
            f"the exported program differs from the live detector by {difference:g} where the largest score is "
            f"{largest:g}: nothing was written; please report this with the versions of jax and jaxlib"
        )
    return {
        "images": len(x),
        "given": len(given),
        "largest_difference": difference,
        "largest_score": largest,
        "largest_p_value_difference": float(np.abs(found["p_value"] - expected.p_values).max()),
        "platform": jax.default_backend(),
    }


def _tested_on(workdir: Path) -> Sequence[Path] | None:
    """Image files of the run's own test set, spread over it, as far as they are still there."""
    import csv

    try:
        with (workdir / layout.PREDICTIONS).open(encoding="utf-8", newline="") as file:
            paths = [Path(row["path"]) for row in csv.DictReader(file) if row["verdict"] != "invalid"]
    except (OSError, KeyError, ValueError):
        return None
    there = [path for path in paths[:: max(1, len(paths) // CHECKED)][:CHECKED] if path.is_file()]
    return there or None


def _refuse_to_replace(target: Path) -> None:
    """Only an earlier export may give way.

    Raises:
      UserError: something else is there.
    """
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
        raise UserError(f"{target} is there and is no export alone: wanted a folder that is new, empty, or an export")
