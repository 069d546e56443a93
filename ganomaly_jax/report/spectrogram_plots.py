"""Plots of spectrograms with axes in Hz and seconds, drawn on a given figure.

Levels are in decibels relative to a full scale of 1, and low frequencies are at the bottom.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ganomaly_jax.data.audio.spectrogram_scale import Scale
from ganomaly_jax.scoring.residual_map import END, Region

# Types of matplotlib, which is imported in figures.py alone.
Figure = Any
Axes = Any

SHOWN = 2
"""The number of examples per class that `examples` draws side by side."""
_BOX = "#00beff"


def case(figure: Figure, x: np.ndarray, x_hat: np.ndarray, scale: Scale, residual_max: float) -> None:
    """Draws a window, its reconstruction and their difference: patches [bands, frames, 1] in [-1, 1]."""
    axes = figure.subplots(1, 3, sharex=True, sharey=True)
    _triple(figure, axes, x, x_hat, scale, residual_max)
    for ax, title in zip(axes, ("input", "reconstruction", "residual"), strict=True):
        ax.set_title(title, fontsize=11)
        ax.set_xlabel("s", fontsize=9)


def examples(
    figure: Figure,
    sections: Sequence[tuple[str, np.ndarray, np.ndarray]],
    scale: Scale,
    residual_max: float,
) -> None:
    """Draws a row for each (title, x, x_hat): the first `SHOWN` of its patches [n, bands, frames, 1]."""
    grid = figure.subplots(len(sections), 3 * SHOWN, sharex=True, sharey=True, squeeze=False)
    for row, (title, x, x_hat) in zip(grid, sections, strict=True):
        for k in range(SHOWN):
            own = row[3 * k : 3 * k + 3]
            if k < len(x):
                _triple(figure, own, x[k], x_hat[k], scale, residual_max, bars=False)
            else:
                for ax in own:
                    ax.set_axis_off()
        row[0].set_ylabel(f"{title}\n{row[0].get_ylabel()}", fontsize=9, parse_math=False)
        for ax in row[1:]:
            ax.set_ylabel("")
    for ax, title in zip(grid[0], ("input", "reconstruction", "residual") * SHOWN, strict=True):
        ax.set_title(title, fontsize=9)
    for ax in grid[-1]:
        ax.set_xlabel("s", fontsize=9)


def explained(
    figure: Figure,
    x: np.ndarray,
    x_hat: np.ndarray,
    values: np.ndarray,
    threshold: float,
    found: Sequence[Region],
    scale: Scale,
    contributions: np.ndarray,
    full: float,
) -> None:
    """Draws an explanation of a window's score: input, reconstruction, residual map and contributions.

    Args:
      figure: the figure to draw on.
      x: [bands, frames, 1] in [-1, 1], the spectrogram of the window.
      x_hat: [bands, frames, 1] in [-1, 1], its reconstruction.
      values: [bands, frames], the residual map; its colours run from `threshold` to `residual_map.END` times it.
      threshold: the threshold of the map.
      found: the regions above the threshold.
      scale: the axes of the spectrogram.
      contributions: [bands, frames], to the score; their colours run from -`full` to `full`.
      full: the end of that scale.
    """
    axes = figure.subplots(1, 4, sharex=True, sharey=True)
    levels = [scale.decibels(one) for one in (x, x_hat)]
    low, high = _range(*levels)
    drawn = [_panel(ax, one, scale, cmap="inferno", vmin=low, vmax=high) for ax, one in zip(axes, levels, strict=False)]
    beyond = np.ma.masked_less_equal(values, threshold)
    axes[2].set_facecolor("0.95")
    drawn.append(_panel(axes[2], beyond, scale, cmap="YlOrRd", vmin=threshold, vmax=END * threshold))
    drawn.append(_panel(axes[3], contributions, scale, cmap="RdBu_r", vmin=-full, vmax=full))
    for number, region in enumerate(found, 1):
        left, right = (_at(scale, one - 0.5) for one in (region.left, region.left + region.width))
        bottom, top = region.top - 0.5, region.top + region.height - 0.5
        for ax in (axes[0], axes[2]):
            ax.autoscale(False)
            ax.plot([left, right, right, left, left], [bottom, bottom, top, top, bottom], color=_BOX, linewidth=1.3)
        axes[0].text(left, top, f" {number}", color=_BOX, fontsize=9, va="top")
    names = ("input", "what normal would sound like", "difference beyond normal", "what raises the score")
    units = ("dB", "dB", "residual map", "red raises, blue lowers")
    for ax, one, name, unit in zip(axes, drawn, names, units, strict=True):
        ax.set_title(name, fontsize=10)
        ax.set_xlabel("s", fontsize=9)
        bar = figure.colorbar(one, ax=ax, orientation="horizontal", fraction=0.05, pad=0.02)
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=7)
        bar.ax.locator_params(nbins=4)
    for ax in axes[1:]:
        ax.set_ylabel("")


def _triple(
    figure: Figure, axes: Any, x: np.ndarray, x_hat: np.ndarray, scale: Scale, residual_max: float, bars: bool = True
) -> None:
    levels = [scale.decibels(one) for one in (x, x_hat)]
    low, high = _range(*levels)
    for ax, one in zip(axes, levels, strict=False):
        drawn = _panel(ax, one, scale, cmap="inferno", vmin=low, vmax=high)
    residual = _panel(axes[2], np.abs(x - x_hat).mean(-1), scale, cmap="inferno", vmin=0, vmax=residual_max)
    for ax in axes[1:]:
        ax.set_ylabel("")
    if bars:
        for one, ax, label in ((drawn, axes[1], "dB"), (residual, axes[2], "|input \N{MINUS SIGN} reconstruction|")):
            bar = figure.colorbar(one, ax=ax, extend="max" if ax is axes[2] else "neither")
            bar.ax.tick_params(labelsize=8)
            bar.set_label(label, fontsize=9)


def _range(*levels: np.ndarray) -> tuple[float, float]:
    """Returns the range of decibels that the colours span, between the 1 % and 99 % quantiles."""
    together = np.concatenate([one.ravel() for one in levels])
    low, high = np.nanquantile(together, (0.01, 0.99))
    return float(low), float(max(high, low + 1))


def _at(scale: Scale, frame: float) -> float:
    """Returns the second at the middle of a frame."""
    return scale.begin + scale.settings.window / 2 + frame * scale.settings.hop


def _panel(ax: Axes, values: Any, scale: Scale, **how: Any) -> Any:
    """Draws values [bands, frames] with seconds to the right and Hz upwards."""
    bands, frames = values.shape
    extent = (_at(scale, -0.5), _at(scale, frames - 0.5), -0.5, bands - 0.5)
    drawn = ax.imshow(values, origin="lower", aspect="auto", interpolation="nearest", extent=extent, **how)
    hertz = scale.hertz
    shown = _round(hertz)
    thousands = hertz[-1] >= 2000
    ax.set_yticks(np.interp(shown, hertz, np.arange(bands)), [f"{one / (1000 if thousands else 1):g}" for one in shown])
    ax.set_ylabel("kHz" if thousands else "Hz", fontsize=9)
    ax.tick_params(labelsize=8)
    ax.locator_params(axis="x", nbins=4)
    return drawn


def _round(hertz: np.ndarray) -> list[float]:
    """Returns round frequencies within those of the bands, at least an eighth of the bands apart, the highest first."""
    decades = range(int(np.floor(np.log10(max(hertz[0], 1e-3)))), int(np.ceil(np.log10(hertz[-1]))) + 1)
    found: list[float] = []
    for one in sorted((digit * 10.0**decade for decade in decades for digit in (1, 2, 4, 6, 8)), reverse=True):
        places = np.interp([one, *found[-1:]], hertz, np.arange(len(hertz)))
        if hertz[0] <= one <= hertz[-1] and (not found or places[1] - places[0] >= len(hertz) / 8):
            found.append(one)
    return found
