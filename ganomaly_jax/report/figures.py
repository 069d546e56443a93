"""Figures of matplotlib, and the picture of a scored case.

matplotlib is imported only in this module, inside functions, and used through its object-oriented interface: the global
state of pyplot is never touched.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ganomaly_jax.core import number_format
from ganomaly_jax.core.atomic_files import replacing
from ganomaly_jax.core.errors import UserError
from ganomaly_jax.report import sensor_plots
from ganomaly_jax.report.html import MissingError
from ganomaly_jax.report.image_grids import COLOURS, one_line, residual, to_rgb

if TYPE_CHECKING:
    from matplotlib.figure import Figure
else:
    Figure = Any

Drawing = Callable[["Case", float], Figure]
"""Function (case, residual_max) -> a figure of its input and reconstruction, without captions."""

BLUE, RED, INK = "#2166ac", "#c8442b", "#1e1e1e"
CLASS_NAMES: dict[Any, str] = {0: "normal", 1: "anomalous"}


@dataclasses.dataclass(frozen=True)
class Case:
    """Holds a scored item to show: an image, a row or window of sensors, or a window of sound."""

    name: str
    """The name of its file or row; any text."""
    kind: str
    """`false positive`, `false negative`, `anomalous` or `normal`."""
    x: np.ndarray
    """The input of the network, [H, W, C] in [-1, 1]; [D] or [T, D] for sensors."""
    x_hat: np.ndarray
    """The reconstruction, of the same shape."""
    score: float
    p_value: float | None
    threshold: float | None
    verdict: str
    label: int | str | None
    """0 (normal), 1 (anomalous), the name of a class, or None if unknown."""
    draw: Drawing | None = None
    """How it is drawn; None: as an image."""


def case_picture(case: Case, residual_max: float, path: str | Path) -> None:
    """Draws a case as a PNG, 1350 pixels wide: input, reconstruction, residual with its scale, and the verdict.

    Args:
      case: the case.
      residual_max: the residual at the end of the colour scale, the same for all pictures to be compared.
      path: the path of the PNG.

    Raises:
      MissingError: matplotlib is not installed.
      UserError: the shapes differ, residual_max is not above 0, or the file cannot be written.
    """
    if not (np.isfinite(residual_max) and residual_max > 0):
        raise UserError(f"residual_max={residual_max!r}: expected a finite number above 0, the end of the colour scale")
    if not case.x.ndim or case.x.shape != case.x_hat.shape:
        raise UserError(f"x {case.x.shape} and x_hat {case.x_hat.shape}: expected two of one shape [H, W, C]")
    figure = (case.draw or image_case)(case, residual_max)
    _captions(figure, case)
    save_figure(figure, path)


def image_case(case: Case, residual_max: float) -> Figure:
    """Draws input, reconstruction and residual of an image [H, W, C].

    Args:
      case: the case.
      residual_max: the residual at the end of the colour scale.

    Returns:
      The figure.

    Raises:
      MissingError: matplotlib is not installed.
      UserError: the case is not an image.
    """
    if case.x.ndim != 3:
        raise UserError(f"x {case.x.shape} and x_hat {case.x_hat.shape}: expected two of one shape [H, W, C]")
    figure = new_figure(9, 1.1 + float(np.clip(2.6 * case.x.shape[0] / case.x.shape[1], 1.3, 4.0)))
    from matplotlib.colors import ListedColormap

    axes = figure.subplots(1, 3)
    axes[0].imshow(to_rgb(case.x), interpolation="nearest")
    axes[1].imshow(to_rgb(case.x_hat), interpolation="nearest")
    colours = ListedColormap((COLOURS / 255).tolist())
    drawn = axes[2].imshow(
        residual(case.x, case.x_hat), cmap=colours, vmin=0, vmax=residual_max, interpolation="nearest"
    )
    bar = figure.colorbar(drawn, ax=axes[2], extend="max")
    bar.ax.tick_params(labelsize=9)
    bar.set_label("|input \N{MINUS SIGN} reconstruction|", fontsize=9)
    for ax, title in zip(axes, ("input", "reconstruction", "residual"), strict=True):
        ax.set_title(title, fontsize=11)
        ax.set_xticks([])
        ax.set_yticks([])
    return figure


def timeline(path: str | Path, series: Sequence[sensor_plots.Series], columns: Sequence[str], threshold: float) -> None:
    """Draws scores and sensors over time as a PNG, see `sensor_plots.timeline`.

    Raises:
      MissingError: matplotlib is not installed.
      UserError: the file cannot be written.
    """
    size = min(4.2 * len(series) + 1, 12), 1.4 + 1.3 * min(len(columns), 3) + 0.8
    drawn(path, *size, lambda figure: sensor_plots.timeline(figure, series, columns, threshold))


def drawn(path: str | Path, width: float, height: float, draw: Callable[[Figure], None]) -> None:
    """Creates a figure, calls `draw` with it and writes it as a PNG.

    Args:
      path: the path of the PNG.
      width: in inches of 150 pixels.
      height: in inches of 150 pixels.
      draw: called with the figure.

    Raises:
      MissingError: matplotlib is not installed.
      UserError: the file cannot be written.
    """
    figure = new_figure(width, height)
    draw(figure)
    save_figure(figure, path)


def _captions(figure: Figure, case: Case) -> None:
    wrong = case.kind.startswith("false")
    name = one_line(f"{case.kind}: {case.name}", 90)
    figure.suptitle(name, fontsize=12, weight="bold", color=RED if wrong else INK, parse_math=False)
    figure.supxlabel(one_line(decision(case), 140), fontsize=11.5, color=INK, parse_math=False)


def decision(case: Case) -> str:
    """Formats score, threshold, p-value, verdict and label of a case in one line."""
    parts = [f"score {number_format.number(case.score)}"]
    if case.threshold is not None and case.score == case.score:
        sign = ">" if case.score > case.threshold else "\N{LESS-THAN OR EQUAL TO}"
        parts[0] += f" {sign} threshold {number_format.number(case.threshold)}"
    if case.p_value is not None:
        parts.append(f"p-value {number_format.number(case.p_value)}")
    label = CLASS_NAMES.get(case.label, case.label)
    parts += [f"verdict: {case.verdict}", f"label: {'unknown' if label is None else label}"]
    return "   \N{MIDDLE DOT}   ".join(parts)


def remove(path: Path) -> None:
    """Removes a file if it exists.

    Raises:
      UserError: the file cannot be removed.
    """
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; choose another folder") from error


def require_matplotlib() -> type[Figure]:
    """Returns matplotlib's `Figure`.

    Raises:
      MissingError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingError("pictures and report.html need matplotlib: pip install 'ganomaly-jax[report]'") from None
    return Figure


def new_figure(width: float, height: float) -> Figure:
    """Returns a new figure.

    Args:
      width: in inches of 150 pixels.
      height: in inches of 150 pixels.

    Raises:
      MissingError: matplotlib is not installed.
    """
    return require_matplotlib()(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: Figure, path: str | Path) -> Path:
    """Writes a figure atomically as a PNG and returns its path.

    Raises:
      UserError: the file cannot be written.
    """
    with replacing(path) as temporary, warnings.catch_warnings():
        # Names may be in scripts that matplotlib's font lacks; their characters are drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph|Matplotlib currently does not support", category=UserWarning)
        figure.savefig(temporary, format="png")
    return Path(path)
