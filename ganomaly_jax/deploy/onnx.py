"""Export of the scoring function as ONNX, by jax2onnx (extra `onnx`)."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from ganomaly_jax.core.errors import UserError
from ganomaly_jax.model import convolution


def write(path: Path, outputs: Callable[[Any], dict[str, Any]], x: jax.ShapeDtypeStruct) -> dict[str, str]:
    """Writes a scoring function with the weights inside: `x` [b, H, W, C] to `score` and `p_value` [b].

    Args:
      path: the file.
      outputs: the function.
      x: shape and type of its argument, with a symbolic batch size.

    Returns:
      Versions of the packages that wrote it, and the opset.

    Raises:
      UserError: a package is missing, or the converter does not support an operation of this detector.
    """
    with _quiet("jax2onnx", "onnx_ir"):
        return _write(path, outputs, x)


@contextlib.contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Silences these loggers: they report missing optional parts, and values without a type, which ONNX infers."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _write(path: Path, outputs: Callable[[Any], dict[str, Any]], x: jax.ShapeDtypeStruct) -> dict[str, str]:
    """Converts, checks and saves the program."""
    try:
        import jax2onnx
        import onnx
        import onnxruntime
    except ImportError as error:
        raise UserError(f"exporting to ONNX needs {error.name}: pip install 'ganomaly-jax[onnx]'") from None
    names = list(jax.eval_shape(outputs, x))
    try:
        with convolution.platform_independent():
            model = jax2onnx.to_onnx(
                lambda x: tuple(outputs(x)[name] for name in names),
                [x],
                input_names=["x"],
                output_names=names,
            )
    except Exception as error:  # a converter can raise anything
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise UserError(f"jax2onnx cannot convert this detector ({reason}); --format stablehlo can") from error
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return {
        "jax": jax.__version__,
        "jax2onnx": metadata.version("jax2onnx"),
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
        "opset": str(model.opset_import[0].version),
    }
